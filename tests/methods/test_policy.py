"""The controller climbs the gradient of the expected reward; curriculum, entropy and rewards are the paper's."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from compress.methods.lwp.policy import (
    BASELINE_RATE,
    CLAMP,
    Agent,
    Controller,
    Reward,
    entropy,
    log_probability,
    loss_of,
    sample,
)
from compress.methods.lwp.policy import stage as stage_of

SOURCES = (1, 2, 2)  # 5 connections, 32 networks


def controller(sources: tuple[int, ...] = SOURCES, seed: int = 0) -> Controller:
    return Controller(sources, hidden=6, bias=0.3, seed=seed).double()


def all_masks(edges: int) -> Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=edges)))


def gradients(of: Tensor, net: Controller) -> list[Tensor]:
    found = torch.autograd.grad(of, list(net.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, net.parameters(), strict=True)]


def probability(o: Tensor, mask: Tensor) -> Tensor:
    """Equations 5 and 6 as printed."""
    total = torch.ones((), dtype=torch.float64)
    for p, kept in zip(o, mask.tolist(), strict=True):
        total = total * (p if kept else 1 - p)
    return total


@pytest.mark.parametrize("released", [1, 2, 3])
def test_the_mean_of_the_policy_gradient_over_all_networks_is_the_gradient_of_the_expected_reward(
    released: int,
) -> None:
    net, masks = controller(), all_masks(5)
    earned = torch.randn(len(masks), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    o, decided = net(released), net.released(released)
    chance = torch.stack([probability(o, mask) for mask in masks])
    assert chance.sum().item() == pytest.approx(1, abs=1e-12)
    weight = 0.07
    exact = gradients((chance * earned).sum() + weight * entropy(o, decided), net)
    value = 0.4  # any baseline: its gradient has mean zero
    losses = torch.stack(
        [loss_of(o, mask[None], earned[i : i + 1] - value, decided, weight) for i, mask in enumerate(masks)]
    )
    mean = gradients(-(chance.detach() * losses).sum(), net)
    for ours, theirs in zip(mean, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_the_gradient_of_several_children_is_the_mean_of_theirs() -> None:
    net, masks = controller(), all_masks(5)[[3, 17, 30]]
    o, decided, advantages = net(), net.released(3), torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    together = gradients(loss_of(o, masks, advantages, decided, 0.0), net)
    apart = [
        gradients(loss_of(o, mask[None], a[None], decided, 0.0), net) for mask, a in zip(masks, advantages, strict=True)
    ]
    for i, ours in enumerate(together):
        torch.testing.assert_close(ours, sum(each[i] for each in apart) / 3, atol=1e-12, rtol=0)


def test_log_probability_is_the_log_of_the_product_over_connections() -> None:
    net, masks = controller(), all_masks(5)
    o, everything = net(), net.released(3)
    expected = torch.stack([probability(o, mask) for mask in masks]).log()
    torch.testing.assert_close(log_probability(o, masks, everything), expected, atol=1e-12, rtol=0)
    certain = torch.tensor([0.0, 1.0])
    found = log_probability(certain, torch.tensor([[True, False]]), torch.ones(2, dtype=torch.bool))
    assert found.item() == pytest.approx(2 * math.log(CLAMP), rel=1e-2)  # float32 near 1


def test_networks_are_drawn_with_their_probabilities() -> None:
    o = torch.tensor([0.1, 0.5, 0.9, 1.0, 0.0])
    drawn = sample(o, 20_000, seed=1).double().mean(0)
    assert (drawn - o).abs().max() < 4 * 0.5 / math.sqrt(20_000)
    assert drawn[3:].tolist() == [1, 0]
    assert torch.equal(sample(o, 4, seed=7), sample(o, 4, seed=7))
    assert not torch.equal(sample(o, 4, seed=7), sample(o, 4, seed=8))


def test_entropy_is_that_of_independent_coins() -> None:
    everything = torch.ones(3, dtype=torch.bool)
    p = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    expected = sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p.tolist()) / 3
    assert entropy(p, everything).item() == pytest.approx(expected, abs=1e-12)
    assert entropy(torch.full((3,), 0.5), everything).item() == pytest.approx(math.log(2))
    assert entropy(torch.tensor([0.0, 1.0, 1.0]), everything).item() == pytest.approx(0, abs=2e-5)
    assert entropy(p, torch.tensor([False, True, False])).item() == pytest.approx(math.log(2))


def test_the_first_sources_of_each_layer_count_and_the_masked_output_is_fed_back() -> None:
    net = controller((1, 2, 3))
    naive, state, output = [], None, torch.zeros(1, 3, dtype=torch.float64)
    for count in (1, 2, 3):
        state = net.cell(output, state)
        full = torch.sigmoid(net.head(state[0]))
        output = torch.cat([full[:, :count], torch.zeros(1, 3 - count, dtype=torch.float64)], 1)
        naive.append(full[0, :count])
    torch.testing.assert_close(net(), torch.cat(naive), atol=0, rtol=0)


def test_stage_t_releases_exactly_the_last_t_layers() -> None:
    net = controller((1, 2, 3, 1))
    assert [stage_of(step, 20, 4) for step in (0, 19, 20, 39, 40, 60, 79, 80, 10**6)] == [1, 1, 2, 2, 3, 4, 4, 4, 4]
    assert stage_of(0, 0, 4) == 4  # no curriculum
    layers = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    for t in (1, 2, 3, 4):
        decided = net.released(t)
        assert torch.equal(decided, layers >= 4 - t)
        o = net(t)
        assert torch.equal(o[~decided], torch.ones(int((~decided).sum()), dtype=torch.float64))
        assert bool((o[decided] < 1).all())
        slopes = torch.autograd.grad(log_probability(o, all_masks(7), decided).sum(), o)[0]
        assert torch.equal(slopes != 0, decided)  # those held back have no gradient, and no share in log pi
        assert sample(o, 50, 0)[:, ~decided].all()


def test_a_wrong_answer_costs_the_penalty_and_a_right_one_pays_for_small_networks() -> None:
    earn, one = Reward(alpha=2.0, gamma=0.5), torch.ones(1)
    assert earn(one, 0.3 * one, one).item() == pytest.approx(1 - 0.3**2)
    assert earn(0 * one, 0.3 * one, one).item() == -0.5
    assert earn(one, one, one).item() == 0  # the whole network, all right
    assert earn(0.75 * one, 0.3 * one, one).item() == pytest.approx(0.75 * (1 - 0.09) - 0.25 * 0.5)


def test_at_equal_reward_a_larger_alpha_stands_for_a_larger_network() -> None:
    """Appendix 7.3; and so alpha 2 -> 3 made DenseNet-40's children larger, 105 to 173 MFLOPs."""
    for reward in (0.2, 0.5, 0.9):
        etas = [(1 - reward) ** (1 / alpha) for alpha in (1 / 3, 1 / 2, 1, 2, 3)]
        assert etas == sorted(etas)
        for alpha, eta in zip((1 / 3, 1 / 2, 1, 2, 3), etas, strict=True):
            assert Reward(alpha)(torch.ones(1), torch.tensor([eta]), torch.ones(1)).item() == pytest.approx(
                reward, abs=1e-6
            )


def test_above_the_budget_every_answer_pays_for_the_excess() -> None:
    earn, one = Reward(alpha=2.0, gamma=0.5, over=2.0), torch.ones(1)
    assert earn(one, 0.6 * one, 1.2 * one).item() == pytest.approx(1 - 0.36 - 0.4)
    assert earn(0 * one, 0.6 * one, 1.2 * one).item() == pytest.approx(-0.5 - 0.4)
    assert earn(one, 0.6 * one, one).item() == pytest.approx(1 - 0.36)


def test_below_a_budget_that_is_to_be_filled_smaller_networks_earn_no_more() -> None:
    """At 0.5 of the full cost as the limit: one of 0.2 uses 0.4 of it, and earns what one of 0.5 does."""
    one = torch.ones(1)
    published, filled = Reward(alpha=2.0), Reward(alpha=2.0, fill=True)
    assert published(one, 0.2 * one, 0.4 * one).item() == pytest.approx(1 - 0.2**2)
    assert filled(one, 0.2 * one, 0.4 * one).item() == pytest.approx(1 - 0.5**2)
    assert filled(one, 0.5 * one, one).item() == pytest.approx(1 - 0.5**2)
    assert filled(one, 0.6 * one, 1.2 * one).item() == published(one, 0.6 * one, 1.2 * one).item()


def test_the_value_is_a_running_mean_of_rewards_as_gradient_descent_makes_it() -> None:
    agent = Agent.create(SOURCES, 6, 0.0, seed=0)
    value = 0.0
    for step in range(12):
        o = agent.controller()
        rewards = torch.tensor([0.5 + step % 3, 1.0])
        agent.learn(o, sample(o, 2, step), rewards, agent.controller.released(3), weight=0.0, lr=1e-3)
        value -= BASELINE_RATE * float((2 * (value - rewards)).mean())  # equation 12
        assert agent.controller.value.item() == pytest.approx(value, rel=1e-5)


def learnt(steps: int, agent: Agent, start: int = 0) -> Agent:
    """Train on a made-up network that is right exactly if it keeps connections 0, 2, 5 and 9 (of 10)."""
    useful = torch.zeros(10, dtype=torch.bool)
    useful[[0, 2, 5, 9]] = True
    earn = Reward(alpha=2.0, gamma=0.5)
    for step in range(start, start + steps):
        released = stage_of(step, 20, 4)
        o, decided = agent.controller(released), agent.controller.released(released)
        masks = sample(o, 16, seed=step)
        right = (masks & useful).sum(1) / 4
        rewards = earn(right, masks.float().mean(1), torch.ones(16))
        agent.learn(o, masks, rewards, decided, weight=0.3, lr=5e-3)
    return agent


def test_the_controller_finds_the_connections_that_are_of_no_use() -> None:
    agent = learnt(250, Agent.create((1, 2, 3, 4), 32, 2.0, seed=0))
    kept = (agent.controller() > 0.5).nonzero().flatten().tolist()
    assert kept == [0, 2, 5, 9]


def test_learning_goes_on_from_its_tensors_as_if_it_had_not_stopped() -> None:
    whole = learnt(30, Agent.create((1, 2, 3, 4), 8, 2.0, seed=0))
    first = learnt(17, Agent.create((1, 2, 3, 4), 8, 2.0, seed=0))
    second = Agent.create((1, 2, 3, 4), 8, 2.0, seed=5)
    second.load(first.tensors())
    learnt(13, second, start=17)
    ours, theirs = second.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "adam/cell.weight_hh/exp_avg_sq" in ours


def test_a_new_controller_starts_dense_and_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    net = Controller((1, 2, 3), hidden=128, bias=2.0, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert bool(((net() > 0.8) & (net() < 0.95)).all())
    assert torch.equal(net(), Controller((1, 2, 3), hidden=128, bias=2.0, seed=4)())


def test_scores_of_a_metric_are_placed_between_the_worst_and_the_best_that_were_seen() -> None:
    controller = Controller([1, 2])
    assert controller.placed(torch.tensor([-3.0, -3.0])).tolist() == [0.5, 0.5]
    assert controller.placed(torch.tensor([-4.0, -2.0, -3.0])).tolist() == [0.0, 1.0, 0.5]
    assert controller.placed(torch.tensor([-2.5])).tolist() == [0.75]
    assert controller.placed(torch.tensor([0.0])).tolist() == [1.0]
    again = Controller([1, 2])
    again.load_state_dict(controller.state_dict())
    assert again.placed(torch.tensor([-2.0])).tolist() == [0.5]
