"""Whatever is chosen ends within the budget with no connection left that fits, the least probable ones gone."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compress.budget.connections import FILLED, Mask, floor, project, refuse, usage
from compress.budget.limits import Budget, Cost
from compress.errors import Infeasible, UsageError
from compress.models import densenet40
from compress.surgery.connections import Wiring


@dataclass(frozen=True)
class Dense:
    """Dense blocks priced by hand: a kept source costs growth channels, a live layer its norm and its readers."""

    depths: tuple[int, ...]
    growth: int = 12
    init: int = 24
    side: int = 32

    @cached_property
    def edges(self) -> list[tuple[int, int, int]]:
        """(block, layer, source) with source 0 for the block's input."""
        return [(b, i, j) for b, depth in enumerate(self.depths) for i in range(1, depth + 1) for j in range(i)]

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        return np.array([block for block, _, _ in self.edges])

    @cached_property
    def read(self) -> dict[tuple[int, int], list[int]]:
        """The edges into a layer, by block and layer."""
        found: dict[tuple[int, int], list[int]] = {}
        for edge, (block, layer, _) in enumerate(self.edges):
            found.setdefault((block, layer), []).append(edge)
        return found

    @cached_property
    def heard(self) -> dict[tuple[int, int], list[int]]:
        """The edges out of a source, by block and layer."""
        found: dict[tuple[int, int], list[int]] = {}
        for edge, (block, _, source) in enumerate(self.edges):
            found.setdefault((block, source), []).append(edge)
        return found

    def settle(self, masks: Mask) -> Mask:
        settled = masks.copy()
        for (block, layer), into in self.read.items():
            out = self.heard.get((block, layer), [])
            settled[:, out] &= settled[:, into].any(1)[:, None]
        return settled

    def costs(self, masks: Mask) -> NDArray[np.int64]:
        masks, k, channels = self.settle(masks), self.growth, self.init
        params = np.full(len(masks), 27 * channels + 10)
        macs = np.full(len(masks), 27 * channels * self.side**2)
        for block, depth in enumerate(self.depths):
            pixels = (self.side >> block) ** 2
            alive = np.zeros(len(masks), np.int64)
            for layer in range(1, depth + 1):
                mine = masks[:, self.read[block, layer]]  # of the source 0, the block's input, and of the layers before
                wide = mine @ np.array([channels] + [k] * (layer - 1))
                params += 9 * k * wide + 2 * wide
                macs += 9 * k * wide * pixels
                alive += mine.any(1)
            width = channels + depth * k  # the transition makes as many as in the full net
            params += (channels + k * alive) * width
            macs += (channels + k * alive) * width * pixels
            channels = width
        return np.stack([params, macs, macs + 4 * params], 1)


def limits(text: str, dense: Dense) -> Budget:
    full = dense.costs(np.ones((1, len(dense.edges)), np.bool_))[0].tolist()
    return Budget.parse(text, Cost(full[0], full[1], full[2], 1))


def naive(scores: NDArray[np.float64], dense: Dense, budget: Budget, start: Mask) -> Mask:
    """One connection at a time, as the rule is said."""
    kept = dense.settle(start[None])[0]
    while usage(dense.costs(kept[None]), budget)[0] > 1:
        kept[min(np.flatnonzero(kept), key=lambda e: (scores[e], -e))] = False
        kept = dense.settle(kept[None])[0]
    while True:
        for edge in sorted(np.flatnonzero(~kept), key=lambda e: (-scores[e], e)):
            more = kept.copy()
            more[edge] = True
            more = dense.settle(more[None])[0]
            if (more != kept).any() and usage(dense.costs(more[None]), budget)[0] <= 1:
                kept = more
                break
        else:
            return kept


nets = st.builds(
    Dense, st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), st.integers(1, 9), st.integers(1, 9)
)
shares = st.floats(0.05, 1.2)


@settings(max_examples=25)
@given(nets, shares, st.sampled_from(["MACs", "params", "FLOPs", "FLOPs@2"]), st.integers(0, 2**32 - 1))
def test_a_projection_is_within_the_budget_and_no_unused_connection_fits(
    dense: Dense, share: float, unit: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    count = len(dense.edges)
    full = dense.costs(np.ones((1, count), np.bool_))[0].tolist()
    budget = Budget.parse(f"{max(1, int(share * Cost(*full, 1).of(unit)))} {unit}")
    scores, start = draw.random(count), draw.random(count) < draw.random()
    least = floor(dense, count)
    if not budget.holds(least):
        with pytest.raises(Infeasible, match="below the floor"):
            project(scores, dense, budget, start)
        return
    kept = project(scores, dense, budget, start, dense.blocks)
    assert np.array_equal(dense.settle(kept[None])[0], kept)
    assert budget.holds(Cost(*dense.costs(kept[None])[0].tolist(), 1))
    for edge in np.flatnonzero(~kept):
        more = kept.copy()
        more[edge] = True
        more = dense.settle(more[None])
        assert (more[0] == kept).all() or usage(dense.costs(more), budget)[0] > 1
    assert np.array_equal(project(scores, dense, budget, start, dense.blocks), kept)


@settings(max_examples=40)
@given(nets, shares, st.integers(0, 2**32 - 1))
def test_the_least_probable_go_and_the_most_probable_that_fit_come(dense: Dense, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = len(dense.edges)
    scores, start = draw.random(count), draw.random(count) < 0.7
    full = dense.costs(np.ones((1, count), np.bool_))[0, 1]
    budget = Budget.parse(f"{max(floor(dense, count).macs, int(share * full))} MACs")
    expected = naive(scores, dense, budget, start)
    found = project(scores, dense, budget, start)
    used = usage(dense.costs(np.stack([expected, found])), budget)
    if used[0] >= FILLED and dense.settle(start[None])[0].sum() > expected.sum():
        assert scores[found].sum() == pytest.approx(scores[expected].sum(), rel=0.1)
    assert used[1] >= min(used[0], FILLED)


def test_what_fits_is_left_as_it_is_but_for_what_still_fits() -> None:
    dense = Dense((3, 3))
    everything = np.ones(12, np.bool_)
    assert project(np.linspace(0.1, 0.9, 12), dense, limits("100%", dense), everything).all()
    alone = np.zeros(12, np.bool_)
    alone[0] = True
    exactly = Budget.parse(f"{dense.costs(alone[None])[0, 1]} MACs")
    scores = np.where(alone, 0.9, 0.1)
    assert np.array_equal(project(scores, dense, exactly), alone)


def test_no_block_is_emptied_as_long_as_there_is_room() -> None:
    dense = Dense((4, 4, 4))
    scores = np.where(dense.blocks == 0, 0.01, 0.9)  # the first block is costly and would go
    empty = project(scores, dense, limits("45% MACs", dense))
    assert not (empty & (dense.blocks == 0)).any()
    kept = project(scores, dense, limits("45% MACs", dense), blocks=dense.blocks)
    assert [(kept & (dense.blocks == block)).any() for block in range(3)] == [True] * 3


def test_several_limits_all_hold() -> None:
    dense = Dense((6, 6))
    scores = np.random.default_rng(1).random(len(dense.edges))
    budget = limits("70% MACs, 50% params", dense)
    kept = project(scores, dense, budget)
    cost = Cost(*dense.costs(kept[None])[0].tolist(), 1)
    assert budget.holds(cost)
    assert budget.utilisation(cost) >= FILLED


def test_a_budget_below_the_network_without_connections_is_refused_with_that_floor() -> None:
    dense = Dense((3, 3))
    least = floor(dense, 12).macs
    with pytest.raises(Infeasible, match=f"{least - 1} MACs is less than {least} MACs"):
        refuse(dense, 12, Budget.parse(f"{least - 1} MACs"))
    assert not project(np.full(12, 0.5), dense, Budget.parse(f"{least} MACs")).any()


@pytest.mark.parametrize("text", ["1MB", "10MB@activations"])
def test_units_that_connections_have_no_price_in_are_refused(text: str) -> None:
    dense = Dense((2,))
    with pytest.raises(UsageError, match=r"parameters, MACs or FLOPs"):
        refuse(dense, 3, Budget.parse(text))


class Counting:
    """A wiring that counts the masks that it is asked about."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring, self.settled, self.priced = wiring, 0, 0

    def settle(self, masks: Mask) -> Mask:
        self.settled += len(masks)
        return self.wiring.settle(masks)

    def costs(self, masks: Mask) -> NDArray[np.int64]:
        self.priced += len(masks)
        return self.wiring.costs(masks)


def test_densenet_40_fills_five_budgets_and_looks_at_few_masks_for_that() -> None:
    wiring = Wiring.read(densenet40(), (3, 32, 32))
    draw, blocks = np.random.default_rng(0), wiring.block[wiring.edge_layer]
    full = Cost(*wiring.costs(wiring.full)[0].tolist(), 1)
    for share in ("20% FLOPs", "35% MACs", "40% params", "60%", "80% MACs, 75% params"):
        scores, budget = draw.random(len(blocks)), Budget.parse(share, full)
        for start in (wiring.full, draw.random(len(blocks)) < scores):
            counting = Counting(wiring)
            kept = project(scores, counting, budget, start, blocks)
            assert FILLED <= usage(wiring.costs(kept), budget)[0] <= 1
            assert counting.settled + counting.priced <= 30 * len(blocks)
