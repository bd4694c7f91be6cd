"""Whether an axis is of samples: followed through every operator, in a walk with one of them and in a walk with two.

An operator that is not known to keep samples apart is taken to mix them. So a set of points whose largest value is
taken, steps of a sequence, frames that are averaged and rows of an image are no batch, however their axis is called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compress.export.onnx.shapes import Shape
from compress.export.onnx.walk import Step, Walk
from compress.reading.operators import OVER, TORCH

# Number by number, on tensors that are spread over each other from the last axis on.
_POINTWISE = frozenset(
    name
    for row in TORCH.values()
    for name in row.onnx.split()
    if row.ids in ("same", "copy", "pointwise") and (row.place == OVER or " " not in row.onnx)
) | frozenset(
    """
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CastLike Dropout Mod Sum Mean Xor QuantizeLinear
    DequantizeLinear DynamicQuantizeLinear Selu Softplus Softsign Shrink ThresholdedRelu Acos Acosh Asin Asinh Atan
    Atanh Cosh Sinh Tan IsInf Swish Bernoulli
    com.microsoft::BiasAdd com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu
    com.microsoft::QuickGelu com.microsoft::QLinearAdd com.microsoft::QLinearMul com.microsoft::QLinearLeakyRelu
    com.microsoft::QLinearSigmoid com.microsoft::QuantizeLinear com.microsoft::DequantizeLinear
    ai.onnx.ml::Binarizer ai.onnx.ml::Imputer ai.onnx.ml::Scaler ai.onnx.ml::LabelEncoder
    """.split()  # noqa: SIM905
)
# Whatever they do along other axes, the first one stays as it is.
_BY_FIRST = frozenset(
    """
    Conv ConvTranspose DeformConv QLinearConv ConvInteger MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool
    GlobalLpPool BatchNormalization InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth GridSample
    MaxUnpool Col2Im AffineGrid Attention com.microsoft::FusedConv com.microsoft::Attention com.microsoft::QAttention
    com.microsoft::MultiHeadAttention com.microsoft::GroupNorm com.microsoft::QLinearAveragePool
    com.microsoft::QLinearGlobalAveragePool com.microsoft::EmbedLayerNormalization
    com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization com.microsoft::RotaryEmbedding
    ai.onnx.ml::LinearClassifier ai.onnx.ml::LinearRegressor ai.onnx.ml::Normalizer
    ai.onnx.ml::FeatureVectorizer ai.onnx.ml::OneHotEncoder ai.onnx.ml::ArrayFeatureExtractor
    """.split()  # noqa: SIM905
)
# Along one axis, which must be another one: by its attribute, and where that is missing.
_ALONG = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1, "CumSum": None,
    "com.microsoft::QLinearSoftmax": -1, "com.microsoft::BiasSoftmax": -1,
}  # fmt: skip
_BEHIND = {"LayerNormalization": -1, "RMSNormalization": -1, "SimplifiedLayerNormalization": -1}  # and all after it
# An axis of the same length before and after is one that they left alone.
_LEAVES = frozenset(
    """
    Slice Concat Split Pad Resize Upsample Gather Compress Tile Trilu com.microsoft::QLinearConcat com.microsoft::Trilu
    """.split()  # noqa: SIM905
)
_REDUCES = frozenset(
    """
    ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare
    ArgMax ArgMin
    """.split()  # noqa: SIM905
)
_MOVES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"})
_PRODUCTS = frozenset(
    """
    MatMul Gemm QLinearMatMul MatMulInteger Einsum com.microsoft::FusedMatMul com.microsoft::FusedGemm
    com.microsoft::TransposeMatMul com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat
    com.microsoft::FusedMatMulActivation com.microsoft::QGemm com.microsoft::MatMulNBits com.microsoft::MatMulBnb4
    """.split()  # noqa: SIM905
)
# Operators through which the numbers of samples become indices.
_NUMBERED = frozenset(
    "Cast Concat Unsqueeze Squeeze Reshape Expand Mul Add Gather GatherND ScatterND Transpose Flatten Identity".split()  # noqa: SIM905
)
COUNTS, SUMS = "counts them", "sums along it"
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "com.microsoft::DynamicQuantizeLSTM"})
_TOLD = frozenset({"Shape", "Size", "ConstantOfShape", "Expand", "Tile", "Reshape", "EyeLike"})  # made by their number


def disproof(one: Walk, two: Walk, excused: Collection[str] = ()) -> str:
    """Why an axis is not shown to be of samples by a walk with one of them and one with two; "" where it is.

    Operators that are `excused` from being known need only have it as their first axis.
    """
    if two.gaps or two.unknown.keys() - one.unknown.keys():
        return f"with two in its place, {(two.gaps or list(two.unknown))[0]}"
    if [step.name for step in one.steps] != [step.name for step in two.steps]:
        return "with two in its place, other operators run"
    summed: set[str] = set()  # values that are told of all samples together, as the condition of an If is
    numbers: set[str] = set()  # values made of the samples' numbers, 0, 1, ...
    for before, after in zip(one.steps, two.steps, strict=True):
        node = before.node
        what = _mixes(before, after, one, excused)
        if what == COUNTS or (before.name in _NUMBERED and not numbers.isdisjoint(node.input)):
            what = "" if before.name != "Gather" or not before.constant[0] else "looks up their numbers"
            numbers.update(node.output)
        elif what == SUMS or (not what and not summed.isdisjoint(node.input)):
            what = "" if what or before.reads == after.reads else "brings together what was told of all of them"
            summed.update(node.output)
        if what:
            return f"{before.name} {node.name[:60]!r} {what}"
    if any(value.name in summed for value in one.model.graph.output):
        return "an output is told of all of them together"
    ends = [(one.scope.know(value.name).shape, two.scope.know(value.name).shape) for value in one.model.graph.output]
    moved = [(a, b) for a, b in ends if a is not None and b is not None and a != b]
    if not any(_changed(a, b) == [0] and b[0] == 2 * a[0] for a, b in moved):
        return "no output has it as its first axis"
    return ""


def _mixes(before: Step, after: Step, seen: Walk, excused: Collection[str]) -> str:
    """What an operator does that cannot be along an axis of samples; nothing where it keeps them apart."""
    if before.reads == after.reads:
        same = before.makes == after.makes or before.name in _TOLD
        return "" if same else COUNTS if before.name == "Range" else "makes something of its length"
    pairs = [(a, b) for a, b in zip(before.reads, after.reads, strict=True) if a is not None and b is not None]
    moved = [_changed(a, b) for a, b in pairs]
    made = [_changed(a, b) for a, b in zip(before.makes, after.makes, strict=True) if a is not None and b is not None]
    if before.name in ("Shape", "Size") or before.node.op_type == "ConstantOfShape":
        return ""
    if before.name == "Loop":
        return "runs as many rounds"
    if before.macs != after.macs and after.macs != 2 * before.macs:
        return f"would cost {after.macs:,} MACs, not twice {before.macs:,}"
    if before.name in _REDUCES and not any(made):
        return SUMS
    if not made or any(len(axes) != 1 for axes in made if axes) or not any(made):
        return "does not keep it"
    options = {a.name: a.i for a in before.node.attribute}
    if before.name == "CumSum" and (axis := seen.scope.know(before.node.input[1]).data) is not None:
        options["axis"] = int(axis.reshape(-1)[0])
    first, rank = moved[0] if moved else [], len(pairs[0][0]) if pairs else 0
    if before.name in _RECURRENT:
        batch = 0 if options.get("layout") else 1
        return "takes it for the steps of a sequence" if first and first != [batch] else ""
    if before.name == "ReverseSequence":
        return "" if first == [options.get("batch_axis", 1)] else "does not take it for its samples"
    if before.name in _POINTWISE:
        ends = {axis - len(a) for (a, _), axes in zip(pairs, moved, strict=True) for axis in axes}
        out = before.makes[0]
        return "" if out is not None and {made[0][0] - len(out)} == ends else "does not keep it"
    if before.name in _BY_FIRST or before.name in excused:
        fine = all(axes in ([], [0]) for axes in (*moved, *made))
        return "" if fine else "does not take it for its samples"
    if before.name in _ALONG or before.name in _BEHIND:
        return _along(before, first, rank, options)
    if before.name in _LEAVES:
        return _leaves(before, after, moved)
    if before.name in _PRODUCTS:
        return _sums(before, moved, options)
    return "" if before.name in _REDUCES | _MOVES else "is not known to keep samples apart"


def _along(step: Step, first: Sequence[int], rank: int, options: dict[str, int]) -> str:
    behind = step.name in _BEHIND
    usual = _BEHIND[step.name] if behind else _ALONG[step.name]
    axis = options.get("axis", usual)
    if axis is None or not first:
        return "mixes along it"  # a sum that runs along an axis which is a number of its own
    axis %= rank
    return "mixes along it" if first[0] == axis or (behind and first[0] > axis) else ""


def _leaves(before: Step, after: Step, moved: Sequence[list[int]]) -> str:
    """Whether an axis is as long behind an operator as before it, in both walks."""
    made = before.makes[0]
    if before.name == "Gather" and moved and moved[0] and made is not None:  # of the table; its indices may be samples
        at = {a.name: a.i for a in before.node.attribute}.get("axis", 0)
        source = before.reads[0]
        return "picks from it" if source is None or at % max(1, len(source)) in moved[0] else ""
    if before.name == "Gather":
        return ""
    for a, b, axes in zip(before.reads, after.reads, moved, strict=False):
        for axis in axes:
            kept = made is not None and a is not None and len(made) == len(a) and made[axis] == a[axis]
            if not kept or b is None or after.makes[0] is None or after.makes[0][axis] != b[axis]:
                return "cuts, pads or joins along it"
    return ""


def _sums(step: Step, moved: Sequence[list[int]], options: dict[str, int]) -> str:
    """Whether a product of matrices sums along it: the last axis of the first, the last but one of the second."""
    if step.name == "Einsum":
        return ""  # a label that is summed would leave the output as it is
    at = 3 if step.name in ("QLinearMatMul", "com.microsoft::QGemm") else 1
    for place, turned, inner in ((0, options.get("transA", 0), -1), (at, options.get("transB", 0), -2)):
        shape = step.reads[place] if place < len(step.reads) else None
        if shape is None or place >= len(moved) or not moved[place]:
            continue
        summed = (-2 if inner == -1 else -1) if turned else inner
        if moved[place][0] == len(shape) + (summed if len(shape) > 1 else -1):
            return "sums along it"
    return ""


def _changed(one: Shape, two: Shape) -> list[int]:
    if len(one) != len(two):
        return [-1, -1]
    return [at for at, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]


__all__ = ["disproof"]
