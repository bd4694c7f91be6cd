"""A network that somebody compressed elsewhere becomes the same files as a run leaves, and computes the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import compress
from compress._export import export_model
from compress.errors import ArtifactError, UsageError
from compress.export.verify import verify
from compress.recipe import file as recipe
from compress.surgery.weights import fill, read_weights
from compress.training.events import Doing, Event

NET = '''
import torch
from torch import nn

def make(classes=10, width=12):
    """Digits [N, 1, 8, 8] to logits; not a word of compression."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )

def pair(classes=10):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = make(classes)
        def forward(self, x):
            return self.body(x), self.body(x)
    return Pair()
'''
GONE = 5  # filters of the second convolution that are masked


def net(width: int = 12) -> nn.Sequential:
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    model: nn.Sequential = scope["make"](width=width)
    return model


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a user has it: a file with a factory, and weights beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    save_file(net().state_dict(), tmp_path / "full.safetensors")
    return tmp_path


def masked() -> nn.Sequential:
    """The net as torch.nn.utils.prune leaves it, with every reader of the masked filters silenced."""
    model = net()
    conv, linear = model[3], model[7]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert conv.bias is not None
    mask = torch.ones(16)
    mask[[1, 2, 5, 8, 13]] = 0
    with torch.no_grad():
        conv.bias *= mask
        linear.weight *= mask
    prune.custom_from_mask(conv, "weight", mask.view(-1, 1, 1, 1).expand_as(conv.weight))  # type: ignore[no-untyped-call]
    return model.eval()


def test_masked_weights_become_a_smaller_network_that_computes_the_same(shop: Path) -> None:
    there = masked()
    torch.save({"state_dict": there.state_dict(), "epoch": 3}, shop / "pruned.pt")
    mean, std = (0.25,), (0.5,)
    result = export_model("./net.py:make", "pruned.pt", (1, 8, 8), "100kMACs", "out", data="digits", mean=mean, std=std)
    report = json.loads((shop / "out/report.json").read_text())
    # Convolutions over 8x8 pixels, then the linear layer on what one average leaves.
    assert report["base"]["macs"] == 64 * 9 * (12 + 12 * 16) + 16 * 10
    assert report["cost"]["macs"] == 64 * 9 * (12 + 12 * (16 - GONE)) + (16 - GONE) * 10
    assert result.report.plain() == report
    assert result.code == report["verdict"]["code"] == 0
    assert (report["preprocessing"]["mean"], report["preprocessing"]["std"]) == ([0.25], [0.5])
    assert [(s["width"], s["full"]) for s in report["spaces"]][:2] == [(12, 12), (16 - GONE, 16)]
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(compress.load(shop / "out", trust=True)(x), there(x), atol=1e-5)
    assert verify(shop / "out", "100kMACs").code == 0
    assert not (shop / "out.partial").exists()
    assert not (shop / "out/history.svg").exists()  # it has no history here
    assert report["notes"] == [
        "it was compressed elsewhere; its training may have seen images that are called validation here"
    ]
    texts = [path.read_bytes() for path in (shop / "out").iterdir()]
    assert [str(shop).encode() in text for text in texts] == [False] * len(texts)


def test_narrow_weights_over_the_budget_are_written_and_marked_failed(shop: Path) -> None:
    save_file(net(width=7).state_dict(), shop / "narrow.safetensors")
    result = export_model(
        str(shop / "net.py:make"), "narrow.safetensors", None, ["1kparams", {"limit": "9MMACs"}], "out"
    )
    params = 7 * 9 + 2 * 7 + 16 * (7 * 9 + 1) + 10 * 17
    assert result.code == 1
    assert result.report.verdict.text.startswith("not kept")
    assert result.report.budget[0].value == params
    assert [row.kept for row in result.report.budget] == [False, True]
    assert result.report.accuracy.test is not None
    control = recipe.read(result.folder / "recipe.yaml")  # it trains the same shape anew, from where it lies
    assert control.method.name == "scratch"
    assert control.method.like == "model.safetensors"


def write(path: Path, state: Mapping[str, Any]) -> Path:
    torch.save(dict(state), path)
    return path


def test_masks_are_multiplied_in(tmp_path: Path) -> None:
    weight, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    read = read_weights(write(tmp_path / "w.pt", {"l.weight_orig": weight, "l.weight_mask": mask, "l.bias": weight[0]}))
    assert read.keys() == {"l.weight", "l.bias"}
    assert torch.equal(read["l.weight"], weight * mask)


class Payload:
    """Something that a weights file must never run."""

    def __reduce__(self) -> Any:
        return (print, ("run!",))


def test_a_weights_file_is_never_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Payload(), tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match=r"weights_only=True\) cannot read it \(UnpicklingError\)"):
        read_weights(tmp_path / "w.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x89PNG\r\n" * 40])
def test_a_broken_weights_file_is_refused_in_a_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"w\.(safetensors|pt): (not a whole|torch\.load)"):
        read_weights(tmp_path / name)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "holds no weights by name; save model.state_dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights by name; save model.state_dict"),
    ],
)
def test_a_file_without_usable_weights_says_so(tmp_path: Path, state: Mapping[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_weights(write(tmp_path / "w.pt", state))


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = dict(net().state_dict())
    for name, tensor in tensors.items():
        key = name.replace("_", ".", 1)
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"3_bias": None}, r"they lack 3\.bias\."),
        ({"9_weight": torch.zeros(1)}, r"they have more than it knows: 9\.weight\."),
        ({"3_bias": None, "9_weight": torch.zeros(1)}, r"lack 3\.bias and have more than it knows: 9\.weight"),
        ({"7_weight": torch.zeros(10)}, r"hold 7\.weight as \[10\]; the factory's model has \[10, 16\]"),
        ({"7_weight": torch.zeros(0, 16)}, r"hold 7\.weight as \[0, 16\]"),
        ({"3_bias": torch.full((16,), float("nan"))}, r"hold numbers in 3\.bias that are not finite"),
        (
            {"7_weight": torch.zeros(10, 16, dtype=torch.int8)},
            r"as torch\.int8; the factory's model has torch\.float32",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tensors: dict[str, Tensor | None], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fill(net(), changed(**tensors))


class Tied(nn.Module):
    """One weight under two names, a buffer that no state_dict holds, and a batch norm."""

    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(6, width)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)


def test_tied_weights_unsaved_buffers_and_counters_of_batch_norm_need_not_be_in_the_file() -> None:
    state = {name: tensor for name, tensor in Tied(4).state_dict().items() if "num_batches" not in name}
    del state["second.weight"]
    model = Tied(9)
    fill(model, state)
    assert model.second.weight is model.first.weight
    assert torch.equal(model.first.weight, state["first.weight"])
    assert model.norm.num_features == 4
    assert model.scale.item() == 3.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": (3, 8, 8)}, r"The input is \(3, 8, 8\), but the images of digits are \(1, 8, 8\)"),
        ({"shape": (8, 0)}, "expected whole numbers from 1"),
        ({"shape": (8, 8)}, r"The input is \(8, 8\), but the images of digits are \(1, 8, 8\)"),
        ({"mean": (0.1, 0.2)}, r"data\.mean is \[0\.1, 0\.2\]; it needs 1 numbers"),
        ({"mean": (float("nan"),)}, r"data\.mean.* finite number, got nan"),
        ({"std": (0.0,)}, r"data\.std.* greater than 0"),
        ({"budget": "43 MFLOPS"}, "is a rate"),
        ({"budget": []}, "The budget is empty"),
        ({"data": "nowhere"}, "'nowhere' names no images"),
        ({"factory": "./net.py:none"}, "has no callable named none"),
        ({"factory": "./net.py:pair"}, "The weights are not of the factory's model"),
        ({"args": {"depth": 12}}, "unexpected keyword argument"),
        ({"weights": "none.safetensors"}, "there is no such file"),
        ({"out": "net.py"}, "exists already"),
    ],
)
def test_what_cannot_be_packed_is_told_and_leaves_nothing(shop: Path, change: dict[str, Any], says: str) -> None:
    before = sorted(shop.iterdir())
    given: dict[str, Any] = {
        "factory": "./net.py:make",
        "weights": "full.safetensors",
        "shape": (1, 8, 8),
        "budget": "1MMACs",
        "out": "out",
    }
    with pytest.raises(UsageError, match=says):
        export_model(**given | change)
    assert [path for path in sorted(shop.iterdir()) if path.name != "__pycache__"] == before


def test_a_model_with_two_outputs_is_refused(shop: Path) -> None:
    save_file({f"body.{k}": v for k, v in net().state_dict().items()}, shop / "pair.safetensors")
    with pytest.raises(
        UsageError, match=r"output is a tuple for one image, but digits has 10 classes; it must be one tensor of logits"
    ):
        export_model("./net.py:pair", "pair.safetensors", None, "1MMACs", "out")
    assert not list(shop.glob("out*"))


def test_an_interruption_leaves_nothing(shop: Path) -> None:
    before = sorted(shop.iterdir())

    def stop(event: Event) -> None:
        if isinstance(event, Doing) and event.text.startswith("finalizing"):
            assert (shop / "out.partial").is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model("./net.py:make", "full.safetensors", None, "1MMACs", "out", listen=stop)
    assert [path for path in sorted(shop.iterdir()) if path.name != "__pycache__"] == before


def test_a_head_of_another_size_is_refused_and_one_of_several_weights_is_chosen(shop: Path) -> None:
    state = net().state_dict()
    head = {**state, "7.weight": torch.rand(1000, 16), "7.bias": torch.rand(1000)}
    torch.save({"model": state, "ema": {"module": state}}, shop / "two.pt")
    torch.save(head, shop / "head.pt")
    with pytest.raises(UsageError, match=r"make an output of \[1, 1000\], and .*make one of \[1, 10\]: another head"):
        export_model(str(shop / "net.py:make"), "head.pt", None, "10kparams", "out")
    with pytest.raises(UsageError, match="--weights-key"):
        export_model(str(shop / "net.py:make"), "two.pt", None, "10kparams", "out")
    result = export_model(str(shop / "net.py:make"), "two.pt", None, "100kparams", "out", weights_key="ema.module")
    assert result.code == 0
