"""Does growing help? The grown net against the same final net trained from scratch at equal train-cost.

    python benchmarks/grown_vs_scratch.py cifar10.npz --out benchmarks/results/grown-vs-scratch.md

VGG16 grown by AdeNeL to a budget on a subset of CIFAR-10; then its final shape, newly drawn, trained for as many epochs
as the same train-cost (MACs x images, forward) pays for; same optimizer, peak rate and schedule. Both are scored
on the whole test set. Needs `x_train, y_train, x_test, y_test` in the .npz file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from evidence import command, machine

from compress._plan import methods_of
from compress._run import develop, prepare
from compress.recipe.settings import Recipe
from compress.training import train
from compress.training.bench import Bench

COMMON: dict[str, Any] = {
    "model": {"factory": "compress.models:vgg16", "args": {"classes": 10}},
    "train": {"batch": 128, "lr": 0.1, "nesterov": True, "label_smoothing": 0.1},
}


def recipe_for(data: Path, images: int, budget: str, seed: int, method: dict[str, Any]) -> Recipe:
    sources = {"source": "npz", "path": str(data.resolve()), "train": images, "val": 0.1, "crop": 4, "flip": True}
    return Recipe.model_validate({**COMMON, "data": sources, "budget": budget, "seed": seed, "method": method})


def developed(said: Recipe) -> tuple[Bench, float]:
    """The trained lab and the seconds of processor time it took."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        lab, _ = prepare(said, "cpu")
        develop(lab, methods_of(said), Path(work))
    return lab, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--budget", default="10MFLOPs, 0.3Mparams")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tune", type=float, default=12, help="epochs of the final shape after growing")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    grow = {"name": "adenel", "round": "1 epoch", "theta": 0.97, "filters": 6, "tune": {"epochs": args.tune}}
    rows, lines = [], []
    for seed in args.seeds:
        grown, seconds = developed(recipe_for(args.data, args.images, args.budget, seed, grow))
        macs, epoch = grown.cost().macs, grown.data.steps_per_epoch * grown.data.batch
        control = {"name": "scratch", "widths": grown.widths, "epochs": grown.spent / (macs * epoch)}
        fresh, seconds_fresh = developed(recipe_for(args.data, args.images, args.budget, seed, control))
        one, other = (train.score(lab.model, lab.data, "test").accuracy for lab in (grown, fresh))
        rows.append((one, other))
        widths = "-".join(str(w) for name, w in grown.widths.items() if "conv" in name)
        lines.append(
            f"| {seed} | {100 * one:.2f} | {100 * other:.2f} | {100 * (one - other):+.2f} | {macs / 1e6:.2f} | "
            f"{grown.cost().params / 1e6:.3f} | {grown.spent / 1e12:.2f} | {fresh.spent / 1e12:.2f} | "
            f"{control['epochs']:.1f} | {seconds:.0f} / {seconds_fresh:.0f} | {widths} |"
        )
        print(lines[-1], flush=True)
    gaps = [one - other for one, other in rows]
    spread = f"{100 * statistics.stdev(gaps):.2f}" if len(gaps) > 1 else "-"
    text = "\n".join(
        [
            "# The grown net against the same net from scratch, at equal train-cost",
            "",
            f"VGG16 on {args.images:,} CIFAR-10 images (a tenth held out), budget {args.budget}, tuned for",
            f"{args.tune:g} epochs; test accuracy in %, all 10,000 test images. Train-cost: 1e12 MACs x",
            "images, forward. Seconds: processor time, busy machine.",
            "",
            "| seed | grown | scratch | gap | MMACs | Mparams | its cost | scratch, cost | epochs | s | widths |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Mean gap {100 * statistics.mean(gaps):+.2f} points, standard deviation {spread}, n = {len(gaps)}. "
            f"Grown {100 * statistics.mean(o for o, _ in rows):.2f} %, "
            f"scratch {100 * statistics.mean(o for _, o in rows):.2f} %.",
            "",
            f"Command: `{command()}`",
            f"{machine()}.",
            "",
        ]
    )
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
