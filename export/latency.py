"""How long one run of an ONNX file takes, measured as its user would run it. Needs onnxruntime, never torch.

A fresh process with onnxruntime's CPU provider and so many threads runs a batch of 1, some runs to warm up and then at
least 30 and for at least 2 seconds. The median counts; how far the runs spread is told beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import errors
from compress.budget.limits import Budget, Latency
from compress.budget.units import threads
from compress.errors import ArtifactError
from compress.export.machine import processor
from compress.packages import demand

RUNS, SECONDS = 30, 2.0  # at least as many and as long
WARM = 0.2  # seconds of runs that do not count
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


def measured_latencies(path: Path, budget: Budget) -> dict[str, Latency]:
    """Time a file in every unit of time among the limits; nothing is imported where there is none."""
    return {limit.unit: time_file(path, threads(limit.unit) or 1) for limit in budget.latencies}


def time_file(path: Path, number: int) -> Latency:
    """Time one run of a file on this many threads.

    Raises UsageError where onnxruntime is not installed, ArtifactError where it cannot run the file.
    """
    demand("onnxruntime")
    command = [sys.executable, "-P", "-m", __name__, str(path.absolute()), str(number)]
    child = subprocess.run(command, env=child_environment(), text=True, capture_output=True, check=False)
    if child.returncode:
        last = next(reversed(child.stderr.strip().splitlines()), f"exit code {child.returncode}")
        raise ArtifactError(f"{path}: its latency cannot be measured: {last}")
    nanoseconds: Mapping[str, int] = json.loads(child.stdout)
    return Latency(**nanoseconds, processor=processor())


def child_environment() -> dict[str, str]:
    """Return the environment of a child process, which finds this package wherever it was imported from."""
    ours = Path(errors.__file__).parent.parent
    paths = [str(ours), *(str(Path(entry or ".").absolute()) for entry in sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _image_for(value: Any) -> Any:
    """A batch of 1 for one input of a session."""
    import numpy as np

    shape = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
    if value.type not in _TYPES or not all(isinstance(size, int) for size in shape):
        raise ValueError(f"its input {value.name!r} is {value.type} {value.shape}, not an image of a fixed size")
    return np.random.default_rng(0).random(shape).astype(_TYPES[value.type])


def _time_here(path: str, number: int) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors only
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = number, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {value.name: _image_for(value) for value in session.get_inputs()}

    def run_for(seconds: float, least: int) -> list[int]:
        """Nanoseconds of each run."""
        taken: list[int] = []
        end = time.perf_counter_ns() + int(seconds * 10**9)
        while len(taken) < least or time.perf_counter_ns() < end:
            start = time.perf_counter_ns()
            session.run(None, inputs)
            taken.append(time.perf_counter_ns() - start)
        return taken

    run_for(WARM, 3)
    taken = sorted(run_for(SECONDS, RUNS))
    low, median, high = (taken[(len(taken) - 1) * tenths // 10] for tenths in (1, 5, 9))
    print(json.dumps({"median": median, "low": low, "high": high, "runs": len(taken)}))


if __name__ == "__main__":
    _time_here(sys.argv[1], int(sys.argv[2]))
