"""Which channels of a space matter most, by the norms of the filters that make them (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.reading.graph import Graph
from compress.reading.ids import Axis

Ranks = Mapping[str, NDArray[np.float64]]  # of every free space, one number for each channel: the more, the better


def largest(ranks: Ranks, graph: Graph, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """For every free space that these widths make narrower, the positions of its most important channels, ascending."""
    narrower = [name for name in ranks if widths[name] < graph.spaces[name].width]
    return {name: np.sort(np.argsort(-ranks[name], kind="stable")[: widths[name]]).tolist() for name in narrower}


def importance(
    model: nn.Module, graph: Graph, *, power: int = 1, readers: bool = False
) -> dict[str, NDArray[np.float64]]:
    """For every free space the norms [width] of its channels' filters, summed over the layers that make them.

    The l1 norms, or with power=2 the l2 norms; with `readers` those of the columns that read a channel, too. Each
    layer's norms are divided by their mean over the space, so that every layer has one vote.
    """
    tensors = dict(model.named_parameters())
    norms = {}
    for name in graph.free:
        space = graph.spaces[name]
        total = np.zeros(space.width)
        for axis in (*space.producers, *(space.consumers if readers else ())):
            if axis[0] in tensors and (tensors[axis[0]].dim() > 1 or not readers):  # vectors belong to norms
                sums = per_channel(graph, name, axis, tensors[axis[0]].detach().double().abs() ** power)
                mine = sums ** (1 / power)
                total += mine / (mine.mean() or 1.0)
        norms[name] = total
    return norms


def per_channel(graph: Graph, name: str, axis: Axis, values: Tensor) -> NDArray[np.float64]:
    """What a tensor sums up to for each channel [width] of a space that stands on one of its axes."""
    space, (of, dim) = graph.spaces[name], axis
    rows = values.movedim(dim, 0).reshape(values.shape[dim], -1).sum(1).cpu().numpy()
    units = graph.slots[of, dim].units
    mine = np.isin(units, space.units)
    position = {unit: number for number, unit in enumerate(space.units)}
    summed = np.zeros(space.width)
    np.add.at(summed, [position[unit] for unit in units[mine].tolist()], rows[mine])
    return summed
