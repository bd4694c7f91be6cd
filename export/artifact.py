"""The files of a finished network: written once, read back in fresh processes, loaded again.

    model.safetensors   the weights, and as its only metadata how to build the network again
    model.onnx          the network for any runtime, with its budget, claims and preprocessing in its metadata
    model.pt2           the network for torch alone
    model.py            the same as source text that people read, for torch and safetensors; not every network has one
    recipe.yaml         the recipe with every default filled in

No file holds a time, a path of the machine or a pickle; equal networks give equal bytes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from compress.budget.limits import Budget, Cost
from compress.errors import ArtifactError, UsageError
from compress.export import latency, onnx_count, onnx_file, readback, report
from compress.export.source.spelling import Unspelled
from compress.export.source.text import FILE as SOURCE
from compress.export.source.text import spell_out
from compress.export.verify import digest, verify
from compress.reading.inputs import Batch, arguments
from compress.surgery.structure import Structure

if TYPE_CHECKING:
    from compress.surgery.finalize import Compact

MODELS = ("model.onnx", "model.pt2", "model.safetensors")
TOLERANCE = (
    1e-4  # of the largest logit: float32 in another order of sums, with batch norms folded, stays ten times below
)
_TRACES = (
    "stack_trace",
    "nn_module_stack",
    "source_fn_stack",
)  # of an exported program: they name files of this machine


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` found out: the cost with the true size of model.onnx, the budget's rows, what the report needs."""

    cost: Cost
    rows: list[dict[str, Any]]
    parity: dict[str, dict[str, Any]]
    preprocessing: dict[str, Any]
    notes: tuple[str, ...] = ()  # sentences: what was left out, and why


def write(
    compact: Compact,
    folder: Path,
    *,
    budget: Budget,
    base: Cost,
    images: Batch,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    recipe_text: str,
    bake_preprocessing: bool = False,
    source: Path | None = None,
) -> Written:
    """Write the model files and the recipe into an empty folder, and check them as their users will meet them.

    `images` uint8 [n, C, H, W] are real ones, in a tuple with the further inputs, float32 [n, ...], of a network that
    takes several; `mean` and `std` [C] are of pixels in [0, 1]. With `bake_preprocessing` the normalisation is in
    model.onnx, whose images are then float32 in [0, 255]. `source` is the folder of the recipe, where a factory
    "./net.py:make" is found. The report is written afterwards, from what this returns:
    `report.save(folder, report.build(...))`.

    Raises ArtifactError where a file does not compute what the network computes or holds more MACs than were counted. A
    network over its budget is written all the same: its rows say so.
    """
    pictures, *others = arguments(images)
    preprocessing = {
        "layout": "NCHW",
        "shape": list(pictures.shape[1:]),
        "range": [0, 255] if bake_preprocessing else [0, 1],
        "mean": [float(m) for m in mean],
        "std": [float(s) for s in std],
        "baked": bake_preprocessing,
        "classes": list(classes),
    }
    if others:
        preprocessing["others"] = [{"name": f"x{n}", "shape": list(x.shape[1:])} for n, x in enumerate(others, 2)]
    network = _plain(compact.model)
    cost, notes = _save_models(network, compact, folder, budget, base, preprocessing)
    (folder / "recipe.yaml").write_text(report.portable(recipe_text), encoding="utf-8")
    counted = replace(budget, limits=tuple(limit for limit in budget.limits if limit not in budget.latencies))
    verdict = verify(folder / "model.onnx", counted)
    if verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    with torch.inference_mode():
        parts = zip(*(torch.split(x, 64) for x in _normalise(images, preprocessing)), strict=True)
        expected = torch.cat([network(*part) for part in parts])
    try:
        parity = read_back(folder, images, expected.numpy(), source)
    except ArtifactError as error:
        if not str(error).startswith(str(folder / SOURCE)):
            raise
        (folder / SOURCE).unlink()  # a convenience: the other files do not depend on it
        notes = [f"{SOURCE} is left out: {str(error).removeprefix(f'{folder / SOURCE}: ')}"]
        parity = read_back(folder, images, expected.numpy(), source)
    measured = latency.measured(folder / "model.onnx", budget)  # after all else: nothing of ours runs beside it
    return Written(cost, budget.rows(cost, measured), parity, preprocessing, tuple(notes))


def read_back(
    folder: Path, images: Batch, expected: NDArray[np.float32] | None = None, source: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Run every model file on real images, each in a fresh process, all side by side, and compare; model.py too, where
    there is one.

    `images` as in `write`; `expected` [n, classes] are the network's own logits, those of model.safetensors when
    they are not given. Returns, by file name, its size and digest, the number of images, the largest absolute
    difference, the same over the largest output, and whether top-1 is equal on every image (None without classes).

    Raises ArtifactError where a file cannot be run, differs by more than 1e-4 of the largest logit, or in any top-1.
    """
    missing = [name for name in MODELS if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder}: {' and '.join(missing)} missing; a finished folder holds {', '.join(MODELS)}.")
    preprocessing = onnx_file.metadata(onnx_file.read(folder / "model.onnx"))["preprocessing"]
    normalised = [x.numpy() for x in _normalise(images, preprocessing)]
    raw = [arguments(images)[0].float().numpy(), *normalised[1:]]
    names = (*MODELS, SOURCE) if (folder / SOURCE).is_file() else MODELS
    inputs = {name: raw if preprocessing["baked"] and name == "model.onnx" else normalised for name in names}
    outputs = _run(folder, inputs, source)
    truth = outputs["model.safetensors"] if expected is None else expected
    return {name: _compare(folder / name, outputs[name], truth, bool(preprocessing["classes"])) for name in names}


def load(folder: Path | str, factory: Callable[..., nn.Module] | None = None, trust: bool = False) -> nn.Module:
    """Load the network of an output folder, ready for `eval()` and inference on the CPU.

    By itself this imports no code but `compress.models`. A network of another factory comes back as that class with
    `factory`, or with `trust=True`, which imports the factory that the file names; else as its exported program, which
    computes the same and cannot be trained. A factory "./net.py:make" is looked for in the current folder.

    Raises UsageError where there is no such folder, ArtifactError where a file is missing, broken or foreign.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; give the output folder of a finished run.")
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file; give the output folder of a finished run.")
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file: {error}") from None
    structure = Structure.from_file(path)
    if factory is None and not trust and not structure.factory.startswith("compress.models:"):
        return _Exported(folder / "model.pt2")
    model = structure.build(factory)
    tied = set(model.state_dict()) - set(_tensors(model))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - tied:
        odd = sorted({*unexpected, *missing} - tied)
        raise ArtifactError(f"{path}: its tensors are not those of {structure.factory}: {', '.join(odd[:3])}.")
    return model.eval()


class _Exported(nn.Module):
    """An exported program as a module on which `eval()` works; it cannot be trained."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise ArtifactError(f"{path}: there is no such file; load the network with factory=, or with trust=True.")
        try:
            self.program = torch.export.load(path).module()
        except Exception as error:  # torch raises many kinds on a broken archive
            raise ArtifactError(f"{path}: not an exported program: {error}") from None
        self.training = False

    def forward(self, *x: Tensor) -> Tensor:
        """Images [N, C, H, W], normalised, and further inputs, to logits [N, classes]."""
        logits: Tensor = self.program(*x)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Refuse training; `eval()` is a call of this with False."""
        if mode:
            raise UsageError("An exported program cannot be trained; load it with factory=, or with trust=True.")
        return self


# ---- writing --------------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by sorted name, contiguous copies on the CPU; of tied tensors only the first is kept."""
    kept: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        kept.setdefault(place, (name, tensor))
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(kept.values(), key=itemgetter(0))
    }


def _save_models(
    network: nn.Module, compact: Compact, folder: Path, budget: Budget, base: Cost, preprocessing: Mapping[str, Any]
) -> tuple[Cost, list[str]]:
    """Write the model files of a network on the CPU; its cost with the size of model.onnx, and why one was left out."""
    structure, tensors = compact.structure.to_json(), _tensors(network)
    _save_weights(folder / "model.safetensors", structure, tensors)
    inputs = [{"name": "images", "shape": preprocessing["shape"]}, *preprocessing.get("others", [])]
    program = _export(network, *(torch.zeros(2, *of["shape"]) for of in inputs))
    text, notes = _spell_out(program, network, tensors, preprocessing)
    if text:
        (folder / SOURCE).write_text(text, encoding="utf-8")
    model = onnx_file.clean(_to_onnx(program, [of["name"] for of in inputs]))
    if preprocessing["baked"]:
        mean, std = preprocessing["mean"], preprocessing["std"]
        model = onnx_file.bake(model, [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)])
    memory = max(compact.cost.memory, onnx_count.count(model).memory or 0)  # of two counters, the stricter
    cost = replace(compact.cost, memory=memory)
    topics = {
        "base": asdict(base),
        "budget": [asdict(limit) for limit in budget.limits],
        # thop's figure below the MACs means layers that it cannot see: no claim, so that the MACs decide
        "claims": {
            "macs": cost.macs,
            "memory": cost.memory,
            "params": cost.params,
            "thop": cost.thop if cost.thop >= cost.macs else None,
        },
        "preprocessing": preprocessing,
        "structure": _fingerprint(structure, tensors),
        "versions": {"onnx": onnx.__version__, "torch": str(torch.__version__)},
    }
    size = onnx_file.save(onnx_file.stamp(model, topics), folder / "model.onnx")
    _save_program(program, folder / "model.pt2")
    return replace(cost, bytes=size), notes


def _spell_out(
    program: torch.export.ExportedProgram,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    preprocessing: Mapping[str, Any],
) -> tuple[str, list[str]]:
    """Return the text of model.py, or why there is none: a convenience, for which no run may fail."""
    try:
        return spell_out(program, network, tensors.keys(), preprocessing), []
    except Unspelled as reason:
        return "", [f"{SOURCE} is left out: the network cannot be written in plain torch, for {reason}"]
    except Exception as error:  # a network that nobody thought of
        why = f"{type(error).__name__}: {onnx_count.first_line(error)}"
        return "", [f"{SOURCE} is left out: the network could not be written in plain torch ({report.portable(why)})"]


def _plain(model: nn.Module) -> nn.Module:
    """Return a contiguous copy on the CPU, wherever the network is now: savers refuse, or warn of, other layouts."""
    model = copy.deepcopy(model).cpu().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()
    return model


def _save_weights(path: Path, structure: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    text = json.dumps({"structure": structure}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Not save_file: it hides a full disk behind an error of its own, and leaves a file that nobody else may read.
    path.write_bytes(safetensors.torch.save(tensors, metadata={"compress": text}))


def _fingerprint(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([structure, shapes], sort_keys=True).encode()).hexdigest()


def _normalise(batch: Batch, preprocessing: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """What the network is called with: the images normalised, other inputs as they are."""
    images, *others = arguments(batch)
    mean, std = (torch.tensor(preprocessing[key], dtype=torch.float32).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std, *others


def _export(model: nn.Module, *example: Tensor) -> torch.export.ExportedProgram:
    """Trace the network once, with a free batch. The example holds two images: one would fix the batch at 1."""
    batch = torch.export.Dim("batch")
    with _quiet(), _exporting("traced by torch.export"):
        return torch.export.export(model, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def _to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str]) -> Any:
    with _quiet(), _exporting("translated to ONNX"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=inputs,
            output_names=["logits"],
        )
    assert exported is not None
    return exported.model_proto


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the exporters raise dozens of kinds
        raise ArtifactError(f"the network cannot be {what}: {onnx_count.first_line(error)}") from error


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save the program without traces of this machine, without a pickle, and with fixed times: equal in equal bytes."""
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    whole = io.BytesIO()
    with _quiet():
        torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            emptied = "sample_inputs/" in name or "example_inputs" in name or name.endswith("serialization_id")
            archive.writestr(zipfile.ZipInfo(name), b"" if emptied else data)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about its own insides off the terminal."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)


# ---- reading back ---------------------------------------------------------------------------------------------------


def _run(
    folder: Path, inputs: Mapping[str, Sequence[NDArray[np.float32]]], source: Path | None
) -> dict[str, NDArray[np.float32]]:
    """Run each file in a fresh process; all start before any is waited for, because importing torch takes seconds."""
    environment = latency.environment() | {"PYTHONWARNINGS": "ignore"}
    running: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name, given in inputs.items():
                files = [str(Path(scratch, f"{name}.{end}")) for end in ("in.npz", "out.npy")]
                np.savez(files[0], *given)
                command = [sys.executable, "-P", str(readback.__file__), str((folder / name).absolute()), *files]
                running[name] = subprocess.Popen(
                    command, cwd=source, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            told = {name: process.communicate()[1] for name, process in running.items()}
        finally:
            for process in running.values():
                process.kill()  # nothing when it has ended; on an interrupt, nobody is left behind
        for name, process in running.items():
            if process.returncode:
                last = next(reversed(told[name].strip().splitlines()), f"exit code {process.returncode}")
                raise ArtifactError(f"{folder / name}: cannot be run in a fresh process: {last}")
        return {name: np.load(Path(scratch, f"{name}.out.npy")) for name in inputs}


def _compare(path: Path, got: NDArray[np.float32], truth: NDArray[np.float32], top1: bool = True) -> dict[str, Any]:
    if got.shape != truth.shape or not np.isfinite(truth).all() or not np.isfinite(got).all():
        raise ArtifactError(f"{path}: gives {list(got.shape)} numbers, not {list(truth.shape)} finite ones.")
    worst = float(np.abs(got.astype(np.float64) - truth).max())
    largest = float(np.abs(truth).max())
    moved = int((got.argmax(1) != truth.argmax(1)).sum()) if top1 else 0
    relative = worst / largest if largest else worst
    if moved or relative > TOLERANCE:
        raise ArtifactError(
            f"{path}: does not compute what the network computes: outputs differ by {worst:.1e}, {relative:.1e} of the "
            f"largest (at most {TOLERANCE:.0e}), and {moved} of {len(truth)} images change their top-1."
        )
    found = {"bytes": path.stat().st_size, "sha256": digest(path), "images": len(truth)}
    return found | {"max_abs": worst, "max_rel": relative, "top1_equal": True if top1 else None}
