"""Channel ids: integers in the shape of an activation, and what the rules may do with them.

Every element of an activation carries the id of the channel that it belongs to: `FIXED` where it belongs to none. Ids
that are merely repeated along an axis are stored once (stride 0), so that those of large pictures take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

FIXED = 0  # no channel: an element whose number never changes
ABSENT = 1  # zeros that were padded on: adding them to a channel leaves it as it is

Axis = tuple[str, int]  # a tensor's name and one of its dimensions


@dataclass(frozen=True, slots=True)
class Ref:
    """What is made of parameters and buffers alone, and the axes of theirs that stand behind each of its own."""

    names: tuple[str, ...]
    axes: tuple[frozenset[Axis], ...]

    def whole(self, sizes: Mapping[str, Sequence[int]], shape: Sequence[int]) -> str | None:
        """The parameter or buffer of this shape that has the same axes in the same order; None where none has."""
        for name in self.names:
            alike = tuple(sizes[name]) == tuple(shape)
            if alike and all((name, d) in axes or shape[d] == 1 for d, axes in enumerate(self.axes)):
                return name
        return None


class UnknownError(Exception):
    """A rule met a form of its operator that it cannot follow; the text ends the sentence "conv2d in stem: ..."."""


class Channels(Protocol):
    """What a rule may do; `flow.Flow` implements it."""

    def ids(self, tensor: Tensor) -> Tensor:
        """The ids of an activation, of the same shape."""
        ...

    def ref(self, value: Any) -> Ref | None:
        """The parameters that the value is one of or is computed from alone."""
        ...

    def slot(self, name: str, dim: int, ids: Tensor, role: str) -> None:
        """Axis `dim` of a parameter holds these channels [n]."""
        ...

    def weight(self, value: Tensor) -> str:
        """The parameter that is multiplied with, or that what is multiplied with is computed from, axis for axis.

        Raises UnknownError where there is none.
        """
        ...

    def follow(self, axes: Iterable[Axis], ids: Tensor) -> None:
        """These axes hold one value for each of these channels [n]."""
        ...

    def trained(self, name: str) -> bool:
        """Whether this is a parameter that training changes, and neither a buffer nor one without gradient."""
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

    def follows(self, parts: Sequence[int], guess: int) -> int:
        """Which of the axes into which the view at hand cuts one grows with it; the `guess` if nobody knows better."""
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
