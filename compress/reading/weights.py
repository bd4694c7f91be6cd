"""Axes of parameters and buffers through what is computed from them alone, as a norm's scale or a standardised filter.

An operator that works number by number, or moves axes, leaves them where they are; one that runs over an axis (a mean,
a standard deviation, a softmax) fixes how long that axis is, and leaves the others. What is not known here gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.reading.ghost import flat
from compress.reading.ids import Axis, Ref
from compress.reading.operators import Operator
from compress.reading.rules import over
from compress.reading.trace import Call

Sets = tuple[frozenset[Axis], ...]
NONE: frozenset[Axis] = frozenset()


@dataclass(frozen=True, slots=True)
class Made:
    """What an operator makes of parameters: the axes behind each of its outputs, and those that it runs over."""

    sets: Sequence[Sets]
    over: Mapping[Axis, str] = field(default_factory=dict)


def made(
    call: Call, row: Operator, ref: Callable[[Tensor], Ref | None], sizes: Mapping[str, Sequence[int]]
) -> Made | None:
    """What a call makes of parameters and numbers; None where its axes cannot be told. `sizes` are the parameters'."""
    outs = list(flat(call.out))
    short = call.op.removeprefix("aten.").rstrip("_")
    if row.ids in ("same", "copy", "pointwise"):
        sets = _met(call.tensors, ref, outs[0].shape)
        return None if sets is None else Made([sets] * len(outs))
    first = call.args[0]
    if not isinstance(first, Tensor) or (own := ref(first)) is None:
        return None
    if row.ids == "batch_norm":  # of a weight, as standardised convolutions write it: [1, filters, numbers of one]
        others = _met([t for t in call.args[1:5] if isinstance(t, Tensor)], ref, first.shape[1:2])
        if others is None:
            return None
        every = (*own.axes[:1], own.axes[1] | others[0], *own.axes[2:])
        rest = tuple((own.axes[1] | others[0],) if out.dim() == 1 else () for out in outs[1:])
        return Made([every, *rest], _lost(own, sizes, own.axes[1], f"{short} averages over it"))
    if short == "_weight_norm_interface":  # of each filter a direction, times a length of its own
        dim, length = call.args[2] if len(call.args) > 2 else 0, ref(call.args[1])
        filters = own.axes[dim] | (length.axes[dim] if length else NONE)
        weight = tuple(filters if d == dim else axes for d, axes in enumerate(own.axes))
        return Made([weight, tuple(filters if d == dim else NONE for d in range(len(own.axes)))])
    if row.ids == "mean":
        return _reduced(call, own, outs, short, sizes)
    if short in ("_softmax", "_log_softmax"):
        return Made([own.axes], dict.fromkeys(own.axes[call.args[1]], f"{short.strip('_')} averages over it"))
    moved = _moved(call, row, own, sizes)
    return None if moved is None else Made([moved])


def _met(tensors: Sequence[Tensor], ref: Callable[[Tensor], Ref | None], shape: Sequence[int]) -> Sets | None:
    """The axes of what meets number by number; None where a tensor of a size of its own meets one."""
    sets = [NONE] * len(shape)
    for tensor in tensors:
        own, lead = ref(tensor), len(shape) - tensor.dim()
        for d in range(tensor.dim()):
            if own is not None and tensor.size(d) == shape[lead + d]:
                sets[lead + d] |= own.axes[d]
    for tensor in tensors:
        lead = len(shape) - tensor.dim()
        if ref(tensor) is None and any(tensor.size(d) > 1 and sets[lead + d] for d in range(tensor.dim())):
            return None
    return tuple(sets)


def _reduced(call: Call, own: Ref, outs: Sequence[Tensor], op: str, sizes: Mapping[str, Sequence[int]]) -> Made:
    dims, rank = over(call), call.args[0].dim()
    stays = [NONE if d in dims else axes for d, axes in enumerate(own.axes)]
    if outs[0].dim() < rank:
        stays = [axes for d, axes in enumerate(own.axes) if d not in dims]
    return Made([tuple(stays)] * len(outs), _lost(own, sizes, frozenset().union(*stays), f"{op} runs over it"))


def _lost(own: Ref, sizes: Mapping[str, Sequence[int]], stays: frozenset[Axis], why: str) -> dict[Axis, str]:
    """All axes of these parameters but those that stay, with the reason."""
    return {(name, d): why for name in own.names for d in range(len(sizes[name])) if (name, d) not in stays}


def _moved(call: Call, row: Operator, own: Ref, sizes: Mapping[str, Sequence[int]]) -> Sets | None:
    """Where the axes of a parameter are in a view of it."""
    tensor, shape = call.args[0], call.out.shape if isinstance(call.out, Tensor) else ()
    if row.ids == "repeat" and shape == tensor.shape:
        return own.axes
    if row.ids == "turn":
        order = call.func(torch.empty(*range(2, tensor.dim() + 2), device="meta"), *call.args[1:])
        return tuple(own.axes[size - 2] for size in order.shape)  # every axis is known by its length
    if row.ids == "expand":
        lead = len(shape) - tensor.dim()
        kept = (own.axes[d] if tensor.size(d) == size else NONE for d, size in enumerate(shape[lead:]))
        return (*[NONE] * lead, *kept)
    if row.ids not in ("view", "squeeze"):
        return None
    for name in own.names:  # back in the shape that it began with
        if tuple(sizes[name]) == tuple(shape) and len(shape) > 1 and tensor.dim() != len(shape):
            beside = {axis: axes for axes in own.axes for axis in axes}
            return tuple(beside.get((name, d), frozenset({(name, d)})) for d in range(len(shape)))
    return tuple(_same_lengths(tensor.shape, shape, own.axes))


def _same_lengths(old: Sequence[int], new: Sequence[int], axes: Sets) -> Iterator[frozenset[Axis]]:
    """For every axis of a view those behind it: of the one that it is, none where it is a part of one or several."""
    at, before = 0, 1
    starts = []  # of every old axis, the numbers that the axes before it hold
    for size in old:
        starts.append(before)
        before *= size
    ahead = 1
    for size in new:
        same = [d for d in range(at, len(old)) if starts[d] == ahead and old[d] == size and size > 1]
        yield axes[same[0]] if same else NONE
        at = same[0] + 1 if same else at
        ahead *= size
