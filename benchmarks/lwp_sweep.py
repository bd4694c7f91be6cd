"""What alpha and gamma do: LWP's Fig. 4, at a scale that a CPU allows.

    python benchmarks/lwp_sweep.py recipes/lwp-digits.yaml --out benchmarks/results/lwp-sweep.md

The reward is the published one: no budget, nothing is filled. The full network is trained once; from it, for each alpha
in 1/3, 1/2, 1, 2, 3 at gamma 0.5 and each gamma in 1/4, 1/2, 3/4, 1 at alpha 2, controller and network are taught as
the recipe says. The likeliest child (connections above one half) is cut out and scored on all test images as it is,
with its batch norms estimated anew, and trained from newly drawn weights. The paper found MACs and accuracy to rise
with alpha, and both to rise and then to fall with gamma.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import safetensors.torch
import torch
from evidence import command, machine
from lwp_vs_random import scores_of, taught

from compress.recipe import file as recipe
from compress.surgery.connections import Wiring

ALPHAS = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)
GAMMAS = (0.25, 0.5, 0.75, 1.0)
Rows = dict[str, list[list[float]]]  # what is in the table, by alpha and gamma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    given = dict(one.split("=", 1) for one in args.set)
    lines = []
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            free = given | {"seed": str(seed), "method.fill": "false", "method.over": "0"}
            once = {"method.release": "0 steps", "method.search": "0 steps", "method.joint": "0 steps"}
            weights = Path(folder) / f"{seed}.safetensors"
            lab, _, _ = taught(recipe.read(args.recipe, free | once, "100% MACs"))
            tensors = {name: tensor.contiguous() for name, tensor in lab.model.state_dict().items()}
            safetensors.torch.save_file(tensors, weights)
            known = free | {"model.weights": str(weights), "method.pretrain.epochs": "0"}
            for alpha, gamma in dict.fromkeys([*((a, 0.5) for a in ALPHAS), *((2.0, g) for g in GAMMAS)]):
                reward = {"method.alpha": f"{alpha:.6f}", "method.gamma": str(gamma)}
                lab, method, _ = taught(recipe.read(args.recipe, known | reward, "100% MACs"))
                wiring, last = Wiring.read(lab.model, lab.shape), lab.history[-1].numbers
                with torch.no_grad():
                    kept = wiring.settle((method.agent(lab).controller() > 0.5).numpy())[0]
                share = wiring.costs(kept)[0, 1] / wiring.costs(wiring.full)[0, 1]
                found = scores_of(lab, method, wiring, kept, copy.deepcopy(lab.model.state_dict()))
                row = [100 * each for each in (last["eta"], last["accuracy"], share, found["cut"], found["scratch"])]
                setting = f"{alpha:.3g} | {gamma:g}"
                rows.setdefault(setting, []).append(row)
                lines.append(
                    f"| {seed} | {setting} | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.1f} | "
                    f"{np.count_nonzero(kept)} of {len(kept)} | {row[3]:.2f} | {row[4]:.2f} |"
                )
                print(lines[-1], flush=True)
    text = page(lines, rows, lab.data.counts["test"], args.seeds)
    if args.out is not None:
        args.out.write_text(text)


def page(lines: list[str], rows: Rows, images: int, seeds: list[int]) -> str:
    """The table with its means over the seeds, and what its columns are."""
    means = (
        f"| {setting} | {' | '.join(f'{fmean(column):.1f}' for column in zip(*each, strict=True))} |"
        for setting, each in rows.items()
    )
    return "\n".join(
        [
            "# LWP: alpha and gamma (Fig. 4 of the paper)",
            "",
            "sampled: children of the last training steps, their MACs over the full network's and their accuracy on",
            "the training images, in %. likeliest: the child of all connections above 1/2; test accuracy in %, "
            f"{images:,} images.",
            "",
            "| seed | alpha | gamma | sampled MACs | accuracy | likeliest MACs | connections | as it is | scratch |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "Means over the seeds:",
            "",
            "| alpha | gamma | sampled MACs | accuracy | likeliest MACs | as it is | scratch |",
            "|---|---|---|---|---|---|---|",
            *means,
            "",
            f"`{command()}`, seeds {seeds}; {machine()}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
