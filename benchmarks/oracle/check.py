"""Ask `compress verify` about every file of the oracle set, and show where it disagrees with what was known before.

    python benchmarks/oracle/make.py FOLDER && python benchmarks/oracle/check.py FOLDER

A count n is right where a limit of n is kept (0) and a limit of n - 1 is not (1). Exits with 1 if any row disagrees.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from compress.export.verify import verify

KEY = {"MACs": "macs", "params": "params"}


def asked(path: Path, limit: str, shape: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the exit code and the words of one verdict, without the file's own name."""
    try:
        verdict = verify(path, limit, shape=shape) if shape else verify(path, limit)
    except Exception as error:  # a question refused, or our own fault: either way it is no verdict
        return getattr(error, "exit_code", 70), f"{type(error).__name__}: {error}".replace(str(path), "")
    return verdict.code, " ".join(verdict.lines).replace(str(path), "").replace(path.name, "")


def refusal(path: Path, unit: str, name: str) -> str:
    """Say what is wrong with the refusal of a limit that nothing could exceed; nothing, if it names what it must."""
    code, words = asked(path, f"{10**15}{unit}")
    if code == 4 and re.search(name, words):
        return ""
    return f"must be refused naming {name}, is {code}: {words[:200]}"


def count(path: Path, unit: str, right: int, shape: tuple[str, ...]) -> str:
    """Say what is wrong with a count; nothing, if it is exactly `right`."""
    wrong = []
    for limit, code in ((right, 0), (right - 1, 1)):
        if limit > 0:
            got, words = asked(path, f"{limit}{unit}", shape)
            wrong += [f"{limit:,} {unit} must be {code}, is {got}: {words[:200]}"] * (got != code)
    return "; ".join(wrong)


def answers(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """Return what was asked about a file, and what is wrong with each answer: nothing, if it is right."""
    path, refused, either = folder / row["file"], row.get("refused", {}), row.get("either", {})
    shape = tuple(row.get("shape", ()))
    found = {}
    for unit, key in KEY.items():
        if unit in refused:
            found[f"{unit} refused"] = refusal(path, unit, refused[unit])
        given = shape if unit == "MACs" else ()
        if row[key] is not None and (unit not in refused or given):
            wrong = [count(path, unit, right, given) for right in (row[key], *row.get("also", {}).get(unit, ()))]
            named = "" not in wrong and unit in either and not refusal(path, unit, either[unit])
            found[f"{unit} refused instead" if named else unit] = "" if named or "" in wrong else wrong[0]
        if unit in row.get("never", {}):
            code, words = asked(path, f"{row['never'][unit]}{unit}")
            found[f"{unit} never"] = (
                "" if code in (1, 4) else f"more than that is in it, and it is {code}: {words[:200]}"
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--truth", type=Path, default=Path(__file__).with_name("truth.json"))
    options = parser.parse_args()
    rows = json.loads(options.truth.read_text())
    right = questions = files = 0
    for row in rows:
        if not (options.folder / row["file"]).exists():
            print(f"absent   {row['file']}")
            continue
        found = answers(options.folder, row)
        wrong = {asked: text for asked, text in found.items() if text}
        files, questions, right = files + 1, questions + len(found), right + len(found) - len(wrong)
        print(f"{'WRONG' if wrong else 'right':8} {row['file']} ({', '.join(found)})")
        for name, text in wrong.items():
            print(f"           {name}: {text} [{row['how']}]")
    print(f"{files} of {len(rows)} files, {questions} questions, {right} right, {questions - right} wrong")
    return int(right < questions or not files)


if __name__ == "__main__":
    sys.exit(main())
