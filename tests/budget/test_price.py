"""A price is the exact cost of every network of a family."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget.limits import Cost
from compress.budget.price import Moment, Price, Term
from compress.errors import CompressError

SPACES = ("a", "b", "c", "d")
counts = st.integers(0, 5000)
factors = st.dictionaries(st.sampled_from(SPACES), st.integers(0, 9), max_size=4)
terms = st.lists(
    st.builds(Term, st.tuples(counts, counts, counts, counts), factors, st.integers(0, 9), factors, st.integers(0, 9)),
    max_size=8,
)
alive = st.lists(st.builds(Moment, st.sampled_from(["stem", "body", "head"]), factors, counts), max_size=6)
widths = st.fixed_dictionaries({space: st.integers(1, 2000) for space in SPACES})
families = settings(max_examples=60)


def naive(family: list[Term], w: dict[str, int]) -> Cost:
    """The same sum in Python's unbounded integers, one term after the other."""
    total = [0, 0, 0, 0]
    for term in family:
        left = term.left0 + sum(times * w[space] for space, times in term.left.items())
        right = term.right0 + sum(times * w[space] for space, times in term.right.items())
        total = [was + c * left * right for was, c in zip(total, term.coef, strict=True)]
    return Cost(*total)


def held(moment: Moment, w: dict[str, int]) -> int:
    """Bytes alive at a moment."""
    return moment.left0 + sum(times * w[space] for space, times in moment.left.items())


def column(cost: Cost) -> list[int]:
    return [cost.params, cost.macs, cost.thop, cost.bytes]


@families
@given(terms, widths)
def test_the_cost_is_the_sum_of_the_terms(family: list[Term], w: dict[str, int]) -> None:
    assert Price.from_terms(SPACES, family).cost(w) == naive(family, w)


@families
@given(terms, widths, st.fixed_dictionaries({space: st.integers(0, 64) for space in SPACES}))
def test_a_step_is_the_difference_of_two_costs(family: list[Term], w: dict[str, int], by: dict[str, int]) -> None:
    price = Price.from_terms(SPACES, family)
    for stride in (1, 8, by):
        each = by if isinstance(stride, dict) else dict.fromkeys(SPACES, stride)
        expected = [column(naive(family, {**w, s: w[s] + each[s]}) - naive(family, w)) for s in SPACES]
        assert price.steps(w, stride).tolist() == expected


@families
@given(terms, alive, widths, st.dictionaries(st.sampled_from(SPACES), st.integers(0, 64)))
def test_the_peak_is_that_of_the_moment_with_most_alive_and_a_step_can_move_it(
    family: list[Term], moments: list[Moment], w: dict[str, int], by: dict[str, int]
) -> None:
    price = Price.from_terms(SPACES, family, moments)
    most = max((held(moment, w) for moment in moments), default=0)
    assert price.cost(w) == replace(naive(family, w), memory=most)
    assert price.peak(w) in ({moment.where for moment in moments if held(moment, w) == most} or {""})
    steps = price.steps(w, {space: by.get(space, 1) for space in SPACES})
    for space, step in zip(SPACES, steps, strict=True):
        wider = {**w, space: w[space] + by.get(space, 1)}
        expected = max((held(moment, wider) for moment in moments), default=0)
        assert max((price.totals(price.vector(w)) + step)[4:].tolist(), default=0) == expected


@families
@given(alive, widths, st.dictionaries(st.sampled_from(SPACES), st.floats(0, 1)), st.floats(0, 1.2))
def test_moments_that_never_reach_a_limit_may_be_left_out(
    moments: list[Moment], w: dict[str, int], narrower: dict[str, float], share: float
) -> None:
    price = Price.from_terms(SPACES, [], moments)
    limit = int(share * max((held(moment, w) for moment in moments), default=0))
    left = price.reaching(limit, price.vector(w))
    inside = {space: int(w[space] * narrower.get(space, 1.0)) for space in SPACES}
    most = max((held(moment, inside) for moment in moments), default=0)
    assert max(left.cost(inside).memory, limit) == max(most, limit)
    assert len(left.peaks) <= len(price.peaks) <= len(moments)


@families
@given(terms, widths)
def test_bends_are_the_second_differences_of_the_cost(family: list[Term], w: dict[str, int]) -> None:
    bends = Price.from_terms(SPACES, family).bends()
    for (i, a), (j, b) in itertools.product(enumerate(SPACES), repeat=2):
        only_a, only_b = {**w, a: w[a] + 1}, {**w, b: w[b] + 1}
        both = {**only_a, b: only_a[b] + 1}
        second = naive(family, both) - naive(family, only_a) - (naive(family, only_b) - naive(family, w))
        assert bends[i, j].tolist() == column(second)


@families
@given(terms, widths, st.sampled_from(SPACES))
def test_the_cost_is_affine_in_a_width_that_no_term_multiplies_with_itself(
    family: list[Term], w: dict[str, int], space: str
) -> None:
    one_sided = [term._replace(left={s: n for s, n in term.left.items() if s != space}) for term in family]
    price = Price.from_terms(SPACES, one_sided)
    costs = [column(price.cost({**w, space: n})) for n in (0, 1, 2, 700)]
    first = np.subtract(costs[1], costs[0])
    np.testing.assert_array_equal(np.subtract(costs[2], costs[1]), first)
    np.testing.assert_array_equal(np.subtract(costs[3], costs[0]), 700 * first)


def test_terms_with_equal_factors_are_merged() -> None:
    twice = [Term((1, 2, 3, 4), {"a": 1}, 0, {"b": 2}, 1), Term((10, 20, 30, 40), {"a": 1}, 0, {"b": 2}, 1)]
    price = Price.from_terms(("a", "b"), twice)
    assert price.coef.tolist() == [[11, 22, 33, 44]]
    assert price.cost({"a": 3, "b": 5}) == naive(twice, {"a": 3, "b": 5})


def test_a_network_without_free_spaces_has_a_price() -> None:
    price = Price.from_terms((), [Term((7, 6, 5, 4), {}, 3, {}, 2)])
    assert price.cost({}) == Cost(42, 36, 30, 24)
    assert price.steps({}).shape == (0, 4)
    assert Price.from_terms(("a",), []).cost({"a": 9}) == Cost(0, 0, 0, 0)


def test_counts_are_exact_where_float64_is_not() -> None:
    one = Term((1, 1, 1, 1), {}, 1, {}, 1)
    price = Price.from_terms(("a", "b"), [Term((1, 0, 0, 0), {"a": 1}, 0, {"b": 1}, 0), one])
    w = {"a": 2**30, "b": 2**31}
    assert price.cost(w).params == 2**61 + 1 != int(float(2**61 + 1))
    assert price.steps(w)[:, 0].tolist() == [2**31, 2**30]


@pytest.mark.parametrize("w", [{"a": 2**31, "b": 2**31}, {"a": 2**40, "b": 2**40}, {"a": 2**70, "b": 1}])
def test_what_could_overflow_is_refused(w: dict[str, int]) -> None:
    price = Price.from_terms(("a", "b"), [Term((1, 0, 0, 0), {"a": 1}, 0, {"b": 1}, 0)])
    for ask in (price.cost, price.steps):
        with pytest.raises(CompressError, match="too large to count"):
            ask(w)


def test_a_step_that_would_overflow_is_refused_though_the_cost_would_not() -> None:
    price = Price.from_terms(("a", "b"), [Term((1, 0, 0, 0), {"a": 2**40}, 0, {"b": 2**40}, 0)])
    assert price.cost({"a": 0, "b": 0}) == Cost(0, 0, 0, 0)
    with pytest.raises(CompressError, match="too large to count"):
        price.steps({"a": 0, "b": 0})
    with pytest.raises(CompressError, match="too large to count"):
        price.bends()


def test_mistakes_in_the_names_are_named() -> None:
    with pytest.raises(CompressError, match="'x'"):
        Price.from_terms(("a",), [Term((1, 1, 1, 1), {"x": 1}, 0, {}, 1)])
    price = Price.from_terms(("a", "b"), [])
    for w in ({"a": 1}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(CompressError, match="in one only"):
            price.cost(w)
    with pytest.raises(CompressError, match="its own name"):
        Price.from_terms(("a", "a"), [])


def test_arrays_of_another_shape_or_type_are_refused() -> None:
    good = Price.from_terms(("a",), [Term((1, 1, 1, 1), {"a": 1}, 0, {}, 1)])
    for name in ("coef", "left", "left0", "right", "right0"):
        array = getattr(good, name)
        for broken in (array.astype(np.float64), array[:, :0] if array.ndim == 2 else array[:0]):
            with pytest.raises(CompressError, match=f"{name} must be int64"):
                replace(good, **{name: broken})
