"""A plan and a finished run, as lines that people read and as plain values.

Lines come back in order, the verdict first; costs are exact counts, shares fractions of 1.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.budget.units import MEMORY, percent, show, show_score, span
from compress.console import table
from compress.export.curve import CURVE

if TYPE_CHECKING:
    from compress._cut import Cut
    from compress._plan import Plan
    from compress.budget.limits import Cost
    from compress.export.comparison import Comparison
    from compress.export.curve import Point
    from compress.export.report import Report, Row, TrainCost
    from compress.reading.graph import Graph

_COUNTERS = {
    "params": "params",
    "MACs": "MACs, our count",
    "FLOPs": "FLOPs, thop's total or our MACs if more",
    "FLOPs@2": "FLOPs@2, twice our MACs",
    "B": "bytes of model.onnx",
    MEMORY: "bytes of activations at their peak",
}


def plan_lines(plan: "Plan") -> list[str]:
    """Say a plan: the verdict, every space, what is free, and what the full, first and smallest network cost."""
    plain, nets, heads = plan_json(plan), _nets(plan), _heads(plan)
    spaces = [
        [s["name"], *(str(s[net]) for net in nets), f"frozen: {s['frozen']}" if s["frozen"] else _free(s["remark"])]
        for s in plain["spaces"]
    ]
    costs = [[counter, *(f"{net.of(unit):,}" for net in nets.values())] for unit, counter in _COUNTERS.items()]
    limits = [
        [row["text"], f"{row['limit']:,} {row['unit']}", *_used(row, nets), row["level"]] for row in plain["budget"]
    ]
    right = tuple(range(1, len(heads) + 1))
    return [
        plain["verdict"],
        "",
        *_depths(plain["stages"]),
        *table(["width of", *heads, ""], spaces, right=right),
        "",
        f"free: {percent(plain['free']['params'])} of the params and {percent(plain['free']['macs'])} of the MACs",
        *(f"note: {note}" for note in (*plain["notes"], *filter(None, [plain["advice"]]))),
        "",
        *table(["one input, batch 1", *heads], costs, right=right),
        "",
        *table(["limit", "at most", *heads, "level"], limits, right=(1, *(at + 1 for at in right))),
    ]


def _depths(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [[stage["name"], *(str(stage[net]) for net in ("base", "seed", "floor"))] for stage in stages]
    return [*table(["blocks of", "full (base)", "seed", "floor"], rows, right=(1, 2, 3)), ""] if rows else []


def plan_json(plan: "Plan") -> dict[str, Any]:
    """Say a plan in plain values; shares are fractions of 1, costs exact counts."""
    graph, nets, remarks, landing = plan.graph, _nets(plan), plan.remarks, plan.landing
    least = graph.price.cost(dict.fromkeys(graph.free, 0))  # what stays when every free channel is gone
    return {
        "verdict": plan.verdict(),
        "feasible": plan.feasible,
        "spaces": [
            {
                "name": name,
                "base": s.width,
                "seed": _width(plan.first, name),
                "floor": _width(plan.smallest, name),
                "landing": (landing or {}).get(name, s.width),
                "frozen": s.frozen,
                "remark": remarks.get(name),
            }
            for name, s in graph.spaces.items()
        ],
        "stages": [
            {"name": name, "base": full, "seed": seed, "floor": floor}
            for name, (full, seed, floor) in plan.depths.items()
        ],
        "free": {
            "params": 1 - least.params / max(plan.base.params, 1),
            "macs": 1 - least.macs / max(plan.base.macs, 1),
        },
        "cost": {name: {unit: net.of(unit) for unit in _COUNTERS} for name, net in nets.items()},
        "budget": [
            {
                "text": limit.text,
                "unit": limit.unit,
                "limit": limit.limit,
                "level": limit.level,
                "used": {
                    name: None if limit in plan.budget.latencies else net.of(limit.unit) / limit.limit
                    for name, net in nets.items()
                },
            }
            for limit in plan.budget.limits
        ],
        "notes": [*graph.notes, *filter(None, [plan.outgrows])],
        "advice": plan.advice,
    }


def result_lines(folder: Path, report: "Report") -> list[str]:
    """Say what a run left: the verdict, every limit, accuracy, cost of training, files, and how to guard them."""
    rows = [
        [row.text, f"{row.value:,}", f"{row.limit:,}", percent(row.utilisation), _word(row), _counter(row)]
        for row in report.budget
    ]
    accuracy, spent, metric = report.accuracy, report.train_cost, report.accuracy.metric
    val, test, required = accuracy.words("val"), accuracy.words("test"), accuracy.words("required")
    limits = ", ".join(row.text for row in report.budget if row.level == "error")
    guard = ["compress", "verify", str(folder / "model.onnx"), "--budget", limits]
    guard += [f"--uncounted={name}" for name in report.uncounted]
    steps = [
        [s.method, f"{s.steps:,}", show(s.cost.macs, "MACs"), show(s.cost.params, "params"), show_score(s.val, metric)]
        for s in report.steps
    ]
    return [
        report.verdict.text,
        *table(["limit", "value", "at most", "used", "", "counter"], rows, right=(1, 2, 3)),
        *(table(["method", "steps", "MACs", "params", "val"], steps, right=(1, 2, 3, 4)) if len(steps) > 1 else []),
        f"accuracy: validation {val}{required and f' (required {required})'}, "
        + (f"test {test}" if test else "no test images"),
        *(
            [f"training: {percent(spent.share)} of {spent.baseline.name}{_taught(spent)}"]
            if spent and spent.images
            else []
        ),
        f"files: {', '.join(str(path) for path in sorted(folder.iterdir()))}",
        f"guard it in CI: {shlex.join(guard)}",
    ]


def cut_lines(made: "Cut") -> list[str]:
    """Say what came of fitting a run's network to other budgets: every size with its scores, and what it cost."""
    rows = [
        [one.name, f"{one.size:,}", *(show_score(score, made.metric) for score in (one.val, one.test)), place]
        for one, place in [(made.end, ""), *((point, _folder(made, point)) for point in made.points)]
    ]
    spent = "" if made.spent is None else f", for {percent(made.spent)} of what the run itself cost"
    return [
        f"{len(made.reports)} written into {made.folder}{spent}",
        *table(["network", made.unit, "val", "test", ""], rows, right=(1, 2, 3)),
        f"accuracy against size: {made.folder / CURVE}",
    ]


def compared_lines(made: "Comparison") -> list[str]:
    """Say what came of a comparison: every method within every budget, and where the rest is."""
    from compress.export.comparison import HEAD, cells

    right = tuple(range(2, len(HEAD)))
    failed = [f"not there: {name} ({why})" for name, why in made.failed]
    return [*table(list(HEAD), cells(made), right=right), *failed]


def cut_json(made: "Cut") -> dict[str, Any]:
    """Say the same in plain values."""
    points = [point._asdict() for point in (made.end, *made.points)]
    folders = {name: str(made.folder / name) for name in made.reports}
    shared = {"folder": str(made.folder), "unit": made.unit, "metric": made.metric, "spent": made.spent}
    return {**shared, "points": points, "folders": folders}


def _folder(made: "Cut", point: "Point") -> str:
    """Where a network is, or that it was only tried."""
    report = made.reports.get(point.name)
    return "tried" if report is None else f"{made.folder / point.name}{'' if report.verdict.code == 0 else ' NOT KEPT'}"


def _width(graph: "Graph", name: str) -> int:
    """How many channels a space has in a graph; 0 where it is gone."""
    return graph.spaces[name].width if name in graph.spaces else 0


def _free(remark: str | None) -> str:
    return f"free; {remark}" if remark else "free"


def _nets(plan: "Plan") -> dict[str, "Cost"]:
    nets, landing = {"base": plan.base, "seed": plan.seed, "floor": plan.floor}, plan.landing
    return nets if landing is None else nets | {"landing": plan.graph.price.cost(landing)}


def _heads(plan: "Plan") -> list[str]:
    return ["full (base)", "seed", "floor", *["landing"] * (plan.landing is not None)]


def _used(row: Mapping[str, Any], nets: Mapping[str, "Cost"]) -> list[str]:
    shares = [row["used"][net] for net in nets]
    return ["measured" if share is None else percent(share) for share in shares]


def _taught(spent: "TrainCost") -> str:
    return f", {spent.teacher.in_words()}" if spent.teacher else ""


def _counter(row: "Row") -> str:
    from compress.export.report import TimedRow

    if isinstance(row, TimedRow):
        return f"ns, median of {row.runs:,} runs; 80 % took {span(row.spread, row.unit)}"
    return _COUNTERS[row.unit]


def _word(row: "Row") -> str:
    return "kept" if row.kept else "OVER" if row.broken else "over, a warning"
