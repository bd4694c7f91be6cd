"""Landing fills a budget as close as can be, and never exceeds it."""

import itertools
import runpy
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from math import ceil, floor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget.landing import land, reach
from compress.budget.limits import Budget, Limit
from compress.budget.price import Moment, Price, Term
from compress.budget.units import UNITS
from compress.errors import CompressError, Infeasible

Family = tuple[Price, dict[str, int]]  # a price, and the widths of its full network
ONE: tuple[dict[str, int], int] = ({}, 1)


def conv(inputs: Mapping[str, int], fixed: int, out: str, kernel: int, pixels: int) -> Iterator[Term]:
    """A k x k convolution of `inputs` (and `fixed` image channels) to `out` with batch norm, `pixels` outputs."""
    k = kernel * kernel
    yield Term((k, k * pixels, k * pixels, 4 * k), inputs, fixed, {out: 1}, 0)
    yield Term((2, 0, 4 * pixels, 4), {out: 1}, 0, *ONE)


def linear(inputs: str, outputs: int) -> Iterator[Term]:
    yield Term((outputs, outputs, outputs, 4 * outputs), {inputs: 1}, 0, *ONE)
    yield Term((outputs, 0, 0, 4 * outputs), *ONE, *ONE)


def vgg16() -> Family:
    full = {f"c{i}": n for i, n in enumerate([64] * 2 + [128] * 2 + [256] * 3 + [512] * 6)}
    family: list[Term] = []
    before: tuple[dict[str, int], int] = ({}, 3)
    pixels = 32 * 32
    for i, name in enumerate(full):
        family += conv(*before, name, 3, pixels)
        before = ({name: 1}, 0)
        pixels //= 4 if i in (1, 3, 6, 9, 12) else 1
    return Price.from_terms(full, [*family, *linear("c12", 10)]), full


def resnet(blocks: int) -> Family:
    """Three stages: each has one width for its stream, and each block a free one inside."""
    full, family, before = {"s0": 16}, [*conv({}, 3, "s0", 3, 1024)], "s0"
    for stage, block in itertools.product(range(3), range(blocks)):
        stream, inner, pixels = f"s{stage}", f"s{stage}b{block}", 1024 // 4**stage
        full |= {stream: 16 * 2**stage, inner: 16 * 2**stage}
        family += [*conv({before: 1}, 0, inner, 3, pixels), *conv({inner: 1}, 0, stream, 3, pixels)]
        family += conv({before: 1}, 0, stream, 1, pixels) if before != stream else []
        before = stream
    return Price.from_terms(full, [*family, *linear("s2", 10)]), full


def densenet121() -> Family:
    """Every layer reads all layers of its block before it: 120 spaces."""
    full, family, seen, pixels = {"stem": 64}, [*conv({}, 3, "stem", 7, 112 * 112)], {"stem": 1}, 56 * 56
    for block, layers in enumerate((6, 12, 24, 16)):
        for layer in range(layers):
            inner, grown = f"b{block}l{layer}inner", f"b{block}l{layer}"
            full |= {inner: 128, grown: 32}
            family.append(Term((2, 0, 4 * pixels, 8), seen, 0, *ONE))
            family += [*conv(seen, 0, inner, 1, pixels), *conv({inner: 1}, 0, grown, 3, pixels)]
            seen = {**seen, grown: 1}
        name = f"t{block}"
        full[name] = sum(full[space] for space in seen) // 2
        pixels //= 4
        family += conv(seen, 0, name, 1, pixels)
        seen = {name: 1}
    return Price.from_terms(full, [*family, *linear("t3", 1000)]), full


def lenet() -> Family:
    """Caffe's LeNet-5: the first convolution is nearly free in parameters, and costly in multiply-accumulates."""
    family = [
        Term((25, 25 * 576, 25 * 576, 100), {}, 1, {"c1": 1}, 0),
        Term((25, 25 * 64, 25 * 64, 100), {"c1": 1}, 0, {"c2": 1}, 0),
        Term((16, 16, 16, 64), {"c2": 1}, 0, {"f1": 1}, 0),
        *(Term((1, 0, 0, 4), {name: 1}, 0, *ONE) for name in ("c1", "c2", "f1")),
    ]
    full = {"c1": 20, "c2": 50, "f1": 500}
    return Price.from_terms(full, [*family, *linear("f1", 10)]), full


FAMILIES = {"vgg16": vgg16(), "resnet20": resnet(3), "resnet56": resnet(9), "densenet": densenet121(), "lenet": lenet()}
SHARES = (0.05, 0.15, 0.3, 0.5, 0.8)
LIMITED = (("params",), ("FLOPs",), ("params", "FLOPs"), ("FLOPs@2", "B"))


def test_the_families_cost_what_the_published_networks_cost() -> None:
    """Else what is claimed of them below would say little: counts of independent implementations."""
    published = {"vgg16": (14_724_042, 313_201_664), "resnet20": (272_474, 40_813_184), "lenet": (431_080, 2_293_000)}
    costs = {name: price.cost(full) for name, (price, full) in FAMILIES.items() if name in published}
    assert {name: (cost.params, cost.macs) for name, cost in costs.items()} == published


def seed(full: Mapping[str, int], width: int) -> dict[str, int]:
    return {space: min(width, n) for space, n in full.items()}


def between(price: Price, start: Mapping[str, int], goal: Mapping[str, int], share: float, *units: str) -> Budget:
    """A budget at this share of the way from one cost to another, in each unit."""
    low, high = price.cost(start), price.cost(goal)
    return Budget(tuple(Limit(u, int(low.of(u) + share * (high.of(u) - low.of(u))), u) for u in units))


def naive_scaled(
    price: Price, start: Mapping[str, int], goal: Mapping[str, int], budget: Budget, align: int
) -> dict[str, int]:
    """The widths of the largest common factor: every factor at which one width changes is tried."""
    steps = {Fraction(n - start[s], goal[s] - start[s]) for s in start for n in range(start[s] + 1, goal[s] + 1)}
    best = dict(start)
    for f in sorted(steps | {Fraction(1)}):
        at = {s: max(start[s], floor(start[s] + f * (goal[s] - start[s])) // align * align) for s in start}
        if not budget.holds(price.cost(at)):
            break
        best = at
    return best


def cap_of(scaled: int, align: int) -> int:
    return max(scaled, ceil(max(floor(1.25 * scaled), scaled + 2) / align) * align)


@st.composite
def landings(draw: st.DrawFn) -> tuple[Price, dict[str, int], dict[str, int], Budget, int]:
    """A random bilinear family of up to 6 spaces, a start, a goal, a budget that holds the start, and an alignment."""
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    some = st.dictionaries(st.sampled_from(names), st.integers(1, 3), max_size=3)
    coef = st.tuples(*[st.integers(0, 400)] * 4)
    term = st.builds(Term, coef, some, st.integers(0, 3), some, st.integers(0, 3))
    moment = st.builds(Moment, st.just("layer"), some, st.integers(0, 30))
    terms, moments = draw(st.lists(term, min_size=1, max_size=9)), draw(st.lists(moment, min_size=1, max_size=6))
    price = Price.from_terms(names, terms, moments)
    start = {name: draw(st.integers(1, 20)) for name in names}
    goal = {name: n + draw(st.sampled_from([0, 1, 5, 40])) for name, n in start.items()}
    units = draw(st.lists(st.sampled_from(UNITS), min_size=1, unique=True))
    room = draw(st.floats(0, 2))
    limits = [limit for limit in between(price, start, goal, room, *units).limits if limit.limit > 0]
    budget = Budget((*limits, Limit("params", 10**9, "never tight")))
    return price, start, goal, budget, draw(st.sampled_from([1, 4, 8]))


@settings(max_examples=250)
@given(landings())
def test_no_limit_is_exceeded_and_no_unit_below_a_cap_still_fits(
    case: tuple[Price, dict[str, int], dict[str, int], Budget, int],
) -> None:
    price, start, goal, budget, align = case
    w = land(price, start, goal, budget, align=align)
    scaled = naive_scaled(price, start, goal, budget, align)
    assert budget.holds(price.cost(w))
    common, least, most = reach(price, start, goal, budget, align=align)
    enough = budget.utilisation(price.cost(w)) >= 0.995 or scaled == goal
    for space, n in w.items():
        assert n == start[space] or n % align == 0
        assert n >= max(start[space], scaled[space] - align)
        assert n <= cap_of(scaled[space], align) or scaled != goal
        wider = {**w, space: (n // align + 1) * align}
        costs = any(price.cost(wider).of(limit.unit) > price.cost(w).of(limit.unit) for limit in budget.limits)
        done = wider[space] > cap_of(scaled[space], align) and (enough or not costs)
        assert done or not budget.holds(price.cost(wider))
    if budget.holds(price.cost(goal)) and align == 1:
        assert scaled == goal
    assert land(price, dict(reversed(start.items())), goal, budget, align=align) == w
    assert common.tolist() == price.vector(scaled).tolist()
    assert (least <= price.vector(w)).all()
    assert most.tolist() == [cap_of(n, align) for n in price.vector(scaled).tolist()]


@pytest.mark.parametrize(("align", "least", "middle"), [(1, 0.995, 0.9995), (8, 0.97, 0.998)])
def test_budgets_between_the_seed_and_the_full_network_are_filled(align: int, least: float, middle: float) -> None:
    reached = []
    for (name, (price, full)), share, units in itertools.product(FAMILIES.items(), SHARES, LIMITED):
        if name == "lenet" and align == 8:
            continue  # three spaces with widths of 8 to 48: the next claim but one bounds what can be reached there
        start = seed(full, 4 if name == "lenet" else 8)
        budget = between(price, start, full, share, *units)
        landed = price.cost(land(price, start, full, budget, align=align))
        assert budget.holds(landed)
        reached.append(budget.utilisation(landed))
    assert min(reached) >= least
    assert statistics.median(reached) >= middle


def calls(work: Callable[[], object]) -> int:
    """How many functions are called: the clock of a machine on which nothing else runs."""
    count = 0

    def heard(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(heard)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_120_spaces_are_landed_in_thousands_of_steps_and_not_in_millions() -> None:
    price, full = FAMILIES["densenet"]
    start = seed(full, 8)
    for share, units, align in itertools.product((SHARES[0], SHARES[-1]), LIMITED, (1, 8)):
        budget = between(price, start, full, share, *units)
        assert calls(partial(land, price, start, full, budget, align=align)) < 6000


@pytest.mark.parametrize(("align", "gap"), [(1, 0.003), (8, 0.001)])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("units", LIMITED)
def test_three_spaces_are_filled_nearly_as_well_as_trying_all_widths(
    share: float, units: tuple[str, ...], align: int, gap: float
) -> None:
    price, full = FAMILIES["lenet"]
    start = seed(full, 8 if align == 8 else 4)
    budget = between(price, start, full, share, *units)
    scaled = naive_scaled(price, start, full, budget, align)
    ranges = [sorted({n, *range(ceil(n / align) * align, cap_of(n, align) + 1, align)}) for n in scaled.values()]
    costs = (price.cost(dict(zip(scaled, w, strict=True))) for w in itertools.product(*ranges))
    best = max(budget.utilisation(cost) for cost in costs if budget.holds(cost))
    landed = price.cost(land(price, start, full, budget, align=align))
    assert budget.utilisation(landed) >= best - gap


def test_the_rest_of_a_budget_is_poured_into_a_cheap_layer_only_where_too_little_is_used_without_that() -> None:
    # LeNet's convolutions before a fixed linear layer: 251 parameters a filter of the first, 3226 of the second.
    family = [Term((25, 1, 1, 1), {}, 1, {"c1": 1}, 0), Term((25, 1, 1, 1), {"c1": 1}, 0, {"c2": 1}, 0)]
    family += [Term((1, 0, 0, 0), {"c1": 1, "c2": 1}, 0, *ONE), Term((25 * 120, 0, 0, 0), {"c2": 1}, 0, *ONE)]
    price = Price.from_terms(("c1", "c2"), family)
    budget = Budget((Limit("params", price.cost({"c1": 9, "c2": 9}).params + 2500, "2500 more than 9-9"),))
    at_cap, landed = {"c1": cap_of(9, 1), "c2": 9}, land(price, {"c1": 6, "c2": 6}, {"c1": 12, "c2": 12}, budget)
    assert budget.utilisation(price.cost(at_cap)) < 0.95
    assert landed == {
        "c1": 9 + 2500 * 9 // (price.cost({"c1": 18, "c2": 9}).params - price.cost({"c1": 9, "c2": 9}).params),
        "c2": 9,
    }
    limit = price.cost(at_cap).params + 100
    assert land(price, {"c1": 6, "c2": 6}, {"c1": 12, "c2": 12}, Budget((Limit("params", limit, "near"),))) == at_cap


@pytest.mark.parametrize("align", [1, 4])
def test_one_cheap_space_beside_dear_ones_is_widened_until_nothing_fits(align: int) -> None:
    # VGG 16-16-32 on digits, pooled after the second convolution, within 60 kFLOPs.
    family = [*conv({}, 1, "c0", 3, 64), *conv({"c0": 1}, 0, "c1", 3, 64), *conv({"c1": 1}, 0, "c2", 3, 16)]
    price, full = Price.from_terms(("c0", "c1", "c2"), [*family, *linear("c2", 10)]), {"c0": 16, "c1": 16, "c2": 32}
    for limit in range(30_000, 200_000, 7_001):
        budget = Budget((Limit("FLOPs", limit, "all"),))
        w = land(price, dict.fromkeys(full, align), full, budget, align=align, ceiling=full)
        for space in full:
            wider = {**w, space: w[space] + align}
            fits = wider[space] <= full[space] and budget.holds(price.cost(wider))
            assert not fits or budget.utilisation(price.cost(w)) >= 0.995


def test_spaces_that_were_not_to_grow_come_last() -> None:
    price, full = FAMILIES["vgg16"]
    start = seed(full, 16)
    goal = {space: 48 if space in ("c3", "c4", "c5", "c6") else n for space, n in start.items()}
    half = between(price, start, goal, 0.5, "FLOPs")
    w = land(price, start, goal, half)
    assert min(w[s] for s in ("c3", "c4", "c5", "c6")) >= 28
    assert sum(w[s] - n for s, n in start.items() if goal[s] == n) <= 2
    roomy = Budget((Limit("FLOPs", 2 * price.cost(goal).thop, "twice"),))
    caps = {space: cap_of(n, 1) for space, n in goal.items()}
    assert land(price, start, goal, roomy) == caps


def test_a_goal_that_fits_is_reached_and_passed_in_proportion() -> None:
    price, full = FAMILIES["vgg16"]
    goal = {space: n // 4 for space, n in full.items()}
    budget = Budget((Limit("params", int(1.2 * price.cost(goal).params), "a fifth more"),))
    w = land(price, seed(full, 8), goal, budget)
    root = 1.2**0.5  # the cost is nearly quadratic in a common factor of all widths
    assert all(root * n - 3 - 0.02 * n <= w[space] <= root * n + 1 + 0.02 * n for space, n in goal.items())


def test_narrowing_starts_from_small_widths_and_never_passes_the_full_ones() -> None:
    for name, (price, full) in FAMILIES.items():
        one = dict.fromkeys(full, 1)
        for share in (0.1, 0.5, 0.97):
            budget = between(price, one, full, share, "MACs")
            w = land(price, one, full, budget, ceiling=full)
            assert all(1 <= w[space] <= n for space, n in full.items())
            least = 0.99 if name == "lenet" else 0.999
            assert least <= budget.utilisation(price.cost(w)) <= 1
        everything = Budget((Limit("MACs", 10**12, "no limit"),))
        assert land(price, one, full, everything, ceiling=full) == full
        aligned = land(price, one, full, everything, align=8, ceiling=full)
        assert aligned == {space: n // 8 * 8 for space, n in full.items()}


@pytest.mark.parametrize("level", ["error", "warn"])
def test_every_error_level_limit_counts_and_no_warning_does(level: str) -> None:
    price, full = FAMILIES["vgg16"]
    start, middle = seed(full, 8), {space: n // 2 for space, n in full.items()}
    tight, loose = price.cost(middle).params, price.cost(full).thop
    budget = Budget((Limit("params", tight, "tight", level), Limit("FLOPs", loose, "loose")))
    landed = price.cost(land(price, start, full, budget))
    assert (landed.params <= tight) == (level == "error")


def test_each_unit_limits_its_own_counter() -> None:
    terms = [Term((1, 10, 30, 4), {"a": 1}, 0, {}, 1)]
    price = Price.from_terms(("a",), terms)
    for unit, each in {"params": 1, "MACs": 10, "FLOPs": 30, "FLOPs@2": 20, "B": 4}.items():
        for limit in (each * 40, each * 41 - 1):
            assert land(price, {"a": 1}, {"a": 99}, Budget((Limit(unit, limit, ""),))) == {"a": 40}
    below = Price.from_terms(("a",), [Term((1, 30, 10, 4), {"a": 1}, 0, {}, 1)])  # thop counts too little: MACs decide
    assert land(below, {"a": 1}, {"a": 99}, Budget((Limit("FLOPs", 1200, ""),))) == {"a": 40}


def test_a_width_off_the_grid_stays_or_goes_to_the_next_multiple() -> None:
    price = Price.from_terms(("a", "b"), [Term((1, 1, 1, 1), {"a": 1, "b": 1}, 0, {}, 1)])
    for limit, landed in ((18, (5, 13)), (20, (5, 13)), (21, (8, 13)), (23, (8, 13)), (24, (8, 16)), (31, (8, 16))):
        w = land(price, {"a": 5, "b": 13}, {"a": 8, "b": 16}, Budget((Limit("params", limit, ""),)), align=8)
        assert tuple(w.values()) == landed


def test_a_start_over_the_budget_is_infeasible_and_says_by_how_much() -> None:
    price, full = FAMILIES["lenet"]
    cost = price.cost(full)
    budget = Budget((Limit("params", cost.params - 1, "0.43Mparams"), Limit("MACs", cost.macs, "2.3MMACs")))
    with pytest.raises(Infeasible, match=f"already takes {cost.params} params, over '0.43Mparams'; raise"):
        land(price, full, full, budget)
    exactly = Budget((Limit("params", cost.params, "all"),))
    assert land(price, full, full, exactly) == full


def test_the_benchmark_finds_no_landing_over_its_budget_by_any_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    asked = ["--nets", "lenet5 20-50-500", "--check", "3", "--units", "params", "MACs", "--modes", "narrow", "grow"]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["landing.py", *asked, "--out", str(tmp_path / "landing.md")])
    runpy.run_path(str(folder / "landing.py"), run_name="__main__")
    assert capsys.readouterr().err == ""
    text = (tmp_path / "landing.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| narrowing", "| growing"))]
    claims = [row for row in rows if len(row) == 11]
    assert len(claims) == 2 * 3 * 2  # narrowing and growing, three alignments, two units
    assert all((row[4], row[7]) == ("0", "0") for row in claims)  # over; under the claim without a proof
    assert "on 20 params, MACs (ours and torch's) and thop's total are exactly the planned ones" in text


def test_a_goal_under_its_start_is_refused() -> None:
    price, full = FAMILIES["lenet"]
    budget = Budget((Limit("params", 10**6, "1Mparams"),))
    with pytest.raises(CompressError, match="no goal under its start"):
        land(price, full, {**full, "c1": 19}, budget)
    with pytest.raises(CompressError, match="align=0"):
        land(price, full, full, budget, align=0)
