"""What a result must reach is held in the direction of its metric, and against the network before the cut."""

from pathlib import Path
from typing import Any

import pytest

from compress._run import run
from compress.errors import UsageError

NET = """
model: {factory: compress.models:vgg, args: {widths: [4, 6], pools: [1, 2], last_pool: global, in_channels: 1, size: 8}}
train: {batch: 200%s}
method: %s
budget: 60%%
"""
LOSS = ", metric: './m.py:wrong', metric_better: smaller"
CUT = "{name: l1, tune: {epochs: 1}}"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text("def wrong(output, y):\n    return (output.argmax(1) != y).float()\n")
    return tmp_path


def made(shop: Path, train: str, method: str, require: str) -> Any:
    (shop / "r.yaml").write_text(NET % (train, method) + f"require: {{{require}}}\n")
    return run("r.yaml", out="out").report


@pytest.mark.parametrize(("require", "code"), [("val_score: 0.01", 1), ("val_score: 1.0", 0)])
def test_an_error_may_be_at_most_what_is_required(shop: Path, require: str, code: int) -> None:
    report = made(shop, LOSS, CUT, require)
    assert (report.accuracy.better, report.verdict.code) == ("smaller", code)
    assert ("is above the required 0.01" in report.verdict.text) == (code == 1)


@pytest.mark.parametrize(("train", "sign"), [("", -1), (LOSS, 1)])
def test_what_may_be_lost_is_reckoned_from_the_network_before_the_cut(shop: Path, train: str, sign: int) -> None:
    report = made(shop, train, CUT, "max_drop: 0.25")
    start = next(row["val"] for row in report.plain()["history"] if row["event"] == "start")
    assert report.accuracy.required == pytest.approx(max(0.0, start + sign * 0.25))
    worse = sign * (report.accuracy.val - start)
    assert (report.verdict.code == 0) == (worse <= 0.25)


def test_after_training_the_uncut_network_is_the_trained_one(shop: Path) -> None:
    (shop / "r.yaml").write_text(
        (NET % ("", "null")).replace("method: null", f"steps: [{{name: scratch, epochs: 2}}, {CUT}]")
        + "require: {max_drop: 0.125}\n"
    )
    report = run("r.yaml", out="out").report
    assert report.accuracy.required == max(0.0, report.plain()["steps"][0]["val"] - 0.125)


def test_without_an_uncut_network_nothing_can_be_lost_of_it(shop: Path) -> None:
    with pytest.raises(UsageError, match=r"require\.max_drop: adenel draws all weights anew"):
        made(shop, "", "{name: adenel}", "max_drop: 0.01")
    with pytest.raises(UsageError, match="write val_accuracy, val_score"):
        made(shop, "", CUT, "max_drop: 0.01, val_accuracy: 0.5")
