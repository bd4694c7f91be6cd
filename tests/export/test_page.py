"""The page for people: the verdict first, units and counters at every figure, and never more than a page."""

import platform
import re
from pathlib import Path

from reports import COUNTED, STEPS, build

from compress.budget.units import percent
from compress.export.page import markdown, write_report
from compress.export.parts import Environment
from compress.export.picture import PICTURE


def test_the_verdict_comes_first_and_every_figure_names_its_unit_and_counter() -> None:
    text = markdown(build())
    assert text.startswith("# Kept: 42.9 MFLOPs (42,900,000) of 43MFLOPs (99.76 %).\n")
    for phrase in (
        "MACs, our count",
        "FLOPs, thop's total",
        "bytes of model.onnx",
        "MACs x images",
        "top-1",
        "channels",
    ):
        assert phrase in text


def test_it_says_how_an_image_becomes_an_input() -> None:
    bare = "float32 [N, 3, 32, 32], pixels in [0, 1], minus mean (0.5 0.5 0.5), over std (0.2 0.2 0.2)"
    assert bare in markdown(build())
    baked = build().preprocessing.plain() | {"baked": True, "range": [0, 255]}
    assert "float32 [N, 3, 32, 32], pixels in [0, 255], normalised inside" in markdown(build(preprocessing=baked))


def test_tables_are_aligned() -> None:
    spaces = [{"name": "a|b", "width": 1, "full": 2, "frozen": "max |x| is read"}]
    tables = re.split(r"\n\n", markdown(build(spaces=spaces)))
    tables = [t.splitlines() for t in tables if t.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({len(line) for line in table}) == 1
        assert len({line.count("|") for line in table}) == 1


def test_the_largest_run_fits_on_a_page_and_says_what_it_leaves_out() -> None:
    spaces = [
        {"name": f"block{i}", "width": 8, "full": 16, "frozen": "its channels are the output" if i > 99 else None}
        for i in range(120)
    ]
    history = [
        {"event": "round", "step": i, **COUNTED, "loss": 0.5, "val": 0.1, "a": 1, "b": 2, "c": 3} for i in range(100)
    ]
    budget = ["43MFLOPs", "1Mparams", "43MMACs", "90MFLOPs@2", {"limit": "3MB", "level": "warn"}]
    largest = build(budget, spaces=spaces, history=history, notes=["a"] * 40, resumed_from=7, steps=STEPS * 2)
    text = markdown(largest, PICTURE)
    assert len(text.splitlines()) <= 70
    assert "100 spaces free, 20 frozen; the first and last 4 here, all in report.json" in text
    assert "5 of 100 lines of history" in text
    assert "| round |    0 |" in text
    assert "| round |   99 |" in text
    assert "- and 38 more notes in report.json" in text


def test_the_history_names_the_methods_only_where_there_are_several_and_has_room_for_the_accuracy() -> None:
    counted = {"event": "round", "step": 1, "method": "adenel", "macs": 1, "params": 1, "used": 0.5}
    rounds = [{**counted, "round": k, "loss": 0.5, "val": k / 10} for k in range(9)]

    def head(history: list[dict[str, object]]) -> list[str]:
        (line,) = [line for line in markdown(build(history=history)).splitlines() if line.startswith("| event")]
        return re.split(r" *\| *", line)[1:-1]

    assert head(rounds) == ["event", "step", "macs", "params", "used", "round", "loss", "val"]
    assert head([*rounds, {**rounds[0], "method": "lwp"}])[:3] == ["event", "step", "method"]


def test_several_methods_are_told_one_by_one_and_a_single_one_is_the_whole_run() -> None:
    text = markdown(build(steps=STEPS))
    rows = [
        re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if re.match(r"\| (method|autogrow|lwp) ", line)
    ]
    assert rows == [
        ["method", "aim", "optimizer steps", "MACs x images", "params", "MACs", "thop's total", "validation"],
        ["autogrow", "150.00 % of it", "2,340", "2e+13", "1,160,000", "42,000,000", "42,900,000", "95.12 %"],
        ["lwp", "budget", "1,170", "1e+13", "580,000", "42,000,000", "42,900,000", "-"],
    ]
    assert markdown(build(steps=STEPS[:1])) == markdown(build())


def test_the_page_shows_the_picture_that_lies_beside_it_and_no_other(tmp_path: Path) -> None:
    image = f"![accuracy, cost and shape over the training]({PICTURE})"
    write_report(build(), tmp_path)
    assert "![" not in (tmp_path / "report.md").read_text()
    (tmp_path / PICTURE).touch()
    write_report(build(), tmp_path)
    assert image in (tmp_path / "report.md").read_text().splitlines()


def test_shares_are_cut_off_and_never_rounded_up():
    assert [percent(x) for x in (0.99999, 1.0, 0.57, 0.29)] == ["99.99 %", "100.00 %", "57.00 %", "29.00 %"]


def test_the_environment_names_versions_and_no_host() -> None:
    facts = Environment.here(device="cpu", threads=3)
    known = facts.plain()
    assert facts.python == platform.python_version()
    assert all(known[name] for name in ("torch", "onnx", "onnxruntime", "thop", "cpu"))
    assert platform.node() not in known.values()
    assert ", 3 threads;" in markdown(build(environment=facts))
    assert ", 1 thread;" in markdown(build(environment=known | {"threads": 1}))
