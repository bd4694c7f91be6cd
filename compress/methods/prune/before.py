"""What some methods do to the full network before it is cut: scales that go to zero, and filters that are set to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import UsageError
from compress.methods.protocol import Lab
from compress.methods.prune.settings import Prune, Slimming
from compress.reading.graph import Graph
from compress.reading.ids import Axis
from compress.surgery.ranking import Ranks, importance, per_channel


def scales(model: nn.Module, graph: Graph) -> dict[str, list[Axis]]:
    """The batch norms' scales, as axes, of every free space that has any."""
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    found: dict[str, list[Axis]] = {}
    for name in names:
        for space in graph.slots[name, 0].runs if (name, 0) in graph.slots else ():
            found.setdefault(space, []).append((name, 0))
    return found


def slimming(lab: Lab, keys: Prune) -> Ranks:
    """The absolute scales of batch norms, their mean where a space has several.

    A space without any is judged by its filters' l1 norms, as large in the mean as all scales are.
    """
    tensors, ranks = dict(lab.model.named_parameters()), importance(lab.model, lab.graph)
    mine = scales(lab.model, lab.graph)
    seen = {
        name: np.mean(
            [per_channel(lab.graph, name, axis, tensors[axis[0]].detach().double().abs()) for axis in axes], 0
        )
        for name, axes in mine.items()
    }
    usual = float(np.mean([scale.mean() for scale in seen.values()])) if seen else 1.0
    return {name: seen[name] if name in seen else usual * norm / (norm.mean() or 1.0) for name, norm in ranks.items()}


@contextmanager
def penalised(lab: Lab, keys: Slimming) -> Iterator[None]:
    """While this lasts, the loss has the sum of the scales' absolute values in it (Liu et al. 2017, equation 1).

    Its subgradient is added to the scales' gradients. Raises UsageError for a net without batch norm.
    """
    named, mine = dict(lab.model.named_parameters()), scales(lab.model, lab.graph)
    found = {name for axes in mine.values() for name, _ in axes if named[name].requires_grad}
    if not found:
        raise UsageError(
            "slimming: no batch norm that can be trained follows a free space; write method: {name: group}"
        )
    handles = []
    for name in sorted(found):
        scale = named[name]

        def pulled(gradient: Tensor, scale: Tensor = scale) -> Tensor:
            return gradient + keys.penalty * scale.detach().sign()

        handles.append(scale.register_hook(pulled))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def soft(lab: Lab, keys: Prune) -> Ranks:
    """The l2 norms of filters."""
    return importance(lab.model, lab.graph, power=2)


@torch.no_grad()
def softened(lab: Lab, keep: Mapping[str, list[int]]) -> int:
    """Set the filters of all other channels to zero; how many channels that are. The next step may revive them."""
    tensors, count = dict(lab.model.named_parameters()), 0
    for name, kept in keep.items():
        space = lab.graph.spaces[name]
        gone = sorted(set(space.units) - {space.units[position] for position in kept})
        count += len(gone)
        for of, dim in space.producers:
            if of in tensors:
                rows = np.flatnonzero(np.isin(lab.graph.slots[of, dim].units, gone))
                tensors[of].index_fill_(dim, torch.from_numpy(rows).to(tensors[of].device), 0.0)
    return count
