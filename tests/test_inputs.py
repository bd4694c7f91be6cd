"""A net of two inputs is planned, grown, finalized, exported, verified and loaded as one of a single input is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import compress
from compress._plan import methods_of, plan
from compress._run import develop, prepare, run
from compress.errors import UsageError
from compress.export.report import report_schema
from compress.export.verify import verify
from compress.recipe import settings
from compress.recipe.settings import Recipe
from compress.training import data

NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Both(nn.Module):
    '''Whether the image is bright on the side that five numbers say.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.side = nn.Linear(5, 16)
        self.hidden, self.head = nn.Linear(16 * 16 + 16, 32), nn.Linear(32, 2)
    def forward(self, x, side):
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2).flatten(1)
        x = torch.cat([x, F.relu(self.side(side))], 1)
        return self.head(F.relu(self.hidden(x)))

def step(model, x, y):
    images, side = x
    output = model(images, side + 0.01 * torch.randn_like(side) * model.training)
    return F.cross_entropy(output, y), output
"""
SHAPE = ((1, 8, 8), (5,))


def counted(a: int, b: int, side: int, hidden: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of that net with these widths, with pencil and paper."""
    params = a * (9 + 1) + b * (9 * a + 1) + side * (5 + 1) + hidden * (16 * b + side + 1) + 2 * (hidden + 1)
    return params, 64 * 9 * a + 64 * 9 * a * b + 5 * side + hidden * (16 * b + side) + 2 * hidden


def widths_in(model: torch.nn.Module) -> dict[str, int]:
    return {name: len(model.get_parameter(f"{name}.weight")) for name in ("a", "b", "side", "hidden")}


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: neither the images nor the numbers alone tell the class, which is their exclusive or."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    draw, arrays = np.random.default_rng(0), dict[str, Any]()
    for split, n in (("train", 600), ("test", 100)):
        right, sign = draw.integers(0, 2, n), draw.integers(0, 2, n)
        x = draw.integers(0, 60, (n, 8, 8), np.uint8)
        for image, at in zip(x, 4 * right, strict=True):
            image[:, at : at + 4] += 150
        arrays |= {f"x_{split}": x, f"y_{split}": right ^ sign}
        arrays[f"x2_{split}"] = (2 * sign - 1)[:, None] + 0.2 * draw.standard_normal((n, 5))
    np.savez(tmp_path / "both.npz", **arrays)
    return tmp_path


def recipe(**said: Any) -> Recipe:
    keys = {
        "model": {"factory": "./net.py:Both", "input": [[1, 8, 8], [5]]},
        "data": {"source": "npz", "path": "both.npz"},
        "train": {"batch": 20, "lr": 0.05},
        "method": {"name": "adenel", "seed_width": 4, "round": "8 steps", "tune": {"epochs": 6}},
        "budget": "60%params, 60%",
    }
    return Recipe.model_validate({**keys, **said})


def test_a_net_of_two_inputs_goes_the_whole_way() -> None:
    told = run(recipe(export=settings.Export(bake_preprocessing=True)), out="out").report.plain()
    assert told["verdict"]["code"] == 0
    assert told["landing"]["utilisation"] > 0.97
    assert told["accuracy"]["test"] > 0.95  # by one input alone: a half
    assert {name: entry["top1_equal"] for name, entry in told["parity"].items()} == dict.fromkeys(
        ("model.onnx", "model.pt2", "model.safetensors"), True
    )
    assert "model.py is left out: the network cannot be written in plain torch, for it has 2 inputs" in told["notes"]
    assert told["preprocessing"]["others"] == [{"name": "x2", "shape": [5]}]
    assert "std (" not in Path("out/report.md").read_text()
    assert "normalised inside; x2: float32 [N, 5]" in Path("out/report.md").read_text()
    assert json.loads(Path("out/report.json").read_text()) == told
    assert compress.verify("out", "60%params, 60%").code == 0

    arrays, said = np.load("both.npz"), told["preprocessing"]
    pixels, numbers = arrays["x_test"][:, None].astype(np.float32), arrays["x2_test"].astype(np.float32)
    session = onnxruntime.InferenceSession("out/model.onnx")
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("images", ["batch", 1, 8, 8]),
        ("x2", ["batch", 5]),
    ]
    (out,) = session.run(None, {"images": pixels, "x2": numbers})
    assert (out.argmax(1) == arrays["y_test"]).mean() == told["accuracy"]["test"]
    normalised = (pixels / 255 - np.float32(said["mean"][0])) / np.float32(said["std"][0])
    for model in (compress.load("out"), compress.load("out", trust=True)):  # a program, and the user's own class
        again = model(torch.from_numpy(normalised), torch.from_numpy(numbers)).detach().numpy()
        assert np.abs(out - again).max() < 1e-4 * np.abs(again).max()


def test_a_net_of_two_inputs_is_narrowed_by_a_step_of_ones_own(tmp_path: Path) -> None:
    method = {"name": "l1", "rounds": 2, "round": "8 steps", "tune": {"epochs": 2}}
    said = recipe(method=method, train={"batch": 20, "step": "./net.py:step"})
    lab, planned = prepare(said, "cpu")
    develop(lab, methods_of(said), tmp_path)
    assert lab.budget.holds(lab.cost())
    assert lab.budget.utilisation(lab.cost()) > 0.97
    assert lab.score("test").accuracy > 0.9
    cost, (full, _) = lab.cost(), counted(16, 16, 16, 32)
    assert (cost.params, cost.macs) == counted(**lab.widths) == counted(**widths_in(lab.model))
    assert cost.params <= 0.6 * full
    assert planned.graph.shape == lab.shape == SHAPE


def test_a_plan_of_two_inputs_needs_no_data_where_the_recipe_says_their_shapes() -> None:
    planned = plan(recipe(data={"source": "npz", "path": "elsewhere.npz"}))
    assert (planned.graph.shape, planned.feasible) == (SHAPE, True)
    assert (planned.base.params, planned.base.macs) == counted(16, 16, 16, 32)
    said = recipe(model={"factory": "./net.py:Both"})
    assert (plan(said).base, plan(said).graph.shape) == (planned.base, SHAPE)
    assert recipe(model={"factory": "./net.py:Both", "input": [[1, 8, 8]]}).model.input == (1, 8, 8)


def test_only_images_are_varied_and_normalised_and_every_row_stays_with_its_image() -> None:
    arrays = dict(np.load("both.npz"))
    for split in ("train", "test"):  # the numbers of an image are its first pixel
        arrays[f"x2_{split}"] = arrays[f"x_{split}"][:, 0, :1].astype(np.float16)
    np.savez("same.npz", **arrays)
    said = settings.Data(source="npz", path="same.npz", mean=(0.0,), std=(1.0,))
    of = data.load(said, batch=16, seed=0, device=torch.device("cpu"))
    assert of.shape == ((1, 8, 8), (1,))
    for (images, numbers), _ in [*of.stream(0, 40), *of.split("val"), *of.split("test")]:
        assert torch.allclose(images[:, 0, 0, :1] * 255, numbers)
    varied = data.load(said.model_copy(update={"crop": 2}), batch=16, seed=0, device=torch.device("cpu"))
    for ((_, before), _), ((moved, after), _) in zip(of.stream(0, 3), varied.stream(0, 3), strict=True):
        assert torch.equal(before, after)
        assert not torch.allclose(moved[:, 0, 0, :1] * 255, after)
    raw, rows = of.raw("test", 3)
    assert (raw.dtype, rows.dtype, rows.shape) == (torch.uint8, torch.float32, (3, 1))


def test_other_numbers_beside_the_same_images_are_another_data_set() -> None:
    arrays = dict(np.load("both.npz"))
    np.savez("other.npz", **{**arrays, "x2_train": arrays["x2_train"] + 1})
    digests = [
        data.load(settings.Data(source="npz", path=path), batch=16, seed=0, device=torch.device("cpu")).digest
        for path in ("both.npz", "other.npz")
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x2_test": None}, "expected x_test, x_train, y_test, y_train .* also x2_train, x2_test"),
        ({"x3_train": np.ones((600, 1))}, "expected x_test, x_train, y_test, y_train"),
        (
            {"x2_train": np.ones((600, 5), complex)},
            r"x2_train is complex128 \[600, 5\]; expected floats or ids \[600, 5\]",
        ),
        (
            {"x2_train": np.full((600, 5), 2**24 + 1)},
            "holds whole numbers above 16,777,216, which float32 does not hold",
        ),
        ({"x2_train": np.ones(600)}, r"x2_train is float64 \[600\]; expected floats or ids \[600, \.\.\.\], one row"),
        ({"x2_test": np.ones((100, 4))}, r"x2_test is float64 \[100, 4\]; expected floats or ids \[100, 5\]"),
        ({"x2_test": np.full((100, 5), 1e300)}, "x2_test holds numbers that are not finite in float32"),
    ],
)
def test_what_is_no_further_input_is_told_in_a_sentence(change: dict[str, Any], says: str) -> None:
    np.savez("bad.npz", **{k: v for k, v in {**np.load("both.npz"), **change}.items() if v is not None})
    with pytest.raises(UsageError, match=says):
        data.load(settings.Data(source="npz", path="bad.npz"), batch=8, seed=0, device=torch.device("cpu"))


def test_shapes_that_are_not_those_of_the_data_are_told() -> None:
    says = r"model\.input is \[\[1, 8, 8\], \[6\]\], but the inputs of npz are \[\[1, 8, 8\], \[5\]\]"
    with pytest.raises(UsageError, match=r"model cannot be traced with inputs of shapes \[\[1, 1, 8, 8\], \[1, 6\]\]"):
        run(recipe(model={"factory": "./net.py:Both", "input": [[1, 8, 8], [6]]}), out="out")
    (Path("any.py")).write_text(NET.replace("self.side(side)", "self.side(side[:, :5])"))
    with pytest.raises(UsageError, match=says):
        run(recipe(model={"factory": "./any.py:Both", "input": [[1, 8, 8], [6]]}), out="out")


def test_the_published_schema_knows_further_inputs() -> None:
    table = report_schema()["$defs"]["Preprocessing"]
    assert "others" in table["properties"]
    assert "others" not in table["required"]


SERIES = """
import torch
from torch import nn
from torch.nn import functional as F

class Series(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.half = width // 2
        self.a, self.n = nn.Conv1d(2, width, 3, padding=1), nn.BatchNorm1d(width)
        self.r, self.head = nn.GRU(width, 10, batch_first=True), nn.Linear(10, 3)
    def forward(self, x):
        one, other = F.max_pool1d(F.relu(self.n(self.a(x))), 4).split([self.half, self.half], 1)
        return self.head(self.r(torch.cat([one, other], 1).transpose(1, 2))[0][:, -1])

class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)
    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.n(self.a(x))))).mean((2, 3, 4)))
"""
GROW = {"name": "adenel", "seed_width": 4, "round": "8 steps", "filters": 3, "tune": {"epochs": 6}}
PRUNE = {"name": "l1", "rounds": 2, "round": "8 steps", "tune": {"epochs": 6}}


@pytest.mark.parametrize(("net", "shape", "method"), [("Series", (2, 24), PRUNE), ("Volume", (1, 4, 5, 6), GROW)])
def test_series_and_volumes_go_the_whole_way(net: str, shape: tuple[int, ...], method: dict[str, Any]) -> None:
    """Class k is where the first channel is high along its last axis: in its first, second or last third."""
    Path("series.py").write_text(SERIES)
    draw, arrays = np.random.default_rng(0), dict[str, Any]()
    for split, n in (("train", 400), ("test", 100)):
        x, y = 5 + draw.standard_normal((n, *shape)), draw.integers(0, 3, n)
        third = shape[-1] // 3
        for one, k in zip(x, y, strict=True):
            one[0] += 3 * (k + 1) if net == "Volume" else 0
            one[0, ..., k * third : (k + 1) * third] += 3
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    np.savez("arrays.npz", **arrays)
    baked = settings.Export(bake_preprocessing=True)
    said = recipe(model={"factory": f"./series.py:{net}"}, data={"source": "npz", "path": "arrays.npz"},
                  method=method, budget="60%, 70%params", export=baked)  # fmt: skip
    told = run(said, out="out").report.plain()
    assert told["verdict"]["code"] == 0
    assert all(entry["top1_equal"] for entry in told["parity"].values())
    assert (told["preprocessing"]["range"], told["preprocessing"]["shape"]) == (None, list(shape))
    assert "pixels" not in Path("out/report.md").read_text()
    x = arrays["x_test"].astype(np.float32)
    (out,) = onnxruntime.InferenceSession("out/model.onnx").run(None, {"images": x})
    assert (out.argmax(1) == arrays["y_test"]).mean() == told["accuracy"]["test"] > 0.6
    axes = (1, -1, *[1] * (len(shape) - 1))
    mean, std = (np.float32(told["preprocessing"][key]).reshape(axes) for key in ("mean", "std"))
    for model in (compress.load("out"), compress.load("out", trust=True)):
        again = model(torch.from_numpy((x - mean) / std)).detach().numpy()
        assert np.abs(out - again).max() < 1e-4 * np.abs(again).max()
    if net == "Series":
        assert compress.load("out", trust=True).half * 2 == told["spaces"][0]["width"] * 2 < 12


ASKED = """
import torch
from torch import nn
from torch.nn import functional as F

class Asked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.words, self.r = nn.Embedding(40, 8), nn.Linear(8, 16)
        self.hidden, self.head = nn.Linear(12 * 16 + 16, 24), nn.Linear(24, 2)
    def forward(self, x, words):
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2).flatten(1)
        said = F.relu(self.r(self.words(words.long()))).mean(1)
        return self.head(F.relu(self.hidden(torch.cat([x, said], 1))))
"""


def test_token_ids_beside_images_go_the_whole_way() -> None:
    """Whether the image is bright on the side that a sentence of six words names: one word, among others, says left."""
    Path("asked.py").write_text(ASKED)
    draw, arrays = np.random.default_rng(0), dict[str, Any]()
    for split, n in (("train", 600), ("test", 100)):
        x, words = draw.integers(0, 90, (n, 8, 8)), draw.integers(2, 40, (n, 6))
        left, said = draw.integers(0, 2, n), draw.integers(0, 2, n)
        words[np.arange(n), draw.integers(0, 6, n)] = said
        for image, side in zip(x, left, strict=True):
            image[:, 4 * side : 4 * side + 4] += 150
        arrays |= {f"x_{split}": x.astype(np.uint8), f"x2_{split}": words, f"y_{split}": (left == said).astype(int)}
    np.savez("asked.npz", **arrays)
    said = recipe(model={"factory": "./asked.py:Asked"}, data={"source": "npz", "path": "asked.npz"}, budget="60%",
                  method={"name": "l1", "tune": {"epochs": 30}})  # fmt: skip
    told = run(said, out="out").report.plain()
    assert told["verdict"]["code"] == 0
    assert {row["name"] for row in told["spaces"] if row["frozen"] is None} >= {"a", "b", "r", "hidden"}
    assert all(entry["top1_equal"] for entry in told["parity"].values())
    assert verify("out", "60%").code == 0
    net = compress.load("out", trust=True)
    images = torch.from_numpy(arrays["x_test"][:, None]).float() / 255
    mean, std = (told["preprocessing"][key][0] for key in ("mean", "std"))
    out = net((images - mean) / std, torch.from_numpy(arrays["x2_test"])).argmax(1).numpy()
    assert (out == arrays["y_test"]).mean() == told["accuracy"]["test"] > 0.8
