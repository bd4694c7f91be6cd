"""The panels of a picture: what a history says over the optimizer's steps, and which connections stayed. No torch.

Shares are drawn in percent. A panel paints itself into axes, and names what its curves end at.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from compress.budget.units import percent

if TYPE_CHECKING:  # matplotlib takes a second: only who draws imports it
    from matplotlib.axes import Axes

    from compress.export.parts import HistoryRow, Matrix
    from compress.export.report import Report

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito, 2008
INK, PALE = "#555555", "#e4e4e4"
NAMED = 24  # rows of a heat map that are still named one by one
FINE = 3000  # cells; more are drawn as pixels
DOTS = 60  # on a curve; more would hide it
COUNTED = {"params": ("params", 1), "MACs": ("macs", 1), "FLOPs": ("macs", 1), "FLOPs@2": ("macs", 2)}

End = tuple[float, str, str]  # of a curve: its height, what it is called, its colour


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes over the optimizer's steps; `paint` gives what stands to the right of it."""

    title: str
    height: float  # inches
    paint: Callable[["Axes"], Sequence[End]]
    names: Sequence[str] = ()  # of its rows, to the left of it


def over_steps(report: "Report", last: int) -> list[Panel]:
    """Return the panels that have something to show, from top to bottom; `last` is the last optimizer step."""
    return [
        *_accuracy_panel(report, last),
        *_cost_panel(report, last),
        *_depth_panel(report.history, last),
        *_width_panel(report, last),
        *_search_panels(report.history),
    ]


def draw_matrix(axes: "Axes", block: "Matrix") -> None:
    """Draw which sources (down) the layers of a block (across) read, as Fig. 3 of LWP has them; dropped ones are pale.

    The paper shades a connection by its mean absolute weight; here it is there or not.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    layers, sources = block.layers, block.sources
    first = int(sources[0] in layers)  # a layer has the same number on both sides; what comes before them is 0
    cells: list[list[float]] = [[math.nan] * len(layers) for _ in sources]  # nan: the source comes after the layer
    for target, row in enumerate(block.rows):
        for source, kept in enumerate(row):
            if sources[source] not in layers[target:]:
                cells[source][target] = kept
    kept, all_of_them = (sum(test(x) for row in cells for x in row) for test in (lambda x: x == 1, math.isfinite))
    axes.pcolormesh(
        [at + 0.5 for at in range(len(layers) + 1)], [first + at - 0.5 for at in range(len(sources) + 1)], cells,
        cmap=ListedColormap([PALE, COLOURS[0]]), vmin=0, vmax=1, edgecolors="white", linewidth=0.5,
        rasterized=len(layers) * len(sources) > FINE,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_title(f"{_last_part(block.block)}: {kept} of {all_of_them} kept", loc="left")
    axes.set_xlabel("layer", labelpad=1)
    axes.set_ylabel("source" + ("" if first else f" (0: {_last_part(sources[0])})"), labelpad=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=2)


def stretches(history: "Sequence[HistoryRow]") -> list[tuple[int, str]]:
    """Where each method begins: with the last row of the one before it."""
    begins: list[tuple[int, str]] = []
    before = 0
    for row in history:
        if not begins or row.method != begins[-1][1]:
            begins.append((before if begins else 0, row.method))
        before = row.step
    return begins


# ---- the panels, from top to bottom ---------------------------------------------------------------------------------


def _accuracy_panel(report: "Report", last: int) -> list[Panel]:
    accuracy, rows = report.accuracy, [row for row in report.history if row.val is not None]
    scale = 100 if accuracy.metric == "top-1" else 1

    def paint(axes: "Axes") -> list[End]:
        for _, stretch in groupby(rows, lambda row: row.method):
            _curve(axes, *_points([*stretch], "val"), scale, COLOURS[0])
        ends = [((rows[-1].val or 0) * scale, f"validation {accuracy.words('val')}", COLOURS[0])]
        if accuracy.test is not None:
            _mark(axes, last, accuracy.test * scale, COLOURS[1])
            ends.append((accuracy.test * scale, f"test {accuracy.words('test')}", COLOURS[1]))
        if accuracy.required is not None:
            axes.axhline(accuracy.required * scale, color=INK, linewidth=0.7, linestyle=":")
            ends.append((accuracy.required * scale, f"required {accuracy.words('required')}", INK))
        return ends

    title = "Accuracy (top-1), %" if accuracy.metric == "top-1" else f"Score, {accuracy.metric}"
    return [Panel(title, 1.35, paint)] if rows else []


def _cost_panel(report: "Report", last: int) -> list[Panel]:
    """Shares of the limits on what history counts; of the full network where there is no such limit."""
    limits = [row for row in report.budget if row.level == "error" and row.unit in COUNTED]
    shares = [(*COUNTED[row.unit], row.limit, row.text, row.utilisation) for row in limits] or [
        ("macs", 1, report.base.macs, "MACs", report.cost.macs / max(report.base.macs, 1)),
        ("params", 1, report.base.params, "params", report.cost.params / max(report.base.params, 1)),
    ]
    curves = [(*_points(report.history, key), times, whole, name, used) for key, times, whole, name, used in shares]
    curves = [curve for curve in curves if curve[0]]

    def paint(axes: "Axes") -> list[End]:
        ends = []
        for (steps, values, times, whole, name, used), colour in zip(curves, _colours(len(curves)), strict=True):
            heights = [100 * times * value / max(whole, 1) for value in values]
            axes.step([*steps, last], [*heights, heights[-1]], where="post", color=colour)
            _mark(axes, last, 100 * used, colour)
            ends.append((100 * used, f"{name}: {percent(used)}", colour))
        if limits:
            axes.axhline(100, color=INK, linewidth=0.8, zorder=1)
        axes.set_ylim(0, max(axes.get_ylim()[1], 104))
        return ends

    counted = "lines: MACs or params; \u25c7: finished, as the limit counts"
    title = f"Cost, % of the limit ({counted})" if limits else "Cost, % of the full network's (\u25c7: finished)"
    return [Panel(title, 1.35, paint)] if curves else []


def _depth_panel(history: "Sequence[HistoryRow]", last: int) -> list[Panel]:
    rows = [row for row in history if row.depths]
    stages = sorted({stage for row in rows for stage in row.depths})
    left = [row for row in history if row.event == "left" and row.stage in stages]

    def paint(axes: "Axes") -> list[End]:
        from matplotlib.ticker import MaxNLocator

        ends, apart = [], min(0.12, 0.8 / len(stages))  # so that stages of one depth are all seen
        for at, (stage, colour) in enumerate(zip(stages, _colours(len(stages)), strict=True)):
            shift = (at - (len(stages) - 1) / 2) * apart
            depths = [(row.step, row.depths[stage]) for row in rows if stage in row.depths]
            depths.append((last, depths[-1][1]))
            axes.step([x for x, _ in depths], [depth + shift for _, depth in depths], where="post", color=colour)
            for row in left:
                if row.stage == stage:
                    depth = [depths[0][1], *(depth for x, depth in depths if x <= row.step)][-1]
                    axes.plot([row.step], [depth + shift], marker="x", markersize=5, color=colour, clip_on=False)
            ends.append((depths[-1][1] + shift, f"{_trimmed(stage, 20)}: {depths[-1][1]}", colour))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        return ends

    cross = " (\u00d7 the stage stops growing)" if left else ""
    return [Panel(f"Depth of the stages, blocks{cross}", 1.5, paint)] if stages else []


def _width_panel(report: "Report", last: int) -> list[Panel]:
    """A heat map, where widths change; rows that tell depths are drawn as depths."""
    rows = [row for row in report.history if row.widths and not row.depths]
    full = {space.name: space.full for space in report.spaces}
    seen = {name for row in rows for name in row.widths}
    names = [*filter(seen.__contains__, full), *sorted(seen - full.keys())]
    table = [[row.widths.get(name, math.nan) for row in rows] for name in names]
    if not any(len(set(filter(math.isfinite, widths))) > 1 for widths in table):
        return []
    tops = [full.get(name) or max(filter(math.isfinite, widths)) for name, widths in zip(names, table, strict=True)]
    shares = [[100 * width / top for width in widths] for widths, top in zip(table, tops, strict=True)]
    named, most = len(names) <= NAMED, max(share for line in shares for share in line if math.isfinite(share))

    def paint(axes: "Axes") -> list[End]:
        edges = [*(row.step for row in rows), max(last, rows[-1].step + 1)]
        cells = axes.pcolormesh(
            edges, range(len(names) + 1), shares, vmin=0, vmax=most, cmap="YlGnBu",
            rasterized=len(names) * len(rows) > FINE,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_yticks([at + 0.5 for at in range(len(names))] if named else [], map(_trimmed, names) if named else [])
        axes.tick_params(axis="y", length=0)
        above = axes.inset_axes((1.02, 1 + 0.07 / height, 0.2, 0.07 / height))
        bar = axes.figure.colorbar(cells, cax=above, orientation="horizontal", ticks=[0, most], format="{x:.0f} %")
        bar.outline.set_visible(False)
        above.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=1, labelsize=6.5)
        known = [list(filter(math.isfinite, widths)) for widths in table]
        texts = [f"{row[0]:.0f} \u2192 {row[-1]:.0f} of {top:.0f}" for row, top in zip(known, tops, strict=True)]
        return [(at + 0.5, text, INK) for at, text in enumerate(texts)] if named else []

    height = min(max(0.8, 0.15 * len(names)), 3.6)
    title = f"Widths of {len(names)} spaces, % of the full network's channels" + ("" if named else ", input on top")
    return [Panel(title, height, paint, [_trimmed(name) for name in names] if named else ())]


def _search_panels(history: "Sequence[HistoryRow]") -> list[Panel]:
    rows = [row for row in history if row.event == "search"]
    kinds = (
        ("Reward", 1, {"reward": ""}),
        ("Entropy of the controller, nats", 1, {"entropy": ""}),
        ("Sampled networks, %", 100, {"accuracy": "accuracy", "eta": "of the full MACs"}),
    )

    def painter(scale: int, curves: Mapping[str, str]) -> Callable[["Axes"], list[End]]:
        def paint(axes: "Axes") -> list[End]:
            ends = []
            for (key, name), colour in zip(curves.items(), COLOURS, strict=False):
                steps, values = _points(rows, key)
                if steps:
                    _curve(axes, steps, values, scale, colour)
                    text = f"{percent(values[-1])} {name}" if scale == 100 else f"{values[-1]:.3g}"
                    ends.append((scale * values[-1], text, colour))
            return ends

        return paint

    return [
        Panel(title, 0.8, painter(scale, curves))
        for title, scale, curves in kinds
        if any(_points(rows, key)[0] for key in curves)
    ]


# ---- parts of them --------------------------------------------------------------------------------------------------


def _points(rows: "Sequence[HistoryRow]", key: str) -> tuple[list[int], list[float]]:
    """The steps of the rows that tell a number, and those numbers."""
    points = [(row.step, value) for row in rows if (value := getattr(row, key)) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _curve(axes: "Axes", steps: Sequence[int], values: Sequence[float], scale: float, colour: str) -> None:
    dots = "o" if len(steps) <= DOTS else ""
    axes.plot(steps, [scale * value for value in values], marker=dots, color=colour, clip_on=False)


def _colours(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _trimmed(name: str, most: int = 24) -> str:
    """The name, without its middle where it is too long; no file of text holds control characters."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= most else f"{name[: most // 3]}\u2026{name[-(most - most // 3 - 1) :]}"


def _last_part(name: str) -> str:
    return _trimmed(name.rpartition(".")[2], 16)


def _mark(axes: "Axes", x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], marker="D", markersize=4, color=colour, markerfacecolor="white", clip_on=False, zorder=3)
