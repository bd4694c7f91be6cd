"""What all tests share: a thread each, one way to draw examples, and one finished run."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# Processes share the cores: one thread each, and where a test asks for two, the one that waits keeps no core busy. Read
# when torch is first imported, which no test module has done yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples on every machine, however busy it is: a failure is a failure and no draw of luck.
settings.register_profile("compress", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("compress")

# Files that take longest, so that all processes end together: each is given a whole file when it has done one.
FIRST = [
    "test_lwp",
    "test_autogrow",
    "test_checkpoint",
    "test_source",
    "test_run",
    "test_artifact",
    "test_l1",
    "test_task",
    "test_cli",
    "test_models",
]

TINY = """\
model:
  factory: compress.models:vgg
  args: {widths: [16, 24], pools: [1, 2], last_pool: global, in_channels: 1, size: 8}
data: {source: digits, crop: 1}
train: {batch: 100}
method: {name: adenel, seed_width: 4, filters: 5, grow: all, tune: {epochs: 1}}
checkpoint: 5 steps
budget: 60kMACs
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [*FIRST, ""]
    items.sort(key=lambda item: names.index(item.path.stem if item.path.stem in names else ""))


class Finished(NamedTuple):
    """A finished run, to be looked at and not changed: `compress run tiny.yaml --seed 7 --set train.lr=0.05`."""

    folder: Path  # holds tiny.yaml and runs/tiny
    out: Path  # runs/tiny
    report: dict[str, Any]
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run for all tests in all processes: the first that asks makes it, the others wait for that and read it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    ended = folder / "ended.json"
    with FileLock(f"{folder}.lock"):
        if not ended.exists():
            folder.mkdir()
            ended.write_text(json.dumps(_run(folder)))
    out = folder / "runs/tiny"
    return Finished(folder, out, json.loads((out / "report.json").read_text()), **json.loads(ended.read_text()))


def _run(folder: Path) -> dict[str, Any]:
    from click.testing import CliRunner

    from compress.cli import main

    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setattr(sys, "path", sys.path[:])
        result = CliRunner().invoke(main, ["run", "tiny.yaml", "--seed", "7", "--set", "train.lr=0.05"])
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
