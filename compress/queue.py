"""Work that is done side by side, each piece in a process of its own, in an order that respects what needs what.

A plain queue: pieces wait until what they come after is done, as many run at a time as are allowed, and one that fails
holds up nobody but those that come after it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY = 0.2  # seconds
PATIENCE = 60.0  # seconds that a process has to save its work when it is told to end
WELL = (0, 1)  # exit codes of what came to its end
SKIPPED = -1000  # in place of an exit code: what it comes after has failed


@dataclass(frozen=True, slots=True)
class Piece:
    """One process: its command, the file that takes what it says, and the names of those that must be done before."""

    name: str
    command: tuple[str, ...]
    log: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A piece that is over: its exit code, and how long it took."""

    piece: Piece
    code: int
    seconds: float


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_off(
    pieces: Sequence[Piece], workers: int, tell: Callable[[Done, int], None], begun: Callable[[Piece], None]
) -> dict[str, int]:
    """Run all pieces, `workers` at a time; their exit codes by name.

    Each has as many threads as there are cores for one. `begun` hears of each that starts, and `tell` of each that is
    over and of how many are left. On an interrupt all are told to end, which saves their work, and it is raised again.
    """
    waiting, running, codes = list(pieces), dict[str, tuple[Piece, subprocess.Popen[bytes], float]](), dict[str, int]()
    environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, cores() // workers)))
    try:
        while waiting or running:
            for piece in list(waiting):  # in their order: what comes after one that is left out is left out too
                if any(codes.get(name, 0) not in WELL for name in piece.after):
                    waiting.remove(piece)
                    codes[piece.name] = SKIPPED
                    tell(Done(piece, SKIPPED, 0.0), len(waiting) + len(running))
            ready = [one for one in waiting if all(codes.get(name) in WELL for name in one.after)]
            for piece in ready[: workers - len(running)]:
                waiting.remove(piece)
                running[piece.name] = (piece, _started(piece, environment), time.monotonic())
                begun(piece)
            time.sleep(LOOK_EVERY)
            for name, (piece, process, since) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[name]
                    codes[name] = code
                    tell(Done(piece, code, time.monotonic() - since), len(waiting) + len(running))
    finally:
        _end([process for _, process, _ in running.values()])
    return codes


def _started(piece: Piece, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    piece.log.parent.mkdir(parents=True, exist_ok=True)
    with piece.log.open("wb") as log:
        return subprocess.Popen(
            piece.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # an interrupt at the keyboard reaches this process alone, which hands it on once
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell what still runs to end, wait until it has saved its work, and end it by force where it takes too long."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
