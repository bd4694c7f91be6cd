"""A task of one's own trains, scores, lands and exports like classification; what does not fit is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import compress
from compress._plan import methods_of
from compress._run import develop, prepare, run
from compress.errors import UsageError
from compress.recipe import settings
from compress.recipe.settings import Recipe
from compress.training import data
from compress.training.task import classification, task_of

NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Points(nn.Module):
    '''Where the bright spot is: two numbers.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 2)
    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))).flatten(1))

class Masks(nn.Module):
    '''A class for each pixel.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.out = nn.Conv2d(12, 2, 1)
    def forward(self, x):
        return self.out(F.relu(self.up(F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2))))))

def mse(output, y):
    return F.mse_loss(output, y)

def closeness(output, y):
    return -(output - y).abs().mean(1)

def pixels(output, y):
    return F.cross_entropy(output, y)

def iou(output, y):
    got = output.argmax(1) == 1
    return (got & (y == 1)).sum((1, 2)) / (got | (y == 1)).sum((1, 2)).clamp(min=1)

def mixed(model, x, y):
    output = model(x + 0.01 * torch.randn_like(x) * model.training)
    return F.mse_loss(output.float(), y), output.float()

def wide(output, y):
    return output

def broken(output, y):
    raise KeyError("labels")
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: networks, and images with one bright square each, its place and its mask."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    draw = np.random.default_rng(0)
    sets: dict[str, Any] = {}
    for split, n in (("train", 400), ("test", 50)):
        x, corner = draw.integers(0, 40, (n, 8, 8), np.uint8), draw.integers(0, 6, (n, 2))
        mask = np.zeros((n, 8, 8), np.int64)
        for i, (top, left) in enumerate(corner):
            mask[i, top : top + 3, left : left + 3] = 1
        sets[split] = np.where(mask, 250, x).astype(np.uint8), (corner / 6).astype(np.float64), mask
    for name, at in (("points", 1), ("masks", 2)):
        arrays = {f"{axis}_{split}": part for split, of in sets.items() for axis, part in (("x", of[0]), ("y", of[at]))}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return tmp_path


def recipe(kind: str, **train: Any) -> Recipe:
    said = {"points": {"loss": "./net.py:mse", "metric": "./net.py:closeness"}}
    said["masks"] = {"loss": "./net.py:pixels", "metric": "./net.py:iou"}
    keys = {
        "model": {"factory": f"./net.py:{kind.capitalize()}"},
        "data": {"source": "npz", "path": f"{kind}.npz"},
        "train": {"batch": 20, "lr": 0.05, **said[kind], **train},
        "method": {"name": "adenel", "seed_width": 4, "round": "8 steps", "tune": {"epochs": 6}},
        "budget": "60%",
    }
    return Recipe.model_validate(keys)


@pytest.mark.parametrize(
    ("kind", "least", "required", "verdict"),
    [("points", -0.15, -0.001, "is below the required -0.001"), ("masks", 0.8, 0.8, "kept: ")],
)
def test_another_task_is_grown_landed_exported_and_held_to_its_own_metric(
    kind: str, least: float, required: float, verdict: str
) -> None:
    said = recipe(kind).model_copy(update={"require": settings.Require(val_score=required)})
    told = run(said, out="out").report.plain()
    assert told["verdict"]["code"] == (least < required)
    assert verdict in told["verdict"]["text"]
    assert told["landing"]["utilisation"] > 0.97
    assert told["accuracy"]["metric"] == said.train.metric
    assert least < told["accuracy"]["test"] < 1
    assert {entry["top1_equal"] for entry in told["parity"].values()} == {None}
    assert f"({said.train.metric}): validation" in Path("out/report.md").read_text()
    x = np.load(f"{kind}.npz")["x_test"][:4, None].astype(np.float32) / 255
    pixels = told["preprocessing"]
    x = (x - np.float32(pixels["mean"][0])) / np.float32(pixels["std"][0])
    (out,) = onnxruntime.InferenceSession("out/model.onnx").run(None, {"images": x})
    again = compress.load("out")(torch.from_numpy(x)).detach().numpy()
    assert out.shape == ((4, 2) if kind == "points" else (4, 2, 8, 8))
    assert np.abs(out - again).max() < 1e-4 * np.abs(again).max()
    assert json.loads(Path("out/report.json").read_text()) == told


def test_a_step_of_ones_own_replaces_forward_and_loss(tmp_path: Path) -> None:
    said = recipe("points", step="./net.py:mixed", loss=None)
    lab, _ = prepare(said, "cpu")
    develop(lab, methods_of(said), tmp_path)
    assert -0.2 < lab.score().accuracy < 0


@pytest.mark.parametrize(
    ("kind", "train", "says"),
    [
        ("points", {"loss": None}, r"are no class labels; name train\.metric|no class labels; name train\.loss and"),
        ("points", {"metric": None}, r"are no class labels; name train\.metric, such as"),
        ("points", {"loss": "./net.py:none"}, r"train\.loss: \./net\.py has no callable named none"),
        ("points", {"loss": "./net.py:broken"}, r"train\.loss: \./net\.py:broken failed \(KeyError: 'labels'\)"),
        ("points", {"loss": "./net.py:wide"}, r"train\.loss: .*returned \[20, 2\]; it must return a tensor"),
        ("points", {"metric": "./net.py:wide"}, r"train\.metric: .* one number, or one for each of"),
        ("points", {"step": "./net.py:mixed"}, r"train\.step and train\.loss both say the loss"),
        ("points", {"step": "./net.py:mse", "loss": None}, r"train\.step: \./net\.py:mse failed \(TypeError"),
    ],
)  # fmt: skip
def test_what_is_no_task_is_told_in_a_sentence(kind: str, train: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run(recipe(kind, **train), out="out")
    assert not Path("out").exists()


def test_images_are_not_moved_away_from_their_masks() -> None:
    with pytest.raises(UsageError, match="would move the images and not their targets"):
        data.load(settings.Data(source="npz", path="masks.npz", flip=True), batch=8, seed=0, device=torch.device("cpu"))


def test_targets_must_match_their_images() -> None:
    arrays = dict(np.load("points.npz"))
    for key, value, says in (
        ("y_test", arrays["y_test"][:, :1], r"y_test is float64 \[50, 1\]; expected float64 \[50, 2\]"),
        ("y_train", np.full_like(arrays["y_train"], np.nan), "y_train holds numbers that are not finite"),
        ("y_train", arrays["y_train"].astype(str), "expected a whole number for each of 400 images"),
    ):
        np.savez("bad.npz", **{**arrays, key: value})
        with pytest.raises(UsageError, match=says):
            data.load(settings.Data(source="npz", path="bad.npz"), batch=8, seed=0, device=torch.device("cpu"))


def test_without_words_of_its_own_a_task_is_classification() -> None:
    digits = data.load(settings.Data(), batch=8, seed=0, device=torch.device("cpu"))
    task, usual = task_of(settings.Train(label_smoothing=0.1), digits), classification(digits, 0.1)
    output, y = torch.randn(8, 10), torch.arange(8)
    assert task.name == "top-1"
    assert torch.equal(task.loss(output, y), usual.loss(output, y))
    assert torch.equal(task.metric(output, y), (output.argmax(1) == y).float())
