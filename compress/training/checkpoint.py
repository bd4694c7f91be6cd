"""A run's state on disk: one safetensors file, replaced atomically, with no pickle in it.

It holds the model's tensors, the optimizer's state by parameter name, what a method has learnt beside the model, and as
metadata the optimizer's settings and whatever plain values the run needs to go on. It proves itself by a digest of all
of that; the one before it is kept beside it, for when it does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from torch import Tensor, nn

from compress.errors import UsageError, one_line

FILE, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
FORMAT = 3  # goes up whenever an older file could not be gone on from


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds."""

    state: dict[str, Any]  # as `save` was given it
    groups: list[dict[str, Any]]  # the optimizer's, its parameters by name
    tensors: dict[str, Tensor]  # model/NAME, optimizer/NAME/KEY, method/NAME, average/NAME
    damaged: str | None = None  # why it is the one before the last

    @property
    def learnt(self) -> dict[str, Tensor]:
        """The method's own tensors, as `save` was given them."""
        return self._below("method/")

    @property
    def average(self) -> dict[str, Tensor]:
        """Those of the average, likewise."""
        return self._below("average/")

    def _below(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    learnt: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model, optimizer, state, and the tensors of a method and of an average.

    A reader sees the old file or the new, never a part.

    Raises OSError where the disk is full or may not be written; then the old file is as it was.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"method/{name}": tensor for name, tensor in (learnt or {}).items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (average or {}).items()}
    for parameter, values in optimizer.state.items():
        tensors |= {f"optimizer/{names[id(parameter)]}/{key}": value for key, value in values.items()}
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}  # tied ones apart
    plain = json.loads(json.dumps({"format": FORMAT, "state": state, "groups": groups}, allow_nan=False))
    header = json.dumps({**plain, "digest": _digest(plain, copies)}, sort_keys=True, allow_nan=False)
    path, partial = folder / FILE, folder / (FILE + ".new")
    try:
        with partial.open("wb") as file:
            file.write(pack(copies, {"checkpoint": header}))
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            path.replace(folder / PREVIOUS)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def there(folder: Path) -> bool:
    """Whether something was saved."""
    return any(os.path.lexists(folder / name) for name in (FILE, PREVIOUS))


def load(folder: Path) -> Saved | None:
    """What was saved last, or None where nothing was; where that is damaged, what was saved before it.

    Raises UsageError where nothing is left that proves itself.
    """
    with suppress(OSError):
        (folder / (FILE + ".new")).unlink(missing_ok=True)  # of a process that was killed while it wrote
    why = None
    for name in (FILE, PREVIOUS):
        if not os.path.lexists(folder / name):
            continue
        try:
            saved = _read(folder / name)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            why = why or f"{folder / name} is not what was saved ({one_line(error)})"
            continue
        return replace(saved, damaged=why)
    if why is None:
        return None
    raise UsageError(f"{why}; remove {folder.name} and start afresh")


def _read(path: Path) -> Saved:
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is no file")
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
        if header["format"] != FORMAT:
            raise ValueError("another version of compress wrote it")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = header.pop("digest")
    if digest != _digest(header, tensors):
        raise ValueError("its digest is another")
    return Saved(header["state"], header["groups"], tensors)


def _digest(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def restore(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors into a model of the saved shapes, and the state into an optimizer made for it.

    Raises UsageError where the model has other tensors, or other shapes.
    """
    own = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    given = {name: tensor for name, tensor in saved.tensors.items() if name.startswith("model/")}
    shapes = [{name: tensor.shape for name, tensor in tensors.items()}.items() for tensors in (own, given)]
    if odd := sorted(name for name, _ in shapes[0] ^ shapes[1]):
        name = odd[0].removeprefix("model/")
        raise UsageError(f"the model is not the one of the interrupted run: {name} is missing or of another shape")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    parameters = dict(model.named_parameters())
    for name, tensor in saved.tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            owner, _, key = rest.rpartition("/")
            if owner not in parameters:
                raise UsageError(f"the model is not the one of the interrupted run: it has no parameter {owner}")
            optimizer.state[parameters[owner]][key] = tensor.to(parameters[owner].device)
    for group, values in zip(optimizer.param_groups, saved.groups, strict=True):
        group.update({**values, "params": [parameters[name] for name in values["params"]]})
