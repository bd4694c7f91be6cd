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
from torch import nn

from compress.budget import Budget, Cost
from compress.data import Data, seed_of
from compress.errors import UsageError
from compress.graph import Graph
from compress.settings import Recipe
from compress.surgery import Columns, Surgeon
from compress.task import Task, task_of
from compress.trace import Shape
from compress.train import Score, Trained, memory_format_of, place, precision_of, runs_in_channels_last, score, train

S = TypeVar("S")


class Method(Protocol[S]):
    """Hyper-parameters as fields, state as a frozen dataclass of plain values, and no loop: `run` has the only one."""

    @property
    def keeps_weights(self) -> bool:
        """Whether it goes on from the weights that the model has; else it draws all of them anew."""
        ...

    def floor_widths(self, graph: Graph) -> dict[str, int]:
        """Widths of the smallest net that the method can make of a full one."""
        ...

    def seed_widths(self, graph: Graph) -> dict[str, int]:
        """Widths that it starts from, where the budget allows them."""
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
    """One model on one device with its data and its budget."""

    model: nn.Module
    surgeon: Surgeon
    data: Data
    recipe: Recipe
    budget: Budget
    device: torch.device
    tell: Callable[..., None]
    step: int = 0  # optimizer steps so far
    spent: int = 0  # MACs x training images so far (forward only)
    history: list[dict[str, Any]] = field(default_factory=list)

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

    def score(self, split: str = "val") -> Score:
        """Accuracy and loss over a split, as training computes."""
        return score(self.model, self.data, split, precision=self.precision, task=self.task)

    def resize(self, widths: Mapping[str, int], columns: Columns = "zero") -> None:
        """Give spaces these widths: the first channels stay as they are, new ones come behind them."""
        for name, width in widths.items():
            now = self.widths[name]
            if width > now:
                seed = seed_of(self.recipe.seed, f"new channels of {name}", self.step)
                self.surgeon.widen(name, width - now, columns=columns, seed=seed)
            elif width < now:
                self.surgeon.narrow(name, range(width))
        self.place()

    def narrow(self, keep: Mapping[str, Sequence[int]]) -> None:
        """Keep these channels (positions) of spaces."""
        for name, positions in keep.items():
            self.surgeon.narrow(name, positions)
        self.place()

    def refill(self) -> None:
        """Draw all weights anew: Kaiming-normal (fan-in, ReLU) for convolutions, each other layer's own way."""
        place(self.model, torch.device("cpu"), "contiguous")  # numbers follow the memory: one seed, one network
        torch.manual_seed(seed_of(self.recipe.seed, "weights", self.step))
        for module in self.model.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.place()

    def note(self, event: str, **numbers: Any) -> None:
        """Write one line of history: what happened, after how many steps, at what cost."""
        cost = self.cost()
        line = {"event": event, "step": self.step, "macs": cost.macs, "params": cost.params, **numbers}
        self.history.append(line)
        self.tell("note", **line)

    def books(self) -> dict[str, Any]:
        """What a restart must know beside the tensors."""
        return {"widths": self.widths, "step": self.step, "spent": self.spent, "history": self.history}

    def reopen(self, books: Mapping[str, Any]) -> None:
        """Go on from the books of an earlier process, with a model that has its full width still.

        The widths are taken from the full network again and not read off the saved one, so that every channel has the
        same name and place as before. Raises UsageError where the saved network had other spaces.
        """
        if odd := sorted(books["widths"].keys() ^ self.widths.keys()):
            raise UsageError(f"the model is not the one of the interrupted run: {odd[0]} is free in only one of them")
        self.resize(books["widths"])
        self.step, self.spent, self.history = books["step"], books["spent"], list(books["history"])

    def place(self) -> None:
        """Put the model and its optimizer's state on the device, in one memory layout; needed after every edit.

        The state takes its parameter's layout: sums over a filter must run in one order, or a resumed run would differ.
        """
        place(self.model, self.device, self.layout)
        for parameter, state in self.surgeon.optimizer.state.items() if self.surgeon.optimizer else ():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def sgd(lab: Lab) -> torch.optim.Optimizer:
    """Plain SGD over what can be trained, as the recipe's `train` says; vectors have no weight decay."""
    t = lab.recipe.train
    decay, plain = decayed(lab.model)
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": t.weight_decay}, {"params": plain}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=t.lr, momentum=t.momentum, nesterov=t.nesterov
    )


def decayed(model: nn.Module, apart: Sequence[nn.Parameter] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters with weight decay, those without): weights of two dimensions or more and the rest; not `apart`."""
    skip = {id(p) for p in apart}
    rest = [p for p in model.parameters() if id(p) not in skip]
    return [p for p in rest if p.dim() > 1], [p for p in rest if p.dim() <= 1]
