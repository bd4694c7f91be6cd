"""What happens while a network is made, one frozen value for each thing, told to whoever listens. No torch.

    def listener(event: Event) -> None:
        match event:
            case Noted(note): ...
            case Progress(step, steps): ...

A listener is called between two steps of the work: what it raises ends the run, as an interrupt does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.budget.limits import Budget, Cost
    from compress.recipe.step import Step
    from compress.training.data import Data


@dataclass(frozen=True, slots=True)
class Begun:
    """Everything is read and known to be feasible: work begins."""

    factory: str
    data: Data
    metric: str | None  # of the recipe's own; None is top-1
    base: Cost  # of the full network
    seed: Cost  # of the one to start from
    budget: Budget


@dataclass(frozen=True, slots=True)
class Resumed:
    """An interrupted run goes on from this optimizer step."""

    step: int


@dataclass(frozen=True, slots=True)
class Entered:
    """A method goes to work, within its share of the budget."""

    settings: Step
    share: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Training goes on, told at most twice a second: `step` of `steps` to the next note."""

    step: int
    steps: int
    loss: float  # mean since it was last told
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Note:
    """One line of history: what happened, after how many optimizer steps, at what cost, of what is allowed."""

    event: str
    step: int
    method: str
    macs: int
    params: int
    used: float  # of the tightest limit
    numbers: Mapping[str, Any]  # what the event itself has to say: loss, val, widths, ...

    @property
    def row(self) -> dict[str, Any]:
        """The same as the history of a report holds it."""
        return {name: getattr(self, name) for name in _COLUMNS} | dict(self.numbers)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Note:
        """The note that a row of history came from."""
        numbers = {key: value for key, value in row.items() if key not in _COLUMNS}
        return cls(**{name: row[name] for name in _COLUMNS}, numbers=numbers)


_COLUMNS = ("event", "step", "method", "macs", "params", "used")


@dataclass(frozen=True, slots=True)
class Noted:
    """A line of history was written."""

    note: Note


@dataclass(frozen=True, slots=True)
class Ended:
    """A method is done, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Doing:
    """What is done now, after training: a sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a person should know and that stops nothing: a sentence."""

    text: str


Event = Begun | Resumed | Entered | Progress | Noted | Ended | Doing | Warned
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Let every event pass."""
