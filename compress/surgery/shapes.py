"""The widths that shapes in a file tell: which net of a family it is that somebody stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compress.errors import UsageError
from compress.reading.graph import Graph
from compress.surgery.connections import prune
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon


def widths_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]], key: str = "method.like") -> dict[str, int]:
    """The widths at which the tensors of a graph have these shapes.

    An axis that holds one space of unknown width tells it, and what is known then tells the next (stages that pad zeros
    share their axes). Raises UsageError naming the recipe's `key` and a tensor where no widths give these shapes.
    """
    homes = {unit: name for name in graph.free for unit in graph.spaces[name].units}
    widths: dict[str, int] = {}
    holds = {}  # of every axis: indices that belong to no free space, and indices per channel of each space it holds
    for axis, slot in graph.slots.items():
        units, counts = np.unique(slot.units, return_counts=True)
        each = {homes[unit]: int(times) for unit, times in zip(units.tolist(), counts, strict=True) if unit in homes}
        fixed = len(slot.units) - sum(times * graph.spaces[name].width for name, times in each.items())
        holds[axis] = fixed, each
    for _ in graph.free:  # each pass finds one more width at least
        for (tensor, dim), (fixed, each) in holds.items():
            unknown = [name for name in each if name not in widths]
            if len(unknown) == 1 and dim < len(shapes.get(tensor, ())):
                rest = shapes[tensor][dim] - fixed - sum(each[n] * w for n, w in widths.items() if n in each)
                widths[unknown[0]] = max(1, rest // each[unknown[0]])
    for (tensor, dim), (fixed, each) in holds.items():
        sizes = shapes.get(tensor, ())
        length = fixed + sum(times * widths.get(name, 0) for name, times in each.items())
        if dim >= len(sizes) or sizes[dim] != length:
            size = f"is {list(sizes)}" if tensor in shapes else "is missing"
            raise UsageError(f"{key}: {tensor} {size} in the file, and no widths of this model make it so")
    return widths


def take_shape(surgeon: Surgeon, structure: Structure, key: str) -> None:
    """Give a network the blocks, connections and widths of a structure, which `key` of the recipe names."""
    if structure.depths:
        surgeon.arrange(structure.depths)
    if structure.cuts:
        prune(surgeon, structure.cuts)
    surgeon.resize(widths_of(surgeon.graph, structure.shapes, key))
