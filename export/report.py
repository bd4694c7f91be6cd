"""What a run tells: report.json for machines (`report_schema`), report.md for people. No torch.

Accuracies, shares and utilisations are fractions of 1; params, MACs and bytes are exact integers. `FLOPs` are one per
multiply-accumulate, by thop's total (batch norm and pooling included) or by our MACs, whichever is more. No file names
a path of the machine: of an absolute path only its last part is kept.
"""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from compress.budget.limits import Cost
from compress.budget.units import MEMORY, percent, score, show, span
from compress.errors import ArtifactError
from compress.export.report_schema import PACKAGES, SCHEMA_VERSION

_ABSOLUTE = re.compile(r"""(?<![\w.:/~)])(?:[A-Za-z]:[\\/]|[\\/]{1,2})(?:[^\s'",;:\\/]+[\\/])*([^\s'",;:\\/]+)""")
_COUNTERS = {
    "params": "parameters",
    "MACs": "our count",
    "FLOPs": "thop, or our MACs if more",
    "FLOPs@2": "twice our MACs",
    "B": "model.onnx",
    MEMORY: "torch's order, or model.onnx's if more",
}
PICTURE = "history.svg"  # of a run's history, beside its report; `picture.draw` draws it
_EQUAL = {True: "yes", False: "NO", None: "-"}
_ROUNDS, _COLUMNS, _SPACES, _NOTES = 5, 8, 8, 2  # of the tables in report.md; report.json holds everything


def build(
    *,
    budget: Sequence[Mapping[str, Any]],
    cost: Cost,
    base: Cost,
    val: float,
    test: float | None,
    metric: str = "top-1",
    required: float | None,
    train_cost: Mapping[str, Any] | None,
    drift: float,
    parity: Mapping[str, Mapping[str, Any]],
    preprocessing: Mapping[str, Any],
    spaces: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, int],
    data: Mapping[str, Any],
    environment: Mapping[str, Any],
    command: str,
    seconds: float,
    resumed_from: int | None = None,
    notes: Sequence[str] = (),
    steps: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Put a report together, with its verdict and without any path of the machine; `SCHEMA` says what is in it.

    `budget` holds the rows of `Budget.rows`, those of latencies with what was measured; `cost` and `base` the compact
    and the full model, `val` and `test` top-1 accuracies, or scores by another `metric` (`test` None without a test
    set), `required` what the recipe asks of `val`, `drift` the largest difference of masked and compact outputs,
    `parity` what `artifact.write` found, `history` one row a round, `notes` sentences (thop's known errors among them),
    `steps` one row for each method of the recipe: {method, share, steps, macs_images, cost, val}, of which `share` is
    what it aimed at as a share of the budget (None: nothing else than the budget), `steps` and `macs_images` what it
    trained, `cost` (params, macs, thop) and `val` the network that it left.

    Raises ArtifactError naming the place where a number is NaN or infinite, or where a value is not plain.
    """
    hard = [row for row in budget if row["level"] == "error"]
    tightest = max((row for row in hard if "runs" not in row), key=lambda row: row["utilisation"])
    missed = required is not None and val < required
    over = [row for row in hard if not row["pass"]]
    told = [_row_sentence(row) for row in over]
    if missed:
        told.append(f"validation accuracy {score(val, metric)} is below the required {score(required or 0, metric)}")
    if not over:
        told.append(("the budget holds: " if missed else "") + _row_sentence(tightest))
    report = {
        "schema_version": SCHEMA_VERSION,
        "verdict": {
            "code": int(bool(over or missed)),
            "text": f"{'not kept' if over or missed else 'kept'}: {'; '.join(told)}",
        },
        "budget": list(budget),
        "landing": {
            "unit": tightest["unit"],
            "utilisation": tightest["utilisation"],
            "left": tightest["limit"] - tightest["value"],
        },
        "cost": asdict(cost),
        "base": asdict(base),
        "accuracy": {"metric": metric, "val": val, "test": test, "required": required},
        "train_cost": train_cost,
        "drift": drift,
        "parity": parity,
        "preprocessing": preprocessing,
        "spaces": list(spaces),
        "steps": list(steps),
        "history": list(history),
        "seeds": seeds,
        "data": data,
        "environment": environment,
        "command": command,
        "resumed_from": resumed_from,
        "seconds": seconds,
        "notes": list(notes),
    }
    plain: dict[str, Any] = _plain(report, "report")
    return plain


def train_cost(
    macs_images: int, images: int, *, base: Cost, train_images: int, epochs: float, name: str | None
) -> dict[str, Any]:
    """Return what training cost, beside a baseline: the full model trained on `train_images` for `epochs`.

    `macs_images` is the sum over all training images of the MACs of the network that they went through; backward passes
    cancel in the share (AdeNeL, section 4).
    """
    whole = base.macs * train_images * epochs
    baseline = {"name": name, "epochs": epochs, "train_images": train_images, "macs_images": round(whole)}
    return {"macs_images": macs_images, "images": images, "share": macs_images / whole, "baseline": baseline}


def environment(*, device: str, threads: int) -> dict[str, Any]:
    """Return what the figures depend on: versions, the processor's name, threads and device. Imports no package."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions, "cpu": processor(), "threads": threads, "device": device}


def save(folder: Path | str, report: Mapping[str, Any]) -> None:
    """Write report.json (sorted keys) and report.md, which shows the picture that lies in the folder, if one does.

    Raises ArtifactError on NaN and infinity.
    """
    plain = _plain(report, "report")
    text = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    Path(folder, "report.json").write_text(text + "\n", encoding="utf-8")
    picture = PICTURE if Path(folder, PICTURE).is_file() else None
    Path(folder, "report.md").write_text(markdown(plain, picture), encoding="utf-8")


def portable(text: str) -> str:
    """Return the text with every absolute path cut to its last part: "--out /home/me/x" becomes "--out x"."""
    return _ABSOLUTE.sub(r"\1", text)


def markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the report for people, at most 70 lines: the verdict first, units and counters at every figure.

    `picture` names a file beside it.
    """
    cost, base, accuracy, spent = (report[key] for key in ("cost", "base", "accuracy", "train_cost"))
    verdict = report["verdict"]["text"]
    lines = [f"# {verdict[:1].upper()}{verdict[1:]}.", ""]
    lines += _table(
        ["limit", "value", "counter", "used", "kept", "level"],
        [
            [
                r["text"],
                _exact(r["value"], r["unit"]),
                _counter(r),
                percent(r["utilisation"]),
                "yes" if r["pass"] else "NO",
                r["level"],
            ]
            for r in report["budget"]
        ],
    )
    costs = [
        ("params", "params"),
        ("MACs, our count", "macs"),
        ("FLOPs, thop's total", "thop"),
        ("bytes of model.onnx", "bytes"),
        ("peak activation memory, bytes in float32", "memory"),
    ]
    lines += ["", "One input, batch 1:", ""]
    lines += _table(
        ["counter", "compact", "full model", "share"],
        [
            [name, f"{cost[key]:,}", f"{base[key]:,}", percent(cost[key] / base[key]) if base[key] else "-"]
            for name, key in costs
        ],
    )
    val, test, required = (score(accuracy[key], accuracy["metric"]) for key in ("val", "test", "required"))
    lines += [
        "",
        f"- accuracy ({accuracy['metric']}): validation {val}{required and f' (required: {required})'}, "
        + (f"test {test}" if test else "no test set"),
        f"- training: {_spent(spent)}",
        f"- masked against compact network: largest difference {report['drift']:.1e}",
        "",
    ]
    lines += _table(
        ["file, run in a process of its own", "bytes", "images", "top-1 equal", "largest difference"],
        [
            [
                name,
                f"{c['bytes']:,}",
                str(c["images"]),
                _EQUAL[c["top1_equal"]],
                f"{c['max_abs']:.1e}",
            ]
            for name, c in sorted(report["parity"].items())
        ],
    )
    lines += ["", *_widths(report["spaces"])]
    lines += ["", *_steps(report["steps"], accuracy["metric"])] if len(report["steps"]) > 1 else []
    lines += ["", f"![accuracy, cost and shape over the training]({picture})"] if picture else []
    lines += ["", *_history(report["history"])] if report["history"] else []
    data, env = report["data"], report["environment"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data["counts"].items())
    versions = ", ".join(f"{name} {env[name]}" for name in ("python", "torch", "onnx", "onnxruntime", "thop"))
    resumed = "" if report["resumed_from"] is None else f", resumed from step {report['resumed_from']:,}"
    lines += [
        "",
        f"- input of model.onnx: {_prepared(report['preprocessing'])}",
        f"- data: {data['name']} ({counts}); seeds: {', '.join(f'{k} {v}' for k, v in report['seeds'].items())}",
        f"- {versions}; {env['device']}, {env['cpu']}, {threads_of(env)}; {report['seconds']:,.0f} s{resumed}",
        f"- `{report['command']}`",
        *(f"- {note}" for note in report["notes"][:_NOTES]),
        *([f"- and {more} more notes in report.json"] if (more := len(report["notes"]) - _NOTES) > 0 else []),
    ]
    return "\n".join(lines) + "\n"


def threads_of(facts: Mapping[str, Any]) -> str:
    """Return how many threads computed: "1 thread", "2 threads"."""
    return f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"


def _prepared(said: Mapping[str, Any]) -> str:
    shape, *others = (", ".join(map(str, ("N", *of["shape"]))) for of in (said, *said.get("others", [])))
    low, high = said["range"]
    mean, std = (" ".join(f"{x:.4g}" for x in said[key]) for key in ("mean", "std"))
    rest = "normalised inside" if said["baked"] else f"minus mean ({mean}), over std ({std})"
    beside = "".join(f"; x{number}: float32 [{other}]" for number, other in enumerate(others, 2))
    return f"float32 [{shape}], pixels in [{low}, {high}], {rest}{beside}"


def _spent(spent: Mapping[str, Any] | None) -> str:
    if spent is None:
        return "elsewhere, at a cost that is not known here"
    whole = spent["baseline"]
    return (
        f"{percent(spent['share'])} of {whole['name'] or 'the baseline'} "
        f"({spent['macs_images']:.3g} of {whole['macs_images']:.3g} MACs x images; {spent['images']:,} images)"
    )


def _widths(spaces: Sequence[Mapping[str, Any]]) -> list[str]:
    frozen = sum(space["frozen"] is not None for space in spaces)
    shown = spaces if len(spaces) <= _SPACES else [*spaces[: _SPACES // 2], *spaces[-(_SPACES // 2) :]]
    left = "" if len(shown) == len(spaces) else f"; the first and last {_SPACES // 2} here, all in report.json"
    rows = [
        [
            s["name"],
            str(s["width"]),
            str(s["full"]),
            percent(s["width"] / s["full"]) if s["full"] else "new",
            s["frozen"] or "",
        ]
        for s in shown
    ]
    head = f"Widths, in channels ({len(spaces) - frozen} spaces free, {frozen} frozen{left}):"
    return [head, "", *_table(["space", "width", "full", "share", "frozen because"], rows)]


def _steps(steps: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    head = ["method", "aim", "optimizer steps", "MACs x images", "params", "MACs", "thop's total", "validation"]
    rows = [
        [
            step["method"],
            "budget" if step["share"] is None else f"{percent(step['share'])} of it",
            f"{step['steps']:,}",
            f"{step['macs_images']:.3g}",
            *(f"{step['cost'][key]:,}" for key in ("params", "macs", "thop")),
            score(step["val"], metric) or "-",
        ]
        for step in steps
    ]
    return _table(head, rows)


def _history(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a few rounds, evenly spread from the first to the last, in the columns that hold single values.

    The name of the only method makes room for what changes.
    """
    last = len(rounds) - 1
    shown = [rounds[i] for i in sorted({round(k * last / (_ROUNDS - 1)) for k in range(_ROUNDS)})]
    single = [key for row in shown for key, value in row.items() if not isinstance(value, Mapping | list)]
    several = len({row.get("method") for row in shown}) > 1
    columns = [key for key in dict.fromkeys(single) if several or key != "method"][:_COLUMNS]
    rows = [[_cell(row.get(column)) for column in columns] for row in shown]
    return [f"{len(shown)} of {len(rounds)} lines of history:", "", *_table(columns, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return an aligned table: the first column to the left, the others to the right."""
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]  # a bar would end the cell
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (n + 1) + (":" if i else "-") for i, n in enumerate(widths)) + "|"
    return [line(head), rule, *map(line, rows)]


def _row_sentence(row: Mapping[str, Any]) -> str:
    return f"{_exact(row['value'], row['unit'])} of {row['text']} ({percent(row['utilisation'])})"


def _counter(row: Mapping[str, Any]) -> str:
    if "runs" not in row:
        return _COUNTERS[row["unit"]]
    return f"median of {row['runs']:,} runs, 80 % within {span(row['spread'], row['unit'])}"


def _exact(value: int, unit: str) -> str:
    return f"{value:,} {unit}" if value < 10_000 else f"{show(value, unit)} ({value:,})"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _plain(value: Any, where: str) -> Any:
    """Return the value as JSON knows it, without absolute paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, str):
        return portable(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ArtifactError(f"{where} is {value!r}; a report holds finite numbers, text, lists and tables only.")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
