"""Training a network on as it is, at a rate that was tried: what follows a cut, without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.methods.prune.rate import found
from compress.methods.prune.settings import Tuning
from compress.surgery.surgeon import Surgeon


@dataclass(frozen=True, slots=True)
class State:
    """Optimizer steps done so far, and the rate that was found; 0 where none was looked for."""

    at: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class TunedOn(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Tuning
    around: Around = ALONE
    only_trains = True
    keeps_operators = True

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave every shape as it is."""

    def init(self, lab: Lab) -> State:
        """Begin with the weights that are there."""
        self.ready(lab, State())
        return State()

    def step(self, lab: Lab, state: State) -> State:
        """Look for a rate, or train up to the next checkpoint."""
        s, total = self.settings, self._total(lab, state)
        if not (state.rate or s.tune.lr) and s.rates:
            tried = [share * lab.keys.lr for share in s.rates]
            return replace(state, rate=found(lab, s.tune, total, tried, lambda: self.ready(lab, state)))
        tune = s.tune.model_copy(update={"lr": state.rate or s.tune.lr})
        return replace(state, at=lab.stretch("tune", tune, state.at, total))

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return "all epochs are trained" if state.at >= self._total(lab, state) else None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    def _total(self, lab: Lab, state: State) -> int:
        return lab.last(self.settings.tune.epochs, state.at)
