"""Landing as a claim: how near to a budget the plan comes, for many nets, and Torch-Pruning beside it.

    python benchmarks/landing.py --out benchmarks/results/landing.md

Each net is landed on 20, 35, 50, 70 and 90 % of its own count, in every unit, with widths of any number and aligned to
8 and 16: narrowed from the full net (the channels with the largest weight norm stay), and grown from a seed of 8
channels. Plans are checked on the network itself, where ours, torch's and thop's counters must agree with them exactly,
and on an ONNX file of each net. `--nets`, `--units` and `--modes` run a part; `--rows` keeps finished rows, so that
parts add up.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import rival
import torch
from evidence import machine
from landing_tables import tables
from torch import nn

import compress.models as ours
from compress import measure
from compress.budget.landing import beyond, land, reach
from compress.budget.limits import Budget, Cost, Limit
from compress.budget.price import Price
from compress.errors import CompressError, Infeasible
from compress.export.onnx import file as onnx_file
from compress.reading.graph import Graph
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHARES = (0.2, 0.35, 0.5, 0.7, 0.9)
ALIGNS = (1, 8, 16)
UNITS = {
    "params": ("params",),
    "MACs": ("MACs",),
    "FLOPs": ("FLOPs",),  # the larger of thop's total and our MACs
    "both": ("params", "MACs"),
    "B": ("B",),
}
SEED = 8  # channels that growing starts from
CLAIM = {1: 0.995, 8: 0.97, 16: 0.0}
TRIED = 4_000_000  # the most networks that a proof tries one by one
TORCHVISION = """vgg16_bn resnet18 resnet34 resnet50 resnext50_32x4d wide_resnet50_2 mobilenet_v2 mobilenet_v3_large
    densenet121 efficientnet_b0 mnasnet1_0 regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_0 convnext_tiny googlenet
    inception_v3""".split()  # noqa: SIM905 -- a list that a reader can take in
OURS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg16": (ours.vgg16, (3, 32, 32)),
    "resnet20": (ours.resnet20, (3, 32, 32)),
    "resnet32": (ours.resnet32, (3, 32, 32)),
    "resnet56": (lambda: ours.resnet_cifar([9, 9, 9]), (3, 32, 32)),
    "densenet40": (ours.densenet40, (3, 32, 32)),
    "lenet5 20-50-500": (lambda: ours.lenet5(20, 50, (500,), padding=0), (1, 28, 28)),
}
NETS = [*TORCHVISION, *OURS]


def build(net: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The full net with random weights, and the shape of its input."""
    torch.manual_seed(0)
    if net in OURS:
        make, shape = OURS[net]
        return make().eval(), shape
    import torchvision

    plain = {"aux_logits": False, "init_weights": False} if net in ("googlenet", "inception_v3") else {}
    side = 299 if net == "inception_v3" else 224
    return torchvision.models.get_model(net, weights=None, **plain).eval(), (3, side, side)


# ---- plans ----------------------------------------------------------------------------------------------------------


def budget_of(base: Cost, unit: str, share: float) -> Budget:
    return Budget(tuple(Limit(u, int(share * base.of(u)), f"{share:.0%} {u}") for u in UNITS[unit]))


def question(mode: str, price: Price, full: Mapping[str, int], budget: Budget, align: int) -> dict[str, Any]:
    """What `land` is asked: from one unit a space to the full widths, or from a narrow seed on in proportion."""
    width = align if mode == "narrow" else -(-SEED // align) * align
    start = {space: min(width, n) for space, n in full.items()}
    asked: dict[str, Any] = {"price": price, "start": start, "goal": full, "budget": budget, "align": align}
    if mode == "narrow":
        return asked | {"ceiling": full}
    return asked | {"goal": beyond(price, start, budget, set(full))}


def plan(mode: str, graph: Graph, full: Mapping[str, int], budget: Budget, align: int) -> dict[str, Any]:
    """One landing: widths, utilisation, seconds, and where it is under the claim, why nothing else is possible."""
    began = time.process_time()
    try:
        asked = question(mode, graph.price, full, budget, align)
        widths = land(**asked)
    except Infeasible:
        return {"used": None, "over": False, "why": "infeasible", "seconds": time.process_time() - began}
    seconds = time.process_time() - began
    cost = graph.price.cost(widths)
    row = {"used": budget.utilisation(cost), "over": not budget.holds(cost), "seconds": seconds, "why": ""}
    if row["used"] < CLAIM[align]:
        row["why"] = unavoidable(widths, **asked)
    return row | {"widths": widths}


def unavoidable(widths: Mapping[str, int], price: Price, budget: Budget, align: int, **asked: Any) -> str:
    """Why no more is used: all widths in reach were tried, or no layer can be a unit wider; empty where neither."""
    _, lower, caps = reach(price, budget=budget, align=align, **asked)
    now, most = price.vector(widths), asked.get("ceiling")
    ranges = [
        sorted({low, *range(-(-low // align) * align, top + 1, align)})
        for low, top in zip(lower.tolist(), np.maximum(caps, now).tolist(), strict=True)
    ]
    if prod(map(len, ranges)) <= TRIED:
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*ranges, indexing="ij")], 1)
        left, right = grid @ price.left.T + price.left0, grid @ price.right.T + price.right0
        costs = [Cost(*row) for row in np.unique((left * right) @ price.coef, axis=0).tolist()]
        best = max(budget.utilisation(cost) for cost in costs if budget.holds(cost))
        if best < CLAIM[align]:
            return f"proved: at most {best:.2%}"
    wider = {name: (width // align + 1) * align for name, width in widths.items()}
    able = [name for name, width in wider.items() if most is None or width <= most[name]]
    if not any(budget.holds(price.cost({**widths, name: wider[name]})) for name in able):
        return "nothing fits"
    return ""


# ---- checks on the network itself -----------------------------------------------------------------------------------


def ranking(model: nn.Module, graph: Graph) -> dict[str, list[int]]:
    """The positions of the channels of every free space, the largest norm of the weights that make them first."""
    ranks = {}
    for space in graph.free:
        units = np.array(graph.spaces[space].units)
        squares = np.zeros(units.max() + 1)
        for name, dim in graph.spaces[space].producers:
            weight = model.get_parameter(name).detach()
            slot = graph.slots[name, dim].units
            mine = np.isin(slot, units)
            norms = torch.linalg.vector_norm(weight.transpose(0, dim).flatten(1), dim=1).numpy()
            np.add.at(squares, slot[mine], norms[mine] ** 2)
        ranks[space] = np.argsort(-squares[units], kind="stable").tolist()
    return ranks


def resized(model: nn.Module, graph: Graph, ranks: Mapping[str, list[int]], widths: Mapping[str, int]) -> nn.Module:
    """A copy with these widths: the channels that rank first stay, and where more are needed new ones come."""
    surgeon = Surgeon(copy.deepcopy(model), graph)
    for space, width in widths.items():
        now = graph.spaces[space].width
        if width < now:
            surgeon.narrow(space, sorted(ranks[space][:width]))
        elif width > now:
            surgeon.widen(space, width - now)
    return surgeon.model


def check(network: nn.Module, shape: Sequence[int], planned: Cost, budget: Budget) -> str:
    """Whether all counters see on the network what was planned, and hold it to be within the budget."""
    try:
        counted = measure(network, shape)  # ours, torch's and thop's, which must agree
    except CompressError as error:
        return f"failed: {error}"
    if counted != planned:
        return f"failed: planned {planned}, counted {counted}"
    return "equal" if budget.holds(counted) else "failed: over"


def file_of(network: nn.Module, shape: Sequence[int], cost: Cost, budget: Budget, classes: int) -> dict[str, Any]:
    """The ONNX file of a network, with the metadata that a run writes, and what its own counter says."""
    axes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, *shape),), dynamic_shapes=axes, strict=False)
    exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    assert exported is not None
    topics = {
        "base": asdict(cost),
        "budget": [asdict(limit) for limit in budget.limits],
        "claims": {"macs": cost.macs, "params": cost.params, "thop": cost.thop},
        "preprocessing": {"shape": list(shape), "classes": [f"class {number}" for number in range(classes)]},
        "structure": "0" * 64,
        "versions": {"torch": str(torch.__version__)},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx_file.write_sealed(onnx_file.stamp(onnx_file.clean(exported.model_proto), topics), path)
        counted = onnx_file.count_file(path)
    over = counted.macs != cost.macs or bool(counted.unknown) or counted.bytes > budget.limits[0].limit
    return {
        "over": over,
        "macs": [cost.macs, counted.macs],
        "bytes": [budget.limits[0].limit, cost.bytes, counted.bytes],
    }


# ---- the run --------------------------------------------------------------------------------------------------------


def rows_of(net: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model, shape = build(net)
    began = time.process_time()
    graph = survey(model, shape)
    surveyed = time.process_time() - began
    ranks = ranking(model, graph)
    full, base = graph.widths, graph.price.cost(graph.widths)
    budgets = {(unit, share): budget_of(base, unit, share) for unit in args.units for share in SHARES}
    number = 0  # of the plan: with every n-th, all units, shares and alignments have their turn
    for mode in [mode for mode in ("narrow", "grow") if mode in args.modes]:
        for align in ALIGNS:
            for (unit, share), budget in budgets.items():
                row = {"mode": mode, "net": net, "align": align, "unit": unit, "share": share, "survey": surveyed}
                row |= plan(mode, graph, full, budget, align)
                widths = row.pop("widths", None)
                number += 1
                if widths is not None and number % args.check == 0:
                    row["check"] = check(resized(model, graph, ranks, widths), shape, graph.price.cost(widths), budget)
                yield row
    if "file" in args.modes:
        budget = budget_of(base, "B", 0.5)
        row = {"mode": "file", "net": net, "share": 0.5}
        try:
            widths = plan("narrow", graph, full, budget, 1)["widths"]
            network = resized(model, graph, ranks, widths)
            yield row | file_of(network, shape, graph.price.cost(widths), budget, 10 if net in OURS else 1000)
        except Exception as error:  # the exporters raise dozens of kinds
            yield row | {"over": False, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    if "rival" in args.modes and rival.version() is not None:
        fair = {key: budget_of(base, *key) for key in budgets if key[0] in ("params", "MACs", "both")}
        for align in (1, 8):
            yield from rival.compete(net, model, shape, fair, align, args.steps)


def say(row: Mapping[str, Any]) -> str:
    used = "-" if row.get("used") is None else f"{row['used']:.3%}"
    what = " ".join(str(row[key]) for key in ("mode", "net", "align", "unit", "share", "way") if key in row)
    flags = " ".join(str(row[key]) for key in ("why", "check", "error", "bytes") if row.get(key))
    return f"{what}: {used} {'OVER ' * row.get('over', False)}{flags}".rstrip()


def main() -> None:
    modes = ("narrow", "grow", "file", "rival")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=NETS, choices=NETS, metavar="NET")
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=list(UNITS))
    parser.add_argument("--modes", nargs="+", default=list(modes), choices=modes)
    parser.add_argument("--check", type=int, default=4, help="check every n-th plan on the network itself; 1: each")
    parser.add_argument("--steps", type=int, default=None, help="of Torch-Pruning's loop; without it 100 or fewer")
    parser.add_argument("--rows", type=Path, default=None, help="keep finished rows in this file, and add to them")
    parser.add_argument("--out", type=Path, default=None, help="write the tables here (Markdown)")
    args = parser.parse_args()
    if "rival" in args.modes and rival.version() is None:
        print(rival.INSTALL, file=sys.stderr)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows and args.rows.exists() else []
    done = {(row["net"], row["mode"]) for row in rows}
    asked = args.modes
    for net in args.nets:
        args.modes = [m for m in asked if (net, rival.title(args.steps) if m == "rival" else m) not in done]
        fresh = []
        for row in rows_of(net, args) if args.modes else ():
            print(say(row), flush=True)
            fresh.append(row)
        rows += fresh
        if args.rows and fresh:
            with args.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
    command = f"python benchmarks/landing.py --check {args.check}"
    text = tables(
        sorted(rows, key=lambda row: NETS.index(row["net"])),
        machine(f"Torch-Pruning {rival.version() or '-'}") + ".",
        command,
    )
    if args.out is not None:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
