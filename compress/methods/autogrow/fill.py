"""Filling a budget with depth: the deepest net that fits, and narrower last blocks for what is left.

Pure: both work on copies without numbers, and say what to do to the net itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from compress.budget.landing import land
from compress.budget.limits import Budget
from compress.reading.graph import Graph
from compress.surgery.stages import Stage, layout
from compress.surgery.surgeon import Surgeon

LAPS = 8  # of narrower blocks; where the first leaves room, the next ones are full as a rule


def deeper(
    surgeon: Surgeon,
    depths: Mapping[Stage, int],
    templates: Mapping[str, nn.Module] | None = None,
    *,
    tried: bool = False,
) -> Surgeon:
    """A copy without numbers in which these stages are so deep; what is free in it is only sure if `tried`."""
    sketch = surgeon.sketch()
    sketch.arrange(layout(sketch.model, depths), templates, tried=tried)
    return sketch


def fill_with_depth(
    surgeon: Surgeon,
    stages: Sequence[Stage],
    budget: Budget,
    align: int,
    most: int,
    templates: Mapping[str, nn.Module],
) -> tuple[dict[Stage, int], dict[str, int]]:
    """The depths of stages, and the widths of spaces within their new last blocks, that fill a budget.

    Whole blocks first, one a stage in turn, until one does not fit; then one narrower block behind every stage where
    its narrowest form does, their inner widths chosen as all widths are (`budget/landing.py`). At most `most` blocks a
    stage. Stages whose blocks use up nothing that is limited stay as they are. Empty where nothing fits.
    """
    before = {stage: stage.depth(surgeon.model) for stage in stages}
    depths, widths = whole_blocks(surgeon, before, budget, most, templates), dict[str, int]()
    for _ in range(LAPS):
        start = deeper(surgeon, depths, templates)
        start.resize(widths)
        more, narrow, room = _narrow_lap(start, depths, budget, align, most, templates)
        depths, widths = {**depths, **more}, {**widths, **narrow}
        if not room:
            break
    changed = {stage: depth for stage, depth in depths.items() if depth > before[stage]}
    return changed, widths


def whole_blocks(
    surgeon: Surgeon, depths: Mapping[Stage, int], budget: Budget, most: int, templates: Mapping[str, nn.Module]
) -> dict[Stage, int]:
    """Depths with whole blocks added, one a stage in turn but for those that have `most`, until one does not fit.

    One block more costs the same at any depth, all but memory and the bytes of names: what is reckoned so is counted at
    the end, and given back until it holds. Stages whose blocks use up nothing that is limited are left out.
    """
    graph = surgeon.graph
    cost, order = graph.price.cost(graph.widths), list[Stage]()
    steps = {}
    for stage, depth in depths.items():
        more = deeper(surgeon, {stage: depth + 1}, templates).graph
        step = more.price.cost(more.widths) - cost
        if any(step.of(limit.unit) > 0 for limit in budget.hard):
            steps[stage] = step
    deepened = {stage: depths[stage] for stage in steps}
    while room := [stage for stage in steps if deepened[stage] < most]:
        for stage in room:
            if not budget.holds(cost + steps[stage]):
                break
            cost, deepened[stage] = cost + steps[stage], deepened[stage] + 1
            order.append(stage)
        else:
            continue
        break
    while order:
        graph = deeper(surgeon, deepened, templates).graph
        if budget.holds(graph.price.cost(graph.widths)):
            break
        deepened[order.pop()] -= 1
    return deepened


def _narrow_lap(
    surgeon: Surgeon,
    depths: Mapping[Stage, int],
    budget: Budget,
    align: int,
    most: int,
    templates: Mapping[str, nn.Module],
) -> tuple[dict[Stage, int], dict[str, int], bool]:
    """One more block behind every stage where a narrow one fits: depths, widths within, and whether all are full."""
    chosen: dict[Stage, int] = {}
    least: dict[str, int] = {}
    for stage, depth in depths.items():
        if depth >= most:
            continue
        trial = deeper(surgeon, {**chosen, stage: depth + 1}, templates).graph
        known = {**trial.widths, **least}
        inner = _inside(stage, depth + 1, trial)
        known |= {name: min(align, trial.widths[name]) for name in inner}
        if inner and budget.holds(trial.price.cost(known)):
            chosen[stage] = depth + 1
            least |= {name: known[name] for name in inner}
    if not chosen:
        return {}, {}, False
    graph = deeper(surgeon, chosen, templates, tried=True).graph
    start = {**graph.widths, **{name: width for name, width in least.items() if name in graph.free}}
    if not budget.holds(graph.price.cost(start)):  # a block cannot be narrowed after all
        return {}, {}, False
    landed = land(graph.price, start, graph.widths, budget, align=align, ceiling=graph.widths)
    within = {name: landed[name] for name in least if name in graph.free}
    return chosen, within, all(width == graph.widths[name] for name, width in within.items())


def _inside(stage: Stage, depth: int, graph: Graph) -> list[str]:
    """The free spaces that nothing but a stage's last block makes."""
    block = f"{stage.container}.{stage.names(depth)[-1]}.".removeprefix(".")
    return [name for name in graph.free if all(tensor.startswith(block) for tensor, _ in graph.spaces[name].producers)]
