"""How a command ends: whatever it raises becomes one sentence, which begins with "compress: ", and an exit code.

The codes are those of `errors`. What is nobody's mistake but ours is 70, and its traceback is kept in a file.
"""

import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from compress.console import hang_up, say
from compress.errors import UNWRITABLE, ArtifactError, CompressError, Interrupted, UsageError, one_line, place_of
from compress.packages import demand_for, of_error
from compress.texts import visible


class _Stopped(click.ClickException):
    """What the command line says before it leaves with a code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Command(click.Command):
    """A command whose errors become one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, if what it needs is installed; whatever it raises leaves as `_Stopped`."""
        try:
            demand_for(self.name or "")
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:
            raise _stopped(error, ctx) from None


class Commands(click.Group):
    """All commands, and the one way out."""

    command_class = Command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and leave with its exit code."""
        with suppress(ValueError):  # where this is not the main thread, signals are somebody else's
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was begun is cleaned up
        try:
            code = super().main(*args, **{**extra, "prog_name": "compress", "standalone_mode": False})
        except click.ClickException as error:
            sentence = error.format_message()
            say(f"compress: {sentence}{'' if sentence.endswith(('.', '?')) else '.'}", err=True)
            code = error.code if isinstance(error, _Stopped) else error.exit_code
        except click.Abort:  # Ctrl-C before a command began
            say("compress: interrupted.", err=True)
            code = Interrupted.exit_code
        except SystemExit:  # click leaves so only where nobody reads its help any more
            hang_up(sys.stdout)
            code = 0
        sys.exit(code)


def _stopped(error: BaseException, ctx: click.Context) -> click.ClickException:
    """Turn any exception into what the command line says and the code it leaves with."""
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted")
    elif isinstance(error, SystemExit):
        error = UsageError(f"Code that was loaded for this command called sys.exit({error.code!r}); a module must not.")
    elif isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = f"{error.filename}: " if error.filename else ""
        error = UsageError(f"{where}{error.strerror}.")
    elif removed := _removed(error):
        error = UsageError(f"{removed} was removed while this command worked in it; begin anew.")
    elif isinstance(error, MemoryError) or kind == "OutOfMemoryError" or _is_full(error):
        error = UsageError("Out of memory; take a smaller train.batch, or a machine with more.")
    elif lacking := of_error(error):
        error = UsageError(lacking)
    if isinstance(error, ArtifactError):  # it tells of a file, whose names may hold anything: one line all the same
        return _Stopped(visible(str(error)), error.exit_code)
    if isinstance(error, CompressError):
        return _Stopped(str(error), error.exit_code)
    if theirs := place_of(error):
        return _Stopped(f"{theirs} failed: {one_line(error)}", UsageError.exit_code)
    where = _keep_traceback(error, ctx.params.get("out") or f"compress-{ctx.info_name}")
    return _Stopped(f"{kind}: this is a fault of compress, not yours; {where}", CompressError.exit_code)


def _removed(error: BaseException) -> Path | None:
    """The folder that was worked in, where somebody removed it meanwhile."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return None
    return next((p for p in Path(error.filename).parents if p.suffix == ".partial" and not p.exists()), None)


def _is_full(error: BaseException) -> bool:
    """Whether torch says that the CPU's memory is full, which it does by a RuntimeError."""
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("allocate memory", "not enough memory")
    )


def _keep_traceback(error: BaseException, beside: str) -> str:
    """Write a traceback where COMPRESS_TRACEBACK says, or beside the output; say where it is."""
    text = "".join(traceback.format_exception(error))
    if not os.environ.get("COMPRESS_TRACEBACK"):
        for folder in (Path(beside).parent, Path(tempfile.gettempdir())):
            with suppress(OSError):
                path = folder / f"{Path(beside).name}.traceback.txt"
                path.write_text(text, encoding="utf-8")
                return f"the traceback is in {path}."
    say(text, err=True)
    return "the traceback is above."
