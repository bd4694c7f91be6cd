"""Changes of one live model: its widths and blocks, with its graph and its optimizer in step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.budget.price import Ints
from compress.reading.ghost import ghost
from compress.reading.graph import Edit, Graph, read
from compress.surgery.stages import Depths, arrange
from compress.surgery.survey import Hold, survey
from compress.surgery.tensors import Columns, change, take, takes


class Surgeon:
    """Changes widths of one live model and keeps its graph and its optimizer in step.

    The model is the truth; `graph` says what it looks like now. Where an optimizer is given, its parameter groups and
    its state follow every edit: each live parameter stays in exactly one group.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        optimizer: torch.optim.Optimizer | None = None,
        hold: Hold | None = None,
    ) -> None:
        self.model = model
        self.graph = graph
        self.optimizer = optimizer
        self.hold = hold  # of a graph that was read anew: which spaces stay as they are

    def sketch(self) -> Surgeon:
        """The same on a copy of the model without numbers: what an edit would come to, before it is done."""
        return Surgeon(ghost(self.model), self.graph, hold=self.hold)

    def widen(self, space: str, by: int, *, columns: Columns = "zero", seed: int = 0) -> None:
        """Add `by` channels to a space.

        New filters get Kaiming-normal weights (fan-in, ReLU); what reads them gets zeros, so that the function does not
        change (columns="zero"), or Kaiming weights as AdeNeL publishes it. Batch norm starts at weight 1, bias 0; where
        other tensors hold one value for each channel, a new one gets the mean of the present ones.
        """
        if by < 1:
            raise ValueError(f"{space} cannot be widened by {by}")
        self.apply(self.graph.widen(space, by), columns=columns, seed=seed)

    def narrow(self, space: str, keep: Sequence[int]) -> None:
        """Keep these channels of a space and remove the others; exact where what reads the others is zero."""
        self.apply(self.graph.narrow(space, keep))

    def resize(
        self, widths: Mapping[str, int], *, columns: Columns = "zero", seed: Callable[[str], int] = lambda _: 0
    ) -> None:
        """Give spaces these widths: the first channels stay as they are, new ones come behind them."""
        for name, width in widths.items():
            now = self.graph.widths[name]
            if width > now:
                self.widen(name, width - now, columns=columns, seed=seed(name))
            elif width < now:
                self.narrow(name, range(width))

    def arrange(
        self, depths: Depths, templates: Mapping[str, nn.Module] | None = None, *, tried: bool = True
    ) -> list[str]:
        """Give containers these children, as `stages.arrange` does, and look at the model again; the new blocks' paths.

        The optimizer holds a new block's parameters where it holds their like in the block before it. Where it is only
        to be priced, what is free need not be `tried`.
        """
        groups = self._groups()
        new = arrange(self.model, depths, templates)
        self._regroup(groups, depths)
        shape = self.graph.shape
        graph = survey(self.model, shape, self.hold) if tried else read(self.model, shape, lessons=False)
        self.graph = graph.spared(self.graph.spare)
        return new

    def apply(self, edit: Edit, *, columns: Columns = "zero", seed: int = 0) -> None:
        """Carry out an edit that `graph` planned."""
        own = self.model.named_parameters(remove_duplicate=False), self.model.named_buffers(remove_duplicate=False)
        named = {name: tensor for tensors in own for name, tensor in tensors}
        swaps = change(self.model, edit, columns=columns, seed=seed)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["params"] = [swaps.get(id(held), held) for held in group["params"]]
            for name, sources in takes(edit).items():
                if (old := named[name]) in self.optimizer.state:
                    state = self.optimizer.state.pop(old)
                    moved = {key: _resized(value, old, sources) for key, value in state.items()}
                    self.optimizer.state[swaps[id(old)]] = moved
        self.graph = edit.after

    def _groups(self) -> dict[str, int]:
        """The number of the optimizer's group that holds each parameter."""
        groups = self.optimizer.param_groups if self.optimizer else []
        homes = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
        return {name: homes[id(p)] for name, p in self.model.named_parameters() if id(p) in homes}

    def _regroup(self, homes: Mapping[str, int], depths: Depths) -> None:
        """Put every live parameter into the group of its like, or of another weight or vector where it has none.

        Those that are gone leave with their state.
        """
        if self.optimizer is None:
            return
        live = dict(self.model.named_parameters())
        members: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
        known = dict(homes)
        for name, parameter in live.items():
            if name not in known:
                alike = [other for other in homes if other in live and (live[other].dim() > 1) == (parameter.dim() > 1)]
                known[name] = known[_like(name, depths, known) or next(iter(alike), name)]
            members[known[name]].append(parameter)
        for group, mine in zip(self.optimizer.param_groups, members, strict=True):
            group["params"] = mine
        kept = {id(parameter) for parameter in live.values()}
        for gone in [held for held in self.optimizer.state if id(held) not in kept]:
            del self.optimizer.state[gone]


def _like(name: str, depths: Depths, known: Mapping[str, int]) -> str | None:
    """Of a new block's parameter, the one of the same name in the nearest block before it, if one has it."""
    for container, children in depths.items():
        inside = name.removeprefix(f"{container}.") if container else name
        child, _, rest = inside.partition(".")
        if name.startswith(container) and child in children:
            for before in reversed(children[: list(children).index(child)]):
                if (like := f"{container}.{before}.{rest}".removeprefix(".")) in known:
                    return like
    return None


def _resized(value: Any, old: Tensor, sources: Mapping[int, Ints]) -> Any:
    """Optimizer state that follows its parameter: zeros where it is fresh, the mean where there is one per filter."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape == old.shape:
        for dim, source in sources.items():
            value = take(value, dim, source)
    elif value.shape == old.shape[:1] and 0 in sources:
        mean, value = value.mean(), take(value, 0, sources[0])
        value[torch.from_numpy(sources[0] < 0)] = mean
    return value
