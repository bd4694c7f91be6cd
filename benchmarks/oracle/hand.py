"""Short words for files written by hand with onnx.helper: weights, inputs, and a file of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]
node = helper.make_node
RANDOM = np.random.default_rng(14)


def weight(name: str, *shape: int, kind: Any = np.float32) -> onnx.TensorProto:
    """Random numbers, small ones; of an integer kind, anything from 0 to 100."""
    whole = np.issubdtype(kind, np.integer)
    values = RANDOM.integers(0, 100, shape) if whole else RANDOM.standard_normal(shape) * 0.1
    return numpy_helper.from_array(np.asarray(values).astype(kind), name)


def const(name: str, value: Any, kind: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=kind), name)


def tensor(name: str, dims: Dims | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    **rest: Any,
) -> onnx.ModelProto:
    """Write a graph; `rest` is for functions and sparse_initializer."""
    functions = rest.pop("functions", [])
    for index, one in enumerate(nodes):
        one.name = one.name or f"{one.op_type}_{index}"  # a profile tells nodes by their names
    graph = helper.make_graph(nodes, "oracle", inputs, outputs, list(weights), **rest)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions)
    model.ir_version = 8 if opset < 19 else 10
    onnx.save(model, path)
    return model
