"""Finalize, check and export a network that was compressed elsewhere.

    pack("./net.py:make", "pruned.safetensors", (3, 32, 32), "43MFLOPs", "out", data="images.npz")

The factory makes the full network; the weights may be narrower, or masked by torch.nn.utils.prune. What is masked is
cut out, the result is held against real images, and the files and the report are those of a run.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.budget import Stated
from compress.cost import measure
from compress.data import Data, load
from compress.delivery import Story, check_output, deliver
from compress.errors import ArtifactError, UsageError
from compress.graph import read
from compress.init import beside, source_of, stated
from compress.run import Result
from compress.settings import Recipe
from compress.structure import construct
from compress.surgery import fit, survey
from compress.workplace import RESULT, claim, default_out, publish

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def pack(
    factory: str,
    weights: Path | str,
    shape: Sequence[int] | None,
    budget: Stated,
    out: Path | str | None = None,
    *,
    data: str = "digits",
    args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tell: Callable[..., None] = lambda kind, /, **said: None,
) -> Result:
    """Turn a factory and a weights file into an output folder as a run leaves it; `Result.code` is 1 over the budget.

    `weights` is a .safetensors file or a state_dict saved by torch, of compact or of masked tensors. `shape` is
    [C, H, W] of one input (None: the data's). `data` names real images, see `init.source_of`; `mean` and `std` [C], of
    pixels in [0, 1], are those that the network was trained with (None: the data's).

    Raises UsageError for what cannot be used, ArtifactError for a broken weights file or a network that does not
    compute the same once it is finished; then nothing is left behind.
    """
    started = time.monotonic()
    tensors = read_weights(Path(weights))
    factory, folder = beside(factory)
    target = Path(out) if out is not None else default_out(factory.rpartition(":")[2])
    said = stated(
        model={"factory": factory, "args": dict(args or {}), "input": None if shape is None else list(shape)},
        data=source_of(data, size=shape[-1] if shape is not None else None),
        method={"name": "scratch", "epochs": 300, "like": "model.safetensors"},
        budget=budget,
    ).placed(folder)
    pictures = _normalised_by(load(said.data, batch=1, seed=0, device=torch.device("cpu")), mean, std)
    if said.model.input not in (None, pictures.shape):
        raise UsageError(f"The input is {shape}, but the images of {pictures.name} are {pictures.shape}.")
    with claim(target, resume=False) as work:
        result = work / RESULT
        try:
            result.mkdir()
            told = _write(said, tensors, pictures, result, started, tell)
            publish(work, result, target)
        finally:
            shutil.rmtree(result, ignore_errors=True)
    return Result(target, told)


def _write(
    said: Recipe,
    tensors: Mapping[str, Tensor],
    data: Data,
    folder: Path,
    started: float,
    tell: Callable[..., None],
) -> dict[str, Any]:
    """Write all files into an empty folder; the report."""
    factory, args, shape = said.model.factory, said.model.args, data.shape
    model = construct(factory, args, said.folder)
    tell("stage", text=f"reading {factory} with an input of {list(shape)}")
    full, base = survey(model, shape), measure(model, shape)
    budget = said.limits(base)
    fill(model, tensors)
    check_output(model, data)
    story = Story(
        full=full,
        base=base,
        widths={name: space.width for name, space in read(model, shape).spaces.items()},
        command=shlex.join(["compress", *sys.argv[1:]]),
        notes=["it was compressed elsewhere; its training may have seen images that are called validation here"],
    )
    return deliver(model, said, data, budget, folder, story, lambda: time.monotonic() - started, tell)


# ---- weights --------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a state_dict that torch.save wrote, never unpickling code; masks are multiplied in.

    A state_dict inside a checkpoint ({"state_dict": ...}) is found, and prefixes of DataParallel and torch.compile are
    dropped. Raises UsageError where there is no file or no weights in it, ArtifactError where it is broken or foreign.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give a .safetensors file or a saved state_dict.")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a whole safetensors file: {error}") from None
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds on a broken or unsafe file
            raise ArtifactError(
                f"{path}: torch.load(weights_only=True) cannot read it ({type(error).__name__}); "
                "save model.state_dict()."
            ) from None
    inside = [value for value in found.values() if _is_state(value)] if isinstance(found, Mapping) else []
    if not _is_state(found) and len(inside) == 1:
        found = inside[0]
    if not _is_state(found):
        raise UsageError(f"{path}: holds no weights by name, but {type(found).__name__}; save model.state_dict().")
    tensors: dict[str, Tensor] = dict(found)
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


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a fresh model these weights, whatever the widths are.

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
        told = " and ".join(
            f"{word} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for word, names in parts if names
        )
        raise UsageError(f"The weights are not of the factory's model: they {told}.")
    for name, tensor in tensors.items():
        mine = own[name]
        if mine.dim() != tensor.dim() or not (tensor.numel() or not mine.numel()):
            raise UsageError(
                f"The weights hold {name} as {list(tensor.shape)}; the factory's model has {list(mine.shape)}."
            )
        if mine.is_floating_point() != tensor.is_floating_point():
            raise UsageError(f"The weights hold {name} as {tensor.dtype}; the factory's model has {mine.dtype}.")
    fit(model, {name: tuple(tensors.get(name, tensor).shape) for name, tensor in known.items()})
    model.load_state_dict(dict(tensors), strict=False)


# ---- images ---------------------------------------------------------------------------------------------------------


def _normalised_by(data: Data, mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    """The same images, normalised as the network was trained."""
    mean, std = tuple(data.mean if mean is None else mean), tuple(data.std if std is None else std)
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != data.shape[0] or any(not 0 <= number < 256 for number in numbers):
            raise UsageError(f"The {name} is {list(numbers)}; it needs {data.shape[0]} numbers of pixels from 0 to 1.")
    if not all(std):
        raise UsageError(f"The std is {list(std)}; nothing can be divided by zero.")
    factor = torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1)
    summand = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)
    return replace(data, mean=mean, std=std, scaling=(factor, summand))
