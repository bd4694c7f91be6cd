"""MACs, weights and peak activation memory of an ONNX graph, by shape inference alone. Needs onnx and numpy,
never torch or onnxruntime.

One MAC is one multiply-accumulate of a convolution, linear or matmul-like operator, for one input (batch 1). Every
other operator either costs nothing by that convention, as its row in `compress.reading.operators` says, or is reported
by name: nothing is silently zero. Shapes come from our own inference: what a file says about its inner ones is not
believed.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from compress.errors import ArtifactError
from compress.export.onnx.memory import peak
from compress.reading import operators

BAKED = ("preprocessing.scale", "preprocessing.shift")  # normalisation in the graph, [1, C, 1, 1] each: no weights


@dataclass(frozen=True, slots=True)
class FileCost:
    """What an ONNX file costs, read off the file alone; one input, batch 1.

    `macs` is exact when `unknown` is empty, else a lower bound. `params` counts the numbers in weights after whatever
    folding the exporter did: single numbers, batch-norm statistics and baked preprocessing are no weights. `bytes` is
    the size of the file. `input` and `output` are the shapes of the first of each, with batch 1. `memory` is the peak
    that `compress.budget.memory` describes, None where an operator or the shape of an activation is not known.
    """

    macs: int
    params: int
    bytes: int
    unknown: tuple[str, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    memory: int | None = None


def count(model: ModelProto) -> FileCost:
    """Count an ONNX model by shape inference with the batch bound to 1.

    Raises ArtifactError where the batch is fixed above 1, or where shapes cannot be inferred although every operator is
    known.
    """
    nodes = [node for body in bodies(model) for node in body.node]
    rows = operators.onnx()
    unknown = {name for node in nodes if (name := op_name(node)) not in rows}
    unknown |= {function.name for function in model.functions}
    unknown |= {"sparse weights"} if _is_sparse(model.graph.sparse_initializer, nodes) else set()
    shapes = _infer(model, refuse=not unknown)
    macs = 0
    for node in model.graph.node:
        row = rows.get(op_name(node))
        try:
            macs += row.macs(node, shapes) if row is not None and row.macs is not None else 0
        except KeyError as error:
            if not unknown:
                where = f"{op_name(node)} {node.name!r}"
                raise ArtifactError(f"{where}: no shape for {error}, so its MACs cannot be counted.") from None
        except ValueError as error:
            unknown.add(str(error))
    memory = None
    if not unknown:
        with contextlib.suppress(KeyError):
            memory = peak(model.graph, shapes)
    first, last = (shapes.get(ends[0].name, ()) if ends else () for ends in (_inputs(model.graph), model.graph.output))
    return FileCost(macs, _params(model), model.ByteSize(), tuple(sorted(unknown)), first, last, memory)


def bodies(model: ModelProto) -> Iterator[Any]:
    """Yield everything that holds operators: the graph, graphs inside operators (If, Loop), functions."""
    todo: list[Any] = [model.graph, *model.functions]
    while todo:
        body = todo.pop()
        yield body
        for attribute in (a for node in body.node for a in node.attribute):
            todo += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def tensors(model: ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Yield every weight with its name: initializers and the values of Constant nodes."""
    for body in bodies(model):
        for tensor in getattr(body, "initializer", ()):  # a function has none
            yield tensor, tensor.name
        for node in body.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    yield attribute.t, node.output[0]
                elif attribute.floats:
                    yield TensorProto(dims=[len(attribute.floats)], data_type=TensorProto.FLOAT), node.output[0]


def dims(value: ValueInfoProto) -> list[Any]:
    """Return the axes of a value, each with `dim_value` or `dim_param`."""
    return list(value.type.tensor_type.shape.dim)


def first_line(error: Exception) -> str:
    """Return the first line of what onnx says, which often goes on for a screen."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_FLOATING = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    | {v for k, v in TensorProto.DataType.items() if k.startswith("FLOAT") or k == "COMPLEX64"}
)


def _params(model: ModelProto) -> int:
    """Return how many numbers the weights hold; integers count where an operator turns them into numbers."""
    nodes = [node for graph in bodies(model) for node in graph.node]
    statistics = {n for node in nodes if op_name(node) == "BatchNormalization" for n in node.input[3:5]}
    quantised = {node.input[0] for node in nodes if op_name(node) in ("Cast", "DequantizeLinear")}
    channels = max((n for v in _inputs(model.graph)[:1] for n in (d.dim_value for d in dims(v)[1:2])), default=0)
    total = 0
    for tensor, name in tensors(model):
        size = math.prod(tensor.dims)
        baked = name in BAKED and size <= channels
        if size > 1 and not baked and name not in statistics and (tensor.data_type in _FLOATING or name in quantised):
            total += size
    return total


# ---- shapes ------------------------------------------------------------------------------------------------

_SMALL = 1024  # elements: what is folded is the arithmetic of shapes, never weights or images
_ARITHMETIC = frozenset(
    """
    Add Cast Ceil Concat Constant Div Equal Floor Gather Identity Max Min Mod Mul Neg Not ReduceMax ReduceMin
    ReduceProd ReduceSum Reshape Slice Split Sqrt Squeeze Sub Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)


def _infer(model: ModelProto, refuse: bool) -> dict[str, tuple[int, ...]]:
    """Infer the shape of every value with the batch bound to 1, from operators and weights only.

    onnx follows computed shapes only part of the way. Where it stops, that arithmetic is done here, on the few integers
    it concerns, and onnx goes on.
    """
    bare = _bare(model)
    values: dict[str, Any] = {}
    while True:
        try:
            graph = onnx.shape_inference.infer_shapes(bare, strict_mode=refuse, data_prop=True).graph
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            if refuse:
                raise ArtifactError(f"the shapes of the model cannot be inferred: {first_line(error)}") from None
            graph = bare.graph
        known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                known.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))
        if all(name in known for node in graph.node for name in node.output if name) or not _fold(bare, known, values):
            return known


def _bare(model: ModelProto) -> ModelProto:
    """Return the operators, with a batch of 1, without the numbers of large weights, without any claim about shapes."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        stub = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        graph.initializer.append(tensor if math.prod(tensor.dims) <= _SMALL else stub)
    for value in model.graph.output:
        graph.output.append(ValueInfoProto(name=value.name))
        graph.output[-1].type.tensor_type.elem_type = value.type.tensor_type.elem_type
    inputs = [(value.name, dims(value)) for value in _inputs(graph)]
    symbols = {axes[0].dim_param for _, axes in inputs if axes and axes[0].dim_param}
    for name, axes in inputs:
        if axes and axes[0].dim_value > 1:
            raise ArtifactError(
                f"the batch of input {name!r} is fixed at {axes[0].dim_value}; costs are stated for one input: "
                "export the model with a symbolic batch, or with batch 1."
            )
        for i, axis in enumerate(axes):
            if not axis.HasField("dim_value") and (i == 0 or axis.dim_param in symbols):
                axis.dim_value = 1
    return bare


def _fold(bare: ModelProto, known: Mapping[str, tuple[int, ...]], values: dict[str, Any]) -> bool:
    """Turn operators on known integers into constants, in place; False when there was nothing left to do.

    `values` collects the constants by name. Only a Shape of a known shape and small arithmetic are carried out.
    """
    from onnx.reference import ReferenceEvaluator

    graph = bare.graph
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            values.setdefault(tensor.name, onnx.numpy_helper.to_array(tensor))
    opsets = {entry.domain: entry.version for entry in bare.opset_import}
    kept = []
    for node in graph.node:
        inputs = {name: values.get(name) for name in node.input if name}
        results: list[Any] = []
        if op_name(node) == "Shape" and node.input[0] in known:
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            results = [np.array(known[node.input[0]][bounds.get("start") : bounds.get("end")], dtype=np.int64)]
        elif op_name(node) in _ARITHMETIC and _is_small(node, inputs):
            with contextlib.suppress(Exception):  # whatever the reference refuses stays unknown
                results = list(ReferenceEvaluator(node, opsets=opsets).run(None, inputs))
        if not results:
            kept.append(node)
        for name, value in zip(node.output, results, strict=False):
            values[name] = np.asarray(value)
            graph.initializer.append(onnx.numpy_helper.from_array(values[name], name))
    done = len(kept) < len(graph.node)
    graph.ClearField("node")
    graph.node.extend(kept)
    return done


def _is_small(node: NodeProto, inputs: dict[str, Any]) -> bool:
    if node.op_type == "Constant":
        return all(math.prod(attribute.t.dims) <= _SMALL for attribute in node.attribute)
    return all(v is not None for v in inputs.values()) and sum(v.size for v in inputs.values()) <= _SMALL


def _is_sparse(weights: Sequence[Any], nodes: Sequence[NodeProto]) -> bool:
    return bool(weights) or any(a.HasField("sparse_tensor") for node in nodes for a in node.attribute)


def _inputs(graph: GraphProto) -> list[ValueInfoProto]:
    weights = {tensor.name for tensor in graph.initializer}  # old files list their weights as inputs too
    return [value for value in graph.input if value.name not in weights]


def op_name(node: NodeProto) -> str:
    """Return the name of a node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
