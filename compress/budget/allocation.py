"""Choose widths by what channels are worth: as much worth as the limits pay for, each space keeping a least width.

A knapsack whose items are channels, the best first in each space, and which cannot be solved item by item: what a
channel costs depends on how wide its neighbours are. So the whole network is taken, and the unit goes that is worth
least for what it frees of the limits that are still broken, until all hold; then what still fits comes back, the best
first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compress.budget.landing import Search, ceilings_of
from compress.budget.limits import Budget
from compress.budget.price import Price

Floats = NDArray[np.float64]
UNITS = 64  # in which a space goes at most: of a wide one several channels at a time


def worthiest(
    price: Price, worth: Mapping[str, Floats], least: Mapping[str, int], budget: Budget, *, align: int = 1
) -> dict[str, int]:
    """The widths that keep the most worth within a budget, none below `least`; over it where these are.

    `worth` has for every space a number >= 0 for each of its channels. What is left is for `landing.land`, of which
    these widths are the goal. Pure and deterministic.
    """
    best = [np.concatenate([[0.0], np.cumsum(np.sort(worth[name])[::-1])]) for name in price.spaces]
    full = np.array([len(kept) - 1 for kept in best], np.int64)
    low = np.minimum(price.vector(least), full)
    search = Search(price, full, low, full, ceilings_of(budget, price), align)
    units = np.maximum(1, full // (UNITS * align)) * align
    while (search.slack < 0).any():
        down = np.minimum(units, search.w - low)
        if not (down > 0).any():
            break
        freed = down[:, None] * (search.slopes - down[:, None] * search.own)
        space = _least(best, search, -down, (freed * search.weight)[:, search.slack < 0].max(1), down > 0)
        search.move(space, -int(down[space]))
    while True:
        up, cost, allowed = search.wider()
        able = allowed & (cost <= search.slack).all(1)
        if not able.any():
            return dict(zip(price.spaces, search.w.tolist(), strict=True))
        space = _least(best, search, up, (cost * search.weight).max(1), able)
        search.move(space, int(up[space]))


def _least(best: list[Floats], search: Search, by: NDArray[np.int64], shares: Floats, able: NDArray[np.bool_]) -> int:
    """The space to change: where it costs the least worth, or brings the most, for its share of the limits."""
    now = search.w
    gained = np.array([kept[w + n] - kept[w] for kept, w, n in zip(best, now, np.where(able, by, 0), strict=True)])
    value = gained / np.maximum(shares, 1e-30)  # below 0 where channels go
    return int(np.where(able, value, -np.inf).argmax())
