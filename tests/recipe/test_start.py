"""A recipe goes on from a finished run's network: it is pruned, trained on or grown, and what it came from is told."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Finished

import compress
from compress._plan import plan
from compress._run import develop, prepare, run
from compress.errors import UsageError
from compress.export.report import Report
from compress.methods.make import method_of
from compress.methods.protocol import Around
from compress.recipe.file import dump, read, schema


@pytest.fixture(autouse=True)
def shop(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with a finished run in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.out, "first")
    return tmp_path


def told(text: str, name: str = "next.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


NEXT = "model: {from: first}\ntrain: {batch: 200}\nmethod: {name: l1, tune: {epochs: 1, lr: 0.01}}\nbudget: 60%\n"


def test_the_network_as_narrow_as_it_is_is_the_full_one() -> None:
    first = Report.read(Path("first/report.json"))
    planned = plan(told(NEXT))
    assert (planned.base.params, planned.base.macs) == (first.cost.params, first.cost.macs)
    assert planned.recipe.model.weights == "first"
    assert planned.recipe.data.mean == tuple(first.preprocessing.mean)
    assert planned.recipe.data.std == tuple(first.preprocessing.std)


def test_it_is_pruned_on_and_the_report_says_where_it_came_from() -> None:
    first = Report.read(Path("first/report.json"))
    result = run(told(NEXT), out="second")
    start = result.report.history[0].plain()
    assert start["val"] == pytest.approx(first.accuracy.val)
    assert result.report.cost.macs < first.cost.macs
    assert any(note.startswith("it goes on from first, made by ") for note in result.report.notes)
    assert first.train_cost
    assert any(f"{first.train_cost.macs_images:.3g} MACs x images" in note for note in result.report.notes)
    code = result.report.plain()["code"]
    assert code["first"] == first.plain()["files"]["model.safetensors"]
    assert compress.verify("second", "sealed").code == 0
    loaded, tensors = compress.load("second"), safetensors.torch.load_file("second/model.safetensors")
    assert {name: tuple(t.shape) for name, t in loaded.state_dict().items()} == {
        name: tuple(t.shape) for name, t in tensors.items()
    }
    third = run(told(NEXT.replace("from: first", "from: second"), "third.yaml"), out="third")  # and so on
    assert third.report.cost.macs < result.report.cost.macs


def test_it_is_trained_on_as_it_is(shop: Path) -> None:
    text = NEXT.replace("{name: l1, tune: {epochs: 1, lr: 0.01}}", "{name: tune, tune: {epochs: 1}}")
    text = text.replace("60%", "100%")
    result = run(told(text), out="second")
    first = Report.read(Path("first/report.json"))
    assert (result.report.cost.params, result.report.cost.macs) == (first.cost.params, first.cost.macs)
    assert [row.plain()["event"] for row in result.report.history] == ["start", "tune"]
    old, new = (safetensors.torch.load_file(f"{name}/model.safetensors") for name in ("first", "second"))
    assert old.keys() == new.keys()
    assert not all(torch.equal(old[name], new[name]) for name in old)


def test_an_interrupted_run_goes_on_from_it_to_the_same_weights(shop: Path) -> None:
    said = read(told(NEXT.replace("epochs: 1", "epochs: 2").replace("budget", "checkpoint: 1 steps\nbudget")))
    whole, _ = prepare(said, "cpu")
    (method,) = [method_of(step, Around(trained=True, folder=said.folder)) for step in said.methods]
    (shop / "whole").mkdir()
    develop(whole, [method], shop / "whole")
    again, _ = prepare(said, "cpu")
    assert develop(again, [method], shop / "whole") is not None  # from its last checkpoint
    mine, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_is_written_out_reads_back_alike() -> None:
    said = read(told(NEXT))
    told(dump(said), "again.yaml")
    again = read("again.yaml")
    assert again == said
    assert "from" in schema()["$defs"]["Model"]["properties"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{from: nowhere}", "nowhere is no folder of a finished run"),
        ("{from: first, weights: w.pt}", "no model.weights beside it"),
        ("{from: 3}", "expected the folder of a finished run"),
        ("{from: first, args: {widths: [3]}}", "was made with"),
    ],
)
def test_what_is_wrong_is_told(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(told(NEXT.replace("{from: first}", text)))


def test_code_of_a_folder_is_named_by_the_recipe_itself_or_not_run() -> None:
    path = Path("first/recipe.yaml")
    path.write_text(path.read_text().replace("compress.models:", "./evil.py:"))
    with pytest.raises(
        UsageError, match=r"made by \./evil\.py:\w+; if you trust that code, write it as model\.factory"
    ):
        read(told(NEXT))
    told_again = NEXT.replace("{from: first}", "{from: first, factory: 'compress.models:vgg'}")
    assert read(told(told_again)).model.factory == "compress.models:vgg"


def test_a_damaged_report_is_told() -> None:
    Path("first/report.json").write_text(json.dumps({"preprocessing": {}}))
    with pytest.raises(UsageError, match=r"model\.from: .*report\.json is damaged"):
        read(told(NEXT))
