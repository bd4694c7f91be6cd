"""Every file of a network is run as its users will run it, on real images, and compared with the network."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import ArtifactError
from compress.export import onnx_file, readback
from compress.export.latency import child_environment
from compress.export.parts import Parity, Preprocessing
from compress.export.source.text import FILE as SOURCE
from compress.export.verify import digest
from compress.reading.inputs import Batch, arguments

MODELS = ("model.onnx", "model.pt2", "model.safetensors")
TOLERANCE = (
    1e-4  # of the largest logit: float32 in another order of sums, with batch norms folded, stays ten times below
)
Logits = NDArray[np.float32]


def read_back(
    folder: Path, images: Batch, expected: Logits | None = None, source: Path | None = None
) -> dict[str, Parity]:
    """Run every model file on real images, each in a fresh process, all side by side, and compare; model.py too, where
    there is one.

    `images` uint8 [n, C, H, W], in a tuple with the further inputs, float32 [n, ...], of a network that takes several;
    `expected` [n, classes] are the network's own logits, those of model.safetensors when they are not given. `source`
    is the folder where a factory "./net.py:make" is found. Returns what each file gave, by its name.

    Raises ArtifactError where a file cannot be run, differs by more than 1e-4 of the largest logit, or in any top-1.
    """
    missing = [name for name in MODELS if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder}: {' and '.join(missing)} missing; a finished folder holds {', '.join(MODELS)}.")
    topics = onnx_file.metadata(onnx_file.read(folder / "model.onnx"))
    preprocessing = Preprocessing.model_validate(topics["preprocessing"])
    normal = [x.numpy() for x in normalised(images, preprocessing)]
    raw = [arguments(images)[0].float().numpy(), *normal[1:]]
    names = (*MODELS, SOURCE) if (folder / SOURCE).is_file() else MODELS
    inputs = {name: raw if preprocessing.baked and name == "model.onnx" else normal for name in names}
    outputs = outputs_of(folder, inputs, source)
    truth = outputs["model.safetensors"] if expected is None else expected
    return {name: parity_of(folder / name, outputs[name], truth, bool(preprocessing.classes)) for name in names}


def normalised(batch: Batch, preprocessing: Preprocessing) -> tuple[Tensor, ...]:
    """What the network is called with: the images normalised, other inputs as they are."""
    images, *others = arguments(batch)
    mean, std = (
        torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1, 1)
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    return (images.float() / 255 - mean) / std, *others


def outputs_of(folder: Path, inputs: Mapping[str, Sequence[Logits]], source: Path | None) -> dict[str, Logits]:
    """Run each file in a fresh process; all start before any is waited for, because importing torch takes seconds.

    `inputs` holds the arrays [n, ...] for each file's name. Raises ArtifactError where one cannot be run.
    """
    environment = child_environment() | {"PYTHONWARNINGS": "ignore"}
    running: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name, arrays in inputs.items():
                files = [str(Path(scratch, f"{name}.{end}")) for end in ("in.npz", "out.npy")]
                np.savez(files[0], *arrays)
                command = [sys.executable, "-P", str(readback.__file__), str((folder / name).absolute()), *files]
                running[name] = subprocess.Popen(
                    command, cwd=source, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            errors = {name: process.communicate()[1] for name, process in running.items()}
        finally:
            for process in running.values():
                process.kill()  # nothing when it has ended; on an interrupt, nobody is left behind
        for name, process in running.items():
            if process.returncode:
                last = next(reversed(errors[name].strip().splitlines()), f"exit code {process.returncode}")
                raise ArtifactError(f"{folder / name}: cannot be run in a fresh process: {last}")
        return {name: np.load(Path(scratch, f"{name}.out.npy")) for name in inputs}


def parity_of(path: Path, outputs: Logits, truth: Logits, top1: bool = True) -> Parity:
    """Hold a file's outputs [n, classes] against the network's; with `top1`, on every image.

    Raises ArtifactError where they differ by more than `TOLERANCE`, in any top-1, or are not finite.
    """
    if outputs.shape != truth.shape or not np.isfinite(truth).all() or not np.isfinite(outputs).all():
        raise ArtifactError(f"{path}: gives {list(outputs.shape)} numbers, not {list(truth.shape)} finite ones.")
    worst = float(np.abs(outputs.astype(np.float64) - truth).max())
    largest = float(np.abs(truth).max())
    moved = int((outputs.argmax(1) != truth.argmax(1)).sum()) if top1 else 0
    relative = worst / largest if largest else worst
    if moved or relative > TOLERANCE:
        raise ArtifactError(
            f"{path}: does not compute what the network computes: outputs differ by {worst:.1e}, {relative:.1e} of the "
            f"largest (at most {TOLERANCE:.0e}), and {moved} of {len(truth)} images change their top-1."
        )
    return Parity(
        bytes=path.stat().st_size,
        sha256=digest(path),
        images=len(truth),
        max_abs=worst,
        max_rel=relative,
        top1_equal=True if top1 else None,
    )
