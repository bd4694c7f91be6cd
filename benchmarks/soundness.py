"""Whether what is called free is exact: nets of random blocks, widened and cut at random, against the whole ones.

    python benchmarks/soundness.py --nets 2000

The blocks are those of `tests/blocks.py`: layers, norms, buffers, computed weights, channels that move or are treated
apart, and what runs over one axis or another. Of every net all free spaces are widened by as many channels as they
have, with columns of zeros, and a random half of each is cut and compared with the whole net whose readers multiply
that half by zero, all in float64. The page says how many nets were inexact, and how much was free; and as the control
how many are inexact where the operators and a pass without numbers decide what is free.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from evidence import command, machine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from blocks import BLOCKS, chain
from exact import gap, inputs, lively

from compress.surgery.proof import Proof, silence
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE, BOUND = (3, 8, 8), 1e-9
PAGE = Path(__file__).with_name("results") / "soundness.md"


@torch.no_grad()
def tried(names: list[str], chance: random.Random) -> tuple[float, int, int]:
    """The larger gap of widening and of cutting, and how many spaces are free, of how many."""
    net = lively(chain(names))
    graph = survey(net, SHAPE)
    silent = copy.deepcopy(net)
    wide, narrow = (Surgeon(copy.deepcopy(net), graph) for _ in range(2))
    for name, width in graph.widths.items():
        wide.widen(name, width)
        kept = sorted(chance.sample(range(width), max(1, width // 2)))
        silence(silent, graph, name, sorted(set(range(width)) - set(kept)))
        narrow.narrow(name, kept)
    x = inputs(SHAPE)
    worst = max(gap(wide.model(*x), net(*x)), gap(narrow.model(*x), silent(*x)))
    return worst, len(graph.free), len(graph.spaces)


def unproved(names: list[str], chance: random.Random) -> bool:
    """Whether the same would be inexact without the trial with numbers."""
    fails = Proof.fails
    Proof.fails = lambda self, names: False  # type: ignore[method-assign]
    try:
        return not tried(names, chance)[0] <= BOUND
    finally:
        Proof.fails = fails  # type: ignore[method-assign]


def page(rows: list[tuple[list[str], float, int, int]], control: int, seed: int) -> str:
    inexact = [(names, worst) for names, worst, _, _ in rows if not worst <= BOUND]
    free, spaces = sum(row[2] for row in rows), sum(row[3] for row in rows)
    used = Counter(name for names, *_ in rows for name in names)
    lines = [
        "# What is called free is exact: nets of random blocks",
        "",
        f"{len(rows):,} nets of 1 to 6 of {len(BLOCKS)} blocks (seed {seed}), each block at least "
        f"{min(used[name] for name in BLOCKS)} times: **{len(inexact)} inexact**, by more than {BOUND} of the largest "
        f"output in float64. {free:,} of {spaces:,} spaces are free ({free / spaces:.0%}); the largest gap of an exact "
        f"net is {max((row[1] for row in rows if row[1] <= BOUND), default=0.0):.1e}. Without the trial with numbers "
        f"{control:,} of these nets would be inexact.",
        "",
        *[f"- inexact by {worst:.1e}: {', '.join(names)}" for names, worst in inexact],
        *[""] * bool(inexact),
        f"`{command()}`; {machine()}",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of layers written for one number of channels
    chance, rows, control = random.Random(args.seed), [], 0
    for number in range(args.nets):
        names = [chance.choice(sorted(BLOCKS)) for _ in range(chance.randint(1, 6))]
        rows.append((names, *tried(names, chance)))
        control += unproved(names, random.Random(number))
        if not rows[-1][1] <= BOUND:
            print(f"inexact by {rows[-1][1]:.1e}: {names}", flush=True)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} nets", flush=True)
    args.out.write_text(page(rows, control, args.seed))


if __name__ == "__main__":
    main()
