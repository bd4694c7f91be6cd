"""How a cut is shared out among the layers: evenly, by scores, or by the loss that a cut was seen to cost."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from compress.budget.allocation import worthiest
from compress.budget.landing import land
from compress.budget.limits import Budget
from compress.methods.protocol import Lab
from compress.methods.prune.settings import GrowPrune, Prune
from compress.reading.graph import Graph
from compress.surgery.ranking import Ranks, largest

Floats = NDArray[np.float64]
SHARES = (0.75, 0.5, 0.25)  # of a space's width, at which its loss is looked at


def shared_out(lab: Lab, keys: Prune, ranks: Ranks, align: int) -> dict[str, int]:
    """The widths to cut to: within the budget, and as close to it as can be.

    even         one common factor for all spaces (`landing.land`)
    score        the channels go that count least for what they cost, a space's scores being divided by their mean
    sensitivity  each space alone is cut to three widths, and the loss on held-out images tells what channels are worth

    The last two leave each space at least `floor` of what the first would, and are goals of the same landing: what the
    limits still pay for is filled up.
    """
    graph, now = lab.graph, lab.graph.widths
    least = {name: min(align, width) for name, width in now.items()}
    even = evenly(graph, lab.budget, align)
    if keys.allocate == "even":
        return even
    if keys.allocate == "score" and isinstance(keys, GrowPrune):  # what has opened
        opened = {name: max(least[name], int((rank > 0).sum())) for name, rank in ranks.items()}
        return land(graph.price, least, opened, lab.budget, align=align, ceiling=now)
    if keys.allocate == "score":
        worth = {name: ranks[name] / (ranks[name].mean() or 1.0) for name in now} if keys.relative else dict(ranks)
    else:
        worth = sensitivity(lab, ranks)
    floor = {name: max(least[name], min(width, ceil(keys.floor * even[name]))) for name, width in now.items()}
    goal = worthiest(graph.price, worth, floor, lab.budget, align=align)
    return land(graph.price, least, goal, lab.budget, align=align, ceiling=now)


def evenly(graph: Graph, budget: Budget, align: int) -> dict[str, int]:
    """The widths when all spaces are narrowed by one factor; as they are where they keep the budget."""
    now = graph.widths
    if budget.holds(graph.price.cost(now)):
        return now
    least = {name: min(align, width) for name, width in now.items()}
    return land(graph.price, least, now, budget, align=align, ceiling=now)


def sensitivity(lab: Lab, ranks: Ranks) -> dict[str, Floats]:
    """What the channels [width] of every free space are worth, in loss on held-out images, the best first.

    A space's loss is seen at its full width and at `SHARES` of it, with the channels of the largest ranks; between
    these it is the largest convex line below them, so that a better channel is never worth less. Losses of several
    spaces are taken to add up.
    """
    whole = lab.trial({}).loss
    worth = {}
    for name, width in lab.graph.widths.items():
        seen = {width: 0.0}
        for narrow in sorted({max(1, round(share * width)) for share in SHARES} - {width}, reverse=True):
            seen[narrow] = max(0.0, lab.trial(largest({name: ranks[name]}, lab.graph, {name: narrow})).loss - whole)
        worth[name] = slopes(seen, width)
    return worth


def slopes(seen: dict[int, float], width: int) -> Floats:
    """What each channel [width] takes off the loss, of losses seen at some widths: never more than the one before."""
    points = sorted(seen.items())
    hull: list[tuple[int, float]] = []
    for at, loss in points:
        while len(hull) > 1 and _steep(hull[-2], hull[-1]) <= _steep(hull[-2], (at, loss)):
            hull.pop()
        hull.append((at, loss))
    falls = np.zeros(width)
    for left, right in pairwise(hull):
        falls[left[0] : right[0]] = _steep(left, right)
    falls[: hull[0][0]] = falls[hull[0][0]] if hull[0][0] < width else 0.0  # as far as was seen
    return np.maximum(falls, 0.0)


def _steep(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (left[1] - right[1]) / (right[0] - left[0])
