"""Where channels differ in worth, a budget is shared out by worth for cost, and never exceeded."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget.allocation import worthiest
from compress.budget.landing import land
from compress.budget.limits import Budget
from compress.budget.price import Price, Term


def chain(*pixels: int) -> Price:
    """Layers one behind the other: each costs its inputs x its outputs x its pixels, and has as many parameters."""
    names = [f"c{at}" for at in range(len(pixels))]
    terms = []
    for at, name in enumerate(names):
        left: Any = ({names[at - 1]: 1}, 0) if at else ({}, 3)
        terms.append(Term((1, pixels[at], pixels[at], 4), *left, {name: 1}, 0))
    return Price.from_terms(names, terms)


def kept(worth: Sequence[float], width: int) -> float:
    return sum(sorted(worth, reverse=True)[:width])


WORTHS = st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=1, max_size=3)


@given(WORTHS, st.floats(0.05, 1.0), st.floats(0.1, 1.0), st.data())
@settings(max_examples=150)
def test_both_limits_hold_and_nothing_that_still_fits_is_left_out(
    worths: list[list[float]], macs: float, params: float, data: st.DataObject
) -> None:
    price = chain(*data.draw(st.lists(st.integers(1, 9), min_size=len(worths), max_size=len(worths))))
    worth = {name: np.array(one) for name, one in zip(price.spaces, worths, strict=True)}
    full = {name: len(one) for name, one in worth.items()}
    base = price.cost(full)
    budget = Budget.parse(f"{max(1, round(macs * base.macs))}MACs, {max(1, round(params * base.params))}params")
    ones = dict.fromkeys(full, 1)
    widths = worthiest(price, worth, ones, budget)
    assert all(1 <= widths[name] <= full[name] for name in full)
    if budget.holds(price.cost(ones)):
        assert budget.holds(price.cost(widths))
        wider = [{**widths, name: widths[name] + 1} for name in full if widths[name] < full[name]]
        assert not any(budget.holds(price.cost(one)) for one in wider)
    else:
        assert widths == ones


def test_it_keeps_nearly_as_much_worth_as_the_best_of_all_widths() -> None:
    draw, shares = np.random.default_rng(0), []
    for _ in range(60):
        price = chain(*draw.integers(1, 9, 3).tolist())
        worth = {name: draw.random(draw.integers(4, 8)) ** 2 for name in price.spaces}
        full = {name: len(one) for name, one in worth.items()}
        budget = Budget.parse(f"{round(draw.uniform(0.2, 0.8) * price.cost(full).macs)}MACs")

        def value(widths: dict[str, int], worth: Any = worth) -> float:
            return sum(kept(worth[name].tolist(), width) for name, width in widths.items())

        every = (
            dict(zip(full, some, strict=True)) for some in itertools.product(*(range(1, n + 1) for n in full.values()))
        )
        best = max(value(widths) for widths in every if budget.holds(price.cost(widths)))
        shares.append(value(worthiest(price, worth, dict.fromkeys(full, 1), budget)) / best)
    assert np.mean(shares) > 0.98
    assert min(shares) > 0.85


def test_a_layer_of_worthless_channels_gives_way_down_to_its_floor_and_no_further() -> None:
    price = chain(4, 4, 4)
    worth = {"c0": np.ones(16), "c1": np.full(16, 1e-6), "c2": np.ones(16)}
    budget = Budget.parse(f"{price.cost({'c0': 16, 'c1': 4, 'c2': 16}).macs}MACs")
    widths = worthiest(price, worth, {"c0": 1, "c1": 4, "c2": 1}, budget)
    assert widths == {"c0": 16, "c1": 4, "c2": 16}
    with_one = worthiest(price, worth, {"c0": 1, "c1": 1, "c2": 1}, budget)
    assert with_one["c1"] <= 4
    assert budget.holds(price.cost(with_one))


def test_landing_fills_up_what_is_left() -> None:
    price, draw = chain(9, 5, 2, 1), np.random.default_rng(3)
    worth = {name: draw.random(64) for name in price.spaces}
    full = dict.fromkeys(price.spaces, 64)
    budget = Budget.parse(f"{price.cost(full).macs // 3}MACs")
    goal = worthiest(price, worth, dict.fromkeys(full, 8), budget)
    landed = land(price, dict.fromkeys(full, 1), goal, budget, ceiling=full)
    assert all(landed[name] >= goal[name] - 1 for name in full)
    assert budget.utilisation(price.cost(landed)) > 0.999


def test_a_goal_with_room_left_is_filled_up_further_than_usual() -> None:
    price = chain(4, 4, 1)
    full, goal = {"c0": 12, "c1": 12, "c2": 60}, {"c0": 12, "c1": 1, "c2": 1}
    budget = Budget.parse(f"{price.cost({'c0': 12, 'c1': 4, 'c2': 3}).macs}MACs")
    ones = dict.fromkeys(full, 1)
    landed = land(price, ones, goal, budget, ceiling=full)
    usual = {name: max(width + 2, width * 5 // 4) for name, width in goal.items()}
    assert budget.utilisation(price.cost({name: min(usual[name], full[name]) for name in full})) < 0.95
    assert budget.holds(price.cost(landed))
    assert budget.utilisation(price.cost(landed)) > 0.97


def test_units_of_wide_layers_are_multiples_of_the_alignment() -> None:
    price = chain(3, 2)
    worth = {"c0": np.arange(512.0), "c1": np.arange(256.0)}
    budget = Budget.parse(f"{price.cost({'c0': 512, 'c1': 256}).macs // 2}MACs")
    widths = worthiest(price, worth, {"c0": 8, "c1": 8}, budget, align=8)
    assert all(width % 8 == 0 for width in widths.values())
    assert budget.utilisation(price.cost(widths)) == pytest.approx(1, abs=0.05)
