"""Which of the numbers that an ONNX file holds are parameters: all that reach a result as values, whatever their type.

Not counted are numbers that only say where, how many or in which shape (the second input of Reshape, the indices of
Gather, truths that choose), batch norm's statistics, single numbers, labels (whole numbers that are only handed out),
and what reaches no result. Whole numbers that hold several each are counted by what they are unpacked to, those of a
palette as well as its colours. Of sparse tensors the stored numbers count. What could hold numbers out of sight is
named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from compress.export.onnx.axes import inputs_of
from compress.export.onnx.fold import SMALL
from compress.export.onnx.shapes import op_name
from compress.export.onnx.walk import Walk
from compress.reading import operators

BAKED = ("preprocessing.scale", "preprocessing.shift")  # normalisation in the graph, [1, C, 1, 1] each: no weights

# Inputs that say where, how many or which, by their place; -1 stands for all from the one before it.
WHERE: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Slice": (1, 2, 3, 4), "Pad": (1, 3), "Resize": (1, 2, 3),
    "Upsample": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Unsqueeze": (1,), "Squeeze": (1,), "Split": (1,),
    "TopK": (1,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "ScatterElements": (1,), "Scatter": (1,),
    "ScatterND": (1,), "OneHot": (0, 1), "CumSum": (1,), "Where": (0,), "Dropout": (1, 2), "If": (0,), "Loop": (0, 1),
    "BatchNormalization": (3, 4), "Trilu": (1,), "LSTM": (4,), "GRU": (4,), "RNN": (4,), "ReverseSequence": (1,),
    "MaxUnpool": (1, 2), "RoiAlign": (2,), "EyeLike": (0,), "Shape": (0,), "Size": (0,), "NonZero": (0,),
    "Compress": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "AffineGrid": (1,), "NonMaxSuppression": (2, 3, 4),
    "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceL1": (1,),
    "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceSumSquare": (1,),
    "ai.onnx.ml::ArrayFeatureExtractor": (1,), "com.microsoft::GatherBlockQuantized": (1,),
    "com.microsoft::EmbedLayerNormalization": (0, 1, 7),
}  # fmt: skip
_MOVED = frozenset(
    """
    And Cast Compress Concat Equal Expand Flatten Gather GatherElements GatherND Identity Not Or Reshape Slice Split
    Squeeze Tile Transpose Unsqueeze Where If Loop ZipMap ai.onnx.ml::ZipMap ai.onnx.ml::ArrayFeatureExtractor
    """.split()  # noqa: SIM905
)
_BITS = frozenset({"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod", "Floor"})
_ATTRIBUTES = ":attributes"  # of a linear model, as if they were a tensor
_PASSES = 4
_FEW = 64  # numbers in an attribute that say where or how many
_LOOKUPS = ("Gather", "GatherElements", "GatherND")
_WIDE = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL)
_FLOATS = frozenset(kind for name, kind in TensorProto.DataType.items() if "FLOAT" in name or "COMPLEX" in name) | {11}


Makers = dict[str, list[tuple[str, Sequence[str]]]]  # of each value: operators that make it, and of what


class Tally(NamedTuple):
    """How many parameters a file holds; what may hold more, by name, without which the number is exact."""

    params: int
    hidden: tuple[str, ...]


class Weight(NamedTuple):
    """Numbers that are stored together."""

    name: str
    kind: int  # of number, as ONNX numbers them
    size: int


@dataclass
class Flow:
    """Who reads what, over all bodies: the names in a function have its own before them."""

    weights: list[Weight] = field(default_factory=list)
    nodes: list[tuple[NodeProto, str, list[str], list[str]]] = field(default_factory=list)  # node, op, reads, makes
    same: list[tuple[str, str]] = field(default_factory=list)  # (made, of): one value under two names
    hidden: dict[str, None] = field(default_factory=dict)


def tally(model: ModelProto, seen: Walk) -> Tally:
    """Count the parameters of a model, whose shapes a walk has followed as far as they are known."""
    flow = read_flow(model)
    made_by, constant = _makers(flow), _constant_names(flow)
    values = _levels(made_by, [value.name for value in model.graph.output])
    choices = _levels(made_by, [name for name in _where(flow) if name not in constant])
    unpacked, looked_up = _unpacked(flow, seen, constant), _looked_up(flow, made_by, constant)
    packed = dict(_packed(flow))
    first = next(iter(inputs_of(model)), None)
    axes = first.type.tensor_type.shape.dim if first is not None else []
    channels = axes[1].dim_value if len(axes) > 1 else 0
    total = 0
    for name, kind, size in flow.weights:
        size = max(packed.get(name, 0), unpacked.get(name, 0), size)
        if size <= 1 or (name in BAKED and size <= channels) or kind == TensorProto.STRING:
            continue
        whole = kind not in _FLOATS
        level = max(values.get(name, 0), looked_up.get(name, 0))
        chosen = choices.get(name, 0) > whole and (size > SMALL or kind not in _WIDE)
        total += size if chosen or level > (kind in _WIDE) or name.endswith(_ATTRIBUTES) else 0
    return Tally(total, tuple({**flow.hidden, **dict.fromkeys(_handed_over(flow))}))


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


# ---- who reads what -------------------------------------------------------------------------------------------------


def read_flow(model: ModelProto) -> Flow:
    """Read the operators of a model, and of those functions that it calls."""
    flow = Flow()
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    called: set[Any] = set()
    todo: list[tuple[Any, str]] = [(model.graph, "")]
    while todo:
        body, prefix = todo.pop()
        if isinstance(body, GraphProto):
            flow.weights += [Weight(prefix + t.name, t.data_type, prod(t.dims)) for t in body.initializer]
            flow.weights += [
                Weight(prefix + s.values.name, s.values.data_type, prod(s.values.dims)) for s in body.sparse_initializer
            ]
        for node in body.node:
            reads, makes = ([prefix + n if n else "" for n in names] for names in (node.input, node.output))
            name, key = op_name(node), (node.domain, node.op_type, node.overload)
            if name == "Constant":
                flow.weights += [Weight(makes[0], kind, size) for kind, size in _constants(node) if makes]
            elif key in functions:
                inside = f"{node.domain}:{node.op_type}:{node.overload}/"
                flow.same += [(inside + n, given) for n, given in zip(functions[key].input, reads, strict=False)]
                flow.same += [(made, inside + n) for n, made in zip(functions[key].output, makes, strict=False)]
                _arguments(node, functions[key], flow)
                if key not in called:
                    called.add(key)
                    todo.append((functions[key], inside))
                continue
            _attributes(node, name, makes, flow)
            flow.nodes.append((node, name, reads, makes))
            for attribute in node.attribute:
                for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                    todo.append((graph, prefix))
                    _tie(graph, prefix, reads, makes, flow)
    return flow


def _tie(graph: GraphProto, prefix: str, reads: Sequence[str], makes: Sequence[str], flow: Flow) -> None:
    """What a graph inside an operator is given and gives: any of what the operator is given and gives."""
    flow.same += [(prefix + value.name, name) for value in graph.input for name in reads if name]
    flow.same += [(name, prefix + value.name) for value in graph.output for name in makes if name]


def _constants(node: NodeProto) -> Iterator[tuple[int, int]]:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                yield attribute.t.data_type, prod(attribute.t.dims)
            case "sparse_value":
                values = attribute.sparse_tensor.values
                yield values.data_type, prod(values.dims)
            case "value_floats":
                yield TensorProto.FLOAT, len(attribute.floats)
            case "value_ints":
                yield TensorProto.INT64, len(attribute.ints)


def _attributes(node: NodeProto, name: str, makes: Sequence[str], flow: Flow) -> None:
    """Numbers that operators keep in their attributes: linear models and scalers; trees and the like hide them.

    An operator that nobody knows may keep them in a text too, as compiled networks are.
    """
    if node.domain == "ai.onnx.ml" and name in operators.onnx():
        numbers = sum(len(a.floats) for a in node.attribute)
        flow.weights.append(Weight(f"{makes[0] if makes else ''}{_ATTRIBUTES}", TensorProto.FLOAT, numbers))
    elif name != "Constant":
        sizes = [prod(a.t.dims) for a in node.attribute if a.HasField("t")]
        tensors = max(sizes, default=0) > 1 or any(a.tensors or a.HasField("sparse_tensor") for a in node.attribute)
        foreign = node.domain not in ("", "ai.onnx") and name not in operators.onnx()
        packs = foreign and node.domain.startswith("com.microsoft")
        texts = any(a.s or a.strings or len(a.floats) > 1 or len(a.ints) > _FEW for a in node.attribute)
        if tensors or packs or (foreign and texts):
            flow.hidden[name] = None


def _handed_over(flow: Flow) -> Iterator[str]:
    """Operators that nobody knows and that are given whole numbers, each of which may be several."""
    rows, whole = operators.onnx(), {w.name for w in flow.weights if w.kind not in _FLOATS and w.size > 1}
    for node, name, reads, _ in flow.nodes:
        if node.domain not in ("", "ai.onnx") and name not in rows and not whole.isdisjoint(reads):
            yield name


def _arguments(node: NodeProto, function: FunctionProto, flow: Flow) -> None:
    """Numbers that a call hands to a function as attributes: whoever reads them there is not followed."""
    for a in (*node.attribute, *function.attribute_proto):
        if a.HasField("t") or a.tensors or a.HasField("sparse_tensor") or len(a.floats) > 1 or len(a.ints) > _FEW:
            flow.hidden[f"{op_name(node)} with numbers for attributes"] = None


# ---- what becomes of it ---------------------------------------------------------------------------------------------


def _levels(made_by: Makers, ends: Sequence[str]) -> dict[str, int]:
    """How each value reaches one of these: 2 as something that is reckoned with, 1 only moved about; absent: not."""
    level = dict.fromkeys(ends, 1)
    todo = list(ends)
    while todo:
        value = todo.pop()
        for name, reads in made_by.get(value, ()):
            to = level[value] if name in _MOVED or not name else 2
            where = WHERE.get(name, ())
            for at, given in enumerate(reads):
                if given and at not in where and level.get(given, 0) < to:
                    level[given] = to
                    todo.append(given)
    return level


def _where(flow: Flow) -> Iterator[str]:
    """What operators read to know where, how many or which. Where that is reckoned from an input, as labels are that a
    network chooses, the weights that it is reckoned with are weights.
    """
    for _, name, reads, _ in flow.nodes:
        statistics = name == "BatchNormalization"
        yield from (reads[at] for at in WHERE.get(name, ()) if at < len(reads) and reads[at] and not statistics)


def _makers(flow: Flow) -> Makers:
    """Which operators make a value, of what; "" for one that has another name elsewhere."""
    made_by: Makers = {}
    for _, name, reads, makes in flow.nodes:
        for made in makes:
            made_by.setdefault(made, []).append((name, reads))
    for made, of in flow.same:
        made_by.setdefault(made, []).append(("", [of]))
    return made_by


def _constant_names(flow: Flow) -> set[str]:
    """Values that are made of stored numbers alone; operators come in the order in which they run."""
    constant = {weight.name for weight in flow.weights}
    for _ in range(_PASSES):  # functions come behind those who call them
        before = len(constant)
        for _, name, reads, makes in flow.nodes:
            if any(reads) and all(not n or n in constant for n in reads) and "Random" not in name:
                constant.update(makes)
        tied: dict[str, bool] = {}
        for made, of in flow.same:
            tied[made] = tied.get(made, True) and of in constant
        constant.update(name for name, all_are in tied.items() if all_are)
        if len(constant) == before:
            break
    return constant


def _unpacked(flow: Flow, seen: Walk, constant: Set[str]) -> dict[str, int]:
    """How many numbers whole ones become that are taken apart bit by bit, by the stored tensor's name."""
    whole = {weight.name for weight in flow.weights if weight.kind not in _FLOATS}
    sources: dict[str, frozenset[str]] = {name: frozenset([name]) for name in whole}  # which of them a value is made of
    apart: set[str] = set()  # values made by taking bits apart
    ends: dict[str, int] = {}
    counts: dict[str, int] = {}
    for node, name, reads, makes in flow.nodes:
        of = frozenset().union(*(sources.get(n, frozenset()) for n in reads))
        if not of:
            continue
        if all(not n or n in constant for n in reads):
            split = name in _BITS or (name == "Div" and _is_whole(node, seen))
            for made in makes:
                sources[made] = of
                if split or any(n in apart for n in reads):
                    apart.add(made)
        else:
            for n in (n for n in reads if n in apart):
                shape = seen.scope.know(n).shape
                ends[n] = prod(shape or ())
                if shape is None:
                    flow.hidden[f"{name}, which takes whole numbers apart"] = None
    sizes = {weight.name: weight.size for weight in flow.weights}
    for value, size in ends.items():
        largest = max(sources[value], key=lambda name: sizes[name])  # the others say how it is taken apart
        counts[largest] = counts.get(largest, 0) + size
    return counts


def _is_whole(node: NodeProto, seen: Walk) -> bool:
    kind = seen.scope.know(node.input[0]).type
    return kind is None or kind.tensor_type.elem_type not in _FLOATS


def _looked_up(flow: Flow, made_by: Makers, constant: Set[str]) -> dict[str, int]:
    """Indices into stored tables whose result is stored numbers too, a palette: 2 where something is multiplied by
    that, else 1. (A table of positions is read by indices as well, but is added.)
    """
    rows = operators.onnx()

    def behind(names: Sequence[str]) -> set[str]:
        todo, seen = [n for n in names if n in constant], set(names)
        while todo:
            for _, reads in made_by.get(todo.pop(), ()):
                fresh = {n for n in reads if n and n in constant} - seen
                seen |= fresh
                todo += fresh
        return seen

    factors = []
    for _, name, reads, _ in flow.nodes:
        row = rows.get(name)
        multiplies = (row is not None and row.macs is not None) or name == "Mul"
        if multiplies and not all(n in constant for n in reads if n):
            factors += [n for n in reads if n in constant]
    multiplied = behind(factors)
    levels: dict[str, int] = {}
    for _, name, reads, makes in flow.nodes:
        if name in _LOOKUPS and len(reads) > 1 and all(n in constant for n in reads):
            level = 2 if makes and makes[0] in multiplied else 1
            for index in behind([reads[1]]):
                levels[index] = max(level, levels.get(index, 0))
    return levels


def _packed(flow: Flow) -> Iterator[tuple[str, int]]:
    """Tensors that hold several numbers in each of theirs, by what the operator says that reads them."""
    for node, name, reads, _ in flow.nodes:
        options: Mapping[str, int] = {a.name: a.i for a in node.attribute}
        match name:
            case "com.microsoft::MatMulNBits" | "com.microsoft::MatMulBnb4" if len(reads) > 1:
                columns, depth = options.get("N", 0), options.get("K", 0)
                yield reads[1], columns * depth
                if len(reads) > 3 and reads[3]:
                    yield reads[3], columns * -(-depth // max(1, options.get("block_size", 32)))
            case "com.microsoft::GatherBlockQuantized" if reads:
                size = next((w.size for w in flow.weights if w.name == reads[0]), 0)
                yield reads[0], size * (8 // max(1, options.get("bits", 4)))
