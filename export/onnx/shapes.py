"""What is known of the values of an ONNX graph, and what follows for the outputs of one operator.

Shapes are inferred by onnx's own rules for that operator alone, or by ours (`contrib`); the arithmetic of shapes is
carried out (`fold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, numpy_helper

from compress.export.onnx import contrib
from compress.export.onnx.fold import RULES as FOLDED
from compress.export.onnx.fold import SMALL, SMALLER, fold

Shape = tuple[int, ...]
RANK = 32  # axes of a tensor: numpy has no more


class Known(NamedTuple):
    """What is known of a value: its type, its shape where every axis is known, and its numbers where they are few."""

    type: TypeProto | None = None
    shape: Shape | None = None
    data: NDArray[Any] | None = None
    constant: bool = False  # made of what is stored, however much it is


UNKNOWN = Known()


def known(kind: TypeProto | None, data: NDArray[Any] | None = None, constant: bool = False) -> Known:
    """What is known of a value of this type; nothing of a type that cannot be true."""
    if kind is None or not kind.HasField("tensor_type"):
        return Known(constant=constant)
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return Known(kind, None, data, constant)
    axes = tensor.shape.dim
    sizes = tuple([axis.dim_value for axis in axes if axis.HasField("dim_value")])
    if len(axes) > RANK or min(sizes, default=0) < 0:
        return Known(constant=constant)
    return Known(kind, sizes if len(sizes) == len(axes) else None, data, constant)


class Opsets:
    """Which version of each domain's operators a body is written in."""

    def __init__(self, imports: Iterable[OperatorSetIdProto]) -> None:
        self.imports = list(imports)
        self.versions = {entry.domain: entry.version for entry in self.imports}
        self.versions.setdefault("", self.versions.get("ai.onnx", 1))


class Scope(Mapping[str, Shape]):
    """The values of a body by name, and of those around it. As a mapping it gives shapes; KeyError where unknown."""

    def __init__(self, around: Scope | None = None) -> None:
        self.here: dict[str, Known] = {}
        self.around = around

    def know(self, name: str) -> Known:
        """What is known of a value: nothing at worst."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.here:
                return scope.here[name]
            scope = scope.around
        return UNKNOWN

    def __getitem__(self, name: str) -> Shape:
        shape = self.know(name).shape
        if shape is None:
            raise KeyError(name)
        return shape

    def __iter__(self) -> Iterator[str]:
        return iter(self.here)

    def __len__(self) -> int:
        return len(self.here)


# ---- one operator ---------------------------------------------------------------------------------------------------


def infer(node: NodeProto, name: str, inputs: Sequence[Known], opsets: Opsets, gaps: list[str]) -> list[Known]:
    """What is known of the outputs of a node by what is known of its inputs; why nothing is, is added to `gaps`."""
    if name == "Constant":
        return [_constant(node)] * len(node.output)
    constant = not name.startswith("Random")
    for n, given in zip(node.input, inputs, strict=True):
        constant = constant and (given.constant or not n)
    types: list[TypeProto | None] = [None] * len(node.output)
    if (rule := contrib.RULES.get(name)) is not None:
        types = _by_us(rule, node, inputs)
    elif node.domain in ("", "ai.onnx", "ai.onnx.ml"):
        types = _by_onnx(node, name, inputs, opsets, gaps)
    outputs = [known(kind, None, constant) for kind in types]
    return _folded(node, name, inputs, outputs) if name in FOLDED or name in ("Shape", "Size") else outputs


def _by_us(rule: contrib.Rule, node: NodeProto, inputs: Sequence[Known]) -> list[TypeProto | None]:
    made = contrib.shapes(rule, [given.shape for given in inputs], options_of(node))
    source = inputs[rule.kind].type if 0 <= rule.kind < len(inputs) else None
    kind = source.tensor_type.elem_type if source is not None else TensorProto.FLOAT
    types: list[TypeProto | None] = [tensor_type(kind, shape) for shape in made[: len(node.output)]]
    return types + [None] * (len(node.output) - len(types))


def _by_onnx(
    node: NodeProto, name: str, inputs: Sequence[Known], opsets: Opsets, gaps: list[str]
) -> list[TypeProto | None]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = _schema(node.op_type, domain, opsets.versions.get(domain, 1))
    kinds: dict[str, TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for n, given in zip(node.input, inputs, strict=True):
        if n and given.type is None:
            schema = None
        elif n and given.type is not None:
            kinds[n] = given.type
            if given.data is not None:
                data[n] = numpy_helper.from_array(given.data, n)
    if schema is None:
        return [None] * len(node.output)
    try:
        made = onnx.shape_inference.infer_node_outputs(schema, node, kinds, data, opset_imports=opsets.imports)
    except Exception as error:  # its rules raise many kinds
        gaps.append(f"{name} {node.name[:60]!r}: the shapes of the model cannot be inferred: {first_line(error)}")
        return [None] * len(node.output)
    ends = [made.get(n) for n in node.output]
    if name == "Reshape" and ends and inputs[0].shape is not None:
        after = known(ends[0]).shape
        if after is not None and prod(after) != prod(inputs[0].shape):  # onnx takes a fixed target as it is
            gaps.append(f"Reshape {node.name[:60]!r}: {list(inputs[0].shape)} does not fit {list(after)}")
            return [None]
    return ends


def _folded(node: NodeProto, name: str, inputs: Sequence[Known], outputs: list[Known]) -> list[Known]:
    """Carry out what shapes are reckoned by: Shape and Size of a known shape, and arithmetic on known numbers."""
    arrays: list[NDArray[Any]] = []
    if name in ("Shape", "Size"):
        shape, options = inputs[0].shape if inputs else None, options_of(node)
        if shape is not None:
            part = shape[options.get("start") : options.get("end")]
            arrays = [np.array(part if name == "Shape" else prod(shape), np.int64)]
    else:
        ready = all(given.data is not None or not n for n, given in zip(node.input, inputs, strict=True))
        small = all(name in SMALLER if out.shape is None else prod(out.shape) <= SMALL for out in outputs)
        if ready and node.input and small:
            arrays = fold(name, [given.data for given in inputs], options_of(node))
    if not arrays or len(arrays) > len(outputs):
        return outputs
    return [
        known(array_type(array), array, out.constant) if array.size <= SMALL else out
        for array, out in zip(arrays, outputs, strict=False)
    ]


def options_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as plain values, tensors as arrays; graphs are left out."""
    options: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            options[attribute.name] = array_of(attribute.t)
        elif attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.SPARSE_TENSOR):
            options[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return options


def _constant(node: NodeProto) -> Known:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return stored(attribute.t)
            case "sparse_value":
                sparse = attribute.sparse_tensor
                return known(tensor_type(sparse.values.data_type, sparse.dims), None, True)
            case "value_int" | "value_ints" | "value_float" | "value_floats":
                number = onnx.helper.get_attribute_value(attribute)
                array = np.array(number, np.int64 if "int" in attribute.name else np.float32)
                return known(array_type(array), array if array.size <= SMALL else None, True)
    return Known(constant=True)


def stored(tensor: TensorProto) -> Known:
    """What is known of a stored tensor; its numbers too, where they are few."""
    return known(tensor_type(tensor.data_type, tensor.dims), array_of(tensor), True)


def array_of(tensor: TensorProto) -> NDArray[Any] | None:
    """The numbers of a tensor where they are few, in the file, and of a kind that numpy has."""
    few = len(tensor.dims) <= RANK and all(n >= 0 for n in tensor.dims) and prod(tensor.dims) <= SMALL
    if not few or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type not in _PLAIN:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        return None


_PLAIN = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13})  # what numpy has too, by its number in ONNX


# ---- types ----------------------------------------------------------------------------------------------------------


def tensor_type(kind: int, dims: Sequence[int]) -> TypeProto:
    """The type of a tensor."""
    made = TypeProto()
    made.tensor_type.elem_type = kind
    made.tensor_type.shape.SetInParent()
    for n in dims:
        made.tensor_type.shape.dim.add().dim_value = n
    return made


def array_type(array: NDArray[Any]) -> TypeProto:
    """The type of an array."""
    return tensor_type(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


# ---- small things ---------------------------------------------------------------------------------------------------


@cache
def _schema(name: str, domain: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def op_name(node: NodeProto) -> str:
    """Return the name of a node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def first_line(error: Exception) -> str:
    """Return the first line of what onnx says, which often goes on for a screen."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
