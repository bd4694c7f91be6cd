"""model.safetensors: written with its structure as its only metadata, and loaded again as a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compress.errors import ArtifactError, UsageError
from compress.surgery.structure import Structure


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by sorted name, contiguous copies on the CPU; of tied tensors only the first is kept."""
    kept: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        kept.setdefault(place, (name, tensor))
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(kept.values(), key=itemgetter(0))
    }


def save_weights(path: Path, structure: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors, with the structure as sorted JSON in the only metadata key. Equal networks, equal bytes."""
    text = json.dumps({"structure": structure}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Not save_file: it hides a full disk behind an error of its own, and leaves a file that nobody else may read.
    path.write_bytes(safetensors.torch.save(tensors, metadata={"compress": text}))


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
    tied = set(model.state_dict()) - set(tensors_of(model))
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
