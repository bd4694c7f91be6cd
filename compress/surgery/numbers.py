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
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        within = leaf.isdecimal()
        path, _, attribute = path.rpartition(".") if within else (path, "", leaf)
        module = dict(model.named_modules()).get(path)
        if module is None or f"{attribute}.{leaf}" * within + attribute * (not within) not in numbers(module):
            raise KeyError(f"the model holds no whole number {name}")
        if not _counts(value):
            raise KeyError(f"{name} cannot be {value!r}")
        held = vars(module)[attribute]
        several = type(held)([value if str(at) == leaf else one for at, one in enumerate(held)]) if within else value
        module.__dict__[attribute] = several
    if values:
        model.__dict__[KEY] = {**remembered(model), **values}


def remembered(model: nn.Module) -> dict[str, int]:
    """The numbers that `put` has set, by name."""
    return dict(vars(model).get(KEY, {}))


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0
