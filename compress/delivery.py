"""From a trained network to its files: finalize, score, export, read back, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.budget.limits import Budget, Cost
from compress.errors import ArtifactError, UsageError, one_line
from compress.export import artifact, picture
from compress.export.onnx.shapes import first_line
from compress.export.page import write_report
from compress.export.parts import Costs, Dataset, Environment, Preprocessing, SpaceRow, portable
from compress.export.report import SCHEMA_VERSION, UNWRITTEN, Accuracy, Origin, Report, TrainCost, judged
from compress.export.seal import REPORT, facts
from compress.export.translate import to_program
from compress.export.verify import digest
from compress.reading.graph import Graph
from compress.reading.inputs import arguments, each, noise
from compress.reading.measure import unseen
from compress.recipe import file as recipes
from compress.recipe.paths import own_files
from compress.recipe.settings import Recipe
from compress.surgery.finalize import Compact, finalize
from compress.surgery.plain import plain
from compress.surgery.stages import Depths
from compress.surgery.structure import Structure
from compress.training import train
from compress.training.data import Data
from compress.training.events import Doing, Listener, Warned
from compress.training.task import task_of

COMPANY = 1e-3  # of the largest output: what other images in the batch may change, far above rounding
IMAGES = 256  # of the validation set: every exported file is run on them in a process of its own


@dataclass(frozen=True, slots=True)
class Story:
    """How a network came to be: what its report tells beside what is learnt here."""

    full: Graph  # of the full network
    base: Cost  # its cost
    widths: Mapping[str, int]  # of all spaces now, frozen ones too
    command: str
    planned: Cost | None = None  # what the network must cost where nothing is removed
    train_cost: TrainCost | None = None  # None: trained elsewhere
    history: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()  # what each of the recipe's methods spent and gained
    depths: Depths = field(default_factory=dict)  # children of the containers in which blocks were added or left out
    notes: Sequence[str] = ()
    uncut: float | None = None  # the score on validation images of the network before anything was cut of it
    resumed: int | None = None  # the optimizer step that an interrupted run went on from


@dataclass(frozen=True, slots=True)
class Finished:
    """A network that is trained, and what it was trained by."""

    model: nn.Module
    recipe: Recipe
    data: Data
    budget: Budget
    story: Story


@torch.no_grad()
def check_output(model: nn.Module, data: Data) -> None:
    """Raise UsageError where the model does not return one tensor, of logits [N, classes or more] if there are any,
    where an image's output is not its own, or where it could not be exported later.
    """
    trained = model.training
    two = noise(model.eval(), data.shape, 2)
    try:
        out, both = model(*(x[:1] for x in two)), model(*two)
    except Exception as error:
        raise UsageError(f"the model cannot be run on one input, or on two together ({one_line(error)})") from error
    finally:
        model.train(trained)
    one = isinstance(out, torch.Tensor) and out.shape[:1] == (1,)
    if one and (not data.classes or (out.dim() == 2 and out.shape[1] >= len(data.classes))):
        _refuse_company(model, out.double(), both[:1].double())
        return _refuse_untraceable(model, two)
    returned = list(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
    if not data.classes:
        raise UsageError(f"the model's output is {returned} for one image; it must be one tensor, [1, ...]")
    raise UsageError(
        f"the model's output is {returned} for one image, but {data.name} has {len(data.classes)} classes; "
        f"it must be one tensor of logits, [1, {len(data.classes)}]"
    )


def _refuse_company(model: nn.Module, alone: torch.Tensor, beside: torch.Tensor) -> None:
    """Raise UsageError where an image's output in eval mode is another one when a second image stands beside it."""
    if not float((alone - beside).abs().max()) > COMPANY * float(alone.abs().max()):
        return
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    why = (
        f": {norms[0]} has no running statistics; build it with track_running_stats=True" if norms else ", or by chance"
    )
    raise UsageError(f"in eval mode the model's output for an image changes with the rest of its batch{why}")


def _refuse_untraceable(model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Said before anything is trained, in a second: what cannot be traced now cannot be exported then."""
    try:
        to_program(plain(model), *inputs)
    except ArtifactError as error:
        raise UsageError(str(error)) from error


def signer(key: Path | str | None) -> Callable[[Path], None]:
    """Return what signs a folder with a private key; raises UsageError where the key cannot be used."""
    if key is None:
        return lambda folder: None
    from compress.export import sign

    read = sign.private_key(key)
    return lambda folder: sign.sign(folder, read)


def deliver(finished: Finished, folder: Path, clock: Callable[[], float], listen: Listener) -> Report:
    """Write all files of a finished network into an empty folder; its report. `clock` gives the seconds so far.

    The test set is looked at here, once. Raises ArtifactError where a file does not compute what the network does.
    """
    recipe, data, story = finished.recipe, finished.data, finished.story
    listen(Doing("finalizing: masked channels cut, equal outputs, counted again"))
    compact = _finalized(finished)
    removed = _removed(compact, story)
    for note in (*story.notes, *removed):
        listen(Warned(note))
    accuracy = _accuracy(compact, finished)
    listen(Doing("exporting: safetensors, ONNX and torch programs, each read back in a fresh process"))
    origin = _origin(finished, compact)
    written = artifact.write(
        compact,
        folder,
        budget=finished.budget,
        base=story.base,
        images=data.raw("val", IMAGES),
        preprocessing=preprocessing_of(data, baked=recipe.export.bake_preprocessing),
        recipe_text=recipes.dump(recipe),
        facts=facts(origin.plain() | {"accuracy": accuracy.plain()}),
        source=recipe.folder,
        lenient=bool(recipe.model.uncounted),
    )
    left_out = [
        f"{name} (in {where or 'forward()'}) has no rule and counts as nothing: MACs and FLOPs leave it out"
        for name, where in story.full.uncounted.items()
    ]
    others = unseen(compact.model, data.shape)
    notes = [*_lineage(recipe), *story.notes, *left_out, *removed, *story.full.notes, *others, *written.notes]
    report = _report(finished, origin, accuracy, written, notes=notes, seconds=clock())
    notes += illustrate(report, folder / picture.PICTURE)
    return write_report(report.model_copy(update={"notes": tuple(notes)}), folder)


def preprocessing_of(data: Data, *, baked: bool) -> Preprocessing:
    """What the files say of how images of this data become inputs."""
    return Preprocessing.of_inputs(
        each(data.shape),
        mean=data.mean,
        std=data.std,
        classes=data.classes,
        baked=baked,
        pixels=data.scale == 255,
        colours=data.colours,
        resized=data.resized,
    )


def illustrate(report: Report, path: Path) -> list[str]:
    """Draw a report's history, if there is one; why it is left out: a convenience, for which no run may fail."""
    try:
        picture.draw_history(report, path)
    except Exception as error:
        path.unlink(missing_ok=True)
        why = portable(f"{type(error).__name__}: {first_line(error)}")
        return [f"{path.name} is left out: it could not be drawn ({why})"]
    return []


def _finalized(finished: Finished) -> Compact:
    """The compact network; raises ArtifactError where it costs something else than was planned."""
    data, story, model = finished.data, finished.story, finished.recipe.model
    validation = (tuple(part.to("cpu") for part in arguments(x)) for x, _ in data.split("val"))
    structure = Structure(model.factory, model.args, depths=story.depths)
    compact = finalize(finished.model, data.shape, structure, validation, top1=bool(data.classes))
    cost, planned = compact.cost, story.planned
    if planned and not compact.removed and (cost.params, cost.macs) != (planned.params, planned.macs):
        raise ArtifactError(f"the finished network costs {cost}, but was planned to cost {planned}")
    return compact


def _removed(compact: Compact, story: Story) -> list[str]:
    """Say what was cut of a network in which everything was to stay."""
    if not (story.planned and compact.removed):
        return []
    count, where = sum(compact.removed.values()), ", ".join(compact.removed)
    return [f"{count} channels that compute nothing were cut, of {where}"]


def _accuracy(compact: Compact, finished: Finished) -> Accuracy:
    """Score the compact network where it was trained, and bring it back to the CPU."""
    recipe, data = finished.recipe, finished.data
    network = compact.model.to(data.device)
    task = task_of(recipe.train, data, recipe.folder)
    splits = [split for split in ("val", "test") if data.counts[split]]
    scores = {split: train.score(network, data, split, task=task).accuracy for split in splits}
    network.to("cpu")
    required = recipe.require.bound(finished.story.uncut, recipe.train.sign) if recipe.require else None
    if required is not None and recipe.train.metric is None:
        required = max(required, 0.0)  # a network that starts below what it may lose
    return Accuracy.of(
        {
            "metric": task.name,
            "better": recipe.train.metric_better,
            "val": scores["val"],
            "test": scores.get("test"),
            "required": required,
        }
    )


def _origin(finished: Finished, compact: Compact) -> Origin:
    """How the network came to be, which is known before its files are written: model.onnx seals it."""
    recipe, data, story = finished.recipe, finished.data, finished.story
    return Origin.of(
        {
            "train_cost": story.train_cost,
            "drift": compact.drift,
            "spaces": _space_rows(story, compact.removed),
            "steps": story.steps,
            "history": story.history,
            "seeds": {"seed": recipe.seed},
            "data": Dataset(name=data.name, counts=dict(data.counts), digest=data.digest),
        }
        | ({"code": code} if (code := _code(recipe)) else {})
    )


def _report(
    finished: Finished,
    origin: Origin,
    accuracy: Accuracy,
    written: artifact.Written,
    *,
    notes: Sequence[str],
    seconds: float,
) -> Report:
    data, story = finished.data, finished.story
    outcome, landing = judged(written.rows, accuracy)
    return Report.of(
        origin.plain()
        | {
            "schema_version": SCHEMA_VERSION,
            "verdict": outcome,
            "budget": written.rows,
            "landing": landing,
            "cost": Costs.of_cost(written.cost),
            "base": Costs.of_cost(story.base),
            "accuracy": accuracy,
            "parity": written.parity,
            "preprocessing": written.preprocessing,
            "environment": Environment.here(device=str(data.device), threads=torch.get_num_threads()),
            "command": story.command,
            "resumed_from": story.resumed,
            "seconds": seconds,
            "notes": notes,
            "uncounted": written.uncounted,
            **UNWRITTEN,
        }
    )


def _lineage(recipe: Recipe) -> list[str]:
    """What is to be told of the finished run that a recipe goes on from."""
    place = recipe.folder / Path(recipe.model.weights or "none").expanduser()
    if recipe.model.weights is None or not place.is_dir():
        return []
    before = Report.read(place / REPORT)
    made = ", ".join(step.method for step in before.steps) or "another tool"
    cost = f"{before.train_cost.macs_images:.3g} MACs x images" if before.train_cost else "a cost that is not known"
    return [
        f"it goes on from {portable(recipe.model.weights)}, made by {made} ({before.verdict.text}), whose training, "
        f"{cost}, is not in this train-cost"
    ]


def _code(recipe: Recipe) -> dict[str, str]:
    """The digest of every file of the user's own that the recipe names, code or weights; of a run's folder its weights.

    One that was in use may be gone by now.
    """
    named = own_files(recipe).items()
    paths = {name: path / artifact.WEIGHTS if path.is_dir() else path for name, path in named}
    return {portable(name): digest(path) for name, path in paths.items() if path.is_file()}


def _space_rows(story: Story, removed: Mapping[str, int]) -> list[SpaceRow]:
    """Every space that the full or the finished network has, 0 channels wide where one lacks it."""
    full = story.full.spaces
    return [
        SpaceRow(
            name=name,
            width=story.widths.get(name, 0) - removed.get(name, 0),
            full=full[name].width if name in full else 0,
            frozen=full[name].frozen if name in full else None,
        )
        for name in dict.fromkeys([*full, *story.widths])
    ]
