"""Which of the numbers that an ONNX file holds are parameters: all that reach a result as values, whatever their type.

Not counted are numbers that only say where, how many or in which shape (the second input of Reshape, the indices of
Gather, truths that choose), batch norm's statistics, single numbers, labels (whole numbers that are only handed out),
and what reaches no result. Whole numbers that hold several each are counted by what they are unpacked to, those of a
palette as well as its colours. Of sparse tensors the stored numbers count. What could hold numbers out of sight is
named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from compress.export.onnx.axes import inputs_of
from compress.export.onnx.flow import ATTRIBUTES, FLOATS, MOVED, WHERE, Flow, read_flow
from compress.export.onnx.fold import SMALL
from compress.export.onnx.packed import by_operators, looked_up, reckoned_with, taken_apart
from compress.export.onnx.walk import Walk
from compress.reading import operators

BAKED = ("preprocessing.scale", "preprocessing.shift")  # normalisation in the graph, [1, C, 1, 1] each: no weights

LABELS = 32_768  # whole numbers that are only handed out, at most: no network tells more classes apart
_WIDE = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL)
_RECURRENT = dict.fromkeys(("LSTM", "GRU", "RNN", "com.microsoft::DynamicQuantizeLSTM"), (1, 2))
_PRODUCTS = {  # of two sides, of which either may be the weight
    **dict.fromkeys(
        ("Gemm", "MatMul", "MatMulInteger", "com.microsoft::FusedMatMul", "com.microsoft::FusedGemm"), (1,)
    ),
    **dict.fromkeys(("com.microsoft::MatMulIntegerToFloat", "com.microsoft::DynamicQuantizeMatMul"), (1,)),
    **dict.fromkeys(("QLinearMatMul", "com.microsoft::QGemm"), (3,)),
}
_PLACES = {  # of weights among the inputs
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "com.microsoft::FusedConv"), (1,)),
    **dict.fromkeys(("com.microsoft::MatMulNBits", "com.microsoft::MatMulBnb4", "com.microsoft::Attention"), (1,)),
    **_RECURRENT, **_PRODUCTS, "QLinearConv": (3,), "com.microsoft::QAttention": (1,),
}  # fmt: skip
_TO_WEIGHTS = (MOVED - {"If", "Loop", "Where", "Equal"}) | {
    "DequantizeLinear", "QuantizeLinear", "Add", "Sub", "Mul", "Div", "com.microsoft::DequantizeLinear",
}  # fmt: skip
_TEXTS = frozenset({"StringConcat", "ZipMap", "ai.onnx.ml::ZipMap"})  # what may read them without making numbers


class Tally(NamedTuple):
    """How many parameters a file holds; what may hold more, by name, without which the number is exact."""

    params: int
    hidden: tuple[str, ...]


def tally(model: ModelProto, seen: Walk) -> Tally:
    """Count the parameters of a model, whose shapes a walk has followed as far as they are known."""
    flow = read_flow(model)
    outputs = [value.name for value in model.graph.output]
    values = _levels(flow, outputs)
    choices = _levels(flow, [name for name in _where(flow) if name not in flow.constant])
    reckoned = reckoned_with(flow)
    palettes, tables = looked_up(flow, reckoned)
    packed, unpacked = by_operators(flow), taken_apart(flow, seen, reckoned, outputs)
    baked = {name for name in BAKED if _is_baked(name, flow, model)}
    total = 0
    for weight in flow.weights:
        name, kind = weight.name, weight.kind
        size = max(packed.get(name, 0), unpacked.get(name, 0), weight.size)
        if size <= 1 or name in baked or kind == TensorProto.STRING:
            continue
        whole, wide = kind not in FLOATS, kind in _WIDE
        reaches = values.get(name, 0) > (wide and size <= LABELS) or palettes.get(name, 0) > wide
        chosen = choices.get(name, 0) > whole and (size > SMALL or not wide)
        chosen = chosen or (tables.get(name, 0) > 1 and size >= SMALL)
        total += size if reaches or chosen or name.endswith(ATTRIBUTES) else 0
    names = (*_handed_over(flow), *_given(flow, seen, model), *_texts(flow))
    return Tally(total, tuple({**flow.hidden, **dict.fromkeys(names)}))


def bodies(model: ModelProto) -> Iterator[Any]:
    """Yield everything that holds operators: the graph, graphs inside operators (If, Loop), functions."""
    todo: list[Any] = [model.graph, *model.functions]
    while todo:
        body = todo.pop()
        yield body
        for attribute in (a for node in body.node for a in node.attribute):
            todo += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that a model stores: initializers and attributes, sparse ones by their numbers."""
    for body in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in (a for node in body.node for a in node.attribute):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
                yield from (sparse.values, sparse.indices)


# ---- what becomes of it ---------------------------------------------------------------------------------------------


def _levels(flow: Flow, ends: list[str]) -> dict[str, int]:
    """How each value reaches one of these: 2 as something that is reckoned with, 1 only moved about; absent: not."""
    return flow.reach(dict.fromkeys(ends, 1), lambda step, level: level if step.name in MOVED else 2)


def _where(flow: Flow) -> Iterator[str]:
    """What operators read to know where, how many or which. Where that is reckoned from an input, as labels are that a
    network chooses, the weights that it is reckoned with are weights.
    """
    for step in flow.steps:
        if step.name != "BatchNormalization":  # its statistics
            where = WHERE.get(step.name, ())
            yield from (step.reads[at] for at in where if at < len(step.reads) and step.reads[at])


def _is_baked(name: str, flow: Flow, model: ModelProto) -> bool:
    """Whether a tensor of this name is the normalisation of the input's channels: [1, C, 1, 1], and no more."""
    first = next(iter(inputs_of(model)), None)
    axes = first.type.tensor_type.shape.dim if first is not None else []
    channels = axes[1].dim_value if len(axes) > 1 else 0
    stored = [weight for weight in flow.weights if weight.name == name]
    readers = {flow.steps[at].name for at in flow.read_by.get(name, ())}
    return all(weight.dims == (1, channels, 1, 1) for weight in stored) and readers == {
        "Mul" if name == BAKED[0] else "Add"
    }


# ---- what may hold more ---------------------------------------------------------------------------------------------


def _handed_over(flow: Flow) -> Iterator[str]:
    """Operators that nobody knows and that are given whole numbers, each of which may be several."""
    rows, whole = operators.onnx(), {w.name for w in flow.weights if w.kind not in FLOATS and w.size > 1}
    for step in flow.steps:
        if step.node.domain not in ("", "ai.onnx") and step.name not in rows and not whole.isdisjoint(step.reads):
            yield step.name


def _given(flow: Flow, seen: Walk, model: ModelProto) -> Iterator[str]:
    """Inputs that stand where weights do, as they are or moved and scaled: weights that whoever runs the file gives.

    A product of two activations is none: of three axes and more, of axes that are free, or of stored weights on the
    left.
    """
    products: dict[str, int] = {}
    others: dict[str, int] = {}
    for step in flow.steps:
        for at in _PLACES.get(step.name, ()):
            name = step.reads[at] if at < len(step.reads) else ""
            if step.name not in _PRODUCTS:
                others[name] = 1
            elif step.reads and step.reads[0] not in flow.constant and _rank(seen, name) in (None, 2):
                products[name] = 1
    two, any_rank = (flow.reach(e, lambda step, n: n if step.name in _TO_WEIGHTS else 0) for e in (products, others))
    for value in inputs_of(model):
        axes = value.type.tensor_type.shape.dim
        fixed = all(axis.HasField("dim_value") for axis in axes)
        if value.name in any_rank or (value.name in two and fixed and (_rank(seen, value.name) or 2) <= 2):
            yield f"input {value.name!r}, a weight that is given"


def _rank(seen: Walk, name: str) -> int | None:
    kind = seen.scope.know(name).type
    return len(kind.tensor_type.shape.dim) if kind is not None and kind.tensor_type.HasField("shape") else None


def _texts(flow: Flow) -> Iterator[str]:
    """Stored texts that numbers may be made of."""
    stored = {weight.name for weight in flow.weights if weight.kind == TensorProto.STRING}
    if not stored:
        return
    moved = MOVED - {"Cast", "Equal"}
    ends: dict[str, int] = {}
    for step in flow.steps:
        if step.name not in moved | _TEXTS | {"Equal"}:
            ends |= dict.fromkeys(step.data(), 1)
    reached = flow.reach(ends, lambda step, level: level if step.name in moved else 0)
    yield from (f"the texts {name!r}" for name in sorted(stored & reached.keys()))
