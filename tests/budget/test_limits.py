import subprocess
import sys
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.budget.limits import Budget, Cost, Latency, Limit, amounts
from compress.budget.units import UNITS
from compress.errors import UsageError

counts = st.integers(0, 10**12)
costs = st.builds(Cost, params=counts, macs=counts, thop=counts, bytes=counts, memory=counts)
BASE = Cost(params=1001, macs=300, thop=333, bytes=5000, memory=700)


def test_a_cost_counts_flops_as_the_stricter_counter_does() -> None:
    assert [BASE.of(unit) for unit in UNITS] == [1001, 300, 333, 600, 5000, 700]
    assert Cost(params=0, macs=7, thop=5, bytes=0).of("FLOPs") == 7


def test_a_cost_has_no_other_units() -> None:
    with pytest.raises(ValueError, match="FLOPS"):
        BASE.of("FLOPS")


@given(costs, costs)
def test_a_price_is_the_difference_of_two_costs(one: Cost, other: Cost) -> None:
    assert (one + other) - other == one
    assert (one + other).of("FLOPs@2") == one.of("FLOPs@2") + other.of("FLOPs@2")


def test_a_budget_reads_text_and_lists_alike() -> None:
    assert Budget.parse("43MFLOPs, 0.58Mparams") == Budget.parse(["43MFLOPs", {"limit": "0.58Mparams"}])
    assert Budget.parse("1kB").limits == (Limit("B", 1000, "1kB", "error"),)


@given(costs.filter(lambda cost: all(cost.of(unit) >= 100 for unit in UNITS)), st.integers(1, 199))
def test_a_share_is_of_the_base_and_rounded_down(base: Cost, percent: int) -> None:
    for unit in UNITS:
        (limit,) = Budget.parse(f"{percent}% {unit}", base).limits
        assert limit.limit == floor(Fraction(percent, 100) * base.of(unit))


def test_a_bare_share_is_of_the_base_models_flops() -> None:
    assert Budget.parse("50%", BASE).limits == (Limit("FLOPs", 166, "50%"),)


@pytest.mark.parametrize(
    ("stated", "base", "says"),
    [
        ("50%", None, "write a count: '43MFLOPs'"),
        ("0.1% MACs", BASE, "of the base model's 300 MACs is 0"),
        ([], None, "empty"),
        ("", None, "empty"),
        ([["43MFLOPs"]], None, "needs a number and a unit"),
        ([43_000_000], None, "write '43000000 MACs'"),
        (43_000_000, None, "write '43000000 MACs'"),
        ([True], None, "got True; write '43MFLOPs'"),
        ([{"limit": 43}], None, "write {limit: 43MFLOPs}"),
        ([{"level": "warn"}], None, "write {limit: 43MFLOPs}"),
        ([{"limit": "43MFLOPs", "leval": "warn"}], None, "no key 'leval'"),
        ([{"limit": "43MFLOPs", "level": "fatal"}], None, "'error' or 'warn', got 'fatal'"),
        ([{"limit": "43MFLOPs", "level": []}], None, "'error' or 'warn'"),
        ({"limit": "43MFLOPs"}, None, "text or a list"),
        ([{"limit": "43MFLOPs", "level": "warn"}], None, "at least one of level 'error'"),
        (["43MFLOPs", {"limit": "40MFLOPs", "level": "warn"}], None, "Two limits in FLOPs"),
        (["43MFLOPs", "1kB, 40MFLOPs"], None, "Two limits in FLOPs"),
        ("43MFLOPS", None, "rate"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_to_write(stated: object, base: Cost | None, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        Budget.parse(stated, base)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_a_budget_without_any_hard_limit_cannot_be_made() -> None:
    with pytest.raises(UsageError, match="permits everything"):
        Budget((Limit("MACs", 1, "1MACs", "warn"),))


def test_the_grammar_of_shares_needs_no_base() -> None:
    ((quantity, level),) = amounts("50% params")
    assert (quantity.share, quantity.unit, level) == (Fraction(1, 2), "params", "error")


@given(costs, st.tuples(*[st.integers(1, 10**12)] * 3))
def test_a_budget_holds_exactly_when_it_is_used_to_at_most_one(cost: Cost, most: tuple[int, int, int]) -> None:
    limits = dict(zip(("params", "MACs", "B"), most, strict=True))
    budget = Budget(tuple(Limit(unit, limit, f"{limit}{unit}") for unit, limit in limits.items()))
    kept = all(cost.of(unit) <= limit for unit, limit in limits.items())
    assert budget.holds(cost) == kept == (budget.utilisation(cost) <= 1)
    assert budget.utilisation(cost) == max(cost.of(unit) / limit for unit, limit in limits.items())


def test_a_broken_warning_is_told_and_does_not_fail() -> None:
    budget = Budget.parse(["600MACs", {"limit": "1000params", "level": "warn"}])
    assert budget.holds(BASE)
    assert budget.utilisation(BASE) == 300 / 600
    assert budget.rows(BASE) == [
        {
            "unit": "MACs",
            "limit": 600,
            "value": 300,
            "utilisation": 0.5,
            "pass": True,
            "level": "error",
            "text": "600MACs",
        },
        {
            "unit": "params",
            "limit": 1000,
            "value": 1001,
            "utilisation": 1.001,
            "pass": False,
            "level": "warn",
            "text": "1000params",
        },
    ]


def test_a_latency_is_a_warning_unless_told_otherwise() -> None:
    time = "5ms@onnxruntime-cpu/1"
    listed = Budget.parse(["600MACs", time, {"limit": "6ms@onnxruntime-cpu/4", "level": "error"}])
    assert [limit.level for limit in listed.limits] == ["error", "warn", "error"]
    assert [limit.unit for limit in listed.latencies] == ["ns@onnxruntime-cpu/1", "ns@onnxruntime-cpu/4"]
    assert [limit.unit for limit in listed.hard] == ["MACs"]
    assert Budget.parse(f"600MACs, {time}") == Budget.parse(["600MACs", {"limit": time}])


def test_a_latency_decides_nothing_before_it_is_measured() -> None:
    budget = Budget.parse(["600MACs", {"limit": "1ns@onnxruntime-cpu/1", "level": "error"}])
    assert budget.holds(BASE)
    assert budget.utilisation(BASE) == 0.5
    assert [row["unit"] for row in budget.rows(BASE)] == ["MACs"]
    _, row = budget.rows(BASE, {"ns@onnxruntime-cpu/1": Latency(3, 2, 5, 40, "a processor")})
    assert row == {
        "unit": "ns@onnxruntime-cpu/1",
        "limit": 1,
        "value": 3,
        "utilisation": 3.0,
        "pass": False,
        "level": "error",
        "text": "1ns@onnxruntime-cpu/1",
        "spread": [2, 5],
        "runs": 40,
        "processor": "a processor",
    }


@pytest.mark.parametrize("level", ["error", "warn", None])
def test_a_latency_alone_is_refused_with_what_to_write(level: str | None) -> None:
    time = "5ms@onnxruntime-cpu/1"
    stated = time if level is None else [{"limit": time, "level": level}, {"limit": "1MACs", "level": "warn"}]
    with pytest.raises(UsageError, match=r"is measured once the network is finished .* '43MFLOPs, 5ms@"):
        Budget.parse(stated)
    if level is None:
        assert [limit.level for limit in Budget.parse(stated, finished=True).limits] == ["error"]


def test_units_and_budgets_need_the_standard_library_only_and_recipes_no_torch() -> None:
    program = """
import sys
import compress.budget
assert not {"torch", "numpy", "pydantic", "yaml"} & set(sys.modules), "budget"
import compress.recipe
assert not {"torch", "torchvision", "numpy"} & set(sys.modules), "recipe"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
