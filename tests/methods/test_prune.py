"""A trained network is narrowed to its budget, keeps its largest filters, and is left alone where it fits already."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import compress
from compress._plan import methods_of, plan
from compress._run import develop, prepare, run
from compress.budget.units import show_score
from compress.errors import ArtifactError, Infeasible, UsageError
from compress.methods.prune.method import Pruning
from compress.methods.prune.scores import SCORES
from compress.reading.graph import read
from compress.recipe.settings import Recipe
from compress.surgery.ranking import importance
from compress.surgery.structure import construct
from compress.surgery.survey import survey
from compress.training.events import Event, Noted

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Sequential(nn.Conv2d(width, 20, 3, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))

class Halves(nn.Module):
    # how many channels a half has stands in a number, which follows them
    def __init__(self):
        super().__init__()
        self.half = 8
        self.stem, self.body, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 20, 3), nn.Linear(20, 10)

    def forward(self, x):
        one, other = self.stem(x).split([self.half, self.half], 1)
        return self.head(torch.relu(self.body(torch.cat([other, one.relu()], 1))).mean((2, 3)))

def still():
    net = Net()
    return net.requires_grad_(False)

def still_stem():
    net = Net()
    net.stem.requires_grad_(False)
    return net

def half():
    return Net().half()
"""


def flops(stem: int, body: int) -> int:
    """Of `Net` at 8 x 8 pixels: its convolutions and its linear layer, and thop's 4 for each output of a batch norm."""
    return 9 * 64 * stem + 9 * 36 * stem * body + 10 * body + 4 * (64 * stem + 36 * body)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: a model, and weights that it was trained to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(1)
    safetensors.torch.save_file(construct("./net.py:Net", {}).state_dict(), tmp_path / "w.safetensors")
    return tmp_path


def recipe(**said: Any) -> Recipe:
    keys: dict[str, Any] = {
        "model": {"factory": "./net.py:Net", "weights": "w.safetensors"},
        "train": {"lr": 0.05, "batch": 100},
        "method": {"name": "l1", "tune": {"epochs": 1}},
        "budget": "50%",
    }
    for key, value in said.items():
        keys[key] = {**keys.get(key, {}), **value} if isinstance(value, Mapping) else value
    return Recipe.model_validate(keys)


def test_the_largest_filters_stay_and_the_budget_decides_how_many(shop: Path) -> None:
    lab, planned = prepare(recipe(method={"tune": {"epochs": 0}}), "cpu")
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    develop(lab, methods_of(lab.recipe), shop)
    widths, limit = lab.widths, flops(12, 20) // 2
    stems, bodies = widths["stem"], widths["body.0"]
    assert planned.base.of("FLOPs") == flops(12, 20)
    assert flops(stems, bodies) <= limit < min(flops(stems + 1, bodies), flops(stems, bodies + 1))
    stem = before["stem.weight"].abs().sum((1, 2, 3)).argsort(descending=True)[: widths["stem"]].sort().values
    body = before["body.0.weight"].abs().sum((1, 2, 3)).argsort(descending=True)[: widths["body.0"]].sort().values
    after = lab.model.state_dict()
    assert torch.equal(after["stem.weight"], before["stem.weight"][stem])
    assert torch.equal(after["body.0.weight"], before["body.0.weight"][body][:, stem])
    assert torch.equal(after["head.weight"], before["head.weight"][:, body])
    assert planned.budget.utilisation(lab.cost()) > 0.95


def test_a_plan_shows_the_widths_of_an_even_cut_before_it_is_made(shop: Path) -> None:
    said = recipe(method={"tune": {"epochs": 0}})
    lab, planned = prepare(said, "cpu")
    develop(lab, methods_of(said), shop)
    assert planned.landing == lab.widths
    assert planned.advice is None  # the weights are there already
    assert plan(recipe(method={"allocate": "sensitivity"})).landing is None
    whole = plan(recipe(budget="200%"))
    assert whole.landing == whole.graph.widths


def test_a_plan_says_what_the_same_cost_would_train_from_new_weights() -> None:
    steps = [{"name": "scratch", "epochs": 20}, {"name": "l1", "tune": {"epochs": 5}}]
    planned = plan(recipe(method=None, model={"weights": None}, steps=steps))
    assert planned.landing
    ratio = planned.base.macs / planned.graph.price.cost(planned.landing).macs
    assert planned.advice
    assert f"for {5 + 20 * ratio:,.0f} epochs from new weights" in planned.advice


def test_layers_of_one_stage_have_one_vote_each() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c((self.a(x) + self.b(x)).mean((2, 3)))  # type: ignore[no-any-return]

    net = Added()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1))
        net.b.weight.copy_(torch.tensor([600.0, 100.0, -200.0]).view(3, 1, 1, 1))
    norms = importance(net, read(net, (1, 4, 4)))
    assert list(norms) == ["a"]
    assert norms["a"] == pytest.approx(np.array([1, 2, 3]) / 2 + np.array([6, 1, 2]) / 3)


def test_a_network_that_fits_already_comes_out_bit_for_bit(shop: Path) -> None:
    told = run(recipe(budget="100%"), out="out").report.plain()
    assert [line["event"] for line in told["history"]] == ["start", "kept"]
    assert told["history"][0]["val"] == told["accuracy"]["val"]
    saved = safetensors.torch.load_file("out/model.safetensors")
    given = safetensors.torch.load_file("w.safetensors")
    assert saved.keys() == given.keys()
    assert all(torch.equal(saved[name], given[name]) for name in given)


def test_a_run_reports_where_it_began_the_means_it_was_told_and_a_half_precision_model_as_float32(shop: Path) -> None:
    whole = recipe(model={"factory": "./net.py:half"}, data={"mean": [0.25], "std": [0.5]})
    lab, planned = prepare(whole, "cpu")
    start, test = lab.score().accuracy, lab.score("test").accuracy  # before anything is changed
    told = run(whole, out="out").report.plain()
    where = {
        "event": "start",
        "step": 0,
        "method": "l1",
        "val": start,
        "test": test,
        "used": lab.budget.utilisation(planned.base),
    }
    base = {key: told["base"][key] for key in ("macs", "params")}
    assert told["history"][0] == {**where, **base, "widths": {"stem": 12, "body.0": 20}}
    assert [line["event"] for line in told["history"][1:]] == ["narrowed", "recalibrated", "tune"]
    assert all({"val", "test"} <= line.keys() for line in told["history"][:3])
    line = next(line for line in Path("out/report.md").read_text().splitlines() if "around the cut" in line)
    for row in told["history"][:3]:
        assert f"{show_score(row['val'], 'top-1')} ({show_score(row['test'], 'top-1')})" in line
    assert told["verdict"]["code"] == 0
    assert (told["preprocessing"]["mean"], told["preprocessing"]["std"]) == ([0.25], [0.5])
    assert json.loads(Path("out/report.json").read_text()) == told
    assert safetensors.torch.load_file("out/model.safetensors")["stem.weight"].dtype == torch.float32
    assert compress.load("out", trust=True).stem.weight.dtype == torch.float32


@pytest.mark.parametrize("rounds", [2, 3, 7])
def test_several_cuts_end_at_the_widths_of_one(shop: Path, rounds: int) -> None:
    lab, _ = prepare(recipe(method={"rounds": rounds, "round": "1 steps", "tune": {"epochs": 0}, "rates": []}), "cpu")
    seen = []
    method = methods_of(lab.recipe)[0]
    assert isinstance(method, Pruning)
    state = method.init(lab)
    while method.done(lab, state) is None:
        seen.append(lab.widths)
        state = method.step(lab, state)
    once, _ = prepare(recipe(method={"tune": {"epochs": 0}}), "cpu")
    develop(once, methods_of(once.recipe), shop)
    assert lab.widths == once.widths
    assert lab.step == rounds - 1
    assert all(a["stem"] >= b["stem"] and a["body.0"] >= b["body.0"] for a, b in itertools.pairwise(seen))


def test_aligned_widths_are_multiples_or_the_full_ones(shop: Path) -> None:
    lab, _ = prepare(recipe(align=8, method={"tune": {"epochs": 0}}), "cpu")
    develop(lab, methods_of(lab.recipe), shop)
    assert all(width % 8 == 0 for width in lab.widths.values())


@pytest.mark.parametrize("model", [{}, {"factory": "./net.py:Halves", "weights": None}])
def test_an_interrupted_run_goes_on_to_the_same_weights(shop: Path, model: dict[str, Any]) -> None:
    said = recipe(model=model, method={"rounds": 2, "round": "3 steps", "tune": {"epochs": 1}}, checkpoint="2 steps")
    whole, _ = prepare(said, "cpu")
    develop(whole, methods_of(said), shop)

    class Stop(Exception):
        pass

    def stop_late(event: Event) -> None:
        if isinstance(event, Noted) and event.note.event == "tune":
            raise Stop

    work = shop / "work"
    work.mkdir()
    lab, _ = prepare(said, "cpu", stop_late)
    with pytest.raises(Stop):
        develop(lab, methods_of(said), work)
    again, _ = prepare(said, "cpu")
    assert develop(again, methods_of(said), work)
    assert again.history == whole.history
    assert not model or again.model.half * 2 == again.widths["stem"] * 2 < 16
    mine, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": {"weights": "none.safetensors"}}, UsageError, r"none\.safetensors: there is no such file"),
        ({"model": {"args": {"width": 14}}}, UsageError, r"as \[20, 12, 3, 3\]; the factory's model has \[20, 14"),
        ({"model": {"weights": "net.py"}}, ArtifactError, "cannot read it"),
        ({"model": {"factory": "./net.py:still"}}, UsageError, "Nothing of the model can be trained"),
        (
            {"model": {"include": ["stem", "bdy"]}},
            UsageError,
            r"model.include: 'bdy' matches no module .* mean 'body'\?",
        ),
        ({"model": {"exclude": ["stem", "body"]}}, Infeasible, r"what keeps its width: body\.0 \(20\), stem \(12\)"),
        ({"data": {"mean": [0.5, 0.5]}}, UsageError, "it needs 1 numbers"),
    ],
)
def test_what_cannot_be_narrowed_is_told_in_a_sentence(change: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(recipe(**change), out="out")
    assert not Path("out").exists()


def test_a_net_of_which_nothing_can_be_trained_is_refused_and_so_are_weights_that_would_be_lost() -> None:
    adenel = {"method": {"name": "adenel"}, "budget": "50%"}
    with pytest.raises(UsageError, match=r"Nothing of the model can be trained: .* let \./net\.py:still leave some"):
        plan(Recipe.model_validate({"model": {"factory": "./net.py:still"}, **adenel}))
    with pytest.raises(UsageError, match="adenel draws all weights anew; leave the key out, or write method"):
        plan(Recipe.model_validate({"model": {"factory": "./net.py:Net", "weights": "w.safetensors"}, **adenel}))


def test_a_layer_that_cannot_be_trained_keeps_its_filters_and_their_numbers(shop: Path) -> None:
    lab, planned = prepare(recipe(model={"factory": "./net.py:still_stem"}), "cpu")
    assert planned.graph.spaces["stem"].frozen == "stem.weight cannot be trained (requires_grad is False)"
    develop(lab, methods_of(lab.recipe), shop)
    given = safetensors.torch.load_file("w.safetensors")
    assert torch.equal(lab.model.get_parameter("stem.weight"), given["stem.weight"])
    assert lab.widths["body.0"] < 20


def test_patterns_keep_filters_and_say_so(shop: Path) -> None:
    spaces = plan(recipe(model={"exclude": ["st*"]})).graph.spaces
    assert spaces["stem"].frozen == "model.exclude: st*"
    assert spaces["body.0"].frozen is None
    spaces = plan(recipe(model={"include": ["stem"]})).graph.spaces
    assert spaces["stem"].frozen is None
    assert spaces["body.0"].frozen == "model.include names other modules"
    held = plan(recipe(model={"exclude": ["body"]})).graph  # a module stands for what it holds
    assert held.free == ("stem",)
    assert survey(torch.nn.Conv2d(1, 2, 1), (1, 8, 8)).free == ()


# ---- what channels are judged by ------------------------------------------------------------------------------------


def looked_at(name: str, **more: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """A lab before its first cut, and how important the channels of the body are."""
    lab, _ = prepare(recipe(method={"name": name, "tune": {"epochs": 0}, **more}), "cpu")
    method = methods_of(lab.recipe)[0]
    method.ready(lab, method.load({}))
    return lab, dict(SCORES[name](lab, lab.recipe.method))


def test_a_group_is_judged_by_what_makes_a_channel_and_what_reads_it() -> None:
    lab, ranks = looked_at("group")
    net = lab.model.requires_grad_(False)
    makes = [float(net.body[0].weight[k].norm()) for k in range(20)]
    reads = [float(net.head.weight[:, k].norm()) for k in range(20)]
    expected = np.array(makes) / np.mean(makes) + np.array(reads) / np.mean(reads)
    assert ranks["body.0"] == pytest.approx(expected, rel=1e-6)
    stems = [float(net.stem.weight[k].norm()) for k in range(12)]
    reads = [float(net.body[0].weight[:, k].norm()) for k in range(12)]
    expected = np.array(stems) / np.mean(stems) + np.array(reads) / np.mean(reads)
    assert ranks["stem"] == pytest.approx(expected, rel=1e-6)


def batches_of(lab: Any, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(lab.data.stream(0, count))


def test_taylor_is_the_squared_derivative_of_the_loss_by_a_gate_on_the_channel() -> None:
    lab, ranks = looked_at("taylor", batches=2)
    net, expected = lab.model.eval(), np.zeros(20)
    for x, y in batches_of(lab, 2):
        gate = torch.ones(20, requires_grad=True)
        inner = net.body(torch.relu(net.norm(net.stem(x)))) * gate[:, None, None]
        loss = torch.nn.functional.cross_entropy(net.head(inner.mean((2, 3))), y)
        (slope,) = torch.autograd.grad(loss, gate)
        expected += slope.numpy() ** 2
    assert ranks["body.0"] == pytest.approx(expected, rel=1e-3)
    assert lab.step == 2  # its batches are in the books
    assert lab.spent == 2 * 100 * lab.cost().macs


def test_hessian_is_half_of_squared_weights_times_mean_squared_gradients() -> None:
    lab, ranks = looked_at("hessian", batches=2)
    net, expected = lab.model.eval(), np.zeros(20)
    squares = {name: torch.zeros_like(tensor) for name, tensor in net.named_parameters()}
    for x, y in batches_of(lab, 2):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        for name, slope in zip(squares, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            squares[name] += slope**2 / 2
    for name, made in (("body.0.weight", True), ("head.weight", False)):
        saliency = (net.get_parameter(name).detach() ** 2 * squares[name] / 2).movedim(0 if made else 1, 0)
        expected += saliency.reshape(20, -1).sum(1).numpy()
    assert ranks["body.0"] == pytest.approx(expected, rel=1e-3)


def test_dice_follow_from_the_seed_and_are_thrown_anew_for_each_cut() -> None:
    one, again = (looked_at("random")[1]["stem"] for _ in range(2))
    assert one.tolist() == again.tolist()
    lab, _ = looked_at("random")
    lab.step += 1
    assert SCORES["random"](lab, lab.recipe.method)["stem"].tolist() != one.tolist()


@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"grow_prune"}))  # which draws all weights anew
def test_every_score_ends_within_the_budget_and_gives_a_channel_that_does_nothing_the_least(name: str) -> None:
    """Of the body's channels one is dead and one is read by nobody; dice do not care."""
    weights = safetensors.torch.load_file("w.safetensors")
    weights["body.0.weight"][3] = weights["body.1.weight"][3] = weights["body.1.bias"][3] = 0.0
    weights["head.weight"][:, 3] = 0.0
    safetensors.torch.save_file(weights, "w.safetensors")
    _, ranks = looked_at(name)
    assert name == "random" or ranks["body.0"].argmin() == 3
    before = {"before": {"epochs": 1}} if name in ("slimming", "soft") else {}
    told = run(recipe(method={"name": name, **before}), out="out").report.plain()
    assert (told["verdict"]["code"], told["history"][1 + len(before)]["event"]) == (0, "narrowed")
    assert told["landing"]["utilisation"] > 0.9


def test_batch_norms_are_estimated_anew_after_a_cut_unless_the_recipe_says_not() -> None:
    means = {}
    for batches in (0, 4):
        lab, _ = prepare(recipe(method={"recalibrate": batches, "tune": {"epochs": 0}}), "cpu")
        develop(lab, methods_of(lab.recipe), Path())
        means[batches] = lab.model.body[1].running_mean.clone()
        events = [note.event for note in lab.history]
        assert events == ["start", "narrowed", "recalibrated"][: 2 + bool(batches)]
    net, seen = lab.model.eval(), []
    for x, _ in lab.data.stream(0, 4, varied=False):
        with torch.no_grad():
            net.norm.train()
            seen.append(net.body[0](torch.relu(net.norm(net.stem(x)))).mean((0, 2, 3)))
    assert torch.allclose(means[4], torch.stack(seen).mean(0), atol=1e-5)
    assert not torch.allclose(means[0], means[4], atol=1e-2)
