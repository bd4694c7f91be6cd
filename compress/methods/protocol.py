"""What a method is, and all that it may touch.

A method has its hyper-parameters as fields, its state as a frozen dataclass of plain values, and no loop: `run` has the
only one. It is asked about its recipe before anything is trained, and then works through the lab, step by step:

    state = method.init(lab)
    while (why := method.done(lab, state)) is None:
        state = method.step(lab, state)             # a checkpoint follows each

A method of one's own subclasses `Method` and writes the last five of its functions; the others have answers that suit a
method which narrows a trained network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from compress.budget.limits import Budget, Cost
from compress.reading.graph import Graph
from compress.reading.inputs import Shape
from compress.recipe import settings
from compress.recipe.step import Course
from compress.surgery.stages import Depths, Stage
from compress.surgery.surgeon import Surgeon
from compress.surgery.tensors import Columns
from compress.surgery.wires import Cuts
from compress.training.optim import descent
from compress.training.train import Loop, Score, Trained

S = TypeVar("S")
T = TypeVar("T")


class Lab(Protocol):
    """All that a method may touch: train, score, look at costs, change widths, depths and connections, take notes.

    The books (optimizer steps, train-cost, history) are kept behind it; `training.bench.Bench` is what a run gives.
    """

    learnt: dict[str, Tensor]
    """What the method has learnt beside the model; it survives a restart and ends with the method."""
    optimizer: torch.optim.Optimizer
    """What trains the model; its state follows every edit."""

    @property
    def model(self) -> nn.Module:
        """The live network."""
        ...

    @property
    def graph(self) -> Graph:
        """Its channels: spaces, slots, price."""
        ...

    @property
    def shape(self) -> Shape:
        """Of one input, [C, H, W], or of several."""
        ...

    @property
    def widths(self) -> dict[str, int]:
        """The present width of every free space."""
        ...

    @property
    def budget(self) -> Budget:
        """What the method may use."""
        ...

    def cost(self) -> Cost:
        """The present cost."""
        ...

    @property
    def keys(self) -> settings.Train:
        """How the recipe trains: rate, momentum, decay."""
        ...

    @property
    def seed(self) -> int:
        """The recipe's."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps since the run began."""
        ...

    @property
    def epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        ...

    @property
    def pace(self) -> int:
        """Optimizer steps between two checkpoints: a method's step should not be longer."""
        ...

    @property
    def images(self) -> Mapping[str, int]:
        """How many there are of "train", "val" and "test"."""
        ...

    @property
    def share(self) -> float:
        """The part of all training images that is used."""
        ...

    @property
    def original(self) -> nn.Module:
        """The full network as its factory makes it."""
        ...

    def stages(self, names: tuple[str, ...] | None) -> tuple[Stage, ...]:
        """The full network's stages, all or those of these names."""
        ...

    def sketch(self) -> Surgeon:
        """A copy of the network without numbers: what an edit would come to, before it is done."""
        ...

    def train(self, steps: int, lr: Callable[[int], float]) -> Trained:
        """Train for some optimizer steps; `lr` is asked with the number of each since the start of the run."""
        ...

    def last(self, epochs: float, at: int) -> int:
        """Optimizer steps of a last stage, `at` of which are done: of so many epochs, or as train.cost says."""
        ...

    def loop(self, steps: int, run: Callable[[Loop], T]) -> T:
        """Let a loop of the method's own train for some optimizer steps."""
        ...

    def stretch(self, event: str, course: Course, at: int, total: int, **numbers: Any) -> int:
        """Train up to the next checkpoint of a stage of `total` steps, `at` of which are done; the steps done then."""
        ...

    def score(self) -> Score:
        """Accuracy and loss on the validation images."""
        ...

    def trial(self, keep: Mapping[str, Sequence[int]]) -> Score:
        """What a copy that keeps only these channels of spaces does on some validation images, recalibrated."""
        ...

    def recalibrate(self, batches: int) -> None:
        """Estimate the batch norms' statistics anew, on this many training batches."""
        ...

    def resize(self, widths: Mapping[str, int], columns: Columns = "zero") -> None:
        """Give spaces these widths: the first channels stay, new ones come behind them."""
        ...

    def narrow(self, keep: Mapping[str, Sequence[int]]) -> None:
        """Keep these channels (positions, ascending) of spaces."""
        ...

    def arrange(self, depths: Depths, templates: Mapping[str, nn.Module] | None = None) -> list[str]:
        """Give containers these children; the paths of the new blocks, drawn anew."""
        ...

    def cut(self, cuts: Cuts) -> None:
        """Take these connections out of the network."""
        ...

    def refill(self) -> None:
        """Draw all weights anew, and let the model look at training images where it wants to."""
        ...

    def note(self, event: str, **numbers: Any) -> None:
        """Write a line of history."""
        ...

    def scored(self, event: str, **numbers: Any) -> None:
        """Write one with the accuracies on validation and test images, which methods do not get to see."""
        ...


@dataclass(frozen=True, slots=True)
class Around:
    """What of a recipe a method must know beside its own keys."""

    align: int = 1  # widths that are not the full one are multiples of this
    after: bool = False  # another step came before this one
    trained: bool = False  # the network comes with weights that are worth keeping
    folder: Path = Path()  # where its relative paths start


ALONE = Around()


class Method(Protocol[S]):
    """One way in which a network becomes compact; see the module's own text."""

    # what the plan asks

    @property
    def keeps_weights(self) -> bool:
        """Whether it goes on from the weights that the model has; else it draws all of them anew."""
        return True

    @property
    def only_trains(self) -> bool:
        """Whether it leaves shapes as they are: such a step may be of any size where others follow."""
        return False

    @property
    def keeps_operators(self) -> bool:
        """Whether the network keeps those of the full one, and only its widths change."""
        return False

    @property
    def widens(self) -> bool:
        """Whether it may make layers wider than the full net's."""
        return False

    def first(self, surgeon: Surgeon) -> None:
        """Make of a net the one that the method starts from, where the budget allows it: the net itself."""

    def smallest(self, surgeon: Surgeon) -> None:
        """Make of a net the smallest that the method can: one channel in every free space."""
        surgeon.resize(dict.fromkeys(surgeon.graph.free, 1))

    def check(self, budget: Budget, batch: int, smallest: Surgeon, full: nn.Module) -> None:
        """Raise UsageError for what the method cannot do within this budget, with batches of so many images.

        `smallest` holds what `smallest` made of the full network.
        """

    def remarks(self, graph: Graph) -> dict[str, str]:
        """What is to be said of free spaces, by name."""
        return {}

    def lands(self, graph: Graph, budget: Budget) -> dict[str, int] | None:
        """The widths that a network of these channels will end with within a budget, where that is known before."""
        return None

    def deepens(self, model: nn.Module, shape: Shape) -> Sequence[Stage]:
        """The stages that it may give more blocks."""
        return ()

    # what the run asks

    def ready(self, lab: Lab, state: S) -> None:
        """Make the optimizer for a model that has its widths; after a restart its state is loaded next.

        That of the recipe's `train`; vectors have no weight decay.
        """
        lab.optimizer = descent(lab.model, lab.keys)

    @abstractmethod
    def init(self, lab: Lab) -> S:
        """Prepare the model, call `ready`; the state before the first step."""
        ...

    @abstractmethod
    def step(self, lab: Lab, state: S) -> S:
        """One stretch of training, and the decision that ends it."""
        ...

    @abstractmethod
    def done(self, lab: Lab, state: S) -> str | None:
        """Why there is nothing left to do, else None."""
        ...

    @abstractmethod
    def load(self, fields: Mapping[str, Any]) -> S:
        """The state whose fields these are, as JSON keeps them: lists for tuples."""
        ...
