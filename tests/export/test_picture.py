"""A picture shows what the history says, nothing else, and the same for equal runs."""

import json
import logging
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG

from compress import delivery
from compress.cli import main
from compress.errors import UsageError
from compress.export import picture
from compress.export.parts import Environment, Preprocessing
from compress.export.report import UNWRITTEN, Report

COST = {"params": 580, "macs": 42_000, "thop": 42_900, "bytes": 9000, "memory": 900}
HARD = {
    "unit": "FLOPs", "limit": 43_000, "value": 42_900, "utilisation": 42.9 / 43, "pass": True, "level": "error",
    "text": "43kFLOPs",
}  # fmt: skip
BARE: dict[str, Any] = {"method": "adenel", "macs": 90, "params": 9, "used": 0.5}
GROWN: list[dict[str, Any]] = [
    {"event": event, "step": step, **BARE, "macs": macs, "params": params} | more
    for event, step, macs, params, more in (
        ("seed", 0, 4_300, 58, {"widths": {"b.conv": 2, "a.conv": 4}}),
        ("round", 50, 21_500, 290, {"val": 0.5, "widths": {"b.conv": 4, "a.conv": 4}}),
        ("round", 100, 42_000, 580, {"val": 0.75, "widths": {"b.conv": 7, "a.conv": 8}}),
        ("tune", 150, 42_000, 580, {"val": 0.875, "epoch": 3.0, "loss": 0.25}),
    )
]
DEPTHS = [(0, {"s1": 1, "s2": 1}), (50, {"s1": 2, "s2": 1}), (100, {"s1": 2, "s2": 3})]
DEEPENED: list[dict[str, Any]] = [
    {"event": "grown", "step": step, **BARE, "widths": {"s1.0": 4, "s1.1": 4 + step}, "depths": depths}
    for step, depths in DEPTHS
]
LEFT = {"event": "left", "stage": "s1", "why": "no gain", "step": 75, **BARE, "depths": DEPTHS[1][1]}
SEARCHED: list[dict[str, Any]] = [
    {
        "event": "search",
        "step": s,
        **BARE,
        "macs": 80_000,
        "reward": s / 9,
        "entropy": 9 - s,
        "eta": 0.5 - s / 99,
    }
    for s in range(1, 6)
]
BLOCKS = [
    {"block": f"d.{name}", "layers": ["x", "y", "z"], "sources": ["in", "x", "y"], "rows": rows}
    for name, rows in (("one", [[1], [0, 1], [1, 0, 1]]), ("two", [[1, 0, 0], [0, 0, 0], [1, 1, 0]]))
]
SELECTED = {"event": "selected", "step": 5, **BARE, "macs": 42_000, "connections": BLOCKS}


def drawable(history: list[dict[str, Any]], **changes: Any) -> Report:
    """A report with this history; keywords replace its other parts."""
    preprocessing = {"mean": [0.5], "std": [0.5], "classes": "01", "baked": False}
    parts: dict[str, Any] = {
        "schema_version": 2,
        "verdict": {"code": 0, "text": "kept"},
        "budget": [HARD],
        "landing": {"unit": "FLOPs", "utilisation": 42.9 / 43, "left": 100},
        "cost": COST,
        "base": {key: 10 * value for key, value in COST.items()},
        "accuracy": {"metric": "top-1", "val": 0.88, "test": 0.86, "required": None},
        "train_cost": None,
        "drift": 0.0,
        "parity": {},
        "preprocessing": Preprocessing.of_inputs([(1, 8, 8)], **preprocessing),
        "spaces": [{"name": name, "width": 8, "full": 16, "frozen": None} for name in ("a.conv", "b.conv")],
        "steps": [],
        "history": history,
        "seeds": {"seed": 0},
        "data": {"name": "digits", "counts": {}, "digest": ""},
        "environment": Environment.here(device="cpu", threads=1),
        "command": "compress run",
        "resumed_from": None,
        "seconds": 1.0,
        "notes": [],
        "uncounted": [],
        **UNWRITTEN,
    }
    return Report.of(parts | changes)


def panels(history: list[dict[str, Any]], **changes: Any) -> dict[str, Axes]:
    """The panels of a picture by the first word of their titles, from top to bottom."""
    drawn = picture.figure(drawable(history, **changes))
    assert drawn is not None
    return {re.split(r"\W", axes.get_title(loc="left"))[0]: axes for axes in drawn.axes}


def curve(axes: Axes, number: int = 0) -> list[tuple[float, float]]:
    line = axes.get_lines()[number]
    return [*zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True)]


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# ---- what is drawn --------------------------------------------------------------------------------------------------


def test_a_grown_network_shows_accuracy_cost_and_widths_over_the_same_steps() -> None:
    shown = panels(GROWN)
    assert [*shown] == ["Accuracy", "Cost", "Widths"]
    assert {axes.get_xlim() for axes in shown.values()} == {(0, 150)}
    assert [axes.get_xlabel() for axes in shown.values()] == ["", "", "optimizer steps"]


def test_accuracy_is_in_percent_and_ends_with_the_test_set() -> None:
    axes = panels(GROWN)["Accuracy"]
    assert curve(axes) == [(50, 50), (100, 75), (150, 87.5)]
    assert curve(axes, 1) == [(150, 86)]
    assert words(axes) == ["test 86.00 %", "validation 88.00 %"]


def test_another_metric_is_drawn_as_it_is_with_what_the_recipe_requires() -> None:
    accuracy = {"metric": "./net.py:iou", "val": 0.88, "test": None, "required": 0.9}
    axes = panels(GROWN, accuracy=accuracy)["Score"]
    assert curve(axes) == [(50, 0.5), (100, 0.75), (150, 0.875)]
    assert words(axes) == ["validation 0.88", "required 0.9"]


def test_cost_is_a_share_of_each_limit_and_holds_until_it_changes() -> None:
    params = HARD | {"unit": "params", "limit": 600, "utilisation": 58 / 60, "text": "600params"}
    twice = HARD | {"unit": "FLOPs@2", "limit": 10**6, "utilisation": 0.084, "level": "warn"}
    axes = panels(GROWN, budget=[HARD, params, twice])["Cost"]
    steps = [0, 50, 100, 150, 150]
    assert curve(axes) == [(x, pytest.approx(y)) for x, y in zip(steps, [10, 50, *[4200 / 43] * 3], strict=True)]
    assert curve(axes, 1) == [(150, pytest.approx(4290 / 43))]  # by the limit's own counter, thop's total
    assert curve(axes, 2) == [(x, 100 * y / 600) for x, y in zip(steps, [58, 290, 580, 580, 580], strict=True)]
    assert [y for _, y in curve(axes, 4)] == [100, 100]  # the limit; warnings are no limits
    assert axes.get_lines()[0].get_drawstyle() == "steps-post"
    assert words(axes) == ["600params: 96.66 %", "43kFLOPs: 99.76 %"]


def test_a_limit_that_history_does_not_count_leaves_shares_of_the_full_network() -> None:
    axes = panels(GROWN, budget=[HARD | {"unit": "B", "text": "9kB"}])["Cost"]
    assert axes.get_title(loc="left").startswith("Cost, % of the full network's")
    assert curve(axes)[0] == (0, pytest.approx(100 * 4_300 / 420_000))
    assert words(axes) == ["MACs: 10.00 %", "params: 10.00 %"]


def test_widths_are_shares_of_the_full_network_in_its_own_order() -> None:
    axes = panels(GROWN)["Widths"]
    mesh = axes.collections[0]
    shares = np.array([[4, 4, 8], [2, 4, 7]]) / 16 * 100
    assert np.array_equal(np.asarray(mesh.get_array()), shares)
    assert mesh.get_clim() == (0, 50)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 50, 100, 150]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a.conv", "b.conv"]
    assert sorted(words(axes)) == ["2 → 7 of 16", "4 → 8 of 16"]


def test_depths_are_drawn_instead_of_widths_with_a_cross_where_a_stage_stops() -> None:
    shown = panels([*DEEPENED[:2], LEFT, DEEPENED[2]])
    assert [*shown] == ["Cost", "Depth"]
    axes = shown["Depth"]
    first, second = ([(x, round(y)) for x, y in curve(axes, line)] for line in (0, 2))
    assert first == [(0, 1), (50, 2), (75, 2), (100, 2), (100, 2)]
    assert second == [(0, 1), (50, 1), (75, 1), (100, 3), (100, 3)]
    assert [(x, round(y)) for x, y in curve(axes, 1)] == [(75, 2)]
    assert words(axes) == ["s1: 2", "s2: 3"]
    assert curve(axes)[0] != curve(axes, 2)[0]  # of one depth, and yet apart


def test_a_search_shows_reward_entropy_and_the_share_of_macs() -> None:
    shown = panels([*SEARCHED, SELECTED])
    assert [*shown] == ["Cost", "Reward", "Entropy", "Sampled", "one", "two"]
    assert curve(shown["Reward"]) == [(s, s / 9) for s in range(1, 6)]
    assert curve(shown["Entropy"]) == [(s, 9 - s) for s in range(1, 6)]
    assert curve(shown["Sampled"]) == [(s, 100 * (0.5 - s / 99)) for s in range(1, 6)]


def test_a_matrix_has_a_column_a_layer_and_a_row_a_source_as_in_the_paper() -> None:
    shown = panels([*SEARCHED, SELECTED])
    for block in BLOCKS:
        axes = shown[block["block"].removeprefix("d.")]
        cells = np.ma.filled(np.ma.asarray(axes.collections[0].get_array(), dtype=float), np.nan)
        for source in range(3):
            for layer in range(3):
                row = block["rows"][layer]
                after = source > layer  # sources are the input, layer 0, layer 1: a layer does not read itself
                assert np.isnan(cells[source, layer]) if after else cells[source, layer] == row[source]
    assert [shown[name].get_title(loc="left") for name in ("one", "two")] == ["one: 4 of 6 kept", "two: 3 of 6 kept"]
    assert shown["one"].get_ylabel() == "source (0: in)"


def test_methods_are_parted_where_one_ends_and_their_curves_do_not_touch() -> None:
    later = [line | {"step": line["step"] + 150, "method": "l1"} for line in GROWN[1:]]
    axes = panels([*(line | {"method": "adenel"} for line in GROWN), *later])["Accuracy"]
    assert [x for x, _ in curve(axes)] == [50, 100, 150]
    assert [x for x, _ in curve(axes, 1)] == [200, 250, 300]
    assert [x for x, _ in curve(axes, -1)] == [150, 150]
    assert words(axes)[-2:] == ["adenel", "l1"]
    assert "adenel" not in words(panels([line | {"method": "adenel"} for line in GROWN])["Accuracy"])


@pytest.mark.parametrize("history", [[], GROWN[:1], [{"event": "kept", "step": 0, **BARE, "val": 0.5}]])
def test_where_nothing_happened_there_is_no_picture(history: list[dict[str, Any]], tmp_path: Path) -> None:
    assert picture.draw_history(drawable(history), tmp_path / "x.svg") is False
    assert [*tmp_path.iterdir()] == []


def test_a_network_of_many_odd_spaces_is_drawn_too(tmp_path: Path) -> None:
    names = ["$x_{", "<&\x07>", *(f"features.denseblock{n}.denselayer{n}.conv.weight" for n in range(60))]
    history = [
        {"event": "round", "step": 9 * n, **BARE, "macs": n, "val": None, "widths": dict.fromkeys(names, n + 1)}
        for n in range(20)
    ]
    for most in (4, 60):
        widths = [line | {"widths": dict([*line["widths"].items()][:most])} for line in history]
        assert picture.draw_history(drawable(widths, spaces=[]), tmp_path / f"{most}.svg")
    texts = {text.text for text in ElementTree.parse(tmp_path / "4.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x_{", "<&?>", "features…er0.conv.weight"} <= texts


# ---- the file -------------------------------------------------------------------------------------------------------


def test_equal_reports_give_equal_bytes_whatever_the_reader_prefers(tmp_path: Path) -> None:
    before, level = dict(matplotlib.rcParams), logging.getLogger("matplotlib").level
    one, two = drawable([*GROWN, *(line | {"step": 200} for line in [SELECTED])]), tmp_path / "two.svg"
    pyplot = "matplotlib.pyplot" in sys.modules  # it draws into windows and keeps every figure
    read_again = Report.of(json.loads(json.dumps(one.plain(), sort_keys=True)))
    assert picture.draw_history(one, tmp_path / "one.svg")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert picture.draw_history(read_again, two)
    text = two.read_text()
    assert text == (tmp_path / "one.svg").read_text()
    assert ">test 86.00 %<" in text  # text is text
    assert matplotlib.__version__ not in text
    assert not re.search(r"\d\d:\d\d|20\d\d-", text)
    assert str(tmp_path) not in text
    assert dict(matplotlib.rcParams) == before
    assert logging.getLogger("matplotlib").level == level
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF")])
def test_the_suffix_says_what_kind_of_picture_it_is(suffix: str, begins: bytes, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}{suffix}" for name in "ab")
    assert picture.draw_history(drawable([SELECTED | {"step": 0}]), first)
    assert picture.draw_history(drawable([SELECTED | {"step": 0}]), second)
    assert first.read_bytes().startswith(begins)
    assert first.read_bytes() == second.read_bytes()


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.gif: a picture is an \.svg, a \.png or a \.pdf file; name it so"):
        picture.draw_history(drawable(GROWN), tmp_path / "x.gif")


def test_a_run_whose_picture_fails_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / picture.PICTURE
    assert delivery.illustrate(drawable(GROWN), path) == []
    assert path.read_bytes().startswith(b"<?xml")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no font\nat /home/me/fonts")

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", fail)
    note = "history.svg is left out: it could not be drawn (RuntimeError: no font)"
    assert delivery.illustrate(drawable(GROWN), path) == [note]
    assert not path.exists()


# ---- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/report.json").write_text(json.dumps(drawable(GROWN).plain()))
    return tmp_path


def test_a_finished_run_is_drawn_again(folder: Path) -> None:
    done = CliRunner().invoke(main, ["report", "run", "--draw", "again.svg"])
    assert (done.exit_code, done.stdout) == (0, "again.svg is written\n")
    picture.draw_history(drawable(deepcopy(GROWN)), "here.svg")
    assert Path("again.svg").read_bytes() == Path("here.svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "history", "code", "says"),
    [
        ("--draw x.gif", GROWN, 2, "x.gif: a picture is an .svg, a .png or a .pdf file; name it so."),
        ("--draw run", GROWN, 2, "run exists already; name another file with --draw."),
        ("--draw none/x.svg", GROWN, 2, "none/x.svg cannot be written (No such file or directory)."),
        ("--draw x.svg --json", GROWN, 2, "--draw prints no report; leave out --json, or call it twice."),
        ("--draw x.svg", [], 2, "run/report.json: holds no history that could be drawn; the network was not trained"),
        ("--draw x.svg", [7], 4, "run/report.json: not a report, or a damaged one (report.history[0] is 7: input"),
        ("--draw x.svg", None, 4, "run/report.json: not a report, or a damaged one (Expecting property name"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(
    folder: Path, options: str, history: Any, code: int, says: str
) -> None:
    text = "{" if history is None else json.dumps(drawable([]).plain() | {"history": history})
    (folder / "run/report.json").write_text(text)
    done = CliRunner().invoke(main, ["report", "run", *options.split()])
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"compress: {says}")
    assert sorted(path.name for path in folder.iterdir()) == ["run"]
