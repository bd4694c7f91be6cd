"""What can go wrong, one class per question a caller may ask, each with the exit code of the command line.

    CompressError            70  our own fault, unless a leaf says otherwise
    |-- UsageError            2  a recipe, unit, flag, file, data set or model that cannot be used as given
    |-- OverBudget            1  the result is over its budget, or under what the recipe requires
    |-- Infeasible            3  the budget is below the floor, proved before any training
    |-- ArtifactError         4  a file that is broken, foreign, or does not compute what it claims
    `-- Interrupted         130  stopped by SIGINT or SIGTERM; `--resume` goes on

A message is a sentence: what, where, which values, what to do. Nobody sees a traceback for their own mistake.
"""

import errno
import sysconfig
import traceback
from pathlib import Path

UNWRITABLE = tuple(  # of an OSError: nothing can be written there; not every system has every number
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "EIO")
    if hasattr(errno, name)
)


class CompressError(Exception):
    """The root of every error raised on purpose."""

    exit_code = 70


class UsageError(CompressError):
    """Something given to us cannot be used: a recipe, unit, flag, file, data set or model."""

    exit_code = 2


class OverBudget(CompressError):
    """The result exceeds its budget, or misses what the recipe requires."""

    exit_code = 1


class Infeasible(CompressError):
    """No network of this family can keep the budget; known before any training."""

    exit_code = 3


class ArtifactError(CompressError):
    """A file is broken, foreign, or does not compute what it claims."""

    exit_code = 4


class Interrupted(CompressError):
    """The run was stopped from outside; what it had is saved."""

    exit_code = 130


def place_of(error: BaseException) -> str | None:
    """The place in somebody else's code where an exception began, or passed on its way from a library; None where it
    began in ours. Theirs is what lies neither here nor where Python and its packages are installed.
    """
    return place_in(traceback.extract_tb(error.__traceback__))


def place_in(stack: traceback.StackSummary) -> str | None:
    """The same of any stack of calls, the innermost last."""
    ours, installed = Path(__file__).parent, {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(ours) or path.resolve().is_relative_to(ours.resolve()):
            return None
        if path.is_file() and not any(path.is_relative_to(home) for home in installed):
            return f"{path.name}, line {frame.lineno}, in {frame.name}():"[:-1]
    return None


def one_line(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
