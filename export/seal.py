"""What model.onnx seals of its run, beside its own bytes: the limits, what was reached, the origin, the other files.

    compress.budget   every limit: unit, limit, text, level
    compress.sealed   {"accuracy": {"required", "test", "val"},
                       "files": {name: SHA-256 of model.safetensors, model.pt2, model.py, recipe.yaml},
                       "origin": fingerprint of what report.json tells of how the network came to be}

All of it is equal in equal runs, and none of it longer than `compress.reading.count.SEAL_BYTES`, which a budget in
bytes holds free. The last entry of the file, a digest of every byte before it, keeps it together.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.budget.limits import LEVELS, Budget, Limit
from compress.budget.units import LARGEST, UNITS
from compress.errors import ArtifactError, UsageError
from compress.export.canonical import fingerprint

MODEL, REPORT, SIGNATURES = "model.onnx", "report.json", "signatures.json"
SEALED = ("model.pt2", "model.py", "model.safetensors", "recipe.yaml")  # by model.onnx, those that there are
FILES = (MODEL, *SEALED, "report.md", "history.svg")  # whose digests report.json holds, and those of:
STATES = "states"
STATE = STATES + r"/(0|[1-9][0-9]{0,18})\.safetensors"  # a network on its way, after so many optimizer steps
TIMED = "ns@onnxruntime-cpu/[1-9][0-9]{0,2}"  # units of time, as limits and rows have them
SCORES = ("required", "test", "val")
LARGEST_NUMBER = -1.7976931348623157e308  # no other takes more characters
LONGEST = {  # of what is sealed
    "accuracy": dict.fromkeys(SCORES, LARGEST_NUMBER),
    "files": dict.fromkeys(SEALED, "0" * 64),
    "origin": "0" * 64,
}
ORIGIN = ("code", "data", "drift", "history", "seeds", "spaces", "steps", "train_cost")  # keys of report.json


def state_file(step: int) -> str:
    """Return the name of the file in a run's folder that holds what the network was after so many optimizer steps."""
    return f"{STATES}/{step}.safetensors"


def files_in(folder: Path) -> list[str]:
    """Return the names of a run's files that lie in a folder, without report.json, which holds their digests."""
    states = sorted(f"{STATES}/{path.name}" for path in folder.glob(f"{STATES}/*"))
    names = [*FILES, *(name for name in states if re.fullmatch(STATE, name))]
    return [name for name in names if (folder / name).is_file()]


def facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what model.onnx seals of a report, given as JSON knows it: its scores, and one digest of its origin."""
    accuracy = report["accuracy"]
    origin = {key: report[key] for key in ORIGIN if key in report} | {"metric": accuracy["metric"]}
    origin |= {"better": "smaller"} if accuracy.get("better") == "smaller" else {}
    return {"accuracy": {key: accuracy[key] for key in SCORES}, "origin": fingerprint(origin)}


def sealed_limits(path: Path, topics: Mapping[str, Any]) -> Budget:
    """Return the limits that a file names as its own; `topics` is its metadata.

    They are the file's word: who can make a file can write any limits into it. Raises UsageError where it names none,
    ArtifactError where they are no limits.
    """
    if "budget" not in topics:
        raise UsageError(f"{path}: names no limits of its own; say which budget it must keep, such as '43MFLOPs'.")
    rows = topics["budget"]
    whole = isinstance(rows, list) and all(isinstance(row, dict) and _is_limit(row) for row in rows)
    if not (whole and any(row["level"] == "error" for row in rows)):
        raise ArtifactError(f"{path}: its metadata holds no limits, but {repr(rows)[:80]}.")
    return Budget(tuple(Limit(**row) for row in rows))


def _is_limit(row: Mapping[str, Any]) -> bool:
    if row.keys() != {"unit", "limit", "text", "level"}:
        return False
    unit, most = row["unit"], row["limit"]
    known = isinstance(unit, str) and (unit in UNITS or re.fullmatch(TIMED, unit) is not None)
    counted = type(most) is int and 1 <= most <= LARGEST
    return known and counted and isinstance(row["text"], str) and row["level"] in LEVELS
