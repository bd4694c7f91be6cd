"""How much a layer grows: amounts of a round, from the price of a channel, the full net's widths, or scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compress.budget.limits import Budget
from compress.budget.price import COLUMNS, Price
from compress.methods.adenel.settings import Adenel

LEAST = 10_000  # the dearest channel is at most so many times the cheapest: what is free must not grow without end
BALANCING = 50  # steps to the prices of several limits; they settle within a few


def proposal(
    price: Price,
    widths: Mapping[str, int],
    ready: Sequence[str],
    budget: Budget,
    settings: Adenel,
    *,
    due: Mapping[str, int],
    full: Mapping[str, int],
    scores: Mapping[str, float],
) -> dict[str, int]:
    """The widths that a round asks for, whatever budget and alignment say: the spaces that are ready to grow rise.

    What earlier rounds asked for and did not get is `due`; `full` are the widths of the full net. With grow "score" all
    amounts are in proportion to a power of the `scores`.
    """
    shares = _shares(price, widths, ready, budget) if ready else {}
    pool = settings.filters * float(np.mean([*shares.values()] or [0.0]))
    amounts: dict[str, Callable[[str], float]] = {
        "fixed": lambda name: settings.filters,
        "even": lambda name: settings.filters * full[name] * len(full) / sum(full.values()),
        "ratio": lambda name: max(settings.filters, int(settings.ratio * widths[name]) - widths[name]),
        "equal_cost": lambda name: max(1, round(pool / shares[name])),
    }
    added = amounts[settings.amount]
    powers = {name: scores[name] ** settings.sharpness if settings.grow == "score" else 1.0 for name in ready}
    mean = float(np.mean([*powers.values()] or [1.0]))
    return {**widths, **{n: widths[n] + due.get(n, 0) + max(1, round(added(n) * powers[n] / mean)) for n in ready}}


def _shares(price: Price, widths: Mapping[str, int], ready: Sequence[str], budget: Budget) -> dict[str, float]:
    """What one channel more of each ready space takes of what is left of the budget.

    Of several limits it is a weighted mean, with the weights at which equal shares use up all of them together (or
    leave out those that cannot be used up): the prices of proportional fairness. Any one limit alone would be spent
    long before the others.
    """
    rows, steps, cost = [price.spaces.index(name) for name in ready], price.steps(widths), price.cost(widths)
    left = [(*COLUMNS[limit.unit], max(1, limit.limit - cost.of(limit.unit))) for limit in budget.hard]
    strain = np.stack([steps[rows][:, columns].max(1) * times / rest for columns, times, rest in left], axis=1)
    strain = np.maximum(strain, strain.max() / LEAST)
    weights = np.full(len(left), 1 / len(left))
    for _ in range(BALANCING):
        used = (strain / (strain @ weights)[:, None]).mean(0)  # of each limit, if every space took one share
        weights = weights * used / (weights @ used)
    return dict(zip(ready, (strain @ weights).tolist(), strict=True))
