"""Test processes share the cores: one thread each, or threads that wait for each other slow all of them down."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, which no test module has done yet
