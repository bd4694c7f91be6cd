"""LWP ends within its budget and fills it, whatever phase it is stopped in, and says what it decided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import compress
from compress._plan import methods_of, plan
from compress._run import develop, prepare, run
from compress.budget.connections import FILLED
from compress.errors import Infeasible, Interrupted, UsageError
from compress.export.verify import verify
from compress.methods.lwp.method import LWP, State, pictures
from compress.methods.lwp.settings import PUBLISHED_LWP, PUBLISHED_LWP_TUNE, Lwp
from compress.recipe.settings import Recipe
from compress.recipe.step import Tune
from compress.surgery.connections import Wiring, cuts_in
from compress.training.bench import Bench
from compress.training.events import Event, Listener, Noted, silent


def recipe(**said: Any) -> Recipe:
    keys: dict[str, Any] = {
        "model": {
            "factory": "compress.models:densenet",
            "args": {"depths": [2, 2], "growth": 4, "init": 4, "in_channels": 1},
        },
        "data": {"train": 200, "val": 100},
        "train": {"batch": 40, "lr": 0.05},
        "method": {
            "name": "lwp", "pretrain": {"epochs": 1}, "hidden": 8, "children": 2, "release": "2 steps",
            "joint": "1 epoch", "samples": 3, "recalibrate": 2, "tune": {"epochs": 1},
        },
        "budget": "60% MACs",
        "checkpoint": "5 steps",
    }  # fmt: skip
    for key, value in said.items():
        keys[key] = {**keys.get(key, {}), **value} if isinstance(value, Mapping) else value
    return Recipe.model_validate(keys)


def begun(said: Recipe) -> None:
    lab, _ = prepare(said, "cpu")
    methods_of(said)[0].init(lab)


def developed(said: Recipe, folder: Path, listen: Listener = silent) -> Bench:
    lab, _ = prepare(said, "cpu", listen)
    develop(lab, methods_of(said), folder)
    return lab


def test_a_run_goes_through_its_phases_and_its_folder_keeps_the_budget(tmp_path: Path) -> None:
    told = run(recipe(), out=tmp_path / "out").report.plain()
    events = [line["event"] for line in told["history"]]
    assert events == ["start", "pretrain", *["search"] * 3, "selected", "tune"]
    assert told["verdict"]["code"] == 0
    assert FILLED - 0.05 < told["budget"][0]["utilisation"] <= 1  # six connections are coarse
    searched = [line for line in told["history"] if line["event"] == "search"]
    assert [line["released"] for line in searched] == [3, 4, 4]
    assert all({"reward", "entropy", "value", "eta", "accuracy", "loss"} <= line.keys() for line in searched)
    chosen = next(line for line in told["history"] if line["event"] == "selected")
    blocks = chosen["connections"]
    assert [block["block"] for block in blocks] == ["features.denseblock1", "features.denseblock2"]
    assert [len(block["layers"]) for block in blocks] == [2, 2]
    assert [len(row) for block in blocks for row in block["rows"]] == [3, 3, 3, 3]
    net = compress.load(tmp_path / "out")
    dropped = sum(len(sources) for sources in cuts_in(net).values())
    assert dropped == 6 - sum(sum(row) for block in blocks for row in block["rows"]) > 0
    assert verify(tmp_path / "out", "60% MACs").code == 0


def test_interrupted_in_any_phase_a_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    said = recipe(checkpoint="3 steps")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = developed(said, tmp_path / "whole")
    steps = [(note.event, note.step) for note in whole.history]
    assert steps[:3] == [("start", 0), ("pretrain", 3), ("pretrain", 5)]
    for at in (("pretrain", 5), ("search", 11), ("search", 16), ("selected", 18), ("tune", 23)):
        assert at in steps

        def stop(event: Event, at: tuple[str, int] = at) -> None:
            if isinstance(event, Noted) and (event.note.event, event.note.step) == at:
                raise Interrupted("stop")

        with pytest.raises(Interrupted):
            developed(said, tmp_path / "parts", stop)
    again = developed(said, tmp_path / "parts")
    assert again.history == whole.history
    assert (again.spent, cuts_in(again.model)) == (whole.spent, cuts_in(whole.model))
    mine, theirs = again.model.state_dict(), whole.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_network_with_weights_is_not_trained_first_and_one_that_fits_loses_nothing(tmp_path: Path) -> None:
    lab, _ = prepare(recipe(), "cpu")
    tensors = {name: tensor.contiguous() for name, tensor in lab.model.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    weights = {"weights": str(tmp_path / "w.safetensors")}
    given = recipe(model=weights, method={"pretrain": {}}, budget="100% MACs")
    (tmp_path / "a").mkdir()
    kept = developed(given, tmp_path / "a")
    assert [note.event for note in kept.history] == ["start"]
    assert all(torch.equal(a, b) for a, b in zip(kept.model.parameters(), lab.model.parameters(), strict=True))
    (tmp_path / "b").mkdir()
    fresh = developed(recipe(budget="100% MACs"), tmp_path / "b")
    assert [note.event for note in fresh.history] == ["start", "pretrain"]


def test_unless_it_is_to_be_filled_the_reward_decides_how_large_the_network_is(tmp_path: Path) -> None:
    lab = developed(recipe(method={"fill": False, "retrain": "scratch", "alpha": 0.5}, budget="100% MACs"), tmp_path)
    assert [note.event for note in lab.history][-2:] == ["selected", "tune"]
    assert lab.whole.utilisation(lab.cost()) <= 1


def test_the_plan_knows_the_floor_and_refuses_what_is_below(tmp_path: Path) -> None:
    known = plan(recipe())
    wiring = Wiring.read(prepare(recipe(), "cpu")[0].model, (1, 8, 8))
    assert [known.floor.params, known.floor.macs, known.floor.thop] == wiring.floor.tolist()
    below = plan(recipe(budget=f"{known.floor.macs - 1} MACs"))
    assert not below.feasible
    with pytest.raises(Infeasible, match=r"below the floor: \d+ MACs is less than"):
        below.refuse()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": {"children": 30}}, "method.children: 30 networks share a batch of 40 images.*write at most 20"),
        ({"method": {"search": "5 steps"}}, "method.search: 5 steps is too short to release 4 layers, 2 steps each"),
        ({"budget": "60% MACs, 1MB"}, "1MB: connections are chosen by parameters, MACs or FLOPs"),
        (
            {
                "model": {
                    "factory": "compress.models:vgg",
                    "args": {"widths": [4], "pools": [1], "in_channels": 1, "size": 8},
                }
            },
            "no dense layer",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_sentence(change: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        begun(recipe(**change))


def test_the_plan_refuses_more_children_than_a_batch_feeds() -> None:
    with pytest.raises(UsageError, match="30 networks share a batch of 40 images"):
        plan(recipe(method={"children": 30}))


def test_the_plan_refuses_a_search_that_ends_before_all_layers_are_released() -> None:
    with pytest.raises(UsageError, match="7 steps is too short to release 4 layers, 2 steps each: that takes 8 steps"):
        plan(recipe(method={"search": "7 steps"}))
    assert plan(recipe(method={"search": "8 steps"})).feasible


def test_the_published_preset_has_the_papers_values() -> None:
    said = Lwp.model_validate({"preset": "published", "gamma": 1})
    assert (said.alpha, said.gamma, said.children, said.over, said.fill) == (2.0, 1.0, 1, 0.0, False)
    assert (str(said.release), str(said.search), str(said.joint)) == ("1 epoch", "1000 epochs", "1000 epochs")
    assert (said.lr, said.schedule, said.joint_lr, said.joint_controller_lr) == (1e-3, "staircase", 1e-4, 1e-4)
    assert (said.retrain, said.tune.epochs, said.tune.schedule) == ("scratch", 300, "cosine")
    assert PUBLISHED_LWP.keys() <= Lwp.model_fields.keys()
    assert PUBLISHED_LWP_TUNE.keys() <= Tune.model_fields.keys()


def test_phases_with_nothing_to_do_are_left_out(tmp_path: Path) -> None:
    bare = {"pretrain": {"epochs": 0}, "release": "0 steps", "joint": "0 steps", "tune": {"epochs": 0}}
    lab, _ = prepare(recipe(method=bare), "cpu")
    method = methods_of(lab.recipe)[0]
    assert isinstance(method, LWP)
    state = method.init(lab)
    assert state == State("select")  # what an untaught controller would keep
    state = method.step(lab, state)
    assert method.done(lab, state) == "the connections are chosen and the network is trained"
    assert lab.budget.holds(lab.cost())


def test_the_picture_of_a_mask_has_a_row_a_layer_and_a_column_a_source() -> None:
    lab, _ = prepare(recipe(), "cpu")
    wiring = Wiring.read(lab.model, (1, 8, 8))
    first, _ = pictures(wiring, wiring.full)
    names = [f"features.denseblock1.denselayer{number}.conv1" for number in (1, 2)]
    assert first["layers"] == names
    assert first["sources"] == ["features.conv0", *names]
    assert first["rows"] == [[1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    "steps",
    [
        ["lwp", {"name": "l1", "tune": {"epochs": 1}}],
        [{"name": "adenel", "seed_width": 2, "round": "5 steps", "grow": "all", "tune": {"epochs": 1}}, "lwp"],
    ],
    ids=["lwp, l1", "adenel, lwp"],
)
def test_steps_with_lwp_land_and_go_on_where_they_were_stopped(tmp_path: Path, steps: list[Any]) -> None:
    one = recipe().methods[0].model_dump(mode="json") | {"pretrain": {"epochs": 0}}
    said = recipe().model_dump(mode="json") | {"method": None, "budget": "40% MACs"}
    said = Recipe.model_validate(said | {"steps": [one if step == "lwp" else step for step in steps]})
    whole = developed(said, tmp_path)
    assert [step["method"] for step in whole.steps] == [method.name for method in said.methods]
    assert 0.9 < whole.whole.utilisation(whole.cost()) <= 1
    assert compress.measure(whole.model, whole.shape).macs == whole.cost().macs
    again, folder = None, tmp_path / "stopped"
    folder.mkdir()

    def listen(event: Event) -> None:
        if isinstance(event, Noted) and event.note.event in ("selected", "tune") and event.note.step not in stops:
            stops.append(event.note.step)
            raise Interrupted("stopped")

    stops: list[int] = []
    while again is None:
        try:
            again = developed(said, folder, listen)
        except Interrupted:
            continue
    assert len(stops) >= 3
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items())
