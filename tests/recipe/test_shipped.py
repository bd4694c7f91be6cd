"""The recipes that come with the package are found by name, and a file of that name goes first."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from compress.cli import main
from compress.errors import UsageError
from compress.recipe import shipped
from compress.recipe.file import read

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
beside_the_extra = pytest.mark.skipif(find_spec("torch") is None, reason="needs compress-budget[torch]")
OTHER = "model: {factory: './net.py:make'}\ndata: {source: digits}\nmethod: {name: adenel}\nbudget: 7kMACs\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_every_recipe_of_the_folder_is_there_by_name_and_can_be_read() -> None:
    assert list(shipped.shipped()) == NAMES
    for name in NAMES:
        assert read(name).model_dump() == read(ROOT / "recipes" / f"{name}.yaml").model_dump()
        assert read(name).folder.is_dir()


def test_a_name_takes_overrides_and_a_budget_as_a_file_does() -> None:
    recipe = read("quickstart", {"train.lr": "0.25", "seed": "3"}, "9kMACs")
    assert (recipe.train.lr, recipe.seed, recipe.budget) == (0.25, 3, "9kMACs")


def test_a_file_of_that_name_goes_before_a_shipped_recipe_and_a_folder_does_not() -> None:
    Path("quickstart").mkdir()  # as `--out quickstart` leaves it
    assert read("quickstart").budget == "150kFLOPs"
    Path("quickstart").rmdir()
    Path("quickstart").write_text(OTHER)
    assert read("quickstart").budget == "7kMACs"
    assert read(Path("quickstart")).budget == "7kMACs"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean 'quickstart'?"),
        ("quickstart.yaml", "did you mean 'quickstart'?"),
        ("recipes/quickstart.yaml", "did you mean 'quickstart'?"),
        ("lwp-digit", "did you mean 'lwp-digits'?"),
        ("mine/quickstart", "did you mean 'quickstart'?"),
        ("nothing-of-the-kind", "write the path of a .yaml file, or a name that `compress recipes` lists."),
    ],
)
def test_a_misspelled_name_gets_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"^{re.escape(f'{name}: no such file; {hint}')}$"):
        read(name)


@beside_the_extra
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_command_given_a_misspelled_name_says_the_nearest_one_and_leaves_nothing(command: str) -> None:
    done = call(command, "quikstart")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "compress: quikstart: no such file; did you mean 'quickstart'?\n"
    assert list(Path().iterdir()) == []


def test_a_file_beside_is_nearer_than_a_shipped_recipe() -> None:
    Path("quickstart-2.yaml").write_text(OTHER)
    with pytest.raises(UsageError, match=r"did you mean 'quickstart-2\.yaml'\?"):
        read("quickstart-3.yaml")


@beside_the_extra
def test_a_plan_of_a_name_is_that_of_its_file() -> None:
    named = call("plan", "quickstart", "--json")
    assert (named.exit_code, named.stderr) == (0, "")
    assert named.stdout == call("plan", str(ROOT / "recipes/quickstart.yaml"), "--json").stdout
    assert list(Path().iterdir()) == []


def test_recipes_are_listed_with_their_budget_and_what_they_do() -> None:
    done = call("recipes")
    head, *rows = done.stdout.splitlines()
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.split(r"  +", head) == ["recipe", "budget", "what it does"]
    cells = {row[0]: row[1:] for row in (re.split(r"  +", row) for row in rows)}
    assert list(cells) == NAMES
    assert cells["adenel-lenet5-mnist"] == ["60kparams", "LeNet-5 on MNIST within 60 thousand parameters"]
    assert [cells[name][0] for name in NAMES] == [read(name).budget for name in NAMES]
    for name, (_, summary) in cells.items():
        assert len(summary) >= 20
        first = (ROOT / f"recipes/{name}.yaml").read_text().splitlines()[0]
        assert all(word.strip(",;") in first for word in summary.split()), name


def test_the_list_is_there_as_json_too() -> None:
    listed = json.loads(call("recipes", "--json").stdout)
    assert [recipe["name"] for recipe in listed] == NAMES
    assert all(set(recipe) == {"name", "budget", "summary"} for recipe in listed)


def test_a_recipe_is_printed_so_that_it_can_be_copied_and_changed() -> None:
    text = (ROOT / "recipes/quickstart.yaml").read_text()
    assert call("recipes", "quickstart").stdout == text
    assert json.loads(call("recipes", "quickstart", "--json").stdout)["text"] == text
    Path("mine.yaml").write_text(text)
    assert read("mine.yaml").model_dump() == read("quickstart").model_dump()


def test_a_recipe_that_does_not_exist_is_not_printed() -> None:
    done = call("recipes", "quikstart")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("is called 'quikstart'; did you mean 'quickstart'?\n")
    assert call("recipes", "zzz").stderr.endswith("is called 'zzz'; `compress recipes` lists them.\n")


def test_a_recipe_whose_first_line_is_no_comment_has_no_summary(tmp_path: Path) -> None:
    shutil.copy(ROOT / "recipes/quickstart.yaml", "own.yaml")
    assert shipped.Shipped("own", Path("own.yaml")).summary.startswith("From a wide little VGG")
    Path("own.yaml").write_text(OTHER)
    assert shipped.Shipped("own", Path("own.yaml")).summary == ""


def test_a_shipped_recipe_says_all_that_its_result_depends_on_and_leaves_no_default_to_change_it() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        said = yaml.safe_load(path.read_text())
        keys = {"optimizer", "lr", "momentum", "nesterov", "weight_decay", "ema", "label_smoothing", "batch"}
        assert keys <= said["train"].keys(), path.name
        assert "padding" in said["data"] or not said["data"].get("crop"), path.name
