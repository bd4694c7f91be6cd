"""What is to be said of a network's size: that it may outgrow the full one, that it did, why a budget is not filled."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from compress.budget.landing import ENOUGH
from compress.budget.limits import Budget, Cost
from compress.budget.price import Price
from compress.budget.units import MEMORY, percent

NAMED = 3  # layers at most
COUNTERS = {"params": ("params", "B"), "MACs": ("MACs", "FLOPs", "FLOPs@2")}  # units that bound each of them


def outgrowing(grower: str, budget: Budget, full: Cost, cure: str = "") -> str | None:
    """What somebody should know whose method may make layers wider than the full net's, before it begins."""
    if not budget.hard:
        return None
    if (used := budget.utilisation(full)) < 1:
        return f"the full net takes {percent(used)} of the budget: {grower} grows beyond it{cure}"
    limited = {limit.unit for limit in budget.hard}
    if free := [counter for counter, units in COUNTERS.items() if limited.isdisjoint(units)]:
        return f"nothing limits {' and '.join(free)}: {grower} may make layers wider than the full net's{cure}"
    return None


def outgrown(widths: Mapping[str, int], full: Mapping[str, int], cost: Cost, base: Cost) -> str | None:
    """Which layers ended wider than the full net's, the most first, and what the network costs more than that."""
    wider = sorted((name for name in widths if widths[name] > full.get(name, widths[name])),
                   key=lambda name: -widths[name] / full[name])  # fmt: skip
    if not wider:
        return None
    some = ", ".join(f"{name} has {widths[name]} channels of {full[name]}" for name in wider[:NAMED])
    rest = f" and {len(wider) - NAMED} more layers likewise" if len(wider) > NAMED else ""
    counters = {unit: cost.of(unit) / max(base.of(unit), 1) for unit in ("params", "MACs", MEMORY)}
    names = {MEMORY: "activation memory"}
    more = [f"{times:.1f} times its {names.get(unit, unit)}" for unit, times in counters.items() if times > 1]
    return f"grown beyond the full net: {some}{rest}" + (f"; it has {' and '.join(more)}" if more else "")


def unfilled(
    price: Price, widths: Mapping[str, int], budget: Budget, align: int, bounds: Mapping[str, int], deepens: bool
) -> str | None:
    """Why less than 99.5 % of the tightest limit is used; None where it is not less. `bounds` are the most that layers
    may have, where that is bounded; `deepens`: whether there might be more blocks as well.
    """
    if not budget.hard or (used := budget.utilisation(price.cost(widths))) >= ENOUGH:
        return None
    wider = {name: (width // align + 1) * align for name, width in widths.items()}
    able = [name for name in widths if wider[name] <= bounds.get(name, wider[name])]
    fits = [name for name in able if budget.holds(price.cost({**widths, name: wider[name]}))]
    block = ", or by a block," if deepens else ""
    return f"left of the budget: {percent(1 - used)}; {_why(able, fits, align, block)}"


def _why(able: Collection[str], fits: list[str], align: int, block: str) -> str:
    if not able:
        return "no layer may have more channels"
    if not fits:
        return f"one layer wider by {align} channel{'s' * (align > 1)}{block} would exceed it, whichever it is"
    some = ", ".join(fits[:NAMED]) + (f" and {len(fits) - NAMED} more" if len(fits) > NAMED else "")
    return f"the method ended below it, and wider could be {some}"
