"""What a recipe would do, known in seconds and without training: what is free, what is frozen and why, the smallest
network, and whether the budget can be kept at all."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.budget.limits import Budget, Cost
from compress.budget.units import MEMORY, show
from compress.errors import Infeasible, UsageError
from compress.methods import METHODS
from compress.methods.adenel.method import AdeNeL
from compress.methods.autogrow.method import AutoGrow
from compress.methods.lwp.method import LWP
from compress.methods.lwp.settings import Lwp
from compress.methods.scratch.method import FromScratch
from compress.reading.graph import Graph
from compress.reading.inputs import Shape
from compress.reading.measure import measure
from compress.recipe import file as recipe
from compress.recipe.settings import Recipe
from compress.surgery.stages import find
from compress.surgery.structure import construct
from compress.surgery.weights import fill, read_weights
from compress.surgery.widths import Hold, Surgeon, survey
from compress.training.data import Data, load
from compress.training.lab import Method

# Of known sets a plan needs nothing but this: no download for a budget that cannot be kept.
SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashionmnist": (1, 28, 28),
    "svhn": (3, 32, 32),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
}


@dataclass(frozen=True, slots=True)
class Floor:
    """The smallest network that a step of a recipe can make, and what it may use."""

    method: str
    budget: Budget
    graph: Graph

    @property
    def cost(self) -> Cost:
        """What it costs."""
        return self.graph.price.cost(self.graph.widths)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before any training."""

    recipe: Recipe
    graph: Graph  # of the full network
    base: Cost  # the full network's
    first: Graph  # of the one that the first method starts from
    budget: Budget
    steps: tuple[Floor, ...]  # of each method in turn
    depths: Mapping[str, tuple[int, int, int]]  # blocks of the stages that can grow: full, first, smallest

    @property
    def smallest(self) -> Graph:
        """Of the smallest network that the methods can make."""
        return self.steps[-1].graph

    @property
    def floor(self) -> Cost:
        """The cost of the smallest network."""
        return self.steps[-1].cost

    @property
    def seed(self) -> Cost:
        """The cost of the network to start from."""
        return self.first.price.cost(self.first.widths)

    @property
    def remarks(self) -> dict[str, str]:
        """What is to be said of free spaces, by name: which of them a method does not judge."""
        growers = [method for method in methods_of(self.recipe) if isinstance(method, AdeNeL)]
        return {name: "adenel widens it only to fill the budget" for m in growers for name in m.unjudged(self.graph)}

    @property
    def feasible(self) -> bool:
        """Whether the smallest network keeps the budget, and that of every step its share."""
        return all(step.budget.holds(step.cost) for step in self.steps)

    def verdict(self) -> str:
        """One sentence: feasible or not, and by how much."""
        if not self.feasible:
            return f"infeasible: {self._why_not()}"
        used = self.budget.utilisation(self.floor)
        return f"feasible: the smallest network takes {used:.1%} of the budget"

    def refuse(self) -> None:
        """Raise Infeasible where even the smallest network exceeds the budget, with what holds it up."""
        if not self.feasible:
            raise Infeasible(f"The budget is below the floor: {self._why_not()}.")

    def _why_not(self) -> str:
        step = next(step for step in self.steps if not step.budget.holds(step.cost))
        cost, least = step.cost, step.graph
        over = [limit for limit in step.budget.hard if cost.of(limit.unit) > limit.limit]
        said = "; ".join(f"{limit.text} is less than {show(cost.of(limit.unit), limit.unit)}" for limit in over)
        spaces = sorted(self.graph.spaces.items(), key=lambda item: -item[1].width)
        now = {name: space.width for name, space in least.spaces.items()}
        held = [f"{name} ({s.width})" for name, s in spaces if now.get(name) == s.width > 1]
        kept = f"; what keeps its width: {', '.join(held[:4])}{', ...' * (len(held) > 4)}" if held else ""
        full = any(limit.unit == MEMORY for limit in over)
        peak = f" (most activations live at {least.price.peak(least.widths)})" if full else ""
        maker = step.method if len(self.steps) > 1 else "this recipe"
        return f"{said}, the smallest network that {maker} can make{peak}{kept}"


def plan(source: Path | str | Recipe, *, budget: str | None = None, overrides: Mapping[str, str] | None = None) -> Plan:
    """What a recipe would do: free and frozen channels with reasons, floor, base, budget and verdict; trains nothing.

    Raises UsageError for what cannot be read, traced or counted.
    """
    said = source if isinstance(source, Recipe) else recipe.read(source, overrides or {}, budget)
    shape = known_shape(said) or images(said, torch.device("cpu")).shape
    return draw_up(said, full_model(said), shape)


def full_model(said: Recipe) -> nn.Module:
    """The full network with the weights that the recipe names, else with those of its factory."""
    model = construct(said.model.factory, said.model.args, said.folder)
    if said.model.weights is not None and methods_of(said)[0].keeps_weights:  # else the plan refuses them
        path = said.folder / Path(said.model.weights).expanduser()
        fill(model, read_weights(path), exact=True)
    return model


def draw_up(said: Recipe, model: nn.Module, shape: Shape) -> Plan:
    """The plan of a recipe for a model that is built already."""
    methods = methods_of(said)
    _refuse_drawing_anew(said, methods, model)
    hold = held(said, model)
    graph, base = survey(model, shape, hold), measure(model, shape)
    budget = said.limits(base)
    full = Surgeon(model, graph, hold=hold)
    first, least = full.sketch(), full.sketch()
    methods[0].first(first)
    steps = []
    for settings, share, method in zip(said.methods, said.shares, methods, strict=True):
        if isinstance(method, LWP):
            method.refuse(budget, said.train.batch)
        method.smallest(least)
        if isinstance(method, AutoGrow):
            method.refuse(least, model)
        if not isinstance(method, FromScratch) or method is methods[-1]:  # what is only trained may be of any size
            steps.append(Floor(settings.name, budget.scaled(share), least.graph))
    names = [method.settings.stages for method in methods if isinstance(method, AutoGrow)]
    stages = {stage for some in names for stage in find(model, shape, some)}
    ordered = sorted(stages, key=lambda stage: stage.name)
    nets = (model, first.model, least.model)
    depths = {stage.name: (stage.depth(nets[0]), stage.depth(nets[1]), stage.depth(nets[2])) for stage in ordered}
    return Plan(said, graph, base, first.graph, budget, tuple(steps), depths)


def _refuse_drawing_anew(said: Recipe, methods: Sequence[Method[Any]], model: nn.Module) -> None:
    """Weights that somebody wants to keep must not be lost to a method that draws all of them."""
    retrained = [isinstance(settings, Lwp) and settings.retrain == "scratch" for settings in said.methods]
    anew = [not method.keeps_weights or again for method, again in zip(methods, retrained, strict=True)]
    if not any(anew):
        return
    name = said.methods[anew.index(True)].name
    if said.model.weights is not None and not methods[0].keeps_weights:
        raise UsageError(
            f"model.weights: {name} draws all weights anew; leave the key out, or write method: {{name: l1}}"
        )
    if still := [key for key, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise UsageError(
            f"{still[0]} cannot be trained (requires_grad is False), but {name} draws all weights anew; "
            "let the factory leave it trainable, or prune what it holds with method: {name: l1}"
        )


def held(said: Recipe, model: nn.Module) -> Hold | None:
    """What `include` and `exclude` keep as it is; None where they keep nothing.

    Raises UsageError for a pattern that matches no module.
    """
    include, exclude = said.model.include, said.model.exclude
    if include == ("*",) and not exclude:
        return None
    modules = [name for name, _ in model.named_modules() if name]
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(modules, pattern):
                near = difflib.get_close_matches(pattern, modules, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"they begin with {', '.join(modules[:3])}"
                raise UsageError(f"model.{key}: {pattern!r} matches no module of {said.model.factory}; {hint}")
    return lambda graph: _kept(graph, include, exclude)


def _kept(graph: Graph, include: Sequence[str], exclude: Sequence[str]) -> dict[str, str]:
    """The spaces of a graph that these patterns keep as they are, each with its reason."""
    kept = {}
    for name, space in graph.spaces.items():
        for tensor in dict.fromkeys(tensor for tensor, _ in space.producers):
            parts = tensor.split(".")[:-1]
            paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]  # a module holds its children
            if out := [p for p in exclude if any(fnmatch.fnmatchcase(path, p) for path in paths)]:
                kept[name] = f"model.exclude: {out[0]}"
            elif not any(fnmatch.fnmatchcase(path, p) for p in include for path in paths or [""]):
                kept.setdefault(name, "model.include names other modules")
    return kept


def methods_of(said: Recipe) -> list[Method[Any]]:
    """The methods that the recipe names, with their hyper-parameters."""
    return [METHODS[settings.name](settings, said, at) for at, settings in enumerate(said.methods)]


def known_shape(said: Recipe) -> Shape | None:
    """The shape of one input [C, H, W], or of each of several, where the recipe tells it without its images."""
    return said.model.input or SHAPES.get(said.data.source)


def images(said: Recipe, device: torch.device) -> Data:
    """The data that the recipe names."""
    return load(said.data, batch=said.train.batch, seed=said.seed, device=device, root=said.folder)
