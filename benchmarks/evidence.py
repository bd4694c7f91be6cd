"""What benchmarks share: rows that are written as they end, and what a table ends with."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.export.parts import Environment, portable


def command() -> str:
    """The command that is running, from the project's root, without this machine's folders."""
    return portable(shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def machine(*others: str) -> str:
    """Versions (Python's, torch's, and `others` as they are written), processor and threads, in one sentence."""
    facts = Environment.here(device="cpu", threads=torch.get_num_threads())
    return ", ".join([f"Python {facts.python}", f"torch {facts.torch}", *others, facts.cpu, facts.threads_in_words()])


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no such file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Whether a row of this name is ours to measure; False while another process is at work on it."""
    claim = Path(tempfile.gettempdir()) / f"{name}.claim"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink()
