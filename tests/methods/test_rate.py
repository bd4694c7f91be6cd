"""The rate of tuning is found by short trials that leave no trace, and so is how a cut is shared out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.budget.landing import land
from compress.errors import UsageError
from compress.methods.prune.allocation import sensitivity, shared_out, slopes
from compress.methods.prune.rate import found
from compress.recipe.settings import Recipe
from compress.recipe.step import Tune
from compress.surgery.ranking import importance
from compress.surgery.surgeon import Surgeon
from compress.training.bench import Bench
from compress.training.train import recalibrate, score

VGG = {"widths": [8, 12, 16], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}


def lab_of(lr: float = 0.1, **said: Any) -> Bench:
    recipe = {
        "model": {"factory": "compress.models:vgg", "args": VGG},
        "train": {"lr": lr, "batch": 100},
        "method": {"name": "group", "tune": {"epochs": 2}, **said},
        "budget": "50%",
    }
    lab, _ = prepare(Recipe.model_validate(recipe), "cpu")
    methods_of(lab.recipe)[0].ready(lab, None)
    return lab


def test_the_rate_that_trains_best_is_found_and_the_network_is_as_it_was() -> None:
    lab = lab_of()
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    rate = found(lab, Tune(schedule="linear"), 200, (0.1, 1e-7), lambda: methods_of(lab.recipe)[0].ready(lab, None))
    assert rate == 0.1
    after = lab.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not lab.optimizer.state
    assert lab.step == 2 * 20  # a tenth of the steps for each, and they are paid for
    assert lab.spent == lab.step * 100 * lab.cost().macs
    said = lab.history[-1].numbers
    assert said["lr"] == 0.1
    assert said["val at 0.1"] > said["val at 1e-07"]


def test_a_rate_that_breaks_the_net_is_not_taken_and_where_all_do_it_is_told() -> None:
    lab = lab_of()
    ready = lambda: methods_of(lab.recipe)[0].ready(lab, None)  # noqa: E731
    assert found(lab, Tune(), 40, (1e20, 0.01), ready) == 1e20  # 4 steps would tell nothing: the first
    assert (lab.step, lab.history) == (0, [])
    assert found(lab, Tune(), 50, (1e20, 0.01), ready) == 0.01
    with pytest.raises(UsageError, match="The loss became"):
        found(lab, Tune(), 50, (1e20,), ready)


@pytest.mark.parametrize(
    ("said", "tried"), [({"tune": {"epochs": 6}}, 3), ({"tune": {"epochs": 1, "lr": 0.02}}, 0), ({"rates": []}, 0)]
)
def test_it_is_looked_for_only_where_none_is_said(tmp_path: Path, said: dict[str, Any], tried: int) -> None:
    lab = lab_of(**said)
    develop(lab, methods_of(lab.recipe), tmp_path)
    notes = [note.numbers for note in lab.history if note.event == "rate"]
    assert len(notes) == (tried > 0)
    if tried:
        assert sorted(notes[0]) == ["lr", "val at 0.01", "val at 0.03", "val at 0.1"]


# ---- shares ---------------------------------------------------------------------------------------------------------


def test_even_shares_are_those_of_the_landing() -> None:
    lab = lab_of()
    ones = dict.fromkeys(lab.widths, 1)
    even = land(lab.graph.price, ones, lab.widths, lab.budget, ceiling=lab.widths)
    assert shared_out(lab, lab.recipe.methods[0], importance(lab.model, lab.graph), 1) == even  # type: ignore[arg-type]


@pytest.mark.parametrize("allocate", ["score", "sensitivity"])
def test_every_allocation_fills_the_budget_and_keeps_the_floor(allocate: str) -> None:
    lab = lab_of(allocate=allocate, floor=0.75)
    keys: Any = lab.recipe.methods[0]
    ranks = {name: np.ones(width) for name, width in lab.widths.items()}
    ranks["features.conv2"] *= 1e-9
    widths = shared_out(lab, keys, ranks, 1)
    even = shared_out(lab, keys.model_copy(update={"allocate": "even"}), ranks, 1)
    assert lab.budget.holds(lab.graph.price.cost(widths))
    assert lab.budget.utilisation(lab.graph.price.cost(widths)) > 0.97
    assert all(widths[name] >= 0.75 * even[name] - 1 for name in even)


def test_a_score_takes_from_the_layer_whose_channels_count_least_for_what_they_cost() -> None:
    lab = lab_of(allocate="score")
    keys: Any = lab.recipe.methods[0]
    ranks = {name: np.linspace(1, 2, width) for name, width in lab.widths.items()}
    ranks["features.conv1"] = np.concatenate([np.full(4, 1e-3), np.full(4, 1.0)])
    uneven = shared_out(lab, keys, ranks, 1)
    even = shared_out(lab, keys.model_copy(update={"allocate": "even"}), ranks, 1)
    assert uneven["features.conv1"] <= 4 < even["features.conv1"]
    assert uneven["features.conv2"] > even["features.conv2"]


def test_a_space_is_worth_what_its_loss_rises_by_when_it_alone_is_cut() -> None:
    lab = lab_of()
    ranks = importance(lab.model, lab.graph)
    before, step = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}, lab.step
    worth = sensitivity(lab, ranks)
    assert all(torch.equal(lab.model.state_dict()[name], before[name]) for name in before)
    assert lab.step == step
    name, width = "features.conv2", 12

    def loss(count: int) -> float:
        other, _ = prepare(lab.recipe, "cpu")
        other.model.load_state_dict(before)
        surgeon = Surgeon(other.model, other.graph)
        surgeon.narrow(name, sorted(np.argsort(-ranks[name], kind="stable")[:count].tolist()))
        recalibrate(other.model, other.data, 2)
        return score(other.model, other.data, "val").loss

    seen = {count: loss(count) for count in (3, 6, 9, 12)}
    points = {count: max(0.0, value - seen[12]) for count, value in seen.items()} | {12: 0.0}
    assert worth[name] == pytest.approx(slopes(points, width), abs=1e-5)
    assert all(a >= b >= 0 for a, b in zip(worth[name], worth[name][1:], strict=False))


def test_the_line_through_losses_is_the_largest_convex_one_below_them() -> None:
    falls = slopes({2: 1.0, 4: 0.9, 6: 0.2, 8: 0.0}, 8)
    assert falls == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1])  # what 4 lost more is above the line
    assert slopes({1: 0.0, 4: 0.0}, 4) == pytest.approx([0] * 4)
    assert slopes({2: 0.5, 4: 0.1, 8: 0.0}, 8).sum() == pytest.approx(0.5 + 2 * 0.2)  # as steep as seen, down to none
