"""Repairs after a cut: what reads the channels that stay is changed until its outputs are nearly as before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress.methods.protocol import Lab
from compress.methods.prune.layerwise import gram, ridged
from compress.methods.prune.readers import Reader, moments, readers_of

DEAD = 1e-9  # of the mean square of columns: what is less puts out nothing


def repair(lab: Lab, how: str, batches: int, keep: dict[str, list[int]]) -> None:
    """Change what readers make of the channels that stay, so that their outputs are as before, as far as that goes.

    scale  one factor for each channel that stays (ThiNet's last step)
    solve  all their weights, and the bias where there is one (least squares)

    `keep` names the channels of narrowed spaces; the others are still there, and their columns no longer matter.
    """
    seen = moments(lab, batches)
    for reader in readers_of(lab.model, lab.graph):
        moment, stays = seen[reader.name], np.ones(reader.weight.shape[1], bool)
        for name, channels in reader.channels.items():
            if name in keep:
                stays &= (channels < 0) | np.isin(channels, keep[name])
        if not stays.all():
            _REPAIRS[how](reader, moment, torch.from_numpy(stays).to(moment.device))


def _solve(reader: Reader, moment: Tensor, stays: Tensor) -> None:
    bias = getattr(reader.module, "bias", None)
    last = bias.detach().double()[:, None] if bias is not None else moment.new_zeros(len(reader.weight), 1)
    whole = torch.cat([reader.weight.double(), last], 1)
    kept = torch.cat([stays, stays.new_full((1,), bias is not None)])
    solved = torch.linalg.solve(ridged(moment[kept][:, kept]), moment[kept] @ whole.T).T
    alive = moment.diagonal()[:-1] > DEAD * moment.diagonal()[:-1].mean()  # what is always zero keeps its weights
    whole[:, :-1][:, stays & alive] = solved[:, : int(stays.sum())][:, alive[stays]]
    reader.give(whole[:, :-1])
    if bias is not None:
        bias.detach().copy_(solved[:, -1])


def _scale(reader: Reader, moment: Tensor, stays: Tensor) -> None:
    weight = reader.weight.clone()
    for channels in reader.channels.values():
        products = gram(reader.weight, moment, channels)
        left = np.unique(channels[stays.cpu().numpy() & (channels >= 0)])
        if len(left) == len(products):
            continue
        whole = products[left].sum(1)
        factors = torch.linalg.solve(ridged(products[left][:, left]), whole)
        own = products.diagonal()[left]
        factors = torch.where(own > DEAD * products.diagonal().mean(), factors, 1.0)
        for channel, factor in zip(left.tolist(), factors.tolist(), strict=True):
            weight[:, torch.from_numpy(channels == channel).to(moment.device)] *= factor
    reader.give(weight)


_REPAIRS = {"scale": _scale, "solve": _solve}
