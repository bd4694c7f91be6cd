"""Accuracy against size is drawn from points alone: equal ones give equal bytes, and every curve is named."""

import re
from pathlib import Path

import pytest

from compress.errors import UsageError
from compress.export.curve import Point, draw_curve

POINTS = [
    Point("the run", 150_000, 0.9875, 0.97),
    Point("small", 20_000, 0.88, 0.85),
    Point("tried", 60_000, 0.955, None),
]


def drawn(path: Path, points: list[Point], metric: str = "top-1") -> str:
    draw_curve(points, path, unit="FLOPs", metric=metric)
    return path.read_text()


def test_a_curve_names_its_sizes_and_where_each_score_ends(tmp_path: Path) -> None:
    text = drawn(tmp_path / "curve.svg", POINTS)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert {"20.0 kFLOPs", "60.0 kFLOPs", "0.15 MFLOPs", "val 98.75 %", "test 97.00 %"} <= set(shown)
    assert "Accuracy (top-1), %; dotted: the run" in shown
    assert drawn(tmp_path / "again.svg", POINTS) == text
    assert drawn(tmp_path / "other.svg", POINTS[:2]) != text


def test_scores_of_another_metric_are_drawn_as_they_are(tmp_path: Path) -> None:
    text = drawn(tmp_path / "curve.svg", [Point("the run", 100, -0.125, None), Point("b", 90, -0.25, None)], "./m.py:f")
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert "val -0.125" in shown
    assert "Score, ./m.py:f; dotted: the run" in shown
    assert not any(one.startswith("test ") for one in shown)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"curve\.txt: a picture is an \.svg, a \.png or a \.pdf file"):
        draw_curve(POINTS, tmp_path / "curve.txt", unit="FLOPs", metric="top-1")
