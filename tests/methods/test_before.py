"""A network is trained for its cut: scales go to zero under a penalty, and filters that are set to zero may recover."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.errors import UsageError
from compress.methods.prune.before import penalised, scales, slimming, softened
from compress.methods.prune.settings import Slimming
from compress.recipe.settings import Recipe
from compress.training.bench import Bench

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.body = nn.Conv2d(12, 20, 3)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.norm(self.stem(x))))).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def lab_of(name: str, norm: bool = True, **said: Any) -> Bench:
    keys = {"before": {"epochs": 2}, "tune": {"epochs": 0}, "rates": [], **said}
    recipe = {
        "model": {"factory": "./net.py:Net", "args": {"norm": norm}},
        "train": {"lr": 0.05, "batch": 100},
        "method": {"name": name, **keys},
        "budget": "50%",
    }
    lab, _ = prepare(Recipe.model_validate(recipe), "cpu")
    methods_of(lab.recipe)[0].ready(lab, None)
    return lab


def test_the_scales_of_a_space_are_those_of_its_batch_norms() -> None:
    lab = lab_of("slimming")
    assert scales(lab.model, lab.graph) == {"stem": [("norm.weight", 0)]}
    with torch.no_grad():
        lab.model.norm.weight.copy_(torch.linspace(-1.2, 1.0, 12))  # type: ignore[union-attr, operator]
    ranks = slimming(lab, lab.recipe.methods[0])
    assert ranks["stem"] == pytest.approx(np.abs(np.linspace(-1.2, 1.0, 12)), abs=1e-6)
    assert ranks["body"].mean() == pytest.approx(ranks["stem"].mean())  # it has none, and is neither spared nor starved


def test_a_penalty_adds_its_sign_to_the_gradient_of_every_scale_and_to_nothing_else() -> None:
    lab = lab_of("slimming")
    net: Any = lab.model
    with torch.no_grad():
        net.norm.weight[:6] *= -1
    x, y = next(iter(lab.data.stream(0, 1)))

    def gradients() -> dict[str, torch.Tensor]:
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        return {name: tensor.grad.clone() for name, tensor in net.named_parameters()}

    plain = gradients()
    with penalised(lab, Slimming(penalty=0.5)):
        pulled = gradients()
    after = gradients()
    for name in plain:
        step = 0.5 * net.norm.weight.detach().sign() if name == "norm.weight" else 0.0
        assert torch.allclose(pulled[name], plain[name] + step, atol=1e-6)
        assert torch.allclose(after[name], plain[name], atol=1e-6)


def test_scales_go_to_zero_under_a_penalty(shop: Path) -> None:
    left = []
    for penalty in (1e-12, 0.5):
        lab = lab_of("slimming", penalty=penalty, before={"epochs": 4})
        net: Any = lab.model
        seen: list[float] = []
        lab.listen = lambda event, net=net, seen=seen: seen.append(float(net.norm.weight.detach().abs().min()))  # type: ignore[misc]
        work = shop / f"{penalty}"
        work.mkdir()
        develop(lab, methods_of(lab.recipe), work)
        left.append(min(seen))
        assert [note.event for note in lab.history][:5] == ["start", *["before"] * 4]
    assert left[1] < 0.05 < 0.5 < left[0]


def test_a_net_without_batch_norm_cannot_be_slimmed(shop: Path) -> None:
    lab = lab_of("slimming", norm=False)
    with pytest.raises(UsageError, match=r"slimming: no batch norm .* write method: \{name: group\}"):
        develop(lab, methods_of(lab.recipe), shop)


def test_filters_that_were_set_to_zero_recover_in_training(shop: Path) -> None:
    lab = lab_of("soft")
    net: Any = lab.model
    with torch.no_grad():
        net.norm.bias.fill_(0.1)  # where it is 0, a rectifier behind it hands no gradient on
    kept = {"stem": [0, 1, 2, 3], "body": list(range(5, 20))}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert softened(lab, kept) == 8 + 5
    assert not net.stem.weight[4:].any()
    assert not net.body.weight[:5].any()
    assert torch.equal(net.stem.weight[:4], before["stem.weight"][:4])
    assert torch.equal(net.body.weight[5:], before["body.weight"][5:])
    lab.train(3, lambda step: 0.05)
    assert all(net.stem.weight[channel].any() for channel in range(4, 12))


def test_after_each_epoch_as_many_are_zero_as_the_cut_will_take(shop: Path) -> None:
    lab = lab_of("soft", before={"epochs": 2.5})
    full = sum(lab.widths.values())
    develop(lab, methods_of(lab.recipe), shop)
    events = [(note.event, note.numbers.get("epoch")) for note in lab.history]
    before = [("before", 1), ("before", 2), ("before", 2.5)]
    assert events == [("start", None), *before, ("narrowed", None), ("recalibrated", None)]
    zeroed = [note.numbers["zeroed"] for note in lab.history if note.event == "before"]
    assert zeroed == [full - sum(lab.widths.values())] * 3


@pytest.mark.parametrize("name", ["slimming", "soft"])
def test_a_run_that_is_interrupted_before_the_cut_goes_on_to_the_same_weights(shop: Path, name: str) -> None:
    whole = lab_of(name)
    develop(whole, methods_of(whole.recipe), shop)
    again = lab_of(name)
    work = shop / "work"
    work.mkdir()

    def stop(event: Any) -> None:
        if getattr(getattr(event, "note", None), "event", "") == "narrowed":
            raise KeyboardInterrupt

    again.listen = stop
    with pytest.raises(KeyboardInterrupt):
        develop(again, methods_of(again.recipe), work)
    last = lab_of(name)
    assert develop(last, methods_of(last.recipe), work)
    mine, theirs = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert last.history == whole.history
