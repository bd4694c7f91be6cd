"""Weights from a file into a module: read without running code, checked name by name before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import ArtifactError, UsageError
from compress.surgery.tensors import fit

_WRAPPERS = ("module", "_orig_mod", "_module")  # what DataParallel, torch.compile and others put before names
_BOOKS = ("n_averaged",)  # what averages of weights count beside them
_NO_WEIGHTS = ("optim", "sched", "scaler", "loops", "callbacks")  # parts of a checkpoint that hold other tensors
_DEPTH = 4  # of nested dictionaries that are looked into
_FIRST = {b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with git lfs pull",
          b"<": "is a page of HTML or XML; download the file itself"}  # fmt: skip


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read a .safetensors file, or a state_dict that torch.save wrote, never unpickling code; masks are multiplied in.

    A state_dict inside a checkpoint ({"state_dict": ...}) is found; where there are several, `key` names one:
    "state_dict_ema", "model.ema". Raises UsageError where there is no file, no weights in it, several and no key, or a
    tensor that is none of plain numbers, ArtifactError where the file is broken or foreign.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give a .safetensors file or a saved state_dict.")
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    for first, what in _FIRST.items():
        if start.startswith(first):
            raise ArtifactError(f"{path}: {what}.")
    states = dict(_states(_content(path)))
    if key is not None and key not in states:
        raise UsageError(f"{path}: holds no weights under {key!r}, but under {_listed(states)}.")
    if len(states) > 1 and key is None:
        raise UsageError(
            f"{path}: holds weights under {_listed(states)}; say which, as model.weights_key or by --weights-key."
        )
    if not states:
        raise UsageError(f"{path}: holds no weights by name; save model.state_dict().")
    tensors = states[key] if key is not None else next(iter(states.values()))
    tensors = {name: _plain(path, name, tensor) for name, tensor in tensors.items()}
    for name in [n for n in tensors if n.endswith("_orig") and f"{n.removesuffix('_orig')}_mask" in tensors]:
        plain = name.removesuffix("_orig")
        tensors[plain] = tensors.pop(name) * tensors.pop(f"{plain}_mask")
    return tensors


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a whole safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused by name
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a broken or unsafe file
        raise ArtifactError(
            f"{path}: torch.load(weights_only=True) cannot read it ({type(error).__name__}); save model.state_dict()."
        ) from None


def _states(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries of tensors by name within nested ones, by their keys; what optimizers keep is none."""
    if not isinstance(content, Mapping) or len(at) > _DEPTH or not all(isinstance(name, str) for name in content):
        return
    inner = {name: value for name, value in content.items() if isinstance(value, Mapping) and value}
    inner = {name: value for name, value in inner.items() if not any(word in name.lower() for word in _NO_WEIGHTS)}
    if inner:
        for name, value in inner.items():
            yield from _states(value, (*at, name))
    elif tensors := {name: value for name, value in content.items() if isinstance(value, Tensor)}:
        yield ".".join(at), tensors


def _listed(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    return ", ".join(f"{key!r} ({len(state)} tensors)" for key, state in list(states.items())[:6]) or "no key at all"


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor of plain numbers; those of 8 bits in float32."""
    if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        kind = "nested" if tensor.is_nested else kind.removeprefix("torch.")
        raise UsageError(f"{path}: {name} is a {kind} tensor and not one of plain numbers; save it as such.")
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, exact: bool = False) -> None:
    """Give a fresh model these weights, whatever the widths are; with `exact`, only at the model's own widths.

    What wrappers put before names is dropped, the model's or the file's. Counters of batch norm, tied weights and
    buffers that a state_dict leaves out may be missing. Raises UsageError where other names are missing or unknown,
    where a tensor is of another kind than the model's, and where a number is none that the model has there too.
    """
    own = model.state_dict()
    known = dict([*model.named_parameters(), *model.named_buffers()])
    tensors = _named_alike(own, tensors)
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
    for name, tensor in list(tensors.items()):
        mine = own[name]
        if not mine.is_floating_point() and tensor.is_floating_point() and torch.equal(tensor, tensor.round()):
            tensors[name] = tensor = tensor.to(mine.dtype)  # a counter that was halved along with the weights
        odd = mine.shape != tensor.shape if exact else mine.dim() != tensor.dim()
        if odd or not (tensor.numel() or not mine.numel()):
            raise UsageError(
                f"The weights hold {name} as {list(tensor.shape)}; the factory's model has {list(mine.shape)}."
            )
        if mine.is_floating_point() != tensor.is_floating_point():
            raise UsageError(f"The weights hold {name} as {tensor.dtype}; the factory's model has {mine.dtype}.")
        if tensor.is_floating_point() and not _finite(mine, tensor):
            raise UsageError(
                f"The weights hold numbers in {name} that are not finite; such a network computes nothing."
            )
    fit(model, {name: tuple(tensors.get(name, tensor).shape) for name, tensor in known.items()})
    model.load_state_dict(dict(tensors), strict=False)


def _named_alike(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the model's own names, where dropping wrappers, or what all names begin with, makes them so."""
    mine = {_unwrapped(name): name for name in own}
    if len(mine) < len(own):
        return dict(tensors)
    given = {_unwrapped(name): tensor for name, tensor in tensors.items() if name not in _BOOKS or name in own}
    while given and not given.keys() & mine.keys():  # "model.", "net.": a training framework's
        heads = {name.partition(".")[0] for name in given}
        if len(heads) > 1 or not all("." in name for name in given):
            return dict(tensors)
        given = {name.partition(".")[2]: tensor for name, tensor in given.items()}
    return {mine.get(name, name): tensor for name, tensor in given.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _finite(mine: Tensor, tensor: Tensor) -> bool:
    """Whether all numbers are finite, but for those that the model itself begins with, as masks and observers have."""
    odd = ~tensor.isfinite()
    alike = mine.shape == tensor.shape and not mine.is_meta and bool((mine.to(tensor.dtype)[odd] == tensor[odd]).all())
    return not bool(odd.any()) or alike
