"""What is written computes what the network computes, holds nothing of the machine, and comes back."""

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from compress.budget.limits import Budget, Cost, Latency
from compress.errors import ArtifactError, UsageError
from compress.export import artifact, latency
from compress.export.onnx import file as onnx_file
from compress.export.parity import MODELS, TOLERANCE, outputs_of, parity_of, read_back
from compress.export.parts import Preprocessing
from compress.export.translate import to_onnx, to_program
from compress.export.verify import verify
from compress.export.weights import load
from compress.reading.measure import measure
from compress.surgery.finalize import Compact
from compress.surgery.structure import Structure, construct

SHAPE = (3, 8, 8)
BASE = Cost(10**6, 10**7, 10**7, 10**7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NAMES = {"mean": MEAN, "std": STD, "classes": "abcde"}
PLAIN, BAKED = (Preprocessing.of_inputs([SHAPE], baked=baked, **NAMES) for baked in (False, True))
IMAGES = torch.randint(0, 256, (70, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FACTS = {"accuracy": {"required": None, "test": 0.75, "val": 0.5}, "origin": "0" * 64}
OPTIONS = {"pools": [1], "hidden": [], "size": 8, "last_pool": "global", "classes": 5}
MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 5)
        self.twin = self.head  # one tensor under two names

    def forward(self, x):
        return self.twin(torch.relu(self.norm(self.stem(x))).mean((2, 3)))
"""


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode, with batch norms that do something and logits that differ from image to image."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias)  # the exporter drops a bias of zeros
    return model.eval()


def compact(factory: str, model: nn.Module, args: dict) -> Compact:
    structure = Structure.read(model, factory, args)
    return Compact(model, structure, measure(model, SHAPE), SHAPE, drift=0.0, removed={})


def write(folder: Path, net: Compact, **options: object) -> artifact.Written:
    given = {
        "budget": Budget.parse("9MMACs"),
        "preprocessing": PLAIN,
        "recipe_text": f"data: {{path: {folder}/x.npz}}\n",
        "facts": FACTS,
    }
    return artifact.write(net, folder, base=BASE, images=IMAGES, **(given | options))


@pytest.fixture(scope="module")
def net():
    from compress.models import vgg

    # narrower than its factory makes it: what a run of compress leaves
    return compact("compress.models:vgg", lively(vgg([5, 7], **OPTIONS)), {"widths": [8, 8], **OPTIONS})


@pytest.fixture(scope="module")
def written(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    return folder, write(folder, net)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's own network, from a file beside the recipe, with its preprocessing baked into model.onnx."""
    place, folder = tmp_path_factory.mktemp("recipe"), tmp_path_factory.mktemp("mine")
    (place / "net.py").write_text(MINE)
    model = lively(construct("./net.py:Mine", {"width": 6}, place))
    net = compact("./net.py:Mine", model, {"width": 8})
    return folder, net, write(folder, net, source=place, preprocessing=BAKED)


def logits(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    with torch.inference_mode():
        return model((images / 255 - mean) / std)


def test_every_file_computes_what_the_network_computes(written):
    folder, made = written
    assert sorted(made.parity) == sorted(path.name for path in folder.glob("model.*")) == sorted([*MODELS, "model.py"])
    assert made.notes == ()
    for name, check in made.parity.items():
        assert check.top1_equal
        assert check.max_rel <= TOLERANCE
        assert check.images == len(IMAGES)
        assert check.bytes == (folder / name).stat().st_size


def saved(net: Compact, folder: Path) -> tuple[Cost, list[str]]:
    """The model files alone, not read back."""
    network = artifact.contiguous(net.model)
    (folder / "recipe.yaml").write_text("data: {path: x.npz}\n")
    options = {"budget": Budget.parse("9MMACs"), "base": BASE, "preprocessing": PLAIN}
    draft, notes = artifact.save_models(network, net, folder, **options)
    return draft.sealed(folder, FACTS), notes


def test_equal_networks_give_equal_bytes(net, written, tmp_path):
    assert saved(net, tmp_path) == (written[1].cost, [])
    for name in (*MODELS, "model.py"):
        assert (written[0] / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_onnx_file_seals_the_run_and_every_file_beside_it_and_no_more(written):
    folder = written[0]
    sealed = onnx_file.metadata(onnx_file.read(folder / "model.onnx"))["sealed"]
    others = {path.name for path in folder.iterdir()} - {"model.onnx"}
    assert others == {"model.safetensors", "model.pt2", "model.py", "recipe.yaml"}
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in others}
    assert sealed == FACTS | {"files": sums}


def test_a_source_that_is_left_out_is_not_sealed(net, tmp_path, monkeypatch):
    def broken(folder, *_):
        if (folder / "model.py").is_file():
            raise ArtifactError(f"{folder / 'model.py'}: differs.")
        return {}

    monkeypatch.setattr(artifact, "read_back", broken)
    made = write(tmp_path, net)
    assert made.notes == ("model.py is left out: differs.",)
    sealed = onnx_file.metadata(onnx_file.read(tmp_path / "model.onnx"))["sealed"]
    assert sorted(sealed["files"]) == ["model.pt2", "model.safetensors", "recipe.yaml"]
    assert made.cost.bytes == (tmp_path / "model.onnx").stat().st_size


def test_no_file_names_a_path_of_this_machine(written, mine):
    for folder in (written[0], mine[0]):
        for path in folder.iterdir():
            data = path.read_bytes()
            if path.suffix == ".pt2":
                with zipfile.ZipFile(path) as archive:
                    data += b"".join(archive.read(name) for name in archive.namelist())
            for trace in (
                str(Path.cwd()),
                str(folder),
                str(Path.home()),
                sys.prefix,
                "site-packages",
                __file__,
                "File ",
            ):
                assert trace.encode() not in data, (path.name, trace)
        assert (folder / "recipe.yaml").read_text() == "data: {path: x.npz}\n"


def test_no_file_holds_a_pickle(written):
    with zipfile.ZipFile(written[0] / "model.pt2") as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    assert any("sample_inputs" in name for name in contents)
    for name, data in contents.items():
        assert not data.startswith((b"\x80", b"PK")), name  # how a pickle, and torch's archive of one, begin
        assert "sample_inputs" not in name or not data


def test_weights_carry_one_metadata_key_of_sorted_json_with_the_structure_alone(net, written):
    with safetensors.safe_open(written[0] / "model.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
    assert list(metadata) == ["compress"]
    said = json.loads(metadata["compress"])
    assert said == {"structure": net.structure.to_json()}
    assert metadata["compress"] == json.dumps(said, sort_keys=True, separators=(",", ":"))
    assert names == sorted(net.model.state_dict())


def test_the_cost_is_confirmed_on_the_files(net, written):
    folder, made = written
    assert made.cost.bytes == (folder / "model.onnx").stat().st_size <= net.cost.bytes
    assert (made.cost.macs, made.cost.params, made.cost.thop) == (net.cost.macs, net.cost.params, net.cost.thop)
    counted = onnx_file.count_file(folder / "model.onnx")
    # both batch norms are folded: their weights and biases go, and a bias appears at each convolution
    assert (counted.macs, counted.params) == (net.cost.macs, net.cost.params - (5 + 7))
    assert [row.plain() for row in made.rows] == Budget.parse("9MMACs").rows(made.cost)


def test_of_two_counts_of_the_peak_of_activations_the_larger_is_written(net, written, tmp_path):
    counted = onnx_file.count_file(written[0] / "model.onnx").memory
    assert written[1].cost.memory == net.cost.memory == counted
    for ours, told in ((counted - 4, counted), (counted + 4, counted + 4)):
        other = replace(net, cost=replace(net.cost, memory=ours))
        assert saved(other, tmp_path)[0].memory == told
        assert [verify(tmp_path / "model.onnx", f"{n}B@activations").code for n in (told, told - 1)] == [0, 1]


def test_latencies_are_measured_once_all_files_are_written(net, tmp_path, monkeypatch):
    asked = []

    def time_file(path, threads):
        asked.append((threads, sorted(p.name for p in path.parent.iterdir())))
        return Latency(7, 5, 9, 30, "a processor")

    monkeypatch.setattr(latency, "time_file", time_file)
    monkeypatch.setattr(artifact, "read_back", lambda *_: {})
    budget = Budget.parse("9MMACs, 5ns@onnxruntime-cpu/2, 7ns@onnxruntime-cpu/4")
    made = write(tmp_path, net, budget=budget)
    assert asked == [(threads, sorted([*MODELS, "model.py", "recipe.yaml"])) for threads in (2, 4)]
    assert [(row.value, row.kept) for row in made.rows[1:]] == [(7, False), (7, True)]


def test_a_written_network_can_be_verified_without_any_of_this(written):
    file = written[0] / "model.onnx"
    cost = written[1].cost
    assert verify(file, f"{cost.macs}MACs, {cost.thop}FLOPs, {cost.params}params, {cost.bytes}B").code == 0
    for tight in (f"{cost.macs - 1}MACs", f"{cost.thop - 1}FLOPs", f"{cost.params - 1}params", f"{cost.bytes - 1}B"):
        assert verify(file, tight).code == 1
    assert verify(written[0] / "model.safetensors", f"{cost.params}params").code == 0


def test_the_onnx_file_says_how_its_input_is_prepared(written, mine):
    for (folder, made), baked in (((written[0], written[1]), False), ((mine[0], mine[2]), True)):
        said = onnx_file.metadata(onnx_file.read(folder / "model.onnx"))
        assert set(said) == {"base", "budget", "claims", "preprocessing", "sealed", "structure", "versions"}
        assert made.preprocessing.plain() == said["preprocessing"]
        assert said["preprocessing"] == {
            "layout": "NCHW",
            "shape": list(SHAPE),
            "range": [0, 255] if baked else [0, 1],
            "mean": list(MEAN),
            "std": list(STD),
            "baked": baked,
            "classes": list("abcde"),
        }
        assert said["budget"] == [{"unit": "MACs", "limit": 9_000_000, "text": "9MMACs", "level": "error"}]


def test_baked_preprocessing_takes_raw_pixels_and_costs_nothing(mine):
    import onnxruntime

    folder, net, made = mine
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(["logits"], {"images": IMAGES[:3].float().numpy()})
    np.testing.assert_allclose(out, logits(net.model, IMAGES[:3]), rtol=1e-4, atol=1e-4)
    assert onnx_file.count_file(folder / "model.onnx").macs == net.cost.macs
    assert verify(folder / "model.onnx", f"{net.cost.params}params").code == 0
    assert made.parity["model.onnx"].top1_equal


# ---- loading --------------------------------------------------------------------------------------------------------


def test_a_network_of_our_models_loads_as_its_own_class(net, written):
    model = load(written[0])
    assert type(model) is type(net.model)
    assert not model.training
    assert torch.equal(logits(model), logits(net.model))
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in net.model.state_dict().items()
    }
    model.train()
    model(torch.randn(4, *SHAPE)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_users_network_loads_as_its_program_and_runs_no_code_of_his(mine, tmp_path, monkeypatch):
    folder, net, _ = mine
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("raise RuntimeError('this must not run')")
    model = load(folder)
    assert isinstance(model, nn.Module)
    assert model.eval() is model
    assert not nn.Sequential(model).eval().training
    torch.testing.assert_close(logits(model), logits(net.model))
    with pytest.raises(UsageError, match="cannot be trained"):
        model.train()


def test_a_users_network_loads_as_its_class_with_its_factory_or_with_trust(mine, tmp_path, monkeypatch):
    folder, net, _ = mine
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MINE)
    for model in (load(folder, factory=type(net.model)), load(folder, trust=True)):
        assert type(model).__name__ == "Mine"
        assert model.twin.weight is model.head.weight
        assert torch.equal(logits(model), logits(net.model))


def test_another_factory_is_refused(mine):
    with pytest.raises(ArtifactError, match="does not build the stored network"):
        load(mine[0], factory=lambda width: nn.Linear(3, width))


def test_what_is_no_output_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path)


def test_broken_and_foreign_weights_are_refused(written, tmp_path):
    data = (written[0] / "model.safetensors").read_bytes()
    foreign = safetensors.torch.save({"weight": torch.zeros(2)})
    deep = safetensors.torch.save({"weight": torch.zeros(2)}, {"compress": "[" * 100_000})
    for broken in (b"", b"\x89PNG" * 9, data[:7], data[:200], data[:-1], data + b"\0", foreign, deep):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(ArtifactError, match=r"model\.safetensors"):
            load(tmp_path)


def test_weights_of_another_network_are_refused(net, tmp_path):
    other = {"structure": net.structure.to_json() | {"args": {"widths": [8], **OPTIONS}}}
    safetensors.torch.save_file(net.model.state_dict(), tmp_path / "model.safetensors", {"compress": json.dumps(other)})
    with pytest.raises(ArtifactError, match="does not build the stored network"):
        load(tmp_path)


def test_a_broken_program_is_refused(mine, tmp_path):
    shutil.copy(mine[0] / "model.safetensors", tmp_path)
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path)
    (tmp_path / "model.pt2").write_bytes((mine[0] / "model.pt2").read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="not an exported program"):
        load(tmp_path)


# ---- files that do not compute what they should ---------------------------------------------------------------------


@pytest.fixture
def copied(written, tmp_path):
    return Path(shutil.copytree(written[0], tmp_path / "out"))


def test_an_onnx_file_with_other_weights_is_found_by_running_it(copied):
    net = onnx_file.read(copied / "model.onnx")
    weight = next(t for t in net.graph.initializer if t.name.endswith("head.weight") or len(t.dims) == 2)
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * -1).tobytes()
    onnx_file.write_sealed(onnx_file.stamp(net, onnx_file.metadata(net)), copied / "model.onnx")
    assert verify(copied / "model.onnx", "9MMACs").code == 0  # it is whole and keeps its budget: only running it tells
    with pytest.raises(ArtifactError, match=r"model\.onnx: does not compute .* of 70 images change their top-1"):
        read_back(copied, IMAGES)


def test_a_file_that_cannot_be_run_is_named(copied):
    (copied / "model.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(ArtifactError, match=r"model\.onnx: cannot be run in a fresh process: .*INVALID_PROTOBUF"):
        outputs_of(copied, {"model.onnx": np.zeros((1, *SHAPE), np.float32)}, source=None)


def test_a_missing_file_is_named(copied):
    (copied / "model.pt2").unlink()
    with pytest.raises(ArtifactError, match=r"model\.pt2 missing"):
        read_back(copied, IMAGES)


@pytest.mark.parametrize(("off", "fine"), [(0.9e-4, True), (1.1e-4, False)])
def test_logits_may_differ_by_a_ten_thousandth_of_the_largest(off, fine, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"any")
    truth = np.array([[1, 10], [3, -2]], np.float32)
    got = truth + np.array([[0, 10 * off], [0, 0]], np.float32)
    if fine:
        assert parity_of(tmp_path / "model.onnx", got, truth).max_rel == pytest.approx(off, rel=0.01)
    else:
        with pytest.raises(ArtifactError, match="0 of 2 images change"):
            parity_of(tmp_path / "model.onnx", got, truth)


def test_a_change_of_top_1_is_refused_however_small(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"any")
    truth = np.array([[1, 1 + 1e-6], [3, -2]], np.float32)
    with pytest.raises(ArtifactError, match="1 of 2 images change"):
        parity_of(tmp_path / "model.onnx", truth[:, ::-1] * [[1], [-1]], truth)


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    truth = np.ones((2, 2), np.float32)
    for got in (np.full((2, 2), np.nan, np.float32), np.ones((2, 3), np.float32)):
        with pytest.raises(ArtifactError, match="finite"):
            parity_of(tmp_path / "model.onnx", got, truth)


def test_a_network_that_costs_more_than_it_claims_is_not_written(net, tmp_path):
    cost = Cost(net.cost.params, net.cost.macs - 1, net.cost.thop, net.cost.bytes)
    cheat = Compact(net.model, net.structure, cost, SHAPE, drift=0.0, removed={})
    with pytest.raises(ArtifactError, match="MACs were counted"):
        write(tmp_path, cheat)


def test_writing_is_quiet(net, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = to_program(net.model, torch.randn(2, *SHAPE))
        model = to_onnx(program, ["images"])
    assert isinstance(model, onnx.ModelProto)
    assert capfd.readouterr() == ("", "")


class Fixed(nn.Module):
    """A network that works for two images only."""

    def forward(self, x):
        return x.reshape(2, -1)


def test_a_network_that_cannot_be_exported_is_refused_in_a_sentence():
    with pytest.raises(ArtifactError, match="cannot be traced by torch"):
        to_program(Fixed(), torch.randn(2, *SHAPE))


def test_the_package_imports_no_torch():
    code = "import sys, compress.export, compress.export.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
