"""Is what LWP learns worth anything? Learned children against random masks of equal cost.

    python benchmarks/lwp_vs_random.py recipes/lwp-digits.yaml --out benchmarks/results/lwp-vs-random.md
    python benchmarks/lwp_vs_random.py recipes/lwp-densenet40-cifar10.yaml --set data.npz=cifar10.npz

The recipe's full network is trained, and its controller and the network taught as the recipe says. Then the child that
the method would choose, and random masks brought onto the same budget by the same projection, are treated alike, from
the same tensors: scored as they are (batch norms estimated anew), tuned, and trained from newly drawn weights. Random
masks get two networks to be cut out of: the taught one, which has come to suit the controller's children, and the
network before it was taught. Scores are of all test images; a mask's epochs of training are the recipe's tune.epochs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import command, machine
from torch import nn

from compress._plan import methods_of
from compress._run import prepare
from compress.budget.connections import Mask, project, usage
from compress.methods.lwp.method import LWP
from compress.recipe import file as recipe
from compress.surgery.connections import Wiring, cut
from compress.training import train
from compress.training.bench import Bench
from compress.training.draw import draw
from compress.training.optim import descent

Scores = dict[str, list[float]]


def taught(said: recipe.Recipe) -> tuple[Bench, LWP, dict[str, Any]]:
    """The lab with a taught controller and network, the method, and the tensors of the network before."""
    lab, _ = prepare(said, "cpu")
    method = methods_of(said)[0]
    assert isinstance(method, LWP)
    state, before = method.init(lab), {}
    while state.phase != "select":
        if state.phase in ("search", "joint") and not before:
            before = copy.deepcopy(lab.model.state_dict())
        state = method.step(lab, state)
    return lab, method, before


def scores_of(lab: Bench, method: LWP, wiring: Wiring, mask: Mask, tensors: Mapping[str, Any]) -> dict[str, float]:
    """Test accuracy of a child as it is cut out of a network with these tensors, tuned, and trained from scratch."""
    found, said = {}, method.settings
    for kind in ("cut", "tuned", "scratch"):
        net = copy.deepcopy(lab.model)
        net.load_state_dict(tensors)
        child = cut(net, wiring.cuts_of(mask), lab.shape)
        if kind == "scratch":
            torch.manual_seed(lab.recipe.seed)
            draw(child)
        if kind == "cut":
            train.recalibrate(child, lab.data, said.recalibrate)
        else:
            tuned(lab, child, said.tune.epochs, said.tune.lr or lab.recipe.train.lr)
        found[kind] = train.score(child, lab.data, "test", task=lab.task).accuracy
    return found


def tuned(lab: Bench, model: nn.Module, epochs: float, lr: float) -> None:
    """Train a network as tuning does: as the recipe says, along a cosine."""
    steps = round(epochs * lab.epoch)
    loop = train.Loop(lab.data, descent(model, lab.keys), start=0, steps=steps, seed=lab.seed, task=lab.task)
    train.train(model, loop, lambda step: train.lr_at("cosine", lr, step / steps))


def chosen(lab: Bench, method: LWP) -> Mask:
    """The child that the method would cut out; the model ends as it was."""
    before = copy.deepcopy(lab.model.state_dict())
    best, _ = method.chosen(lab)
    lab.model.load_state_dict(before)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--budget", nargs="+", default=None, help="several are tried with one taught network each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--masks", type=int, default=4, help="random masks for each seed")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    columns = ("learned", "random, taught", "random, before")
    kinds = ("cut", "tuned", "scratch")
    lines = []
    for budget in args.budget or [None]:
        gaps: dict[tuple[str, str], list[float]] = {}
        for seed in args.seeds:
            said = recipe.read(args.recipe, dict(one.split("=", 1) for one in args.set) | {"seed": str(seed)}, budget)
            lab, method, before = taught(said)
            wiring = Wiring.read(lab.model, lab.shape)
            best, after = chosen(lab, method), copy.deepcopy(lab.model.state_dict())
            draws, blocks = np.random.default_rng(seed), wiring.block[wiring.edge_layer]
            random = [
                project(draws.random(len(blocks)), wiring, lab.budget, wiring.full, blocks) for _ in range(args.masks)
            ]
            found = {
                columns[0]: [scores_of(lab, method, wiring, best, after)],
                columns[1]: [scores_of(lab, method, wiring, mask, after) for mask in random],
                columns[2]: [scores_of(lab, method, wiring, mask, before or after) for mask in random],
            }
            share = usage(wiring.costs(np.stack([best, *random])), lab.budget)
            for kind in kinds:
                mean = {column: 100 * statistics.mean(s[kind] for s in found[column]) for column in columns}
                top = {column: 100 * max(s[kind] for s in found[column]) for column in columns[1:]}
                for column in columns[1:]:
                    gaps.setdefault((kind, column), []).append(mean[columns[0]] - mean[column])
                lines.append(
                    f"| {budget or said.budget} | {seed} | {kind} | {mean[columns[0]]:.2f} | "
                    + " | ".join(f"{mean[column]:.2f} ({top[column]:.2f})" for column in columns[1:])
                    + f" | {share[0]:.3f} / {share[1:].mean():.3f} |"
                )
                print(lines[-1], flush=True)
        for (kind, column), each in gaps.items():
            spread = f", standard deviation {statistics.stdev(each):.2f}" if len(each) > 1 else ""
            lines.append(
                f"| {budget or said.budget} | all | {kind} | learned over {column}: "
                f"{statistics.mean(each):+.2f}{spread} | | | |"
            )
            print(lines[-1], flush=True)
    text = page(lines, lab.data.counts["test"], args.masks, method.settings.tune.epochs, args.seeds)
    if args.out is not None:
        args.out.write_text(text)


def page(lines: list[str], images: int, masks: int, epochs: float, seeds: list[int]) -> str:
    """The table, and what its columns are."""
    return "\n".join(
        [
            "# Learned connections against random ones of equal cost",
            "",
            f"Test accuracy in %, {images:,} images; {masks} random masks for each seed, their",
            "mean and in brackets the best. cut: as cut out, batch norms estimated anew; tuned: trained on for "
            f"{epochs:g} epochs;",
            "scratch: as long, from newly drawn weights. used: share of the budget, learned / random.",
            "",
            "| budget | seed | child | learned | random, taught net | random, net before | used |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"`{command()}`, seeds {seeds}; {machine()}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
