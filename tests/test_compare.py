"""Methods are compared on the same data, budgets and train-cost, a folder for each run, over seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compress._compare import Arm, compare, going_on, within_of
from compress.cli import main
from compress.errors import Infeasible, UsageError
from compress.export.report import Report
from compress.recipe.file import read
from compress.recipe.settings import Recipe
from compress.training.events import Doing, Event

TINY = """
model: {factory: compress.models:vgg, args: {widths: [4, 6], pools: [1, 2], last_pool: global, in_channels: 1, size: 8}}
train: {cost: 4.0e+7, batch: 200}
method: {name: adenel, seed_width: 2, round: 2 steps}
budget: 60%
seed: 7
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_every_run_has_the_same_cost_and_a_folder_and_a_second_call_goes_on(shop: Path) -> None:
    told: list[Event] = []
    made = compare("tiny.yaml", methods="recipe,l1,uniform", seeds=1, out="cmp", workers=2, listen=told.append)
    assert [(row.method, row.budget, row.seed) for row in made.rows] == [
        ("recipe", "60%", 7), ("l1", "60%", 7), ("uniform", "60%", 7),
    ]  # fmt: skip
    for row in made.rows:
        report = Report.read(Path(row.folder) / "report.json")
        assert row.kept
        assert row.used <= 1
        assert row.test == report.accuracy.test
        assert row.cost == pytest.approx(4e7, rel=0.1)  # to a step of the full net, and a trial of rates
    full = Report.read(Path("cmp/full-network/seed-7/report.json"))
    assert full.train_cost
    assert full.train_cost.macs_images == pytest.approx(2e7, rel=0.1)
    narrowed = Report.read(Path(made.rows[1].folder) / "report.json")
    assert narrowed.train_cost
    assert made.rows[1].cost == full.train_cost.macs_images + narrowed.train_cost.macs_images
    assert narrowed.history[0].plain()["val"] == full.accuracy.val
    assert any("training of the full network is in the train-cost" in remark for remark in made.remarks)
    assert json.loads(Path("cmp/compare.json").read_text())["rows"][0]["method"] == "recipe"
    lines = [event.text for event in told if isinstance(event, Doing)]
    assert lines[0] == "4 runs, 4 of them to do, 2 at a time, in cmp"
    assert sum(" begins" in line for line in lines) == 4

    with pytest.raises(UsageError, match=r"cmp exists already; .* go on with --resume"):
        compare("tiny.yaml", methods="recipe", seeds=1, out="cmp")
    told.clear()
    again = compare(
        "tiny.yaml", methods="recipe,l1,uniform", seeds=1, out="cmp", workers=2, resume=True, listen=told.append
    )
    assert again == made
    assert next(event.text for event in told if isinstance(event, Doing)).startswith("4 runs, 0 of them to do")

    more = compare("tiny.yaml", methods="uniform,l1,recipe", seeds=1, out="cmp", resume=True)  # in another order
    assert sorted(row.folder for row in more.rows) == sorted(row.folder for row in made.rows)
    with pytest.raises(UsageError, match="was begun with another recipe or train-cost"):
        compare("tiny.yaml", methods="recipe,l1,uniform", seeds=1, out="cmp", resume=True, cost=5e7)


def test_a_run_that_fails_is_told_and_the_others_stand(shop: Path) -> None:
    (shop / "bad.yaml").write_text(TINY.replace("seed_width: 2, round: 2 steps", "tune: {lr: 1.0e+30}"))
    done = CliRunner().invoke(
        main, ["compare", "tiny.yaml", "--methods", "uniform,bad.yaml", "--seeds", "1", "--workers", "2"]
    )
    assert done.exit_code == 1, done.output
    assert "uniform" in done.stdout
    assert "not there: bad, 60%, seed 7" in done.stdout
    assert "The loss became" in done.stderr
    assert Path("runs/tiny-compare/compare.html").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"methods": "adenel,nothing"}, "there is no method 'nothing'; they are adenel, autogrow"),
        ({"methods": "adenel,adenel"}, "name each method once"),
        ({"methods": " , "}, "name each method once"),
        ({"methods": "refit"}, "refit needs of; write a recipe"),
        ({"methods": "adenel", "cost": 0.0}, "--cost: say what each run may spend"),
        ({"methods": "adenel", "pretrain": 1.0}, "--pretrain is a part"),
        ({"methods": "lwp"}, "lwp within 60%: "),
        ({"methods": "none.yaml"}, r"none\.yaml"),
        ({"methods": "adenel", "budgets": "10M,10MFLOPs"}, "is there twice"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_runs(shop: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare("tiny.yaml", seeds=1, out="cmp", **given)
    assert not Path("cmp").exists()


def test_a_budget_that_a_method_cannot_keep_is_told_before_anything_runs(shop: Path) -> None:
    with pytest.raises(Infeasible, match="l1 within 10params"):
        compare("tiny.yaml", methods="l1", seeds=1, out="cmp", budgets="10params,1kparams")
    assert not Path("cmp").exists()


def test_amounts_without_a_unit_have_that_of_the_recipe(shop: Path) -> None:
    def budgets(own: Any, listed: str | None) -> list[str]:
        said = read("tiny.yaml", {}, None).model_dump(mode="json") | {"budget": own}
        return within_of(Recipe.model_validate(said), listed)

    assert budgets("43MFLOPs, 0.58Mparams", "10M,20M") == ["10MFLOPs", "20MFLOPs"]
    assert budgets("0.58Mparams", "10k, 20k") == ["10kparams", "20kparams"]
    assert budgets(None, "10M") == ["10MFLOPs"]
    assert budgets("1kparams", "10M,20MMACs") == ["10MMACs", "20MMACs"]
    assert budgets([{"limit": "43MFLOPs"}, "1MB"], None) == ["43MFLOPs, 1MB"]
    with pytest.raises(UsageError, match="--budgets: the recipe states none"):
        budgets(None, None)


def test_weights_of_the_recipe_are_free_and_it_is_said(shop: Path) -> None:
    made = compare("tiny.yaml", methods="uniform", seeds=1, out="cmp", workers=1)
    first = Path(made.rows[0].folder)
    said = read("tiny.yaml", {"model.weights": str(first / "none.safetensors")}, None)
    on = going_on(said, first)
    assert on.model.weights == str((first / "model.safetensors").absolute())
    report = Report.read(first / "report.json")
    assert report.train_cost
    assert on.train.cost == max(1.0, 4e7 - report.train_cost.macs_images)
    arm = Arm("l1", "60%", 7, said, first)
    assert arm.name == "l1, 60%, seed 7"


def test_a_method_beside_another_recipe_is_found_and_named_like_its_file(shop: Path) -> None:
    (shop / "tools").mkdir()
    (shop / "tools" / "narrow.py").write_text(
        "from compress.methods.prune.method import Pruning\nfrom compress.methods.prune.settings import L1\n"
        "from compress.recipe.step import Tune\n\n\n"
        "def mine(tune):\n    return Pruning(L1(tune=Tune(**tune)))\n"
    )
    lent = TINY[: TINY.index("method:")] + 'method: {name: "narrow.py:mine", args: {tune: {epochs: 1}}}\n'
    (shop / "tools" / "mine.yaml").write_text(lent)
    made = compare("tiny.yaml", methods="l1,tools/mine.yaml", seeds=1, out="cmp")
    assert made.methods == ("l1", "mine")
    assert [row.method for row in made.rows] == ["l1", "mine"]
