"""Methods side by side: what each reached within each budget, over seeds, as JSON, Markdown, a page and a picture.

Differences are paired, seed by seed, with the first method; their p-values are those of Student's paired t-test, two
sides, and are not corrected for how many there are. No torch.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from compress.budget.units import percent, show
from compress.export.panels import COLOURS
from compress.export.picture import save
from compress.texts import inert

if TYPE_CHECKING:  # it takes a second: only who draws imports it
    from matplotlib.figure import Figure

PARETO = "compare.svg"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a comparison."""

    method: str
    budget: str
    seed: int
    val: float
    test: float | None  # None where there are no test images
    size: int  # what the budget's tightest limit counts, in `unit`
    unit: str
    used: float  # of that limit
    kept: bool
    cost: int  # MACs x training images, what came before among it
    seconds: float
    folder: str

    @property
    def score(self) -> float:
        """What methods are compared by: the test score, or that of validation images where there is none."""
        return self.val if self.test is None else self.test


@dataclass(frozen=True, slots=True)
class Mean:
    """A method within a budget: means over its seeds, their standard deviation, and how it differs from the first."""

    method: str
    budget: str
    seeds: int
    val: float
    score: float
    spread: float | None  # standard deviation over seeds; None for one
    size: float
    used: float
    cost: float
    seconds: float
    ahead: float | None  # of the first method, in the mean over the seeds that both have
    error: float | None  # the standard error of that
    p: float | None  # of a paired t-test


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs that there are, and what failed; `stated` is the train-cost that each may have."""

    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    metric: str
    stated: float
    remarks: tuple[str, ...]
    rows: tuple[Ran, ...]
    failed: tuple[tuple[str, str], ...] = ()  # a run, and why
    better: str = "larger"  # or "smaller": which scores are ahead

    @property
    def means(self) -> tuple[Mean, ...]:
        """Every method within every budget, in the order in which they were named."""
        return tuple(self._means())

    def _means(self) -> Iterator[Mean]:
        for budget in self.budgets:
            first = {row.seed: row.score for row in self._of(self.methods[0], budget)}
            for method in self.methods:
                if rows := self._of(method, budget):
                    scores = [row.score for row in rows]
                    sign = -1 if self.better == "smaller" else 1
                    apart = [sign * (row.score - first[row.seed]) for row in rows if row.seed in first]
                    ahead, error, p = _paired(apart) if method != self.methods[0] else (None, None, None)
                    yield Mean(
                        method=method,
                        budget=budget,
                        seeds=len(rows),
                        val=fmean(row.val for row in rows),
                        score=fmean(scores),
                        spread=stdev(scores) if len(scores) > 1 else None,
                        size=fmean(row.size for row in rows),
                        used=fmean(row.used for row in rows),
                        cost=fmean(row.cost for row in rows),
                        seconds=fmean(row.seconds for row in rows),
                        ahead=ahead,
                        error=error,
                        p=p,
                    )

    def _of(self, method: str, budget: str) -> list[Ran]:
        return [row for row in self.rows if (row.method, row.budget) == (method, budget)]

    def plain(self) -> dict[str, Any]:
        """The same in plain values."""
        return {**asdict(self), "means": [asdict(mean) for mean in self.means]}


def _paired(apart: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean of paired differences, its standard error, and the p-value of a t-test; None where they are too few."""
    if not apart:
        return None, None, None
    mean = fmean(apart)
    if len(apart) < 2:
        return mean, None, None
    error = stdev(apart) / math.sqrt(len(apart))
    if error == 0:
        return mean, error, 1.0 if mean == 0 else 0.0
    return mean, error, two_sided(mean / error, len(apart) - 1)


def two_sided(t: float, freedom: int) -> float:
    """How probable Student's t of so many degrees of freedom is to be at least this far from 0.

    The finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        total = 0.0
    for k in range(2 if not odd else 3, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1 - within))


# ---- files ----------------------------------------------------------------------------------------------------------


def write_comparison(made: Comparison, folder: Path) -> None:
    """Write compare.json, compare.md, compare.svg and compare.html into a folder."""
    text = json.dumps(made.plain(), indent=1, sort_keys=True, allow_nan=False)
    (folder / "compare.json").write_text(text + "\n", encoding="utf-8")
    (folder / "compare.md").write_text("\n".join(_markdown(made)), encoding="utf-8")
    draw_pareto(made, folder / PARETO)
    picture = (folder / PARETO).read_text(encoding="utf-8") if made.rows else ""
    (folder / "compare.html").write_text(_page(made, picture[picture.find("<svg") :]), encoding="utf-8")


HEAD = ("budget", "method", "seeds", "validation", "test", "ahead of the first", "p", "used", "train-cost", "seconds")


def cells(made: Comparison) -> list[list[str]]:
    """The table: a row for each method within each budget."""
    return [
        [
            mean.budget,
            mean.method,
            str(mean.seeds),
            _score(mean.val, made.metric),
            _score(mean.score, made.metric) + _spread(mean.spread, made.metric),
            "" if mean.ahead is None else f"{_figure(mean.ahead, made.metric):+}{_spread(mean.error, made.metric)}",
            "" if mean.p is None else f"{mean.p:.2g}",
            percent(mean.used),
            f"{mean.cost:.2e}",
            f"{mean.seconds:,.0f}",
        ]
        for mean in made.means
    ]


def _spread(value: float | None, metric: str) -> str:
    return "" if value is None else f" \u00b1 {_figure(value, metric)}"


def _score(value: float, metric: str) -> str:
    return f"{100 * value:.2f} %" if metric == "top-1" else f"{value:.4g}"


def _figure(value: float, metric: str) -> float:
    return round(100 * value, 2) if metric == "top-1" else float(f"{value:.3g}")


def _notes(made: Comparison) -> list[str]:
    over = sorted({mean.method for mean in made.means if mean.cost > 1.01 * made.stated})
    return [
        f"Each method may spend a train-cost of {made.stated:.3g} MACs x images.",
        *made.remarks,
        *([f"More than that was spent by {', '.join(over)}: growing is not cut short."] if over else []),
        *(f"Not there: {name} ({why})." for name, why in made.failed),
        *(f"Over its budget: {row.folder}." for row in made.rows if not row.kept),
    ]


def _markdown(made: Comparison) -> list[str]:
    rows = [list(HEAD), *cells(made)]
    lines = ["| " + " | ".join(inert(cell) for cell in row) + " |" for row in rows]
    rule = "|" + "---|" * len(HEAD)
    notes = [f"- {inert(note)}" for note in _notes(made)]
    return [
        "# Methods within the same budgets",
        "",
        lines[0],
        rule,
        *lines[1:],
        "",
        *notes,
        "",
        f"![score against size]({PARETO})",
        "",
    ]


def _page(made: Comparison, picture: str) -> str:
    def row(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    body = "\n".join(row(values, "td") for values in cells(made))
    notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in _notes(made))
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Methods within the same budgets</title>\n"
        "<style>body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}"
        "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}svg{max-width:100%;height:auto}</style>\n"
        f"<h1>Methods within the same budgets</h1>\n{picture}\n"
        f"<table>\n{row(HEAD, 'th')}\n{body}\n</table>\n<ul>\n{notes}\n</ul>\n</html>\n"
    )


def draw_pareto(made: Comparison, path: Path) -> bool:
    """Draw the mean score of every method against its size, with the standard deviation over seeds."""
    return save(lambda: _drawn(made), path)


def _drawn(made: Comparison) -> Figure | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    if not made.rows:
        return None
    drawn, scale, unit = (
        Figure(figsize=(6.4, 3.8), facecolor="white"),
        100 if made.metric == "top-1" else 1,
        made.rows[0].unit,
    )
    axes = drawn.add_axes((0.09, 0.13, 0.68, 0.77))
    for number, method in enumerate(made.methods):
        mine = sorted((mean for mean in made.means if mean.method == method), key=lambda mean: mean.size)
        if mine:
            axes.errorbar(
                [mean.size for mean in mine],
                [scale * mean.score for mean in mine],
                [scale * (mean.spread or 0.0) for mean in mine],
                color=COLOURS[number % len(COLOURS)],
                linestyle=("-", "--", ":")[number // len(COLOURS) % 3],
                marker="o",
                capsize=2,
                label=method,
            )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: show(round(size), unit)))
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("Accuracy (top-1), %" if made.metric == "top-1" else f"Score, {made.metric}", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return drawn
