"""How accurate a network within a budget becomes: ways to train it and to grow it, at equal train-cost.

    python benchmarks/accuracy.py cifar10.npz                      every row that is missing, then the page
    python benchmarks/accuracy.py cifar10.npz --arms grown scratch --seeds 0 1 2
    python benchmarks/accuracy.py cifar10.npz --budget "5MFLOPs, 0.3Mparams"
    python benchmarks/accuracy.py                                  the page alone, from the rows that there are

A row is one arm with one seed, and is written to benchmarks/results/accuracy.jsonl as it ends; several processes may
work at once, each on rows of its own. Choices are made by `val`; test images are scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy_table import page
from evidence import claimed, machine, rows_in

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.recipe.settings import Recipe

RESULTS = Path(__file__).with_name("results")
ROWS, PAGE = RESULTS / "accuracy.jsonl", RESULTS / "accuracy.md"
NOTES = RESULTS / "accuracy.notes"  # what a person has to say of the tables, in front of them
COST = 2.0e12  # MACs x images, forward
SHORT = {"factory": "compress.models:short", "args": {"widths": [48, 160, 240]}}
DATA = {"train": 10_000, "val": 15_000, "crop": 4, "padding": "reflect", "flip": "alternate"}
TRAIN = {
    "cost": COST,
    "optimizer": "muon",
    "lr": 0.3,
    "muon_lr": 0.1,
    "muon_decay": 0.1,
    "weight_decay": 1e-3,
    "nesterov": True,
    "label_smoothing": 0.2,
    "ema": 0.99,
}
TUNE = {"schedule": "linear", "epochs": 20}
GROWN = {
    "name": "adenel",
    "seed_width": 8,
    "round": "1 epoch",
    "grow": "score",
    "amount": "even",
    "filters": 12,
    "warmup": "2 epochs",
    "tune": TUNE,
}
HAND = {"name": "scratch", "epochs": 20, "schedule": "linear", "warmup": 0.15}


def hand(*widths: int) -> dict[str, Any]:
    """A hand-made short net of these widths."""
    return {"model": {"factory": "compress.models:short", "args": {"widths": list(widths)}}, "method": HAND}


LATE = {**GROWN, "seed_width": 0.5, "round": "4 epochs", "filters": 14, "warmup": "3 epochs"}
MAIN = "10MFLOPs, 0.3Mparams"  # where all is tried
HANDS = {"5MFLOPs, 0.3Mparams": (9, 39, 58), MAIN: (14, 60, 90), "20MFLOPs, 0.3Mparams": (25, 88, 108)}
BASE = hand(*HANDS[MAIN])  # just within the budget, as the others are
SHAPE = "the shape of score, from scratch"
IDEAS: dict[str, dict[str, Any]] = {
    "scratch": BASE,
    "SGD": {**BASE, "train": {"optimizer": "sgd"}},
    "no average of weights": {**BASE, "train": {"ema": 0.0}},
    "average over more steps": {**BASE, "train": {"ema": 0.998}},
    "crops padded with black": {**BASE, "data": {"padding": "zero"}},
    "flips drawn each time": {**BASE, "data": {"flip": True}},
    "cosine": {**BASE, "method": {**HAND, "schedule": "cosine"}},
    "no smoothing": {**BASE, "train": {"label_smoothing": 0.0}},
    "no decay": {**BASE, "train": {"weight_decay": 0.0, "muon_decay": 0.0}},
    "decay times 3": {**BASE, "train": {"weight_decay": 3e-3, "muon_decay": 0.3}},
    "batch 64": {**BASE, "train": {"batch": 64, "lr": 0.2, "muon_lr": 0.07, "ema": 0.995}},
    "cutout 8": {**BASE, "data": {"cutout": 8}},
    "Muon at half the rate": {**BASE, "train": {"muon_lr": 0.05}},
    "three convolutions a block": {
        "model": {"factory": "compress.models:short", "args": {"widths": [13, 50, 75], "convs": 3}},
        "method": HAND,
    },
}
GROWTHS: dict[str, dict[str, Any]] = {  # for every budget
    "score": {"method": GROWN},
    "all": {"method": {**GROWN, "grow": "all"}},
    "random": {"method": {**GROWN, "grow": "random"}},
}
ARMS: dict[str, dict[str, Any]] = {
    **IDEAS,
    **GROWTHS,
    "support": {"method": {**GROWN, "grow": "support", "theta": 0.9}},
    "score, rewound": {"method": {**GROWN, "rewind": True, "tune": {**TUNE, "warmup": 0.15}}},
    "late, all": {"model": BASE["model"], "method": {**LATE, "grow": "all"}},
    "late, score": {"model": BASE["model"], "method": LATE},
    "late, random": {"model": BASE["model"], "method": {**LATE, "grow": "random"}},
    "equal cost": {"method": {**GROWN, "grow": "all", "amount": "equal_cost"}},
}


WHOLE = "43MFLOPs, 0.58Mparams"  # on all images, for a short while
WHOLE_DATA = {**DATA, "train": None, "val": 5_000, "cutout": 8}
WHOLE_TRAIN = {
    **TRAIN,
    "cost": 3.0e13,
    "optimizer": "sgd",
    "lr": 0.25,
    "muon_decay": 0.05,
    "weight_decay": 7e-4,
    "label_smoothing": 0.15,
    "ema": 0.998,
}
LARGE = hand(40, 136, 136)
DEEPER = {"factory": "compress.models:short", "args": {"widths": [40, 108, 102], "convs": 3}}
SOON = {**LATE, "round": "1 epoch", "filters": 26, "warmup": "1 epoch"}
WHOLE_ARMS: dict[str, dict[str, Any]] = {
    "scratch": LARGE,
    "Muon": {**LARGE, "train": {"optimizer": "muon"}},
    "three convolutions a block": {"model": DEEPER, "method": HAND},
    "no cutout": {**LARGE, "data": {"cutout": 0}},
    "no cutout, decay halved": {**LARGE, "data": {"cutout": 0}, "train": {"weight_decay": 3.5e-4}},
    "no cutout, Muon": {**LARGE, "data": {"cutout": 0}, "train": {"optimizer": "muon"}},
    "no cutout, three convolutions": {"model": DEEPER, "method": HAND, "data": {"cutout": 0}},
    "decay times 2": {**LARGE, "train": {"weight_decay": 1.4e-3}},
    "rate times 2": {**LARGE, "train": {"lr": 0.5}},
    "average over fewer steps": {**LARGE, "train": {"ema": 0.99}},
    "late, all": {"model": LARGE["model"], "method": {**SOON, "grow": "all"}},
    "late, score": {"model": LARGE["model"], "method": SOON},
}


def arms_of(budget: str) -> dict[str, dict[str, Any]]:
    """The arms of a budget: all where all is tried, elsewhere those that grow and their controls."""
    if budget == WHOLE:
        return WHOLE_ARMS
    arms = ARMS if budget == MAIN else {"scratch": hand(*HANDS[budget]), **GROWTHS}
    found = [row for row in rows() if (row["arm"], row["seed"], row["budget"]) == ("score", 0, budget)]
    pairs = [found[0]["widths"][at : at + 2] for at in (0, 2, 4)] if found else []
    return {**arms, SHAPE: hand(*map(min, pairs))} if found else arms


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with changes, table by table; a method and a model are taken whole."""
    tables = {key: {**base.get(key, {}), **changes[key]} for key in ("data", "train") if key in changes}
    return {**base, **changes, **tables}


def recipe_of(arm: str, data: Path, seed: int, budget: str) -> Recipe:
    base = {
        "model": SHORT,
        "data": {"source": "npz", "path": str(data.resolve()), **(WHOLE_DATA if budget == WHOLE else DATA)},
        "train": WHOLE_TRAIN if budget == WHOLE else TRAIN,
        "checkpoint": "1000 epochs",
        "budget": budget,
        "seed": seed,
    }
    return Recipe.model_validate(merged(base, arms_of(budget)[arm]))


def measured(arm: str, data: Path, seed: int, budget: str) -> dict[str, Any]:
    """Train one arm with one seed."""
    begin, recipe = time.process_time(), recipe_of(arm, data, seed, budget)
    with tempfile.TemporaryDirectory() as work:
        lab, _ = prepare(recipe, "cpu")
        develop(lab, methods_of(recipe), Path(work))
    cost = lab.cost()
    return {
        "arm": arm,
        "seed": seed,
        "budget": budget,
        "val": lab.score("val").accuracy,
        "test": lab.score("test").accuracy,
        "macs": cost.macs,
        "thop": cost.thop,
        "params": cost.params,
        "cost": lab.spent,
        "steps": lab.step,
        "rounds": [
            {key: note.row.get(key) for key in ("step", "macs", "val", "scores", "support")}
            for note in lab.history
            if note.event == "round"
        ],
        "widths": list(lab.widths.values()),
        "seconds": round(time.process_time() - begin),
        "machine": machine(),
        "recipe": dict(sorted(arms_of(budget)[arm].items())),
    }


def rows() -> list[dict[str, Any]]:
    return rows_in(ROWS)


def missing(arms: list[str], seeds: list[int], budget: str) -> Iterator[tuple[str, int]]:
    """The rows that are not there; what another process is at work on is passed by."""
    for seed in seeds:
        for arm in arms:
            known = {(row["arm"], row["seed"], row["budget"]) for row in rows()}
            if (arm, seed, budget) in known or arm not in arms_of(budget):
                continue
            with claimed(f"accuracy {arm} {seed} {budget}") as ours:
                if ours:
                    yield arm, seed


def written(seeds: list[int]) -> str:
    """The whole page."""
    head = "# How accurate a network within a budget becomes, at equal train-cost\n"
    arms = {budget: [*arms_of(budget)] for budget in (*HANDS, WHOLE)}
    costs = {budget: WHOLE_TRAIN["cost"] if budget == WHOLE else COST for budget in arms}
    return "\n".join([head, NOTES.read_text(), page(rows(), arms, seeds, costs)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--arms", nargs="+", default=list({**ARMS, SHAPE: 0, **WHOLE_ARMS}))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default=MAIN, choices=[*HANDS, WHOLE])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for arm, seed in missing(args.arms, args.seeds, args.budget) if args.data else ():
        row = measured(arm, args.data, seed, args.budget)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{arm} {seed}: val {row['val']:.4f} test {row['test']:.4f} {row['seconds']} s", flush=True)
    PAGE.write_text(written(args.seeds))


if __name__ == "__main__":
    main()
