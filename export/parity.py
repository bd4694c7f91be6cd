"""Every file of a network is run as its users will run it, on real images, and compared with the network."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
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
from compress.export import readback
from compress.export.latency import child_environment
from compress.export.onnx import file as onnx_file
from compress.export.parts import Parity, Preprocessing
from compress.export.source.text import SOURCE
from compress.reading.inputs import Batch, arguments

MODELS = ("model.onnx", "model.pt2", "model.safetensors")
TOLERANCE = (
    1e-4  # of the largest logit: float32 in another order of sums, with batch norms folded, stays ten times below
)
FORKS = sys.platform == "linux"  # elsewhere torch may not survive a fork, or there is none
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
    axes = (1, -1, *[1] * (images.dim() - 2))
    mean, std = (
        torch.tensor(numbers, dtype=torch.float32).view(axes) for numbers in (preprocessing.mean, preprocessing.std)
    )
    return (images.float() / preprocessing.scale - mean) / std, *others


def outputs_of(folder: Path, inputs: Mapping[str, Sequence[Logits]], source: Path | None) -> dict[str, Logits]:
    """Run each file in a process of its own; all start before any is waited for.

    Those that need torch are forks of one that has imported it, where that is safe. `inputs` holds the arrays [n, ...]
    for each file's name. Raises ArtifactError where one cannot be run.
    """
    light = [[name] for name in inputs if name == "model.onnx" or not FORKS]
    heavy = [name for name in inputs if [name] not in light]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name, arrays in inputs.items():
            np.savez(place / f"{name}.in.npz", *arrays)
        complaints = _run_groups([*light, heavy] if heavy else light, folder, place, source)
        for name in inputs:
            if not (place / f"{name}.out.npy").is_file():
                own = place / f"{name}.out.error"
                text = own.read_text(encoding="utf-8") if own.is_file() else complaints[name]
                last = next(reversed(text.strip().splitlines()), "its process died")
                raise ArtifactError(f"{folder / name}: cannot be run in a fresh process: {last}")
        return {name: np.load(place / f"{name}.out.npy") for name in inputs}


def _run_groups(groups: Sequence[Sequence[str]], folder: Path, place: Path, source: Path | None) -> dict[str, str]:
    """Run every group of files in a process, which forks for each of several; what it complained of, by file.

    On an interrupt, nobody is left behind.
    """
    environment = child_environment() | {"PYTHONWARNINGS": "ignore"}
    running: list[subprocess.Popen[str]] = []
    try:
        for group in groups:
            jobs = [((folder / name).absolute(), place / f"{name}.in.npz", place / f"{name}.out.npy") for name in group]
            command = [sys.executable, "-P", str(readback.__file__), *map(str, itertools.chain(*jobs))]
            running.append(
                subprocess.Popen(
                    command,
                    cwd=source,
                    env=environment,
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=FORKS,  # so that its forks can be ended with it
                )
            )
        complaints = [process.communicate()[1] for process in running]
    finally:
        for process in running:
            with contextlib.suppress(OSError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL) if FORKS else process.kill()
    return {name: text for group, text in zip(groups, complaints, strict=True) for name in group}


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
        images=len(truth),
        max_abs=worst,
        max_rel=relative,
        top1_equal=True if top1 else None,
    )
