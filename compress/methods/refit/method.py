"""Refitting: from the network of a finished run, or one that it grew through, to another budget, in few epochs.

A larger network is narrowed to its filters of largest l1 norm (Li et al. 2017), a smaller one is widened, all widths by
one factor, with new columns at zero, so that it computes what it did; both land on the budget (`budget/landing.py`) and
are tuned. One training gives nets of many sizes, as in "Once for All" (Cai et al. 2020), where they share weights; here
each has its own. What a smaller net begins with is the run's end, or with `start: nearest` what is nearest in size of
that and of the states that the run kept, in `states/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compress.budget.landing import beyond, land
from compress.budget.limits import Budget
from compress.errors import CompressError, UsageError
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.methods.refit.settings import Refit
from compress.surgery.ranking import importance, largest
from compress.surgery.shapes import take_shape, widths_of
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.weights import fill, read_weights

END = "model.safetensors"


@dataclass(frozen=True, slots=True)
class State:
    """Optimizer steps of tuning done so far."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A network that a run left, and what it takes of the present budget."""

    path: Path
    structure: Structure
    used: float


@dataclass(frozen=True, slots=True)
class Refitting(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Refit
    around: Around = ALONE
    keeps_weights = False  # those of the recipe's full network
    widens = True

    @property
    def folder(self) -> Path:
        """That of the finished run."""
        return self.around.folder / Path(self.settings.of).expanduser()

    def first(self, surgeon: Surgeon) -> None:
        """Make the network that the run ended with."""
        take_shape(surgeon, self._structure(self.folder / END), "method.of")

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave one filter, or one aligned block, in every free space of it."""
        self.first(surgeon)
        surgeon.resize({name: min(self.around.align, width) for name, width in surgeon.graph.widths.items()})

    def check(self, budget: Budget, batch: int, smallest: Surgeon, full: nn.Module) -> None:
        """Refuse to follow another method, whose network this one would throw away."""
        if self.around.after:
            raise UsageError("refit begins with the network of a finished run; no other method may come before it")

    def _structure(self, path: Path) -> Structure:
        if not path.is_file():
            raise UsageError(f"method.of: there is no {path.name} in {self.settings.of}; name a finished run's folder")
        try:
            return Structure.from_file(path)
        except CompressError as error:
            raise type(error)(f"method.of: {error}") from None

    def sources(self, lab: Lab) -> list[Source]:
        """What of that which the run left may be begun with: the smallest first, and its end last."""
        states = (
            []
            if self.settings.start == "end"
            else sorted(self.folder.glob("states/*.safetensors"), key=lambda path: (len(path.name), path.name))
        )
        sources = []
        for path in [*states, self.folder / END]:
            sketch, structure = lab.sketch(), self._structure(path)
            take_shape(sketch, structure, "method.of")
            used = lab.budget.utilisation(sketch.graph.price.cost(sketch.graph.widths))
            sources.append(Source(path, structure, used))
        return sources

    def source(self, lab: Lab) -> Source:
        """What is begun with; which one is nearer goes by ratios."""
        *states, end = self.sources(lab)
        best = max((state for state in states if state.used <= 1), key=lambda state: state.used, default=end)
        return best if end.used > 1 and best.used * end.used > 1 else end

    def init(self, lab: Lab) -> State:
        """Take one of the networks that the run left, with its weights, and give it the widths that fill the budget."""
        source = self.source(lab)
        self._take(lab, source)
        lab.note(
            "taken", source=source.path.relative_to(self.folder).as_posix(), spent=self._spent(), widths=lab.widths
        )
        graph = lab.graph
        least = {name: min(self.around.align, width) for name, width in graph.widths.items()}
        if source.used > 1:
            goal = land(graph.price, least, graph.widths, lab.budget, align=self.around.align, ceiling=graph.widths)
            lab.narrow(largest(importance(lab.model, graph), graph, goal))
        else:
            goal = beyond(graph.price, graph.widths, lab.budget)
            lab.resize(land(graph.price, graph.widths, goal, lab.budget, align=self.around.align))
        state = State()
        self.ready(lab, state)
        lab.note("landed", widths=lab.widths, val=lab.score().accuracy)
        return state

    def _take(self, lab: Lab, source: Source) -> None:
        structure = source.structure
        if structure.depths:
            lab.arrange(structure.depths)
        if structure.cuts:
            lab.cut(structure.cuts)
        lab.resize(widths_of(lab.graph, structure.shapes, "method.of"))
        fill(lab.model, read_weights(source.path), exact=True)

    def _spent(self) -> float | None:
        """What the run itself cost, MACs x images, by its report: the cost of this one comes on top."""
        try:
            return float(json.loads((self.folder / "report.json").read_bytes())["train_cost"]["macs_images"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint."""
        return State(lab.stretch("tune", self.settings.tune, state.at, self._total(lab, state)))

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return "the network is fitted and tuned" if state.at >= self._total(lab, state) else None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    def _total(self, lab: Lab, state: State) -> int:
        return lab.last(self.settings.tune.epochs, state.at)
