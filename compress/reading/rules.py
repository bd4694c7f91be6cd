"""How channel ids pass through each operator, as plain functions; `operators` says which of them an operator follows.

What only moves data is in `moves.py`. Element-wise operators tie the ids that meet; a
convolution or linear layer starts new ones. What no rule knows freezes all the channels that it touches, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compress.reading.ghost import flat
from compress.reading.ids import ABSENT, FIXED, Channels, Ref, UnknownError, along, axes_of, fixed, held, small, vector
from compress.reading.moves import (
    channel_shuffle,
    concat,
    expand,
    fold,
    move,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    split,
    squeeze,
    stack,
    tie_equals,
    tie_parts,
    turn,
    unfold,
    view,
)  # fmt: skip
from compress.reading.trace import Call


def convolution(flow: Channels, call: Call) -> Tensor:
    """[N, C, ...] to [N, O, ...]; within groups, channels are tied from group to group so that groups stay equal."""
    x, weight, bias, transposed, groups = *call.args[:3], call.args[6], call.args[8]
    name, vec = flow.weight(weight), vector(flow.ids(x), 1)
    flow.multiplies(name)
    columns, rows = (0, 1) if transposed else (1, 0)
    per_in, per_out = x.shape[1] // groups, call.out.shape[1] // groups
    if groups > 1 and per_in == 1:  # depthwise: a channel and its copies come and go together
        made = vec.repeat_interleave(per_out)
        flow.slot(name, 0, vec if transposed else made, "out" if flow.trained(name) else "channel")
    elif groups == 1:
        flow.slot(name, columns, vec, "in")
        made = flow.new(name, rows)
    else:
        tie_parts(flow, vec, groups)
        flow.slot(name, columns, vec if transposed else vec[:per_in], "in")
        made = flow.new(name, rows).repeat(groups if transposed else 1)
        tie_parts(flow, made, groups)
    if (ref := flow.ref(weight)) is not None:  # what else the weight is computed from has one value for each filter
        flow.follow((axis for axis in ref.axes[rows] if axis != (name, rows)), made[: weight.shape[rows]])
    if bias is not None:
        _per_channel(flow, bias, made)
    return along(made, 1, call.out.shape)


def deformed(flow: Channels, call: Call) -> Tensor:
    """A convolution [N, C, ...] to [N, O, ...] whose pixels are read where other channels say: those stay."""
    x, weight, offset, mask, bias, groups, parts = *call.args[:5], *call.args[11:13]
    for where in (offset, mask):
        flow.freeze(flow.ids(where), "it says where another picture is read")
    tie_parts(flow, vector(flow.ids(x), 1), parts)
    given = (x, weight, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], groups)
    return convolution(flow, replace(call, args=given))


def linear(flow: Channels, call: Call) -> Tensor:
    """[N, I] times a weight matrix [I, O]."""
    bias, x, weight = call.args[:3] if call.op == "aten.addmm" else (None, *call.args[:2])
    ref, vec = flow.ref(weight), vector(flow.ids(x), -1)
    if ref is None:
        raise UnknownError("both its factors are computed")
    name, columns, rows = _matrix(ref)
    flow.multiplies(name)
    flow.slot(name, columns, vec, "in")
    made = flow.new(name, rows)
    flow.follow((axis for axis in ref.axes[1] if axis != (name, rows)), made)
    if bias is not None:
        _per_channel(flow, bias, made)
    return along(made, -1, call.out.shape)


def _matrix(ref: Ref) -> tuple[str, int, int]:
    """The parameter behind a matrix, and its axes of columns and of rows."""
    columns, rows = (dict(axes) for axes in ref.axes)
    for name in ref.names:
        if name in columns and name in rows:
            return name, columns[name], rows[name]
    raise UnknownError(f"{ref.names[0]} is not a matrix")


def _per_channel(flow: Channels, tensor: Tensor, ids: Tensor) -> None:
    ref = flow.ref(tensor)
    if ref is None or len(ref.axes) != 1 or not ref.axes[0]:
        raise UnknownError("it holds one value for each channel in a tensor that is not saved")
    flow.follow(ref.axes[0], ids)


def batch_norm(flow: Channels, call: Call) -> Tensor:
    """Ids pass unchanged; weight, bias and running statistics follow them."""
    ids = flow.ids(call.args[0])
    vec = vector(ids, 1)
    for tensor in call.args[1:5]:
        if isinstance(tensor, Tensor):
            _per_channel(flow, tensor, vec)
    return ids


def pointwise(flow: Channels, call: Call) -> Tensor:
    """Channels that meet element by element are tied; a parameter that meets them follows them."""
    shape = call.out.shape
    met: tuple[Tensor, set[int]] | None = None
    for tensor in call.tensors:
        if flow.ref(tensor) is None:
            operand = flow.ids(tensor).expand(shape), _thin(tensor, shape)
            met = operand if met is None else _meet(flow, met, operand)
    ids = fixed(shape) if met is None else met[0]
    for tensor in call.tensors:
        if (ref := flow.ref(tensor)) is not None:
            _follow(flow, ref, tensor, ids)
    return ids


def _thin(tensor: Tensor, shape: Sequence[int]) -> set[int]:
    """The axes along which this operand has one value for all."""
    lead = len(shape) - tensor.dim()
    return {d for d in range(len(shape)) if shape[d] > 1 and (d < lead or tensor.size(d - lead) == 1)}


def _meet(flow: Channels, one: tuple[Tensor, set[int]], other: tuple[Tensor, set[int]]) -> tuple[Tensor, set[int]]:
    """The ids of two operands of one shape together, and the axes along which both have one value for all."""
    (a, thin_a), (b, thin_b) = one, other
    vary_a, vary_b, held_a, held_b = axes_of(a), axes_of(b), held(a), held(b)
    if not held_a and not held_b:
        return torch.minimum(a, b), thin_a & thin_b
    if held_a and held_b and vary_a == vary_b:
        flow.tie(a, b)
        return torch.where(a > ABSENT, a, b) if bool((small(a) <= ABSENT).any()) else a, thin_a & thin_b
    stays = [ids for ids, vary, thin in ((a, vary_a, thin_b), (b, vary_b, thin_a)) if vary and vary <= thin]
    product = held_a and held_b and vary_a and vary_b and stays  # of one's channels with the other's: the first stay
    first = stays[0] if product else None
    for ids, vary, thin, fellow, fellow_held, fellow_vary, fellow_thin in (
        (a, vary_a, thin_a, b, held_b, vary_b, thin_b),
        (b, vary_b, thin_b, a, held_a, vary_a, thin_a),
    ):
        if not vary and (thin or fellow_held):
            flow.freeze(ids, "its one channel meets many")
        elif vary and fellow_held and fellow_vary and ids is not first:
            flow.freeze(ids, "it meets other channels along another axis")
        elif not vary <= fellow_thin:  # padded zeros meet nobody
            flow.freeze(ids.where(fellow != ABSENT, FIXED), "it meets a tensor of fixed size element by element")
    kept = a if held_a and (vary_a or not held_b) else b
    return (kept if first is None else first), thin_a & thin_b


def _follow(flow: Channels, ref: Ref, tensor: Tensor, ids: Tensor) -> None:
    """A parameter [..., C, ...] that meets channels element by element has one value for each."""
    lead, varying = ids.dim() - tensor.dim(), axes_of(ids)
    if not varying and tensor.numel() > 1:
        flow.freeze(ids, f"its one channel meets all of {ref.names[0]}")
    for d in varying:
        if d >= lead and tensor.size(d - lead) > 1:
            if not ref.axes[d - lead]:
                raise UnknownError(f"it meets {ref.names[0]} along an axis that is none of it")
            flow.follow(ref.axes[d - lead], vector(ids, d))


def glu(flow: Channels, call: Call) -> Tensor:
    """One half of the channels times a gate made of the other."""
    halves = flow.ids(call.args[0]).chunk(2, call.args[1] if len(call.args) > 1 else -1)
    tie_equals(flow, halves)
    return halves[0]


def pool(flow: Channels, call: Call) -> list[Tensor]:
    """Channels stay; the picture shrinks or grows."""
    outs = list(flat(call.out))
    if outs[0].dim() < 3:
        raise UnknownError("its input has no batch axis")
    vec = vector(flow.ids(call.args[0]), 1)
    return [along(vec, 1, out.shape) for out in outs]


def sampled(flow: Channels, call: Call) -> Tensor:
    """Channels stay; their pixels are read where a grid says, which stays as it is."""
    flow.freeze(flow.ids(call.args[1]), "it says where another picture is read")
    return along(vector(flow.ids(call.args[0]), 1), 1, call.out.shape)


def mean(flow: Channels, call: Call) -> list[Tensor]:
    """An average over positions keeps channels, one over branches ties them; one over channels fixes their number."""
    ids, dims = flow.ids(call.args[0]), over(call)
    for d in dims & axes_of(ids):
        ids = _branches(flow, ids, d)
    for d in dims:
        ids = ids.narrow(d, 0, 1)
    return [ids.reshape(out.shape) for out in flat(call.out)]


def over(call: Call) -> set[int]:
    """The axes that an operator runs over: a mean, a deviation, a norm, a softmax."""
    at = 2 if "norm" in call.op else 1  # behind the order of a norm
    said = call.args[at] if len(call.args) > at else call.kwargs.get("dim")
    some = [said] if type(said) is int else said if isinstance(said, list | tuple) else []
    rank = call.args[0].dim()
    return {d % rank for d in some} or set(range(rank))


def _branches(flow: Channels, ids: Tensor, dim: int) -> Tensor:
    """Channels that stand beside each other along an axis, as stacked branches do: of each place they are one.

    Raises UnknownError where the axis is that of the channels themselves.
    """
    apart = axes_of(ids) - {dim}
    line = small(ids.movedim(dim, -1).reshape(-1, ids.size(dim))[0])
    if not apart or bool((line.diff() == 1).any()):  # neighbours were made by one layer, one after the other
        raise UnknownError("it runs over channels")
    tie_equals(flow, ids.unbind(dim))
    return ids.narrow(dim, 0, 1)


def group_norm(flow: Channels, call: Call) -> Tensor:
    """A group is averaged over, so its channels come and go together; other groups do not care."""
    ids, groups = flow.ids(call.args[0]), call.args[6]
    if groups == 1 or not held(ids):
        return average(flow, call)
    vec = vector(ids, 1)
    if bool((vec <= ABSENT).any()):
        raise UnknownError("not all that it averages over are channels")
    tie_equals(flow, vec.view(groups, -1).unbind(1))
    for tensor in call.args[1:3]:
        if isinstance(tensor, Tensor):
            _per_channel(flow, tensor, vec)
    return ids


def average(flow: Channels, call: Call) -> Tensor:
    """Softmax, layer norm, group norm of one group: what they average over keeps its number, to be exact."""
    ids, kind = flow.ids(call.args[0]), call.op.removeprefix("aten.").removeprefix("native_").strip("_")
    dims = set(range(1, ids.dim()))
    if kind == "layer_norm":
        dims = set(range(ids.dim() - len(call.args[1]), ids.dim()))
    elif kind != "group_norm":
        dims = {call.args[1] % ids.dim()}
    for d in dims & axes_of(ids) if held(ids) else ():
        try:
            _branches(flow, ids, d)
        except UnknownError:
            flow.freeze(ids, f"{kind} averages over it")
    return ids


def restride(flow: Channels, call: Call) -> Tensor:
    """Another memory layout of what has one axis at most, as an average over all pixels leaves it."""
    ids = flow.ids(call.args[0])
    if call.out.numel() != max(call.out.shape, default=1):
        raise UnknownError("elements may change places")
    return ids


def same(flow: Channels, call: Call) -> Tensor:
    """Element by element on one tensor: ids pass unchanged."""
    return flow.ids(call.args[0])


def copy(flow: Channels, call: Call) -> Tensor:
    """The same once more: ids pass unchanged, and a parameter is followed."""
    return flow.ids(call.args[0])


def maker(flow: Channels, call: Call) -> Tensor:
    """A tensor of a stated size, whatever else is looked at (its type, its device)."""
    return fixed(call.out.shape)


def blank(flow: Channels, call: Call) -> Tensor:
    """Zeros, as what recurrent layers begin with: they belong to no channel and hold none."""
    return torch.full((), ABSENT).expand(call.out.shape)


def dice(flow: Channels, call: Call) -> Tensor:
    """Chance belongs to no channel and holds none: new dice are thrown for as many as there are."""
    return blank(flow, call)


RULES: dict[str, Callable[[Channels, Call], Any]] = {
    rule.__name__: rule
    for rule in (
        convolution, deformed, linear, batch_norm, pointwise, same, copy, move, turn, squeeze, expand, repeat, split,
        view, pixel_shuffle, pixel_unshuffle, unfold, fold, channel_shuffle, glu, concat, stack, pad, pool, sampled,
        mean, group_norm, average, restride, maker, blank, dice,
    )
}  # fmt: skip
