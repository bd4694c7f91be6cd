"""A search runs children as the networks that they are, learns the same however it is cut into calls, and stays put."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.budget.connections import FILLED, usage
from compress.budget.limits import Budget, Cost
from compress.methods.lwp.policy import Agent, Reward, sample
from compress.methods.lwp.search import Searched, Terms, children, search, used
from compress.models import densenet
from compress.recipe import settings
from compress.surgery.connections import Masks, Wiring, cut
from compress.training import data
from compress.training.seeds import seed_of
from compress.training.task import classification
from compress.training.train import Loop, recalibrate, score

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load(settings.Data(train=200, val=100), batch=40, seed=0, device=CPU)


def make() -> nn.Module:
    torch.manual_seed(0)
    return densenet([2, 2], growth=4, init=4, classes=10, in_channels=1)


@pytest.fixture
def net() -> nn.Module:
    return make()


@pytest.fixture(scope="module")
def wiring() -> Wiring:
    return Wiring.read(make(), SHAPE)


@pytest.fixture
def masks(net: nn.Module, wiring: Wiring) -> Iterator[Masks]:
    masks = Masks(net, wiring)
    yield masks
    masks.remove()


def agent(wiring: Wiring, bias: float = 0.5) -> Agent:
    return Agent.create(np.bincount(wiring.edge_layer).tolist(), 8, bias, seed=0)


def half(wiring: Wiring) -> Budget:
    return Budget.parse("60% MACs", Cost(*wiring.costs(wiring.full)[0].tolist(), 1))


def terms(wiring: Wiring, **other: Any) -> Terms:
    usual = Terms(
        reward=Reward(2.0, 0.5, 2.0, fill=True), budget=half(wiring), children=2, weight=0.3,
        released=lambda step: 4, tightness=lambda step: min(1.0, step / 10), lr=lambda step: 5e-3,
    )  # fmt: skip
    return dataclasses.replace(usual, **other)


def hunt(
    net: nn.Module, masks: Masks, of: data.Data, learner: Agent, by: Terms, start: int, steps: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> Searched:  # fmt: skip
    loop = Loop(of, optimizer or torch.optim.SGD(net.parameters(), lr=0.1), start=start, steps=steps, seed=0)
    return search(masks, learner, by, loop)


def test_a_search_alone_changes_the_controller_and_nothing_of_the_network(
    net: nn.Module, masks: Masks, wiring: Wiring, digits: data.Data
) -> None:
    before, learner = copy.deepcopy(net.state_dict()), agent(wiring)
    start = learner.tensors()["controller/head.bias"].clone()
    net.eval()
    hunt(net, masks, digits, learner, terms(wiring), 0, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert masks.now is None
    assert not torch.equal(start, learner.tensors()["controller/head.bias"])


def test_children_are_judged_as_the_networks_that_they_are_with_their_batchs_statistics(
    net: nn.Module, masks: Masks, wiring: Wiring, digits: data.Data
) -> None:
    learner = agent(wiring)
    drawn = sample(learner.controller(), 2, seed_of(0, "children", 5))
    x, y = next(digits.stream(5, 1))
    right = []
    for mask, xs, ys in zip(drawn, x.chunk(2), y.chunk(2), strict=True):
        child = cut(net, wiring.cuts_of(mask.numpy()), SHAPE).train()
        with torch.no_grad():
            right.append((child(xs).argmax(1) == ys).float().mean())
    costs = wiring.costs(drawn.numpy())
    full = wiring.costs(wiring.full)
    found = hunt(net, masks, digits, learner, terms(wiring), 5, 1)
    eta = torch.from_numpy(costs[:, 1] / full[0, 1]).float()
    share = torch.from_numpy(used(costs, full, half(wiring), 0.5)).float()
    assert found.accuracy == pytest.approx(torch.stack(right).mean().item())
    assert found.eta == pytest.approx(eta.mean().item())
    earned = Reward(2.0, 0.5, 2.0, fill=True)(torch.stack(right), eta, share)
    assert found.reward == pytest.approx(earned.mean().item(), abs=1e-6)
    assert found.images == 40


def test_in_joint_training_the_network_goes_down_the_mean_loss_of_the_children(
    net: nn.Module, masks: Masks, wiring: Wiring, digits: data.Data
) -> None:
    learner, task = agent(wiring), classification(digits)
    drawn = sample(learner.controller(), 2, seed_of(0, "children", 0))
    x, y = next(digits.stream(0, 1))
    losses = []
    twin = copy.deepcopy(net).train()
    over = Masks(twin, wiring)
    for mask, xs, ys in zip(drawn, x.chunk(2), y.chunk(2), strict=True):
        over.set(mask.numpy())
        losses.append(task.run(twin, xs, ys, "fp32")[0])
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(twin.parameters()), allow_unused=True)
    before = copy.deepcopy(dict(net.named_parameters()))
    found = hunt(net, masks, digits, learner, terms(wiring, net_lr=lambda step: 0.1), 0, 1)
    assert found.loss == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)
    for (name, now), slope in zip(net.named_parameters(), slopes, strict=True):
        moved = before[name] if slope is None else before[name] - 0.1 * slope
        torch.testing.assert_close(now, moved, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_a_search_in_two_calls_equals_one(wiring: Wiring, digits: data.Data, joint: bool) -> None:
    ends = []
    for stretches in (((0, 5),), ((0, 2), (2, 3))):
        net, learner = make(), agent(wiring)
        masks = Masks(net, wiring)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        by = terms(wiring, net_lr=(lambda step: 0.05) if joint else None)
        for start, steps in stretches:
            fresh = agent(wiring, bias=3.0)
            fresh.load(learner.tensors())
            learner = fresh
            hunt(net, masks, digits, learner, by, start, steps, optimizer)
        masks.remove()
        ends.append({**net.state_dict(), **learner.tensors()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_child_is_scored_like_the_network_cut_out_and_given_its_own_statistics(
    net: nn.Module, masks: Masks, wiring: Wiring, digits: data.Data
) -> None:
    mask = wiring.settle(np.arange(len(wiring.full)) % 3 != 0)[0]
    child = cut(net, wiring.cuts_of(mask), SHAPE)
    recalibrate(child, digits, 3)
    theirs = score(child, digits, "val")
    masks.set(mask)
    recalibrate(net, digits, 3)
    ours = score(net, digits, "val")
    assert ours.accuracy == theirs.accuracy
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)


def test_limits_come_from_the_full_cost_to_the_budget() -> None:
    full, costs = np.array([[100, 1000, 1100]]), np.array([[50, 800, 850]])
    budget = Budget.parse("400 MACs, 80 params")
    assert used(full, full, budget, 0.0)[0] == 1
    assert used(costs, full, budget, 0.0)[0] == pytest.approx(0.8)
    assert used(costs, full, budget, 0.5)[0] == pytest.approx(800 / 700)
    assert used(costs, full, budget, 1.0)[0] == pytest.approx(2.0)
    assert used(costs, full, Budget.parse("60 params"), 1.0)[0] == pytest.approx(50 / 60)
    assert used(costs, full, Budget.parse("425 FLOPs"), 1.0)[0] == pytest.approx(2.0)  # thop's count is the larger
    assert used(costs, full, Budget.parse("5000 MACs"), 1.0)[0] == pytest.approx(0.8)  # no limit at all


def test_what_is_proposed_keeps_and_fills_the_budget_and_comes_once(wiring: Wiring) -> None:
    found = children(agent(wiring), wiring, half(wiring), 12, seed=0)
    shares = usage(wiring.costs(np.stack(found)), half(wiring))
    assert shares.max() <= 1
    assert len({mask.tobytes() for mask in found}) == len(found)
    again = children(agent(wiring), wiring, half(wiring), 12, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    below = children(agent(wiring), wiring, half(wiring), 12, seed=0, fill=False)
    assert usage(wiring.costs(np.stack(below)), half(wiring)).mean() < shares.mean()
    assert shares.mean() > 0.9 or shares.max() >= FILLED
