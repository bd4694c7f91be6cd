"""The page of `accuracy.py`: for each budget, its arms in a table, and what differs from the control, seed by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

CONTROL = "scratch"
Row = Mapping[str, Any]


def page(
    rows: Sequence[Row], arms: Mapping[str, Sequence[str]], seeds: Sequence[int], costs: Mapping[str, float]
) -> str:
    """The tables of all rows. What is missing of a budget's arms and these seeds is said."""
    lines = []
    for budget, its in arms.items():
        mine: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in rows:
            if row["budget"] == budget:
                mine[row["arm"]][row["seed"]] = row
        lines += [f"## Within {budget}, {costs[budget]:.1e} MACs x images", "", *_table(mine), ""]
        absent = [
            f"{arm} ({len(seeds) - len(of)} of {len(seeds)})"
            for arm in its
            if len(of := mine.get(arm, {})) < len(seeds)
        ]
        lines += [f"Not run yet: {'; '.join(absent)}." if absent else "Every arm was run with every seed.", ""]
    head = (
        "Every row of a table has its train-cost, forward, or less by one step. ± is the standard deviation over\n"
        "seeds; the difference is paired, seed by seed, with its standard error."
    )
    return "\n".join([head, "", *lines])


def _table(mine: Mapping[str, Mapping[int, Row]]) -> list[str]:
    lines = [
        f"| arm | seeds | validation, % | test, % | against {CONTROL} | MMACs | Mparams | CPU s | widths, seed 0 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(mine, key=lambda arm: -statistics.mean(row["val"] for row in mine[arm].values())):
        of = mine[arm]
        first = of[min(of)]
        lines.append(
            f"| {arm} | {len(of)} | {_spread([100 * row['val'] for row in of.values()])} | "
            f"{_spread([100 * row['test'] for row in of.values()])} | {_against(of, mine.get(CONTROL, {}))} | "
            f"{_mean(of, 'macs') / 1e6:.2f} | {_mean(of, 'params') / 1e6:.3f} | {_mean(of, 'seconds'):.0f} | "
            f"{'-'.join(map(str, first['widths']))} |"
        )
    return lines


def _mean(of: Mapping[int, Row], key: str) -> float:
    return statistics.mean(row[key] for row in of.values())


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _against(of: Mapping[int, Row], control: Mapping[int, Row]) -> str:
    gaps = [100 * (of[seed]["test"] - control[seed]["test"]) for seed in of if seed in control]
    if of == control or not gaps:
        return ""
    error = f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 else ""
    return f"{statistics.mean(gaps):+.2f}{error}"
