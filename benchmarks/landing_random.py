"""How near to small budgets random small nets are landed: where one channel is much of what is left.

    python benchmarks/landing_random.py --nets 200

The nets are those of `soundness.py`, with layers of odd widths among them. Each is narrowed to, and grown from seeds of
two channels to, budgets in params, MACs and bytes that begin just above what its seed costs. What is under 99.5 % has
its reason checked by counting: no layer may be one channel wider, or that exceeds the budget, whichever it is. Every
tenth plan is applied to the network and counted by three counters.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from evidence import command, machine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from blocks import BLOCKS, chain
from exact import lively

from compress.budget.landing import ENOUGH, beyond, land
from compress.budget.limits import Budget, Limit
from compress.budget.price import Price
from compress.reading.measure import measure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE, SEED = (3, 8, 8), 2
UNITS, OVER = ("params", "MACs", "B"), (1.02, 1.1, 1.3, 1.7, 2.5)  # times what the seed costs
PAGE = Path(__file__).with_name("results") / "landing-random.md"


def room(price: Price, widths: Mapping[str, int], budget: Budget, most: Mapping[str, int] | None) -> list[str]:
    """The layers that could be one channel wider and keep the budget, each reckoned alone."""
    wider = {name: width + 1 for name, width in widths.items() if most is None or width < most[name]}
    return [name for name, width in wider.items() if budget.holds(price.cost({**widths, name: width}))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of layers written for one number of channels
    chance, used, plans, over, under, wrong, counted, nets = random.Random(args.seed), [], 0, 0, 0, [], 0, 0
    while nets < args.nets:
        names = [chance.choice(sorted(BLOCKS)) for _ in range(chance.randint(1, 6))]
        net = lively(chain(names))
        graph = survey(net, SHAPE)
        if not graph.free:
            continue
        nets += 1
        price, full = graph.price, graph.widths
        seed = {name: min(SEED, width) for name, width in full.items()}
        for unit, times, grown in ((u, t, g) for u in UNITS for t in OVER for g in (False, True)):
            limit = Limit(unit, int(times * price.cost(seed).of(unit)), f"{times} x the seed's {unit}")
            budget = Budget((limit,))
            top = beyond(price, seed, budget) if grown else full
            if not grown and budget.holds(price.cost(full)):
                continue
            widths = land(price, seed, top, budget, ceiling=None if grown else full)
            plans, cost = plans + 1, price.cost(widths)
            over += not budget.holds(cost)
            used.append(budget.utilisation(cost))
            if used[-1] < ENOUGH:
                under += 1
                if fits := room(price, widths, budget, None if grown else full):
                    wrong.append(f"{names}, {limit.text}: {', '.join(fits)} could be wider")
            if plans % 10 == 0:
                surgeon = Surgeon(copy.deepcopy(net), graph)
                surgeon.resize(widths)
                counted += 1
                if measure(surgeon.model, SHAPE) != cost:
                    wrong.append(f"{names}, {limit.text}: another cost than planned")
    used.sort()
    text = [
        "# How near to small budgets random small nets are landed",
        "",
        *(line for line in (__doc__ or "").splitlines()[4:8]),
        "",
        f"{nets} nets, {plans:,} plans: {over} over their budget; {under:,} under 99.5 %, {len(wrong)} wrongly,",
        "the others because not one channel more fits anywhere. Used, in %: least "
        f"{100 * used[0]:.2f}, a tenth of all at most {100 * used[len(used) // 10]:.2f}, median "
        f"{100 * used[len(used) // 2]:.2f}. {counted} plans were applied to their network and counted.",
        *(f"- {line}" for line in wrong),
        "",
        f"`{command()}`; {machine()}",
        "",
    ]
    PAGE.write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
