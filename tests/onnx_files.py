"""Small ONNX files for tests, put together from nodes and shapes; their numbers do not matter."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]
FLOAT, INT64, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8
node = helper.make_node


def value(name: str, shape: Shape | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def array(name: str, numbers: Any, dtype: str = "i8") -> TensorProto:
    """A tensor of these numbers."""
    return numpy_helper.from_array(np.array(numbers, dtype), name)


def weight(name: str, *shape: int, dtype: str = "f4") -> TensorProto:
    """A tensor of this shape."""
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def packed(name: str, kind: int, *shape: int) -> TensorProto:
    """A tensor of a kind that numpy has not: 8 bits each for float8, 4 for the others."""
    bits = 8 if "8" in TensorProto.DataType.Name(kind) else 4
    return TensorProto(name=name, dims=shape, data_type=kind, raw_data=bytes(prod(shape) * bits // 8))


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape | tuple[int, Shape]],
    stored: Sequence[TensorProto] = (),
    outputs: Sequence[str] = ("y",),
    sparse: Sequence[Any] = (),
    ranks: Mapping[str, int] = {},
) -> GraphProto:
    """A graph; an input is a shape, or a kind of number and a shape."""
    ends = []
    for name, shape in inputs.items():
        kind, axes = (shape[0], shape[1]) if len(shape) == 2 and isinstance(shape[1], list) else (FLOAT, shape)
        ends.append(value(name, axes, kind))  # type: ignore[arg-type]
    made = [value(name, [None] * ranks[name] if name in ranks else None) for name in outputs]
    return helper.make_graph(nodes, "g", ends, made, list(stored), sparse_initializer=list(sparse))


def file(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Any],
    stored: Sequence[TensorProto] = (),
    opset: int = 18,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    **more: Any,
) -> onnx.ModelProto:
    """A model of one graph."""
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    whole = graph(nodes, inputs, stored, **more)
    return helper.make_model(whole, opset_imports=opsets, functions=list(functions), ir_version=8 if opset < 19 else 10)
