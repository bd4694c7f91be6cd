"""A method from a step of a recipe: one of the table, or one of the user's own, by import path or file."""

from __future__ import annotations

from typing import Any

from compress.errors import UsageError, one_line
from compress.methods import METHODS, part
from compress.methods.protocol import Around, Method
from compress.recipe.step import Own, Step
from compress.surgery.structure import locate


def method_of(settings: Step, around: Around) -> Method[Any]:
    """The method that a step of a recipe asks for.

    One of the user's own is what `method: {name: "./slim.py:Slimming", args: {...}}` names, called with these
    arguments. Raises UsageError where that cannot be imported, does not take the arguments, or makes no `Method`.
    """
    method: Method[Any] = _imported(settings, around) if isinstance(settings, Own) else _ours(settings, around)
    return method


def _ours(settings: Step, around: Around) -> Any:
    return part(METHODS[settings.name].method)(settings, around)


def _imported(settings: Own, around: Around) -> Any:
    make = locate(settings.name, around.folder, "method.name")
    try:
        method = make(**settings.args)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.args.items())
        raise UsageError(f"method.args: {settings.name}({given}) failed ({one_line(error)})") from None
    if Method not in type(method).__mro__:
        raise UsageError(
            f"method.name: {settings.name} makes a {type(method).__name__}; it must make a subclass of compress.Method"
        )
    return method
