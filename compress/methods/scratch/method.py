"""Training one shape from newly drawn weights: the control that every method is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.budget.landing import land
from compress.errors import UsageError
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.methods.scratch.settings import FromNew, Scratch, Uniform
from compress.reading.graph import Graph
from compress.recipe.step import Course
from compress.surgery.shapes import take_shape, widths_of
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon


@dataclass(frozen=True, slots=True)
class State:
    """Optimizer steps done so far."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class _Training(Method[State]):
    """Training of newly drawn weights."""

    settings: FromNew
    around: Around = ALONE
    keeps_weights = False

    def begin(self, lab: Lab) -> State:
        """Draw all weights of the shape that the network has."""
        lab.refill()
        state = State()
        self.ready(lab, state)
        lab.note("seed", widths=lab.widths)
        return state

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint."""
        s = self.settings
        course = Course(schedule=s.schedule, lr=s.lr, warmup=s.warmup)
        return State(lab.stretch("train", course, state.at, self._total(lab, state)))

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return "all epochs are trained" if state.at >= self._total(lab, state) else None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    def _total(self, lab: Lab, state: State) -> int:
        return max(1, lab.last(self.settings.epochs, state.at))


@dataclass(frozen=True, slots=True)
class Evenly(_Training):
    """A width multiplier: the full net, narrowed by one factor until it fills the budget."""

    settings: Uniform
    keeps_operators = True

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave one filter, or one aligned block, in every free space."""
        surgeon.resize(self._least(surgeon.graph))

    def _least(self, graph: Graph) -> dict[str, int]:
        return {name: min(self.around.align, width) for name, width in graph.widths.items()}

    def init(self, lab: Lab) -> State:
        """Take the shape and draw all weights anew."""
        graph = lab.graph
        full, least = graph.widths, self._least(graph)
        lab.resize(land(graph.price, least, full, lab.budget, align=self.around.align, ceiling=full))
        return self.begin(lab)


@dataclass(frozen=True, slots=True)
class FromScratch(_Training):
    """The control with its hyper-parameters, as the recipe says them."""

    settings: Scratch
    only_trains = True

    def smallest(self, surgeon: Surgeon) -> None:
        """Make the only shape that there is."""
        self.first(surgeon)

    def first(self, surgeon: Surgeon) -> None:
        """Make the shape that is trained.

        Raises UsageError for a space that is not there and a file that does not fit.
        """
        if stored := self._stored():
            take_shape(surgeon, stored, "method.like")
        else:
            surgeon.resize(self._widths(surgeon.graph))

    def _stored(self) -> Structure | None:
        if self.settings.like is None:
            return None
        path = self.around.folder / self.settings.like
        if not path.is_file():
            raise UsageError(f"method.like: there is no file {self.settings.like} beside the recipe")
        return Structure.from_file(path)

    def _widths(self, graph: Graph) -> dict[str, int]:
        if stored := self._stored():
            return widths_of(graph, stored.shapes)
        asked = self.settings.widths or {}
        if unknown := sorted(asked.keys() - graph.widths.keys()):
            raise UsageError(f"method.widths: no free space is called {unknown[0]!r}, only {', '.join(graph.free)}")
        return {**graph.widths, **asked}

    def init(self, lab: Lab) -> State:
        """Take the shape and draw all weights anew."""
        stored = self._stored()
        if stored and stored.depths:
            lab.arrange(stored.depths)
        if stored and stored.cuts:
            lab.cut(stored.cuts)
        lab.resize(self._widths(lab.graph))
        return self.begin(lab)
