"""A comparison says means, spreads and paired tests of what runs reached, and draws them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.export.comparison import Comparison, Ran, cells, draw_pareto, two_sided, write_comparison


def ran(method: str, seed: int, test: float | None, **more: object) -> Ran:
    values = {
        "method": method, "budget": "10MMACs", "seed": seed, "val": 0.8, "test": test, "size": 9_990_000,
        "unit": "MACs", "used": 0.999, "kept": True, "cost": 10**12, "seconds": 60.0, "folder": f"{method}-{seed}",
    }  # fmt: skip
    return Ran(**{**values, **more})  # type: ignore[arg-type]


def made(*rows: Ran, methods: tuple[str, ...] = ("a", "b"), **more: object) -> Comparison:
    return Comparison(methods, ("10MMACs",), "top-1", 1e12, ("a remark <b>",), rows, **more)  # type: ignore[arg-type]


THREE = [
    ran("a", 0, 0.80),
    ran("a", 1, 0.82),
    ran("a", 2, 0.81),
    ran("b", 0, 0.83),
    ran("b", 1, 0.84),
    ran("b", 2, 0.86),
]


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (3.182, 3, 0.05), (2.776, 4, 0.05), (4.032, 5, 0.01), (2.228, 10, 0.05),
     (0.0, 3, 1.0), (3.169, 10, 0.01), (1.699, 29, 0.1)],
)  # fmt: skip
def test_p_values_are_those_of_printed_tables(t: float, freedom: int, p: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(p, rel=2e-3)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


@given(st.floats(0.01, 30), st.integers(1, 30))
@settings(max_examples=60)
def test_p_values_are_the_area_under_the_density(t: float, freedom: int) -> None:
    x = np.linspace(0, t, 20_001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    inside = 2 * np.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    assert two_sided(t, freedom) == pytest.approx(1 - inside, abs=1e-6)


def test_differences_are_paired_seed_by_seed_with_the_first_method() -> None:
    first, second = made(*THREE).means
    assert (first.score, first.ahead, first.p) == (pytest.approx(0.81), None, None)
    assert first.spread == pytest.approx(0.01)
    apart = np.array([0.03, 0.02, 0.05])
    assert second.ahead == pytest.approx(apart.mean())
    assert second.error == pytest.approx(apart.std(ddof=1) / math.sqrt(3))
    assert second.p == pytest.approx(two_sided(apart.mean() / (apart.std(ddof=1) / math.sqrt(3)), 2))
    fewer = made(THREE[0], *THREE[3:]).means[1]  # one seed is shared
    assert (fewer.ahead, fewer.error, fewer.p) == (pytest.approx(0.03), None, None)


def test_equal_scores_are_not_told_apart_and_constant_differences_are() -> None:
    same = made(*THREE[:3], *[ran("b", row.seed, row.test) for row in THREE[:3]]).means[1]
    assert (same.ahead, same.p) == (0, 1)
    always = made(ran("a", 0, 0.5), ran("a", 1, 0.5), ran("b", 0, 0.75), ran("b", 1, 0.75)).means[1]
    assert (always.ahead, always.p) == (0.25, 0)


def test_without_test_images_validation_decides() -> None:
    assert made(ran("a", 0, None, val=0.7)).means[0].score == 0.7


def test_all_files_say_the_same(tmp_path: Path) -> None:
    one = made(
        *THREE[:5], ran("b", 2, 0.86, kept=False, cost=2 * 10**12), failed=(("b, 5MMACs, seed 0", "it broke"),)
    )  # fmt: skip
    write_comparison(one, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.html", "compare.json", "compare.md", "compare.svg",
    ]  # fmt: skip
    plain = json.loads((tmp_path / "compare.json").read_text())
    assert len(plain["rows"]) == 6
    assert plain["means"][1]["score"] == pytest.approx(0.8433, abs=1e-4)
    text, page = ((tmp_path / f"compare.{kind}").read_text() for kind in ("md", "html"))
    for row in cells(one):
        assert all(cell in text for cell in row)
        assert all(cell in page for cell in row)
    for said in ("More than that was spent by b", "Not there: b, 5MMACs, seed 0 (it broke)", "Over its budget: b-2"):
        assert said in text
        assert said in page
    assert "a remark &lt;b&gt;" in page
    assert "<svg" in page
    assert "84.33 % \u00b1 1.53" in text


def test_nothing_that_ran_is_no_picture(tmp_path: Path) -> None:
    assert not draw_pareto(made(), tmp_path / "none.svg")
    write_comparison(made(), tmp_path)
    assert not (tmp_path / "compare.svg").exists()
