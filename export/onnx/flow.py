"""Who reads what in an ONNX file, over the graph, its branches and the functions that it calls: what is stored, which
values are made of that alone, and what may hold numbers out of sight.

Names inside a function have the function's own before them. Values that pass into and out of branches, loops and
functions do so by steps without an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod
from typing import Any, NamedTuple

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from compress.export.onnx.shapes import op_name
from compress.reading import operators

# Inputs that say where, how many or which, by their place.
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
MOVED = frozenset(
    """
    And Cast Compress Concat Equal Expand Flatten Gather GatherElements GatherND Identity Not Or Reshape Slice Split
    Squeeze Tile Transpose Unsqueeze Where If Loop ZipMap ai.onnx.ml::ZipMap ai.onnx.ml::ArrayFeatureExtractor
    ai.onnx.ml::LabelEncoder
    """.split()  # noqa: SIM905
) | {""}
ATTRIBUTES = ":attributes"  # of a linear model, as if they were a tensor
FLOATS = frozenset(kind for name, kind in TensorProto.DataType.items() if "FLOAT" in name or "COMPLEX" in name) | {11}
_LABELS = ":labels"  # whole numbers that an operator keeps in its attributes
_HOLDERS = frozenset({"If", "Loop", "Scan", "SequenceMap"})  # what they make is made by the graphs inside them
_FEW = 64  # numbers in an attribute that say where or how many
_OPTIONS = 16  # real numbers in an attribute that are options
_NODE = NodeProto()


class Weight(NamedTuple):
    """Numbers that are stored together."""

    name: str
    kind: int  # of number, as ONNX numbers them
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many they are."""
        return prod(self.dims)


class Step(NamedTuple):
    """An operator, or none where a value goes by another name."""

    name: str
    reads: Sequence[str]
    makes: Sequence[str]
    node: NodeProto = _NODE

    def data(self) -> list[str]:
        """What it reads as values, not to know where or how many."""
        where = WHERE.get(self.name, ())
        return [given for at, given in enumerate(self.reads) if given and at not in where]


@dataclass
class Flow:
    """What is stored, and the steps that it goes through."""

    weights: list[Weight] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)  # values made in functions and branches
    hidden: dict[str, None] = field(default_factory=dict)

    @cached_property
    def made_by(self) -> dict[str, list[int]]:
        """The steps that make a value; it is one of the results of these."""
        made_by: dict[str, list[int]] = {}
        for at, step in enumerate(self.steps):
            for name in step.makes:
                made_by.setdefault(name, []).append(at)
        return made_by

    @cached_property
    def read_by(self) -> dict[str, list[int]]:
        """The steps that read a value, each as often as it does."""
        read_by: dict[str, list[int]] = {}
        for at, step in enumerate(self.steps):
            for name in filter(None, step.reads):
                read_by.setdefault(name, []).append(at)
        return read_by

    @cached_property
    def stored(self) -> dict[str, Weight]:
        """What is stored, by name; of equal names the largest."""
        return {weight.name: weight for weight in sorted(self.weights, key=lambda weight: weight.size)}

    @cached_property
    def constant(self) -> set[str]:
        """Values that are made of stored numbers alone, at least in one of the calls of a function."""
        constant = set(self.stored)
        missing = [sum(map(bool, step.reads)) for step in self.steps]
        todo = list(constant)
        while todo:
            for at in self.read_by.get(todo.pop(), ()):
                missing[at] -= 1
                step = self.steps[at]
                if missing[at] or step.name in _HOLDERS or step.name.startswith("Random"):
                    continue
                fresh = [name for name in step.makes if name and name not in constant]
                constant.update(fresh)
                todo += fresh
        return constant

    def is_constant(self, step: Step) -> bool:
        """Whether it reads stored numbers and what is made of them alone."""
        return any(step.reads) and all(not n or n in self.constant for n in step.reads)

    def reach(
        self,
        ends: Mapping[str, int],
        passes: Callable[[Step, int], int],
        reads: Callable[[Step], Sequence[str]] = Step.data,
    ) -> dict[str, int]:
        """How each value reaches one of these, that have levels of 1 or 2: the highest level that every step on the
        way passes on to what it reads, 0 for none. A value that does not is left out.
        """
        level, done, todo = dict(ends), dict[int, int](), list(ends)
        while todo:
            value = todo.pop()
            for at in self.made_by.get(value, ()):
                step = self.steps[at]
                to = passes(step, level[value])
                if done.get(at, 0) >= to:
                    continue
                done[at] = to
                for given in reads(step):
                    if level.get(given, 0) < to:
                        level[given] = to
                        todo.append(given)
        return level


def read_flow(model: ModelProto) -> Flow:
    """Read the operators of a model, and of those functions that it calls."""
    flow = Flow()
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    called: set[Any] = set()
    renamed: dict[tuple[str, str], None] = {}  # (of, made): one value under two names
    todo: list[tuple[Any, str]] = [(model.graph, "")]
    while todo:
        body, prefix = todo.pop()
        if isinstance(body, GraphProto):
            stored = [*body.initializer, *(sparse.values for sparse in body.sparse_initializer)]
            flow.weights += [Weight(prefix + t.name, t.data_type, tuple(t.dims)) for t in stored]
        for node in body.node:
            reads, makes = ([prefix + n if n else "" for n in names] for names in (node.input, node.output))
            name, key = op_name(node), (node.domain, node.op_type, node.overload)
            if body is not model.graph:
                flow.inside.update(makes)
            if name == "Constant":
                flow.weights += [Weight(makes[0], kind, dims) for kind, dims in _constants(node) if makes]
            elif key in functions:
                inside = f"{node.domain}:{node.op_type}:{node.overload}/"
                renamed |= {(n, inside + m): None for m, n in zip(functions[key].input, reads, strict=False) if n}
                renamed |= {(inside + m, n): None for m, n in zip(functions[key].output, makes, strict=False) if n}
                _arguments(node, functions[key], flow)
                if key not in called:
                    called.add(key)
                    todo.append((functions[key], inside))
                continue
            flow.steps.append(Step(name, [*reads, *_attributes(node, name, makes, flow)], makes, node))
            graphs = [g for a in node.attribute for g in (a.graphs, [a.g])[a.type == AttributeProto.GRAPH]]
            todo += [(graph, prefix) for graph in graphs]
            _tie(graphs, name, prefix, reads, makes, flow)
    flow.steps += [Step("", [of], [made]) for of, made in renamed]
    return flow


def _tie(
    graphs: Sequence[GraphProto], name: str, prefix: str, reads: Sequence[str], makes: Sequence[str], flow: Flow
) -> None:
    """What a graph inside an operator is given and gives: any of what the operator is given and gives, and from round
    to round what it gives itself.
    """
    hub = f"{prefix}:given:{len(flow.steps)}"
    for graph in graphs:
        given, gives = ([prefix + value.name for value in ends] for ends in (graph.input, graph.output))
        flow.inside.update(given)
        flow.steps += [Step("", [n for n in reads if n], [hub]), Step("", [hub], given), Step("", gives, makes)]
        if name != "If":
            flow.steps.append(Step("Loop", ["", "", *gives], given))


def _constants(node: NodeProto) -> Iterator[tuple[int, tuple[int, ...]]]:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                yield attribute.t.data_type, tuple(attribute.t.dims)
            case "sparse_value":
                values = attribute.sparse_tensor.values
                yield values.data_type, tuple(values.dims)
            case "value_floats":
                yield TensorProto.FLOAT, (len(attribute.floats),)
            case "value_ints":
                yield TensorProto.INT64, (len(attribute.ints),)
            case "value_string" | "value_strings":
                yield TensorProto.STRING, (max(1, len(attribute.strings)),)


def _attributes(node: NodeProto, name: str, makes: Sequence[str], flow: Flow) -> list[str]:
    """Numbers that operators keep in their attributes: linear models and scalers; trees and the like hide them. Returns
    the name of whole ones that it looks up, which are read as if they were stored beside it.

    An operator that nobody knows may keep them in a text too, as compiled networks are.
    """
    if node.domain == "ai.onnx.ml" and name in _rows():
        tensors = {a.name: a.t for a in node.attribute if a.HasField("t") and a.t.data_type != TensorProto.STRING}
        real = sum(len(a.floats) for a in node.attribute)
        real += sum(prod(t.dims) for t in tensors.values() if t.data_type in FLOATS)
        whole = sum(prod(t.dims) for n, t in tensors.items() if t.data_type not in FLOATS and "keys" not in n)
        whole += sum(len(a.ints) for a in node.attribute if a.name == "values_int64s")
        key = makes[0] if makes else ""
        flow.weights.append(Weight(key + ATTRIBUTES, TensorProto.FLOAT, (real,)))
        flow.weights += [Weight(key + _LABELS, TensorProto.INT64, (whole,))] if whole else []
        return [key + _LABELS] if whole else []
    if name != "Constant":
        sizes = [prod(a.t.dims) for a in node.attribute if a.HasField("t")]
        stored = max(sizes, default=0) > 1 or any(a.tensors or a.HasField("sparse_tensor") for a in node.attribute)
        foreign = node.domain not in ("", "ai.onnx") and name not in _rows()
        packs = foreign and node.domain.startswith("com.microsoft")
        texts = any(a.s or a.strings or len(a.floats) > 1 or len(a.ints) > _FEW for a in node.attribute)
        if stored or packs or (foreign and texts) or any(len(a.floats) > _OPTIONS for a in node.attribute):
            flow.hidden[name] = None
    return []


@cache
def _rows() -> Mapping[str, operators.Operator]:
    return operators.onnx()


def _arguments(node: NodeProto, function: FunctionProto, flow: Flow) -> None:
    """Numbers that a call hands to a function as attributes: whoever reads them there is not followed."""
    for a in (*node.attribute, *function.attribute_proto):
        if a.HasField("g") or a.graphs:
            flow.hidden[f"{op_name(node)} with graphs for attributes"] = None
        if a.HasField("t") or a.tensors or a.HasField("sparse_tensor") or len(a.floats) > 1 or len(a.ints) > _FEW:
            flow.hidden[f"{op_name(node)} with numbers for attributes"] = None
