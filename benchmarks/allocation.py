"""A cut that is shared out by worth fills its budget, too: how near it lands, on the networks of landing.py.

    python benchmarks/allocation.py

Worth is drawn: even (all channels alike), skewed (of ten one matters much), and starved (every third layer is worth
nothing). No layer gets less than half of its even width.
"""

from __future__ import annotations

import time
from collections import defaultdict
from math import ceil
from pathlib import Path
from statistics import fmean

import numpy as np
from evidence import command, machine
from landing import NETS, budget_of, build
from numpy.typing import NDArray

from compress.budget.allocation import worthiest
from compress.budget.landing import land
from compress.reading.graph import read
from compress.reading.measure import measure

PAGE = Path(__file__).with_name("results") / "allocation.md"
BUDGETS = (("MACs", 0.25), ("MACs", 0.5), ("both", 0.5))
KINDS = ("even", "skewed", "starved")


Floats = NDArray[np.float64]


def worths(kind: str, widths: dict[str, int], seed: int) -> dict[str, Floats]:
    draw = np.random.default_rng(seed)
    worth = {name: draw.random(width) for name, width in widths.items()}
    if kind == "skewed":
        worth = {name: values**10 for name, values in worth.items()}
    if kind == "starved":
        worth = {name: values * (at % 3 > 0) for at, (name, values) in enumerate(worth.items())}
    return worth


def main() -> None:
    lines = [
        "# A cut that is shared out by worth fills its budget",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
    ]
    lines += ["| net | spaces | least used | mean used | most seconds |", "|---|---|---|---|---|"]
    every: dict[str, list[float]] = defaultdict(list)
    for net in NETS:
        model, shape = build(net)
        graph, base = read(model, shape, lessons=False), measure(model, shape)
        slowest = 0.0
        for unit, share in BUDGETS:
            budget = budget_of(base, unit, share)
            ones = dict.fromkeys(graph.free, 1)
            even = land(graph.price, ones, graph.widths, budget, ceiling=graph.widths)
            least = {name: min(width, ceil(even[name] / 2)) for name, width in graph.widths.items()}
            for kind in KINDS:
                begin = time.process_time()
                goal = worthiest(graph.price, worths(kind, graph.widths, 0), least, budget)
                landed = land(graph.price, ones, goal, budget, ceiling=graph.widths)
                slowest = max(slowest, time.process_time() - begin)
                assert budget.holds(graph.price.cost(landed))
                every[net].append(budget.utilisation(graph.price.cost(landed)))
        used = every[net]
        lines.append(f"| {net} | {len(graph.free)} | {min(used):.2%} | {fmean(used):.2%} | {slowest:.1f} |")
        print(lines[-1], flush=True)
    whole = [used for some in every.values() for used in some]
    under = sum(used < 0.995 for used in whole)
    lines += ["", f"{len(whole)} cuts, none over, {under} under 99.5 %.", "", f"`{command()}`; {machine()}", ""]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
