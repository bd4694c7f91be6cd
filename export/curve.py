"""Accuracy against size, of a run's network and of those of other sizes that came of it. No torch.

draw_curve(points, "curve.svg", unit="MACs", metric="top-1")    also .png and .pdf
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compress.budget.units import show, show_score
from compress.export.panels import COLOURS, INK
from compress.export.picture import save

if TYPE_CHECKING:  # it takes a second: only who draws imports it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE = "curve.svg"
SPREAD = 4  # the largest over the smallest size, from which on sizes are drawn by ratios


class Point(NamedTuple):
    """A network: what it is called, its size, and its scores; None where test images were not looked at."""

    name: str
    size: int
    val: float
    test: float | None


def draw_curve(points: Sequence[Point], path: Path | str, *, unit: str, metric: str) -> None:
    """Draw scores against sizes into a file, .svg, .png or .pdf; the first point is the run's own network.

    Equal points give equal bytes with one version of matplotlib. Raises UsageError for another suffix.
    """
    save(lambda: _figure(points, unit, metric), path)


def _figure(points: Sequence[Point], unit: str, metric: str) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    drawn = Figure(figsize=(6.0, 3.4), facecolor="white")
    axes = drawn.add_axes((0.1, 0.15, 0.74, 0.74))
    sizes = [point.size for point in points]
    if max(sizes) >= SPREAD * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sorted(set(sizes)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: show(round(size), unit)))
    axes.tick_params(axis="x", rotation=20 if len(points) > 4 else 0)
    scale = 100 if metric == "top-1" else 1
    for name, colour in zip(("val", "test"), COLOURS, strict=False):
        scores = sorted((point.size, getattr(point, name)) for point in points if getattr(point, name) is not None)
        if scores:
            axes.plot([x for x, _ in scores], [scale * y for _, y in scores], marker="o", color=colour)
            _name(axes, scale * scores[-1][1], f"{name} {show_score(scores[-1][1], metric)}", colour)
    axes.axvline(sizes[0], color=INK, linewidth=0.7, linestyle=":")
    axes.set_title(f"{'Accuracy (top-1), %' if metric == 'top-1' else f'Score, {metric}'}; dotted: the run", loc="left")
    return drawn


def _name(axes: "Axes", height: float, text: str, colour: str) -> None:
    """Name a curve, to the right of where it ends."""
    axes.annotate(text, (1.02, height), xycoords=("axes fraction", "data"), color=colour, va="center")
