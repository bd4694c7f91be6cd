"""Torch-Pruning in its documented ways, for landing.py: how near it gets to the budgets that we land on.

    pip install torch-pruning --no-deps

It has no budget; its own benchmark (`progressive_pruning`) calls `pruner.step()` until its counter says that the
target is met, and its README gives a rule for the ratio: removing a share p of the channels leaves (1 - p)^2 of the
parameters. A loop only ever goes down and does not know its target, so one pass down serves every target: each stops at
the first step that meets it, exactly as a loop of its own would.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn

from compress.budget.limits import Budget, Cost
from compress.reading.count import Tally
from compress.reading.trace import trace

INSTALL = "Torch-Pruning is not installed (pip install torch-pruning --no-deps): its rows are left out."
STEPS = 100  # of the loop, from all channels to none; its own benchmark has 400, at four times the seconds
FEWER = {"vgg16_bn": 25, "densenet121": 50, "convnext_tiny": 50, "inception_v3": 50}  # a step takes 2 to 6 seconds
WAYS = {
    "own": "loop, its counter",
    "true": "loop, true counts",
    "rule": "ratio rule",
}


def version() -> str | None:
    """The installed version of Torch-Pruning; None where there is none."""
    try:
        return metadata.version("torch-pruning")
    except metadata.PackageNotFoundError:
        return None


def title(steps: int | None) -> str:
    """What the rows are called: those with another number of steps are told apart."""
    return f"rival in {steps} steps" if steps else "rival"


def steps_of(net: str, align: int, asked: int | None) -> int:
    """The steps of the loop; half as many with aligned widths, where most steps change nothing."""
    return asked or FEWER.get(net, STEPS) // (1 if align == 1 else 2)


@dataclass(frozen=True, slots=True)
class Point:
    """One state of the loop."""

    step: int
    said: tuple[int, int]  # its own counter: operations, parameters
    cost: Cost  # ours
    seconds: float  # processor time up to here, without our counting


def counted(model: nn.Module, shape: Sequence[int]) -> Cost:
    """The exact cost of a pruned network, by our count."""
    return Tally(trace(model, shape)).price().cost({})


def _pruner(model: nn.Module, shape: Sequence[int], align: int, ratio: float, steps: int) -> Any:
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]  # the classifier stays
    return tp.pruner.BasePruner(
        model,
        torch.zeros(1, *shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        iterative_steps=steps,
        ignored_layers=[last],
        round_to=None if align == 1 else align,
    )


def descend(
    model: nn.Module, shape: Sequence[int], align: int, steps: int, budgets: Collection[Budget]
) -> Iterator[Point]:
    """The states of the loop, until one meets every budget by both counters."""
    import torch_pruning as tp

    seconds, began = 0.0, time.process_time()
    pruner = _pruner(model, shape, align, 1.0, steps)
    for step in range(1, steps):
        pruner.step()
        said = tp.utils.count_ops_and_params(model, torch.zeros(1, *shape))
        seconds += time.process_time() - began
        point = Point(step, (int(said[0]), int(said[1])), counted(model, shape), seconds)
        yield point
        if all(meets(point, budget, way) for budget in budgets for way in ("own", "true")):
            return
        began = time.process_time()


def meets(point: Point, budget: Budget, way: str) -> bool:
    """Whether the loop stops here: by its own counter, or by true counts."""
    if way == "true":
        return budget.holds(point.cost)
    ops, params = point.said
    return budget.holds(Cost(params, ops, ops, 0))


def compete(
    net: str,
    model: nn.Module,
    shape: Sequence[int],
    budgets: Mapping[tuple[str, float], Budget],
    align: int,
    steps: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One row for each budget (by unit and share) and way; where it fails, a row with the first line of the error."""
    row = {"mode": title(steps), "net": net, "align": align, "steps": steps_of(net, align, steps)}
    points: list[Point] = []
    rules: dict[float, Point] = {}
    failed: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for point in descend(copy.deepcopy(model), shape, align, row["steps"], budgets.values()):
                points.append(point)
        except Exception as error:  # what was reached before still counts
            failed[f"the loop, step {len(points) + 1}"] = _first_line(error)
        for share in sorted({share for _, share in budgets}):
            try:
                rules[share] = _by_rule(model, shape, align, share)
            except Exception as error:
                failed[f"the ratio rule for {share:.0%}"] = _first_line(error)
    yield from ({**row, "error": f"{where}: {said}"} for where, said in list(failed.items())[:1])
    if not points and not rules:
        return
    for (unit, share), budget in budgets.items():
        for way in ("own", "true"):
            point = next((p for p in points if meets(p, budget, way)), None)
            yield {**row, "unit": unit, "share": share, "way": way, **_told(budget, point)}
        if unit != "both":  # the rule knows one share
            yield {**row, "unit": unit, "share": share, "way": "rule", **_told(budget, rules.get(share))}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _by_rule(model: nn.Module, shape: Sequence[int], align: int, share: float) -> Point:
    model, began = copy.deepcopy(model), time.process_time()
    _pruner(model, shape, align, 1 - math.sqrt(share), 1).step()
    seconds = time.process_time() - began
    return Point(1, (0, 0), counted(model, shape), seconds)


def _told(budget: Budget, point: Point | None) -> dict[str, Any]:
    if point is None:
        return {"used": None, "over": False, "seconds": 0.0}
    used, over = budget.utilisation(point.cost), not budget.holds(point.cost)
    return {"used": used, "over": over, "seconds": point.seconds, "at": point.step}
