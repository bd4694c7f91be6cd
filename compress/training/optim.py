"""The optimizer that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.recipe.settings import Train

# The quintic of Newton-Schulz steps, steepest at 0 (Jordan et al. 2024, Muon): singular values end within 0.7 to 1.2.
QUINTIC, TIMES = (3.4445, -4.7750, 2.0315), 5


class Descent(Optimizer):
    """Gradient descent with momentum, as torch.optim.SGD has it; in groups of `muon=True`, Muon.

    Muon (Jordan et al. 2024) steps along U V^T of the momentum's singular value decomposition U S V^T, each weight
    [O, ...] seen as a matrix [O, n], times sqrt(max(1, O / n)); its decay is of the weight itself, lr x weight_decay.

    Per group: lr, momentum, nesterov, weight_decay, muon. State per parameter: momentum_buffer of its shape.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        muon: bool = False,
        **more: Any,
    ) -> None:
        usual = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "muon": muon}
        super().__init__(params, {**usual, **more})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self.move(group, params)
        return loss

    def move(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """One step of these parameters of a group."""
        torch._foreach_add_(params, self.direction(group, params), alpha=-float(group["lr"]))

    def direction(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """What a step goes against, of the shapes of the parameters: the momentum, or what Muon makes of it."""
        momentum, decay, muon = group["momentum"], group["weight_decay"], group["muon"]
        direction = [p.grad for p in params if p.grad is not None]
        if decay and not muon:
            direction = list(torch._foreach_add(direction, params, alpha=decay))
        if momentum:
            buffers = [self.held(p, "momentum_buffer") for p in params]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, direction)
            direction = list(torch._foreach_add(direction, buffers, alpha=momentum)) if group["nesterov"] else buffers
        if muon:
            direction = [orthogonal(one) for one in direction]
            if decay:
                torch._foreach_add_(direction, params, alpha=decay)
        return direction

    def held(self, param: Tensor, key: str) -> Tensor:
        """A tensor of the parameter's state, zeros at its first use; float32 or wider."""
        state = self.state[param]
        if key not in state:
            state[key] = torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))
        tensor: Tensor = state[key]
        return tensor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does, but the state keeps its own precision where torch would cast it to the parameter's."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for param, i in zip(params, saved, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[param][key] = value.to(param.device, copy=True)


def orthogonal(weight: Tensor) -> Tensor:
    """Of a weight [O, ...] = U S V^T, seen as a matrix [O, n]: about U V^T x sqrt(max(1, O / n)), in its shape.

    By `TIMES` steps of Newton-Schulz. A weight of zeros stays so.
    """
    a, b, c = QUINTIC
    matrix = weight.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    # Each step is x <- p x with p = a + b g + c g^2 and g = x x^T. All p and g commute, so small squares will do.
    gram, whole = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(TIMES):
        p = torch.addmm(b * gram, gram, gram, alpha=c)
        p.diagonal().add_(a)
        whole, gram = p @ whole, p @ gram @ p
    x = whole @ x
    out = (x.T if tall else x) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
    shaped: Tensor = out.reshape(weight.shape)
    return shaped


def descent(model: nn.Module, train: Train) -> Optimizer:
    """The optimizer over what can be trained, as the recipe's `train` says."""
    return Descent(groups(model, train), lr=train.lr, momentum=train.momentum, nesterov=train.nesterov)


def groups(model: nn.Module, train: Train, paths: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The optimizer's groups: those that are given, then weights with decay, then vectors, which have none.

    With `optimizer: muon` the filters of all convolutions, given or not, are in groups of their own with its rate.
    """
    decay, plain = decayed(model, [p for group in paths for p in group["params"]])
    rows = [*paths, {"params": decay, "weight_decay": train.weight_decay}, {"params": plain}]
    if train.optimizer == "muon":
        rows = [part for row in rows for part in _split(row, train)]
    return [row for row in rows if row["params"]]


def _split(row: dict[str, Any], train: Train) -> Iterable[dict[str, Any]]:
    """A group's filters, for Muon, and the rest."""
    filters = [p for p in row["params"] if p.dim() > 2]
    yield {
        **row,
        "params": filters,
        "muon": True,
        "lr_scale": train.muon_lr / train.lr,
        "momentum": train.muon_momentum,
        "nesterov": True,
        "weight_decay": train.muon_decay,
    }
    yield {**row, "params": [p for p in row["params"] if p.dim() <= 2]}


def decayed(model: nn.Module, apart: Sequence[nn.Parameter] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters with weight decay, those without): weights of two dimensions or more and the rest; not `apart`."""
    skip = {id(p) for p in apart}
    rest = [p for p in model.parameters() if id(p) not in skip]
    return [p for p in rest if p.dim() > 1], [p for p in rest if p.dim() <= 1]
