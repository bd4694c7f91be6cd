"""A run's history drawn: accuracy, cost, shape, and what a search decided, over the optimizer's steps. No torch.

    draw_history(report, "history.svg")    also .png and .pdf; False, and no file, where there is nothing to draw

Everything comes from the report, so that a picture can be drawn again from report.json, byte for byte.
"""

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError
from compress.export.panels import INK, Panel, draw_matrix, over_steps, stretches
from compress.texts import visible

if TYPE_CHECKING:  # it takes a second: only who draws imports it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from compress.export.report import Report

PICTURE = "history.svg"  # of a run's history, beside its report
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
WIDTH, RIGHT, GAP, LINE = 8.0, 1.75, 0.42, 0.14  # inches: of all, right of the axes, between them, of a line of text
ACROSS = 4  # matrices in a row


def draw_history(report: "Report", path: Path | str) -> bool:
    """Draw a report's history into a file, .svg, .png or .pdf; tell whether there was anything to draw.

    Equal reports give equal bytes with one version of matplotlib. Raises UsageError for another suffix.
    """
    return save(lambda: figure(report), path)


def save(draw: Callable[[], "Figure | None"], path: Path | str) -> bool:
    """Write what is drawn, in our style, into a file; tell whether anything was. Equal figures, equal bytes.

    Raises UsageError for another suffix than .svg, .png and .pdf.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in METADATA:
        raise UsageError(f"{path}: a picture is an .svg, a .png or a .pdf file; name it so.")
    content = io.BytesIO()
    with _style():
        drawn = draw()
        if drawn is None:
            return False
        drawn.savefig(content, format=suffix[1:], metadata=METADATA[suffix])
    data = content.getvalue()
    if suffix == ".svg":  # names stay text in it, and matplotlib leaves controls in them
        data = visible(data.decode("utf-8"), keep="\n\t").encode()
    Path(path).write_bytes(data)
    return True


def figure(report: "Report") -> "Figure | None":
    """Return the picture, None where the history has nothing that changes."""
    history = report.history
    last = max((row.step for row in history), default=0)
    blocks = next((row.connections for row in reversed(history) if row.connections), ())
    panels = over_steps(report, last) if last else []
    if not panels and not blocks:
        return None
    from matplotlib.figure import Figure

    methods = stretches(history)
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
        _paint(axes, last, panel, panel is panels[-1])
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
            draw_matrix(drawn.add_axes((*corner, side / WIDTH, side / height)), block)
        at -= 0.4
    return drawn


def _paint(axes: "Axes", last: int, panel: Panel, lowest: bool) -> None:
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
