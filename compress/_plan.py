"""What a recipe would do, known in seconds and without training: what is free, what is frozen and why, the smallest
network, and whether the budget can be kept at all."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.budget.limits import Budget, Cost
from compress.budget.remarks import outgrowing
from compress.budget.units import MEMORY, show
from compress.errors import Infeasible, UsageError
from compress.methods.make import method_of
from compress.methods.protocol import Around, Method
from compress.reading.count import refuse_unknown
from compress.reading.ghost import ghost
from compress.reading.graph import Graph
from compress.reading.inputs import Shape, blanks
from compress.reading.measure import measure
from compress.reading.trace import attempted
from compress.recipe.file import read
from compress.recipe.settings import Model, Recipe
from compress.surgery.plain import unnormed
from compress.surgery.structure import Structure, construct, locate
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import Hold, survey
from compress.surgery.weights import fill, read_weights
from compress.training.data import Data, load
from compress.training.teacher import RUN, refuse_unusable

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
        """What methods have to say of free spaces, by name."""
        remarks = [method.remarks(self.graph) for method in methods_of(self.recipe)]
        return {name: remark for each in remarks for name, remark in each.items()}

    @property
    def landing(self) -> dict[str, int] | None:
        """The widths that the only method, or one behind training alone, will end with, where that is known before."""
        *before, last = methods_of(self.recipe)
        if not self.feasible or not all(method.only_trains for method in before):
            return None
        return last.lands(self.graph, self.budget)

    @property
    def advice(self) -> str | None:
        """What somebody should know who is about to train a network and then to narrow it."""
        widths, steps = self.landing, self.recipe.methods
        spent = sum(step.last_epochs for step in steps[:-1]) * self.base.macs
        if widths is None or not spent:
            return None
        macs = self.graph.price.cost(widths).macs
        return (
            f"the same net from scratch: this train-cost would train the narrow net alone for "
            f"{steps[-1].last_epochs + spent / max(macs, 1):,.0f} epochs from new weights (method: uniform), which on "
            "small nets was 4 points better; narrowing pays for a network that is trained already"
        )

    @property
    def outgrows(self) -> str | None:
        """What somebody should know whose layers may become wider than the full net's."""
        pairs = zip(self.recipe.methods, methods_of(self.recipe), strict=True)
        growers = [settings for settings, method in pairs if method.widens]
        if not growers or not self.feasible:
            return None
        bounded = "max_width" in type(growers[0]).model_fields
        cure = "; method.max_width: 1 keeps layers within its widths" if bounded else ""
        return outgrowing(growers[0].name, self.budget, self.base, cure)

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
        excess = "; ".join(f"{limit.text} is less than {show(cost.of(limit.unit), limit.unit)}" for limit in over)
        spaces = sorted(self.graph.spaces.items(), key=lambda item: -item[1].width)
        now = {name: space.width for name, space in least.spaces.items()}
        held = [f"{name} ({s.width})" for name, s in spaces if now.get(name) == s.width > 1]
        kept = f"; what keeps its width: {', '.join(held[:4])}{', ...' * (len(held) > 4)}" if held else ""
        full = any(limit.unit == MEMORY for limit in over)
        peak = f" (most activations live at {least.price.peak(least.widths)})" if full else ""
        maker = step.method if len(self.steps) > 1 else "this recipe"
        return f"{excess}, the smallest network that {maker} can make{peak}{kept}"


def plan(source: Path | str | Recipe, *, budget: str | None = None, overrides: Mapping[str, str] | None = None) -> Plan:
    """What a recipe would do: free and frozen channels with reasons, floor, base, budget and verdict; trains nothing.

    Raises UsageError for what cannot be read, traced or counted, the model as well as a teacher.
    """
    recipe = source if isinstance(source, Recipe) else read(source, overrides or {}, budget)
    for key in ("loss", "metric", "step"):
        if (path := getattr(recipe.train, key)) is not None:
            locate(path, recipe.folder, f"train.{key}")
    shape = known_shape(recipe) or images(recipe, torch.device("cpu")).shape
    refuse_unusable(recipe, shape)
    return draw_up(recipe, full_model(recipe), shape)


def full_model(recipe: Recipe) -> nn.Module:
    """The full network with the weights that the recipe names, else with those of its factory; of weight norms, their
    product.
    """
    said, folder = recipe.model, recipe.folder
    if said.weights is None or not methods_of(recipe)[0].keeps_weights:  # then the plan refuses them
        return unnormed(_made(said, folder))
    path, start = folder / Path(said.weights).expanduser(), start_of(recipe)
    if start is None:
        model = _made(said, folder)
        fill(model, read_weights(path, said.weights_key), exact=True)
    else:
        model = start.build(locate(said.factory, folder))
        fill(model, read_weights(path / RUN), exact=True)
    return unnormed(model)


def _made(said: Model, folder: Path) -> nn.Module:
    """What the factory returns; raises UsageError where that has no numbers."""
    model = construct(said.factory, said.args, folder)
    for tensor, held in model.named_parameters():
        if held.is_meta:
            raise UsageError(
                f"model.factory: {said.factory} returns tensors without numbers (device meta), as {tensor}; make them "
                "on the CPU"
            )
    return model


def start_of(recipe: Recipe) -> Structure | None:
    """The network of the finished run that a recipe goes on from, where it does.

    Raises UsageError where its factory was called with other arguments.
    """
    path = recipe.folder / Path(recipe.model.weights or "none").expanduser()
    if recipe.model.weights is None or not path.is_dir():
        return None
    structure = Structure.from_file(path / RUN)
    if dict(structure.args) != dict(recipe.model.args):
        raise UsageError(
            f"model.args: the network in {recipe.model.weights} was made with {dict(structure.args)}, and not with "
            f"{dict(recipe.model.args)}; write model: {{from: {recipe.model.weights}}}"
        )
    return structure


def draw_up(recipe: Recipe, model: nn.Module, shape: Shape) -> Plan:
    """The plan of a recipe for a model that is built already."""
    methods = methods_of(recipe)
    _refuse_weights(recipe, methods, model)
    _refuse_drop(recipe, methods)
    if recipe.train.batch == 1:
        _refuse_lonely(model, shape)
    hold = held(recipe, model)
    graph, base = survey(model, shape, hold), measure(model, shape, lenient=True)
    graph, base = _sized(recipe, model, graph, base)
    budget = recipe.limits(base)
    refuse_uncounted(recipe, graph, budget)
    full = Surgeon(model, graph, hold=hold)
    first, least = full.sketch(), full.sketch()
    methods[0].first(first)
    steps = []
    for settings, share, method in zip(recipe.methods, recipe.shares, methods, strict=True):
        method.smallest(least)
        method.check(budget, recipe.train.batch, least, model)
        if not method.only_trains or method is methods[-1]:
            steps.append(Floor(settings.name, budget.scaled(share), least.graph))
    stages = {stage for method in methods for stage in method.deepens(model, shape)}
    nets = (model, first.model, least.model)
    depths = {
        stage.name: (stage.depth(nets[0]), stage.depth(nets[1]), stage.depth(nets[2]))
        for stage in sorted(stages, key=lambda stage: stage.name)
    }
    return Plan(recipe, graph, base, first.graph, budget, tuple(steps), depths)


def _sized(recipe: Recipe, model: nn.Module, graph: Graph, base: Cost) -> tuple[Graph, Cost]:
    """The graph and the cost of the full network with the bytes of its file, where a budget limits them."""
    budget = recipe.limits(base)
    if not budget.limits_file:
        return graph, base
    from compress.export.size import overstated  # which takes a second, and few budgets ask for it

    frame = not all(method.keeps_operators for method in methods_of(recipe))
    baked = recipe.export.bake_preprocessing
    spare = overstated(model, graph.shape, base, budget, baked=baked, frame=frame)
    return graph.spared(spare), replace(base, bytes=base.bytes - spare)


def refuse_uncounted(recipe: Recipe, graph: Graph, budget: Budget) -> None:
    """Limits that say nothing about an operator of unknown cost hold beside it; others where the recipe permits it.

    Raises UsageError where neither is so, and for a permission that nothing needs.
    """
    unknown, said = graph.uncounted, recipe.model.uncounted
    if needless := [name for name in said if name not in unknown]:
        known = f"those are {', '.join(unknown)}" if unknown else "there are none"
        raise UsageError(f"model.uncounted: {needless[0]} is no operator of unknown cost of the model; {known}")
    limits = [limit.text for limit in budget.limits if limit.unit in ("MACs", "FLOPs", "FLOPs@2", MEMORY)]
    if limits:
        refuse_unknown({name: where for name, where in unknown.items() if name not in said}, ", ".join(limits))


def _refuse_weights(recipe: Recipe, methods: Sequence[Method[Any]], model: nn.Module) -> None:
    """Some weights must be free to be trained, and those of a file must not be lost to a method that draws anew."""
    still = [not parameter.requires_grad for parameter in model.parameters()]
    if still and all(still):
        raise UsageError(
            f"Nothing of the model can be trained: requires_grad is False everywhere; let {recipe.model.factory} leave "
            "some of it trainable"
        )
    if recipe.model.weights is not None and not methods[0].keeps_weights:
        raise UsageError(
            f"model.weights: {recipe.methods[0].name} draws all weights anew; leave the key out, or write method: "
            "{name: l1}"
        )


def _refuse_lonely(model: nn.Module, shape: Shape) -> None:
    """Raise UsageError where a model cannot train on one image alone, as a batch norm of one value a channel cannot."""
    _, why = attempted(ghost(model).train(), blanks(model, shape))
    if why is not None and "more than 1 value per channel" in why:
        raise UsageError(f"train.batch: 1 is too small for the model's batch norms ({why}); write 2 or more")


def _refuse_drop(recipe: Recipe, methods: Sequence[Method[Any]]) -> None:
    """What may be lost is said of a network that is narrowed, and of none that grows from newly drawn weights."""
    narrows = next((at for at, method in enumerate(methods) if not method.only_trains), 0)
    if recipe.require and recipe.require.max_drop is not None and not methods[narrows].keeps_weights:
        raise UsageError(
            f"require.max_drop: {recipe.methods[narrows].name} draws all weights anew, so there is no uncut network to "
            "compare with; write require.val_accuracy, or val_score where the recipe has a train.metric"
        )


def held(recipe: Recipe, model: nn.Module) -> Hold | None:
    """What `include` and `exclude` keep as it is; None where they keep nothing.

    Raises UsageError for a pattern that matches no module.
    """
    include, exclude = recipe.model.include, recipe.model.exclude
    if include == ("*",) and not exclude:
        return None
    modules = [name for name, _ in model.named_modules() if name]
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(modules, pattern):
                near = difflib.get_close_matches(pattern, modules, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"they begin with {', '.join(modules[:3])}"
                raise UsageError(f"model.{key}: {pattern!r} matches no module of {recipe.model.factory}; {hint}")
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


def methods_of(recipe: Recipe) -> list[Method[Any]]:
    """The methods that the recipe names, with their hyper-parameters."""
    weights = recipe.model.weights is not None
    return [
        method_of(step, Around(recipe.align, after=at > 0, trained=at > 0 or weights, folder=recipe.folder))
        for at, step in enumerate(recipe.methods)
    ]


def known_shape(recipe: Recipe) -> Shape | None:
    """The shape of one input [C, H, W], or of each of several, where the recipe tells it without its images."""
    return recipe.model.input or SHAPES.get(recipe.data.source)


def images(recipe: Recipe, device: torch.device) -> Data:
    """The data that the recipe names."""
    return load(
        recipe.data,
        batch=recipe.train.batch,
        seed=recipe.seed,
        device=device,
        root=recipe.folder,
        targets=recipe.train.loss is not None or recipe.train.step is not None,
    )
