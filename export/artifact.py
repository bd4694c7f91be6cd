"""The files of a finished network: written once, and read back in fresh processes.

    model.safetensors   the weights, and as its only metadata how to build the network again
    model.onnx          the network for any runtime; its metadata holds budget, claims, preprocessing and what it seals:
                        the accuracy, how the network came to be, and the digests of the files below and above
    model.pt2           the network for torch alone
    model.py            the same as source text that people read, for torch and safetensors; not every network has one
    recipe.yaml         the recipe with every default filled in

No file holds a time, a path of the machine or a pickle; equal networks give equal bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from compress.budget.limits import Budget, Cost
from compress.errors import ArtifactError
from compress.export.latency import measured_latencies
from compress.export.onnx import count as onnx_count
from compress.export.onnx import file as onnx_file
from compress.export.onnx.shapes import first_line
from compress.export.parity import normalised, read_back
from compress.export.parts import Parity, Preprocessing, portable
from compress.export.report import Row, rows_of
from compress.export.seal import MODEL, SEALED
from compress.export.source.spelling import Unspelled
from compress.export.source.text import SOURCE, spell_out
from compress.export.translate import save_program, to_onnx, to_program
from compress.export.verify import digest, verify
from compress.export.weights import save_weights, tensors_of
from compress.reading.inputs import Batch

if TYPE_CHECKING:
    from compress.surgery.finalize import Compact

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` learnt: the cost with the true size of model.onnx, the budget's rows, how equal the files are."""

    cost: Cost
    rows: tuple[Row, ...]
    parity: dict[str, Parity]  # by file
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()  # sentences: what was left out, and why
    uncounted: tuple[str, ...] = ()  # operators of model.onnx that count as nothing


def write(
    compact: Compact,
    folder: Path,
    *,
    budget: Budget,
    base: Cost,
    images: Batch,
    preprocessing: Preprocessing,
    recipe_text: str,
    facts: Mapping[str, Any],
    source: Path | None = None,
    lenient: bool = False,
) -> Written:
    """Write the model files and the recipe into an empty folder, and check them as their users will meet them.

    `images` uint8 [n, C, H, W] are real ones, in a tuple with the further inputs, float32 [n, ...], of a network that
    takes several. Where the preprocessing is baked, the normalisation is in model.onnx, whose images are then float32
    in [0, 255]. `facts` are what `seal.facts` says of the run: model.onnx seals them, with the digests of the files
    beside it. `source` is the folder of the recipe, where a factory "./net.py:make" is found.
    `lenient` says that operators of unknown cost count as nothing.

    Raises ArtifactError where a file does not compute what the network computes or holds more MACs than were counted. A
    network over its budget is written all the same: its rows say so.
    """
    network = contiguous(compact.model)
    (folder / "recipe.yaml").write_text(portable(recipe_text), encoding="utf-8")
    draft, notes = save_models(network, compact, folder, budget=budget, base=base, preprocessing=preprocessing)
    cost = draft.sealed(folder, facts)
    counted = replace(budget, limits=tuple(limit for limit in budget.limits if limit not in budget.latencies))
    verdict = verify(folder / "model.onnx", counted, uncounted=None if lenient else ())
    if verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    with torch.inference_mode():
        parts = zip(*(torch.split(x, 64) for x in normalised(images, preprocessing)), strict=True)
        expected = torch.cat([network(*part) for part in parts])
    try:
        parity = read_back(folder, images, expected.numpy(), source)
    except ArtifactError as error:
        if not str(error).startswith(str(folder / SOURCE)):
            raise
        (folder / SOURCE).unlink()  # a convenience: the other files do not depend on it
        cost = draft.sealed(folder, facts)
        notes = [f"{SOURCE} is left out: {str(error).removeprefix(f'{folder / SOURCE}: ')}"]
        parity = read_back(folder, images, expected.numpy(), source)
    measured = measured_latencies(folder / "model.onnx", budget)  # after all else: nothing of ours runs beside it
    return Written(cost, rows_of(budget, cost, measured), parity, preprocessing, tuple(notes), verdict.uncounted)


@dataclass(frozen=True, slots=True)
class Draft:
    """model.onnx before it is sealed: the network, its metadata, and its cost but for the size of the file."""

    model: onnx.ModelProto
    topics: Mapping[str, Any]
    cost: Cost

    def sealed(self, folder: Path, facts: Mapping[str, Any]) -> Cost:
        """Write model.onnx, which seals `facts` and the files that lie in the folder; the cost with its size."""
        files = {name: digest(folder / name) for name in SEALED if (folder / name).is_file()}
        topics = {**self.topics, "sealed": {**facts, "files": files}}
        return replace(self.cost, bytes=onnx_file.write_sealed(onnx_file.stamp(self.model, topics), folder / MODEL))


def save_models(
    network: nn.Module, compact: Compact, folder: Path, *, budget: Budget, base: Cost, preprocessing: Preprocessing
) -> tuple[Draft, list[str]]:
    """Write the model files of a network on the CPU but model.onnx, which comes back as a draft; and why one was left
    out.
    """
    structure, tensors = compact.structure.to_json(), tensors_of(network)
    save_weights(folder / WEIGHTS, structure, tensors)
    names = ["images", *(other.name for other in preprocessing.others)]
    shapes = [preprocessing.shape, *(other.shape for other in preprocessing.others)]
    program = to_program(network, *(torch.zeros(2, *shape) for shape in shapes))
    text, notes = spelled_out(program, network, tensors, preprocessing)
    if text:
        (folder / SOURCE).write_text(text, encoding="utf-8")
    model = onnx_file.clean(to_onnx(program, names))
    if preprocessing.baked:
        mean, std, scale = preprocessing.mean, preprocessing.std, preprocessing.scale
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        model = onnx_file.bake(model, [1 / (scale * s) for s in std], shift, len(preprocessing.shape))
    save_program(program, folder / "model.pt2")
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
        "preprocessing": preprocessing.plain(),
        "structure": _fingerprint(structure, tensors),
        "versions": {"onnx": onnx.__version__, "torch": str(torch.__version__)},
    }
    return Draft(model, topics, cost), notes


def spelled_out(
    program: torch.export.ExportedProgram,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    preprocessing: Preprocessing,
) -> tuple[str, list[str]]:
    """Return the text of model.py, or why there is none: a convenience, for which no run may fail."""
    try:
        return spell_out(program, network, tensors.keys(), preprocessing.plain()), []
    except Unspelled as reason:
        return "", [f"{SOURCE} is left out: the network cannot be written in plain torch, for {reason}"]
    except Exception as error:  # a network that nobody thought of
        why = f"{type(error).__name__}: {first_line(error)}"
        return "", [f"{SOURCE} is left out: the network could not be written in plain torch ({portable(why)})"]


def contiguous(model: nn.Module) -> nn.Module:
    """Return a contiguous copy on the CPU, wherever the network is now: savers refuse, or warn of, other layouts."""
    model = copy.deepcopy(model).cpu().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()
    return model


def _fingerprint(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([structure, shapes], sort_keys=True).encode()).hexdigest()
