"""How long a run will take on this machine: a few steps of training are carried out, and what is known ahead is added.

how_long(recipe, "cpu").words     "about 12 min: 1,240 images/s on 42.9 MMACs (4 steps of 128 images were measured)"
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from compress._plan import Plan, methods_of
from compress._run import prepare
from compress.budget.landing import land
from compress.budget.units import duration, show
from compress.errors import Infeasible
from compress.recipe.settings import Recipe
from compress.training.bench import Bench
from compress.training.optim import descent

WARM, TIMED = 1, 3  # steps of training
STILL = 1e-12  # learning rate: the weights are thrown away anyhow


@dataclass(frozen=True, slots=True)
class Time:
    """What was measured, and what follows from it."""

    images_per_second: float
    macs: int  # of the network that it was measured on
    batch: int
    seconds: float  # to the end of training
    least: bool  # whether it is what is known ahead alone: how long a network grows is not

    @property
    def words(self) -> str:
        """The same in a line."""
        more = "at least " if self.least else "about "
        rest = ", and what growing takes before" if self.least else ""
        return (
            f"{more}{duration(self.seconds)} of training{rest}: {self.images_per_second:,.0f} images/s on "
            f"{show(self.macs, 'MACs')} ({TIMED} steps of {self.batch} images were measured)"
        )


def how_long(recipe: Recipe, device: str = "cpu") -> Time:
    """Measure some steps of training on a network as wide as the run's will be; raises what `prepare` raises."""
    bench, planned = prepare(recipe, device)
    planned.refuse()
    widths = planned.landing or _evenly(bench, planned)
    bench.resize(widths)
    bench.optimizer = descent(bench.model, bench.keys)
    bench.train(WARM, lambda _: STILL)
    begin = perf_counter()
    bench.train(TIMED, lambda _: STILL)
    speed = TIMED * bench.data.batch / (perf_counter() - begin)
    macs, known = bench.cost().macs, _known(bench, planned)
    stated = recipe.train.cost
    total = stated if stated is not None else known
    methods = methods_of(recipe)
    least = stated is None and any(method.widens or method.deepens(bench.model, bench.shape) for method in methods)
    return Time(speed, macs, bench.data.batch, total / (macs * speed), least)


def _known(bench: Bench, planned: Plan) -> float:
    """MACs x images of all stages whose length is known ahead."""
    total, narrow = 0.0, bench.cost().macs
    for settings, method in zip(bench.recipe.methods, methods_of(bench.recipe), strict=True):
        wide = method.only_trains and settings is not bench.recipe.methods[-1]
        total += settings.last_epochs * bench.epoch * bench.data.batch * (planned.base.macs if wide else narrow)
    return total


def _evenly(bench: Bench, planned: Plan) -> dict[str, int]:
    """All layers narrowed by one factor until they keep the budget; the full network's widths where that is larger."""
    full = planned.graph.widths
    try:
        return land(planned.graph.price, dict.fromkeys(full, 1), full, bench.whole, ceiling=full)
    except Infeasible:  # what is frozen is over the budget at these depths: blocks go as well
        return full
