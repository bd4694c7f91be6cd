"""What is needed to build a compact network again: factory, arguments, depths, cuts and shapes.

A state, not a history: the shapes stand in the header of the safetensors file anyway, so about 200 bytes of JSON are
enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import ArtifactError, UsageError, place_in
from compress.surgery.numbers import remembered
from compress.surgery.plain import plain
from compress.surgery.stages import Depths, arrange
from compress.surgery.tensors import fit
from compress.surgery.wires import Cuts, cuts_in, rewire

PATIENCE = 60.0  # seconds that somebody else's code may take before it is said where it is


@dataclass(frozen=True, slots=True)
class Structure:
    """A network without its numbers; `shapes` holds every parameter and buffer, [dims] by name."""

    factory: str  # "package.module:callable" or "./file.py:callable"
    args: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    depths: Depths = field(default_factory=dict)  # children of the containers in which blocks were added or left out
    cuts: Cuts = field(default_factory=dict)  # layer -> the sources that it does not read; see connections.cut
    numbers: Mapping[str, int] = field(default_factory=dict)  # that modules hold beside tensors, and surgery changed

    @classmethod
    def read(cls, model: nn.Module, factory: str, args: Mapping[str, Any], depths: Depths | None = None) -> Structure:
        """The structure of a live model that this factory made and surgery changed."""
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        kept = {path: tuple(names) for path, names in (depths or {}).items()}
        return cls(factory, dict(args), shapes, kept, cuts_in(model), remembered(model))

    def build(self, make: Callable[..., nn.Module] | None = None, folder: Path | None = None) -> nn.Module:
        """A fresh module of these shapes, its numbers undefined. `make` stands in for importing the factory.

        Raises ArtifactError where the factory's model has other tensors than the shapes name, or no such depths.
        """
        model = construct(make or self.factory, self.args, folder)
        if model.state_dict().keys() - self.shapes.keys():  # a finished network has no masks and no weight norms
            whole = plain(model)
            model = whole if whole.state_dict().keys() <= self.shapes.keys() else model
        try:
            arrange(model, self.depths)
            model = rewire(model, self.cuts)
        except UsageError as error:
            raise ArtifactError(f"{self.factory} does not build the stored network: {error}") from None
        try:
            fit(model, {name: shape for name, shape in self.shapes.items()}, self.numbers)
        except KeyError as error:
            raise ArtifactError(f"{self.factory} does not build the stored network: {error.args[0]}") from None
        return model

    def to_json(self) -> dict[str, Any]:
        """What the metadata of a safetensors file holds; the shapes are in its header already."""
        return {
            "factory": self.factory,
            "args": dict(self.args),
            "depths": {path: list(names) for path, names in self.depths.items()},
            "cuts": [[layer, list(sources)] for layer, sources in sorted(self.cuts.items())],
            "numbers": dict(self.numbers),
        }

    @classmethod
    def from_file(cls, path: Path) -> Structure:
        """The structure that a model.safetensors of ours describes; no tensor is read.

        Raises ArtifactError where the file is broken or was not written by compress.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path.name} is not a readable safetensors file: {error}") from None
        try:
            structure = json.loads(metadata["compress"])["structure"]
            depths = {str(path): tuple(map(str, names)) for path, names in structure["depths"].items()}
            cuts = {str(layer): tuple(map(str, sources)) for layer, sources in structure["cuts"]}
            numbers = {str(name): int(value) for name, value in structure["numbers"].items()}
            return cls(structure["factory"], structure["args"], shapes, depths, cuts, numbers)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise ArtifactError(
                f"{path.name} does not say how its network is built (no structure in its metadata), "
                "so it was not written by compress; name the factory that builds it"
            ) from None


def construct(
    factory: str | Callable[..., nn.Module], args: Mapping[str, Any], folder: Path | None = None
) -> nn.Module:
    """Call a factory, given by import path, by file (relative to `folder`), or as a callable.

    A model in half or double precision is turned into float32, in which networks are trained, compared and exported
    here. Raises UsageError where it cannot be imported, does not take these arguments, or returns no nn.Module.
    """
    make = locate(factory, folder) if isinstance(factory, str) else factory
    name = factory if isinstance(factory, str) else getattr(factory, "__name__", "the factory")
    try:
        with undisturbed():
            model = make(**args)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise UsageError(f"model.factory: {name}({given}) failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise UsageError(f"model.factory: {name} must return a torch.nn.Module, it returned {type(model).__name__}")
    return model.float()


def locate(factory: str, folder: Path | None = None, key: str = "model.factory") -> Callable[..., Any]:
    """Import what "package.module:callable" or "./file.py:callable" names, as the recipe's `key` says it.

    Raises UsageError where it cannot be.
    """
    module_name, colon, attribute = factory.rpartition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{key}: {factory!r} must look like package.module:callable or ./file.py:callable")
    try:
        with undisturbed():
            if module_name.endswith(".py"):
                module = _from_file((folder or Path()) / module_name)
            else:
                module = importlib.import_module(module_name)
    except FileNotFoundError:
        raise UsageError(f"{key}: there is no file {module_name} beside the recipe") from None
    except Exception as error:
        raise UsageError(f"{key}: {module_name} cannot be imported: {type(error).__name__}: {error}") from None
    made = getattr(module, attribute, None)
    if not callable(made):
        raise UsageError(f"{key}: {module_name} has no callable named {attribute}")
    call: Callable[..., Any] = made
    return call


@contextmanager
def undisturbed() -> Iterator[None]:
    """Somebody else's code may move to another folder, set torch's defaults, or print: afterwards all is as it was, and
    what it prints goes where it mixes with no result.
    """
    home, dtype, device = Path.cwd(), torch.get_default_dtype(), torch.get_default_device()
    watch = threading.Timer(PATIENCE, _tell_of, [threading.get_ident()])
    watch.daemon = True
    watch.start()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        watch.cancel()
        os.chdir(home)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _tell_of(thread: int) -> None:
    """Say where somebody else's code is that does not end: it may wait for a network, or for ever."""
    if frame := sys._current_frames().get(thread):
        where = place_in(traceback.extract_stack(frame)) or "code of a package"
        print(f"compress: {where} has not ended for {PATIENCE:g} s; still waiting, Ctrl-C stops.", file=sys.stderr)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"compress_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
