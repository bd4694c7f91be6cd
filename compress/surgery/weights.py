"""Weights from a file into a module: read without running code, checked name by name before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import ArtifactError, UsageError
from compress.surgery.tensors import fit

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a state_dict that torch.save wrote, never unpickling code; masks are multiplied in.

    A state_dict inside a checkpoint ({"state_dict": ...}) is found, and prefixes of DataParallel and torch.compile are
    dropped. Raises UsageError where there is no file or no weights in it, ArtifactError where it is broken or foreign.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give a .safetensors file or a saved state_dict.")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a whole safetensors file: {error}") from None
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds on a broken or unsafe file
            raise ArtifactError(
                f"{path}: torch.load(weights_only=True) cannot read it ({type(error).__name__}); "
                "save model.state_dict()."
            ) from None
    inside = [value for value in content.values() if _is_state(value)] if isinstance(content, Mapping) else []
    if not _is_state(content) and len(inside) == 1:
        content = inside[0]
    if not _is_state(content):
        raise UsageError(f"{path}: holds no weights by name, but {type(content).__name__}; save model.state_dict().")
    tensors: dict[str, Tensor] = dict(content)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for name in [
        name for name in tensors if f"{name.removesuffix('_orig')}_mask" in tensors and name.endswith("_orig")
    ]:
        plain = name.removesuffix("_orig")
        tensors[plain] = tensors.pop(name) * tensors.pop(f"{plain}_mask")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"{path}: {name} holds numbers that are not finite; such a network computes nothing.")
    return tensors


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, exact: bool = False) -> None:
    """Give a fresh model these weights, whatever the widths are; with `exact`, only at the model's own widths.

    Counters of batch norm, tied weights and buffers that a state_dict leaves out may be missing. Raises UsageError
    where other names are missing or unknown, and where a tensor is of another kind than the model's.
    """
    own = model.state_dict()
    known = dict([*model.named_parameters(), *model.named_buffers()])
    missing = [
        name for name in own if name in known and name not in tensors and not name.endswith("num_batches_tracked")
    ]
    extra = [name for name in tensors if name not in own]
    if missing or extra:
        parts = [("lack", missing), ("have more than it knows:", extra)]
        faults = " and ".join(
            f"{word} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for word, names in parts if names
        )
        raise UsageError(f"The weights are not of the factory's model: they {faults}.")
    for name, tensor in tensors.items():
        mine = own[name]
        odd = mine.shape != tensor.shape if exact else mine.dim() != tensor.dim()
        if odd or not (tensor.numel() or not mine.numel()):
            raise UsageError(
                f"The weights hold {name} as {list(tensor.shape)}; the factory's model has {list(mine.shape)}."
            )
        if mine.is_floating_point() != tensor.is_floating_point():
            raise UsageError(f"The weights hold {name} as {tensor.dtype}; the factory's model has {mine.dtype}.")
    fit(model, {name: tuple(tensors.get(name, tensor).shape) for name, tensor in known.items()})
    model.load_state_dict(dict(tensors), strict=False)
