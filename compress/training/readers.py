"""Processes that read what is too much for memory, or is somebody's own: each asks `read` for one item after another.

readers = Readers(read, workers=4)
readers.ask(keys, seed).result()      the items of these keys, their columns stacked: [n, ...] each

They are started when first asked, by a pipe of their own: nothing is forked from a process that holds threads or a GPU,
and a caller's main module is not run again. They end with the process that started them, whatever ended that.
"""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import UsageError, one_line, place_of

Columns = tuple[NDArray[Any], ...]
Read = Callable[[Any], Columns]


class Readers:
    """So many processes that read items; with none of them, items are read where they are asked for."""

    def __init__(self, read: Read, workers: int) -> None:
        self._read, self._workers = read, workers
        self._own = threading.local()  # each thread speaks with one process
        self._started: list[subprocess.Popen[bytes]] = []
        self._pool: ThreadPoolExecutor | None = None
        weakref.finalize(self, _end, self._started)

    @property
    def ahead(self) -> int:
        """How many requests keep all of them at work."""
        return self._workers + 1 if self._workers else 0

    def ask(self, keys: Sequence[Hashable], seed: int) -> Future[Columns]:
        """Read these; what is random in it follows from the seed. The result raises UsageError."""
        if not self._workers:
            done: Future[Columns] = Future()
            try:
                done.set_result(items(self._read, keys, seed))
            except UsageError as error:
                done.set_exception(error)
            return done
        self._pool = self._pool or ThreadPoolExecutor(self._workers, "reader")
        return self._pool.submit(self._asked, keys, seed)

    def _asked(self, keys: Sequence[Hashable], seed: int) -> Columns:
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        try:
            if process is None:
                process = self._own.process = _started()
                self._started.append(process)
                _send(process, self._read)
            _send(process, (keys, seed))
            assert process.stdout is not None
            columns, told = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = process.wait() if process else None
            raise UsageError(
                f"A process that reads data ended with {code}; -9 is the system's, for want of memory: take fewer "
                "data.workers. With workers: 0 items are read in the run's own process."
            ) from None
        if told is not None:
            raise UsageError(told)
        result: Columns = columns
        return result


def items(read: Read, keys: Sequence[Hashable], seed: int) -> Columns:
    """Read items one by one and stack their columns; Python's, numpy's and torch's generators begin anew for each.

    Raises UsageError where reading fails, told with the place in the code that it comes from, and where shapes differ.
    """
    rows: list[Columns] = []
    with _generators():
        for at, key in enumerate(keys):
            _seed(seed + at)
            try:
                rows.append(read(key))
            except UsageError:
                raise
            except Exception as error:
                place = place_of(error)
                raise UsageError(
                    f"{f'{place} failed' if place else f'Reading {key} failed'}: {one_line(error)}"
                ) from None
    for key, row in zip(keys, rows, strict=True):
        if unlike := [
            f"{list(b.shape)} of {b.dtype}" for a, b in zip(rows[0], row, strict=False) if _kind(a) != _kind(b)
        ]:
            first = ", ".join(f"{list(a.shape)} of {a.dtype}" for a in rows[0])
            raise UsageError(f"Item {key} has {unlike[0]}, item {keys[0]} has {first}; all must be alike.")
        if len(row) != len(rows[0]):
            raise UsageError(f"Item {key} has {len(row)} parts, item {keys[0]} has {len(rows[0])}; all must be alike.")
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


def _kind(column: NDArray[Any]) -> tuple[Any, ...]:
    return column.dtype, column.shape


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


@contextmanager
def _generators() -> Iterator[None]:
    """All global generators are afterwards as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _started() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    whole = [sys.executable, "-m", "compress.training.reader"]
    return subprocess.Popen(whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _send(process: subprocess.Popen[bytes], what: object) -> None:
    assert process.stdin is not None
    pickle.dump(what, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not sent yet
                pipe.close()  # type: ignore[union-attr]
