"""Turn any choice of connections into one that keeps a budget and fills it, by how probable each connection is.

Over a limit, the least probable kept connection goes; below, the most probable unused one that fits comes, until none
fits. Published LWP has no budget: a child costs what the exponent of its reward makes it cost.

A mask is bool [E], true for a kept connection. A *settled* mask keeps no connection of a layer that reads nothing, nor
one whose result nobody reads: dropping those changes neither the network nor its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compress.budget.limits import Budget, Cost
from compress.budget.price import COLUMNS, Ints
from compress.budget.units import exact
from compress.errors import Infeasible, UsageError

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]
PRICED = ("params", "MACs", "FLOPs", "FLOPs@2")  # what the price of a mask tells
FEW = 32  # connections of which also pairs are tried; with more, single ones fill the budget
FILLED = 0.99  # of the tightest limit: below this, connections are exchanged


class Priced(Protocol):
    """What must be known of the connections: see `compress.surgery.connections.Wiring`."""

    def settle(self, masks: Mask) -> Mask:
        """Masks [N, E] without connections that do nothing [N, E]."""
        ...

    def costs(self, masks: Mask) -> Ints:
        """Parameters, MACs and thop's total of the networks with these masks [N, E]: int64 [N, 3]."""
        ...


def floor(wiring: Priced, edges: int) -> Cost:
    """The cost of the network without any of its `edges` connections: no budget below it can be kept."""
    params, macs, thop = wiring.costs(np.zeros((1, edges), np.bool_))[0].tolist()
    return Cost(params, macs, thop, 0)


def refuse_units(budget: Budget) -> None:
    """Raise UsageError for a limit in a unit that masks have no price for."""
    for limit in budget.hard:
        if limit.unit not in PRICED:
            raise UsageError(
                f"{limit.text}: connections are chosen by parameters, MACs or FLOPs, and cannot be by {limit.unit}; "
                f"write one of those, and {{limit: {limit.text}, level: warn}} beside it"
            )


def refuse(wiring: Priced, edges: int, budget: Budget) -> None:
    """Raise UsageError for a limit that masks have no price for, and Infeasible for a budget below the floor."""
    refuse_units(budget)
    least = floor(wiring, edges)
    for limit in budget.hard:
        if least.of(limit.unit) > limit.limit:
            raise Infeasible(
                f"The budget is below the floor: {limit.text} is less than {exact(least.of(limit.unit), limit.unit)}, "
                "the network without any of the connections that may go."
            )


def usage(costs: Ints, budget: Budget) -> Scores:
    """Of costs [N, 3] the share of the tightest limit that each takes [N]; infinite where a limit is exceeded."""
    used = np.zeros(len(costs))
    for limit in budget.hard:
        columns, times = COLUMNS[limit.unit]
        spent = costs[:, columns].max(1) * times
        used = np.maximum(used, np.where(spent <= limit.limit, spent / limit.limit, np.inf))
    return used


def project(
    scores: Scores,
    wiring: Priced,
    budget: Budget,
    start: Mask | None = None,
    blocks: NDArray[np.int64] | None = None,
    *,
    fill: bool = True,
) -> Mask:
    """The settled mask [E] nearest to `start` (all connections unless given) that keeps the budget and fills it.

    `scores` [E] are the probabilities; `blocks` [E] the block of each connection: none stays empty where the budget
    has room for one connection of each. Over a limit, the kept connection with the lowest score is dropped. Then,
    unless told not to `fill`: while one fits, the unused one with the highest score is added; where that leaves more
    than a hundredth of the budget, single connections are exchanged, for the least loss of score; in the end no unused
    connection fits. Pure and deterministic. Raises what `refuse` raises.
    """
    edges = len(scores)
    refuse(wiring, edges, budget)
    search = _Filling(scores, wiring, budget)
    kept = search.settled(np.ones(edges, np.bool_) if start is None else start)
    guarded = np.zeros(edges, np.bool_)
    while True:
        landed = search.thin(search.settled(kept | guarded), guarded)
        if fill:
            landed = search.exchange(search.fill(landed), guarded)
        again = guarded | _missing(landed, guarded, search, blocks)
        if (again == guarded).all():
            return landed
        guarded = again


def _missing(landed: Mask, guarded: Mask, search: _Filling, blocks: NDArray[np.int64] | None) -> Mask:
    """Of every block that is empty, the connection with the highest score that does something by itself."""
    missing = np.zeros_like(landed)
    if blocks is None:
        return missing
    alone = np.diagonal(search.wiring.settle(np.eye(len(landed), dtype=np.bool_)))
    for block in np.unique(blocks):
        mine = (blocks == block) & alone
        if mine.any() and not (landed & (blocks == block)).any() and not (guarded & mine).any():
            missing[np.flatnonzero(mine)[search.scores[mine].argmax()]] = True
    return missing


class _Filling:
    """The steps of `project` over one wiring, budget and order of connections."""

    def __init__(self, scores: Scores, wiring: Priced, budget: Budget) -> None:
        self.scores, self.wiring, self.budget = scores, wiring, budget
        self.falling = np.argsort(-scores, kind="stable")

    def settled(self, mask: Mask) -> Mask:
        settled: Mask = self.wiring.settle(mask[None])[0]
        return settled

    def used(self, masks: Mask) -> Scores:
        return usage(self.wiring.costs(masks), self.budget)

    def thin(self, kept: Mask, guarded: Mask) -> Mask:
        """Drop the kept connections from the lowest score on, the guarded ones last, until the budget holds."""
        rising = self.falling[::-1]
        order = [*rising[~guarded[rising]], *rising[guarded[rising]]]
        order = [edge for edge in order if kept[edge]]

        def without(count: int) -> Mask:
            mask = kept.copy()
            mask[order[:count]] = False
            return self.settled(mask)

        return without(_first(len(order), lambda count: bool(self.used(without(count)[None])[0] <= 1)))

    def fill(self, kept: Mask, order: NDArray[np.int64] | None = None) -> Mask:
        """Add the first unused connection of the order that fits, until none does; from the highest score on."""
        order = self.falling if order is None else order
        unused = order[~kept[order]]

        def with_first(count: int) -> Mask:
            mask = kept.copy()
            mask[unused[:count]] = True
            return self.settled(mask)

        # All that fit before the first that does not, at once; then one by one.
        over = _first(len(unused) + 1, lambda n: n > len(unused) or bool(self.used(with_first(n)[None])[0] > 1))
        kept = with_first(over - 1)
        while True:
            masks = self.each(kept, order[~kept[order]])
            fitting = np.flatnonzero((masks != kept).any(1) & (self.used(masks) <= 1))
            if not len(fitting):
                return kept
            kept = masks[fitting[0]]

    def each(self, kept: Mask, unused: NDArray[np.int64]) -> Mask:
        """The settled masks with one of these more."""
        masks = np.repeat(kept[None], len(unused), 0)
        masks[np.arange(len(unused)), unused] = True
        return self.wiring.settle(masks)

    def exchange(self, kept: Mask, guarded: Mask) -> Mask:
        """Replace connections that are not guarded by others, as long as the budget is not filled and that helps.

        One by one other and what then fits; where no such pair helps, one, and of few connections two, by whatever fits
        in their place, once by score and once by cost.
        """
        while (now := self.used(kept[None])[0]) < FILLED:
            droppable: list[int] = np.flatnonzero(kept & ~guarded).tolist()
            lacking = [_minus(kept, [edge]) for edge in droppable]
            better = self.better(now, (self.each(mask, np.flatnonzero(~kept)) for mask in lacking))
            if better is None:
                better = self.better(now, (self.refilled(kept, [edge]) for edge in droppable))
            if better is None and len(droppable) <= FEW:
                better = self.better(now, (self.refilled(kept, pair) for pair in combinations(droppable, 2)))
            if better is None:
                return kept
            kept = self.fill(better)
        return kept

    def refilled(self, kept: Mask, dropped: Sequence[int]) -> Mask:
        """Two masks [2, E] without these connections, filled by score and by cost."""
        less = self.settled(_minus(kept, dropped))
        orders = (order[~np.isin(order, dropped)] for order in (self.falling, self.dearest))
        return np.stack([self.fill(less, order) for order in orders])

    @cached_property
    def dearest(self) -> NDArray[np.int64]:
        """The connections by the largest share of the full cost that each takes, in any column, from the top."""
        without = self.wiring.costs(~np.eye(len(self.scores), dtype=np.bool_))
        whole = self.wiring.costs(np.ones((1, len(self.scores)), np.bool_))
        return np.argsort(-np.max([(whole - without)[:, i] / whole[0, i] for i in range(3)], axis=0), kind="stable")

    def better(self, now: float, groups: Iterable[Mask]) -> Mask | None:
        """Of masks that use more than `now`, the one with the highest scores that is filled, else the fullest."""
        best: tuple[bool, float, Mask] | None = None
        for masks in groups:
            used = self.used(masks)
            for row in np.flatnonzero((used > now) & (used <= 1)):
                enough = bool(used[row] >= FILLED)
                value = float(self.scores[masks[row]].sum() if enough else used[row])
                if best is None or (enough, value) > best[:2]:
                    best = enough, value, masks[row]
        return best and best[2]


def _minus(kept: Mask, edges: Sequence[int]) -> Mask:
    mask = kept.copy()
    mask[list(edges)] = False
    return mask


def _first(top: int, true: Callable[[int], bool]) -> int:
    """The least count from 0 to `top` for which it is true; it stays true from there on, and is true at `top`."""
    low, high = 0, top
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle + 1, high)
    return low
