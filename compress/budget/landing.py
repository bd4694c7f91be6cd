"""Choose the widths that fill a budget as close as can be, and never exceed it.

The trap: filling up with whatever still fits pours the rest of the budget into one cheap layer (LeNet's first
convolution is nearly free in parameters). So all widths move together first, and every space has a cap after that,
which gives way only where less than 99.5 % would be used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from compress.budget.limits import Budget
from compress.budget.price import CEILING, COLUMNS, Ints, Price
from compress.budget.units import MEMORY, exact
from compress.errors import CompressError, Infeasible

GRID = 2**40  # common factors tried; fine enough to tell apart any two that give other widths, up to 2**20 channels
ENOUGH = 0.995  # of the tightest limit
CAPS = (1.25, 2.0, 4.0)  # times its scaled width, that a space may have; what fits, where even the last is not enough
REPLACEMENTS = 64  # bounds the search at the end, which settles far earlier


def land(
    price: Price,
    start: Mapping[str, int],
    goal: Mapping[str, int],
    budget: Budget,
    *,
    align: int = 1,
    ceiling: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The widths from start on that fill the budget: over no limit, and no room left for one unit more up to the caps.

    1. All spaces go from `start` towards `goal` by the largest common factor that fits: these are the scaled widths.
    2. The rest is handed out unit by unit, the costliest that fits first, one per space and turn, up to a cap: a
       quarter more than the scaled width or two, rounded up to `align`. One unit goes to the next multiple of `align`.
    3. Units are replaced by costlier ones that fit; no space falls more than one unit under its scaled width for that.
    4. Spaces that were not to grow (goal equal to start) get what then still fits, up to their caps.
    5. Where that is less than 99.5 % of the tightest limit, caps are twice and four times the scaled width, and then
       what fits; a goal that fits, and names no ceiling, keeps its caps.

    Widths are multiples of `align` unless they stay at `start`. `ceiling` names the most each space may ever have: when
    a trained network is narrowed, its own widths. Wider must not cost less. Pure and deterministic.
    Raises Infeasible when `start` is over a limit.
    """
    full, top = price, price.vector(goal)
    price = _straining(price, np.maximum(np.floor(CAPS[0] * top).astype(np.int64), top + 2) + align, budget)
    scaled, lower, caps = reach(price, start, goal, budget, align=align, ceiling=ceiling)
    ceilings = ceilings_of(budget, price)
    growing = np.where(top > price.vector(start), caps, scaled)
    w = _along(scaled, growing, align, _within(price, ceilings))
    w = _fill(Search(price, w, lower, growing, ceilings, align))
    w = _fill(Search(price, w, w, caps, ceilings, align))
    most = price.vector(ceiling) if ceiling is not None else None
    for cap in (*CAPS[1:], None) if most is not None or (scaled < top).any() else ():
        if _used(full, w, budget) >= ENOUGH:
            break
        search = Search(full, w, lower, w, ceilings_of(budget, full), align)
        search.caps = np.maximum(_capped(search.room() if cap is None else scaled, cap or 1.0, most, align), w)
        w = _fill(search)
    landed = dict(zip(price.spaces, w.tolist(), strict=True))
    assert budget.holds(full.cost(landed)), "the columns above disagree with the budget"
    return landed


def reach(
    price: Price,
    start: Mapping[str, int],
    goal: Mapping[str, int],
    budget: Budget,
    *,
    align: int = 1,
    ceiling: Mapping[str, int] | None = None,
) -> tuple[Ints, Ints, Ints]:
    """The scaled widths [S] of `land`, and the least [S] and the most [S] that it gives each space of the price
    as long as that fills the budget.

    Raises Infeasible when `start` is over a limit.
    """
    low, top, fits = price.vector(start), price.vector(goal), _within(price, ceilings_of(budget, price))
    if align < 1 or (top < low).any():
        raise CompressError(f"landing: align={align} must be >= 1, and no goal under its start: {start} -> {goal}.")
    if not fits(low):
        raise Infeasible(_too_small(price, start, budget))
    scaled = _along(low, top, align, fits)
    # One unit less is much of a small width: only where the cap could give it back.
    lower = np.maximum(low, np.where((scaled - align) * CAPS[0] >= scaled, scaled - align, scaled))
    most = price.vector(ceiling) if ceiling is not None else None
    caps: Ints = np.maximum(_capped(scaled, CAPS[0], most, align), scaled)
    return scaled, lower, caps


def _capped(scaled: Ints, cap: float, most: Ints | None, align: int) -> Ints:
    """The most [S] that a landing gives each space of these scaled widths, none beyond `most`."""
    caps: Ints = -(-np.maximum(np.floor(cap * scaled).astype(np.int64), scaled + 2) // align) * align
    return caps if most is None else np.asarray(np.minimum(caps, most // align * align))


def _used(price: Price, w: Ints, budget: Budget) -> float:
    return budget.utilisation(price.cost(dict(zip(price.spaces, w.tolist(), strict=True))))


def _within(price: Price, ceilings: Ints) -> Callable[[Ints], bool]:
    """Whether widths [S] are within every ceiling."""
    return lambda w: bool((price.totals(w) <= ceilings).all())


def _straining(price: Price, most: Ints, budget: Budget) -> Price:
    """The price without the moments that no net up to the widths `most` [S] brings above a limit."""
    memory = [limit.limit for limit in budget.hard if limit.unit == MEMORY]
    return price.reaching(min(memory, default=CEILING), most)


def ceilings_of(budget: Budget, price: Price) -> Ints:
    """The most each column of a price [C] may be; CEILING where nothing limits it."""
    ceilings = np.full(4 + len(price.peaks), CEILING, np.int64)
    for limit in budget.hard:
        columns, times = COLUMNS[limit.unit]
        ceilings[columns] = np.minimum(ceilings[columns], limit.limit // times)
    return ceilings


def _too_small(price: Price, start: Mapping[str, int], budget: Budget) -> str:
    cost = price.cost(start)
    over = [limit for limit in budget.hard if cost.of(limit.unit) > limit.limit]
    excess = " and ".join(f"{exact(cost.of(limit.unit), limit.unit)}, over '{limit.text}'" for limit in over)
    return f"The narrowest network to start from already takes {excess}; raise the limit or start narrower."


def _along(low: Ints, top: Ints, align: int, fits: Callable[[Ints], bool]) -> Ints:
    """The widths low + f * (top - low), rounded down to align, at the largest f in [0, 1] that fits."""

    def at(n: int) -> Ints:
        reached = [a + n * (b - a) // GRID for a, b in zip(low.tolist(), top.tolist(), strict=True)]
        return np.maximum(low, np.array(reached, np.int64) // align * align)

    if fits(at(GRID)):
        return at(GRID)
    inside, outside = 0, GRID
    while outside - inside > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if fits(at(middle)) else (inside, middle)
    return at(inside)


class Search:
    """A point w [S] between `low` and `caps` that fits, and exact integers for what every move from there costs."""

    def __init__(self, price: Price, w: Ints, low: Ints, caps: Ints, ceilings: Ints, align: int) -> None:
        self.w, self.low, self.caps, self.align = w, low, caps, align
        self.ceilings, self.slack = ceilings, ceilings - price.totals(w)
        self.slopes, self.bends = price.slopes(w), price.bends()
        self.own = self.bends.diagonal().T // 2  # what widening by n costs beside n slopes: n * n * own [S, C]
        self.weight: NDArray[np.float64] = np.where(ceilings < CEILING, 1 / np.maximum(ceilings, 1), 0.0)

    def wider(self) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """One unit up for each space: the channels [S], their cost [S, C], and whether the cap allows it [S]."""
        up = (self.w // self.align + 1) * self.align - self.w
        return up, up[:, None] * (self.slopes + up[:, None] * self.own), self.w + up <= self.caps

    def room(self) -> Ints:
        """The width [S] up to which each space would fit alone; its own where nothing that is limited grows with it."""
        grows = (self.slopes > 0) & (self.ceilings < CEILING)
        fits = np.where(grows, self.slack // np.maximum(self.slopes, 1), CEILING).min(1)
        room: Ints = self.w + np.where(grows.any(1), fits, 0)
        return room

    def move(self, space: int, channels: int) -> None:
        """Widen one space, or narrow it by a negative number."""
        self.slack = self.slack - channels * (self.slopes[space] + channels * self.own[space])
        self.slopes = self.slopes + channels * self.bends[space]
        self.w = self.w + channels * np.eye(1, len(self.w), space, np.int64)[0]


def _fill(search: Search) -> Ints:
    """Hand out units and replace them in turn until neither gets closer to the limits."""
    _hand_out(search)
    for _ in range(REPLACEMENTS):
        if not _replace(search):
            break
        _hand_out(search)
    return search.w


def _hand_out(search: Search) -> None:
    """Add the unit with the largest share of a limit, one per space and turn, until none fits."""
    served = np.zeros(len(search.w), bool)
    while True:
        up, price, allowed = search.wider()
        able = allowed & (price <= search.slack).all(1)
        if not able.any():
            return
        if not (able & ~served).any():
            served[:] = False
        space = int(np.where(able & ~served, (price * search.weight).max(1), -1).argmax())
        search.move(space, int(up[space]))
        served[space] = True


def _replace(search: Search) -> bool:
    """Give one space a unit and take as few as make room from another: the best pair, if that gets closer."""
    up, price, allowed = search.wider()
    unit = np.minimum(search.align, search.w - search.low)
    # [a, b, column]: what one unit less of b saves once a has one more, and how much there is to save
    saved = unit[:, None] * search.slopes + (up[:, None] * unit)[..., None] * search.bends
    need = (price - search.slack)[:, None]
    units = (-(-need // np.maximum(saved, 1))).max(-1).clip(1, search.w.max() + 1)
    down = units * unit
    # Exact; the count above is not where a space meets itself in a term, and then the move may turn out not to fit.
    both = up[:, None, None] * down[..., None] * search.bends
    change = price[:, None] - down[..., None] * (search.slopes - down[..., None] * search.own) - both
    valid = allowed[:, None] & (down > 0) & (down <= search.w - search.low) & (change <= search.slack).all(-1)
    np.fill_diagonal(valid, False)
    used = (search.ceilings - search.slack) * search.weight
    reached = np.where(valid, (used + change * search.weight).max(-1), 0.0)
    a, b = divmod(int(reached.argmax()), len(search.w))
    if reached[a, b] <= used.max() * (1 + 1e-12):  # float noise is no progress
        return False
    search.move(b, -int(down[a, b]))
    search.move(a, int(up[a]))
    return True


def beyond(
    price: Price, widths: Mapping[str, int], budget: Budget, names: Collection[str] | None = None
) -> dict[str, int]:
    """These widths, those of `names` (all if None) scaled up by one factor until they exceed the budget.

    It is what a landing that fills the budget starts from.
    """
    factor, wider = 1.0, dict(widths)
    while budget.holds(price.cost(wider)):  # ends: `price` refuses costs that are beyond any limit
        factor *= 1.2
        wider = {n: int(w * factor) + 1 if names is None or n in names else w for n, w in widths.items()}
    return wider
