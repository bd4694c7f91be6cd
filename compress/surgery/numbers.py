"""Whole numbers that modules hold in plain attributes, some of which are counts of channels: `self.width = 16`."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

KEY = "compress.numbers"  # among a model's own attributes: those that were changed since its factory made it


def numbers(module: nn.Module) -> dict[str, int]:
    """The positive whole numbers that a module itself holds, by name; those of lists and tuples as "sizes.0", those of
    dictionaries, dataclasses and namespaces as "config[width]".
    """
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if _counts(value):
            found[name] = value
        elif type(value) in (list, tuple, torch.Size):
            found |= {f"{name}.{at}": one for at, one in enumerate(value) if _counts(one)}
        elif name.isidentifier():  # and so not what is remembered under KEY
            inside = {key: one for key, one in _table(value).items() if isinstance(key, str) and key.isidentifier()}
            found |= {f"{name}[{key}]": one for key, one in inside.items() if _counts(one)}
    return found


def _table(value: Any) -> Mapping[Any, Any]:
    """What a dictionary, a dataclass or a namespace holds; nothing of anything else."""
    if isinstance(value, argparse.Namespace | SimpleNamespace) or (is_dataclass(value) and not isinstance(value, type)):
        return vars(value) if hasattr(value, "__dict__") else {}
    return value if type(value) is dict else {}


def _changed(held: Any, key: str, value: int) -> Any:
    """A copy with another number: whoever else holds the same configuration keeps his."""
    if type(held) is dict:
        return {**held, key: value}
    other = copy.copy(held)
    vars(other)[key] = value
    return other


def put(model: nn.Module, values: Mapping[str, int]) -> None:
    """Set numbers by their dotted names, "block.width", "block.sizes.0", "block.config[width]"; the model remembers
    which.

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
        attribute, _, key = name.removesuffix("]").partition("[")
        if key:
            modules[path].__dict__[attribute] = _changed(vars(modules[path])[attribute], key, value)
            continue
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
