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
from compress.export import artifact, picture, report
from compress.export.onnx_count import first_line
from compress.reading.graph import Graph
from compress.reading.inputs import arguments, each
from compress.reading.measure import unseen
from compress.recipe import file as recipe
from compress.recipe.settings import Recipe
from compress.surgery.finalize import finalize
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
    """How a network came to be: what its report tells beside what is found out here."""

    full: Graph  # of the full network
    base: Cost  # its cost
    widths: Mapping[str, int]  # of all spaces now, frozen ones too
    command: str
    planned: Cost | None = None  # what the network must cost where nothing is removed
    train_cost: Mapping[str, Any] | None = None  # None: trained elsewhere
    history: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()  # what each of the recipe's methods spent and gained
    depths: Depths = field(default_factory=dict)  # children of the containers in which blocks were added or left out
    notes: Sequence[str] = ()
    resumed: int | None = None  # the optimizer step that an interrupted run went on from


@torch.no_grad()
def check_output(model: nn.Module, data: Data) -> None:
    """Raise UsageError where the model does not return one tensor, of logits [N, classes or more] if there are any, or
    where an image's output is not its own.
    """
    trained, draw = model.training, torch.Generator().manual_seed(0)
    two = [torch.randn(2, *one, generator=draw) for one in each(data.shape)]
    model.eval()
    try:
        out, both = model(*(x[:1] for x in two)), model(*two)
    except Exception as error:
        raise UsageError(f"the model cannot be run on one input, or on two together ({one_line(error)})") from error
    finally:
        model.train(trained)
    one = isinstance(out, torch.Tensor) and out.shape[:1] == (1,)
    if one and (not data.classes or (out.dim() == 2 and out.shape[1] >= len(data.classes))):
        return _refuse_company(model, out.double(), both[:1].double())
    got = list(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
    if not data.classes:
        raise UsageError(f"the model's output is {got} for one image; it must be one tensor, [1, ...]")
    raise UsageError(
        f"the model's output is {got} for one image, but {data.name} has {len(data.classes)} classes; "
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


def deliver(
    model: nn.Module,
    said: Recipe,
    data: Data,
    budget: Budget,
    folder: Path,
    story: Story,
    clock: Callable[[], float],
    listen: Listener,
) -> dict[str, Any]:
    """Write all files of a finished network into an empty folder; its report. `clock` gives the seconds so far.

    The test set is looked at here, once. Raises ArtifactError where a file does not compute what the network does.
    """
    listen(Doing("finalizing: masked channels cut, equal outputs, counted again"))
    validation = (tuple(part.to("cpu") for part in arguments(x)) for x, _ in data.split("val"))
    structure = Structure(said.model.factory, said.model.args, depths=story.depths)
    compact = finalize(model, data.shape, structure, validation, top1=bool(data.classes))
    cost, planned, notes = compact.cost, story.planned, list(story.notes)
    if planned and compact.removed:
        count, where = sum(compact.removed.values()), ", ".join(compact.removed)
        notes.append(f"{count} channels that compute nothing were cut, of {where}")
        listen(Warned(notes[-1]))
    if planned and not compact.removed and (cost.params, cost.macs) != (planned.params, planned.macs):
        raise ArtifactError(f"the finished network costs {cost}, but was planned to cost {planned}")
    network = compact.model.to(data.device)
    splits = [split for split in ("val", "test") if data.counts[split]]
    task = task_of(said.train, data, said.folder)
    scores = {split: train.score(network, data, split, task=task).accuracy for split in splits}
    network.to("cpu")
    listen(Doing("exporting: safetensors, ONNX and torch programs, each read back in a fresh process"))
    written = artifact.write(
        compact,
        folder,
        budget=budget,
        base=story.base,
        images=data.raw("val", IMAGES),
        mean=data.mean,
        std=data.std,
        classes=data.classes,
        recipe_text=recipe.dump(said),
        bake_preprocessing=said.export.bake_preprocessing,
        source=said.folder,
    )
    told = report.build(
        budget=written.rows,
        cost=written.cost,
        base=story.base,
        val=scores["val"],
        test=scores.get("test"),
        metric=task.name,
        required=said.require.least if said.require else None,
        train_cost=story.train_cost,
        drift=compact.drift,
        parity=written.parity,
        preprocessing=written.preprocessing,
        spaces=_spaces(story, compact.removed),
        history=story.history,
        steps=story.steps,
        seeds={"seed": said.seed},
        data={"name": data.name, "counts": data.counts, "digest": data.digest},
        environment=report.environment(device=str(data.device), threads=torch.get_num_threads()),
        command=report.portable(story.command),
        seconds=clock(),
        resumed_from=story.resumed,
        notes=[*notes, *story.full.notes, *unseen(compact.model, data.shape), *written.notes],
    )
    told["notes"] += _draw(told, folder / report.PICTURE)
    report.save(folder, told)
    return told


def _draw(told: Mapping[str, Any], path: Path) -> list[str]:
    """Draw a report's history, if there is one; why it is left out: a convenience, for which no run may fail."""
    try:
        picture.draw(told, path)
    except Exception as error:
        path.unlink(missing_ok=True)
        why = report.portable(f"{type(error).__name__}: {first_line(error)}")
        return [f"{path.name} is left out: it could not be drawn ({why})"]
    return []


def _spaces(story: Story, removed: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every space that the full or the finished network has, 0 channels wide where one lacks it."""
    full = story.full.spaces
    return [
        {
            "name": name,
            "width": story.widths.get(name, 0) - removed.get(name, 0),
            "full": full[name].width if name in full else 0,
            "frozen": full[name].frozen if name in full else None,
        }
        for name in dict.fromkeys([*full, *story.widths])
    ]
