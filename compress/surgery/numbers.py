"""Whole numbers that modules hold in plain attributes, some of which are counts of channels: `self.width = 16`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

KEY = "compress.numbers"  # among a model's own attributes: those that were changed since its factory made it


def numbers(module: nn.Module) -> dict[str, int]:
    """The positive whole numbers that a module itself holds, by name; those of lists and tuples as "sizes.0"."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if _counts(value):
            found[name] = value
        elif type(value) in (list, tuple, torch.Size):
            found |= {f"{name}.{at}": one for at, one in enumerate(value) if _counts(one)}
    return found


def put(model: nn.Module, values: Mapping[str, int]) -> None:
    """Set numbers by their dotted names, "block.width" or "block.sizes.0"; the model remembers which.

    Raises KeyError where it holds no such number, or is given none.
    """
    if not values:
        return
    modules = dict(model.named_modules())
    for dotted, value in values.items():
        path, name = owner(dotted)
        if path not in modules or name not in numbers(modules[path]):
            raise KeyError(f"the model holds no whole number {dotted}")
        if not _counts(value):
            raise KeyError(f"{dotted} cannot be {value!r}")
        attribute, _, place = name.partition(".")
        held = vars(modules[path])[attribute]
        one_of = [value if str(at) == place else one for at, one in enumerate(held)] if place else []
        modules[path].__dict__[attribute] = type(held)(one_of) if place else value
    model.__dict__[KEY] = {**remembered(model), **values}


def owner(dotted: str) -> tuple[str, str]:
    """The path of the module that holds a number, and its name there."""
    path, _, name = dotted.rpartition(".")
    if name.isdecimal():
        path, _, attribute = path.rpartition(".")
        name = f"{attribute}.{name}"
    return path, name


def remembered(model: nn.Module) -> dict[str, int]:
    """The numbers that `put` has set, by name."""
    return dict(vars(model).get(KEY, {}))


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0
