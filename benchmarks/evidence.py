"""What a benchmark's table ends with: the command that made it, and on what it ran."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import torch

from compress.export.parts import Environment, portable


def command() -> str:
    """The command that is running, from the project's root, without this machine's folders."""
    return portable(shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def machine(*others: str) -> str:
    """Versions (Python's, torch's, and `others` as they are written), processor and threads, in one sentence."""
    facts = Environment.here(device="cpu", threads=torch.get_num_threads())
    return ", ".join([f"Python {facts.python}", f"torch {facts.torch}", *others, facts.cpu, facts.threads_in_words()])
