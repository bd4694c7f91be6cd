"""The arithmetic of shapes: what a graph reckons from known integers, carried out on a few numbers in any opset.

Weights and images are never folded. Where an operator is used in a way that is not known here, its result is unknown,
and so is the shape that depends on it: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Options = Mapping[str, Any]  # attributes of a node, as Python's values
Fold = Callable[[Sequence[Any], Options], list[Array]]

SMALL = 1024  # elements, of what goes in and of what comes out


def fold(op: str, inputs: Sequence[Array | None], options: Options) -> list[Array]:
    """Return the outputs of an operator on known small arrays, None for an input left out; nothing where unknown.

    The caller sees to it that the result is small: a few operators make much of little.
    """
    rule = RULES.get(op)
    if rule is None or sum(array.size for array in inputs if array is not None) > SMALL:
        return []
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(result) for result in rule(inputs, options)]
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError):
        return []


def _each(act: Callable[..., Any]) -> Fold:
    """Element by element: the outputs have the numbers' own kind, or are truths."""
    return lambda inputs, options: [act(*inputs)]


def _divide(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)  # towards zero


def _mod(inputs: Sequence[Any], options: Options) -> list[Array]:
    if not np.all(inputs[1]):
        raise ZeroDivisionError
    return [(np.fmod if options.get("fmod") else np.mod)(*inputs)]


def _axes(inputs: Sequence[Any], options: Options, rank: int) -> tuple[int, ...]:
    """The axes of a node, an attribute in old opsets and an input in new ones, each from 0."""
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else options.get("axes", ())
    return tuple(int(axis) + rank if axis < 0 else int(axis) for axis in np.ravel(axes))


def _reduce(act: Callable[..., Any]) -> Fold:
    def rule(inputs: Sequence[Any], options: Options) -> list[Array]:
        axes = _axes(inputs, options, inputs[0].ndim)
        if not axes and options.get("noop_with_empty_axes"):
            return [inputs[0]]
        return [act(inputs[0], axis=axes or None, keepdims=bool(options.get("keepdims", 1))).astype(inputs[0].dtype)]

    return rule


def _slice(inputs: Sequence[Any], options: Options) -> list[Array]:
    data, *rest = inputs
    starts = rest[0] if rest else options["starts"]
    ends = rest[1] if rest else options["ends"]
    axes = rest[2] if len(rest) > 2 and rest[2] is not None else options.get("axes", range(len(starts)))
    steps = rest[3] if len(rest) > 3 and rest[3] is not None else [1] * len(starts)
    cuts = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop: int | None = int(end)
        if step < 0 and end < -data.shape[axis]:
            stop = None  # down to the first one
        cuts[axis] = slice(int(start), stop, int(step))
    return [data[tuple(cuts)]]


def _gather(inputs: Sequence[Any], options: Options) -> list[Array]:
    data, at = inputs
    axis = options.get("axis", 0)
    if at.size * data.size // max(1, data.shape[axis]) > SMALL:
        return []
    return [np.take(data, at, axis=axis)]


def _unsqueeze(inputs: Sequence[Any], options: Options) -> list[Array]:
    given = inputs[1] if len(inputs) > 1 else options["axes"]
    rank = inputs[0].ndim + len(np.ravel(given))
    return [np.expand_dims(inputs[0], _axes(inputs, options, rank))] if rank <= 32 else []


def _squeeze(inputs: Sequence[Any], options: Options) -> list[Array]:
    axes = _axes(inputs, options, inputs[0].ndim)
    return [np.squeeze(inputs[0], axes or None)]


def _reshape(inputs: Sequence[Any], options: Options) -> list[Array]:
    data = inputs[0]
    sizes = [int(n) for n in (inputs[1] if len(inputs) > 1 else options["shape"])]
    if min(sizes, default=0) < -1:
        return []
    if not options.get("allowzero"):
        sizes = [data.shape[at] if n == 0 else n for at, n in enumerate(sizes)]
    return [np.reshape(data, sizes)] if len(sizes) <= 32 else []


def _split(inputs: Sequence[Any], options: Options) -> list[Array]:
    data, axis = inputs[0], options.get("axis", 0)
    sizes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else options.get("split")
    if sizes is None:
        parts = options.get("num_outputs")
        if parts is None:
            return []
        size = -(-data.shape[axis] // parts)
        return np.split(data, list(range(size, data.shape[axis], size)), axis)
    return np.split(data, np.cumsum(sizes)[:-1], axis)


def _full(inputs: Sequence[Any], options: Options) -> list[Array]:
    sizes = [int(n) for n in inputs[0]]
    value = options.get("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return [np.full(sizes, fill.reshape(-1)[0], fill.dtype)] if 0 <= prod(sizes) <= SMALL else []


def _range(inputs: Sequence[Any], options: Options) -> list[Array]:
    start, limit, delta = (np.ravel(x)[0] for x in inputs)
    few = delta != 0 and (limit - start) / delta <= SMALL
    return [np.arange(start, limit, delta, dtype=inputs[0].dtype)] if few else []


def _expand(inputs: Sequence[Any], options: Options) -> list[Array]:
    sizes = np.broadcast_shapes(inputs[0].shape, tuple(int(n) for n in inputs[1]))
    return [np.broadcast_to(inputs[0], sizes).copy()] if prod(sizes) <= SMALL else []


def _tile(inputs: Sequence[Any], options: Options) -> list[Array]:
    times = [int(n) for n in inputs[1]]
    return [np.tile(inputs[0], times)] if inputs[0].size * prod(times) <= SMALL else []


def _clip(inputs: Sequence[Any], options: Options) -> list[Array]:
    low, high = (
        inputs[at] if len(inputs) > at and inputs[at] is not None else options.get(name)
        for at, name in ((1, "min"), (2, "max"))
    )
    return [np.clip(inputs[0], low, high).astype(inputs[0].dtype)]


_KINDS = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Neg": np.negative, "Abs": np.abs,
    "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sign": np.sign, "Sqrt": np.sqrt, "Exp": np.exp,
    "Reciprocal": np.reciprocal,
    "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "Equal": np.equal, "Less": np.less,
    "Greater": np.greater, "LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal,
    "Identity": np.array,
}  # fmt: skip

# Results no larger than what is given, so that these can be carried out before their shape is known.
SMALLER = frozenset(
    """
    Cast Gather Identity NonZero ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Squeeze Transpose Unsqueeze
    """.split()  # noqa: SIM905
)

RULES: dict[str, Fold] = {
    **{name: _each(act) for name, act in _ELEMENTWISE.items()},
    "Max": lambda inputs, options: [np.stack(np.broadcast_arrays(*inputs)).max(0)],
    "Min": lambda inputs, options: [np.stack(np.broadcast_arrays(*inputs)).min(0)],
    "Mod": _mod,
    "Pow": lambda inputs, options: [np.power(*(x.astype("f8") for x in inputs)).astype(inputs[0].dtype)],
    "Where": lambda inputs, options: [np.asarray(np.where(*inputs[:3]))],
    "Cast": lambda inputs, options: [inputs[0].astype(_KINDS[options["to"]])],
    "CastLike": lambda inputs, options: [inputs[0].astype(inputs[1].dtype)],
    "Clip": _clip,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "CumSum": lambda inputs, options: [np.cumsum(inputs[0], int(inputs[1]))] if not options else [],
    "Slice": _slice,
    "Gather": _gather,
    "Concat": lambda inputs, options: [np.concatenate(inputs, options["axis"])],
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": lambda inputs, options: [inputs[0].reshape(prod(inputs[0].shape[: options.get("axis", 1)]), -1)],
    "Transpose": lambda inputs, options: [np.transpose(inputs[0], options.get("perm"))],
    "ConstantOfShape": _full,
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "NonZero": lambda inputs, options: [np.stack(np.nonzero(inputs[0])).astype("i8")],
}
