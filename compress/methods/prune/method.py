"""Pruning: narrow a trained network to its budget, keeping the channels that matter most, and tune it.

    before      some scores are trained for (`before.py`)
    judge       every channel of every free space gets a score (`scores.py`, `layerwise.py`)
    allocate    the budget is shared out (`allocation.py`) and filled: `budget/landing.py`
    cut         the channels of the largest scores stay; what reads them may be repaired (`repair.py`)
    recalibrate the batch norms' statistics, which were those of the uncut network, are estimated anew
    tune        at a rate that was tried (`rate.py`)

With the score `l1` and even shares that is Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1, and
the plain way that others are compared with.

Differs from the paper, which prunes a residual stage by its projection shortcut alone and picks shares by hand: a space
is judged by all of the layers that make it, and shares follow from the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from compress.budget.limits import Budget
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.methods.prune.allocation import evenly, shared_out
from compress.methods.prune.before import penalised, soft, softened
from compress.methods.prune.gates import gated, kept
from compress.methods.prune.rate import found
from compress.methods.prune.repair import repair
from compress.methods.prune.scores import SCORES
from compress.methods.prune.settings import Before, ByReaders, GrowPrune, Prune, Slimming, Soft
from compress.reading.graph import Graph
from compress.surgery.ranking import largest
from compress.surgery.surgeon import Surgeon
from compress.training.train import lr_at

BATCHES = 32  # of training images, that a repair looks at


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; the target widths follow from the budget."""

    cut: int = 0  # times that the network was narrowed
    at: int = 0  # optimizer steps since then
    rate: float = 0.0  # that was found for what follows; 0 where none was looked for
    why: str = ""  # what ended the run


@dataclass(frozen=True, slots=True)
class Pruning(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Prune
    around: Around = ALONE
    keeps_operators = True

    @property
    def keeps_weights(self) -> bool:
        """Whether it goes on from the weights that the model has: all but one that grows."""
        return not isinstance(self.settings, GrowPrune)

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave one filter, or one aligned block, in every free space."""
        surgeon.resize(self._least(surgeon.graph))

    def _least(self, graph: Graph) -> dict[str, int]:
        return {name: min(self.around.align, width) for name, width in graph.widths.items()}

    def lands(self, graph: Graph, budget: Budget) -> dict[str, int] | None:
        """The widths of an even cut; those of another allocation follow from what is seen."""
        if self.settings.allocate != "even":
            return None
        return evenly(graph, budget, self.around.align)

    def init(self, lab: Lab) -> State:
        """Narrow the network, unless it is trained for that first; one that fits already stays as it is, to the bit."""
        if not self.keeps_weights:
            lab.refill()
        self.ready(lab, State())  # before the first cut, for scores that look at gradients
        if lab.budget.holds(lab.graph.price.cost(lab.graph.widths)):
            lab.note("kept", widths=lab.widths, val=lab.score().accuracy)
            return State(why="the network keeps the budget as it is; nothing was changed")
        return State() if self._before(lab) else self._cut(lab, State())

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint; at the end of a round, narrow again."""
        if not state.cut:
            return self._prepare(lab, state)
        s, total = self.settings, self._steps(lab, state)
        if not (state.rate or s.tune.lr) and s.rates:
            tried = [share * lab.keys.lr for share in s.rates]
            return replace(state, rate=found(lab, s.tune, total, tried, lambda: self.ready(lab, state)))
        tune = s.tune.model_copy(update={"lr": state.rate or s.tune.lr})
        if state.cut >= self.settings.rounds:
            state = replace(state, at=lab.stretch("tune", tune, state.at, total))
            return self._ended(lab, state)
        constant = tune.model_copy(update={"schedule": "constant", "warmup": 0.0})
        state = replace(state, at=lab.stretch("round", constant, state.at, total, round=state.cut))
        if state.at >= total:
            return self._cut(lab, state)
        return state

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return state.why or None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    def _before(self, lab: Lab) -> int:
        """Optimizer steps of the full network before the first cut."""
        keys = self.settings
        return round((keys.before.epochs or 0) * lab.epoch) if isinstance(keys, Before) else 0

    def _prepare(self, lab: Lab, state: State) -> State:
        """Train the full network for an epoch, as its score wants it; at the end of that training, narrow it."""
        keys, total, begin = self.settings, self._before(lab), lab.step - state.at
        assert isinstance(keys, Before)
        course, steps = keys.before, min(lab.epoch, total - state.at)

        def rate(step: int) -> float:
            return lr_at(course.schedule, course.lr or lab.keys.lr, (step - begin) / total, course.warmup)

        with _beside(lab, keys, state.at, total):
            trained = lab.train(steps, rate)
        state, numbers = replace(state, at=state.at + steps), dict[str, Any]()
        if isinstance(keys, Soft):
            ranks = soft(lab, keys)
            goal = shared_out(lab, keys, ranks, self.around.align)
            numbers["zeroed"] = softened(lab, largest(ranks, lab.graph, goal))
        lab.note("before", epoch=state.at / lab.epoch, loss=trained.loss, val=lab.score().accuracy, **numbers)
        return state if state.at < total else self._cut(lab, state)

    def _cut(self, lab: Lab, state: State) -> State:
        """Narrow once more, and begin to train what is left."""
        state = State(cut=state.cut + 1, rate=state.rate)
        self._narrow(lab, state)
        return self._ended(lab, state)

    def _steps(self, lab: Lab, state: State) -> int:
        """Training after this cut."""
        s, epoch = self.settings, lab.epoch
        return s.round.steps(epoch) if state.cut < s.rounds else lab.last(s.tune.epochs, state.at)

    def _ended(self, lab: Lab, state: State) -> State:
        if not state.why and state.cut >= self.settings.rounds and state.at >= self._steps(lab, state):
            return replace(state, why="the network is narrowed and tuned")
        return state

    def _narrow(self, lab: Lab, state: State) -> None:
        """Cut to this round's share of the way from the present widths to the budget's, and recalibrate."""
        keys, graph, left = self.settings, lab.graph, self.settings.rounds - state.cut + 1
        ranks = SCORES[keys.name](lab, keys)
        goal = shared_out(lab, keys, ranks, self.around.align)
        some = {name: width - (width - goal[name]) // left for name, width in graph.widths.items()}
        keep = largest(ranks, graph, some)
        if keys.repair != "none":
            repair(lab, keys.repair, keys.batches if isinstance(keys, ByReaders) else BATCHES, keep)
        lab.narrow(keep)
        kept(lab, keep)
        lab.scored("narrowed", widths=lab.widths)
        if keys.recalibrate and any(isinstance(m, _BatchNorm) for m in lab.model.modules()):
            lab.recalibrate(keys.recalibrate)
            lab.scored("recalibrated")


def _beside(lab: Lab, keys: Prune, at: int, total: int) -> AbstractContextManager[None]:
    """What a score does to the training before its first cut, `at` of whose `total` steps are done."""
    if isinstance(keys, Slimming):
        return penalised(lab, keys)
    return gated(lab, keys, at, total) if isinstance(keys, GrowPrune) else nullcontext()
