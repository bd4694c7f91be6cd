"""What goes wrong is told as whose it is: the user's code by its line, the machine by what it lacks."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import main

NET = """
import os, shutil, sys, torch
from torch import nn
from compress.models import vgg

ARGS = {"widths": [4, 6], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}

class Net(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.net, self.call, self.calls = vgg(**ARGS), call, 0

    def forward(self, x):
        if self.training and not x.is_meta:
            self.calls += 1
            if self.calls == self.call:
                raise ValueError("on purpose")
        print("hello from forward")
        return self.net(x)

def fails(call=1):
    return Net(call)

def moves():
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    print("hello from the factory")
    return vgg(**ARGS).float()

def ghost():
    torch.set_default_device("meta")
    return vgg(**ARGS)

class Greedy(Net):
    def forward(self, x):
        if self.training and not x.is_meta:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return self.net(x)

class Removes(Net):
    def forward(self, x):
        if self.training and not x.is_meta:
            shutil.rmtree("gone.partial", ignore_errors=True)
        return self.net(x)

def removes():
    return Removes(0)

def greedy():
    return Greedy(0)

def lonely():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))

def nothing(output, y):
    return torch.full((len(y),), float("nan"))
"""
RECIPE = """
model: {factory: "./net.py:%s"}
train: {batch: 200, ema: 0}
method: {name: adenel, seed_width: 2, round: 3 steps, max_rounds: 1, tune: {epochs: 1}}
budget: 60%%
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def told(factory: str, *more: str, command: str = "run") -> tuple[int, str, str]:
    """The exit code, stdout, and the last line of stderr."""
    Path("r.yaml").write_text(RECIPE % factory)
    done = CliRunner().invoke(main, [command, "r.yaml", *more])
    return done.exit_code, done.stdout, (done.stderr.splitlines() or [""])[-1]


@pytest.mark.parametrize("call", [1, 4])
def test_a_forward_that_raises_in_training_is_told_by_its_line(call: int) -> None:
    code, _, line = told("fails", "--set", f"model.args.call={call}", "--out", "o")
    assert (code, line) == (2, "compress: net.py, line 17, in forward() failed: ValueError: on purpose.")
    assert not Path("o").exists()


def test_what_somebodys_code_prints_is_no_part_of_the_json(shop: Path) -> None:
    code, out, _ = told("fails", "--set", "model.args.call=0", "--json", "--out", "o")
    assert (code, json.loads(out)["verdict"]["code"]) == (0, 0)
    code, out, _ = told("moves", "--json", command="plan")
    assert (code, json.loads(out)["feasible"]) == (0, True)


def test_a_factory_that_moves_and_sets_defaults_changes_nothing(shop: Path) -> None:
    code, _, _ = told("moves", "--out", "o")
    assert code == 0
    assert os.path.samefile(Path.cwd(), shop)
    assert (shop / "o" / "report.json").is_file()


def test_tensors_without_numbers_are_told() -> None:
    code, _, line = told("ghost", command="plan")
    assert code == 2
    assert "returns tensors without numbers (device meta)" in line


def test_a_metric_that_is_no_number_is_told_with_its_name() -> None:
    code, _, line = told("moves", "--set", "train.metric=./net.py:nothing", "--out", "o")
    assert (code, line) == (
        2, "compress: train.metric: net.py:nothing returned nan or inf for 200 images; scores must be numbers.",
    )  # fmt: skip


def test_a_full_memory_is_the_machines() -> None:
    code, _, line = told("greedy", "--out", "o")
    assert (code, line) == (2, "compress: Out of memory; take a smaller train.batch, or a machine with more.")


@pytest.mark.parametrize(
    ("out", "says"),
    [("x" * 300, "cannot be used (File name too long); choose a shorter name"), ("link", "a link that leads nowhere")],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(out: str, says: str) -> None:
    os.symlink("nowhere", "link")
    code, _, line = told("fails", "--out", out)  # whose training would fail
    assert code == 2
    assert says in line


def test_a_pipe_and_a_book_are_no_recipes(shop: Path) -> None:
    os.mkfifo("pipe.yaml")
    done = CliRunner().invoke(main, ["plan", "pipe.yaml"])
    assert (done.exit_code, "a pipe, which may never end" in done.stderr) == (2, True)
    Path("many.yaml").write_text("seed: 0\n" + "".join(f"k{n}: 1\n" for n in range(60_000)))
    done = CliRunner().invoke(main, ["plan", "many.yaml"])
    assert (done.exit_code, "at most 64 KiB" in done.stderr) == (2, True)
    Path("some.yaml").write_text((RECIPE % "moves") + "".join(f"k{n}: 1\n" for n in range(100)))
    done = CliRunner().invoke(main, ["plan", "some.yaml"])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, "and 80 more mistakes.")


@pytest.mark.parametrize("key", ["loss", "metric", "step"])
def test_a_plan_looks_for_the_functions_that_training_will_need(key: str) -> None:
    code, _, line = told("moves", "--set", f"train.{key}=./net.py:absent", command="plan")
    assert code == 2
    assert f"train.{key}: net.py has no callable named absent" in line


def test_a_batch_of_one_is_refused_where_a_batch_norm_would_see_one_value() -> None:
    code, _, line = told("lonely", "--set", "train.batch=1", "--set", "method={name: l1}", command="plan")
    assert code == 2
    assert line.startswith("compress: train.batch: 1 is too small for the model's batch norms")


def test_a_folder_that_is_removed_while_it_is_worked_in_is_no_fault_of_ours(shop: Path) -> None:
    code, _, said = told("removes", "--out", "gone")
    assert code == 2
    assert "gone.partial was removed while this command worked in it; begin anew." in said
