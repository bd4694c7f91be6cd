"""A model whose weights are parameters of their own, and not computed from others at each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_weight_norm
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from compress.reading.ghost import copied


def plain(model: nn.Module) -> nn.Module:
    """A copy on the CPU in float32 and contiguous layout, with every mask, weight norm and other parametrization
    multiplied in.
    """
    result = copied(model, _plain)
    for module in list(result.modules()):
        for name in [k.removesuffix("_orig") for k in module._parameters if k.endswith("_orig")]:
            if f"{name}_mask" in module._buffers:
                prune.remove(module, name)  # type: ignore[no-untyped-call]
        _remove(module, nn.Module)
    return result


def unnormed(model: nn.Module) -> nn.Module:
    """The same model with its weight norms multiplied in: filters are judged, drawn and trained as they are used."""
    for module in list(model.modules()):
        _remove(module, _WeightNorm)
    return model


def _remove(module: nn.Module, kind: type[nn.Module]) -> None:
    """Take away a module's weight norms, as torch has them now and had them before, and parametrizations of a kind."""
    for hook in [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]:
        remove_weight_norm(module, hook.name)
    if not parametrize.is_parametrized(module):
        return
    assert isinstance(module.parametrizations, nn.ModuleDict)
    own = type(module)  # made by torch for this one module, and edited below: the model's own must not be
    module.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
    for name, steps in list(module.parametrizations.items()):
        if all(isinstance(step, kind) for step in steps.children()):
            parametrize.remove_parametrizations(module, name)


def _plain(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
