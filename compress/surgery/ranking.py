"""Which channels of a space matter most, by the l1 norms of the filters that make them (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.reading.graph import Graph


def largest(model: nn.Module, graph: Graph, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """For every free space that these widths make narrower, the positions of its most important channels, ascending."""
    ranks = importance(model, graph)
    narrower = [name for name in ranks if widths[name] < graph.spaces[name].width]
    return {name: np.sort(np.argsort(-ranks[name], kind="stable")[: widths[name]]).tolist() for name in narrower}


def importance(model: nn.Module, graph: Graph) -> dict[str, NDArray[np.float64]]:
    """For every free space the l1 norms [width] of its channels' filters, summed over the layers that make them.

    Each layer's norms are divided by their mean over the space, so that every layer has one vote.
    """
    tensors = dict(model.named_parameters())
    norms = {}
    for name in graph.free:
        space = graph.spaces[name]
        total = np.zeros(space.width)
        for tensor, dim in space.producers:
            if tensor not in tensors:
                continue
            weight = tensors[tensor].detach().double().abs()
            rows = weight.sum([d for d in range(weight.dim()) if d != dim]).cpu().numpy()
            order = {unit: position for position, unit in enumerate(space.units)}
            mine = np.zeros(space.width)
            for row, unit in zip(rows, graph.slots[tensor, dim].units.tolist(), strict=True):
                if unit in order:
                    mine[order[unit]] += row
            total += mine / (mine.mean() or 1.0)
        norms[name] = total
    return norms
