"""The narrow thing that a method may touch: train, score, look at costs, change widths, take notes.

A method decides; the lab does, and keeps the books: optimizer steps, train-cost, history. What must survive a restart
is in `Lab.books()` and in the tensors of the model and the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from compress.budget.limits import Budget, Cost
from compress.errors import UsageError
from compress.methods.scratch.settings import Scratch
from compress.reading.inputs import Shape
from compress.recipe.settings import Recipe
from compress.recipe.step import Course
from compress.surgery.connections import Cuts, cuts_in, prune
from compress.surgery.stages import Depths, Stage, find
from compress.surgery.structure import construct
from compress.surgery.widths import Columns, Surgeon
from compress.training.data import Data
from compress.training.optim import draw
from compress.training.seeds import seed_of
from compress.training.task import Task, task_of
from compress.training.train import (
    Score,
    Trained,
    lr_at,
    memory_format_of,
    place,
    precision_of,
    runs_in_channels_last,
    score,
    train,
)

S = TypeVar("S")


class Method(Protocol[S]):
    """Hyper-parameters as fields, state as a frozen dataclass of plain values, and no loop: `run` has the only one."""

    @property
    def keeps_weights(self) -> bool:
        """Whether it goes on from the weights that the model has; else it draws all of them anew."""
        ...

    def smallest(self, surgeon: Surgeon) -> None:
        """Make of a net the smallest that the method can."""
        ...

    def first(self, surgeon: Surgeon) -> None:
        """Make of a net the one that the method starts from, where the budget allows it."""
        ...

    def init(self, lab: Lab) -> S:
        """Prepare the model and the optimizer; the state before the first step."""
        ...

    def ready(self, lab: Lab, state: S) -> None:
        """Make the optimizer for a model that has its widths; after a restart its state is loaded next."""
        ...

    def step(self, lab: Lab, state: S) -> S:
        """One stretch of training, and the decision that ends it."""
        ...

    def done(self, lab: Lab, state: S) -> str | None:
        """Why there is nothing left to do, else None."""
        ...

    def load(self, said: Mapping[str, Any]) -> S:
        """The state whose fields these are."""
        ...


@dataclass
class Lab:
    """One model on one device with its data and its budget, and which of the recipe's methods is at work."""

    model: nn.Module
    surgeon: Surgeon
    data: Data
    recipe: Recipe
    whole: Budget  # of the run
    device: torch.device
    tell: Callable[..., None]
    at: int = 0  # the method at work, of those in the recipe
    step: int = 0  # optimizer steps so far
    spent: int = 0  # MACs x training images so far (forward only)
    depths: dict[str, tuple[str, ...]] = field(default_factory=dict)  # children of the containers that were changed
    tensors: dict[str, Tensor] = field(default_factory=dict)  # what the method at work has learnt beside the model
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)  # what each method that is done spent and gained
    _stages: dict[tuple[str, ...] | None, tuple[Stage, ...]] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """What the method at work may use."""
        return self.whole.scaled(self.recipe.shares[self.at])

    @property
    def shape(self) -> Shape:
        """The shape of one input, [C, H, W], or of several."""
        return self.surgeon.graph.shape

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the surgeon keeps in step."""
        assert self.surgeon.optimizer is not None
        return self.surgeon.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.surgeon.optimizer = optimizer

    @property
    def widths(self) -> dict[str, int]:
        """The present width of every free space."""
        return self.surgeon.graph.widths

    @cached_property
    def task(self) -> Task:
        """What the model is trained for."""
        return task_of(self.recipe.train, self.data, self.recipe.folder)

    @property
    def precision(self) -> str:
        """fp32 or bf16: what training at the present size computes in."""
        return precision_of(self.recipe.train.precision, self.device, self.cost().macs)

    @property
    def layout(self) -> str:
        """channels_last or contiguous: how weights of the present widths lie in memory."""
        said = self.recipe.train.memory_format
        if said == "auto" and not self._layouts_are_free:
            return "contiguous"
        return memory_format_of(said, self.device, self.model)

    @cached_property
    def _layouts_are_free(self) -> bool:
        """Whether the model trains in either layout; widths do not change that, so it is tried once."""
        return runs_in_channels_last(self.model, self.shape, self.device)

    @cached_property
    def original(self) -> nn.Module:
        """The full network as its factory makes it: what new blocks are copied from."""
        said = self.recipe.model
        return construct(said.factory, said.args, self.recipe.folder)

    def stages(self, names: tuple[str, ...] | None) -> tuple[Stage, ...]:
        """The full network's stages, all or those of these names."""
        if names not in self._stages:
            self._stages[names] = find(self.original, self.shape, names)
        return self._stages[names]

    def cost(self) -> Cost:
        """The present cost, by formula; equal to a count of the model."""
        return self.surgeon.graph.price.cost(self.widths)

    def train(self, steps: int, lr: Callable[[int], float]) -> Trained:
        """Train for some optimizer steps; `lr` is asked with the number of the step since the start of the run."""
        result = train(
            self.model,
            self.data,
            self.optimizer,
            start=self.step,
            steps=steps,
            lr=lr,
            seed=self.recipe.seed,
            precision=self.precision,
            task=self.task,
            tell=lambda **numbers: self.tell("progress", **numbers),
        )
        self.step += steps
        self.spent += self.cost().macs * result.images
        return result

    def stretch(self, event: str, course: Course | Scratch, at: int, total: int, **told: Any) -> int:
        """Train up to the next checkpoint of a stage of `total` steps, `at` of which are done, and take a note.

        Returns the steps that are done then.
        """
        epoch = self.data.steps_per_epoch
        steps = min(total - at, self.recipe.checkpoint.steps(epoch))
        begin, peak = self.step - at, course.lr or self.recipe.train.lr
        trained = self.train(steps, lambda step: lr_at(course.schedule, peak, (step - begin) / total, course.warmup))
        at += steps
        self.note(event, epoch=at / epoch, loss=trained.loss, val=self.score().accuracy, **told)
        return at

    def score(self, split: str = "val") -> Score:
        """Accuracy and loss over a split, as training computes."""
        return score(self.model, self.data, split, precision=self.precision, task=self.task)

    def resize(self, widths: Mapping[str, int], columns: Columns = "zero") -> None:
        """Give spaces these widths: the first channels stay as they are, new ones come behind them."""
        step = self.step
        self.surgeon.resize(
            widths, columns=columns, seed=lambda name: seed_of(self.recipe.seed, f"new channels of {name}", step)
        )
        self.place()

    def narrow(self, keep: Mapping[str, Sequence[int]]) -> None:
        """Keep these channels (positions) of spaces."""
        for name, positions in keep.items():
            self.surgeon.narrow(name, positions)
        self.place()

    def arrange(self, depths: Depths, templates: Mapping[str, nn.Module] | None = None) -> list[str]:
        """Give containers these children (see `stages.arrange`); the paths of the new blocks, drawn anew.

        What a model's own new_block makes keeps the numbers that it got there; a copy gets those of `draw`.
        """
        torch.manual_seed(seed_of(self.recipe.seed, "new blocks", self.step))
        new = self.surgeon.arrange(depths, templates)
        if not callable(getattr(self.model, "new_block", None)):
            for path in new:
                draw(self.model.get_submodule(path))
        self.depths |= {path: tuple(names) for path, names in depths.items()}
        self.place()
        return new

    def cut(self, cuts: Cuts) -> None:
        """Put a network without these connections in the model's place; the method makes a new optimizer for it."""
        prune(self.surgeon, cuts)
        self.model = self.surgeon.model
        self.place()

    def refill(self) -> None:
        """Draw all weights anew."""
        place(self.model, torch.device("cpu"), "contiguous")  # numbers follow the memory: one seed, one network
        torch.manual_seed(seed_of(self.recipe.seed, "weights", self.step))
        draw(self.model)
        self.place()

    def note(self, event: str, **numbers: Any) -> None:
        """Write one line of history: what happened, after how many steps, at what cost, of what is allowed."""
        cost, method = self.cost(), self.recipe.methods[self.at].name
        counted = {"macs": cost.macs, "params": cost.params, "used": self.whole.utilisation(cost)}
        self.history.append({"event": event, "step": self.step, "method": method, **counted, **numbers})
        self.tell("note", **self.history[-1])

    def enter(self, at: int) -> None:
        """The recipe's method of this number goes to work."""
        self.at = at
        self.tell("method", settings=self.recipe.methods[at], share=self.recipe.shares[at])

    def leave(self, why: str) -> None:
        """The method at work is done: write down what it spent and gained."""
        cost = self.cost()
        self.steps.append(
            {
                "method": self.recipe.methods[self.at].name,
                "share": self.recipe.shares[self.at],
                "steps": self.step - sum(step["steps"] for step in self.steps),
                "macs_images": self.spent - sum(step["macs_images"] for step in self.steps),
                "cost": {"params": cost.params, "macs": cost.macs, "thop": cost.thop},
                "val": self.score().accuracy if len(self.recipe.methods) > 1 else None,
            }
        )
        self.tell("developed", why=why)

    def books(self) -> dict[str, Any]:
        """What a restart must know beside the tensors."""
        shape = {"widths": self.widths, "depths": self.depths, "cuts": dict(cuts_in(self.model))}
        counts = {"at": self.at, "step": self.step, "spent": self.spent}
        return {**shape, **counts, "history": self.history, "steps": self.steps}

    def reopen(self, books: Mapping[str, Any]) -> None:
        """Go on from the books of an earlier process, with a model that has its full width still.

        The widths are taken from the full network again and not read off the saved one, so that every channel has the
        same name and place as before. Raises UsageError where the saved network had other spaces.
        """
        if books["depths"]:
            self.arrange(books["depths"])
        if books["cuts"]:
            self.cut(books["cuts"])
        if odd := sorted(books["widths"].keys() ^ self.widths.keys()):
            raise UsageError(f"the model is not the one of the interrupted run: {odd[0]} is free in only one of them")
        self.resize(books["widths"])
        self.step, self.spent = books["step"], books["spent"]
        self.history, self.steps = list(books["history"]), list(books["steps"])
        self.enter(books["at"])

    def place(self) -> None:
        """Put the model and its optimizer's state on the device, in one memory layout; needed after every edit.

        The state takes its parameter's layout: sums over a filter must run in one order, or a resumed run would differ.
        """
        place(self.model, self.device, self.layout)
        for parameter, state in self.surgeon.optimizer.state.items() if self.surgeon.optimizer else ():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
