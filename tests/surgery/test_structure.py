"""A factory, its arguments and the shapes of the tensors are enough to build any network that surgery made."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress import models
from compress.errors import ArtifactError, UsageError
from compress.reading.graph import read
from compress.surgery import structure
from compress.surgery.structure import Structure, construct, locate
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.surgery.tensors import fit

SHAPE = (3, 8, 8)


class Grouped(nn.Module):
    """Depthwise with a multiplier, grouped, transposed depthwise and grouped convolutions, and a flatten."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.depth = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(2 * width)
        self.grouped = nn.Conv2d(2 * width, 12, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2, groups=2)
        self.spread = nn.ConvTranspose2d(6, 6, 2, 2, groups=6)
        self.slope = nn.PReLU(6)
        self.fc = nn.Linear(6 * 32 * 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depth(self.stem(x).relu()))
        return self.fc(self.slope(self.spread(self.up(self.grouped(x).relu()))).flatten(1))


class Twins(nn.Module):
    """A layer under two names, tied weights, and a buffer that no file holds."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.again = self.b
        self.c.weight = self.b.weight
        self.fc = nn.Linear(width, 3)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.again(self.b(self.a(x)).relu()).relu()).mean((2, 3)) * self.scale)


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "grouped": Grouped,
    "twins": Twins,
    "lenet5": lambda: models.lenet5(4, 5, (6,), in_channels=3, size=8, padding=6),
    "vgg": lambda: models.vgg([4, 5, 6], [1, 3], hidden=[7], size=8),
    "resnet": lambda: models.resnet_cifar([1, 1, 1], [4, 6, 8], option="A"),
    "densenet": lambda: models.densenet([2, 2], growth=3, init=4, bottleneck=5, shrink=2),
}


def changed(model: nn.Module, seed: int) -> nn.Module:
    """The model after a few edits of random spaces; spaces may be narrowed to one channel."""
    chance = random.Random(seed)
    surgeon = Surgeon(model.eval(), survey(model, SHAPE))
    for name in chance.sample(surgeon.graph.free, min(4, len(surgeon.graph.free))):
        if chance.random() < 0.5:
            surgeon.narrow(name, range(chance.randint(1, surgeon.graph.widths[name])))
        else:
            surgeon.widen(name, chance.randint(1, 4))
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_changed_network_is_built_again_from_its_shapes(name: str, seed: int) -> None:
    model = changed(FACTORIES[name](), seed)
    structure = Structure.read(model, name, {})
    built = structure.build(FACTORIES[name]).eval()
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(built(x), model(x))
    sizes = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_parameters")
    for one, other in zip(built.modules(), model.modules(), strict=True):
        assert [getattr(one, size, None) for size in sizes] == [getattr(other, size, None) for size in sizes]
    assert {n: id(p) for n, p in built.named_parameters()}.keys() == dict(model.named_parameters()).keys()


def test_a_depthwise_space_of_one_channel_is_built_and_grows_again() -> None:
    model = Grouped()
    surgeon = Surgeon(model.eval(), survey(model, SHAPE))
    (name,) = surgeon.graph.slots["depth.weight", 0].runs
    surgeon.narrow(name, [0])
    built = Structure.read(model, "grouped", {}).build(Grouped).eval()
    built.load_state_dict(model.state_dict())
    sizes = built.depth.groups, built.depth.in_channels, built.depth.out_channels
    assert sizes == (4, 4, 8)  # one channel for each group of the convolution behind it
    x = torch.randn(2, *SHAPE)
    before = model(x)
    assert torch.equal(built(x), before)
    surgeon.widen(name, 2)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert model.depth.groups == 12
    alone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    surgeon = Surgeon(copy.deepcopy(alone), read(alone, SHAPE))
    surgeon.narrow("0", [2])
    built = Structure.read(surgeon.model, "alone", {}).build(lambda: copy.deepcopy(alone))
    assert (built[1].groups, built[1].weight.shape) == (1, (1, 1, 3, 3))
    surgeon.widen("0", 2)
    assert (surgeon.model[1].groups, surgeon.model[1].weight.shape) == (3, (3, 1, 3, 3))


def test_fitting_keeps_what_has_its_shape_already_and_ties() -> None:
    model, other = Twins(), Twins(4)
    fit(model, {name: tuple(t.shape) for name, t in other.state_dict().items()})
    assert model.c.weight is model.b.weight
    assert model.again is model.b
    assert (model.c.in_channels, model.fc.in_features) == (4, 4)
    bias = model.fc.bias
    untied = {name: t for name, t in other.state_dict().items() if not name.startswith(("again", "c.weight"))}
    fit(model, {name: tuple(t.shape) for name, t in untied.items()})
    assert model.fc.bias is bias


def test_a_file_says_all_that_is_needed(tmp_path: Path) -> None:
    model = changed(models.vgg([4, 5, 6], [1, 3], hidden=[7], size=8), 1)
    args = {"widths": [4, 5, 6], "pools": [1, 3], "hidden": [7], "size": 8}
    structure = Structure.read(model, "compress.models:vgg", args)
    said = structure.to_json()
    assert said == {"factory": "compress.models:vgg", "args": args, "depths": {}, "cuts": [], "numbers": {}}
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata={"compress": json.dumps({"structure": said})})
    found = Structure.from_file(tmp_path / "m.safetensors")
    assert found == structure
    assert {name: tuple(t.shape) for name, t in found.build().state_dict().items()} == structure.shapes


def test_files_that_say_nothing_are_artifact_errors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="does not say how its network is built"):
        Structure.from_file(path)
    for said in ("no json", "{}", '{"structure": 3}'):
        save_file({"a": torch.zeros(1)}, path, metadata={"compress": said})
        with pytest.raises(ArtifactError, match="does not say how its network is built"):
            Structure.from_file(path)
    path.write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=r"m.safetensors is not a readable safetensors file"):
        Structure.from_file(path)


def test_another_factory_than_the_files_is_an_artifact_error() -> None:
    structure = Structure.read(models.vgg([4], [1], size=8), "compress.models:vgg", {})
    with pytest.raises(ArtifactError, match=r"does not build the stored network: .* missing \['bn1.bias'"):
        structure.build(models.resnet20)


def test_factories_are_found_by_import_path_by_file_and_as_callables(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(n=2):\n    return nn.Linear(n, n)\n")
    assert locate("compress.models:vgg") is models.vgg
    for factory in ("./net.py:make", "net.py:make", locate("./net.py:make", tmp_path)):
        assert construct(factory, {"n": 3}, tmp_path).weight.shape == (3, 3)


@pytest.mark.parametrize(
    ("factory", "args", "why"),
    [
        ("vgg", {}, "must look like package.module:callable or ./file.py:callable"),
        (":vgg", {}, "must look like"),
        ("compress.models:", {}, "must look like"),
        ("no_such_package:make", {}, "no_such_package cannot be imported: ModuleNotFoundError"),
        ("compress.models:no_net", {}, "has no callable named no_net"),
        ("./none.py:make", {}, "there is no file ./none.py beside the recipe"),
        ("./wrong.py:make", {}, "cannot be imported: SyntaxError"),
        ("./net.py:make", {"m": 1}, r"make\(m=1\) failed: TypeError"),
        ("./net.py:text", {}, "text must return a torch.nn.Module, it returned str"),
    ],
)
def test_factories_that_cannot_be_used_are_refused_with_the_reason(
    factory: str, args: dict[str, int], why: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text("def make():\n    pass\ndef text():\n    return 'net'\n")
    (tmp_path / "wrong.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=why):
        construct(factory, args, tmp_path)


def test_a_factory_that_does_not_end_is_told_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import threading, torch\n\ndef make(seconds):\n    threading.Event().wait(seconds)\n"
    code += "    return torch.nn.Linear(2, 2)\n"
    (tmp_path / "slow.py").write_text(code)
    construct("./slow.py:make", {"seconds": 0.0}, tmp_path)
    assert not capfd.readouterr().err
    monkeypatch.setattr(structure, "PATIENCE", 0.05)
    construct("./slow.py:make", {"seconds": 1.0}, tmp_path)
    assert "compress: slow.py, line 4, in make() has not ended for 0.05 s" in capfd.readouterr().err
