"""Scores by what a layer's readers would put out without a channel, seen on training images.

thinet       Luo et al. 2017, "ThiNet": the channels go one by one whose absence, with those that went before, changes
             the readers' outputs least in squares (their greedy algorithm 1). Theirs samples places and filters; here
             all filters count, at sampled places. Its text was not read for this.
provable     Liebenwein et al. 2020, "Provable Filter Pruning": the largest share that a channel has in any
             pre-activation of its readers, of the positive and of the negative part each, over places and images.
             Theirs draws channels by that; here the largest stay, and shares follow from the budget. Likewise not read.
reconstruct  the channels go one by one whose absence the others make up for best, by least squares in the readers'
             weights: a layer's problem as in Meng et al. 2024, "OSSCAR", solved greedily by the steps of Hassibi and
             Stork 1993, "Optimal Brain Surgeon". Likewise not read.

Where a space has several readers, each one's errors are divided by the mean square of what it puts out. A space of
which no reader can be looked at is judged by its filters' norms.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.methods.protocol import Lab
from compress.methods.prune.readers import Reader, by_channel, look, moments, of_space
from compress.methods.prune.settings import ByReaders, Prune
from compress.surgery.ranking import Ranks, importance

Floats = NDArray[np.float64]
RIDGE = 1e-3  # of the mean square of a column, that least squares add to each
TURNS = 64  # at most about so many, in which a space's channels go
PLACES = 512  # rows that sensitivities are looked at


def thinet(lab: Lab, keys: Prune) -> Ranks:
    """When each channel goes, the last one last: always the one that adds least to the change of the outputs."""
    assert isinstance(keys, ByReaders)
    seen, ranks = moments(lab, keys.batches), importance(lab.model, lab.graph)
    for name in ranks:
        grams = [gram(reader.weight, seen[reader.name], channels) for reader, channels in of_space(lab, name)]
        if grams:
            ranks[name] = going(sum(one / one.sum().abs().clamp(min=1e-30) for one in grams))  # type: ignore[arg-type]
    return ranks


def gram(weight: Tensor, moment: Tensor, channels: NDArray[np.int64]) -> Tensor:
    """Mean products [C, C] of what channels contribute to the outputs, summed over the outputs.

    weight [O, columns]; moment [columns + 1, columns + 1]; channels [columns].
    """
    width = int(channels.max()) + 1
    pairs = moment[:-1, :-1] * (weight.double().T @ weight.double())
    return by_channel(by_channel(pairs, channels, width).T, channels, width)


def going(gram: Tensor) -> Floats:
    """The order [C] in which channels go, by their mean products [C, C]: 0 first."""
    left, change = gram.new_zeros(len(gram)), gram.diagonal().clone()
    for turn in range(len(gram)):
        goes = int(change.argmin())
        left[goes] = turn
        change += 2 * gram[goes]  # what a channel adds once that one is gone
        change[goes] = torch.inf
    return left.cpu().numpy()


def provable(lab: Lab, keys: Prune) -> Ranks:
    """The largest share of any pre-activation's positive or negative part that comes from a channel."""
    assert isinstance(keys, ByReaders)
    ranks = importance(lab.model, lab.graph)
    shares: dict[str, Tensor] = {}

    def see(reader: Reader, rows: Tensor) -> None:
        weight = reader.weight.float()
        for row in rows:
            parts = weight * row  # [O, columns]
            for name, channels in reader.channels.items():
                each = by_channel(parts, channels, len(ranks[name]))
                for signed in (each, -each):
                    whole = (parts if signed is each else -parts).clamp(min=0).sum(1, keepdim=True)
                    share = (signed.clamp(min=0) / whole.clamp(min=1e-30)).amax(0)
                    shares[name] = torch.maximum(shares.get(name, share), share)

    look(lab, keys.batches, lambda reader: PLACES, see)
    return {name: shares[name].double().cpu().numpy() if name in shares else ranks[name] for name in ranks}


def reconstruct(lab: Lab, keys: Prune) -> Ranks:
    """When each channel goes, the last one last: always the one whose loss the readers' other weights repair best."""
    assert isinstance(keys, ByReaders)
    seen, ranks = moments(lab, keys.batches), importance(lab.model, lab.graph)
    for name in ranks:
        layers = [_Layer(reader, seen[reader.name], channels) for reader, channels in of_space(lab, name)]
        if layers:
            ranks[name] = _surgeons_order(layers, len(ranks[name]))
    return ranks


class _Layer:
    """A reader's least-squares problem while channels go: its weight, and the inverse of its second moments.

    Both hold what is left, and the constant: their columns get fewer.
    """

    def __init__(self, reader: Reader, moment: Tensor, channels: NDArray[np.int64]) -> None:
        order = np.argsort(channels, kind="stable")[np.sum(channels < 0) :]
        self.at = torch.from_numpy(order.reshape(int(channels.max()) + 1, -1)).to(moment.device)  # [C, k]
        self.weight = torch.cat([reader.weight.double(), moment.new_zeros(len(reader.weight), 1)], 1)
        self.whole = (self.weight @ moment * self.weight).sum().clamp(min=1e-30)
        self.inverse = torch.linalg.inv(ridged(moment))

    def costs(self, present: Tensor) -> Tensor:
        """What the squared error grows by, relative to the outputs, when each of these channels goes [present]."""
        at = self.at[present]
        own, curve = self.weight[:, at], torch.linalg.inv(self.inverse[at[:, :, None], at[:, None, :]])
        return torch.einsum("ock,ckl,ocl->c", own, curve, own) / self.whole

    def remove(self, gone: Tensor) -> None:
        """Take channels out; the other weights make up for them."""
        at = self.at[gone].flatten()
        step = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])  # [gone columns, columns]
        stays = torch.ones(len(self.inverse), dtype=torch.bool, device=at.device)
        stays[at] = False
        step = step[:, stays]
        self.weight = self.weight[:, stays] - self.weight[:, at] @ step
        self.inverse = self.inverse[stays][:, stays] - self.inverse[stays][:, at] @ step
        self.at = (stays.cumsum(0) - 1)[self.at]  # of those that are gone no matter what


def _surgeons_order(layers: list[_Layer], width: int) -> Floats:
    """When each channel goes [width]: one at a time, or of a wide space a sixty-fourth."""
    order, present = np.zeros(width), np.arange(width)
    while len(present):
        costs = sum(layer.costs(torch.from_numpy(present)).cpu().numpy() for layer in layers)
        first = np.argsort(costs, kind="stable")[: max(1, width // TURNS)]
        order[present[first]] = width - len(present) + np.arange(len(first))
        gone, present = present[first], np.delete(present, first)
        for layer in layers if len(present) else ():
            layer.remove(torch.from_numpy(gone))
    return order


def ridged(moment: Tensor) -> Tensor:
    """Second moments that have an inverse."""
    return moment + RIDGE * moment.diagonal().mean().clamp(min=1e-12) * torch.eye(len(moment)).to(moment)
