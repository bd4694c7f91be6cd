"""A report says everything, in units, without a path of the machine, and its schema is public."""

import json
import math
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget.limits import Budget, Cost, Latency
from compress.budget.units import percent
from compress.errors import ArtifactError
from compress.export import report
from compress.export.report_schema import SCHEMA

COST = Cost(params=580_000, macs=42_000_000, thop=42_900_000, bytes=2_400_000)
BASE = Cost(params=14_990_000, macs=313_000_000, thop=314_000_000, bytes=60_000_000)
CHECK = {"bytes": 2_400_000, "sha256": "0" * 64, "images": 256, "max_abs": 1e-6, "max_rel": 1e-7, "top1_equal": True}


def build(budget: Any = "43MFLOPs", measured: Any = None, **changes: Any) -> dict[str, Any]:
    """A report as a run makes it; keywords replace what goes into it."""
    given: dict[str, Any] = {
        "budget": Budget.parse(budget).rows(COST, measured),
        "cost": COST,
        "base": BASE,
        "val": 0.934,
        "test": 0.931,
        "required": None,
        "train_cost": report.train_cost(10**14, 9_000_000, base=BASE, train_images=45_000, epochs=300, name="VGG16"),
        "drift": 3e-7,
        "parity": {name: CHECK for name in ("model.onnx", "model.pt2", "model.safetensors")},
        "preprocessing": {
            "layout": "NCHW",
            "shape": (3, 32, 32),
            "range": [0, 1],
            "mean": (0.5, 0.5, 0.5),
            "std": (0.2, 0.2, 0.2),
            "baked": False,
            "classes": ["cat", "dog"],
        },
        "spaces": [{"name": f"conv{i}", "width": 8, "full": 64, "frozen": None} for i in range(13)],
        "history": [
            {"event": "seed", "step": 0, "widths": {"conv0": 8}},
            {"event": "round", "step": 351, "macs": 42_000_000, "loss": 0.123456, "val": None},
        ],
        "seeds": {"seed": 0},
        "data": {"name": "cifar10", "counts": {"train": 45_000, "val": 5_000, "test": 10_000}, "digest": "ab"},
        "environment": report.environment(device="cpu", threads=2),
        "command": "compress run recipes/vgg.yaml",
        "seconds": 812.5,
        "notes": ["attention: thop counts 0"],
    }
    return report.build(**(given | changes))


STEPS = [
    {
        "method": name,
        "share": share,
        "steps": 1_170 * count,
        "macs_images": 10**13 * count,
        "cost": {"params": 580_000 * count, "macs": 42_000_000, "thop": 42_900_000},
        "val": val,
    }
    for name, share, count, val in (("autogrow", 1.5, 2, 0.9512), ("lwp", None, 1, None))
]
SEARCH = [
    {"event": "grown", "step": 0, "method": "autogrow", "depths": {"stage1": 2}},
    {"event": "left", "step": 1, "method": "autogrow", "stage": "stage1", "why": "it gains nothing"},
    {"event": "search", "step": 2, "method": "lwp", "reward": -0.5, "entropy": 9.5, "accuracy": 0.5, "eta": 0.25},
    {
        "event": "selected",
        "step": 3,
        "method": "lwp",
        "connections": [{"block": "b", "layers": ["x", "y"], "sources": ["in", "x"], "rows": [[1], [0, 1]]}],
    },
]
HARD_AND_SOFT = [f"{COST.thop - 1}FLOPs", {"limit": "1Mparams", "level": "warn"}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"test": None, "required": 0.9, "resumed_from": 700},
        {"budget": HARD_AND_SOFT},
        {"steps": STEPS, "history": SEARCH},
    ],
)
def test_every_report_follows_the_published_schema(changes, tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    report.save(tmp_path, build(**changes))
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), SCHEMA)


@pytest.mark.parametrize("key", sorted(SCHEMA["properties"]))
def test_the_schema_misses_no_key_and_permits_no_other(key):
    whole = build()
    less = {k: v for k, v in whole.items() if k != key}
    for wrong in (less, whole | {"surprise": 1}, whole | {key: object()}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_a_kept_budget_is_told_with_the_tightest_limit():
    story = build("43MFLOPs, 0.6Mparams")
    assert story["verdict"]["code"] == 0
    assert story["verdict"]["text"].startswith("kept: 42.9 MFLOPs (42,900,000) of 43MFLOPs")
    assert story["landing"] == {"unit": "FLOPs", "utilisation": 42.9 / 43, "left": 100_000}


def test_a_broken_budget_and_a_missed_accuracy_are_both_told():
    story = build("42MFLOPs, 1Mparams", required=0.95)
    text = story["verdict"]["text"]
    assert story["verdict"]["code"] == 1
    assert text.startswith("not kept: 42.9 MFLOPs (42,900,000) of 42MFLOPs")
    assert text.endswith("validation accuracy 93.40 % is below the required 95.00 %")
    assert "params" not in text


def test_a_missed_accuracy_alone_leaves_the_budget_kept():
    text = build(required=0.95)["verdict"]["text"]
    assert text.startswith(
        "not kept: validation accuracy 93.40 % is below the required 95.00 %; the budget holds: 42.9"
    )


def test_an_accuracy_reached_exactly_is_reached():
    assert build(required=0.934)["verdict"]["code"] == 0


def timed(level: str, median: int) -> dict[str, Any]:
    latency = Latency(median, 5_100_000, 7_200_000, 331, "a processor")
    return build(
        ["43MFLOPs", {"limit": "5ms@onnxruntime-cpu/1", "level": level}], measured={"ns@onnxruntime-cpu/1": latency}
    )


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warn", 0)])
def test_a_latency_is_told_with_its_spread_and_fails_only_where_it_was_told_to(level, code, tmp_path):
    story = timed(level, 6_000_000)
    assert story["verdict"]["code"] == code
    assert story["landing"]["unit"] == "FLOPs"
    assert ("6.0 ms@onnxruntime-cpu/1 (6,000,000) of 5ms@onnxruntime-cpu/1" in story["verdict"]["text"]) == bool(code)
    report.save(tmp_path, story)
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), SCHEMA)
    assert "median of 331 runs, 80 % within 5.1 ms to 7.2 ms" in (tmp_path / "report.md").read_text()
    assert timed("error", 5_000_000)["verdict"] == build()["verdict"]


def test_a_broken_warning_does_not_spoil_the_verdict():
    story = build(["43MFLOPs", {"limit": "0.1Mparams", "level": "warn"}])
    assert (story["verdict"]["code"], story["landing"]["unit"]) == (0, "FLOPs")


def test_train_cost_is_a_share_of_the_full_model_trained_as_long_as_the_baseline():
    spent = report.train_cost(30 * 7, 30, base=Cost(1, 70, 70, 1), train_images=10, epochs=3, name="full")
    assert spent["share"] == (30 * 7) / (70 * 10 * 3)
    assert spent["baseline"] == {"name": "full", "epochs": 3, "train_images": 10, "macs_images": 70 * 10 * 3}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["drift", "val", "history", "seconds"])
def test_a_number_that_is_none_is_refused_by_its_place(place, wrong):
    value = [{"loss": 1.0}, {"loss": wrong}] if place == "history" else wrong
    where = {"history": r"history\[1\]\.loss", "val": r"accuracy\.val"}.get(place, place)
    with pytest.raises(ArtifactError, match=rf"report\.{where} is {wrong}"):
        build(**{place: value})


def test_what_json_does_not_know_is_refused():
    with pytest.raises(ArtifactError, match=r"report\.data\.name is \{1\}"):
        build(data={"name": {1}})


def test_saved_reports_are_sorted_and_equal_for_equal_runs(tmp_path):
    story = build()
    report.save(tmp_path, story)
    first = (tmp_path / "report.json").read_bytes()
    report.save(tmp_path, dict(reversed(story.items())))
    assert (tmp_path / "report.json").read_bytes() == first
    assert list(json.loads(first)) == sorted(story)


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
    assert report.portable(text) == PORTABLE[text]


part = st.text("abcXYZ019_-.", min_size=1, max_size=8).filter(lambda name: set(name) != {"."})


@settings(deadline=None, derandomize=True)
@given(st.lists(part, min_size=1, max_size=5), st.sampled_from(["", "--out ", "--out=", '"', "("]))
def test_no_folder_of_an_absolute_path_survives(parts, before):
    assert report.portable(before + "/" + "/".join(parts)) == before + parts[-1]


def test_no_path_reaches_a_report():
    story = build(
        command="/usr/bin/compress run /tmp/x.yaml", notes=["seen in /root/net.py"], data={"name": "/data/imgs"}
    )
    assert story["command"] == "compress run x.yaml"
    assert story["notes"] == ["seen in net.py"]
    assert story["data"]["name"] == "imgs"


# ---- for people -----------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_every_figure_names_its_unit_and_counter():
    text = report.markdown(build())
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


def test_it_says_how_an_image_becomes_an_input():
    bare = "float32 [N, 3, 32, 32], pixels in [0, 1], minus mean (0.5 0.5 0.5), over std (0.2 0.2 0.2)"
    assert bare in report.markdown(build())
    baked = build()["preprocessing"] | {"baked": True, "range": [0, 255]}
    assert "float32 [N, 3, 32, 32], pixels in [0, 255], normalised inside" in report.markdown(
        build(preprocessing=baked)
    )


def test_tables_are_aligned():
    spaces = [{"name": "a|b", "width": 1, "full": 2, "frozen": "max |x| is read"}]
    tables = re.split(r"\n\n", report.markdown(build(spaces=spaces)))
    tables = [t.splitlines() for t in tables if t.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({len(line) for line in table}) == 1
        assert len({line.count("|") for line in table}) == 1


def test_the_largest_run_fits_on_a_page_and_says_what_it_leaves_out():
    spaces = [
        {"name": f"block{i}", "width": 8, "full": 16, "frozen": "its channels are the output" if i > 99 else None}
        for i in range(120)
    ]
    history = [
        {"event": "round", "step": i, "macs": i, "params": i, "loss": 0.5, "val": 0.1, "a": 1, "b": 2, "c": 3}
        for i in range(100)
    ]
    budget = ["43MFLOPs", "1Mparams", "43MMACs", "90MFLOPs@2", {"limit": "3MB", "level": "warn"}]
    largest = build(budget, spaces=spaces, history=history, notes=["a"] * 40, resumed_from=7, steps=STEPS * 2)
    text = report.markdown(largest, report.PICTURE)
    assert len(text.splitlines()) <= 70
    assert "100 spaces free, 20 frozen; the first and last 4 here, all in report.json" in text
    assert "5 of 100 lines of history" in text
    assert "| round |    0 |" in text
    assert "| round |   99 |" in text
    assert "- and 38 more notes in report.json" in text


def test_the_history_names_the_methods_only_where_there_are_several_and_has_room_for_the_accuracy():
    counted = {"event": "round", "step": 1, "method": "adenel", "macs": 1, "params": 1, "used": 0.5}
    rounds = [{**counted, "round": k, "loss": 0.5, "val": k / 10} for k in range(9)]

    def head(history: list[dict[str, object]]) -> list[str]:
        (line,) = [line for line in report.markdown(build(history=history)).splitlines() if line.startswith("| event")]
        return re.split(r" *\| *", line)[1:-1]

    assert head(rounds) == ["event", "step", "macs", "params", "used", "round", "loss", "val"]
    assert head([*rounds, {**rounds[0], "method": "lwp"}])[:3] == ["event", "step", "method"]


def test_several_methods_are_told_one_by_one_and_a_single_one_is_the_whole_run():
    text = report.markdown(build(steps=STEPS))
    rows = [
        re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if re.match(r"\| (method|autogrow|lwp) ", line)
    ]
    assert rows == [
        ["method", "aim", "optimizer steps", "MACs x images", "params", "MACs", "thop's total", "validation"],
        ["autogrow", "150.00 % of it", "2,340", "2e+13", "1,160,000", "42,000,000", "42,900,000", "95.12 %"],
        ["lwp", "budget", "1,170", "1e+13", "580,000", "42,000,000", "42,900,000", "-"],
    ]
    assert report.markdown(build(steps=STEPS[:1])) == report.markdown(build())


def test_the_page_shows_the_picture_that_lies_beside_it_and_no_other(tmp_path):
    image = f"![accuracy, cost and shape over the training]({report.PICTURE})"
    report.save(tmp_path, build())
    assert "![" not in (tmp_path / "report.md").read_text()
    (tmp_path / report.PICTURE).touch()
    report.save(tmp_path, build())
    assert image in (tmp_path / "report.md").read_text().splitlines()


def test_shares_are_cut_off_and_never_rounded_up():
    assert [percent(x) for x in (0.99999, 1.0, 0.57, 0.29)] == ["99.99 %", "100.00 %", "57.00 %", "29.00 %"]


def test_the_environment_names_versions_and_no_host():
    import platform

    found = report.environment(device="cpu", threads=3)
    assert found["python"] == platform.python_version()
    assert all(found[name] for name in ("torch", "onnx", "onnxruntime", "thop", "cpu"))
    assert platform.node() not in found.values()
    assert ", 3 threads;" in report.markdown(build(environment=found))
    assert ", 1 thread;" in report.markdown(build(environment=found | {"threads": 1}))
