"""Channel ids: integers in the shape of an activation, and what the rules may do with them.

Every element of an activation carries the id of the channel that it belongs to: `FIXED` where it belongs to none. Ids
that are merely repeated along an axis are stored once (stride 0), so that those of large pictures take no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FIXED = 0  # no channel: an element whose number never changes
ABSENT = 1  # zeros that were padded on: adding them to a channel leaves it as it is

Ref = tuple[str, tuple[int | None, ...]]  # a parameter's name, and its axis behind each axis of a view (None: none)


class UnknownError(Exception):
    """A rule met a form of its operator that it cannot follow; the text ends the sentence "conv2d in stem: ..."."""


class Channels(Protocol):
    """What a rule may do; `flow.Flow` implements it."""

    def ids(self, tensor: Tensor) -> Tensor:
        """The ids of an activation, of the same shape."""
        ...

    def ref(self, value: Any) -> Ref | None:
        """The parameter that the value is, or is a plain view of."""
        ...

    def slot(self, name: str, dim: int, ids: Tensor, role: str) -> None:
        """Axis `dim` of a parameter holds these channels [n]."""
        ...

    def new(self, name: str, dim: int) -> Tensor:
        """Ids [n] of the channels that axis `dim` of this parameter starts (the same at a second use)."""
        ...

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Element by element, these are the same channel."""
        ...

    def freeze(self, ids: Tensor, why: str) -> None:
        """These channels keep their number."""
        ...

    def part(self, ids: Tensor, parts: Any) -> None:
        """The operator at hand takes these parts of the channels."""
        ...

    def multiplies(self, name: str) -> None:
        """The operator at hand multiplies with this parameter, so its MACs follow the parameter's size."""
        ...


def fixed(shape: Sequence[int]) -> Tensor:
    """Ids of a tensor that holds no channels."""
    return torch.full((), FIXED).expand(tuple(shape))


def small(ids: Tensor) -> Tensor:
    """The same set of ids, without the axes along which they are merely repeated (stride 0)."""
    for d in range(ids.dim()):
        if ids.size(d) > 1 and ids.stride(d) == 0:
            ids = ids.narrow(d, 0, 1)
    return ids


def held(ids: Tensor) -> bool:
    """Whether any element belongs to a channel."""
    return bool((small(ids) > ABSENT).any())


def vector(ids: Tensor, dim: int) -> Tensor:
    """The ids [n] along one axis; raises UnknownError where they vary along any other."""
    for axis in range(ids.dim()):
        if axis != dim % ids.dim() and ids.size(axis) > 1:
            first = ids.narrow(axis, 0, 1)
            if ids.stride(axis) != 0 and not bool((ids == first).all()):
                raise UnknownError("channels lie along more than one axis of its input")
            ids = first
    return ids.reshape(-1)


def along(vec: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Ids of this shape that follow `vec` along one axis."""
    view = [1] * len(shape)
    view[dim % len(shape)] = -1
    return vec.view(view).expand(tuple(shape))


def axes_of(ids: Tensor) -> set[int]:
    """The axes along which ids vary."""
    ids = small(ids)
    return {d for d in range(ids.dim()) if ids.size(d) > 1 and not bool((ids == ids.narrow(d, 0, 1)).all())}
