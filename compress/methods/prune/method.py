"""Pruning: narrow a trained network to its budget, keeping the channels that matter most, and tune it.

All free spaces go down by one common factor until the budget holds (`budget/landing.py` fills it), and in each space
the channels that a score (`scores.py`) finds most important stay. Then the batch norms' statistics, which were those of
the uncut network, are estimated anew, and the network is trained. With the score `l1` that is Li et al. 2017, "Pruning
Filters for Efficient ConvNets", section 3.1, and the plain way that others are compared with.

Differs from the paper, which prunes a residual stage by its projection shortcut alone and picks shares by hand: a space
is judged by all of the layers that make it, and shares follow from the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from compress.budget.landing import land
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.methods.prune.scores import SCORES
from compress.methods.prune.settings import Prune
from compress.reading.graph import Graph
from compress.surgery.ranking import largest
from compress.surgery.surgeon import Surgeon


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; the target widths follow from the budget."""

    cut: int = 0  # times that the network was narrowed
    at: int = 0  # optimizer steps since then
    why: str = ""  # what ended the run


@dataclass(frozen=True, slots=True)
class Pruning(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Prune
    around: Around = ALONE

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave one filter, or one aligned block, in every free space."""
        surgeon.resize(self._least(surgeon.graph))

    def _least(self, graph: Graph) -> dict[str, int]:
        return {name: min(self.around.align, width) for name, width in graph.widths.items()}

    def init(self, lab: Lab) -> State:
        """Narrow the network for the first time; one that keeps its budget already is left as it is, to the bit."""
        self.ready(lab, State())  # before the first cut, for scores that look at gradients
        if lab.budget.holds(lab.graph.price.cost(lab.graph.widths)):
            lab.note("kept", widths=lab.widths, val=lab.score().accuracy)
            return State(why="the network keeps the budget as it is; nothing was changed")
        state = State(cut=1)
        self._narrow(lab, state)
        return self._ended(lab, state)

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint; at the end of a round, narrow again."""
        total, tune = self._steps(lab, state), self.settings.tune
        if state.cut >= self.settings.rounds:
            state = replace(state, at=lab.stretch("tune", tune, state.at, total))
            return self._ended(lab, state)
        constant = tune.model_copy(update={"schedule": "constant", "warmup": 0.0})
        state = replace(state, at=lab.stretch("round", constant, state.at, total, round=state.cut))
        if state.at >= total:
            state = State(cut=state.cut + 1)
            self._narrow(lab, state)
        return self._ended(lab, state)

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return state.why or None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

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
        graph, left = lab.graph, self.settings.rounds - state.cut + 1
        goal = land(
            graph.price, self._least(graph), graph.widths, lab.budget, align=self.around.align, ceiling=graph.widths
        )
        some = {name: width - (width - goal[name]) // left for name, width in graph.widths.items()}
        lab.narrow(largest(SCORES[self.settings.name](lab, self.settings), graph, some))
        lab.note("narrowed", widths=lab.widths, val=lab.score().accuracy)
        if self.settings.recalibrate and any(isinstance(m, _BatchNorm) for m in lab.model.modules()):
            lab.recalibrate(self.settings.recalibrate)
            lab.note("recalibrated", val=lab.score().accuracy)
