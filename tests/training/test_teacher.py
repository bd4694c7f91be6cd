"""A teacher's logits count in the loss and its forward passes in the cost, and nothing of it is in what is left."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import Finished
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import compress
from compress._plan import methods_of
from compress._run import develop, prepare, run
from compress.budget.units import percent
from compress.errors import ArtifactError, CompressError, Interrupted, UsageError
from compress.export.verify import verify
from compress.models import vgg
from compress.outcomes import result_lines
from compress.recipe import file as recipes
from compress.recipe.paths import own_files
from compress.recipe.settings import Recipe
from compress.training import data
from compress.training.bench import Bench
from compress.training.checkpoint import FILE
from compress.training.events import Event, Progress
from compress.training.task import classification
from compress.training.teacher import Teacher

CODE = """
import torch
from torch import nn
from compress.models import vgg

class Big(nn.Module):
    '''To 10 classes, or however many.'''
    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, classes)
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))

def known():
    '''A factory that has loaded its weights itself.'''
    net = Big()
    for at, tensor in enumerate(net.parameters()):
        tensor.data = torch.linspace(-1, 1, tensor.numel()).view_as(tensor) * (at + 1)
    return net

def wide():
    return nn.Sequential(known(), nn.ZeroPad1d((0, 5)))

def mse(output, y):
    return (output.float() - y.float()).square().mean()

def step(model, x, y):
    output = model(x)
    return output.sum() * 0, output
"""
NET: dict[str, Any] = {"widths": [8, 12], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
ADENEL = {"name": "adenel", "seed_width": 4, "filters": 2, "round": "3 steps", "grow": "all", "tune": {"epochs": 0.5}}
RESIDUAL = {"factory": "compress.models:resnet_cifar", "args": {"depths": [2], "widths": [4], "in_channels": 1}}
HALF = {"tune": {"epochs": 0.5}}
DENSE = {"factory": "compress.models:densenet", "args": {"depths": [2, 2], "growth": 4, "init": 4, "in_channels": 1}}


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: code, and weights of the full network and of a larger one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "work").mkdir()
    torch.manual_seed(1)
    torch.save(vgg(**NET).state_dict(), tmp_path / "full.pt")
    safetensors.torch.save_file(vgg(**NET).state_dict(), tmp_path / "other.safetensors")
    return tmp_path


def recipe(teacher: Any = None, **said: Any) -> Recipe:
    keys: dict[str, Any] = {
        "model": {"factory": "compress.models:vgg", "args": NET},
        "data": {"train": 200, "crop": 1},
        "train": {"batch": 20, "lr": 0.05, "teacher": teacher or {"factory": "./net.py:known"}},
        "method": ADENEL,
        "budget": "90% MACs",
        "checkpoint": "2 steps",
    }
    for key, value in said.items():
        keys[key] = {**keys.get(key, {}), **value} if key in ("model", "data", "train") else value
    return Recipe.model_validate(keys)


def developed(said: Recipe, folder: Path) -> Bench:
    lab, _ = prepare(said, "cpu")
    develop(lab, methods_of(said), folder)
    return lab


def macs(net: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


def big() -> nn.Module:
    space: dict[str, Any] = {}
    exec(CODE, space)
    net: nn.Module = space["known"]()
    return net.eval()


# ---- what it teaches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (4.0, 0.9), (2.5, 0.25)])
def test_the_loss_is_the_labels_and_t_squared_times_the_divergence_of_softened_logits(
    temperature: float, weight: float
) -> None:
    lab, _ = prepare(recipe({"factory": "./net.py:known", "temperature": temperature, "weight": weight}), "cpu")
    x, y = next(iter(lab.data.split("val")))
    lab.model.eval()
    loss, right = lab.task.run(lab.model, x, y, "fp32")

    def softened(net: nn.Module, t: float) -> Any:
        with torch.no_grad():
            z = net(x).double().numpy() / t
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    plain = -np.log(softened(lab.model, 1.0)[np.arange(len(y)), y.numpy()]).mean()
    p, q = softened(big(), temperature), softened(lab.model, temperature)
    apart = (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert loss.item() == pytest.approx((1 - weight) * plain + weight * temperature**2 * apart, rel=1e-5)
    assert loss.requires_grad
    with torch.no_grad():
        scored, again = lab.task.run(lab.model, x, y, "fp32")
    assert scored.item() == pytest.approx(plain, rel=1e-5)  # a score is the labels' alone
    assert right.item() == again.item()


def test_a_net_that_agrees_with_its_teacher_learns_nothing_from_it() -> None:
    net = big().requires_grad_(True)
    digits = data.load(recipe().data, batch=20, seed=0, device=torch.device("cpu"))
    teacher = Teacher(big(), digits, "itself", 0, temperature=3.0, weight=1.0)
    x, y = next(iter(digits.split("val")))
    loss = teacher.mixed(classification(digits).loss(net(x), y), net(x), teacher.hints(x, len(y)))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert teacher.images == len(y)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() < 1e-5 for p in net.parameters())


def test_a_teacher_stays_as_it_is_and_is_not_in_a_checkpoint(shop: Path) -> None:
    lab = developed(recipe(), shop / "work")
    assert lab.teacher is not None
    kept = lab.teacher.model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in big().state_dict().items())
    assert not lab.teacher.model.training
    assert lab.task.teacher is lab.teacher
    saved = safetensors.torch.load_file("work/checkpoint.safetensors")
    names = {name.partition("/")[2] for name in saved if name.startswith("model/")}
    assert names == vgg(**NET).state_dict().keys()


def test_full_is_the_recipes_own_net_before_pruning_with_the_weights_it_starts_from(shop: Path) -> None:
    said = recipe("full", model={"weights": "full.pt"}, method={"name": "l1", "tune": {"epochs": 0.5}}, budget="50%")
    lab = developed(said, shop / "work")
    given = torch.load("full.pt", weights_only=True)
    assert lab.teacher is not None
    assert all(torch.equal(tensor, given[name]) for name, tensor in lab.teacher.model.state_dict().items())
    assert lab.teacher.images == 5 * 20
    assert lab.widths["features.conv2"] < 12
    other, _ = prepare(recipe({"weights": "other.safetensors"}), "cpu")  # growing, beside a full net
    assert other.teacher is not None
    assert other.teacher.name == "the full compress.models:vgg"
    known = safetensors.torch.load_file("other.safetensors")
    assert all(torch.equal(tensor, known[name]) for name, tensor in other.teacher.model.state_dict().items())


def test_the_network_of_a_finished_run_teaches_at_the_widths_that_it_has(finished: Finished, shop: Path) -> None:
    shutil.copytree(finished.out, shop / "taught")
    args = {"widths": [16, 24], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
    lab, _ = prepare(recipe({"weights": "taught"}, model={"args": args}), "cpu")
    x, y = next(iter(lab.data.split("val")))
    assert lab.teacher is not None
    assert torch.equal(lab.teacher.hints(x, len(y)), compress.load(finished.out)(x))
    assert lab.teacher.macs == finished.report["cost"]["macs"]
    names = own_files(recipe({"weights": "taught"}).placed(shop))
    assert names == {"taught": shop / "taught"}


# ---- what it costs --------------------------------------------------------------------------------------------------


def test_the_train_cost_holds_every_forward_pass_of_the_teacher_and_the_report_says_its_share(shop: Path) -> None:
    result = run(recipe().placed(shop), out="out")
    out = result.report.plain()
    own = 0
    for now, then in zip(out["history"], out["history"][1:], strict=False):
        if "widths" in now:
            each = macs(vgg(**NET | {"widths": list(now["widths"].values())}))
        own += each * (then["step"] - now["step"]) * 20
    spent, teacher = out["train_cost"], out["train_cost"]["teacher"]
    lessons = macs(big()) * spent["images"]
    assert (teacher["macs"], teacher["macs_images"], spent["macs_images"]) == (macs(big()), lessons, own + lessons)
    assert teacher["share"] == lessons / (own + lessons)
    assert sum(step["macs_images"] for step in out["steps"]) == own + lessons
    words = f"{percent(teacher['share'])} of it for the teacher, ./net.py:known"
    assert words in Path("out/report.md").read_text()
    (line,) = [line for line in result_lines(result.folder, result.report) if line.startswith("training: ")]
    assert line.endswith(f" for 300 epochs, {words}")
    assert safetensors.torch.load_file("out/model.safetensors").keys() == vgg(**NET).state_dict().keys()
    assert verify("out", "90% MACs").code == 0
    assert out["code"] == {"./net.py:known": hashlib.sha256(CODE.encode()).hexdigest()}


METHODS: dict[str, dict[str, Any]] = {
    "scratch": {"method": {"name": "scratch", "epochs": 0.5}, "budget": "100%"},
    "adenel": {"budget": "30% MACs"},
    "autogrow": {"model": RESIDUAL, "method": {"name": "autogrow", "interval": "2 steps", **HALF}},
    "l1": {"model": {"weights": "full.pt"}, "method": {"name": "l1", "rounds": 2, "round": "2 steps", **HALF}},
    "lwp": {
        "model": DENSE,
        "method": {
            "name": "lwp", "pretrain": {"epochs": 0.5}, "hidden": 8, "children": 2, "release": "1 steps",
            "joint": "3 steps", "samples": 2, "recalibrate": 1, **HALF,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_it_in_every_step_that_changes_weights_and_in_no_other(shop: Path, name: str) -> None:
    lab = developed(recipe(**METHODS[name]), shop / "work")
    searching = 4 if name == "lwp" else 0  # steps, one a layer, in which a controller learns and no weight does
    assert lab.teacher is not None
    assert lab.teacher.images == (lab.step - searching) * 20 > 0
    assert lab.taught == lab.teacher.images * macs(big())
    assert 0 < lab.taught < lab.spent


# ---- stopped, and gone on with --------------------------------------------------------------------------------------


def test_a_run_with_a_teacher_that_is_stopped_again_and_again_ends_in_the_same_bits(shop: Path) -> None:
    said, stretches = recipe({"weights": "other.safetensors"}).placed(shop), 0

    def stop(event: Event) -> None:
        nonlocal stretches
        stretches += isinstance(event, Progress) and event.step == event.steps
        if stretches == 2:
            raise Interrupted("stopped")

    whole, lives = developed(said, shop / "work"), 0
    (shop / "parts").mkdir()
    while True:
        stretches, lives = 0, lives + 1
        lab, _ = prepare(said, "cpu", stop)
        try:
            develop(lab, methods_of(said), shop / "parts")
            break
        except Interrupted:
            assert lives < 20
    assert lives > 3
    assert lab.books() == whole.books()
    tensors = whole.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in lab.model.state_dict().items())
    assert (shop / "parts" / FILE).read_bytes() == (shop / "work" / FILE).read_bytes()


def test_another_teacher_makes_it_another_run(shop: Path) -> None:
    said = recipe({"weights": "other.safetensors"}).placed(shop)
    developed(said, shop / "work")
    torch.manual_seed(2)
    safetensors.torch.save_file(vgg(**NET).state_dict(), "other.safetensors")
    with pytest.raises(UsageError, match=r"train\.teacher: its weights are not those of the interrupted run"):
        developed(said, shop / "work")


# ---- how a recipe says it, and what it may not -----------------------------------------------------------------------


def test_a_recipe_says_a_teacher_in_a_word_or_a_table_and_paths_start_at_its_folder(shop: Path) -> None:
    (shop / "sub").mkdir()
    text = "model: {factory: compress.models:vgg}\nmethod: {name: l1}\ntrain: {teacher: %s}\n"
    (shop / "sub/a.yaml").write_text(text % "full")
    full = recipes.read("sub/a.yaml")
    assert full == recipes.read("sub/a.yaml", {"train.teacher": "{temperature: 4, weight: 0.9}"})
    there = {"train.teacher": "{}", "train.teacher.weights": "full.pt", "train.teacher.factory": "net.py:known"}
    named = recipes.read("sub/a.yaml", there).train.teacher
    assert named is not None
    assert (named.weights, named.factory) == (str(shop / "full.pt"), f"{shop}/net.py:known")
    dumped = yaml.safe_load(recipes.dump(recipes.read("sub/a.yaml", there)))
    assert dumped["train"]["teacher"]["weights"] == "full.pt"  # and not where this machine has it
    assert dumped["train"]["teacher"]["factory"] == "net.py:known"
    (shop / "sub/b.yaml").write_text(recipes.dump(full))
    assert recipes.read("sub/b.yaml") == full
    option = recipes.schema()["$defs"]["Train"]["properties"]["teacher"]["anyOf"]
    assert {"const": "full"} in option


POINTS = {"source": "npz", "path": "points.npz", "train": None, "crop": 0}
WRONG: dict[str, tuple[Any, Mapping[str, Any], type[CompressError], str]] = {
    "drawn": ({"factory": "./net.py:Big"}, {}, UsageError, r"net\.py:Big draws its weights anew with each call, and a"),
    "full and drawn": ("full", {}, UsageError, "vgg draws its weights anew with each call"),
    "classes": (
        {"factory": "./net.py:wide"}, {}, UsageError, "it returns 15 logits for one image and the model 10, of 10"
    ),
    "few classes": (
        {"factory": "./net.py:Big", "args": {"classes": 9}, "weights": "nine.pt"}, {}, UsageError, r"returns \[1, 9\]"
    ),
    "no file": ({"weights": "none.pt"}, {}, UsageError, r"none\.pt: there is no such file"),
    "no weights": ({"weights": "net.py"}, {}, ArtifactError, r"net\.py: torch\.load.* cannot read it"),
    "other weights": (
        {"factory": "./net.py:Big", "weights": "full.pt"}, {}, UsageError, "weights are not of the factory's model"
    ),
    "no run": ({"weights": "."}, {}, ArtifactError, "model.safetensors is not a readable safetensors file"),
    "no factory": ({"factory": "./net.py:none"}, {}, UsageError, "has no callable named none"),
    "step": (None, {"train": {"step": "./net.py:step"}}, UsageError, r"train\.step makes the loss by itself"),
    "no classes": (
        None, {"data": POINTS, "train": {"loss": "./net.py:mse", "metric": "./net.py:mse"}}, UsageError,
        "it teaches classes, and the targets of npz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_teach_is_told_in_a_sentence_before_training(shop: Path, name: str) -> None:
    teacher, said, kind, says = WRONG[name]
    torch.save({}, "nine.pt")
    if name == "few classes":
        space: dict[str, Any] = {}
        exec(CODE, space)
        torch.save(space["Big"](9).state_dict(), "nine.pt")
    x = np.arange(60 * 64, dtype=np.uint8).reshape(60, 8, 8)
    np.savez("points.npz", x_train=x, y_train=np.zeros((60, 10)), x_test=x, y_test=np.zeros((60, 10)))
    events: list[Event] = []
    with pytest.raises(kind, match=says) as told:
        run(recipe(teacher, **said).placed(shop), out="out", listen=events.append)
    assert str(told.value).startswith("train.teacher: ")
    assert "\n" not in str(told.value)
    assert not any(isinstance(event, Progress) for event in events)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["drawn", "full and drawn", "no file", "no weights", "other weights", "no factory"])
def test_a_plan_tells_it_too_where_no_images_are_needed_to_know(shop: Path, name: str) -> None:
    teacher, said, kind, says = WRONG[name]
    with pytest.raises(kind, match=rf"^train\.teacher: .*{says}"):
        compress.plan(recipe(teacher, **said).placed(shop))
    assert compress.plan(recipe().placed(shop)).feasible


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("classes", [*"1023456789"], "taught learnt the classes 1, 0, 2, 3, 4, and digits has 0, 1, 2, 3, 4;"),
        ("mean", [0.5], r"saw pixels less 0\.5 over .* write data\.mean and data\.std as there"),
        ("std", [0.1], r"over 0\.1, and here they are less 0\.30"),
    ],
)
def test_a_run_that_learnt_other_classes_or_other_pixels_does_not_teach(
    finished: Finished, shop: Path, key: str, value: list[Any], says: str
) -> None:
    shutil.copytree(finished.out, shop / "taught")
    report = json.loads(Path("taught/report.json").read_text())
    assert len(report["preprocessing"][key]) == len(value)
    report["preprocessing"][key] = value
    Path("taught/report.json").write_text(json.dumps(report))
    args = {"widths": [16, 24], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
    with pytest.raises(UsageError, match=rf"^train\.teacher: .*{says}"):
        prepare(recipe({"weights": "taught"}, model={"args": args}), "cpu")


def test_the_network_of_a_run_by_somebody_elses_code_is_not_imported_unasked(finished: Finished, shop: Path) -> None:
    tensors = safetensors.torch.load_file(finished.out / "model.safetensors")
    structure = {"factory": "antigravity:net", "args": {}, "depths": {}, "cuts": [], "numbers": {}}
    (shop / "foreign").mkdir()
    safetensors.torch.save_file(
        tensors, "foreign/model.safetensors", {"compress": json.dumps({"structure": structure})}
    )
    with pytest.raises(UsageError, match=r"foreign is made by antigravity:net; if you trust that, write it as"):
        prepare(recipe({"weights": "foreign"}).placed(shop), "cpu")


def test_arguments_without_a_factory_are_refused_with_the_line_they_stand_in(shop: Path) -> None:
    text = "model: {factory: compress.models:vgg}\nmethod: {name: l1}\ntrain:\n  teacher:\n    args: {a: 1}\n"
    (shop / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"a\.yaml:4: train\.teacher: args are those of a factory; write"):
        recipes.read("a.yaml")
