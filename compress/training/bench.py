"""What a run works at: one model on one device with its data and its budget, and the books.

Methods see it through `methods.protocol.Lab`, which is narrower: a method decides; the bench does, and keeps the books:
optimizer steps, train-cost, history. What must survive a restart is in `books()` and in the tensors of the model, the
optimizer and `learnt`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compress.budget.limits import Budget, Cost
from compress.errors import UsageError
from compress.reading.graph import Graph
from compress.reading.inputs import Shape
from compress.recipe import settings
from compress.recipe.settings import Recipe
from compress.recipe.step import Course
from compress.surgery.connections import Cuts, cuts_in, prune
from compress.surgery.stages import Depths, Stage, find
from compress.surgery.structure import construct
from compress.surgery.surgeon import Surgeon
from compress.surgery.tensors import Columns
from compress.training.average import Average
from compress.training.data import Data
from compress.training.draw import draw
from compress.training.events import Ended, Entered, Listener, Note, Noted
from compress.training.prepare import prepare
from compress.training.seeds import seed_of
from compress.training.task import Task, task_of
from compress.training.teacher import Teacher, teacher_of
from compress.training.train import (
    Loop,
    Score,
    Trained,
    lr_at,
    memory_format_of,
    place,
    precision_of,
    recalibrate,
    runs_in_channels_last,
    score,
    train,
)

T = TypeVar("T")
LOOK, LOOKED_AT = 2, 1024  # training batches, and validation images, that a trial sees; of a large net ...
TRIAL, FEW = 3 * 10**11, 128  # ... as many as so many MACs pay for, and no fewer than that
APART = 1.25  # how much more of the budget a grown net takes than the one that was kept before it


@dataclass
class Bench:
    """One model on one device with its data and its budget, and which of the recipe's methods is at work."""

    surgeon: Surgeon
    data: Data
    recipe: Recipe
    whole: Budget  # of the run
    device: torch.device
    listen: Listener
    at: int = 0  # the method at work, of those in the recipe
    step: int = 0  # optimizer steps so far
    spent: int = 0  # MACs x training images so far (forward only), a teacher's among them
    taught: int = 0  # those of the teacher
    depths: dict[str, tuple[str, ...]] = field(default_factory=dict)  # children of the containers that were changed
    learnt: dict[str, Tensor] = field(default_factory=dict)  # what the method at work has learnt beside the model
    average: Average = field(default_factory=lambda: Average(0.0))  # of the weights, within a stage of one shape
    history: list[Note] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)  # what each method that is done spent and gained
    shelve: Callable[[Bench], None] | None = None  # keeps the network as it is now, on its way to a larger one
    kept: dict[str, float] = field(default_factory=dict)  # at which steps that was, and what of the budget it took
    grown: int = 0  # optimizer steps at the last growth
    _stages: dict[tuple[str, ...] | None, tuple[Stage, ...]] = field(default_factory=dict)

    # what there is

    @property
    def model(self) -> nn.Module:
        """The live network."""
        return self.surgeon.model

    @property
    def graph(self) -> Graph:
        """What the network looks like now."""
        return self.surgeon.graph

    @property
    def shape(self) -> Shape:
        """The shape of one input, [C, H, W], or of several."""
        return self.graph.shape

    @property
    def widths(self) -> dict[str, int]:
        """The present width of every free space."""
        return self.graph.widths

    @property
    def budget(self) -> Budget:
        """What the method at work may use."""
        return self.whole.scaled(self.recipe.shares[self.at])

    def cost(self) -> Cost:
        """The present cost, by formula; equal to a count of the model."""
        return self.graph.price.cost(self.widths)

    @property
    def keys(self) -> settings.Train:
        """How the recipe trains."""
        return self.recipe.train

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.recipe.seed

    @property
    def epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        return self.data.steps_per_epoch

    @property
    def pace(self) -> int:
        """Optimizer steps between two checkpoints."""
        return self.recipe.checkpoint.steps(self.epoch)

    @property
    def images(self) -> Mapping[str, int]:
        """How many there are of "train", "val" and "test"."""
        return self.data.counts

    @property
    def share(self) -> float:
        """The part of all training images that is used (data.train)."""
        return self.data.share

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the surgeon keeps in step."""
        assert self.surgeon.optimizer is not None
        return self.surgeon.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.surgeon.optimizer = optimizer

    @cached_property
    def task(self) -> Task:
        """What the model is trained for, and by whom."""
        return replace(task_of(self.recipe.train, self.data, self.recipe.folder), teacher=self.teacher)

    @cached_property
    def teacher(self) -> Teacher | None:
        """Whom the model learns from beside the labels; first asked for while it is the full network."""
        return teacher_of(self.recipe, self.model, self.data, self.device)

    @property
    def precision(self) -> str:
        """fp32 or bf16: what training at the present size computes in."""
        return precision_of(self.recipe.train.precision, self.device, self.cost().macs)

    @property
    def layout(self) -> str:
        """channels_last or contiguous: how weights of the present widths lie in memory."""
        asked = self.recipe.train.memory_format
        if asked == "auto" and not self._layouts_are_free:
            return "contiguous"
        return memory_format_of(asked, self.device, self.model)

    @cached_property
    def _layouts_are_free(self) -> bool:
        """Whether the model trains in either layout; widths do not change that, so it is tried once."""
        return runs_in_channels_last(self.model, self.shape, self.device)

    @cached_property
    def original(self) -> nn.Module:
        """The full network as its factory makes it: what new blocks are copied from."""
        model = self.recipe.model
        return construct(model.factory, model.args, self.recipe.folder)

    def stages(self, names: tuple[str, ...] | None) -> tuple[Stage, ...]:
        """The full network's stages, all or those of these names."""
        if names not in self._stages:
            self._stages[names] = find(self.original, self.shape, names)
        return self._stages[names]

    def sketch(self) -> Surgeon:
        """A copy of the network without numbers, and its graph: what an edit would come to, before it is done."""
        return self.surgeon.sketch()

    # training and scoring

    def train(self, steps: int, lr: Callable[[int], float]) -> Trained:
        """Train for some optimizer steps; `lr` is asked with the number of the step since the start of the run."""
        return self.loop(steps, lambda loop: train(self.model, loop, lr))

    def last(self, epochs: float, at: int) -> int:
        """Optimizer steps of a method's last stage, `at` of which are done: of so many epochs, or, where the recipe
        states the train-cost and no method follows, as many as what is left of it pays for.
        """
        whole, each = self.keys.cost, (self.cost().macs + (self.teacher.macs if self.teacher else 0)) * self.data.batch
        if whole is None or self.at + 1 < len(self.recipe.methods):
            return round(epochs * self.epoch)
        return max(1, int((whole - self.spent) // each) + at)

    def loop(self, steps: int, run: Callable[[Loop], T]) -> T:
        """Let `run` train for some optimizer steps, on the images that `train` would have trained on."""
        before = self.teacher.images if self.teacher else 0
        loop = Loop(self.data, self.optimizer, self.step, steps, self.seed, self.precision, self.task, self.listen)
        outcome = run(loop)
        self.step += steps
        self.spent += self.cost().macs * steps * self.data.batch
        if self.teacher:
            asked = self.teacher.macs * (self.teacher.images - before)
            self.spent, self.taught = self.spent + asked, self.taught + asked
        return outcome

    def stretch(self, event: str, course: Course, at: int, total: int, **numbers: Any) -> int:
        """Train up to the next checkpoint of a stage of `total` steps, `at` of which are done, and take a note.

        Returns the steps that are done then. With `train.ema` the weights are averaged: the score is the average's, and
        the stage ends with it.
        """
        steps = min(total - at, self.pace)
        begin, peak = self.step - at, course.lr or self.keys.lr
        average = self.average = Average(self.keys.ema, self.average.tensors if at else None, done=at)

        def rate(step: int) -> float:
            return lr_at(course.schedule, peak, (step - begin) / total, course.warmup)

        trained = self.loop(steps, lambda loop: train(self.model, replace(loop, average=average), rate))
        at += steps
        if at >= total:
            average.settle(self.model)
        with average.in_place(self.model):
            val = self.score().accuracy
        self.note(event, epoch=at / self.epoch, loss=trained.loss, val=val, **numbers)
        return at

    def score(self, split: str = "val") -> Score:
        """Accuracy and loss over a split, as training computes."""
        return score(self.model, self.data, split, precision=self.precision, task=self.task)

    def trial(self, keep: Mapping[str, Sequence[int]]) -> Score:
        """What a copy that keeps only these channels does on some validation images, recalibrated; at its cost."""
        other = Surgeon(copy.deepcopy(self.model), self.graph)
        for name, positions in keep.items():
            other.narrow(name, positions)
        place(other.model, self.device, self.layout)
        recalibrate(other.model, self.data, LOOK)
        images = max(FEW, min(LOOKED_AT, TRIAL // max(1, self.cost().macs)))
        seen = score(other.model, self.data, "val", self.precision, self.task, most=images)
        self.spent += other.graph.price.cost(other.graph.widths).macs * (LOOK * self.data.batch + seen.images)
        return seen

    def recalibrate(self, batches: int) -> None:
        """Estimate the batch norms' running statistics anew, on this many training batches."""
        recalibrate(self.model, self.data, batches)

    # edits

    def resize(self, widths: Mapping[str, int], columns: Columns = "zero") -> None:
        """Give spaces these widths: the first channels stay as they are, new ones come behind them."""
        step, now = self.step, self.widths
        self._keep(any(width > now[name] for name, width in widths.items()))
        self.surgeon.resize(
            widths, columns=columns, seed=lambda name: seed_of(self.seed, f"new channels of {name}", step)
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
        self._keep(any(len(names) > self._blocks(path) for path, names in depths.items()))
        torch.manual_seed(seed_of(self.seed, "new blocks", self.step))
        new = self.surgeon.arrange(depths, templates)
        if not callable(getattr(self.model, "new_block", None)):
            for path in new:
                draw(self.model.get_submodule(path))
        self.depths |= {path: tuple(names) for path, names in depths.items()}
        self.place()
        return new

    def _blocks(self, container: str) -> int:
        return len([*self.model.get_submodule(container).children()])

    def _keep(self, grows: bool) -> None:
        """Before an edit: where it makes a network larger that was trained at its size, that one is kept."""
        if grows and self.shelve and self.step > self.grown:
            used = self.whole.utilisation(self.cost())
            if used >= APART * max(self.kept.values(), default=0):
                self.shelve(self)
                self.kept[str(self.step)] = used
        self.grown = self.step if grows else self.grown

    def cut(self, cuts: Cuts) -> None:
        """Put a network without these connections in the model's place; the method makes a new optimizer for it."""
        prune(self.surgeon, cuts)
        self.place()

    def refill(self) -> None:
        """Draw all weights anew, and let the model look at training images where it wants to."""
        place(self.model, torch.device("cpu"), "contiguous")  # numbers follow the memory: one seed, one network
        torch.manual_seed(seed_of(self.seed, "weights", self.step))
        draw(self.model)
        self.prepare()

    def prepare(self) -> None:
        """Show training images to a model that has a `prepare` of its own, on the CPU, where they are drawn."""
        place(self.model, torch.device("cpu"), "contiguous")
        torch.manual_seed(seed_of(self.seed, "prepare", self.step))
        prepare(self.model, self.data, self.recipe.model.factory)
        self.place()

    def place(self) -> None:
        """Put the model and its optimizer's state on the device, in one memory layout; needed after every edit.

        The state takes its parameter's layout: sums over a filter must run in one order, or a resumed run would differ.
        """
        place(self.model, self.device, self.layout)
        for parameter, state in self.surgeon.optimizer.state.items() if self.surgeon.optimizer else ():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    # the books

    def note(self, event: str, **numbers: Any) -> None:
        """Write one line of history: what happened, after how many steps, at what cost, of what is allowed."""
        cost = self.cost()
        name, used = self.recipe.methods[self.at].name, self.whole.utilisation(cost)
        self.history.append(Note(event, self.step, name, cost.macs, cost.params, used, numbers))
        self.listen(Noted(self.history[-1]))

    def scored(self, event: str, **numbers: Any) -> None:
        """Write one with the accuracies on validation and test images, as far as there are any."""
        splits = [split for split in ("val", "test") if self.data.counts[split]]
        self.note(event, **{split: self.score(split).accuracy for split in splits}, **numbers)

    def enter(self, at: int) -> None:
        """The recipe's method of this number goes to work."""
        self.at = at
        self.listen(Entered(self.recipe.methods[at], self.recipe.shares[at]))

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
        self.learnt = {}
        self.listen(Ended(why))

    def books(self) -> dict[str, Any]:
        """What a restart must know beside the tensors."""
        shape = {"widths": self.widths, "depths": self.depths, "cuts": dict(cuts_in(self.model))}
        counts: dict[str, Any] = {"at": self.at, "step": self.step, "spent": self.spent, "taught": self.taught}
        counts |= {"kept": self.kept, "grown": self.grown}
        return {**shape, **counts, "history": [note.row for note in self.history], "steps": self.steps}

    def reopen(self, books: Mapping[str, Any]) -> None:
        """Go on from the books of an earlier process, with a model that has its full width still.

        The widths are taken from the full network again and not read off the saved one, so that every channel has the
        same name and place as before. Raises UsageError where the saved network had other spaces.
        """
        if books["depths"]:
            self.arrange(books["depths"])
        if books["cuts"] and {layer: list(read) for layer, read in cuts_in(self.model).items()} != books["cuts"]:
            self.cut(books["cuts"])
        if odd := sorted(books["widths"].keys() ^ self.widths.keys()):
            raise UsageError(f"the model is not the one of the interrupted run: {odd[0]} is free in only one of them")
        self.resize(books["widths"])
        self.step, self.spent, self.taught = books["step"], books["spent"], books["taught"]
        self.kept, self.grown = books["kept"], books["grown"]
        self.history, self.steps = [Note.of_row(row) for row in books["history"]], list(books["steps"])
        self.enter(books["at"])
