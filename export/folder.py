"""The check of a whole output folder: model.onnx is counted, and report.json must agree with it and with every file.

What model.onnx seals (see `seal`) cannot be told otherwise by a report, whose digests hold all other files and itself.
Needs onnx and pydantic, never torch.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from compress.budget.units import threads
from compress.errors import ArtifactError, UsageError
from compress.export.canonical import fingerprint
from compress.export.onnx import file as onnx_file
from compress.export.report import Report, document, judged
from compress.export.seal import FILES, MODEL, REPORT, SCORES, SEALED, SIGNATURES, STATES, facts, files_in
from compress.export.verify import Asked, Shapes, Verdict, check_onnx, digest
from compress.texts import visible

SHOWN = 5  # of the files that lie beside ours


def check_folder(path: Path, asked: Asked, shapes: Shapes, uncounted: Collection[str] | None = ()) -> Verdict:
    """Check model.onnx against a budget, and that report.json tells the truth about it and about every other file.

    Raises UsageError for a folder without the two, ArtifactError for a report that is none, or does not agree.
    """
    for name in (MODEL, REPORT):
        if not (path / name).is_file():
            raise UsageError(f"{path}: holds no {name}; give the output folder of a finished run.")
    verdict = check_onnx(path / MODEL, asked, shapes, uncounted)
    if verdict.code not in (0, 1):
        return verdict
    content = document(path / REPORT)
    report = Report.of_file(path / REPORT, content)
    data = (path / MODEL).read_bytes()
    topics = onnx_file.metadata(onnx.load_model_from_string(data))
    lies = [*_lies(path, content, report, topics, len(data)), *_file_lies(path, report, topics, data)]
    if report.uncounted and report.uncounted != (there := check_onnx(path / MODEL, asked, shapes, None).uncounted):
        lies.append(f"operators that it counts as nothing are {', '.join(there) or 'none'} in model.onnx")
    if lies:
        raise ArtifactError(f"{path / REPORT}: does not agree with the files beside it: {'; '.join(lies)}.")
    lines = [*verdict.lines, *_beside(path)]
    if report.accuracy.missed:
        lines.insert(0, f"not kept: {report.accuracy.shortfall}, by the recipe.")
        return replace(verdict, code=1, lines=tuple(lines))
    return replace(verdict, lines=tuple(lines))


def _lies(
    path: Path, content: Mapping[str, Any], report: Report, topics: Mapping[str, Any], size: int
) -> Iterator[str]:
    """Say where a report contradicts itself or what model.onnx seals, in the order of a reader's interest."""
    cost, claims = report.cost.plain(), _table(topics, "claims") | {"bytes": size}
    if claims.get("thop", 0) is None:  # thop is blind to layers of this network: its figure is below the MACs
        claims["thop"] = min(cost["thop"], cost["macs"] - 1)
    for key in sorted(cost):
        if cost[key] != claims.get(key):
            yield f"{key} {cost[key]:,} and in model.onnx {_short(claims.get(key))}"
    if report.base.plain() != topics.get("base"):
        yield "the base model's cost is another one in model.onnx"
    yield from _row_lies(content, report, topics)
    sealed, held = _table(topics, "sealed"), facts(content)
    for key in SCORES:
        score = _table(sealed, "accuracy").get(key, "no score")
        if (ours := held["accuracy"][key]) != score or isinstance(score, bool):
            yield f"accuracy.{key} {_short(ours)} and in model.onnx {_short(score)}"
    if sealed.get("origin") != held["origin"]:
        yield "how the network came to be is not what model.onnx seals"
    if content["preprocessing"] != topics.get("preprocessing"):
        yield "the preprocessing is another one in model.onnx"
    if fingerprint({key: value for key, value in content.items() if key != "digest"}) != report.digest:
        yield "it was changed since it was written (its digest is another one)"


def _row_lies(content: Mapping[str, Any], report: Report, topics: Mapping[str, Any]) -> Iterator[str]:
    """Hold every row against its limit in model.onnx and against the cost, and the verdict against the rows."""
    stated = [{key: row[key] for key in ("unit", "limit", "text", "level")} for row in content["budget"]]
    if stated != topics.get("budget"):
        yield "its limits are not those in model.onnx"
        return
    wrong = False
    for row in report.budget:
        value = row.value if threads(row.unit) else report.cost.cost().of(row.unit)
        if (row.value, row.kept, row.utilisation) != (value, value <= row.limit, value / row.limit):
            wrong = True
            yield f"the row of {row.text!r} says {row.value:,}, {'kept' if row.kept else 'not kept'}"
    if wrong or not any(row.level == "error" and threads(row.unit) is None for row in report.budget):
        return
    outcome, landing = judged(report.budget, report.accuracy)
    if report.verdict != outcome:
        yield f"its verdict is {report.verdict.text!r} ({report.verdict.code}), and its rows say {outcome.text!r}"
    if report.landing != landing:
        yield "its landing is not that of its rows"


def _file_lies(path: Path, report: Report, topics: Mapping[str, Any], data: bytes) -> Iterator[str]:
    """Hold the files on the disk against their digests in report.json, and these against those in model.onnx."""
    sealed, files = _table(_table(topics, "sealed"), "files"), {str(name): held for name, held in report.files.items()}
    for name in SEALED:
        if files.get(name) != sealed.get(name):
            yield f"{name} is not the file that model.onnx seals"
    for name in dict.fromkeys([*FILES, *sorted(files), *files_in(path)]):
        digests = files.get(name)
        if not (path / name).is_file():
            if digests is not None or name == "report.md":
                yield f"{name} is missing"
        elif digests is None:
            yield f"{name} is no file of this run"
        elif (hashlib.sha256(data).hexdigest() if name == MODEL else digest(path / name)) != digests:
            yield f"{name} is not the file that was written"
    models = {name for name in files if name.startswith("model.")}
    if set(report.parity) != models:
        yield f"it compares {', '.join(report.parity) or 'no file'} with the network, not {', '.join(sorted(models))}"
    for name, compared in report.parity.items():
        if (path / name).is_file() and compared.bytes != (path / name).stat().st_size:
            yield f"{name} has another size"


def _beside(path: Path) -> list[str]:
    """Say which files are none of ours: nobody vouches for them, and they change nothing."""
    ours = {*FILES, *files_in(path), REPORT, SIGNATURES, STATES}
    paths = [*path.iterdir(), *(path / STATES).glob("*")]
    names = (one.relative_to(path).as_posix() for one in paths)
    others = sorted(visible(name) for name in names if name not in ours)
    if not others:
        return []
    more = f" and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
    return [f"beside the files of the run, and not checked: {', '.join(others[:SHOWN])}{more}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _table(topics: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What lies under a key, where that is a table."""
    value = topics.get(key)
    return value if isinstance(value, dict) else {}
