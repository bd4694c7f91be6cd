"""A report says everything, in units, without a path of the machine, and its schema is public."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import COUNTED, STEPS, build

from compress.budget.limits import Cost, Latency
from compress.budget.units import UNITS, threads
from compress.errors import ArtifactError
from compress.export.page import write_report
from compress.export.parts import Environment, Part, Preprocessing, portable
from compress.export.report import Lessons, Report, Unit, report_schema, train_cost

COST = Cost(params=580_000, macs=42_000_000, thop=42_900_000, bytes=2_400_000)  # of the report that `build` makes
SCHEMA = report_schema()
VALID = jsonschema.Draft202012Validator(SCHEMA)
NAMES = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "classes": ["cat", "dog"]}
GROWN = COUNTED | {"method": "autogrow"}
SEARCH = [
    {"event": "grown", "step": 0, **GROWN, "depths": {"stage1": 2}},
    {"event": "left", "step": 1, **GROWN, "stage": "stage1", "why": "it gains nothing"},
    {"event": "search", "step": 2, **COUNTED, "reward": -0.5, "entropy": 9.5, "accuracy": 0.5, "eta": 0.25},
    {
        "event": "selected",
        "step": 3,
        **COUNTED,
        "connections": [{"block": "b", "layers": ["x", "y"], "sources": ["in", "x"], "rows": [[1], [0, 1]]}],
    },
]
HARD_AND_SOFT = [f"{COST.thop - 1}FLOPs", {"limit": "1Mparams", "level": "warn"}]


# ---- the schema -----------------------------------------------------------------------------------------------------

WHOLE: list[dict[str, Any]] = [
    {},
    {"test": None, "required": 0.9, "resumed_from": 700},
    {"budget": HARD_AND_SOFT},
    {"steps": STEPS, "history": SEARCH},
    {"train_cost": None, "preprocessing": Preprocessing.of_inputs([(3, 8, 8), (5,)], baked=True, **NAMES)},
    {"preprocessing": Preprocessing.of_inputs([(3, 90)], baked=False, pixels=False, **NAMES)},
]


@pytest.mark.parametrize("changes", WHOLE)
def test_every_report_follows_the_published_schema_and_is_read_as_it_was_written(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    report = write_report(build(**changes), tmp_path)
    VALID.validate(json.loads((tmp_path / "report.json").read_text()))
    assert Report.read(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text()) == report.plain()


def tables(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [("Report", schema), *schema["$defs"].items()]


@pytest.mark.parametrize("name", [name for name, _ in tables(SCHEMA)])
def test_the_schema_permits_no_key_but_its_own(name: str) -> None:
    table = dict(tables(SCHEMA))[name]
    assert table["type"] == "object"
    others = table["additionalProperties"]
    assert others is False or name == "HistoryRow"  # what events of somebody's own method tell
    lax = {
        "Preprocessing": {"others", "colours", "resize"},
        "Report": {"code"},
        "Accuracy": {"better"},
        "TrainCost": {"teacher"},
    }
    if name != "HistoryRow":
        assert set(table["required"]) == table["properties"].keys() - lax.get(name, set())


@pytest.mark.parametrize("key", sorted(SCHEMA["properties"]))
def test_neither_the_schema_nor_the_type_misses_a_key_or_takes_anything_for_it(key: str) -> None:
    whole = build().plain()
    refuse(whole | {"surprise": 1})
    refuse(whole | {key: {"odd": []}})
    if key != "code":  # what names none of the user's files says nothing of them
        refuse({k: v for k, v in whole.items() if k != key})


def refuse(wrong: Mapping[str, Any]) -> None:
    assert not VALID.is_valid(wrong)
    with pytest.raises(ArtifactError, match=r"^report"):
        Report.of(wrong)


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """A report with something at every place, as plain values."""
    whole = build(
        ["43MFLOPs", "1ms@onnxruntime-cpu/1"],
        {"ns@onnxruntime-cpu/1": Latency(6, 5, 7, 30, "a processor")},
        required=0.9,
        steps=STEPS,
        history=SEARCH,
        preprocessing=Preprocessing.of_inputs([(3, 8, 8), (5,)], baked=True, **NAMES),
        resumed_from=7,
        code={"./slim.py:Slimming": "0" * 64},
    ).plain()
    taught = Lessons(name="./net.py:big", macs=10**9, macs_images=10**13, share=0.1, digest="0" * 64)
    return Report.of(whole | {"train_cost": whole["train_cost"] | {"teacher": taught}}).plain()


FILE, HISTORY = "parity/model.onnx", "history/0"
WRONG: dict[str, list[Any]] = {
    "schema_version": [1, "2", None],
    "verdict/code": [2, -1, "0", None],
    "verdict/text": [1, None],
    "uncounted": ["Det", [1], None],
    "code": [[], {"./slim.py:Slimming": "short"}, {"./slim.py:Slimming": None}],
    "budget": [[], {}, None],
    "budget/0/unit": ["ns@onnxruntime-cpu/1", "FLOPS", "GB", 5],
    "budget/0/limit": [0, -1, 1.5, "43", True],
    "budget/0/value": [-1, 0.5, "few", None],
    "budget/0/utilisation": [-0.1, "1", None],
    "budget/0/pass": [1, "yes", None],
    "budget/0/level": ["fatal", None],
    "budget/0/text": [43],
    "budget/0/spread": [[1, 2]],
    "budget/1/unit": ["ns@onnxruntime-cpu/0", "ns@onnxruntime-cpu/1000", "ns@onnxruntime-gpu/1"],
    "budget/1/spread": [[1], [1, 2, 3], [-1, 2], [0.5, 1], 5],
    "budget/1/runs": [0, 1.5, None],
    "budget/1/processor": [None, 5],
    "landing/unit": ["ns@onnxruntime-cpu/1", "GB"],
    "landing/utilisation": [-1, None],
    "landing/left": [0.5, None],
    "accuracy/better": ["more", 1, None],
    "preprocessing/colours": ["BGR", 1],
    "preprocessing/resize": ["squeezed", True],
    "accuracy/metric": [None, 1],
    "accuracy/val": [1.01, -0.01, "0.9", None],
    "accuracy/test": [1.01, -0.01, "0.9"],
    "accuracy/required": [1.01, -0.01, True],
    "train_cost": ["free", []],
    "train_cost/share": [-0.1, None],
    "train_cost/baseline/epochs": [-1, None],
    "train_cost/baseline/name": [5],
    "train_cost/teacher": ["./net.py:big", {}],
    "train_cost/teacher/name": [5, None],
    "train_cost/teacher/share": [-0.1, None],
    "train_cost/teacher/digest": ["0" * 63, None],
    "drift": [-1e-9, "0", None],
    "files": [{"model.onnx": "short"}, {"other.onnx": "0" * 64}, None],
    "digest": ["0" * 63, "0" * 65, "G" * 64, "A" * 64, None],
    f"{FILE}/max_abs": [-1, None],
    f"{FILE}/max_rel": [-1, None],
    f"{FILE}/top1_equal": [1, "yes"],
    "preprocessing/layout": ["NHWC", None],
    "preprocessing/shape": [[], [-3, 8, 8], [0.5, 8, 8], "3", None],
    "preprocessing/range": [[0, 2], [1, 255], [0, 1, 255], [0], "none"],
    "preprocessing/mean": [["0"], [None], 0.5],
    "preprocessing/std": [[-0.1], ["1"]],
    "preprocessing/baked": [1, None],
    "preprocessing/classes": [[1], "ab", None],
    "preprocessing/others": [[], [{"name": "x2"}], [{"name": "x2", "shape": []}], None],
    "preprocessing/others/0/name": [2],
    "preprocessing/others/0/shape": [[], [-1], [0.5]],
    "spaces/0/name": [1],
    "spaces/0/frozen": [True],
    "steps/0/method": [None],
    "steps/0/share": [-0.5, "half"],
    "steps/0/cost": [{"params": 1}, None],
    "steps/0/val": ["0.9", True],
    f"{HISTORY}/event": [None, 1],
    f"{HISTORY}/method": [None],
    f"{HISTORY}/used": [-1, None],
    f"{HISTORY}/round": [-1, 0.5],
    f"{HISTORY}/epoch": [-1, "1"],
    f"{HISTORY}/stage": [1],
    f"{HISTORY}/why": [1],
    f"{HISTORY}/reward": ["1"],
    f"{HISTORY}/eta": [-1],
    f"{HISTORY}/accuracy": ["1"],
    f"{HISTORY}/loss": ["1", True],
    f"{HISTORY}/val": ["1", [1]],
    f"{HISTORY}/entropy": ["1"],
    f"{HISTORY}/widths": [{"a": -1}, {"a": 0.5}, [1], None],
    f"{HISTORY}/depths": [{"a": -1}, {"a": "1"}, [1], None],
    f"{HISTORY}/of its own": [[1], {"a": "b"}, {"a": [1]}, {"a": True}],
    "history/3/connections": [{}, [1], None],
    "history/3/connections/0/block": [1],
    "history/3/connections/0/layers": ["x", [1]],
    "history/3/connections/0/sources": [[None]],
    "history/3/connections/0/rows": [[[2]], [[0.5]], [["1"]], [1]],
    "seeds": [{"seed": 0.5}, {"seed": "0"}, [0]],
    "data/name": [None],
    "data/counts": [{"train": -1}, {"train": 0.5}, [1]],
    "data/digest": [0],
    **{f"environment/{name}": [1] for name in Environment.model_fields if name != "threads"},
    "command": [["compress"], None],
    "resumed_from": [-1, 0.5, "7"],
    "seconds": [-1, "1", None],
    "notes": ["a note", [1], None],
}
COUNTS = [
    *(f"{cost}/{key}" for cost in ("cost", "base") for key in ("params", "macs", "thop", "bytes", "memory")),
    *(f"steps/0/cost/{key}" for key in ("params", "macs", "thop")),
    *(f"train_cost/{key}" for key in ("macs_images", "images", "baseline/train_images", "baseline/macs_images")),
    *(f"train_cost/teacher/{key}" for key in ("macs", "macs_images")),
    *(f"{FILE}/{key}" for key in ("bytes", "images")),
    *(f"spaces/0/{key}" for key in ("width", "full")),
    *(f"steps/0/{key}" for key in ("steps", "macs_images")),
    *(f"{HISTORY}/{key}" for key in ("step", "macs", "params")),
    "environment/threads",
]
WRONG |= {place: [-1, 0.5, "few", True, None] for place in COUNTS}


def changed(full: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The full report with another value at a place."""
    whole = json.loads(json.dumps(full))
    inner, (*way, last) = whole, [int(key) if key.isdecimal() else key for key in place.split("/")]
    for key in way:
        inner = inner[key]
    inner[last] = value
    return dict(whole)


@pytest.mark.parametrize("place", WRONG)
def test_what_breaks_a_rule_of_its_place_is_refused_by_the_schema_and_by_the_type(
    place: str, full: dict[str, Any]
) -> None:
    for value in WRONG[place]:
        refuse(changed(full, place, value))


def leaves(table: Mapping[str, Any], way: str = "") -> set[str]:
    """Every place of the schema that holds no table of ours, by its keys; indices and names of files are left out."""
    places: set[str] = set()
    for key, value in table["properties"].items():
        text, here = json.dumps(value), f"{way}/{key}".lstrip("/")
        inner = [SCHEMA["$defs"][name] for name in re.findall(r"#/\$defs/(\w+)", text)]
        places |= set[str]().union(*(leaves(one, here) for one in inner)) if inner else {here}
    return places


def test_every_place_has_a_value_that_it_refuses() -> None:
    named = {re.sub(r"/(\d+|model\.onnx)(?=/|$)", "", place) for place in WRONG}
    assert leaves(SCHEMA) <= named


def test_a_row_has_one_name_for_each_of_its_keys(full: dict[str, Any]) -> None:
    row = full["budget"][0]
    refuse(changed(full, "budget/0", {"kept" if key == "pass" else key: value for key, value in row.items()}))


def test_the_full_report_itself_breaks_no_rule(full: dict[str, Any]) -> None:
    VALID.validate(full)
    assert Report.of(full).plain() == full


def test_a_metric_of_the_recipes_own_has_scores_that_are_no_shares(full: dict[str, Any]) -> None:
    own = {"metric": "./net.py:loss", "val": -3.5, "test": 7.0, "required": -4.0}
    whole = changed(full, "accuracy", own)
    VALID.validate(whole)
    assert Report.of(whole).accuracy.words("val") == "-3.5"


def test_the_units_of_a_report_are_those_of_budgets() -> None:
    assert get_args(Unit) == UNITS
    assert not any(map(threads, UNITS))


def test_a_report_cannot_be_changed() -> None:
    report = build()
    for part in (report, report.cost, report.budget[0], report.history[0]):
        assert isinstance(part, Part)
        with pytest.raises(ValueError, match="frozen"):
            part.value = 1  # type: ignore[attr-defined]


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_a_kept_budget_is_told_with_the_tightest_limit() -> None:
    report = build("43MFLOPs, 0.6Mparams")
    assert report.verdict.code == 0
    assert report.verdict.text.startswith("kept: 42.9 MFLOPs (42,900,000) of 43MFLOPs")
    assert report.landing.plain() == {"unit": "FLOPs", "utilisation": 42.9 / 43, "left": 100_000}


def test_a_broken_budget_and_a_missed_accuracy_are_both_told() -> None:
    verdict = build("42MFLOPs, 1Mparams", required=0.95).verdict
    assert verdict.code == 1
    assert verdict.text.startswith("not kept: 42.9 MFLOPs (42,900,000) of 42MFLOPs")
    assert verdict.text.endswith("validation accuracy 93.40 % is below the required 95.00 %")
    assert "params" not in verdict.text


def test_a_missed_accuracy_alone_leaves_the_budget_kept() -> None:
    text = build(required=0.95).verdict.text
    assert text.startswith(
        "not kept: validation accuracy 93.40 % is below the required 95.00 %; the budget holds: 42.9"
    )


def test_an_accuracy_reached_exactly_is_reached() -> None:
    assert build(required=0.934).verdict.code == 0


def timed(level: str, median: int) -> Report:
    latency = Latency(median, 5_100_000, 7_200_000, 331, "a processor")
    return build(
        ["43MFLOPs", {"limit": "5ms@onnxruntime-cpu/1", "level": level}], measured={"ns@onnxruntime-cpu/1": latency}
    )


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warn", 0)])
def test_a_latency_is_told_with_its_spread_and_fails_only_where_it_was_told_to(
    level: str, code: int, tmp_path: Path
) -> None:
    report = timed(level, 6_000_000)
    assert report.verdict.code == code
    assert report.landing.unit == "FLOPs"
    assert ("6.0 ms@onnxruntime-cpu/1 (6,000,000) of 5ms@onnxruntime-cpu/1" in report.verdict.text) == bool(code)
    write_report(report, tmp_path)
    VALID.validate(json.loads((tmp_path / "report.json").read_text()))
    assert "median of 331 runs, 80 % within 5.1 ms to 7.2 ms" in (tmp_path / "report.md").read_text()
    assert timed("error", 5_000_000).verdict == build().verdict


def test_a_broken_warning_does_not_spoil_the_verdict() -> None:
    report = build(["43MFLOPs", {"limit": "0.1Mparams", "level": "warn"}])
    assert (report.verdict.code, report.landing.unit) == (0, "FLOPs")


def test_train_cost_is_a_share_of_the_full_model_trained_as_long_as_the_baseline() -> None:
    spent = train_cost(30 * 7, 30, base=Cost(1, 70, 70, 1), train_images=10, epochs=3, name="full")
    assert spent.share == (30 * 7) / (70 * 10 * 3)
    baseline = {"name": "full", "epochs": 3, "train_images": 10, "macs_images": 70 * 10 * 3}
    assert spent.baseline.plain() == baseline


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["drift", "val", "history", "own", "widths", "seconds"])
def test_a_number_that_is_none_is_refused_by_its_place(place: str, wrong: float) -> None:
    start = {"event": "seed", "step": 0, **COUNTED}
    history = {"history": {"loss": wrong}, "own": {"mine": wrong}, "widths": {"table": {"a": wrong}}}.get(place)
    change = {"history": [start, start | history]} if history else {place: wrong}
    where = {
        "val": r"accuracy\.val",
        "history": r"report\.history\[1\]\.loss",
        "own": r"report\.history\[1\]\.mine",
        "widths": r"report\.history\[1\]\.table",
    }.get(place, rf"report\.{place}")
    with pytest.raises(ArtifactError, match=rf"^{where} is .*{wrong}.*: .*finite number.*\.$"):
        build(**change)


def test_what_json_does_not_know_is_refused_by_its_place() -> None:
    with pytest.raises(ArtifactError, match=r"report\.data\.name is \{1\}: input should be a valid string"):
        build(data={"name": {1}})


def test_numbers_that_a_file_cannot_hold_are_not_read_from_one(tmp_path: Path) -> None:
    text = json.dumps(build().plain())
    for wrong in ("NaN", "Infinity", "-Infinity", "1e999"):
        (tmp_path / "report.json").write_text(text.replace('"drift": 3e-07', f'"drift": {wrong}'))
        why = (
            f"not a report, or a damaged one ({'the number ' * (wrong == '1e999')}{wrong}, which is no finite number)."
        )
        with pytest.raises(ArtifactError, match=re.escape(why)):
            Report.read(tmp_path / "report.json")


def test_saved_reports_are_sorted_and_equal_for_equal_runs(tmp_path: Path) -> None:
    report = build()
    write_report(report, tmp_path)
    first = (tmp_path / "report.json").read_bytes()
    write_report(Report.of(dict(reversed(report.plain().items()))), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == first
    assert list(json.loads(first)) == sorted(report.plain())


# ---- paths ----------------------------------------------------------------------------------------------------------

PORTABLE = {
    "compress run /home/me/vgg.yaml --out=/data/out": "compress run vgg.yaml --out=out",
    "path: /data/cifar10.npz\n": "path: cifar10.npz\n",
    "path: '/home/my user/x.npz'": "path: 'my user/x.npz'",
    r"C:\Users\me\net.onnx": "net.onnx",
    "C:/Users/me/net.onnx": "net.onnx",
    "recipes/vgg.yaml ./net.py:make ../x ~/y": "recipes/vgg.yaml ./net.py:make ../x ~/y",
    "see https://example.org/a/b": "see https://example.org/a/b",
    "12 images/s, 3 / 4 kept": "12 images/s, 3 / 4 kept",
    "/tmp": "tmp",
}


@pytest.mark.parametrize("text", PORTABLE)
def test_of_an_absolute_path_only_the_last_part_is_kept(text):
    assert portable(text) == PORTABLE[text]


part = st.text("abcXYZ019_-.", min_size=1, max_size=8).filter(lambda name: set(name) != {"."})


@given(st.lists(part, min_size=1, max_size=5), st.sampled_from(["", "--out ", "--out=", '"', "("]))
def test_no_folder_of_an_absolute_path_survives(parts, before):
    assert portable(before + "/" + "/".join(parts)) == before + parts[-1]


def test_no_path_reaches_a_report() -> None:
    report = build(
        command="/usr/bin/compress run /tmp/x.yaml",
        notes=["seen in /root/net.py"],
        data={"name": "/data/imgs", "counts": {}, "digest": ""},
    )
    assert report.command == "compress run x.yaml"
    assert report.notes == ("seen in net.py",)
    assert report.data.name == "imgs"
