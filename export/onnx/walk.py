"""One walk over an ONNX graph, its branches and its functions: the shape of every value, what is known of the numbers
that shapes are reckoned from, and the multiply-accumulates of every operator.

Each operator is looked at once, in the order of the file; what a file says of its inner shapes is not believed. What
cannot be known stays unknown, and why is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from compress.errors import ArtifactError
from compress.export.onnx.axes import DEFAULTS
from compress.export.onnx.shapes import UNKNOWN, Known, Opsets, Scope, Shape, infer, known, op_name, stored, tensor_type
from compress.reading import operators
from compress.reading.formulas import Uncounted

VISITS = 30_000  # operators, those of functions and branches as often as they are called
DEEP = 40  # calls inside calls
COPIED = 2**26  # bytes of functions, copied for calls with attributes
ENDLESS = 2**31  # rounds of a loop that only its condition ends


class Step(NamedTuple):
    """An operator as it was met."""

    node: NodeProto
    name: str  # of the operator
    reads: tuple[Shape | None, ...]
    makes: tuple[Shape | None, ...]
    macs: int  # in one run of the body that it is in
    constant: tuple[bool, ...] = ()  # which of what it reads is made of stored numbers alone
    body: int = 0  # the number of the run of a body that it is in


@dataclass
class Walk:
    """What one walk learnt. `macs` is exact where `unknown` and `gaps` are empty, else a lower bound."""

    model: ModelProto
    scope: Scope = field(default_factory=Scope)
    macs: int = 0
    unknown: dict[str, None] = field(default_factory=dict)  # operators of unknown cost
    gaps: list[str] = field(default_factory=list)  # why shapes are missing where they are needed
    steps: list[Step] = field(default_factory=list)
    visits: int = 0
    depth: int = 0
    runs: int = 0  # of bodies
    copied: int = 0  # bytes of functions, for calls with attributes
    referring: dict[tuple[str, str, str], bool] = field(default_factory=dict)  # functions with attributes of calls

    def __post_init__(self) -> None:
        self.functions = {(f.domain, f.name, f.overload): f for f in self.model.functions}
        self.rows = operators.onnx()
        self.most = VISITS * max(1, self.model.ByteSize() // 10**8)

    # ---- bodies -----------------------------------------------------------------------------------------------------

    def enter(self, graph: GraphProto, scope: Scope, inputs: Mapping[str, Known]) -> None:
        """Put the inputs and the stored tensors of a graph into its scope."""
        scope.here |= inputs
        for tensor in graph.initializer:
            if tensor.name not in inputs:
                scope.here[tensor.name] = stored(tensor)
        for sparse in graph.sparse_initializer:
            scope.here[sparse.values.name] = known(tensor_type(sparse.values.data_type, sparse.dims), None, True)

    def run(self, nodes: Sequence[NodeProto], scope: Scope, opsets: Opsets) -> int:
        """Look at every operator of a body in order; its multiply-accumulates."""
        self.depth += 1
        self.runs += 1
        body = self.runs
        if self.depth > DEEP:
            raise ArtifactError(f"its functions and branches are nested more than {DEEP} deep; that is not followed.")
        macs = 0
        for node in nodes:
            self.visits += 1 + (len(node.input) + len(node.output)) // 8
            if self.visits > self.most:
                raise ArtifactError(
                    f"it runs more than {self.most:,} operators, those of its functions as often as they are called; "
                    "that is more than is followed."
                )
            macs += self._node(node, scope, opsets, body)
        self.depth -= 1
        return macs

    def _node(self, node: NodeProto, scope: Scope, opsets: Opsets, body: int) -> int:
        name = op_name(node)
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self._call(function, node, scope)
        if name in ("If", "Loop"):
            return (self._branch if name == "If" else self._loop)(node, scope, opsets)
        inputs = [scope.know(n) if n else UNKNOWN for n in node.input]
        try:
            outputs = infer(node, name, inputs, opsets, self.gaps)
        except Exception:  # attributes that are not what they are called
            self.gaps.append(f"{name} {node.name[:60]!r}: not written as that operator is")
            outputs = [UNKNOWN] * len(node.output)
        scope.here |= zip(node.output, outputs, strict=False)
        row = self.rows.get(name)
        macs = 0
        if row is None:
            self.unknown[name] = None
        elif row.macs is not None:
            macs = self._macs(row.macs, node, name, scope)
        reads, makes = tuple([value.shape for value in inputs]), tuple([value.shape for value in outputs])
        constant = tuple([value.constant for value in inputs])
        self.steps.append(Step(node, name, reads, makes, macs, constant, body))
        return macs

    def _macs(self, formula: Any, node: NodeProto, name: str, scope: Scope) -> int:
        try:
            macs = int(formula(node, scope))
        except KeyError as error:
            self.gaps.append(f"{name} {node.name[:60]!r}: no shape for {error}, so its MACs cannot be counted")
            return 0
        except Uncounted as error:
            self.unknown[str(error)] = None
            return 0
        except (ValueError, IndexError, StopIteration, TypeError, AttributeError, ZeroDivisionError):
            self.gaps.append(f"{name} {node.name[:60]!r}: not written as that operator is")
            return 0
        if macs < 0:
            self.gaps.append(f"{name} {node.name[:60]!r}: comes to {macs:,} MACs")
        return max(0, macs)

    def _call(self, function: FunctionProto, node: NodeProto, scope: Scope) -> int:
        """A function of the file, with the arguments of this call."""
        inner = Scope()
        inner.here |= {n: scope.know(given) for n, given in zip(function.input, node.input, strict=False) if given}
        given = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
        opsets = Opsets(function.opset_import)
        key = (function.domain, function.name, function.overload)
        nodes: Sequence[NodeProto] = function.node
        if self.referring.setdefault(key, _refers(function.node)):
            self.copied += function.ByteSize()
            if self.copied > COPIED:
                raise ArtifactError("its functions are called with attributes too often to be followed.")
            nodes = [_with(part, given) for part in nodes]
        macs = self.run(nodes, inner, opsets)
        scope.here |= {n: inner.know(made) for n, made in zip(node.output, function.output, strict=False)}
        return macs

    def _branch(self, node: NodeProto, scope: Scope, opsets: Opsets) -> int:
        """If: the branch that is taken where that is known, else the one that costs more."""
        graphs = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
        chosen = scope.know(node.input[0]).data if node.input else None
        names = [name for name in ("then_branch", "else_branch") if name in graphs]
        if len(names) < 2:
            self.gaps.append("an If without two branches")
            return 0
        if chosen is not None and chosen.size == 1:
            names = names[:1] if bool(chosen.reshape(-1)[0]) else names[1:]
        costs, results = [], []
        for graph in (graphs[name] for name in names):
            inner = Scope(scope)
            self.enter(graph, inner, {})
            costs.append(self.run(graph.node, inner, opsets))
            results.append([inner.know(value.name) for value in graph.output])
        for name, *ends in zip(node.output, *results, strict=False):
            scope.here[name] = ends[0] if len(ends) == 1 else _either(ends)
        return max(costs, default=0)

    def _loop(self, node: NodeProto, scope: Scope, opsets: Opsets) -> int:
        """Loop: as often as it may run at most; what it carries must keep its shape."""
        body = next((a.g for a in node.attribute if a.name == "body"), None)
        trips = scope.know(node.input[0]).data if node.input and node.input[0] else None
        often = int(trips.reshape(-1)[0]) if trips is not None and trips.size == 1 else ENDLESS
        if body is None or not 0 <= often < ENDLESS:
            self.unknown["Loop without a fixed number of rounds"] = None
            often = 1
        if body is None:
            return 0
        carried = [known(scope.know(n).type) for n in node.input[2:]]
        counter, going = (known(tensor_type(kind, ())) for kind in (TensorProto.INT64, TensorProto.BOOL))
        names = [value.name for value in body.input]
        inner = Scope(scope)
        self.enter(body, inner, dict(zip(names, [counter, going, *carried], strict=False)))
        self.steps.append(Step(node, "Loop", ((often,),), ((often,),), 0))
        macs = self.run(body.node, inner, opsets)
        ends = [inner.know(value.name) for value in body.output[1:]]
        for before, after in zip(carried, ends, strict=False):
            if before.shape is None or before.shape != after.shape:
                self.gaps.append(
                    f"Loop {node.name[:60]!r}: what it carries from round to round does not keep its shape"
                )
                break
        made = [*carried, *(_stacked(end, often) for end in ends[len(carried) :])]
        scope.here |= zip(node.output, made, strict=False)
        return macs * often


def walk(model: ModelProto, inputs: Mapping[str, Sequence[int | None]]) -> Walk:
    """Follow a model with its inputs bound to these shapes, None for an axis of unknown size.

    Raises ArtifactError where it holds more than is followed.
    """
    seen = Walk(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    given = {
        value.name: known(_bound(value.type, inputs[value.name])) if value.name in inputs else known(value.type)
        for value in model.graph.input
        if value.name in inputs or value.name not in weights
    }
    if model.ir_version >= DEFAULTS:  # a caller may give others: a condition, or how often a loop runs
        singles = {value.name for value in model.graph.input} & {n for n, t in weights.items() if prod(t.dims) == 1}
        given |= {name: stored(weights[name])._replace(data=None) for name in singles - given.keys()}
    seen.enter(model.graph, seen.scope, given)
    seen.macs = seen.run(model.graph.node, seen.scope, Opsets(model.opset_import))
    return seen


def _bound(kind: TypeProto, sizes: Sequence[int | None]) -> TypeProto:
    bound = tensor_type(kind.tensor_type.elem_type, ())
    for n in sizes:
        axis = bound.tensor_type.shape.dim.add()
        if n is not None and n < 2**63:  # twice what a file says may be more than a file can say
            axis.dim_value = n
    return bound


def _either(ends: Sequence[Known]) -> Known:
    """What is known of a value that comes from one of several branches."""
    first = ends[0]
    same = first.shape is not None and all(end.shape == first.shape for end in ends)
    return known(first.type, None, all(end.constant for end in ends)) if same else UNKNOWN


def _stacked(end: Known, often: int) -> Known:
    """What a loop gathers of a value, one in each round."""
    if end.type is None or end.shape is None:
        return UNKNOWN
    return known(tensor_type(end.type.tensor_type.elem_type, (often, *end.shape)))


def _refers(nodes: Sequence[NodeProto]) -> bool:
    """Whether any of these, or of those inside them, has an attribute of the call."""
    todo = list(nodes)
    while todo:
        for attribute in todo.pop().attribute:
            if attribute.ref_attr_name:
                return True
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                todo += graph.node
    return False


def _with(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """A node of a function with the attributes of the call that it refers to, in the graphs inside it too."""
    if not any(a.ref_attr_name or a.HasField("g") or a.graphs for a in node.attribute):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    made.ClearField("attribute")
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy = made.attribute.add()
            copy.CopyFrom(attribute)
            for graph in [copy.g] if attribute.HasField("g") else copy.graphs:
                inner = [_with(part, given) for part in graph.node]
                graph.ClearField("node")
                graph.node.extend(inner)
        elif attribute.ref_attr_name in given:
            copy = made.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return made
