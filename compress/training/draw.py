"""Drawing weights anew: as a model's own layers want it, and what cannot be trained keeps its numbers."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd as Convolution


def draw(module: nn.Module) -> None:
    """Draw all weights in a module anew; what cannot be trained (requires_grad is False) keeps its numbers.

    Convolutions of torch get Kaiming-normal weights (fan-in, ReLU) and no bias. Everything else that has a
    `reset_parameters` is asked, a block after the layers in it: so a model's own way to begin has the last word.
    """
    still = [(p, p.detach().clone()) for p in module.parameters() if not p.requires_grad]
    for layer in _inside_out(module, set()):
        mine = list(layer.parameters(recurse=False))
        if mine and not any(parameter.requires_grad for parameter in mine):
            continue  # with its buffers, such as a batch norm's statistics
        if isinstance(layer, Convolution) and type(layer).reset_parameters is Convolution.reset_parameters:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    with torch.no_grad():
        for parameter, numbers in still:
            parameter.copy_(numbers)


def _inside_out(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """All modules once, each behind those in it; layers come in the order of `modules()`."""
    seen.add(module)
    for child in module.children():
        if child not in seen:
            yield from _inside_out(child, seen)
    yield module
