"""One process that reads items for `readers`: what it is asked comes by the standard input, and goes by the output."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from contextlib import suppress

import torch

from compress.errors import UsageError
from compress.training.readers import Columns, items


def main() -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the run itself takes care, and closes the pipe
    torch.set_num_threads(1)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what somebody's data set prints is no reply
    with suppress(EOFError, BrokenPipeError):
        read = pickle.load(requests)
        while True:
            keys, seed = pickle.load(requests)
            reply: tuple[Columns | None, str | None]
            try:
                reply = items(read, keys, seed), None
            except UsageError as error:
                reply = None, str(error)
            pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()


if __name__ == "__main__":
    main()
