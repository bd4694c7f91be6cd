"""Channels open and close by gates that are learned, until what is open keeps the budget."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.methods.prune.gates import OPEN, PREFIX, begun, gated
from compress.recipe.settings import Recipe
from compress.training.bench import Bench

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.body, self.head = nn.Conv2d(12, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.norm(self.stem(x))))).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def lab_of(**said: Any) -> Bench:
    keys = {"before": {"epochs": 3}, "tune": {"epochs": 0}, **said}
    recipe = {
        "model": {"factory": "./net.py:Net"},
        "train": {"lr": 0.05, "batch": 100, "momentum": 0, "weight_decay": 0, "precision": "fp32"},
        "method": {"name": "grow_prune", **keys},
        "budget": "40%",
    }
    lab, _ = prepare(Recipe.model_validate(recipe), "cpu")
    methods_of(lab.recipe)[0].ready(lab, None)
    return lab


def test_it_begins_with_the_seed_open() -> None:
    lab = lab_of(seed=0.25)
    keys: Any = lab.recipe.methods[0]
    begun(lab, keys)
    assert lab.learnt[PREFIX + "stem"].tolist() == pytest.approx([OPEN] * 3 + [-OPEN] * 9)
    assert lab.learnt[PREFIX + "body"].tolist() == pytest.approx([OPEN] * 4 + [-OPEN] * 12)


def test_a_step_is_one_of_the_net_behind_its_gates_by_autograd() -> None:
    """Weights move by the loss of gated columns, gates by their own slope and by what channels cost."""
    lab = lab_of(weight=1e-9, gate_lr=0.5, steepest=50.0)
    keys: Any = lab.recipe.methods[0]
    begun(lab, keys)
    net: Any = lab.model
    x, y = next(iter(lab.data.stream(0, 1)))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    learnt = {name: lab.learnt[PREFIX + name].clone().requires_grad_() for name in ("stem", "body")}
    beta = 50 ** (2 / 10)
    gates = {name: torch.sigmoid(beta * s) for name, s in learnt.items()}
    weights = {name: start[name].clone().requires_grad_() for name in ("body.weight", "head.weight")}
    inner = functional.batch_norm(functional.conv2d(x, start["stem.weight"], padding=1), None, None, training=True)
    inner = torch.relu(inner * start["norm.weight"][:, None, None] + start["norm.bias"][:, None, None])
    inner = functional.conv2d(inner, weights["body.weight"] * gates["stem"][None, :, None, None], start["body.bias"])
    out = functional.linear(
        torch.relu(inner).mean((2, 3)), weights["head.weight"] * gates["body"][None], start["head.bias"]
    )
    loss = functional.cross_entropy(out, y)
    slopes = torch.autograd.grad(loss, [*weights.values(), *gates.values()])
    with gated(lab, keys, 2, 10):
        lab.train(1, lambda step: 0.05)
    for (name, tensor), slope in zip(weights.items(), slopes, strict=False):
        assert torch.allclose(net.get_parameter(name).detach(), tensor.detach() - 0.05 * slope, atol=1e-6)
    for (name, s), slope in zip(learnt.items(), slopes[2:], strict=True):
        gate = gates[name].detach()
        expected = s.detach() - 0.5 * slope * gate * (1 - gate)
        assert torch.allclose(lab.learnt[PREFIX + name], expected, atol=1e-6)


def test_above_the_budget_gates_are_pushed_down_and_below_they_are_let_go(shop: Path) -> None:
    opened = []
    for seed in (0.05, 0.95):
        lab = lab_of(seed=seed, gate_lr=2.0, before={"epochs": 6})
        first = sum(max(1, round(seed * width)) for width in lab.widths.values())
        develop(lab, methods_of(lab.recipe), shop)
        opened.append((first, sum(lab.widths.values())))
        assert lab.budget.holds(lab.cost())
        assert lab.budget.utilisation(lab.cost()) > 0.85
        for path in shop.glob("checkpoint*"):
            path.unlink()
    (few, grown), (many, pruned) = opened
    assert few < grown
    assert many > pruned


def test_an_interrupted_run_goes_on_to_the_same_weights_and_gates(shop: Path) -> None:
    whole = lab_of()
    (shop / "whole").mkdir()
    develop(whole, methods_of(whole.recipe), shop / "whole")

    def stop(event: Any) -> None:
        if getattr(getattr(event, "note", None), "event", "") == "narrowed":
            raise KeyboardInterrupt

    begun_lab = lab_of()
    begun_lab.listen = stop
    work = shop / "work"
    work.mkdir()
    with pytest.raises(KeyboardInterrupt):
        develop(begun_lab, methods_of(begun_lab.recipe), work)
    last = lab_of()
    assert develop(last, methods_of(last.recipe), work)
    mine, theirs = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert last.history == whole.history
