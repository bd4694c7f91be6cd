"""Multiply-accumulates of the operators that multiply, from shapes alone; one multiply-accumulate is 1.

Of torch's operators by their arguments and their output, of ONNX's by the node and the shapes of all values by name.
Neither torch nor onnx is imported here: whatever has shapes will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

Formula = Callable[[Any, Any], int]
Shapes = Mapping[str, tuple[int, ...]]  # of every value of an ONNX graph

# ---- torch: (args, out) ---------------------------------------------------------------------------------------------


def convolution(args: Sequence[Any], out: Any) -> int:
    """Weight [out, in / groups, *kernel]: each output pixel takes all of it, and is given it where it is transposed."""
    x, weight, transposed = args[0], args[1], args[6]
    return int(weight.numel() * prod((x if transposed else out).shape[2:]) * x.shape[0])


def product(a: int, b: int) -> Formula:
    """A matrix product of the arguments of these numbers."""
    return lambda args, out: int(args[a].numel() * args[b].shape[-1])


# ---- ONNX: (node, shapes) -------------------------------------------------------------------------------------------


def onnx_conv(node: Any, shapes: Shapes) -> int:
    """Weight [out, in / groups, *kernel]: each output number takes in / groups * kernel of them."""
    return prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])


def onnx_conv_transpose(node: Any, shapes: Shapes) -> int:
    """Weight [in, out / groups, *kernel]: each input number is spread over out / groups * kernel."""
    return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def onnx_gemm(node: Any, shapes: Shapes) -> int:
    """A matrix product, the first factor turned or not."""
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def onnx_matmul(node: Any, shapes: Shapes) -> int:
    """A product of matrices, or of stacks of them."""
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def onnx_recurrent(node: Any, shapes: Shapes) -> int:
    """x [steps, batch, in]; weights [directions, gates * hidden, in] and [directions, gates * hidden, hidden]."""
    return prod(shapes[node.input[0]][:2]) * sum(prod(shapes[name]) for name in node.input[1:3])


def onnx_einsum(node: Any, shapes: Shapes) -> int:
    """Count as torch does: two operands become one batched matmul, after sums over labels that only one of them has.

    Raises ValueError with the name of an equation that it cannot follow.
    """
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms, arrow, out = equation.partition("->")
    operands = terms.split(",")
    if not arrow or "." in equation or len(operands) > 2 or any(len(set(term)) < len(term) for term in operands):
        raise ValueError(f"Einsum {equation!r}")
    if len(operands) == 1:
        return 0
    size: dict[str, int] = {}
    for term, name in zip(operands, node.input, strict=True):
        size |= zip(term, shapes[name], strict=True)
    shared = set(operands[0]) & set(operands[1])
    return prod(size[label] for label in shared | set(out)) if shared - set(out) else 0
