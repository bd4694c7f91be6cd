"""AutoGrow measured: depth against K, against the found net from scratch, with widths, morphism, less data.

    python benchmarks/autogrow.py digits
    python benchmarks/autogrow.py cifar10.npz --train 10000 --parts depth --intervals 2 4 --seeds 0

Basic3ResNet from 1-1-1. Every part writes one table, autogrow-DATA-PART.md, anew after each row. Decisions are made on
validation images; test images are looked at once, at the end. An .npz file needs `x_train, y_train, x_test, y_test`,
images [n, height, width, channels].
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress.training.trials import Bench
from evidence import command, machine

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.models import basic3resnet
from compress.reading.measure import measure
from compress.recipe.settings import Recipe
from compress.surgery.stages import last_norm
from compress.training import train

ENDLESS = "1TMACs"  # a budget that no run here meets
Depths = tuple[int, int, int]
Rows = Iterator[tuple[dict[str, object], dict[str, float]]]  # cells of a row, and what is averaged, by name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    lab: Bench
    seconds: float  # of processor time
    test: float  # accuracy in %

    @classmethod
    def of(cls, lab: Bench, start: float) -> Outcome:
        """What a run that has just ended came to; `start` is when it began, in processor time."""
        seconds = time.process_time() - start
        return cls(lab, seconds, 100 * train.score(lab.model, lab.data, "test").accuracy)

    @property
    def depths(self) -> Depths:
        """Blocks of each stage."""
        a, b, c = (stage.depth(self.lab.model) for stage in self.lab.stages(None))
        return a, b, c

    def cells(self) -> dict[str, object]:
        """What all tables tell."""
        val, macs = 100 * self.lab.score().accuracy, f"{self.lab.cost().macs / 1e6:.3f}"
        told = {"depths": "-".join(map(str, self.depths)), "MMACs": macs, "val": val, "test": self.test}
        return {**told, "cost": self.lab.spent / 1e9, "CPU s": round(self.seconds)}

    def growth(self) -> dict[str, object]:
        """Epochs of growing, and what ended it: the reason why the last stage left."""
        rounds = [note.step for note in self.lab.history if note.event == "round"]
        left = [note.numbers["why"] for note in self.lab.history if note.event == "left"]
        why = left[-1] if len(left) == 3 else "epochs"
        return {"epochs grown": round(rounds[-1] / self.lab.data.steps_per_epoch), "ended by": why}


@dataclass(frozen=True)
class Trials:
    """The data, the net and the schedule that all runs share."""

    said: argparse.Namespace

    @property
    def digits(self) -> bool:
        """Whether the data is the built-in one."""
        return bool(self.said.data == "digits")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image [channels, height, width]."""
        if self.digits:
            return (1, 8, 8)
        with np.load(self.said.data) as arrays:
            _, height, width, channels = arrays["x_test"].shape
        return (channels, height, width)

    @property
    def batch(self) -> int:
        """Images per step."""
        return 64 if self.digits else 128

    def span(self, epochs: float) -> str:
        """So many epochs of all training images, as steps: equally long with fewer images."""
        return f"{round(epochs * (self.said.train // self.batch))} steps"

    def net(self, depths: Depths) -> dict[str, Any]:
        """Arguments of the factory."""
        return {"depths": list(depths), "width": self.said.width, "in_channels": self.shape[0]}

    def macs(self, depths: Depths) -> int:
        """MACs of a net of these depths."""
        return measure(basic3resnet(**self.net(depths)), self.shape).macs

    def recipe(
        self, seed: int, *steps: Mapping[str, Any], depths: Depths = (1, 1, 1), budget: str = ENDLESS, share: float = 1
    ) -> Recipe:
        """Training by one method, or by several one after the other, with a share of the training images."""
        source: dict[str, Any] = {"source": "digits"}
        if not self.digits:
            path = str(Path(self.said.data).resolve())
            source = {"source": "npz", "path": path, "val": self.said.val, "flip": True}
        return Recipe.model_validate(
            {
                "model": {"factory": "compress.models:basic3resnet", "args": self.net(depths)},
                "data": {**source, "crop": self.shape[1] // 8, "train": round(share * self.said.train)},
                "train": {"batch": self.batch, "lr": 0.1, "label_smoothing": 0.1},
                "budget": budget,
                "seed": seed,
                "steps": list(steps),
            }
        )

    def run(self, seed: int, *steps: Mapping[str, Any], **other: Any) -> Outcome:
        """Train as a recipe says."""
        recipe, start = self.recipe(seed, *steps, **other), time.process_time()
        with tempfile.TemporaryDirectory() as work:
            lab, _ = prepare(recipe, "cpu")
            develop(lab, methods_of(recipe), Path(work))
        return Outcome.of(lab, start)

    def autogrow(self, k: float, **other: Any) -> dict[str, Any]:
        """AutoGrow's settings, K in epochs of all training images."""
        spans = {"interval": self.span(k), "patience": self.span(self.said.patience), "max_epochs": 300}
        common = {**spans, "tau": self.said.tau, "init": self.said.init, "tune": {"epochs": self.said.tune}}
        return {"name": "autogrow", **common, **other}

    def scratch(self, seed: int, depths: Depths, spent: int) -> Outcome:
        """A net newly drawn, for as many epochs as this train-cost pays for."""
        return self.run(seed, {"name": "scratch", "epochs": self.epochs(depths, spent)}, depths=depths)

    def epochs(self, depths: Depths, spent: int) -> float:
        """How many epochs of a net of these depths a train-cost pays for."""
        return spent / (self.macs(depths) * (self.said.train // self.batch * self.batch))

    def silent(self, seed: int, depths: Depths, spent: int) -> Outcome:
        """The same, but blocks start silent, as AutoGrow appends them, and the rate rises for a tenth of the time."""
        settings = {"name": "scratch", "epochs": self.epochs(depths, spent), "warmup": 0.1}
        recipe, start = self.recipe(seed, settings, depths=depths), time.process_time()
        lab, _ = prepare(recipe, "cpu")
        method = methods_of(recipe)[0]
        state = method.init(lab)
        for stage, depth in zip(lab.stages(None), depths, strict=True):
            for block in stage.names(depth):
                if (norm := last_norm(lab.model, lab.shape, f"{stage.container}.{block}")) is not None:
                    torch.nn.init.zeros_(lab.model.get_parameter(f"{norm}.weight"))
        while method.done(lab, state) is None:
            state = method.step(lab, state)
        return Outcome.of(lab, start)


def beside(two: Outcome, one: Outcome) -> dict[str, object]:
    """What a table tells of a net from scratch beside a grown one."""
    named = {f"{name}, scratch": value for name, value in two.cells().items() if name in ("test", "cost", "CPU s")}
    return {**named, "gap": f"{one.test - two.test:+.2f}"}


def depth(trials: Trials) -> Rows:
    """Growing without a budget: the depth found for every K (epochs), and what ended the growing ("accuracy": it
    stopped by itself). Then the found net, newly drawn, for as many epochs as the same train-cost pays for; with a
    warm-up and blocks that start silent, as grown ones do, where the table says so."""
    for seed in trials.said.seeds:
        for k in trials.said.intervals:
            one = trials.run(seed, trials.autogrow(k, on_saturation="stop"))
            two = trials.scratch(seed, one.depths, one.lab.spent)
            epochs = f"{two.lab.step / two.lab.data.steps_per_epoch:.1f}"
            numbers = {"blocks": sum(one.depths), "grown": one.test, "scratch": two.test, "gap": one.test - two.test}
            row = {"K": f"{k:g}", "seed": seed, **one.growth(), **one.cells(), **beside(two, one)}
            if trials.said.silent:
                row["test, silent"] = numbers["silent"] = trials.silent(seed, one.depths, one.lab.spent).test
            yield {**row, "its epochs": epochs}, {f"K = {k:g}, {name}": value for name, value in numbers.items()}


def width(trials: Trials) -> Rows:
    """One budget, {budget}, for AutoGrow (width {width}), for AdeNeL (2-2-2), for both as steps, the first with 0.6 of
    the budget; tuning is as long as brings each to the train-cost of the first."""
    budget, k = trials.said.budget, min(trials.said.intervals)
    adenel = {"name": "adenel", "round": trials.span(2), "theta": 0.97, "filters": 2}
    first = trials.autogrow(k, on_saturation="stop", share=0.6, tune={"epochs": 2, "schedule": "constant"})
    plans: dict[str, tuple[list[dict[str, Any]], Depths]] = {
        "AutoGrow": ([trials.autogrow(k, on_saturation="fill")], (1, 1, 1)),
        "AdeNeL": ([adenel], (2, 2, 2)),
        "both": ([first, adenel], (1, 1, 1)),
    }

    def tuned(seed: int, name: str, epochs: float) -> Outcome:
        (*before, last), depths = plans[name]
        return trials.run(seed, *before, {**last, "tune": {"epochs": epochs}}, depths=depths, budget=budget)

    for seed in trials.said.seeds:
        spent = 0
        for name in plans:
            epochs = trials.said.tune
            if spent:  # growing is the same whatever follows: a first run tells what is left for tuning
                short = tuned(seed, name, 1).lab
                epoch = short.cost().macs * short.data.steps_per_epoch * trials.batch
                epochs = max(1.0, 1 + (spent - short.spent) / epoch)
            one = tuned(seed, name, epochs)
            spent = spent or one.lab.spent
            used = 100 * one.lab.whole.utilisation(one.lab.cost())
            row = {"seed": seed, "method": name, **one.cells(), "used, %": used, "tuning epochs": f"{epochs:.1f}"}
            yield row, {name: one.test}


def morphism(trials: Trials) -> Rows:
    """A trained 2-2-2 deepened to 4-4-4 at once, and tuned as long again (both {tune} epochs), with either initialiser;
    beside it 4-4-4 from scratch for the train-cost of the first."""
    small, large = (2, 2, 2), (4, 4, 4)
    budget = f"{trials.macs(large)}MACs"
    before = {"name": "scratch", "epochs": trials.said.tune, "share": 1}
    once = {"interval": trials.span(1), "max_epochs": 1, "policy": "convergent", "on_saturation": "fill"}
    for seed in trials.said.seeds:
        two = None
        for init in ("zero", "adam"):
            then = trials.autogrow(1, **once, begin="present", grow_lr=0.001, init=init)
            one = trials.run(seed, before, then, depths=small, budget=budget)
            two = two or trials.scratch(seed, large, one.lab.spent)
            row = {"seed": seed, "init": init, "val of 2-2-2": 100 * one.lab.steps[0]["val"]}
            yield {**row, **one.cells(), **beside(two, one)}, {init: one.test, f"{init}, gap": one.test - two.test}


def data(trials: Trials) -> Rows:
    """Growing without a budget on 100, 50 and 25 % of the training images, K = {k:g} epochs and J in steps of the
    whole, as the paper's Table 11; tuning as many epochs of what there is."""
    for seed in trials.said.seeds:
        for share in (1.0, 0.5, 0.25):
            one = trials.run(seed, trials.autogrow(min(trials.said.intervals), on_saturation="stop"), share=share)
            images = f"{one.lab.data.counts['train']:,}"
            told = {f"{images} images, blocks": sum(one.depths), f"{images} images, test": one.test}
            yield {"images": images, "seed": seed, **one.growth(), **one.cells()}, told


PARTS: dict[str, Callable[[Trials], Rows]] = {"depth": depth, "width": width, "morphism": morphism, "data": data}


def cells(values: Iterable[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, values))} |"


def report(part: str, said: argparse.Namespace) -> None:
    """Run a part; write its table after every row, with means and standard deviations."""
    rows = PARTS[part]
    name = "digits" if said.data == "digits" else Path(said.data).stem
    about = (rows.__doc__ or "").format(**vars(said), k=min(said.intervals))
    tau = "as by default" if said.tau is None else f"{said.tau:g}"
    terms = (
        f"Basic3ResNet, width {said.width}, {said.train:,} training images; J = {said.patience:g} epochs, tau {tau}, "
        f"init {said.init}, tuning {said.tune:g} epochs (cosine). Accuracy in %; cost is train-cost, 1e9 MACs x images "
        "(forward). CPU seconds on a busy machine; those of growing hold the reading of the net's graph at each growth."
        + (" One of the 397 test images is 0.25 points." if said.data == "digits" else "")
    )
    lines: list[str] = []
    numbers: dict[str, list[float]] = {}
    for row, told in rows(Trials(said)):
        lines.append(cells(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
        for key, value in told.items():
            numbers.setdefault(key, []).append(value)
        spread = {key: f"{statistics.stdev(v):.2f}" if len(v) > 1 else "-" for key, v in numbers.items()}
        means = [f"| {key} | {statistics.mean(v):.2f} | {spread[key]} | {len(v)} |" for key, v in numbers.items()]
        text = [
            f"# AutoGrow: {part}, {name}",
            "",
            *textwrap.wrap(" ".join(about.split()), 118),
            "",
            *textwrap.wrap(terms, 118),
            "",
            cells(row),
            cells("---" for _ in row),
            *lines,
            "",
            "| | mean | standard deviation | n |",
            "|---|---|---|---|",
            *means,
            "",
            f"Command: `{command()}`",
            f"{machine()}.",
            "",
        ]
        print(lines[-1], flush=True)
        if said.out is not None:
            (said.out / f"autogrow-{name}-{part}.md").write_text("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="digits, or an .npz file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--val", type=int, default=1000, help="images held out of an .npz file's")
    parser.add_argument("--width", type=int, default=8, help="filters of the first stage")
    parser.add_argument("--intervals", type=float, nargs="+", default=[1, 2, 4], help="K, epochs")
    parser.add_argument("--patience", type=float, default=8, help="J, epochs")
    parser.add_argument("--tau", type=float, default=None, help="least gain, a fraction of 1")
    parser.add_argument("--tune", type=float, default=20, help="epochs of the final shape")
    parser.add_argument("--silent", action="store_true", help="part depth: a second control, whose blocks start silent")
    parser.add_argument("--init", default="zero", help="of a new block's last batch norm")
    parser.add_argument("--budget", default="800kFLOPs", help="of the part width")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=None, help="folder of the tables")
    said = parser.parse_args()
    for part in said.parts:
        report(part, said)


if __name__ == "__main__":
    main()
