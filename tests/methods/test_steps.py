"""Several methods one after the other: how a recipe says it, and what each may use."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compress._plan import methods_of, plan
from compress.budget.limits import Budget, Cost
from compress.errors import UsageError
from compress.methods import METHODS, settings_of
from compress.methods.make import method_of
from compress.methods.protocol import Around, Method
from compress.recipe import file as recipes
from compress.recipe.settings import Recipe

HEAD = "model: {factory: compress.models:basic3resnet, args: {depths: [2, 2, 2], width: 4, in_channels: 1}}\n"


def read(text: str, overrides: dict[str, str] | None = None, *, folder: Path) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(HEAD + text)
    return recipes.read(path, overrides or {}, "300kMACs")


def test_steps_are_named_alone_or_with_their_settings(tmp_path: Path) -> None:
    said = read("steps: [autogrow, {name: adenel, seed_width: 4}]\n", folder=tmp_path)
    assert [method.name for method in said.methods] == ["autogrow", "adenel"]
    assert said.methods[1].model_dump()["seed_width"] == 4
    again = tmp_path / "again.yaml"
    again.write_text(recipes.dump(said))
    assert recipes.read(again) == said


def test_a_step_leaves_the_next_one_something_to_do(tmp_path: Path) -> None:
    cases: dict[str, tuple[float, ...]] = {
        "method: {name: l1}\n": (1,),
        "steps: [autogrow, adenel]\n": (0.5, 1),
        "steps: [autogrow, adenel, l1]\n": (1, 2, 1),
        "steps: [autogrow, {name: adenel, share: 3}, l1]\n": (1.5, 3, 1),
    }
    for text, shares in cases.items():
        assert read(text, folder=tmp_path).shares == shares


def test_a_key_of_a_step_is_set_by_its_number(tmp_path: Path) -> None:
    said = read("steps: [autogrow, adenel]\n", {"steps.0.tau": "0.01", "steps.1": "l1"}, folder=tmp_path)
    assert [method.name for method in said.methods] == ["autogrow", "l1"]
    assert said.methods[0].model_dump()["tau"] == 0.01
    with pytest.raises(UsageError, match=r"--set: steps\.2\.tau: '2' is no entry of a list of 1; they are numbered"):
        read("steps: [autogrow]\n", {"steps.2.tau": "1"}, folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\n", "write method: {name: adenel}, or several as steps"),
        ("method: {name: l1}\nsteps: [l1]\n", "write method: {name: adenel}, or several as steps"),
        ("method: {name: l1, share: 2}\n", "method.share: one method has the whole budget"),
        ("steps: [autogrow, {name: adenel, share: 3}]\n", "the last step may take 3 of the budget"),
        ("steps: [{name: autogrow, share: 2}, adenel]\n", "but adenel, which grows what it leaves, only 1"),
        ("steps: [lwp, autogrow, l1]\n", "autogrow cannot follow lwp"),
        ("steps: [autogrow, adenle]\n", r"r.yaml:2: steps\.1\.name: expected 'adenel'.*did you mean 'adenel'"),
        ("steps: [autogrow, {name: adenel, thau: 1}]\n", r"r.yaml:2: steps\.1\.thau: unknown key; did you mean 'tau'"),
        ("steps: [autogrow, {name: adenel, tau: 2}]\n", r"steps\.1\.tau: expected a number of at most 1, got 2"),
        ("steps: [{name: autogrow, share: 0}, adenel]\n", r"steps\.0\.share: expected a number above 0, got 0"),
    ],
)
def test_what_is_wrong_with_steps_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(text, folder=tmp_path)


def test_growing_begins_from_the_net_as_it_is_behind_another_step(tmp_path: Path) -> None:
    keeps = [method.keeps_weights for method in methods_of(read("steps: [autogrow, adenel]\n", folder=tmp_path))]
    assert keeps == [False, True]
    text = "steps: [{name: autogrow, begin: present}, {name: adenel, begin: seed}]\n"
    assert [method.keeps_weights for method in methods_of(read(text, folder=tmp_path))] == [True, False]


def test_a_plan_tells_which_step_has_too_little_for_its_smallest_network(tmp_path: Path) -> None:
    planned = plan(read("data: {source: digits}\nsteps: [{name: autogrow, share: 0.1}, adenel]\n", folder=tmp_path))
    assert not planned.feasible
    assert planned.verdict().startswith("infeasible: 0.1 x 300kMACs is less than")
    assert "the smallest network that autogrow can make" in planned.verdict()
    assert plan(read("data: {source: digits}\nsteps: [autogrow, adenel]\n", folder=tmp_path)).feasible


def test_a_part_of_a_budget_is_that_part_of_every_limit_that_is_counted() -> None:
    whole = Budget.parse(["43MFLOPs, 5ms@onnxruntime-cpu/1", {"limit": "0.58Mparams", "level": "warn"}])
    half = whole.scaled(0.5)
    assert [limit.limit for limit in half.limits] == [21_500_000, 5_000_000, 290_000]
    assert [limit.level for limit in half.limits] == ["error", "warn", "warn"]
    assert whole.scaled(1) is whole
    assert half.holds(Cost(10**6, 21_500_000, 0, 0))
    assert not half.holds(Cost(0, 21_500_001, 0, 0))


def test_every_method_says_what_a_step_before_it_may_take() -> None:
    before = {name: settings_of(name).share_before for name in METHODS}
    others = {"adenel": 0.5, "autogrow": 0.5, "refit": 1.0, "scratch": 1.0, "tune": 1.0, "uniform": 1.0}
    assert before == dict.fromkeys(METHODS, 2.0) | others  # all else prunes


def test_every_row_of_the_table_names_keys_of_that_name_and_a_method_that_takes_them() -> None:
    for name in METHODS:
        settings = settings_of(name).model_validate(
            {"scratch": {"epochs": 1}, "uniform": {"epochs": 1}, "refit": {"of": "run"}}.get(name, {})
        )
        method = method_of(settings, Around(align=8))
        assert settings.name == name
        assert Method in type(method).__mro__
        assert (method.settings, method.around.align) == (settings, 8)  # type: ignore[attr-defined]


def test_the_schema_of_recipes_knows_steps_by_name_and_in_full() -> None:
    known = jsonschema.Draft202012Validator(recipes.schema())
    model = {"factory": "net:make"}
    own = {"name": "pkg.net:Slimming", "args": {"share": 0.5}}
    for steps in (["autogrow", "adenel"], ["lwp", {"name": "l1", "rounds": 2}], ["./slim.py:Slimming", own]):
        assert known.is_valid({"model": model, "steps": steps})
    for steps in (["autogrow", "adenle"], ["scratch"], [{"name": "l1", "raunds": 2}], [own | {"arg": 1}]):
        assert not known.is_valid({"model": model, "steps": steps})


def test_what_is_only_trained_before_it_is_narrowed_may_be_of_any_size(tmp_path: Path) -> None:
    text = "data: {source: digits}\nsteps: [{name: scratch, epochs: 1}, l1]\n"
    assert plan(read(text, folder=tmp_path).model_copy(update={"budget": "20%MACs"})).feasible


def test_a_second_growth_in_depth_takes_the_stages_of_the_full_network(tmp_path: Path) -> None:
    text = "data: {source: digits}\nsteps: [autogrow, adenel, autogrow]\n"
    planned = plan(read(text, folder=tmp_path).model_copy(update={"budget": "900kMACs"}))
    assert planned.depths == {f"stage{number}": (2, 1, 1) for number in (1, 2, 3)}


@pytest.mark.parametrize(
    "steps", [[{"name": "l1"}, {"name": "scratch", "epochs": 1}], [{"name": "lwp", "retrain": "scratch"}]]
)
def test_a_net_of_which_nothing_can_be_trained_is_drawn_anew_by_no_step(steps: list[Any], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from compress.models import densenet\n"
        "def net():\n"
        "    return densenet([2, 2], growth=4, init=4, in_channels=1).requires_grad_(False)\n"
    )
    said = Recipe.model_validate({"model": {"factory": "./net.py:net"}, "steps": steps, "budget": "90%"})
    with pytest.raises(UsageError, match=r"Nothing of the model can be trained: .* let \./net\.py:net leave some"):
        plan(said.placed(tmp_path))


def test_limits_that_lwp_has_no_price_for_are_refused_by_the_plan() -> None:
    net = {"factory": "compress.models:densenet", "args": {"depths": [2, 2], "growth": 4, "in_channels": 1}}
    said = Recipe.model_validate({"model": net, "method": {"name": "lwp"}, "budget": "100KB"})
    with pytest.raises(UsageError, match="100KB: connections are chosen by parameters, MACs or FLOPs"):
        plan(said)
