"""Tensors of a live model change their shape here, and nowhere else.

One primitive, `take`: along one dimension, every new index names its old one or is fresh (-1). Weights, biases,
running statistics and, by the surgeon, optimizer state all go through it, so that a parameter and its state never part.
A parameter's `.data` is never resized, since an autograd graph still alive keeps the old shape: a new Parameter takes
the old one's place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.budget.price import Ints
from compress.reading.graph import Edit
from compress.surgery.numbers import put

Columns = Literal["zero", "kaiming"]


def take(tensor: Tensor, dim: int, source: Ints) -> Tensor:
    """`tensor` with index `source[j]` at position j of `dim`; zeros where source[j] is -1."""
    taken = tensor.index_select(dim, torch.from_numpy(np.maximum(source, 0)).to(tensor.device))
    fresh = np.flatnonzero(source < 0)
    if fresh.size:
        taken.index_fill_(dim, torch.from_numpy(fresh).to(tensor.device), 0)
    return taken


def takes(edit: Edit) -> dict[str, dict[int, Ints]]:
    """For every tensor that an edit changes and each of its axes, the old index of every new one."""
    sources: dict[str, dict[int, Ints]] = defaultdict(dict)
    for (name, dim), source in sorted(edit.takes.items()):
        sources[name][dim] = source
    return sources


def change(model: nn.Module, edit: Edit, *, columns: Columns = "zero", seed: int = 0) -> dict[int, Tensor]:
    """Carry out an edit that a graph planned; by the id of every old tensor, the one in its place."""
    generator = torch.Generator().manual_seed(seed)
    olds: dict[str, Tensor] = {}
    swaps: dict[int, Tensor] = {}
    for name, sources in takes(edit).items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = olds[name] = getattr(owner, leaf)
        new = old.detach()
        for dim, source in sources.items():
            new = take(new, dim, source)
        for role in ("out", "channel", "in"):  # columns last: where both are fresh, zero columns win
            for dim, source in sources.items():
                fresh = np.flatnonzero(source < 0)
                if edit.before.slots[name, dim].role == role and fresh.size:
                    _fill(new, dim, fresh, role, columns, generator, _start(owner, leaf))
        swaps[id(old)] = _in_place_of(old, new)
    readers = edit.before.slots.keys()  # a depthwise weight has no axis that reads channels
    depthwise = [old for name, old in olds.items() if name in edit.before.kernels and (name, 1) not in readers]
    swap(model, swaps, {id(swaps[id(weight)]) for weight in depthwise})
    put(model, edit.after.numbers)
    return swaps


def fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], numbers: Mapping[str, int] | None = None) -> None:
    """Give a fresh model's tensors these shapes, their numbers undefined: what a compact network is loaded into.

    Tied tensors may be named once, and buffers that no file holds not at all; `numbers` are those that modules hold in
    plain attributes. Raises KeyError where other names differ from the model's own.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    known = model.state_dict().keys()
    missing, extra = sorted(tensors.keys() & known - shapes.keys()), sorted(shapes.keys() - known - tensors.keys())
    if missing or extra:
        raise KeyError(f"the model's tensors are not those of the file: missing {missing[:3]}, unexpected {extra[:3]}")
    swaps: dict[int, Tensor] = {}
    for name, old in tensors.items():
        if tuple(old.shape) != tuple(shapes.get(name, old.shape)):
            swaps[id(old)] = _in_place_of(old, old.detach().new_zeros(shapes[name]))
    convolutions = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    depthwise = [module.weight for module in convolutions if 1 < module.groups == module.in_channels]
    swap(model, swaps, {id(swaps.get(id(weight), weight)) for weight in depthwise})
    put(model, numbers or {})


def swap(model: nn.Module, swaps: Mapping[int, Tensor], depthwise: Collection[int] = ()) -> None:
    """Put new tensors in the places of old ones (by id), wherever modules hold them, and set the modules' sizes.

    `depthwise` holds the ids of new convolution weights that have as many groups as channels: one with a single channel
    cannot tell itself.
    """
    touched: set[int] = set()
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if id(tensor) in swaps:
                    held[key] = swaps[id(tensor)]  # type: ignore[assignment]
                    touched.add(id(module))
    for module in model.modules():
        parts = [module]
        if parametrize.is_parametrized(module):  # its own weight is computed from theirs
            parts += module.get_submodule("parametrizations").modules()
        if any(id(part) in touched for part in parts):
            _refresh(module, depthwise=id(getattr(module, "weight", None)) in depthwise)


def _refresh(module: nn.Module, depthwise: bool) -> None:
    """Set a layer's own record of its sizes from its tensors, which are the truth."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second = _weight(module).shape[:2]
        if module.transposed:
            module.groups = first if depthwise else module.groups
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.groups = first // (module.out_channels // module.groups) if depthwise else module.groups
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = _weight(module).shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups  # a group comes and goes as a whole
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // each
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        layer = "_l0" if isinstance(module, nn.RNNBase) else ""
        module.input_size = module.get_parameter(f"weight_ih{layer}").shape[1]
        module.hidden_size = module.get_parameter(f"weight_hh{layer}").shape[1]
        if isinstance(module, nn.RNNBase):  # it computes with a list of its own
            module._flat_weights = [module._parameters[name] for name in module._flat_weights_names]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _weight(module: nn.Module) -> Tensor:
    """A layer's weight, or what torch's older weight norm will compute it from at the next call."""
    weight = module._parameters.get("weight_v")
    weight = getattr(module, "weight") if weight is None else weight  # noqa: B009 -- a property where it is computed
    assert isinstance(weight, Tensor)
    return weight


def _in_place_of(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _start(owner: nn.Module, leaf: str) -> float | None:
    """What a tensor with one value for each channel starts at in a new one; None: at the mean of the present ones."""
    if leaf in ("bias", "running_mean"):
        return 0.0
    norm = isinstance(owner, nn.modules.batchnorm._NormBase | nn.GroupNorm)
    return 1.0 if norm and leaf in ("weight", "running_var") else None


def _fill(new: Tensor, dim: int, fresh: Ints, role: str, columns: Columns, generator: torch.Generator,
          start: float | None) -> None:  # fmt: skip
    """Set the fresh indices along one dimension to what a new channel starts with."""
    index = torch.from_numpy(fresh).to(new.device)
    if role == "channel" and start is not None:
        new.index_fill_(dim, index, start)
    elif role == "channel":
        old = np.setdiff1d(np.arange(new.shape[dim]), fresh)
        known = new.index_select(dim, torch.from_numpy(old).to(new.device))
        one = known.narrow(dim, 0, 1)  # a fixed kernel is the same for all channels, and goes on as it is
        one = one if bool((known == one).all()) else known.float().mean(dim, keepdim=True).to(new.dtype)
        new.index_copy_(dim, index, one.repeat_interleave(len(fresh), dim))
    elif role == "in" and columns == "zero":
        new.index_fill_(dim, index, 0.0)
    else:
        filters = new.shape[dim if role == "out" else 1 - dim]
        shape = [len(fresh) if d == dim else size for d, size in enumerate(new.shape)]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32) * (2 * filters / new.numel()) ** 0.5
        new.index_copy_(dim, index, drawn.to(new.device, new.dtype))
