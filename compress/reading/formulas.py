"""Multiply-accumulates of the operators that multiply, from shapes alone; one multiply-accumulate is 1.

Of torch's operators by their arguments and their output, of ONNX's by the node and the shapes of all values by name.
Neither torch nor onnx is imported here: whatever has shapes will do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any

Formula = Callable[[Any, Any], int]
Shapes = Mapping[str, tuple[int, ...]]  # of every value of an ONNX graph


def is_matrix_product(one: Sequence[int], two: Sequence[int], summed: Collection[int]) -> bool:
    """Whether two factors, multiplied element by element and summed along these axes of the product, make a product of
    matrices: something is summed that both have, and elsewhere one of them is spread along an axis of the other.
    """
    rank = max(len(one), len(two))
    left, right = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (one, two))
    ended = {axis % rank for axis in summed} if rank else set()
    together = any(left[axis] > 1 and right[axis] > 1 for axis in ended)
    return together and any(left[axis] != right[axis] for axis in range(rank) if axis not in ended)


class Uncounted(Exception):
    """An operator is used in a way whose cost is not known; its text names it."""


# ---- torch: (args, out) ---------------------------------------------------------------------------------------------


def convolution(args: Sequence[Any], out: Any) -> int:
    """Weight [out, in / groups, *kernel]: each output pixel takes all of it, and is given it where it is transposed."""
    x, weight, transposed = args[0], args[1], args[6]
    return int(weight.numel() * prod((x if transposed else out).shape[2:]) * x.shape[0])


def deformed(args: Sequence[Any], out: Any) -> int:
    """A convolution whose offsets are given: as many as one without; where it reads is interpolation, and free."""
    return int(args[1].numel() * prod(out.shape[2:]) * out.shape[0])


def product(a: int, b: int) -> Formula:
    """A matrix product of the arguments of these numbers."""
    return lambda args, out: int(args[a].numel() * args[b].shape[-1])


# ---- ONNX: (node, shapes) -------------------------------------------------------------------------------------------


def onnx_conv(weight: int) -> Formula:
    """Weight [out, in / groups, *kernel], at this input: each output number takes in / groups * kernel of them."""
    return lambda node, shapes: int(prod(shapes[node.output[0]]) * prod(shapes[node.input[weight]][1:]))


def onnx_conv_transpose(node: Any, shapes: Shapes) -> int:
    """Weight [in, out / groups, *kernel]: each input number is spread over out / groups * kernel."""
    return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def onnx_product(node: Any, shapes: Shapes) -> int:
    """A product of matrices, or of stacks of them, the first factor turned or not."""
    first = shapes[node.input[0]]
    return int(prod(shapes[node.output[0]]) * first[-2 if _option(node, "transA", 0) else -1])


def onnx_recurrent(node: Any, shapes: Shapes) -> int:
    """x [steps, batch, in]; weights [directions, gates * hidden, in] and [directions, gates * hidden, hidden]."""
    return prod(shapes[node.input[0]][:2]) * sum(prod(shapes[name]) for name in node.input[1:3])


def onnx_attention(node: Any, shapes: Shapes) -> int:
    """Two products for each head, as torch counts them: queries with keys [.., steps, in], and that with values.

    Of tensors [batch, heads, steps, in], or [batch, steps, heads * in]. Earlier keys, given beside, count as well.
    """
    queries, keys, values = (shapes[name] for name in node.input[:3])
    steps = keys[-2] + (shapes[node.input[4]][-2] if len(node.input) > 4 and node.input[4] else 0)
    if len(queries) == 4:
        return prod(queries[:3]) * steps * (queries[-1] + values[-1])
    heads, groups = _option(node, "q_num_heads", 1), _option(node, "kv_num_heads", 1)
    return int(prod(queries[:2]) * steps * (queries[-1] + values[-1] // groups * heads))


def onnx_attention_block(node: Any, shapes: Shapes) -> int:
    """onnxruntime's Attention: x [batch, steps, in], weight [in, queries + keys + values], then the two products."""
    batch, steps, _ = shapes[node.input[0]]
    weight = shapes[node.input[1]]
    sizes = _option(node, "qkv_hidden_sizes", [weight[1] // 3] * 3)
    past = 8 if node.op_type == "QAttention" else 4
    if len(node.input) > past and node.input[past]:
        raise Uncounted(f"{node.op_type} with earlier keys")
    return int(batch * steps * (prod(weight) + steps * (sizes[0] + sizes[2])))


def onnx_attention_of_three(node: Any, shapes: Shapes) -> int:
    """onnxruntime's MultiHeadAttention: queries, keys and values [batch, steps, heads * in] each."""
    queries, keys, values = (shapes[name] for name in node.input[:3])
    if not len(queries) == len(keys) == len(values) == 3 or any(node.input[6:8]):
        raise Uncounted("MultiHeadAttention of packed tensors, or with earlier keys")
    return prod(queries[:2]) * keys[1] * (queries[2] + values[2])


def onnx_linear(node: Any, shapes: Shapes) -> int:
    """ai.onnx.ml's linear models: x [N, in], whose coefficients are an attribute."""
    return shapes[node.input[0]][0] * len(_option(node, "coefficients", ()))


def onnx_einsum(node: Any, shapes: Shapes) -> int:
    """Count as torch does: from left to right, each pair one batched matmul, after sums over labels that only one has.

    A pair that shares no label that ends there is no product of matrices and costs nothing. Raises Uncounted with the
    equation where it does not fit the shapes.
    """
    equation = _option(node, "equation", b"").decode().replace(" ", "")
    try:
        operands, out, size = _labels(equation, [shapes[name] for name in node.input])
    except (ValueError, IndexError, AssertionError):
        raise Uncounted(f"Einsum {equation[:40]!r}") from None
    macs, done = 0, operands[0]
    for at, operand in enumerate(operands[1:], 1):
        later = out.union(*operands[at + 1 :])
        one, two = ({label for label in pair if label in later or label in done & operand} for pair in (done, operand))
        ending = one & two - later
        macs += prod(size[label] for label in one | two) if ending else 0
        done = (one | two) - ending
    return macs


def _labels(equation: str, inputs: Sequence[Sequence[int]]) -> tuple[list[set[str]], set[str], dict[str, int]]:
    """The labels of each operand, of the output, and how long each is; those that "..." stands for are numbers."""
    terms, arrow, out = equation.partition("->")
    size: dict[str, int] = {}
    operands: list[list[str]] = []
    for term, shape in zip(terms.split(","), inputs, strict=True):
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after)
        assert hidden == 0 or (dots and hidden > 0)
        labels = [*before, *(str(n) for n in range(hidden - 1, -1, -1)), *after]
        assert all(label.isalnum() for label in labels)
        for label, n in zip(labels, shape, strict=True):
            size[label] = max(n, size.get(label, 1)) if n else 0
        operands.append(labels)
    every = [label for labels in operands for label in labels]
    last = {label for label in out.replace("...", "")} if arrow else {la for la in every if every.count(la) == 1}
    spread = {label for label in every if label.isdigit()} if not arrow or "..." in out else set()
    assert last <= size.keys()
    return [set(labels) for labels in operands], last | spread, size


def _option(node: Any, name: str, default: Any) -> Any:
    """An attribute of an ONNX node: a whole number, a text, or a list of numbers."""
    for attribute in node.attribute:
        if attribute.name == name:
            return {2: attribute.i, 3: attribute.s, 6: attribute.floats, 7: attribute.ints}[attribute.type]
    return default
