"""A model with a `prepare` is shown training images once before it is trained, and what it sets goes all the way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import compress
from compress._plan import images, methods_of
from compress._run import develop, prepare
from compress.errors import Interrupted, UsageError
from compress.recipe.settings import Recipe
from compress.training import checkpoint
from compress.training.events import Event, Progress
from compress.training.prepare import BYTES, shown

# Its stem is fixed, and so is a number that is no parameter; both are what the images say. SEEN counts the calls.
NET = """
import torch
from torch import nn

SEEN = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.stem.weight.requires_grad_(False)
        self.register_buffer("middle", torch.zeros(1))
        self.body = nn.Sequential(nn.Conv2d(6, 12, 3), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(12, 10)

    def prepare(self, images):
        SEEN.append(images.shape)
        self.middle.fill_(images.mean())
        self.stem.weight.copy_(images[:6, :, 2:5, 2:5])
        self.stem.bias.fill_(0.5)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.stem(x - self.middle))).mean((2, 3)))

class Broken(Net):
    def prepare(self, images):
        raise RuntimeError("no such eigenvector")

class Wider(Net):
    def prepare(self, images):
        self.middle = images.mean(0)

class Endless(Net):
    def prepare(self, images):
        self.middle.fill_(float("inf"))
"""
ADENEL = {"name": "adenel", "seed_width": 2, "filters": 5, "grow": "all", "tune": {"epochs": 1}}
METHODS: Mapping[str, Any] = {
    "adenel": {"method": ADENEL},
    "l1": {"method": {"name": "l1", "tune": {"epochs": 1}}},
    "scratch": {"method": {"name": "scratch", "epochs": 1}, "budget": "100%"},
}


def recipe(method: str = "adenel", factory: str = "./net.py:Net", **more: Any) -> Recipe:
    keys = {"model": {"factory": factory}, "train": {"batch": 100}, "checkpoint": "5 steps", "budget": "50%"}
    return Recipe.model_validate({**keys, **METHODS[method], **more})


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def as_prepared(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """What `Net.prepare` sets, reckoned from the data: the middle, and the stem's weight."""
    data = images(recipe, torch.device("cpu"))
    steps = data.counts["train"] // recipe.train.batch
    seen = torch.cat([x for x, _ in data.stream(0, steps, varied=False)])  # type: ignore[misc]
    return seen.mean(), seen[:6, :, 2:5, 2:5]


@pytest.mark.parametrize("method", METHODS)
def test_what_it_sets_is_in_the_artifact_and_loading_needs_no_data(method: str) -> None:
    asked = recipe(method)
    compress.run(asked, out="out")
    middle, stem = as_prepared(asked)
    written = load_file("out/model.safetensors")
    torch.testing.assert_close(written["stem.weight"], stem, rtol=0, atol=0)
    torch.testing.assert_close(written["middle"], middle.view(1))
    model = compress.load("out", trust=True)
    torch.testing.assert_close(model.get_parameter("stem.weight").detach(), stem, rtol=0, atol=0)
    assert compress.verify("out", asked.budget).code == 0


def test_it_is_called_once_with_one_pass_of_images_as_training_sees_them_unvaried(shop: Path) -> None:
    bench, _ = prepare(recipe(data={"source": "digits", "crop": 2}), "cpu")
    seen = __import__("sys").modules[type(bench.model).__module__].SEEN
    seen.clear()
    develop(bench, methods_of(bench.recipe), shop)
    assert seen == [(1000, 1, 8, 8)]


def test_a_plan_calls_it_not() -> None:
    planned = compress.plan(recipe("adenel", "./net.py:Broken"))
    assert planned.feasible
    assert planned.graph.spaces["stem"].frozen == "stem.weight cannot be trained (requires_grad is False)"


def test_a_resumed_run_takes_what_was_set_from_the_checkpoint(shop: Path) -> None:
    asked = recipe()
    compress.run(asked, out="whole")

    def stop(event: Event) -> None:
        saved = checkpoint.load(shop / "out.partial")
        if isinstance(event, Progress) and saved is not None:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        compress.run(asked, out="out", listen=stop)
    (shop / "net.py").write_text(NET.replace("SEEN.append(images.shape)", "raise RuntimeError('called again')"))
    compress.run(asked, out="out", resume=True)
    assert json.loads(Path("out/report.json").read_text())["resumed_from"] > 0
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_weights_from_a_file_hold_what_it_had_set(shop: Path) -> None:
    compress.run(recipe("scratch"), out="trained")
    given = load_file("trained/model.safetensors")
    keys = {"factory": "./net.py:Broken", "weights": "trained/model.safetensors"}
    bench, _ = prepare(recipe("l1", model=keys), "cpu")
    develop(bench, methods_of(bench.recipe), shop)
    assert torch.equal(bench.model.get_parameter("stem.weight"), given["stem.weight"])


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("Broken", r"\./net\.py:Broken: prepare\(images\) of the model failed \(RuntimeError: no such eigenvector\)"),
        ("Wider", r"prepare\(images\) changed the shape of middle; it may set numbers alone"),
        ("Endless", r"prepare\(images\) set middle to numbers that are not finite"),
    ],
)
def test_what_goes_wrong_in_it_is_told_as_the_users(factory: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compress.run(recipe("adenel", f"./net.py:{factory}"), out="out")
    assert not Path("out").exists()


def test_large_images_are_shown_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BYTES // (4 * 3 * 64 * 64) >= 5000  # 64 px in colour: all
    data = images(recipe(), torch.device("cpu"))
    monkeypatch.setattr("compress.training.prepare.BYTES", 150 * 4 * 64)
    batch = shown(data)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (150, 1, 8, 8)
