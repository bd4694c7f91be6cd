"""What weights start from, and the optimizer that all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from compress.recipe.settings import Train


def draw(module: nn.Module) -> None:
    """Draw all weights in a module anew: Kaiming-normal (fan-in, ReLU) for convolutions, other layers their own way."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif callable(reset := getattr(layer, "reset_parameters", None)):
            reset()


def sgd(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """Plain SGD over what can be trained, as the recipe's `train` says; vectors have no weight decay."""
    decay, plain = decayed(model)
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": train.weight_decay}, {"params": plain}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=train.lr, momentum=train.momentum, nesterov=train.nesterov
    )


def decayed(model: nn.Module, apart: Sequence[nn.Parameter] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters with weight decay, those without): weights of two dimensions or more and the rest; not `apart`."""
    skip = {id(p) for p in apart}
    rest = [p for p in model.parameters() if id(p) not in skip]
    return [p for p in rest if p.dim() > 1], [p for p in rest if p.dim() <= 1]
