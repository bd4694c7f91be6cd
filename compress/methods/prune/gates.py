"""Gates that open and close in training: channels come and go until what is open keeps the budget.

Yuan et al. 2021, "Growing Efficient Deep Networks by Structured Continuous Sparsification": a channel passes through a
gate sigmoid(beta x s), of which s is learned and beta rises, so that gates end at 0 or 1; the loss has the network's
cost in it, and so a net grows from a few channels and is pruned at the same time. Its text was not read for this. Ours
is chosen so:

- the gate of a channel stands on the columns that read it: there no batch norm undoes it;
- of all channels the first `seed` are a little open at the start, the others a little closed;
- the cost is that of the open parts of all widths, and its weight follows from how far it is from the budget: above,
  gates are pushed down by what their channel costs, below they are let go;
- at the end the channels of the largest s stay, as many in each space as are open there, and landing fills the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from compress.methods.protocol import Lab
from compress.methods.prune.settings import GrowPrune, Prune
from compress.reading.ids import Axis
from compress.surgery.ranking import Ranks

PREFIX = "gate of "
OPEN = 0.1  # s of a channel that is open at the start, less that of one that is closed


def grow_prune(lab: Lab, keys: Prune) -> Ranks:
    """What was learned of every channel: open above 0, closed below; before any training, the seed's."""
    assert isinstance(keys, GrowPrune)
    begun(lab, keys)
    return {name: lab.learnt[PREFIX + name].double().cpu().numpy() for name in lab.graph.free}


def begun(lab: Lab, keys: GrowPrune) -> None:
    """Let every free space have gates, those of its first channels open."""
    for name, width in lab.graph.widths.items():
        if PREFIX + name not in lab.learnt:
            first = torch.arange(width) < max(1, round(keys.seed * width))
            device = next(lab.model.parameters()).device
            lab.learnt[PREFIX + name] = torch.where(first, OPEN, -OPEN).to(device)


@contextmanager
def gated(lab: Lab, keys: GrowPrune, at: int, total: int) -> Iterator[None]:
    """While this lasts, what reads a channel reads it through its gate, and every step moves the gates, too.

    Of `total` such steps `at` are done. Between two steps the weights are those behind the gates, in the end they are
    the plain ones.
    """
    begun(lab, keys)
    work = _Gates(lab, keys, at, total)
    work.close()
    handles = [
        lab.optimizer.register_step_pre_hook(lambda *_: work.learn()),
        lab.optimizer.register_step_post_hook(lambda *_: work.close()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        work.open()


class _Gates:
    """The gates of all spaces, on the weights that read them."""

    def __init__(self, lab: Lab, keys: GrowPrune, at: int, total: int) -> None:
        self.lab, self.keys, self.at, self.total = lab, keys, at, total
        self.tensors = dict(lab.model.named_parameters())
        self.plain: dict[str, Tensor] = {}  # weights without gates, while they are behind them
        self.places: dict[Axis, list[tuple[str, Tensor]]] = {}  # of each space on an axis, the channel of every index
        for name in lab.graph.free:
            space = lab.graph.spaces[name]
            position = {unit: number for number, unit in enumerate(space.units)}
            for of, dim in space.consumers:
                if of in self.tensors:
                    numbers = [position.get(unit, -1) for unit in lab.graph.slots[of, dim].units.tolist()]
                    where = torch.tensor(numbers, device=self.tensors[of].device)
                    self.places.setdefault((of, dim), []).append((name, where))

    @property
    def beta(self) -> float:
        """How steep gates are now: from 1 to `steepest`, by ratios."""
        return float(self.keys.steepest ** min(1.0, self.at / max(1, self.total)))

    def gate(self, name: str) -> Tensor:
        """How far the channels of a space are open [width]."""
        return torch.sigmoid(self.beta * self.lab.learnt[PREFIX + name])

    def along(self, of: str, dim: int) -> Tensor:
        """The gates of a weight's axis, in a shape that multiplies it."""
        factor = torch.ones(self.tensors[of].shape[dim], device=self.tensors[of].device)
        for name, where in self.places[of, dim]:
            factor[where >= 0] = self.gate(name)[where[where >= 0]]
        return factor.view([-1 if d == dim else 1 for d in range(self.tensors[of].dim())])

    @torch.no_grad()
    def close(self) -> None:
        """Put the weights behind the gates."""
        for of, dim in self.places:
            if of not in self.plain:
                self.plain[of] = self.tensors[of].detach().clone()
            self.tensors[of].mul_(self.along(of, dim))

    @torch.no_grad()
    def open(self) -> None:
        """Give the plain weights back."""
        for of, plain in self.plain.items():
            self.tensors[of].copy_(plain)
        self.plain.clear()

    @torch.no_grad()
    def learn(self) -> None:
        """Hand gradients on to the plain weights, and move the gates by theirs and by what their channels cost."""
        slopes = {name: torch.zeros_like(self.lab.learnt[PREFIX + name]) for name in self.lab.graph.free}
        for of, dim in self.places:
            weight, gradient = self.plain[of], self.tensors[of].grad
            if gradient is None:
                continue
            by = (weight * gradient).movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1)
            for name, where in self.places[of, dim]:
                slopes[name].index_add_(0, where[where >= 0], by[where >= 0])
            gradient.mul_(self.along(of, dim))
        self.open()
        pushes = self._pushes()
        for name, slope in slopes.items():
            gate, learnt = self.gate(name), self.lab.learnt[PREFIX + name]
            learnt -= self.keys.gate_lr * (slope + pushes[name]) * gate * (1 - gate)  # less beta: it would only grow
            learnt.clamp_(-1.0, 1.0)
        self.at += 1

    def _pushes(self) -> dict[str, float]:
        """What the cost adds to the slope of a space's gates: more, the further what is open is from the budget."""
        price, budget = self.lab.graph.price, self.lab.budget
        widths = {name: max(1, round(float(self.gate(name).sum()))) for name in price.spaces}
        used = budget.utilisation(price.cost(widths))
        steps = price.steps(widths)
        share = steps[:, 1] / max(1, int(np.max(steps[:, 1])))  # of MACs, of the dearest channel
        return {name: self.keys.weight * (used - 1) * float(share[at]) for at, name in enumerate(price.spaces)}


def kept(lab: Lab, keep: Mapping[str, Sequence[int]]) -> None:
    """Forget the gates of channels that were cut out; before there are any, do nothing."""
    for name, positions in keep.items():
        if (learnt := lab.learnt.get(PREFIX + name)) is not None:
            lab.learnt[PREFIX + name] = learnt[list(positions)]
