"""The inputs of a model: their shapes, how they are called with, and blanks in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

Shape = Sequence[int] | Sequence[Sequence[int]]  # of one input without its batch, or of several, one after the other


Batch = Tensor | tuple[Tensor, ...]  # what a model is called with: its one input, or one tensor for each of several


def each(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """The shape of every input, one for each argument of forward(): [3, 8, 8] says one, [[3, 8, 8], [10]] says two."""
    if all(isinstance(size, int) for size in shape):
        return (tuple(cast(Sequence[int], shape)),)
    return tuple(tuple(one) for one in cast(Sequence[Sequence[int]], shape))


def plainly(shape: Shape) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    """The same as tuples."""
    shapes = each(shape)
    return shapes[0] if all(isinstance(size, int) for size in shape) else shapes


def arguments(batch: Batch) -> tuple[Tensor, ...]:
    """The arguments of forward() for a batch."""
    return (batch,) if isinstance(batch, Tensor) else batch


def blanks(model: nn.Module, shape: Shape, batch: int = 1) -> tuple[Tensor, ...]:
    """Inputs [batch, *shape] without numbers, of the model's own floating type."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tuple(torch.empty(batch, *one, device="meta", dtype=dtype) for one in each(shape))


@torch.no_grad()
def noise(model: nn.Module, shape: Shape, batch: int) -> tuple[Tensor, ...]:
    """Random inputs [batch, *shape] on the CPU, the same each time; none below zero where some are taken for ids."""
    generator = torch.Generator().manual_seed(0)
    drawn = tuple(torch.randn(batch, *one, generator=generator) for one in each(shape))
    try:
        model(*drawn)
    except IndexError:
        return tuple(x.abs() for x in drawn)
    except Exception:  # told where they are used
        return drawn
    return drawn
