"""What a trained network is worth after it was cut: ways to judge channels, directly, recalibrated and tuned.

    python benchmarks/pruning.py cifar10.npz      (rows that lack in results/pruning.jsonl, and the page)
    python benchmarks/pruning.py                  (the page alone)

Three small nets are trained on 9,000 CIFAR-10 images, shrunk to 16 pixels, 1,000 others to validate on, all 10,000 test
images; then cut to a share of their MACs by every score, at the same widths, and tuned alike. `scratch` is the net of
those widths from new weights, at the cost of all: of training the full net, and of tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from evidence import claimed, command, machine, rows_in
from pruning_rivals import RIVALS, installed, versions
from pruning_rivals import said as said_of_rival
from torch import Tensor, nn

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.export.comparison import two_sided
from compress.recipe.settings import Recipe
from compress.training.bench import Bench

ROWS, PAGE, NOTES = (Path(__file__).with_name("results") / f"pruning.{kind}" for kind in ("jsonl", "md", "notes"))
BEST = "reconstruct"  # what `compress init --weights` writes
PLAIN = ("l1", "group", "taylor", "hessian", "thinet", "provable", "reconstruct", "slimming", "soft", "random")
ARMS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in PLAIN},
    "group, by score": {"name": "group", "allocate": "score"},
    "group, by sensitivity": {"name": "group", "allocate": "sensitivity"},
    "hessian, by sensitivity": {"name": "hessian", "allocate": "sensitivity"},
    "group, repaired": {"name": "group", "repair": "solve"},
    "reconstruct, by sensitivity": {"name": "reconstruct", "allocate": "sensitivity"},
    "group, three rounds": {"name": "group", "rounds": 3},
    "reconstruct, three rounds": {"name": "reconstruct", "rounds": 3},
    "group, by sensitivity, repaired": {"name": "group", "allocate": "sensitivity", "repair": "solve"},
}
SHARES, SEEDS, EPOCHS = ("25%", "50%"), (0, 1, 2), (5, 20)
FULL, BEFORE = 30, 0.02  # epochs of the full net, and the rate of training between it and the cut
NETS: dict[str, dict[str, Any]] = {
    "residual": {"factory": "compress.models:resnet_cifar", "args": {"depths": [1, 1, 1], "widths": [16, 32, 64]}},
    "VGG": {
        "factory": "compress.models:vgg",
        "args": {"widths": [16, 24, 48, 48, 64], "pools": [2, 4], "last_pool": "global", "size": 16},
    },
    "inverted residual": {"factory": f"{Path(__file__).resolve()}:inverted"},
}
TRAIN = {"batch": 128, "lr": 0.2, "weight_decay": 1e-3, "label_smoothing": 0.1, "ema": 0.0}


def _layer(inp: int, out: int, kernel: int, **how: int) -> list[nn.Module]:
    """A convolution, its norm and ReLU6."""
    return [nn.Conv2d(inp, out, kernel, bias=False, **how), nn.BatchNorm2d(out), nn.ReLU6()]


class Inverted(nn.Module):
    """A pixel layer that widens, one filter for each channel, and a pixel layer that narrows (Sandler et al. 2018)."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inp
        self.body = nn.Sequential(
            *_layer(inp, wide, 1),
            *_layer(wide, wide, 3, stride=stride, padding=1, groups=wide),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.plus = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, O, H / stride, W / stride]."""
        out: Tensor = self.body(x)
        return x + out if self.plus else out


def inverted() -> nn.Module:
    """A MobileNetV2 in small, for 16 pixels."""
    plan = [(24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1)]
    blocks = [Inverted(*row) for row in plan]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*_layer(3, 24, 3, padding=1), *blocks, *_layer(48, 128, 1), *head)


def shrunk(source: Path, folder: Path) -> Path:
    """Ten thousand images and the test set at 16 pixels, each the mean of four."""
    path = folder / "cifar10-16px.npz"
    if not path.exists():
        whole = np.load(source)
        small = {f"y_{part}": whole[f"y_{part}"] for part in ("train", "test")}
        for part in ("train", "test"):
            x = whole[f"x_{part}"].astype(np.float32)
            n, h, w, c = x.shape
            small[f"x_{part}"] = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)).round().astype(np.uint8)
        partly = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partly, **small)
        partly.replace(path)
    return path


def recipe(data: Path, seed: int, model: dict[str, Any], method: dict[str, Any], budget: str, lr: float) -> Recipe:
    return Recipe.model_validate(
        {
            "model": model,
            "data": {"source": "npz", "path": str(data), "train": 10_000, "val": 1_000, "crop": 2, "flip": True},
            "train": {**TRAIN, "lr": lr},
            "method": method,
            "budget": budget,
            "checkpoint": "1000 epochs",
            "seed": seed,
        }
    )


def developed(said: Recipe) -> Bench:
    with tempfile.TemporaryDirectory() as work:
        lab, _ = prepare(said, "cpu")
        develop(lab, methods_of(said), Path(work))
    return lab


def trained(net: str, seed: int, data: Path, folder: Path) -> tuple[Path, float, float]:
    """The weights of a full net, its test accuracy, and what its training cost."""
    path = folder / f"{net} {seed}.pt"
    if not path.exists():
        method = {"name": "scratch", "epochs": FULL, "schedule": "linear", "warmup": 0.1}
        lab = developed(recipe(data, seed, NETS[net], method, "100%", 0.2))
        partly = path.with_suffix(f".{os.getpid()}")
        torch.save(lab.model.state_dict(), partly)
        path.with_suffix(".json").write_text(json.dumps([lab.score("test").accuracy, lab.spent]))
        partly.replace(path)
    accuracy, spent = json.loads(path.with_suffix(".json").read_text())
    return path, accuracy, spent


def measured(cell: tuple[str, str, str, int, int], data: Path, folder: Path) -> dict[str, Any]:
    """One cell of the table: a net, a share, a score, epochs and a seed."""
    net, share, score, epochs, seed = cell
    begin = time.process_time()
    weights, full, spent = trained(net, seed, data, folder)
    tune = {"epochs": epochs, "schedule": "linear"}
    if score == "scratch":
        shape = developed(
            recipe(
                data,
                seed,
                {**NETS[net], "weights": str(weights)},
                {"name": "l1", "tune": {**tune, "epochs": 0}},
                share,
                TRAIN["lr"],
            )
        )
        images = spent / shape.cost().macs + epochs * shape.data.counts["train"]
        said = {"name": "scratch", "widths": shape.widths, "epochs": images / shape.data.counts["train"]}
        lab = developed(recipe(data, seed, NETS[net], {**said, "schedule": "linear", "warmup": 0.1}, share, 0.2))
    else:
        said = said_of_rival(score, tune) if score in RIVALS else {**ARMS[score], "tune": tune}
        if score in ("slimming", "soft"):  # half of their training comes before the cut
            said |= {"before": {"epochs": epochs / 2, "lr": BEFORE, "schedule": "constant"}}
            said["tune"] = {**tune, "epochs": epochs / 2}
        if said.get("rounds"):  # a fifth of it after each of the first two cuts
            said |= {"round": f"{epochs / 5:g} epochs", "tune": {**tune, "epochs": 3 * epochs / 5}}
        lab = developed(recipe(data, seed, {**NETS[net], "weights": str(weights)}, said, share, TRAIN["lr"]))
    vals = {note.event: note.numbers["val"] for note in lab.history if "val" in note.numbers}
    return {
        "net": net, "share": share, "score": score, "epochs": epochs, "seed": seed,
        "full": full, "start": vals.get("start"), "cut": vals.get("narrowed"), "recalibrated": vals.get("recalibrated"),
        "val": lab.score("val").accuracy, "test": lab.score("test").accuracy,
        "macs": lab.cost().macs, "params": lab.cost().params, "cost": lab.spent, "widths": list(lab.widths.values()),
        "seconds": round(time.process_time() - begin), "machine": machine(*versions(score)),
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    return rows_in(ROWS)


def cells(
    nets: list[str], shares: list[str], scores: list[str], epochs: list[int]
) -> Iterator[tuple[str, str, str, int, int]]:
    """All that the page holds, seed by seed."""
    for seed in SEEDS:
        for many in epochs:
            for share in shares:
                for net in nets:
                    for score in scores:
                        yield net, share, score, many, seed


def missing(wanted: Iterator[tuple[str, str, str, int, int]]) -> Iterator[tuple[str, str, str, int, int]]:
    """The rows that are not there; what another process is at work on is passed by."""
    for cell in wanted:
        known = {(row["net"], row["share"], row["score"], row["epochs"], row["seed"]) for row in rows()}
        if cell in known:
            continue
        with claimed(f"pruning {' '.join(map(str, cell))}") as ours:
            if ours:
                yield cell


def page() -> str:
    """The table, and what is missing of it."""
    every = rows()
    earlier = sorted({row["score"] for row in every} - {*ARMS, *RIVALS, "scratch"})
    groups = [(net, share, many) for net in NETS for share in SHARES for many in EPOCHS]
    order = [(*group, score) for group in groups for score in (*ARMS, *RIVALS, *earlier, "scratch")]
    wanted = {(*group, score, seed) for group in groups for score in (*ARMS, *RIVALS, "scratch") for seed in SEEDS}
    lacking = len(wanted - {(row["net"], row["share"], row["epochs"], row["score"], row["seed"]) for row in every})
    lines = [
        "# What a trained network is worth after it was cut",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        NOTES.read_text(encoding="utf-8").strip(),
        "",
        *duels(every),
        "",
        "## Every arm",
        "",
        "Validation accuracies directly after the cut and after 32 batches through the batch norms, then test",
        "accuracy, in %, means and standard deviations of the seeds there are.",
        "",
        "| net | share of MACs | epochs | arm | cut | recalibrated | test | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in order:
        if found := [row for row in every if (row["net"], row["share"], row["epochs"], row["score"]) == key]:
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(figures(found))} | {len(found)} |")
    lines += ["", f"{lacking} of {len(wanted)} rows are still missing." if lacking else "All rows are there."]
    full = {(row["net"], row["seed"]): row["full"] for row in every}
    for net in NETS:
        if some := [value for (name, _), value in full.items() if name == net]:
            lines.append(f"The full {net} net has {100 * fmean(some):.1f} % on test images ({len(some)} seeds).")
    return "\n".join([*lines, "", f"`{command()}`; {machine()}", ""])


def figures(found: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and standard deviation of the accuracies after the cut, recalibrated and tuned."""
    for name in ("cut", "recalibrated", "test"):
        part = [100 * row[name] for row in found if row[name] is not None]
        spread = f" \u00b1 {stdev(part):.1f}" if len(part) > 1 else ""
        yield f"{fmean(part):.1f}{spread}" if part else ""


def duels(every: list[dict[str, Any]]) -> Iterator[str]:
    """One arm against every other one, cell by cell: the same net, share, epochs and seed."""
    cell = {(row["net"], row["share"], row["epochs"], row["seed"], row["score"]): row for row in every}
    yield f"## `{BEST}` against the others"
    yield ""
    yield "Points ahead in test accuracy, and in validation accuracy directly after recalibration, cell by cell: mean"
    yield "and standard error, p of a paired t-test (cells are not independent: a hint), and the least of all cells."
    yield ""
    yield "| against | cells | ahead, tuned | p | least | ahead, recalibrated |"
    yield "|---|---|---|---|---|---|"
    for score in (*ARMS, *RIVALS, "scratch"):
        mine = [key for key in cell if key[4] == BEST and (*key[:4], score) in cell]
        pairs = [(cell[key], cell[*key[:4], score]) for key in mine]
        if score == BEST or not pairs:
            continue
        apart = [100 * (ours["test"] - theirs["test"]) for ours, theirs in pairs]
        early = [100 * (o["recalibrated"] - t["recalibrated"]) for o, t in pairs if t["recalibrated"] is not None]
        mean, error = fmean(apart), stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None
        p = f"{two_sided(mean / error, len(apart) - 1):.1g}" if error else ""
        shown = f"{mean:+.2f}" + (f" \u00b1 {error:.2f}" if error is not None else "")
        recalibrated = f"{fmean(early):+.1f}" if early else ""
        yield f"| {score} | {len(apart)} | {shown} | {p} | {min(apart):+.2f} | {recalibrated} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--shares", nargs="+", default=list(SHARES))
    parser.add_argument("--scores", nargs="+", default=[*ARMS, *RIVALS, "scratch"])
    parser.add_argument("--epochs", nargs="+", type=int, default=list(EPOCHS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data:
        folder = Path(tempfile.gettempdir()) / "pruning"
        folder.mkdir(exist_ok=True)
        small = shrunk(args.data, folder)
        for cell in missing(cells(args.nets, args.shares, installed(args.scores), args.epochs)):
            row = measured(cell, small, folder)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{cell}: {row['cut']} {row['recalibrated']} test {row['test']:.4f} {row['seconds']} s", flush=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
