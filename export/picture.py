"""A run's history drawn: accuracy, cost, shape, and what a search decided, over the optimizer's steps. No torch.

    draw(report, "history.svg")    also .png and .pdf; False, and no file, where there is nothing to draw

Everything comes from the report, so that a picture can be drawn again from report.json, byte for byte. Of the lines of
`history` it reads `step`, `method`, `val`, `macs`, `params`, `widths` {space: channels}, `depths` {stage: blocks},
`event: left` with its `stage`; of `event: search` `reward`, `entropy`, `accuracy` and `eta` (share of the full
network's MACs); and `connections`, blocks {block, layers, sources, rows} with a row a layer and a column a source.
"""

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.budget.units import percent, score
from compress.errors import UsageError

if TYPE_CHECKING:  # it takes a second: only who draws imports it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METADATA: dict[str, dict[str, Any]] = {  # by suffix; None takes out what matplotlib would write: times and versions
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
STYLE: dict[str, Any] = {
    "svg.hashsalt": "compress",
    "svg.fonttype": "none",  # text stays text: it can be read, searched and copied
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlepad": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 160,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito, 2008
INK, PALE = "#555555", "#e4e4e4"
WIDTH, RIGHT, GAP, LINE = 8.0, 1.75, 0.42, 0.14  # inches: of all, right of the axes, between them, of a line of text
NAMED = 24  # rows of a heat map that are still named one by one
ACROSS = 4  # matrices in a row
FINE = 3000  # cells; more are drawn as pixels
DOTS = 60  # on a curve; more would hide it
COUNTED = {"params": ("params", 1), "MACs": ("macs", 1), "FLOPs": ("macs", 1), "FLOPs@2": ("macs", 2)}

Line = Mapping[str, Any]
End = tuple[float, str, str]  # of a curve: its height, what it is called, its colour


@dataclass(frozen=True, slots=True)
class _Panel:
    """One pair of axes over the optimizer's steps; `paint` gives what stands to the right of it."""

    title: str
    height: float  # inches
    paint: Callable[["Axes"], Sequence[End]]
    names: Sequence[str] = ()  # of its rows, to the left of it


def draw(report: Mapping[str, Any], path: Path | str) -> bool:
    """Draw a report's history into a file, .svg, .png or .pdf; tell whether there was anything to draw.

    Equal reports give equal bytes with one version of matplotlib. Raises UsageError for another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in METADATA:
        raise UsageError(f"{path}: a picture is an .svg, a .png or a .pdf file; name it so.")
    content = io.BytesIO()
    with _style():
        drawn = figure(report)
        if drawn is None:
            return False
        drawn.savefig(content, format=suffix[1:], metadata=METADATA[suffix])
    Path(path).write_bytes(content.getvalue())
    return True


def figure(report: Mapping[str, Any]) -> "Figure | None":
    """Return the picture, None where the history has nothing that changes."""
    history: Sequence[Line] = report["history"]
    last = max((line["step"] for line in history), default=0)
    blocks: list[Any] = next((line["connections"] for line in reversed(history) if line.get("connections")), [])
    over_time = [*_accuracy(report, last), *_cost(report, last), *_depths(history, last), *_widths(report, last)]
    panels = [*over_time, *_search(history)] if last else []
    if not panels and not blocks:
        return None
    from matplotlib.figure import Figure

    methods = _methods(history)
    rows = [blocks[at : at + ACROSS] for at in range(0, len(blocks), ACROSS)]
    side = (WIDTH - 0.6) / ACROSS - 0.5  # of a matrix; its title takes 0.3 inches, the names below it 0.4
    top = 0.3 + (LINE * 1.4 if len(methods) > 1 else 0)
    middle = sum(panel.height + GAP for panel in panels)
    height = top + middle + len(rows) * (0.3 + side + 0.4)
    left = 0.62 + max([0.056 * len(name) - 0.3 for panel in panels for name in panel.names], default=0)
    drawn = Figure(figsize=(WIDTH, height), facecolor="white")
    at = height - top
    for panel in panels:
        at -= panel.height
        axes = drawn.add_axes((left / WIDTH, at / height, (WIDTH - left - RIGHT) / WIDTH, panel.height / height))
        axes.set_title(panel.title, loc="left", y=1)
        _over_steps(axes, last, panel, panel is panels[-1])
        for x, _ in methods[1:]:
            axes.axvline(x, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
        if panel is panels[0] and len(methods) > 1:
            _name_methods(axes, methods, last, WIDTH - left - RIGHT)
        at -= GAP
    at = height - top - middle
    for row in rows:
        at -= 0.3 + side
        for place, block in enumerate(row):
            corner = ((0.6 + place * (side + 0.5)) / WIDTH, at / height)
            _matrix(drawn.add_axes((*corner, side / WIDTH, side / height)), block)
        at -= 0.4
    return drawn


# ---- panels ---------------------------------------------------------------------------------------------------------


def _accuracy(report: Mapping[str, Any], last: int) -> list[_Panel]:
    told, lines = report["accuracy"], [line for line in report["history"] if line.get("val") is not None]
    metric = told["metric"]
    scale = 100 if metric == "top-1" else 1

    def paint(axes: "Axes") -> list[End]:
        for _, stretch in groupby(lines, lambda line: line.get("method")):
            _curve(axes, *_points([*stretch], "val"), scale, COLOURS[0])
        ends = [(lines[-1]["val"] * scale, f"validation {score(told['val'], metric)}", COLOURS[0])]
        if told["test"] is not None:
            _mark(axes, last, told["test"] * scale, COLOURS[1])
            ends.append((told["test"] * scale, f"test {score(told['test'], metric)}", COLOURS[1]))
        if told["required"] is not None:
            axes.axhline(told["required"] * scale, color=INK, linewidth=0.7, linestyle=":")
            ends.append((told["required"] * scale, f"required {score(told['required'], metric)}", INK))
        return ends

    title = "Accuracy (top-1), %" if metric == "top-1" else f"Score, {metric}"
    return [_Panel(title, 1.35, paint)] if lines else []


def _cost(report: Mapping[str, Any], last: int) -> list[_Panel]:
    """Shares of the limits on what history counts; of the full network where there is no such limit."""
    limits = [row for row in report["budget"] if row["level"] == "error" and row["unit"] in COUNTED]
    base = report["base"]
    curves = [(*COUNTED[row["unit"]], row["limit"], row["text"], row["utilisation"]) for row in limits] or [
        (key, 1, base[key], name, report["cost"][key] / max(base[key], 1))
        for key, name in (("macs", "MACs"), ("params", "params"))
    ]
    drawn = [(*_points(report["history"], key), times, whole, *said) for key, times, whole, *said in curves]
    drawn = [curve for curve in drawn if curve[0]]

    def paint(axes: "Axes") -> list[End]:
        ends = []
        for (steps, values, times, whole, name, used), colour in zip(drawn, _colours(len(drawn)), strict=True):
            shares = [100 * times * value / max(whole, 1) for value in values]
            axes.step([*steps, last], [*shares, shares[-1]], where="post", color=colour)
            _mark(axes, last, 100 * used, colour)
            ends.append((100 * used, f"{name}: {percent(used)}", colour))
        if limits:
            axes.axhline(100, color=INK, linewidth=0.8, zorder=1)
        axes.set_ylim(0, max(axes.get_ylim()[1], 104))
        return ends

    counted = "lines: MACs or params; \u25c7: finished, as the limit counts"
    title = f"Cost, % of the limit ({counted})" if limits else "Cost, % of the full network's (\u25c7: finished)"
    return [_Panel(title, 1.35, paint)] if drawn else []


def _depths(history: Sequence[Line], last: int) -> list[_Panel]:
    lines = [line for line in history if line.get("depths")]
    stages = sorted({stage for line in lines for stage in line["depths"]})
    left = [line for line in history if line["event"] == "left" and line.get("stage") in stages]

    def paint(axes: "Axes") -> list[End]:
        from matplotlib.ticker import MaxNLocator

        ends, apart = [], min(0.12, 0.8 / len(stages))  # so that stages of one depth are all seen
        for at, (stage, colour) in enumerate(zip(stages, _colours(len(stages)), strict=True)):
            shift = (at - (len(stages) - 1) / 2) * apart
            told = [(line["step"], line["depths"][stage]) for line in lines if stage in line["depths"]]
            told.append((last, told[-1][1]))
            axes.step([x for x, _ in told], [depth + shift for _, depth in told], where="post", color=colour)
            for line in left:
                if line["stage"] == stage:
                    depth = [told[0][1], *(depth for x, depth in told if x <= line["step"])][-1]
                    axes.plot([line["step"]], [depth + shift], marker="x", markersize=5, color=colour, clip_on=False)
            ends.append((told[-1][1] + shift, f"{_short(stage, 20)}: {told[-1][1]}", colour))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        return ends

    cross = " (\u00d7 the stage stops growing)" if left else ""
    return [_Panel(f"Depth of the stages, blocks{cross}", 1.5, paint)] if stages else []


def _widths(report: Mapping[str, Any], last: int) -> list[_Panel]:
    """A heat map, where widths change; lines that tell depths are drawn as depths."""
    lines = [line for line in report["history"] if line.get("widths") and not line.get("depths")]
    full = {space["name"]: space["full"] for space in report["spaces"]}
    seen = {name for line in lines for name in line["widths"]}
    names = [*filter(seen.__contains__, full), *sorted(seen - full.keys())]
    table = [[line["widths"].get(name, math.nan) for line in lines] for name in names]
    if not any(len(set(filter(math.isfinite, row))) > 1 for row in table):
        return []
    tops = [full.get(name) or max(filter(math.isfinite, row)) for name, row in zip(names, table, strict=True)]
    shares = [[100 * width / top for width in row] for row, top in zip(table, tops, strict=True)]
    named, most = len(names) <= NAMED, max(share for row in shares for share in row if math.isfinite(share))

    def paint(axes: "Axes") -> list[End]:
        edges = [*(line["step"] for line in lines), max(last, lines[-1]["step"] + 1)]
        cells = axes.pcolormesh(
            edges, range(len(names) + 1), shares, vmin=0, vmax=most, cmap="YlGnBu",
            rasterized=len(names) * len(lines) > FINE,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_yticks([at + 0.5 for at in range(len(names))] if named else [], map(_short, names) if named else [])
        axes.tick_params(axis="y", length=0)
        above = axes.inset_axes((1.02, 1 + 0.07 / height, 0.2, 0.07 / height))
        bar = axes.figure.colorbar(cells, cax=above, orientation="horizontal", ticks=[0, most], format="{x:.0f} %")
        bar.outline.set_visible(False)
        above.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=1, labelsize=6.5)
        known = [list(filter(math.isfinite, row)) for row in table]
        said = [f"{row[0]:.0f} \u2192 {row[-1]:.0f} of {top:.0f}" for row, top in zip(known, tops, strict=True)]
        return [(at + 0.5, text, INK) for at, text in enumerate(said)] if named else []

    height = min(max(0.8, 0.15 * len(names)), 3.6)
    title = f"Widths of {len(names)} spaces, % of the full network's channels" + ("" if named else ", input on top")
    return [_Panel(title, height, paint, [_short(name) for name in names] if named else ())]


def _search(history: Sequence[Line]) -> list[_Panel]:
    lines = [line for line in history if line["event"] == "search"]
    kinds = (
        ("Reward", 1, {"reward": ""}),
        ("Entropy of the controller, nats", 1, {"entropy": ""}),
        ("Sampled networks, %", 100, {"accuracy": "accuracy", "eta": "of the full MACs"}),
    )

    def painter(scale: int, curves: Mapping[str, str]) -> Callable[["Axes"], list[End]]:
        def paint(axes: "Axes") -> list[End]:
            ends = []
            for (key, name), colour in zip(curves.items(), COLOURS, strict=False):
                steps, values = _points(lines, key)
                if steps:
                    _curve(axes, steps, values, scale, colour)
                    said = f"{percent(values[-1])} {name}" if scale == 100 else f"{values[-1]:.3g}"
                    ends.append((scale * values[-1], said, colour))
            return ends

        return paint

    return [
        _Panel(title, 0.8, painter(scale, curves))
        for title, scale, curves in kinds
        if any(_points(lines, key)[0] for key in curves)
    ]


def _matrix(axes: "Axes", block: Mapping[str, Any]) -> None:
    """Draw which sources (down) the layers of a block (across) read, as Fig. 3 of LWP has them; dropped ones are pale.

    The paper shades a connection by its mean absolute weight; here it is there or not.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    layers, sources = block["layers"], block["sources"]
    first = int(sources[0] in layers)  # a layer has the same number on both sides; what comes before them is 0
    cells = [[math.nan] * len(layers) for _ in sources]  # nan: the source comes after the layer
    for target, row in enumerate(block["rows"]):
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
    axes.set_title(f"{_last_part(block['block'])}: {kept} of {all_of_them} kept", loc="left")
    axes.set_xlabel("layer", labelpad=1)
    axes.set_ylabel("source" + ("" if first else f" (0: {_last_part(sources[0])})"), labelpad=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=2)


# ---- parts of them --------------------------------------------------------------------------------------------------


def _points(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    """The steps of the lines that tell a number, and those numbers."""
    told = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in told], [value for _, value in told]


def _methods(history: Sequence[Line]) -> list[tuple[int, str]]:
    """Where each method begins: with the last line of the one before it."""
    found: list[tuple[int, str]] = []
    before = 0
    for line in history:
        if (name := line.get("method")) and (not found or name != found[-1][1]):
            found.append((before if found else 0, name))
        before = line["step"]
    return found


def _curve(axes: "Axes", steps: Sequence[int], values: Sequence[float], scale: float, colour: str) -> None:
    dots = "o" if len(steps) <= DOTS else ""
    axes.plot(steps, [scale * value for value in values], marker=dots, color=colour, clip_on=False)


def _colours(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _short(name: str, most: int = 24) -> str:
    """The name, without its middle where it is too long; no file of text holds control characters."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= most else f"{name[: most // 3]}\u2026{name[-(most - most // 3 - 1) :]}"


def _last_part(name: str) -> str:
    return _short(name.rpartition(".")[2], 16)


def _mark(axes: "Axes", x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], marker="D", markersize=4, color=colour, markerfacecolor="white", clip_on=False, zorder=3)


def _over_steps(axes: "Axes", last: int, panel: _Panel, lowest: bool) -> None:
    """Paint a panel over the common axis, and name the ends of its curves, as near to them as there is room."""
    from matplotlib.ticker import MaxNLocator

    ends = panel.paint(axes)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelbottom=lowest)
    if lowest:
        axes.set_xlabel("optimizer steps", labelpad=2)
    low, high = axes.get_ylim()
    gap, places = LINE / panel.height, [((y - low) / (high - low), text, colour) for y, text, colour in ends]
    places.sort()
    free, highest = -math.inf, [1 - gap * at for at in reversed(range(len(places)))]
    for (y, text, colour), most in zip(places, highest, strict=True):
        free = max(min(y, most), free)
        axes.text(1.02, free, text, color=colour, transform=axes.transAxes, va="center")
        free += gap


def _name_methods(axes: "Axes", methods: Sequence[tuple[int, str]], last: int, inches: float) -> None:
    free = 0.0
    for x, name in methods:
        free = max(free, x / last)
        axes.annotate(name, (free, 1), (2, 16), "axes fraction", "offset points", color=INK, weight="bold")
        free += (0.075 * len(name) + 0.1) / inches


@contextmanager
def _style() -> Iterator[None]:
    """Draw by our style alone, whatever a matplotlibrc says, and let matplotlib say nothing of fonts and caches."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib.style

            with matplotlib.style.context(["default", STYLE]):
                yield
    finally:
        logger.setLevel(level)
