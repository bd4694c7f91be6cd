"""DI-ISS: SGD that also follows a sparse path of every filter, which tells how many filters a layer really uses.

Beside a weight W the path keeps Z and its sparse image Gamma, both of W's shape, from the loss
L(W) + |W - Gamma|^2 / (2 nu). One step, with W, Gamma and Z of before the step on every right-hand side:

    m     <- momentum * m + gradient + weight_decay * W
    Z     <- Z + lr / nu * (W - Gamma)
    Gamma <- kappa * prox(Z)
    W     <- W - kappa * lr * (m + (W - Gamma) / nu)          the coupling stays outside the momentum

    prox, per filter g (row g of the weight):  max(0, 1 - lambda_g / |Z_g|) * Z_g
    prox, per entry:                           sign(z) * max(0, |z| - lambda_g)

AdeNeL, equations 5 to 8. Differs: equation 8 is printed with min for max and lambda misplaced; this is the proximal map
of the group lasso. Weight decay acts on the gradient, as in torch.optim.SGD.

While Gamma_g = 0, Z_g is lr / nu times the sum of all W_g so far. So filter g enters the support at the first step at
which clock * |time average of W_g| > lambda_g, where the clock is the sum of lr / nu since the last restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.training.optim import Descent

MODES = ("absolute", "layer", "filter")
PENALTIES = ("filter", "entry")


class DIISS(Descent):
    """`Descent`, SGD with momentum or Muon, and in groups of `path=True` the split Bregman iteration above.

    Per group, beside `Descent`'s: nu, kappa; `path`; `penalty`, "filter" (convolutions) or "entry" (linear layers);
    `couple`, False to switch the group's path off (plain SGD); `clock`, the sum of lr / nu since the last restart. The
    weights of a path lie on one device. In groups of `muon=True` what Muon makes of m stands in its place.
    State per parameter [O, ...]: momentum_buffer, z and gamma of its shape, threshold [O]; float32 or wider, because
    lr / nu * W vanishes in bfloat16. Until the first restart the threshold is 1, that of the authors' code.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        *,
        nu: float = 100.0,
        kappa: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        path: bool = False,
        penalty: str = "filter",
        couple: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            nu=nu,
            kappa=kappa,
            path=path,
            penalty=penalty,
            couple=couple,
            clock=0.0,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; raises CompressError for a setting out of range."""
        merged = {**self.defaults, **param_group}
        wrong = [key for key in ("nu", "kappa") if not merged[key] > 0]
        wrong += [key for key in ("lr", "momentum", "weight_decay") if not merged[key] >= 0]
        wrong += [] if merged["penalty"] in PENALTIES else ["penalty"]
        wrong += ["momentum"] if merged["nesterov"] and not merged["momentum"] else []
        if wrong:
            settings = ", ".join(f"{key}={merged[key]!r}" for key in wrong)
            raise CompressError(
                f"DI-ISS cannot run with {settings}; penalties are {PENALTIES}, nesterov needs momentum."
            )
        super().add_param_group(param_group)
        if merged["path"] and (flat := [list(p.shape) for p in self.param_groups[-1]["params"] if p.dim() < 2]):
            raise CompressError(f"DI-ISS follows weights with filters along their first axis; {flat[0]} has none.")

    def move(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """One step of these parameters of a group."""
        lr, nu, direction = float(group["lr"]), group["nu"], self.direction(group, params)
        if group["path"] and group["couple"]:
            gammas, zs = ([self.held(p, key) for p in params] for key in ("gamma", "z"))
            apart = torch._foreach_sub(params, gammas)
            torch._foreach_add_(zs, apart, alpha=lr / nu)
            lambdas = [self._threshold(p) for p in params]
            _prox_(gammas, zs, lambdas, group["penalty"], group["kappa"])
            direction = list(torch._foreach_add(direction, apart, alpha=1 / nu))
            group["clock"] += lr / nu
        torch._foreach_add_(params, direction, alpha=-lr * group["kappa"])

    def _threshold(self, param: Tensor) -> Tensor:
        """The thresholds [O] of a weight's filters, 1 at first."""
        state = self.state[param]
        if "threshold" not in state:
            dtype = torch.promote_types(param.dtype, torch.float32)
            state["threshold"] = torch.ones(len(param), dtype=dtype, device=param.device)
        threshold: Tensor = state["threshold"]
        return threshold

    @torch.no_grad()
    def restart(self, thresholds: float | Mapping[Any, Tensor | float]) -> None:
        """Begin a new round of the path: Z = Gamma = 0, clocks at 0, new thresholds lambda; the momentum stays.

        The thresholds are one number for all, or by weight (every one of a path) a number or one per filter [O].
        Raises CompressError when a mapping leaves out a weight of a path.
        """
        for group in self.param_groups:
            group["clock"] = 0.0
            for param in group["params"] if group["path"] else ():
                if isinstance(thresholds, Mapping) and param not in thresholds:
                    raise CompressError(f"DI-ISS: the restart has no threshold for a weight {list(param.shape)}.")
                self.held(param, "z").zero_()
                self.held(param, "gamma").zero_()
                value = thresholds[param] if isinstance(thresholds, Mapping) else thresholds
                threshold = self._threshold(param)
                threshold.copy_(torch.as_tensor(value, dtype=threshold.dtype))

    @torch.no_grad()
    def kept(self, param: Tensor) -> float:
        """The mean of |Z_g| / (clock |W_g|) over the filters g of a weight of a path; 0 before the first step."""
        clock = next(group["clock"] for group in self.param_groups if any(p is param for p in group["params"]))
        rows = [self.held(param, "z").flatten(1), param.flatten(1)]
        z, w = (row.float().norm(dim=1) for row in rows)
        return float((z / (clock * w).clamp_min(torch.finfo(z.dtype).tiny)).mean()) if clock else 0.0

    @torch.no_grad()
    def support(self, param: Tensor) -> Tensor:
        """Which filters of the weight are in the support, Gamma_g != 0: bool [O]."""
        return self.held(param, "gamma").flatten(1).ne(0).any(1)


@torch.no_grad()
def thresholds(weight: Tensor, mode: str, clock: float, theta: float, value: float, penalty: str = "filter") -> Tensor:
    """The thresholds lambda [O] of one weight [O, ...], for a round at whose end the clock will be `clock`.

    "filter": theta * clock * |W_g|, so that a filter is selected when its time average has more than the share theta of
    its present norm. "layer": the same with the layer's mean norm. "absolute": `value`, 1 in the authors' code.
    With the penalty "entry" the mean absolute entry of a row stands for its norm.
    """
    if mode not in MODES:
        raise CompressError(f"DI-ISS: the thresholds' mode is one of {MODES}, got {mode!r}.")
    rows = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    if mode == "absolute":
        return rows.new_full((len(rows),), value)
    norms = rows.norm(dim=1) if penalty == "filter" else rows.abs().mean(1)
    return theta * clock * (norms if mode == "filter" else norms.mean().expand_as(norms).clone())


def _prox_(gammas: list[Tensor], zs: list[Tensor], lambdas: list[Tensor], penalty: str, kappa: float) -> None:
    """gamma = kappa * prox(z) for every weight; all filters' norms are one vector, to keep the number of calls low."""
    if penalty == "entry":
        for gamma, z, row in zip(gammas, zs, lambdas, strict=True):
            shrunk = (z.abs() - row.view(-1, *[1] * (z.dim() - 1))).clamp_min(0)
            torch.mul(z.sign(), shrunk, out=gamma).mul_(kappa)
        return
    norms = torch.cat([torch.linalg.vector_norm(z, dim=tuple(range(1, z.dim()))) for z in zs])
    tiny = torch.finfo(norms.dtype).tiny  # a filter at zero stays there, and divides nothing by zero
    scale = (1 - torch.cat(lambdas) / norms.clamp_min(tiny)).clamp_min(0) * kappa
    for gamma, z, rows in zip(gammas, zs, torch.split(scale, [len(z) for z in zs]), strict=True):
        torch.mul(z, rows.view(-1, *[1] * (z.dim() - 1)), out=gamma)
