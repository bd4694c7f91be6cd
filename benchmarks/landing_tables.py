"""The rows of landing.py as Markdown: the claims first, then Torch-Pruning beside them, then every figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rival import INSTALL, WAYS

Row = Mapping[str, Any]
MODES = {"narrow": "narrowing", "grow": "growing"}
HEAD = """# How near to a budget a plan lands

Budgets of 20, 35, 50, 70 and 90 % of each full net's own count. Narrowing: from one channel (or one aligned block) a
space to the full widths at most; the channels with the largest weight norm stay. Growing: from a seed of 8 channels, in
proportion. MACs are exact; FLOPs are the larger of thop's total and our MACs; "both" is params and MACs, of which the
tightest counts; B is the size of model.onnx, predicted, and an upper bound where torch stores less.
`used` is cost over limit in %, rounded down. Nothing here is trained: widths decide, weights are random.
"""
NOTES = """- *over*: by our count of the plan. What the network itself and its file say follows below.
- *infeasible*: the start alone is over the budget (what the graph keeps frozen, and one aligned block a space).
- *cannot*: under the claim of 99.5 % (any width) or 97 % (aligned to 8), and proved to be unavoidable: every space is
  at its cap, or all widths that the caps allow were tried one by one. *missed* is under the claim without such a proof.
- *s*: processor seconds of the slowest plan, reading the network (survey) and landing together.
"""
RIVAL = """It has no budget. Its loop (`while count > target: pruner.step()`, as in its own benchmark, with the group
magnitude importance of its README) is stopped by its own counter, as a user would, or by our exact counts; its README's
ratio rule prunes once by 1 - sqrt(share). Aligned: its `round_to=8`. Every result is counted by us, `used` is of true
params or MACs. Ours: narrowing, on the same nets and budgets. *none*: it ended, or failed, above the target.
Its counter adds batch norms, activations and pooling to the MACs. The loop has 100 steps or fewer, as the rows say,
and some nets there its own benchmark's 400 beside them.
*s*: processor seconds to the 50 % MACs budget, median over nets, without our counting; ours with reading the network.
"""


def tables(rows: Sequence[Row], facts: str, command: str) -> str:
    """All tables of these rows."""
    parts = [HEAD, _claims(rows), NOTES, _checked(rows), _files(rows)]
    if any(row["mode"] == "rival" for row in rows):
        parts += ["## Torch-Pruning beside it", "", RIVAL, _rival_summary(rows), "", _rival_rows(rows)]
    else:
        parts += ["## Torch-Pruning beside it", "", INSTALL]
    parts += [
        "",
        "## Every landing",
        "",
        "`-` infeasible, `*` cannot: see above. Seconds: survey / slowest landing.",
        "",
    ]
    parts += [_every(rows), "", f"Command: `{command}`", "", facts, ""]
    return "\n".join(parts)


def _table(head: str, lines: Iterable[Sequence[Any]]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|---" * columns + "|", *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def _percent(used: float | None) -> str:
    """Rounded down, so that what is not full never looks full; bold where it is over."""
    if used is None:
        return "-"
    text = f"{math.floor(used * 10_000) / 100:.2f}"
    return f"**{text}**" if used > 1 else text


def _of(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _seen(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows if key in row))


def _under(row: Row) -> bool:
    return row["used"] is not None and row["used"] < {1: 0.995, 8: 0.97}.get(row["align"], 0.0)


def _claims(rows: Sequence[Row]) -> str:
    lines = []
    for mode in MODES:
        for align in _seen(_of(rows, mode=mode), "align"):
            for unit in _seen(_of(rows, mode=mode, align=align), "unit"):
                group = _of(rows, mode=mode, align=align, unit=unit)
                landed = [row for row in group if row["used"] is not None]
                cannot = [row for row in landed if _under(row) and row["why"]]
                rest = [row["used"] for row in landed if row not in cannot]
                lines.append(
                    [
                        MODES[mode],
                        align,
                        unit,
                        len(landed),
                        sum(row["over"] for row in landed),
                        _percent(min(rest, default=None)),
                        _percent(statistics.median(rest) if rest else None),
                        sum(_under(row) and not row["why"] for row in landed),
                        f"{len(cannot)} (to {_percent(min(row['used'] for row in cannot))})" if cannot else 0,
                        len(group) - len(landed),
                        f"{max(row['survey'] + row['seconds'] for row in group):.1f}",
                    ]
                )
    nets = len(_seen([row for row in rows if row["mode"] in MODES], "net"))
    head = "| | align | unit | landed | over | worst used | median | missed | cannot | infeasible | s |"
    return f"{nets} nets. Worst and median are over all landings but those that *cannot*.\n\n{_table(head, lines)}\n"


def _checked(rows: Sequence[Row]) -> str:
    found = [row for row in rows if "check" in row]
    failed = [f"{row['net']} {row['unit']} {row['share']}: {row['check']}" for row in found if row["check"] != "equal"]
    equal = len(found) - len(failed)
    text = (
        f"{len(found):,} of these plans, of all nets, units, budgets and alignments, were applied to the network: "
        f"on {equal:,} params, MACs (ours and torch's) and thop's total are exactly the planned ones."
    )
    return "\n".join([text, *(f"- {line}" for line in failed), ""])


def _files(rows: Sequence[Row]) -> str:
    group = _of(rows, mode="file")
    good = [row for row in group if "error" not in row]
    lines = []
    for row in group:
        if "error" in row:
            lines.append([row["net"], "failed", row["error"].replace("|", "/"), "", ""])
        else:
            limit, planned, size = row["bytes"]
            same = "equal" if row["macs"][0] == row["macs"][1] else f"{row['macs'][0]} planned, {row['macs'][1]}"
            lines.append([row["net"], same, f"{limit:,}", f"{planned:,}", f"{size:,} ({_percent(size / limit)})"])
    over = sum(row["over"] for row in good)
    text = (
        f"Exported: each net once, narrowed to half of its bytes, with a run's metadata. {len(good)} files, {over} "
        "over their limit in bytes or with other MACs than planned, by the file's own counter."
    )
    head = "| net | MACs of the file | limit, B | planned | file (used) |"
    return f"## The files\n\n{text}\n\n{_table(head, lines)}\n"


def _rival_summary(rows: Sequence[Row]) -> str:
    theirs, lines = _of(rows, mode="rival"), []
    ours = {(row["net"], row["align"], row["unit"], row["share"]): row for row in _of(rows, mode="narrow")}
    for align in _seen(theirs, "align"):
        for unit in _seen(_of(theirs, align=align), "unit"):
            group = _of(theirs, align=align, unit=unit)
            ways = {WAYS[way]: _of(group, way=way) for way in WAYS}
            keys = dict.fromkeys((row["net"], align, unit, row["share"]) for row in group)
            mine = [{**ours[key], "seconds": ours[key]["seconds"] + ours[key]["survey"]} for key in keys if key in ours]
            for name, found in {"ours": mine, **ways}.items():
                used = [row["used"] for row in found if row["used"] is not None]
                if not used:
                    continue
                lines.append(
                    [
                        align,
                        unit,
                        name,
                        len(used),
                        sum(row["over"] for row in found),
                        *map(_percent, (min(used), statistics.median(used), max(used))),
                        len(found) - len(used),
                        _seconds(found),
                    ]
                )
    failed = {f"- {row['net']}: Torch-Pruning fails in {row['error']}" for row in theirs if "error" in row}
    missing = [net for net in _seen(_of(rows, mode="narrow"), "net") if net not in _seen(theirs, "net")]
    failed |= {f"- Not run: {', '.join(missing)}."} if missing else set()
    if any("used" in row and "seconds" not in row for row in rows):
        failed.add("- Where a row has no seconds, its run was cut off, and what it had printed stands here.")
    head = "| align | unit | | results | over | least used | median | most | none | s |"
    return "\n".join([_table(head, lines), "", *sorted(failed)])


def _seconds(rows: Sequence[Row]) -> str:
    half = [row["seconds"] for row in _of(rows, share=0.5, unit="MACs") if row["used"] and "seconds" in row]
    return f"{statistics.median(half):.1f}" if half else ""


def _rival_rows(rows: Sequence[Row]) -> str:
    theirs, lines = [row for row in rows if row["mode"].startswith("rival") and "error" not in row], []
    for net in _seen(theirs, "net"):
        for mode, align in sorted({(row["mode"], row["align"]) for row in _of(theirs, net=net)}):
            group = _of(theirs, net=net, align=align, mode=mode)
            for way in WAYS if mode == "rival" else ("own", "true"):
                cells = [_shares(_of(group, way=way, unit=unit)) for unit in ("params", "MACs", "both")]
                steps = "" if way == "rule" else group[0]["steps"]
                half = _seconds(_of(group, way=way))
                lines.append([net, align, WAYS[way], steps, *cells, half])
    head = "| net | align | | steps | params 20, 35, 50, 70, 90 % | MACs | both | s |"
    return _table(head, lines)


def _shares(group: Sequence[Row]) -> str:
    return " ".join(_percent(row["used"]) + "*" * bool(_under(row) and row.get("why")) for row in group)


def _every(rows: Sequence[Row]) -> str:
    lines = []
    for mode in MODES:
        for net in _seen(_of(rows, mode=mode), "net"):
            for unit in _seen(_of(rows, mode=mode, net=net), "unit"):
                group = _of(rows, mode=mode, net=net, unit=unit)
                cells = [_shares(_of(group, align=align)) for align in (1, 8, 16)]
                slowest = max(row["seconds"] for row in group)
                lines.append([MODES[mode], net, unit, *cells, f"{group[0]['survey']:.1f} / {slowest:.2f}"])
    return _table("| | net | unit | any width: 20, 35, 50, 70, 90 % | aligned to 8 | to 16 | s |", lines)
