"""From a recipe to a compact, deployable network that keeps a hard budget.

run(recipe, budget="43MFLOPs")   train, finalize, export; the folder holds ONNX, safetensors and a report
plan(recipe)                     what would happen, in seconds
verify(path, budget)             guard a file in CI; needs no torch
pack(factory, weights, ...)      finalize, verify and export a network that was compressed elsewhere
load(folder)                     the compact network as an nn.Module
measure(model, shape)            parameters, MACs, thop's FLOPs and bytes
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.cost import measure
    from compress.export.artifact import load
    from compress.export.verify import verify
    from compress.pack import pack
    from compress.plan import plan
    from compress.run import run

__all__ = ["load", "measure", "pack", "plan", "run", "verify"]
__version__ = "0.1.0"

_HOMES = {
    "load": "compress.export.artifact",
    "measure": "compress.cost",
    "pack": "compress.pack",
    "plan": "compress.plan",
    "run": "compress.run",
    "verify": "compress.export.verify",
}


def __getattr__(name: str) -> Any:
    """Import a verb when it is first touched (PEP 562): importing compress stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """`compress.run` and its like are the verbs: importing the modules of these names must not bind over them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
