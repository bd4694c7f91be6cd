"""A method of one's own, written in one file outside of the package, is treated as those of the table are."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

import compress
from compress._plan import methods_of
from compress._run import develop, prepare
from compress.errors import UsageError
from compress.recipe.file import dump, read

# Network slimming (Liu et al. 2017): channels with the smallest batch-norm scales go, as many as the budget asks for.
SLIM = """
from dataclasses import dataclass

import compress
from compress.budget.landing import land
from compress.recipe.step import Course


@dataclass(frozen=True)
class State:
    at: int = 0  # optimizer steps of tuning so far


@dataclass(frozen=True)
class Slimming(compress.Method[State]):
    epochs: float = 1.0  # of tuning

    def init(self, lab):
        goal = land(lab.graph.price, dict.fromkeys(lab.graph.free, 1), lab.widths, lab.budget, ceiling=lab.widths)
        order = {name: self.scales(lab, name).argsort(descending=True).tolist() for name in goal}
        lab.narrow({name: sorted(order[name][:width]) for name, width in goal.items()})
        self.ready(lab, State())
        lab.note("slimmed", widths=lab.widths)
        return State()

    def step(self, lab, state):
        return State(lab.stretch("tune", Course(epochs=self.epochs), state.at, self.total(lab)))

    def done(self, lab, state):
        return "slimmed and tuned" if state.at >= self.total(lab) else None

    def load(self, fields):
        return State(**fields)

    def scales(self, lab, name):
        # [width]: summed over all batch norms that hold the space's channels
        slots = lab.graph.slots.items()
        held = [tensor for (tensor, _), slot in slots if slot.role == "channel" and name in slot.runs]
        return sum(lab.model.get_parameter(tensor).abs() for tensor in held if tensor.endswith("weight"))

    def total(self, lab):
        return round(self.epochs * lab.epoch)


def nothing(**args):
    return object()
"""
RECIPE = """
model:
  factory: compress.models:vgg
  args: {widths: [8, 12], pools: [1, 2], in_channels: 1, size: 8, last_pool: global}
data: {source: digits}
train: {batch: 100, lr: 0.05}
method: {name: "./slim.py:Slimming", args: {epochs: 2}}
budget: 50%
checkpoint: 1 epoch
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slim.py").write_text(SLIM)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_it_runs_lands_and_is_reported_with_the_digest_of_its_file(shop: Path) -> None:
    report = compress.run("recipe.yaml", out="out").report.plain()
    assert report["verdict"]["code"] == 0
    assert report["landing"]["utilisation"] > 0.95
    assert [line["event"] for line in report["history"]] == ["start", "slimmed", "tune", "tune"]
    assert report["code"] == {"./slim.py:Slimming": hashlib.sha256(SLIM.encode()).hexdigest()}
    assert compress.verify("out", "50%").code == 0


def test_it_may_stand_among_the_methods_of_the_table(shop: Path) -> None:
    (shop / "steps.yaml").write_text(
        RECIPE.replace('method: {name: "./slim.py:Slimming", args: {epochs: 2}}', "steps: ['./slim.py:Slimming', l1]")
    )
    recipe = read("steps.yaml", {"steps.1.tune.epochs": "0"})
    assert recipe.shares == (2.0, 1.0)
    bench, planned = prepare(recipe, "cpu")
    develop(bench, methods_of(recipe), shop)
    assert [step["method"] for step in bench.steps] == ["./slim.py:Slimming", "l1"]
    assert 0.95 < planned.budget.utilisation(bench.cost()) <= 1


def test_its_path_is_told_from_where_the_command_is_typed_and_kept_from_where_the_recipe_lies(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "elsewhere").mkdir()
    monkeypatch.chdir(shop / "elsewhere")
    recipe = read("../recipe.yaml", {"method.name": "../slim.py:Slimming", "train.loss": "../net.py:f"})
    assert (recipe.methods[0].name, recipe.train.loss) == ("slim.py:Slimming", "net.py:f")
    absolute = read("../recipe.yaml", {"method.name": "/far/away/slim.py:Slimming"})
    assert "name: slim.py:Slimming\n" in dump(absolute)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "./gone.py:Slimming"}, r"method\.name: there is no file \./gone\.py beside the recipe"),
        ({"name": "./slim.py:Slimmer"}, r"method\.name: \./slim\.py has no callable named Slimmer"),
        ({"args": {"epoch": 2}}, r"method\.args: \./slim\.py:Slimming\(epoch=2\) failed \(TypeError: .*epoch'"),
        ({"name": "./slim.py:nothing"}, r"makes a object; it must make a subclass of compress\.Method"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_trained(shop: Path, method: dict[str, Any], says: str) -> None:
    recipe = read("recipe.yaml")
    changed = recipe.model_copy(update={"method": recipe.methods[0].model_copy(update=method)})
    with pytest.raises(UsageError, match=says):
        compress.plan(changed)
