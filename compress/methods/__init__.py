"""The published methods, a folder each, and a row each in the table below; what a row names is imported when used."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Settings, the recipe, and the place in its steps -> the method.
METHODS: dict[str, Callable[[Any, Any, int], Any]] = {
    "adenel": lambda settings, said, at: _class("adenel", "AdeNeL")(settings, said.align, after=at > 0),
    "autogrow": lambda settings, said, at: _class("autogrow", "AutoGrow")(settings, said.align, after=at > 0),
    "l1": lambda settings, said, at: _class("l1", "L1Pruning")(settings, said.align),
    "lwp": lambda settings, said, at: _class("lwp", "LWP")(settings, trained=at > 0 or said.model.weights is not None),
    "scratch": lambda settings, said, at: _class("scratch", "FromScratch")(settings, said.folder),
}


def _class(folder: str, name: str) -> Any:
    return getattr(import_module(f"compress.methods.{folder}.method"), name)
