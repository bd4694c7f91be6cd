"""From a recipe to a compact, deployable network that keeps a hard budget.

run(recipe, budget="43MFLOPs")   train, finalize, export; the folder holds ONNX, safetensors and a report
plan(recipe)                     what would happen, in seconds
cut(folder, to="10M,20MMACs")    nets of other sizes from one run
compare(recipe, methods="adenel,group", ...)  methods side by side, over seeds
verify(path, budget)             guard a file in CI; needs no torch
export_model(factory, weights, ...)  finalize, verify and export a network that was compressed elsewhere
load(folder)                     the compact network as an nn.Module
measure(model, shape)            parameters, MACs, thop's FLOPs and bytes
Method, Lab                      what a method of one's own subclasses, and all that it may touch
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress._compare import compare
    from compress._cut import cut
    from compress._export import export_model
    from compress._plan import plan
    from compress._run import run
    from compress.export.verify import verify
    from compress.export.weights import load
    from compress.methods.protocol import Lab, Method
    from compress.reading.measure import measure

__all__ = ["Lab", "Method", "compare", "cut", "export_model", "load", "measure", "plan", "run", "verify"]
__version__ = "0.1.0"

_HOMES = {
    "Lab": "compress.methods.protocol",
    "Method": "compress.methods.protocol",
    "load": "compress.export.weights",
    "measure": "compress.reading.measure",
    "compare": "compress._compare",
    "cut": "compress._cut",
    "export_model": "compress._export",
    "plan": "compress._plan",
    "run": "compress._run",
    "verify": "compress.export.verify",
}


def __getattr__(name: str) -> Any:
    """Import a verb when it is first touched (PEP 562): importing compress stays light.

    Raises UsageError, with what to install, where a package is lacking that the verb needs.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("compress.packages").demand_for(name)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
