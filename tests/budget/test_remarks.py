"""What is said of a network's size is true of it: that it outgrew the full one, and that nothing more fits."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.budget.limits import Budget, Cost
from compress.budget.price import Price, Term
from compress.budget.remarks import outgrowing, outgrown, unfilled

FULL = Cost(params=1000, macs=2000, thop=2100, bytes=4400, memory=640)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("4kFLOPs", "the full net takes 52.50 % of the budget: adenel grows beyond it; bound it"),
        ("2kFLOPs", "nothing limits params: adenel may make layers wider than the full net's; bound it"),
        ("900params", "nothing limits MACs: adenel may make layers wider than the full net's; bound it"),
        ("4kB", "nothing limits MACs: "),
        ("2kFLOPs, 900params", None),
        ("2kFLOPs, 2kparams", None),
        ("600B@activations", "nothing limits params and MACs: "),
    ],
)
def test_a_method_that_may_outgrow_the_full_net_says_so_before_it_begins(budget: str, says: str | None) -> None:
    said = outgrowing("adenel", Budget.parse(budget), FULL, "; bound it")
    assert said == says if says is None else said is not None and said.startswith(says)


def test_the_layers_that_outgrew_the_full_net_most_are_named_with_what_that_costs() -> None:
    full = {"a": 10, "b": 4, "c": 8, "d": 2, "e": 1}
    widths = {"a": 11, "b": 12, "c": 8, "d": 4, "e": 2, "new": 3}
    cost = Cost(params=2500, macs=1999, thop=0, bytes=0, memory=704)
    assert outgrown(widths, full, cost, FULL) == (
        "grown beyond the full net: b has 12 channels of 4, d has 4 channels of 2, e has 2 channels of 1 and 1 more "
        "layers likewise; it has 2.5 times its params and 1.1 times its activation memory"
    )
    assert outgrown({**full, "a": 3}, full, cost, FULL) is None


def terms(widths: dict[str, int]) -> Iterator[Term]:
    before: tuple[dict[str, int], int] = ({}, 3)
    for name in widths:
        yield Term((9, 90, 90, 36), *before, {name: 1}, 0)
        before = ({name: 1}, 0)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.floats(0.2, 1.2),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_it_says_that_nothing_fits_exactly_where_nothing_does(
    sizes: list[int], share: float, align: int, bounded: bool
) -> None:
    widths = {f"c{number}": size for number, size in enumerate(sizes)}
    price = Price.from_terms(tuple(widths), list(terms(widths)))
    now = price.cost(widths).params
    budget = Budget.parse(f"{max(now, int(now / share))}params")
    bounds = {name: 9 for name in widths} if bounded else {}
    said = unfilled(price, widths, budget, align, bounds, False)
    assert (said is None) == (now >= 0.995 * budget.hard[0].limit)
    if said is None:
        return
    fits = []
    for name, width in widths.items():
        wider = width + 1 if align == 1 or width % 2 else width + 2
        if not (bounded and wider > 9) and price.cost({**widths, name: wider}).params <= budget.hard[0].limit:
            fits.append(name)
    assert ("wider could be" in said) == bool(fits)
    assert all(name in said for name in fits)
