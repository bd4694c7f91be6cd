"""How channel ids pass through what only moves data: it is run on the ids themselves.

Where channels are cut into equal parts these stay equal: the first of each is one channel, the second, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from compress.reading.ids import ABSENT, FIXED, Channels, along, axes_of, vector
from compress.reading.trace import Call


def move(flow: Channels, call: Call) -> Any:
    """What only moves data does the same to ids."""
    ids = flow.ids(call.args[0])
    moved = call.func(ids.view_as(ids), *call.args[1:], **call.kwargs)  # transpose_ turns what it is given
    flow.part(ids, moved)
    return moved


def turn(flow: Channels, call: Call) -> Any:
    """Axes change places."""
    return move(flow, call)


def squeeze(flow: Channels, call: Call) -> Any:
    """Axes of length 1 come or go."""
    return move(flow, call)


def expand(flow: Channels, call: Call) -> Any:
    """An axis of length 1 is as long as it is wanted."""
    return move(flow, call)


def repeat(flow: Channels, call: Call) -> Any:
    """The whole is laid beside itself."""
    return move(flow, call)


def split(flow: Channels, call: Call) -> Any:
    """Equal parts into which channels are cut stay equal."""
    parts = move(flow, call)
    tie_equals(flow, parts)
    return parts


def view(flow: Channels, call: Call) -> Tensor:
    """The same elements in another shape; equal parts into which channels are cut stay equal."""
    viewed = flow.ids(call.args[0]).reshape(call.out.shape)
    for parts in cut(call.args[0].shape, call.out.shape):
        if among := axes_of(viewed).intersection(parts):
            guess = parts[0] if call.args[0].dim() == 2 else parts[-1]
            guess = min(among) if len(among) == 1 else guess  # as where each channel has patches
            follows = flow.follows(parts, guess)
            for dim in among - {follows}:
                tie_equals(flow, viewed.unbind(dim))
                viewed = viewed.narrow(dim, 0, 1).expand(call.out.shape)
    return viewed


def tie_parts(flow: Channels, vec: Tensor, parts: int) -> None:
    """Ids [n] in this many equal parts: the first of each is one channel, the second, and so on."""
    tie_equals(flow, vec.view(parts, -1).unbind())


def tie_equals(flow: Channels, parts: Sequence[Tensor]) -> None:
    """Ids of parts that are equally long: the first of each is one channel, the second, and so on."""
    if all(part.shape == parts[0].shape for part in parts):
        for part in parts[1:]:
            flow.tie(parts[0], part)


def cut(shape: Sequence[int], new: Sequence[int]) -> list[list[int]]:
    """Where a view cuts an axis in several: the new ones. Nothing where it makes several of several.

    One of them follows the length of the old one. Channel shuffles cut [N, C, ...] into [N, groups, C / groups, ...],
    generators [N, C * H * W] into [N, C, H, W]; where it is another, a wider copy tells (`surgery.survey`).
    """
    cuts: list[list[int]] = []
    olds, news = ([d for d, size in enumerate(sizes) if size > 1] for sizes in (shape, new))
    while olds and news:
        length, parts, merged = shape[olds.pop(0)], [news.pop(0)], False
        while length != (reach := prod(new[d] for d in parts)):
            if reach < length and news:
                parts.append(news.pop(0))
            elif reach > length and olds:
                length, merged = length * shape[olds.pop(0)], True
            else:
                return []
        if merged and len(parts) > 1:
            return []
        cuts += [parts] * (len(parts) > 1)
    return cuts


def pixel_shuffle(flow: Channels, call: Call) -> Tensor:
    """Channels turn into pixels, [N, C r r, H, W] to [N, C, H r, W r]."""
    parts = vector(flow.ids(call.args[0]), 1).view(-1, call.args[1] ** 2)
    tie_equals(flow, parts.unbind(1))
    return along(parts[:, 0], 1, call.out.shape)


def pixel_unshuffle(flow: Channels, call: Call) -> Tensor:
    """Pixels turn into channels, [N, C, H r, W r] to [N, C r r, H, W]."""
    vec = vector(flow.ids(call.args[0]), 1)
    return along(vec.repeat_interleave(call.args[1] ** 2), 1, call.out.shape)


def unfold(flow: Channels, call: Call) -> Tensor:
    """Patches turn into channels, [N, C, H, W] to [N, C k k, L]; unbatched likewise."""
    channel, patch = call.args[0].dim() - 3, prod(call.args[1])
    return along(vector(flow.ids(call.args[0]), channel).repeat_interleave(patch), channel, call.out.shape)


def fold(flow: Channels, call: Call) -> Tensor:
    """Channels turn into patches that are added up, [N, C k k, L] to [N, C, H, W]; unbatched likewise."""
    channel = call.args[0].dim() - 2
    parts = vector(flow.ids(call.args[0]), channel).view(-1, prod(call.args[2]))
    tie_equals(flow, parts.unbind(1))
    return along(parts[:, 0], channel, call.out.shape)


def channel_shuffle(flow: Channels, call: Call) -> Tensor:
    """Channels of equal groups change places."""
    vec, groups = vector(flow.ids(call.args[0]), 1), call.args[1]
    tie_parts(flow, vec, groups)
    return along(vec.view(groups, -1).t().reshape(-1), 1, call.out.shape)


def concat(flow: Channels, call: Call) -> Tensor:
    """Ids of the parts, one after the other."""
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    parts = [flow.ids(t) for t in call.args[0]]
    for d in range(parts[0].dim()):  # what is merely repeated stays so: ids of large pictures take no memory
        if d != dim % parts[0].dim() and all(p.stride(d) == 0 for p in parts):
            parts = [p.narrow(d, 0, 1) for p in parts]
    return torch.cat(parts, dim).expand(call.out.shape)


def stack(flow: Channels, call: Call) -> Tensor:
    """Ids of the parts, side by side along a new axis."""
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    return torch.stack([flow.ids(t) for t in call.args[0]], dim)


def pad(flow: Channels, call: Call) -> Tensor:
    """Zeros padded on belong to no channel and hold none; other values fix what they meet."""
    ids, widths, value = flow.ids(call.args[0]), call.args[1], call.args[2] if len(call.args) > 2 else 0
    if ids.dim() >= 3 and not any(widths[2 * (ids.dim() - 2) :]):  # only pixels
        return along(vector(ids, 1), 1, call.out.shape)
    return torch.constant_pad_nd(ids, widths, ABSENT if value == 0 else FIXED)
