"""The methods, a folder each and a row each in `METHODS`; what a row names is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.recipe.step import Step


class Entry(NamedTuple):
    """Where a method's parts are, as module:class below this package."""

    settings: str  # its keys in a recipe, a `Step`; needs no torch
    method: str  # a `Method`, made of its settings and an `Around`


METHODS = {
    "adenel": Entry("adenel.settings:Adenel", "adenel.method:AdeNeL"),
    "autogrow": Entry("autogrow.settings:Autogrow", "autogrow.method:AutoGrow"),
    "group": Entry("prune.settings:Group", "prune.method:Pruning"),
    "grow_prune": Entry("prune.settings:GrowPrune", "prune.method:Pruning"),
    "hessian": Entry("prune.settings:Hessian", "prune.method:Pruning"),
    "l1": Entry("prune.settings:L1", "prune.method:Pruning"),
    "lwp": Entry("lwp.settings:Lwp", "lwp.method:LWP"),
    "provable": Entry("prune.settings:Provable", "prune.method:Pruning"),
    "random": Entry("prune.settings:Random", "prune.method:Pruning"),
    "reconstruct": Entry("prune.settings:Reconstruct", "prune.method:Pruning"),
    "refit": Entry("refit.settings:Refit", "refit.method:Refitting"),
    "scratch": Entry("scratch.settings:Scratch", "scratch.method:FromScratch"),
    "slimming": Entry("prune.settings:Slimming", "prune.method:Pruning"),
    "soft": Entry("prune.settings:Soft", "prune.method:Pruning"),
    "taylor": Entry("prune.settings:Taylor", "prune.method:Pruning"),
    "thinet": Entry("prune.settings:Thinet", "prune.method:Pruning"),
    "tune": Entry("prune.settings:Tuning", "prune.tuning:TunedOn"),
    "uniform": Entry("scratch.settings:Uniform", "scratch.method:Evenly"),
}


def settings_of(name: str) -> type[Step]:
    """The keys of the method of this name."""
    kind: type[Step] = part(METHODS[name].settings)
    return kind


def control(like: str) -> dict[str, Any]:
    """What a recipe says for training the shape in the file `like` from newly drawn weights, as its control."""
    return {"name": "scratch", "epochs": 300, "like": like}


def plainly(name: str) -> dict[str, Any]:
    """What a recipe says for a method with its defaults; of epochs that must be said one, which a train-cost replaces.

    Raises UsageError for a method that needs more, and for one that there is not.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}; they are {', '.join(METHODS)}, or a recipe's file")
    required = [key for key, field in settings_of(name).model_fields.items() if field.is_required() and key != "name"]
    if more := sorted(set(required) - {"epochs"}):
        raise UsageError(f"{name} needs {' and '.join(more)}; write a recipe that says so, and name its file")
    return {"name": name} | dict.fromkeys(required, 1)


def training() -> dict[str, Any]:
    """What a recipe says for training its full network for as long as the train-cost pays for."""
    return {"name": "scratch", "epochs": 1, "schedule": "linear", "warmup": 0.1}


def another(of: str, start: str, epochs: float) -> dict[str, Any]:
    """What a recipe says for fitting the network of the finished run in the folder `of` to another budget."""
    return {"name": "refit", "of": of, "start": start, "tune": {"epochs": epochs}}


def part(place: str) -> Any:
    """What a row names."""
    module, _, name = place.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
