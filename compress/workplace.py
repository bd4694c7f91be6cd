"""Where a run works and where its result appears: whole, or not at all.

Work in progress lives in OUT.partial with a lock that names its process; a finished folder is renamed to OUT. The
kernel holds the lock for the process, so that it ends with it, however it ends. Nothing that exists is overwritten, nor
what a symbolic link in place of the lock leads to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from compress.errors import UsageError

LOCK = "lock"
RESULT = "result"  # files on their way to OUT; what a killed process left of them is of no use to anybody
_WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system, which then keeps nobody out
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none, and lets few people make links
_WINDOWS = os.name == "nt"


def default_out(name: str, root: Path = Path("runs")) -> Path:
    """runs/NAME, or the first free runs/NAME-2, -3, ... (a folder in progress counts as taken)."""
    number = 1
    while True:
        out = root / (name if number == 1 else f"{name}-{number}")
        if not out.exists() and not partial(out).exists():
            return out
        number += 1


def partial(out: Path) -> Path:
    """The folder of the work in progress."""
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def claim(out: Path, *, resume: bool) -> Iterator[Path]:
    """Hold OUT.partial for this process and give its path; afterwards it is gone, unless something was saved in it.

    Raises UsageError where OUT exists, where another living process works on it, or where unfinished work lies there
    and `resume` does not ask for it.
    """
    _refuse_existing(out)
    work = partial(out)
    with _locked(work):
        _refuse_existing(out)  # another process may have finished it just now
        shutil.rmtree(work / RESULT, ignore_errors=True)
        if not resume and any(entry.name != LOCK for entry in work.iterdir()):
            raise UsageError(
                f"{work} holds an interrupted run; go on with --resume, remove that folder, or name another with --out"
            )
        yield work


def publish(work: Path, result: Path, out: Path) -> None:
    """Rename a finished folder inside the work folder to OUT, and remove the rest."""
    try:
        os.rename(result, out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror or error}).") from None
    shutil.rmtree(work, ignore_errors=True)


def _refuse_existing(out: Path) -> None:
    try:
        there = out.exists()
        if out.name:
            partial(out).exists()  # whose name is longer
    except OSError as error:
        raise UsageError(f"--out {out.name[:40]}... cannot be used ({error.strerror}); choose a shorter name") from None
    if out.is_symlink() and not there:
        raise UsageError(f"{out} is a link that leads nowhere; remove it, or name another folder with --out")
    if there:
        raise UsageError(f"{out} exists already; name another folder with --out, or remove it")


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        while not _is_at(lock := _lock(work), work / LOCK):
            os.close(lock)  # whoever held it has removed it since it was opened
    except BlockingIOError:
        raise UsageError(
            f"process {_holder(work)} is working in {work} right now; wait for it, or name another folder with --out"
        ) from None
    except OSError as error:
        if (work / LOCK).is_symlink():
            raise UsageError(f"{work / LOCK} is a symbolic link, which no run makes; remove it") from None
        raise UsageError(f"{work} cannot be made ({error.strerror or error})") from None
    try:
        yield
    finally:
        if _WINDOWS:  # removes no file that is open
            os.close(lock)
        with contextlib.suppress(OSError):
            (work / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it stays where something was saved
            work.rmdir()
        if not _WINDOWS:  # last: whoever got the lock before it was removed would not be alone
            os.close(lock)


def _lock(work: Path) -> int:
    """Open the lock and write this process into it; raises BlockingIOError where another one holds it."""
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work / LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        if not lock_descriptor(lock, blocking=False):
            raise BlockingIOError
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            os.close(lock)
            raise
    with contextlib.suppress(OSError):  # the name is for people; a full disk is told when there is something to save
        os.ftruncate(lock, 0)
        os.write(lock, b" " + json.dumps({"pid": os.getpid()}).encode())  # Windows locks the first byte from readers
    return lock


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False


def _holder(work: Path) -> str:
    try:
        with (work / LOCK).open("rb") as lock:
            lock.seek(1)
            return str(json.loads(lock.read())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another one"
