"""report.md: a report for people, on one page, and how both files of a report are written. No torch.

The verdict comes first; every figure has its unit and its counter. Of long tables a few rows are shown; report.json
holds them all.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.budget.units import MEMORY, percent, show_score, span
from compress.export.canonical import fingerprint
from compress.export.parts import Environment, HistoryRow, Preprocessing, SpaceRow
from compress.export.picture import PICTURE
from compress.export.report import Report, Row, TimedRow, exactly
from compress.export.seal import REPORT, files_in
from compress.export.verify import digest
from compress.texts import code, inert, inert_line

_COUNTED_BY = {
    "params": "parameters",
    "MACs": "our count",
    "FLOPs": "thop, or our MACs if more",
    "FLOPs@2": "twice our MACs",
    "B": "model.onnx",
    MEMORY: "torch's order, or model.onnx's if more",
}
_COSTS = {
    "params": "params",
    "macs": "MACs, our count",
    "thop": "FLOPs, thop's total",
    "bytes": "bytes of model.onnx",
    "memory": "peak activation memory, bytes in float32",
}
_EQUAL = {True: "yes", False: "NO", None: "-"}
_ROUNDS, _COLUMNS, _SPACES, _NOTES = 5, 8, 8, 2  # of the tables here

Lines = list[str]


def write_report(report: Report, folder: Path | str) -> Report:
    """Write report.md, which shows the picture that lies in the folder, if one does; then report.json (sorted keys),
    which holds the digests of all files that lie there and its own. Return the report with them.
    """
    place = Path(folder)
    picture = PICTURE if (place / PICTURE).is_file() else None
    (place / "report.md").write_text(markdown(report, picture), encoding="utf-8")
    files = {name: digest(place / name) for name in files_in(place)}
    report = report.model_copy(update={"files": files})
    own = fingerprint({key: value for key, value in report.plain().items() if key != "digest"})
    report = report.model_copy(update={"digest": own})
    text = json.dumps(report.plain(), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    (place / REPORT).write_text(text + "\n", encoding="utf-8")
    return report


def markdown(report: Report, picture: str | None = None) -> str:
    """Return the report for people, at most 70 lines. `picture` names a file beside it."""
    verdict = report.verdict.text
    parts = [
        [f"# {inert(verdict[:1].upper() + verdict[1:])}."],
        _limits(report.budget),
        ["One input, batch 1:"],
        _costs(report),
        _gained(report),
        _files(report),
        *_space_table(report.spaces),
        _method_table(report) if len(report.steps) > 1 else [],
        [f"![accuracy, cost and shape over the training]({picture})"] if picture else [],
        *(_rounds(report.history) if report.history else []),
        _made(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


# ---- the parts of it, from top to bottom ----------------------------------------------------------------------------


def _limits(rows: Sequence[Row]) -> Lines:
    cells = [
        [
            row.text,
            exactly(row.value, row.unit),
            _counted_by(row),
            percent(row.utilisation),
            "yes" if row.kept else "NO",
            row.level,
        ]
        for row in rows
    ]
    return _grid(["limit", "value", "counter", "used", "kept", "level"], cells)


def _counted_by(row: Row) -> str:
    if isinstance(row, TimedRow):
        return f"median of {row.runs:,} runs, 80 % within {span(row.spread, row.unit)}"
    return _COUNTED_BY[row.unit]


def _costs(report: Report) -> Lines:
    compact, full = report.cost.plain(), report.base.plain()
    cells = [
        [name, f"{compact[key]:,}", f"{full[key]:,}", percent(compact[key] / full[key]) if full[key] else "-"]
        for key, name in _COSTS.items()
    ]
    return _grid(["counter", "compact", "full model", "share"], cells)


def _gained(report: Report) -> Lines:
    accuracy = report.accuracy
    val, test, required = accuracy.words("val"), accuracy.words("test"), accuracy.words("required")
    return [
        f"- accuracy ({inert(accuracy.metric)}): validation {val}{required and f' (required: {required})'}, "
        + (f"test {test}" if test else "no test set"),
        *_around_a_cut(report),
        f"- training: {_spent(report)}",
        f"- masked against compact network: largest difference {report.drift:.1e}",
    ]


_CUT = {"start": "before", "narrowed": "directly after", "recalibrated": "with batch norms estimated anew"}


def _around_a_cut(report: Report) -> Lines:
    """What a network that was narrowed scored on the way, at its first cut."""
    rows: dict[str, Mapping[str, Any]] = {}
    for row in report.history:
        if row.event in _CUT and row.event not in rows:
            rows[row.event] = row.plain()
    if "narrowed" not in rows:
        return []
    metric = report.accuracy.metric
    said = [
        f"{_CUT[event]} {show_score(row['val'], metric)}"
        + (f" ({show_score(row['test'], metric)})" if row.get("test") is not None else "")
        for event, row in rows.items()
        if row.get("val") is not None
    ]
    return [f"- around the cut, validation (test): {', '.join(said)}"]


def _spent(report: Report) -> str:
    spent = report.train_cost
    if spent is None:
        return "elsewhere, at a cost that is not known here"
    return (
        f"{percent(spent.share)} of {inert(spent.baseline.name or 'the baseline')} "
        f"({spent.macs_images:.3g} of {spent.baseline.macs_images:.3g} MACs x images; {spent.images:,} images"
        + (f"; {inert(spent.teacher.in_words())}" if spent.teacher else "")
        + ")"
    )


def _files(report: Report) -> Lines:
    cells = [
        [name, f"{file.bytes:,}", str(file.images), _EQUAL[file.top1_equal], f"{file.max_abs:.1e}"]
        for name, file in sorted(report.parity.items())
    ]
    return _grid(["file, run in a process of its own", "bytes", "images", "top-1 equal", "largest difference"], cells)


def _space_table(spaces: Sequence[SpaceRow]) -> list[Lines]:
    frozen = sum(space.frozen is not None for space in spaces)
    shown = spaces if len(spaces) <= _SPACES else [*spaces[: _SPACES // 2], *spaces[-(_SPACES // 2) :]]
    left = "" if len(shown) == len(spaces) else f"; the first and last {_SPACES // 2} here, all in report.json"
    cells = [
        [
            space.name,
            str(space.width),
            str(space.full),
            percent(space.width / space.full) if space.full else "new",
            space.frozen or "",
        ]
        for space in shown
    ]
    head = f"Widths, in channels ({len(spaces) - frozen} spaces free, {frozen} frozen{left}):"
    return [[head], _grid(["space", "width", "full", "share", "frozen because"], cells)]


def _method_table(report: Report) -> Lines:
    head = ["method", "aim", "optimizer steps", "MACs x images", "params", "MACs", "thop's total", "validation"]
    cells = [
        [
            step.method,
            "budget" if step.share is None else f"{percent(step.share)} of it",
            f"{step.steps:,}",
            f"{step.macs_images:.3g}",
            *(f"{count:,}" for count in (step.cost.params, step.cost.macs, step.cost.thop)),
            show_score(step.val, report.accuracy.metric) or "-",
        ]
        for step in report.steps
    ]
    return _grid(head, cells)


def _rounds(history: Sequence[HistoryRow]) -> list[Lines]:
    """A few rounds, evenly spread from the first to the last, in the columns that hold single values.

    The name of the only method makes room for what changes.
    """
    last = len(history) - 1
    shown = [history[i].plain() for i in sorted({round(k * last / (_ROUNDS - 1)) for k in range(_ROUNDS)})]
    single = [key for row in shown for key, value in row.items() if not isinstance(value, Mapping | list)]
    several = len({row["method"] for row in shown}) > 1
    columns = [key for key in dict.fromkeys(single) if several or key != "method"][:_COLUMNS]
    cells = [[_cell(row.get(column)) for column in columns] for row in shown]
    return [[f"{len(shown)} of {len(history)} lines of history:"], _grid(columns, cells)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _made(report: Report) -> Lines:
    """How it came to be: input, data, versions, machine, command, and the first notes."""
    data, facts, more = report.data, report.environment, len(report.notes) - _NOTES
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in report.seeds.items())
    resumed = "" if report.resumed_from is None else f", resumed from step {report.resumed_from:,}"
    return [
        f"- input of model.onnx: {_prepared(report.preprocessing)}",
        f"- data: {inert(data.name)} ({inert(counts)}); seeds: {inert(seeds)}",
        f"- {inert(_versions(facts))}; {inert(facts.device)}, {inert(facts.cpu)}, {facts.threads_in_words()}; "
        f"{report.seconds:,.0f} s{resumed}",
        f"- {code(report.command)}",
        *(f"- {inert_line(note)}" for note in report.notes[:_NOTES]),
        *([f"- and {more} more notes in report.json"] if more > 0 else []),
    ]


def _versions(facts: Environment) -> str:
    known = facts.plain()
    return ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "onnx", "onnxruntime", "thop"))


def _prepared(preprocessing: Preprocessing) -> str:
    shapes = (preprocessing.shape, *(other.shape for other in preprocessing.others))
    images, *others = (", ".join(map(str, ("N", *shape))) for shape in shapes)
    pixels = "pixels in [{}, {}], ".format(*preprocessing.range) if preprocessing.range else ""
    if preprocessing.resize:
        pixels = f"resized ({preprocessing.resize}), {pixels}"
    known = {"RGB": "channels red, green, blue (OpenCV reads them the other way round), ", "gray": "gray, "}
    pixels += known.get(preprocessing.colours or "", "")
    mean, std = (" ".join(f"{x:.4g}" for x in numbers) for numbers in (preprocessing.mean, preprocessing.std))
    rest = "normalised inside" if preprocessing.baked else f"minus mean ({mean}), over std ({std})"
    beside = "".join(f"; x{number}: float32 [{other}]" for number, other in enumerate(others, 2))
    return f"float32 [{images}], {pixels}{rest}{beside}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """Return an aligned table: the first column to the left, the others to the right."""
    head, *rows = ([inert(cell) for cell in row] for row in (head, *rows))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (n + 1) + (":" if i else "-") for i, n in enumerate(widths)) + "|"
    return [line(head), rule, *map(line, rows)]
