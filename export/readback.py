"""Model files, each run in a process of its own as its user would run it: readback.py (FILE INPUTS.npz OUTPUTS.npy)...

Several files that need torch share its import, which takes seconds: each is then a fork of a process that has imported
torch and nothing of ours. Run as a script, never imported: model.onnx meets onnxruntime and no torch, model.pt2 meets
torch and none of our code, model.safetensors meets `compress.load`, model.py meets torch, safetensors and nothing else.
Inputs float32 [n, C, H, W], and others where the network takes several, in their order; outputs float32 [n, classes].
"""

import os
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[..., Any]


def _runs_onnx(path: Path) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors only
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported; this must prove that the file needs none")
    names = [value.name for value in session.get_inputs()]
    return lambda *x: session.run(None, dict(zip(names, x, strict=True)))[0]


def _runs_program(path: Path) -> Run:
    import torch

    module = torch.export.load(path).module()
    if any(name.partition(".")[0] == "compress" for name in sys.modules):
        raise RuntimeError("compress was imported; this must prove that the file needs none of it")
    return _runs_module(module)


def _runs_weights(path: Path) -> Run:
    from compress.export.weights import load

    return _runs_module(load(path.parent, trust=True))  # its own run chose this factory


def _runs_source(path: Path) -> Run:
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _Only]
    return _runs_module(runpy.run_path(str(path))["load"]())  # leaves no compiled file beside it, as an import would


class _Only(PathFinder):
    """Finds nothing but Python's own modules, torch and safetensors; what these two need is imported before."""

    @classmethod
    def find_spec(cls, fullname: str, *args: Any) -> Any:
        """Look for a module as always, if it is one of those."""
        allowed = {*sys.stdlib_module_names, "numpy", "safetensors", "torch"}
        return super().find_spec(fullname, *args) if fullname.partition(".")[0] in allowed else None


def _runs_module(module: Any) -> Run:
    import torch

    def run(*x: Any) -> Any:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, x)).numpy()

    return run


def _answer(path: Path, inputs: Path, outputs: Path) -> None:
    run = {".onnx": _runs_onnx, ".pt2": _runs_program, ".safetensors": _runs_weights, ".py": _runs_source}[path.suffix](
        path
    )
    given = list(np.load(inputs).values())
    # A batch of one, then many, and whatever is left: the batch must be free.
    starts = [0, *range(1, len(given[0]), 64)]
    parts = [run(*(x[at : at + 64 if at else 1] for x in given)) for at in starts]
    np.save(outputs, np.concatenate(parts))


def _fork_each(jobs: Sequence[Sequence[Path]]) -> bool:
    """Whether all of these files could be run, each by a fork of this process; what went wrong lies beside OUTPUTS."""
    import torch  # noqa: F401 (for all of them)

    children = []
    for path, inputs, outputs in jobs:
        if child := os.fork():
            children.append(child)
            continue
        try:
            _answer(path, inputs, outputs)
        except BaseException:
            outputs.with_suffix(".error").write_text(traceback.format_exc(), encoding="utf-8")
            os._exit(1)
        os._exit(0)
    return not any([os.waitpid(child, 0)[1] for child in children])  # all of them are waited for


if __name__ == "__main__":
    _words = list(map(Path, sys.argv[1:]))
    _jobs = [_words[at : at + 3] for at in range(0, len(_words), 3)]
    if len(_jobs) > 1:
        sys.exit(not _fork_each(_jobs))
    _answer(*_jobs[0])
