"""Every edit of a finished folder is seen: most of them even where whoever made it made the report's digests anew."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from compress.export.onnx import file as onnx_file
from compress.export.verify import verify

RECIPE = """\
model:
  factory: compress.models:vgg
  args: {widths: [8, 8], pools: [1, 2], last_pool: global, in_channels: 1, size: 8}
data: {source: digits, crop: 1}
train: {batch: 100}
method: {name: scratch, epochs: 2}
checkpoint: 5 steps
require: {val_accuracy: 0.05}
budget: [30kMACs, 60kB, 9s@onnxruntime-cpu/1, {limit: 1params, level: warn}]
"""
BUDGET = "30kMACs"
Edit = Callable[[Path], None]


class Runs(NamedTuple):
    """Two runs of one shape, to be copied: one that did what it was to do, one that missed its accuracy."""

    kept: Path
    missed: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from compress import run

    place = tmp_path_factory.mktemp("runs")
    (place / "recipe.yaml").write_text(RECIPE)
    missed = {"seed": "8", "require.val_accuracy": "0.999"}
    for name, overrides in (("kept", {"seed": "7"}), ("missed", missed)):
        run(place / "recipe.yaml", overrides=overrides, out=place / name)
    return Runs(place / "kept", place / "missed")


# ---- edits ----------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def tell(folder: Path, story: dict[str, Any]) -> None:
    text = json.dumps(story, sort_keys=True, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def at(*changes: tuple[str, Any]) -> Edit:
    """Put values at places of report.json, "budget/0/limit"; GONE takes one away, a function makes a new one of it."""

    def edit(folder: Path) -> None:
        story = content(folder)
        for path, value in changes:
            *steps, last = (int(step) if step.isdigit() else step for step in path.split("/"))
            inner: Any = story
            for step in steps:
                inner = inner[step]
            if value is GONE:
                del inner[last]
            else:
                inner[last] = value(inner[last]) if callable(value) else value
        tell(folder, story)

    return edit


GONE = object()


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def put(name: str, data: bytes) -> Edit:
    return lambda folder: bool((folder / name).write_bytes(data)) and None  # type: ignore[func-returns-value]


def change(name: str, how: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: put(name, how((folder / name).read_bytes()))(folder)


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def swap(*names: str) -> Edit:
    """Files of the other run in the place of these."""

    def edit(folder: Path) -> None:
        for name in names:
            shutil.copy(folder.parent / "twin" / name, folder / name)

    return edit


def other_weights(folder: Path) -> None:
    tensors = {name: np.asarray(array + 1) for name, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")


def retold(**topics: Any) -> Edit:
    """model.onnx with other metadata, under a seal of its own that holds; None leaves a topic out."""

    def edit(folder: Path) -> None:
        model = onnx_file.read(folder / "model.onnx")
        new = onnx_file.metadata(model) | topics
        kept = {topic: value for topic, value in new.items() if value is not None}
        onnx_file.write_sealed(onnx_file.stamp(model, kept), folder / "model.onnx")

    return edit


def stripped(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.ClearField("metadata_props")
    model.producer_name = "somebody"
    onnx.save(model, folder / "model.onnx")


def twice(folder: Path) -> None:
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text.replace("{", '{"verdict": {"code": 0, "text": "kept"},', 1))


def shorter(folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(content(folder)))


def touched(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (0, 0))


def anew(folder: Path) -> None:
    """Make the digests in report.json anew, as who forges a folder would: of the files that it names, and its own."""
    story = content(folder)
    for name in story.get("files", {}):
        if (folder / name).is_file():
            story["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    bare = {key: value for key, value in story.items() if key != "digest"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    tell(folder, bare | {"digest": hashlib.sha256(text.encode()).hexdigest()})


ROW = {"event": "tune", "step": 1, "method": "scratch", "macs": 1, "params": 1, "used": 0.1}
SEEN: dict[str, Edit] = {  # however often the digests are made anew: model.onnx seals what they contradict
    "nothing is required": at(("accuracy/required", None)),
    "less is required": at(("accuracy/required", 0.01)),
    "all of validation is right": at(("accuracy/val", 1.0)),
    "all of the test set is right": at(("accuracy/test", 1)),
    "there is no test set": at(("accuracy/test", None)),
    "everything is perfect": at(("accuracy/val", 1.0), ("accuracy/test", 1.0), ("accuracy/required", 1.0)),
    "another metric": at(("accuracy/metric", "luck")),
    "a limit is raised": at(("budget/0/limit", 60_000), ("budget/0/utilisation", lambda used: used / 2)),
    "a limit is raised in its text": at(("budget/0/text", "60kMACs")),
    "an error becomes a warning": at(("budget/1/level", "warn")),
    "a warning becomes an error": at(("budget/3/level", "error")),
    "MACs become FLOPs": at(("budget/0/unit", "FLOPs")),
    "a row is deleted": at(("budget/1", GONE)),
    "the row of the broken limit is deleted": at(("budget/3", GONE)),
    "a row is there twice": at(("budget", lambda rows: [rows[0], *rows])),
    "rows change places": at(("budget", lambda rows: [*rows[1:], rows[0]])),
    "a value is lowered": at(("budget/0/value", 1)),
    "a value and its use are lowered": at(("budget/0/value", 3), ("budget/0/utilisation", 0.0001)),
    "a use is lowered": at(("budget/1/utilisation", 0.01)),
    "a broken limit is kept": at(("budget/3/pass", True)),
    "a kept limit is broken": at(("budget/0/pass", False)),
    "a latency that is kept is over": at(("budget/2/value", 10**10), ("budget/2/utilisation", 10 / 9)),
    "a better verdict": at(("verdict/text", "kept: with ease")),
    "a verdict of another code": at(("verdict/code", 1)),
    "a lower landing": at(("landing/left", 29_999)),
    "a landing on another unit": at(("landing/unit", "params")),
    "fewer MACs": at(("cost/macs", 1)),
    "fewer params": at(("cost/params", 1)),
    "less by thop": at(("cost/thop", 1)),
    "fewer bytes": at(("cost/bytes", 1)),
    "a lower peak": at(("cost/memory", 1)),
    "a larger base": at(("base/macs", 10**9)),
    "a base of more bytes": at(("base/bytes", 10**9)),
    "no drift": at(("drift", 1e-12)),
    "a file is not compared": at(("parity", lambda files: {k: v for k, v in files.items() if k != "model.pt2"})),
    "a file is not compared and overwritten": both(
        at(("parity", lambda files: {k: v for k, v in files.items() if k != "model.pt2"})), put("model.pt2", b"mine")
    ),
    "no file is compared": at(("parity", {})),
    "a file of another size": at(("parity/model.pt2/bytes", 1)),
    "another mean": at(("preprocessing/mean", [0.5])),
    "another deviation": at(("preprocessing/std", [0.5])),
    "classes in another order": at(("preprocessing/classes", lambda names: names[::-1])),
    "another input": at(("preprocessing/shape", [1, 16, 16])),
    "a normalisation that is not baked in": at(("preprocessing/baked", True), ("preprocessing/range", [0, 255])),
    "a narrower space": at(("spaces/0/width", 1)),
    "a space less": at(("spaces/0", GONE)),
    "a space that is not frozen": at(("spaces/2/frozen", None)),
    "a cheaper step": at(("steps/0/macs_images", 1)),
    "no steps": at(("steps", [])),
    "a line of history less": at(("history/0", GONE)),
    "a line of history more": at(("history", lambda rows: [*rows, ROW])),
    "another line of history": at(("history/1/val", 0.99)),
    "no history": at(("history", [])),
    "cheaper training": at(("train_cost/share", 1e-6)),
    "training elsewhere": at(("train_cost", None)),
    "a baseline of more epochs": at(("train_cost/baseline/epochs", 3000.0)),
    "another seed": at(("seeds/seed", 1)),
    "other data": at(("data/digest", "0" * 64)),
    "another name for the data": at(("data/name", "imagenet")),
    "more images": at(("data/counts/test", 10_000)),
    "a second seed": at(("seeds/second", 1)),
    "code of one's own": at(("code", {"./net.py:make": "0" * 64})),
    "an older report": at(("schema_version", 1)),
    "a key too many": lambda folder: tell(folder, content(folder) | {"prize": 1}),
    "a key too few": at(("command", GONE)),
    "a digest less": at(("files/recipe.yaml", GONE)),
    "no digests": at(("files", {})),
    "a picture that is not named": at(("files/history.svg", GONE)),
    "the page is removed": remove("report.md"),
    "the recipe is edited": change("recipe.yaml", lambda text: text.replace(b"30kMACs", b"90kMACs")),
    "the recipe has a line more": change("recipe.yaml", lambda text: text + b"\n"),
    "the recipe is removed": remove("recipe.yaml"),
    "the source is edited": change("model.py", lambda text: text + b"\nimport os\n"),
    "the source is removed": remove("model.py"),
    "the program is edited": change("model.pt2", lambda data: data + b"\0"),
    "the program is removed": remove("model.pt2"),
    "other weights": other_weights,
    "a weight is another": change("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "the weights are removed": remove("model.safetensors"),
    "the weights are cut short": change("model.safetensors", lambda data: data[:-4]),
    "model.onnx is longer": change("model.onnx", lambda data: data + b"\0"),
    "model.onnx seals nothing": retold(sealed=None),
    "model.onnx seals another accuracy": retold(sealed={"accuracy": {"val": 1.0}, "files": {}, "origin": ""}),
    "model.onnx seals text": retold(sealed="all is well"),
    "model.onnx names other limits": retold(budget=[]),
    "model.onnx is a stranger's": stripped,
    "model.onnx of another run": swap("model.onnx"),
    "the weights of another run": swap("model.safetensors"),
    "the program of another run": swap("model.pt2"),
    "the recipe of another run": swap("recipe.yaml"),
    "the report of another run": swap("report.json", "report.md"),
    "all files of another run but the report": swap("model.onnx", "model.pt2", "model.py", "model.safetensors"),
    "model.onnx and the report of another run": swap("model.onnx", "report.json", "report.md", "recipe.yaml"),
}
UNSEALED: dict[str, Edit] = {  # seen until the digests are made anew; only a signature holds them
    "a note more": at(("notes", ["as good as new"])),
    "another command": at(("command", "compress run mine.yaml")),
    "another torch": at(("environment/torch", "9.9")),
    "another processor": at(("environment/cpu", "abacus")),
    "less time": at(("seconds", 0.1)),
    "a run that was resumed": at(("resumed_from", 5)),
    "a nearer file": at(("parity/model.onnx/max_abs", 0.0), ("parity/model.onnx/max_rel", 1e-9)),
    "more images compared": at(("parity/model.onnx/images", 10**6)),
    "a faster run": at(("budget/2/spread", [1, 2])),
    "another digest of a page": at(("files/report.md", "0" * 64)),
    "another digest of the report": at(("digest", "0" * 64)),
    "the page is edited": change("report.md", lambda text: text.replace(b"Kept", b"Excellent")),
    "the page is empty": put("report.md", b""),
    "the picture is edited": change("history.svg", lambda text: text + b"<!-- -->"),
    "the picture is removed": both(remove("history.svg"), at(("notes", ["there was no picture"]))),
    "the page of another run": swap("report.md"),
    "the picture of another run": swap("history.svg"),
}
NONE: dict[str, Edit] = {  # no edits of what a run left
    "other times": touched,
    "the report in another layout": shorter,
    "a file beside": put("notes.txt", b"seen by me"),
    "a hidden file": put(".DS_Store", b"\0"),
    "a copy of a file": put("model.onnx.bak", b"old"),
    "a folder beside": lambda folder: (folder / "__pycache__").mkdir(),
    "signatures that nobody asks for": put("signatures.json", b"{}"),
}


@pytest.fixture
def folder(runs: Runs, tmp_path: Path) -> Path:
    (tmp_path / "twin").symlink_to(runs.missed)
    return Path(shutil.copytree(runs.kept, tmp_path / "out"))


def code_of(folder: Path) -> tuple[int, str]:
    verdict = verify(folder, BUDGET)
    assert len(verdict.lines[0].splitlines()) == 1
    return verdict.code, verdict.lines[0]


def test_what_a_run_left_is_kept_or_missed(runs: Runs) -> None:
    assert (code_of(runs.kept)[0], code_of(runs.missed)[0]) == (0, 1)
    assert verify(runs.kept, "sealed").code == 0
    assert len(SEEN) + len(UNSEALED) + len(NONE) >= 60


@pytest.mark.parametrize("name", [*SEEN, *UNSEALED])
def test_an_edit_is_seen(name: str, folder: Path) -> None:
    (SEEN | UNSEALED)[name](folder)
    assert code_of(folder)[0] == 4


@pytest.mark.parametrize("name", SEEN)
def test_an_edit_of_what_is_sealed_is_seen_under_new_digests_too(name: str, folder: Path) -> None:
    SEEN[name](folder)
    anew(folder)
    assert code_of(folder)[0] == 4


@pytest.mark.parametrize("name", UNSEALED)
def test_an_edit_of_what_nothing_seals_is_a_forgery_that_a_signature_alone_would_show(name: str, folder: Path) -> None:
    UNSEALED[name](folder)
    story = content(folder)
    story["files"] = {one: held for one, held in story["files"].items() if (folder / one).is_file()}
    tell(folder, story)
    anew(folder)
    assert code_of(folder)[0] == 0


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value in a table or list, by its path."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{key}")
    else:
        yield path[1:], value


def another(value: Any) -> Any:
    """A value of the same type as far as there is another one; near to it, so that it may be believed."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1 if isinstance(value, int) else value * 0.75 + 0.01
        case str():
            return "0" * 64 if len(value) == 64 else f"{value}x"
    return 0.5 if value is None else ["x"]


def test_every_value_of_a_report_is_held_by_its_digest_and_most_by_what_model_onnx_seals(folder: Path) -> None:
    whole = content(folder)
    free = ("command", "environment", "notes", "parity", "resumed_from", "seconds", "budget/2", "files", "digest")
    for path, value in leaves(whole):
        tell(folder, whole)
        at((path, another(value)))(folder)
        assert code_of(folder)[0] == 4, path
        anew(folder)
        assert code_of(folder)[0] == 4 or path.startswith(free), path


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_edit_changes_no_verdict(name: str, folder: Path) -> None:
    NONE[name](folder)
    assert code_of(folder)[0] == 0


def test_what_lies_beside_is_told(folder: Path) -> None:
    put("mine.txt", b"")(folder)
    assert "beside the files of the run, and not checked: mine.txt" in verify(folder, BUDGET).lines


def test_a_key_that_is_there_twice_is_seen_whichever_a_reader_takes(folder: Path) -> None:
    twice(folder)
    assert code_of(folder) == (
        4,
        f"{folder / 'report.json'}: not a report, or a damaged one (the key 'verdict' twice).",
    )


def test_a_run_that_missed_its_accuracy_cannot_be_told_as_one_that_did_not(runs: Runs, tmp_path: Path) -> None:
    for number, edit in enumerate(
        [at(("accuracy/required", None)), at(("accuracy/val", 1.0)), at(("verdict/code", 0))]
    ):
        copy = Path(shutil.copytree(runs.missed, tmp_path / str(number)))
        edit(copy)
        anew(copy)
        assert code_of(copy)[0] == 4


# ---- corruptions ----------------------------------------------------------------------------------------------------


def corrupted(data: bytes, draw: random.Random) -> bytes:
    """The data with one of: a byte changed, cut short, a part doubled, a part of zeros."""
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.randint(1, 200))
    return draw.choice(
        [
            data[:start] + bytes([data[start] ^ draw.randint(1, 255)]) + data[start + 1 :],
            data[:start],
            data[:end] + data[start:],
            data[:start] + bytes(end - start) + data[end:],
        ]
    )


def says_the_same(data: bytes, whole: bytes) -> bool:
    """Whether nothing was changed, or white space between what JSON says."""
    if data == whole:
        return True
    try:
        one, other = (json.loads(text, object_pairs_hook=list) for text in (data, whole))  # a key twice is no report
    except ValueError:
        return False
    return bool(one == other)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "report.json"])
def test_no_corruption_is_kept_nor_breaks_anything(name: str, folder: Path) -> None:
    whole, draw = (folder / name).read_bytes(), random.Random(name)
    for _ in range(40):
        data = corrupted(whole, draw)
        (folder / name).write_bytes(data)
        assert (code_of(folder)[0] == 4) != says_the_same(data, whole), data


def test_no_corruption_of_metadata_is_kept_nor_breaks_anything(folder: Path) -> None:
    model, draw = onnx_file.read(folder / "model.onnx"), random.Random("metadata")
    entries = [entry for entry in model.metadata_props if entry.key != onnx_file.SEAL]
    for number in range(40):
        entry = entries[number % len(entries)]
        twin = onnx.ModelProto()
        twin.CopyFrom(model)
        texts = {one.key: one.value for one in entries}
        texts[entry.key] = corrupted(entry.value.encode(), draw).decode("utf-8", "replace")
        twin.ClearField("metadata_props")
        for key, text in texts.items():
            twin.metadata_props.add(key=key, value=text)
        onnx_file.write_sealed(twin, folder / "model.onnx")
        assert verify(folder / "model.onnx", BUDGET).code in (0, 4)
        assert code_of(folder)[0] == 4


HUGE = {
    "metadata that is nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "metadata that opens 100,000 tables": '{"a":' * 100_000,
    "claims of 4,000 digits": json.dumps({"macs": 1, "memory": 1, "params": 1, "thop": 1}).replace("1", "9" * 4000),
    "claims of 40 digits": json.dumps({"macs": 1, "memory": 1, "params": 1, "thop": 1}).replace("1", "9" * 40),
    "claims that are infinite": '{"macs": 1e999, "memory": Infinity, "params": NaN, "thop": -1}',
    "a claim of a million letters": json.dumps({"macs": "x" * 10**6}),
}


@pytest.mark.parametrize("topic", ["claims", "base", "budget", "sealed", "preprocessing"])
@pytest.mark.parametrize("name", HUGE)
def test_metadata_of_no_measure_is_refused_in_a_sentence(name: str, topic: str, folder: Path) -> None:
    model = onnx_file.read(folder / "model.onnx")
    next(one for one in model.metadata_props if one.key == f"compress.{topic}").value = HUGE[name]
    model.metadata_props.pop()  # the seal
    onnx_file.write_sealed(model, folder / "model.onnx")
    assert code_of(folder)[0] == 4
    assert len(code_of(folder)[1]) < 2_000


REPORTS: dict[str, Edit] = {
    "a parity name of 5,000 characters": lambda folder: at(
        ("parity", lambda files: files | {"m" * 5_000: files["model.onnx"]})
    )(folder),
    "a parity name that leaves the folder": at(("parity", lambda files: files | {"../x": files["model.onnx"]})),
    "a file name with a zero in it": at(("files", lambda files: files | {"model\0.onnx": "0" * 64})),
    "100,000 wrong rows": at(("history", [[]] * 100_000)),
    "100,000 wrong seeds": at(("seeds", {str(number): [] for number in range(100_000)})),
    "a report of 9 MB": at(("notes", ["x" * 9_000_000])),
    "a limit of 5,000 digits": lambda folder: change(
        "report.json", lambda text: text.replace(b'"limit": 30000', b'"limit": ' + b"9" * 5_000)
    )(folder),
    "a cell of history that is nested 100,000 deep": lambda folder: change(
        "report.json",
        lambda text: text.replace(b'"event": ', b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "event": '),
    )(folder),
    "half a character": change("report.json", lambda text: text.replace(b"compress run", b"\\udc80")),
    "a list": put("report.json", b"[]"),
    "nothing": put("report.json", b""),
    "a number": put("report.json", b"7"),
    "another encoding": change("report.json", lambda text: text.decode().encode("utf-16")),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_no_measure_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    REPORTS[name](folder)
    code, sentence = code_of(folder)
    assert (code, len(sentence) < 2_000) == (4, True)
