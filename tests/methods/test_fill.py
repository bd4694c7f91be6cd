"""Blocks cost what the published architectures say, and a budget between two depths is filled."""

from collections.abc import Callable

import pytest
from torch import nn

from compress import models
from compress.budget.limits import Budget
from compress.methods.autogrow.fill import deeper, fill_with_depth, whole_blocks
from compress.reading.measure import measure
from compress.surgery.stages import Stage, find
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

# Parameters of one grown block in each stage, and its MACs, equal in all stages; algorithms of AutoGrow, table 6.
BLOCKS: dict[str, tuple[Callable[..., nn.Module], int, tuple[int, ...], int]] = {
    "Basic3ResNet": (models.basic3resnet, 32, (4672, 18560, 73984), 4718592),
    "Plain3Net": (models.plain3net, 32, (2336, 9280, 36992), 2359296),
    "Basic4ResNet": (models.basic4resnet, 32, (73984, 295424, 1180672, 4720640), 75497472),
    "Plain4Net": (models.plain4net, 32, (36992, 147712, 590336, 2360320), 37748736),
    "Bottleneck4ResNet": (models.bottleneck4resnet, 224, (70400, 280064, 1117184, 4462592), 218365952),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: models.basic3resnet(in_channels=1),
    "plain": lambda: models.plain3net(in_channels=1),
    "bottleneck": lambda: models.bottleneck4resnet(width=8, in_channels=1, stem="cifar"),
}
SHAPE = (1, 8, 8)


def surgeon_of(net: nn.Module, shape: tuple[int, ...]) -> tuple[Surgeon, tuple[Stage, ...]]:
    return Surgeon(net, survey(net, shape)), find(net, shape)


@pytest.mark.parametrize("name", BLOCKS)
def test_one_block_more_costs_what_the_table_says(name: str) -> None:
    make, size, params, macs = BLOCKS[name]
    surgeon, stages = surgeon_of(make(), (3, size, size))
    base = surgeon.graph.price.cost(surgeon.graph.widths)
    for stage, wanted in zip(stages, params, strict=True):
        more = deeper(surgeon, {stage: 2}).graph
        step = more.price.cost(more.widths) - base
        assert (step.params, step.macs) == (wanted, macs)


def test_a_grown_net_costs_what_the_table_says() -> None:
    surgeon, stages = surgeon_of(models.basic3resnet(), (3, 32, 32))
    depths = dict.fromkeys(stages, 11)  # one of 42 blocks would cost the same, in steps that are proved to be equal
    graph = deeper(surgeon, depths).graph
    cost = graph.price.cost(graph.widths)
    missing = 42 - 11
    assert cost.params + missing * (4672 + 18560 + 73984) == 4063898
    assert cost.macs + missing * 3 * 4718592 == 592888448


@pytest.mark.parametrize(("name", "share", "unit"), [
    ("basic", 2.3, "MACs"),
    ("basic", 1.9, "params"),
    ("plain", 3.3, "FLOPs"),
    ("bottleneck", 1.47, "params"),
])  # fmt: skip
def test_a_budget_between_two_depths_is_filled_and_never_crossed(name: str, share: float, unit: str) -> None:
    surgeon, stages = surgeon_of(NETS[name](), SHAPE)
    base = surgeon.graph.price.cost(surgeon.graph.widths)
    budget = Budget.parse(f"{int(base.of(unit) * share)}{unit}")
    depths, widths = fill_with_depth(surgeon, stages, budget, 1, 200, {})
    filled = deeper(surgeon, depths, tried=True)
    filled.resize(widths)
    assert budget.holds(filled.graph.price.cost(filled.graph.widths))
    assert budget.utilisation(measure(filled.model, SHAPE)) >= 0.99


def test_whole_blocks_go_to_the_stages_in_turn() -> None:
    surgeon, stages = surgeon_of(NETS["basic"](), SHAPE)
    cost = surgeon.graph.price.cost(surgeon.graph.widths)
    more = deeper(surgeon, {stages[0]: 2}).graph
    block = more.price.cost(more.widths).macs - cost.macs  # equal in all stages
    budget = Budget.parse(f"{cost.macs + 5 * block - 1}MACs")
    found = whole_blocks(surgeon, dict.fromkeys(stages, 1), budget, 200, {})
    assert list(found.values()) == [3, 2, 2]
    found = whole_blocks(surgeon, dict.fromkeys(stages, 1), budget, 2, {})
    assert list(found.values()) == [2, 2, 2]


def test_a_stage_that_is_as_deep_as_allowed_does_not_keep_the_others_from_deepening() -> None:
    surgeon, stages = surgeon_of(NETS["basic"](), SHAPE)
    found = whole_blocks(surgeon, dict(zip(stages, [5, 1, 2], strict=True)), Budget.parse("1TMACs"), 5, {})
    assert list(found.values()) == [5, 5, 5]


def test_nothing_is_added_where_nothing_fits() -> None:
    surgeon, stages = surgeon_of(NETS["basic"](), SHAPE)
    cost = surgeon.graph.price.cost(surgeon.graph.widths)
    assert fill_with_depth(surgeon, stages, Budget.parse(f"{cost.macs}MACs"), 1, 200, {}) == ({}, {})


def test_a_budget_that_no_block_uses_is_not_filled_with_blocks() -> None:
    surgeon, stages = surgeon_of(NETS["plain"](), SHAPE)
    budget = Budget.parse("1MB@activations")
    assert fill_with_depth(surgeon, stages, budget, 1, 200, {}) == ({}, {})
