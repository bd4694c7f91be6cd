"""What people see: results on stdout, everything else on stderr, in aligned lines that read the same in a log.

    say(text)                        one line of a result
    table(head, rows)                aligned columns
    with telling(quiet=False) as t:  `run(..., listen=t)` shows its events; where a person watches, with a live line

Control characters are written to terminals only, and only they import rich. Whoever stops listening (`| head`) changes
neither a verdict nor a run.
"""

import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Protocol, TextIO

import click

from compress.budget.units import duration, percent, show, show_score
from compress.errors import UsageError
from compress.texts import visible
from compress.training.events import (
    Begun,
    Doing,
    Ended,
    Entered,
    Event,
    Listener,
    Note,
    Noted,
    Progress,
    Resumed,
    Warned,
    silent,
)

MANY = 16  # numbers of widths that still fit on a line

_TABLE = (
    ("event", -9),
    ("step", 7),
    ("MACs", 11),
    ("params", 13),
    ("budget", 8),
    ("loss", 7),
    ("val", 8),
    ("size", -1),
)


def say(text: str = "", *, err: bool = False, **style: Any) -> None:
    """Write a line to stdout, or to stderr; `style` is click's (fg="red", bold=True) and is left out of files.

    What is not printable is written out, but for newlines and tabs: names may come from anybody's file. A reader that
    went away is no error. Raises UsageError where stdout cannot be written, as on a full disk.
    """
    plain = visible(text, keep="\n\t")
    try:
        click.echo(click.style(plain, **style) if style else plain, err=err)
    except OSError as error:
        hang_up(sys.stderr if err else sys.stdout)
        if error.errno != errno.EPIPE and not err:
            raise UsageError(f"The output cannot be written: {error.strerror or error}.") from None


def hang_up(stream: TextIO) -> None:
    """Send what is left in a broken stream nowhere, so that Python does not fail on it when it ends."""
    with suppress(OSError, ValueError):  # a stream in memory has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return aligned lines, the head first; columns numbered in `right` are flush right, the others left.

    What is not printable in a cell is written out.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(n) if at in right else c.ljust(n) for at, (c, n) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [line(head), *map(line, rows)]


def in_short(widths: Mapping[str, int]) -> str:
    """Say widths on one line: all of them in the order of the layers, or from where to where when they are many."""
    if len(widths) > MANY:
        return f"{min(widths.values())} to {max(widths.values())} in {len(widths)} spaces"
    return " ".join(map(str, widths.values()))


@contextmanager
def telling(*, quiet: bool, stream: TextIO | None = None) -> Iterator[Listener]:
    """Give a listener that shows events on a stream (stderr if none), or one that shows nothing when `quiet`."""
    if quiet:
        with redirect_stdout(sys.stderr):  # what somebody's own code prints is no part of the JSON
            yield silent
        return
    to = stream or sys.stderr
    watched = to.isatty() and os.environ.get("TERM") != "dumb"
    screen: _Screen = _Terminal(to) if watched else _Plain(to)
    try:
        yield _Story(screen).hear
    finally:
        screen.close()


# ---- events as lines ------------------------------------------------------------------------------------------------


class _Story:
    """Tells the events of one run; it remembers what rates refer to."""

    def __init__(self, screen: "_Screen") -> None:
        self.screen = screen
        self.batch = self.epoch = 0  # images a step, steps an epoch
        self.epochs = 0.0  # of the last stage, which is known in advance; rounds are not
        self.ahead = 0.0  # steps until training ends, once that stage has begun
        self.used = 0.0  # of the budget, by the network at present
        self.phase, self.metric = "", "top-1"
        self.headed = False

    def hear(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Begun():
                self._begin(event)
            case Entered(settings, share):
                self.epochs = settings.last_epochs
                if share != 1 or self.headed:
                    self.screen.line(f"{settings.name}, within {share:g} of the budget:", strong=True)
            case Noted(note):
                self._note(note)
            case Progress():
                self._progress(event)
            case Doing(text):
                self.screen.still()
                self.screen.line(text)
            case Ended(why):
                self.screen.still()
                self.screen.line(f"training ended: {why}")
            case Resumed(step):
                self.screen.line(f"resumed from step {step:,}")
            case Warned(text):
                self.screen.line(f"warning: {text}", strong=True)

    def _begin(self, begun: Begun) -> None:
        data, base, seed, self.headed = begun.data, begun.base, begun.seed, False
        self.batch, self.epoch, self.metric = data.batch, data.steps_per_epoch, begun.metric or self.metric
        counts = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
        size = " x ".join(map(str, data.image))
        classes = f" in {len(data.classes)} classes" if data.classes else ""
        beside = f" and {len(data.shape) - 1} more" if data.shape != data.image else ""
        kind = "images" if data.scale == 255 else "arrays"
        self.screen.line(f"{data.name}: {kind} {size}{beside}{classes}, {counts}")
        self.screen.line(
            f"{begun.factory}: {show(base.macs, 'MACs')}, {show(base.params, 'params')}; "
            f"starts at {show(seed.macs, 'MACs')}, {show(seed.params, 'params')}; "
            f"budget {', '.join(limit.text for limit in begun.budget.limits)}"
        )

    def _note(self, note: Note) -> None:
        if not self.headed:
            self._row([name for name, _ in _TABLE], strong=True)
            self.headed = True
        numbers, self.used = note.numbers, note.used
        number = numbers.get("round", numbers.get("epoch"))
        self.ahead = (self.epochs - numbers["epoch"]) * self.epoch if "epoch" in numbers else 0.0
        self.phase = note.event if number is None else f"{note.event} {number:g}"
        loss = numbers.get("loss")
        self._row(
            [
                self.phase,
                f"{note.step:,}",
                show(note.macs, "MACs"),
                show(note.params, "params"),
                percent(note.used),
                "" if loss is None else f"{loss:.4f}",
                show_score(numbers.get("val"), self.metric),
                _size(numbers),
            ]
        )

    def _row(self, cells: Sequence[str], *, strong: bool = False) -> None:
        places = zip(cells, (size for _, size in _TABLE), strict=True)
        line = "  ".join(cell.rjust(size) if size > 0 else cell.ljust(-size) for cell, size in places)
        self.screen.line(line.rstrip(), strong=strong)

    def _progress(self, now: Progress) -> None:
        ahead, word = (self.ahead, "{} left") if self.ahead else (now.steps, "next line in {}")
        speed = now.images_per_second
        seconds = int((ahead - now.step) * self.batch / speed) if speed else 0
        clock = word.format(f"{seconds // 60}:{seconds % 60:02d}")
        if not self.ahead and self.epochs and speed and self.used:  # a network that fills the budget takes longer
            last = self.epochs * self.epoch * self.batch / speed / min(self.used, 1.0)
            clock += f", at least {duration(seconds + last)} to the end"
        after = f"after {self.phase}" if self.phase else "training"
        text = f"{now.step:,}/{now.steps:,}  loss {now.loss:.4f}  {speed:,.0f} images/s  {clock}"
        self.screen.live(after, now.step / max(now.steps, 1), text)


# ---- where lines go -------------------------------------------------------------------------------------------------


def _size(numbers: Mapping[str, Any]) -> str:
    """Depths or widths in short, and which stage stopped growing and why."""
    if depths := numbers.get("depths"):
        stopped = f" ({numbers['stage']} stops: {numbers['why']})" if "why" in numbers else ""
        return "-".join(map(str, depths.values())) + stopped
    return in_short(numbers["widths"]) if numbers.get("widths") else ""


class _Screen(Protocol):
    """Something that shows lines, and perhaps one that moves."""

    def line(self, text: str, *, strong: bool = False) -> None: ...
    def live(self, title: str, share: float, text: str) -> None: ...
    def still(self) -> None: ...
    def close(self) -> None: ...


class _Plain:
    """A file or a pipe: a line for each thing that happened."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def line(self, text: str, *, strong: bool = False) -> None:
        try:
            print(visible(text), file=self.stream, flush=True)
        except OSError:  # nobody reads on, or the log's disk is full: training goes on
            hang_up(self.stream)

    def live(self, title: str, share: float, text: str) -> None:
        pass

    def still(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Terminal:
    """A terminal: the same lines, and below them one that moves while a network trains."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(file=stream, highlight=False, markup=False, emoji=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self.task = self.progress.add_task("", total=1.0, visible=False, text="")

    def line(self, text: str, *, strong: bool = False) -> None:
        self.console.print(visible(text), style="bold" if strong else None, soft_wrap=True)

    def live(self, title: str, share: float, text: str) -> None:
        self.progress.start()
        self.progress.update(
            self.task, description=visible(title), completed=share, text=visible(text), visible=True, refresh=True
        )

    def still(self) -> None:
        self.progress.stop()

    def close(self) -> None:
        self.progress.stop()
