"""A first recipe: for any model and images, valid, explained key by key, and never written over another."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import compress
from compress._init import init
from compress.cli import main
from compress.errors import Infeasible, UsageError
from compress.recipe import file as recipe
from compress.recipe.arguments import beside, source_of
from compress.surgery.structure import construct

NET = """
from torch import nn

def make(num_classes=1000, in_chans=3, norm=True):
    return nn.Sequential(
        nn.Conv2d(in_chans, 16, 3), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(16, 24, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def pictures(folder: Path, classes: int = 2, mode: str = "L") -> Path:
    """A folder of 48 images of 9 x 9 pixels, grey unless said."""
    from PIL import Image

    for number in range(48):
        path = folder / f"train/kind{number % classes}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), number * 5).convert(mode).save(path)
    return folder


def call(*said: str) -> Result:
    return CliRunner().invoke(main, ["init", *said])


def test_the_command_writes_a_recipe_that_can_be_planned_and_says_what_to_do_with_it() -> None:
    done = call("compress.models:vgg", "digits", "--args", '{"widths": [9, 12], "pools": [1]}', "--out", "my.yaml")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("my.yaml is written; feasible: ")
    assert "compress run my.yaml" in done.stdout
    said = recipe.read("my.yaml")
    assert said.model.args == {"widths": [9, 12], "pools": [1], "in_channels": 1, "size": 8}  # 10 classes by default
    assert said.model.input == (1, 8, 8)
    assert said.budget == "50%"
    assert compress.plan("my.yaml").feasible


def test_every_key_has_a_comment() -> None:
    init("./net.py:make", str(pictures(Path("pictures"))), size=12)
    lines = Path("recipe.yaml").read_text().splitlines()
    headings = ("data:", "train:", "method:")
    assert [line for line in lines if line and line[0] != "#" and line not in headings and " # " not in line] == []
    columns = {line.index(" # ") for line in lines if " # " in line}
    assert len(columns) == 1


def test_images_and_a_budget_are_enough_for_a_recipe_that_says_why() -> None:
    done = call("digits", "--budget", "60kMACs, 9kparams", "--out", "my.yaml")
    assert (done.exit_code, done.stderr) == (0, "")
    reasons = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [reason.split()[0] for reason in reasons] == ["short:", "full", "seed", "train-cost", "variation:"]
    text = Path("my.yaml").read_text()
    assert all(f"#   {reason}\n" in text for reason in reasons)
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert [line for line in lines if " # " not in line] == ["data:", "train:", "method:"]
    said = recipe.read("my.yaml")
    assert (said.model.factory, said.model.args["size"]) == ("compress.models:short", 8)
    assert said.budget == "60kMACs, 9kparams"
    planned = compress.plan("my.yaml")
    assert planned.feasible
    assert 0.2 < planned.budget.utilisation(planned.seed) <= 0.5
    assert 0.8 < planned.budget.utilisation(planned.base) <= 1


def test_a_folder_of_images_and_two_commands_give_a_net() -> None:
    from PIL import Image

    pictures(Path("pictures"))
    Image.new("RGB", (90, 70)).save("pictures/train/kind0/large.png")  # and so all are resized to the smallest's side
    assert call("pictures", "--budget", "60kMACs", "--args", '{"convs": 3}').exit_code == 0
    said = recipe.read("recipe.yaml")
    assert (said.data.size, said.model.args["convs"], said.model.input) == (9, 3, (3, 9, 9))
    assert "convs: 3 " in Path("recipe.yaml").read_text()
    result = compress.run("recipe.yaml", out="out", overrides={"train.cost": "5e6", "method.round": "1 epoch"})
    assert result.code == 0
    assert compress.verify("out", "60kMACs").code == 0


def test_a_known_set_needs_no_images_to_be_there() -> None:
    init(None, "cifar10", "43MFLOPs, 0.58Mparams")
    said = recipe.read("recipe.yaml")
    assert said.model.args == {"widths": [40, 136, 136], "size": 32, "classes": 10, "in_channels": 3}
    assert (said.data.source, said.data.download, said.data.flip, said.data.cutout) == ("cifar10", True, "alternate", 8)
    assert compress.plan("recipe.yaml").feasible


def test_a_budget_that_the_smallest_net_exceeds_is_refused_with_what_that_takes() -> None:
    with pytest.raises(Infeasible, match=r"below the floor: 3kMACs is less than 5\.277 kMACs, the smallest network"):
        init(None, "digits", "3kMACs")
    with pytest.raises(UsageError, match="say what it may cost: --budget 43MFLOPs"):
        init(None, "digits")
    assert not Path("recipe.yaml").exists()


def test_what_the_data_decides_is_taken_from_it_unless_it_is_given() -> None:
    init("./net.py:make", str(pictures(Path("pictures"), classes=3)), out="a.yaml")
    assert recipe.read("a.yaml").model.args == {"num_classes": 3, "in_chans": 1}
    init("./net.py:make", "pictures", out="b.yaml", args={"num_classes": 5, "norm": False})
    assert recipe.read("b.yaml").model.args == {"num_classes": 5, "in_chans": 1, "norm": False}
    assert (recipe.read("a.yaml").train.lr, recipe.read("b.yaml").train.lr) == (
        0.1,
        0.05,
    )  # with and without batch norm


def test_model_and_images_are_named_from_where_the_recipe_lies() -> None:
    pictures(Path("pictures"))
    Path("recipes").mkdir()
    init("./net.py:make", "pictures", out="recipes/my.yaml", size=12)
    said = recipe.read("recipes/my.yaml")
    assert (said.model.factory, said.data.path, said.data.size) == ("../net.py:make", "../pictures", 12)
    assert compress.plan("recipes/my.yaml").feasible


@pytest.mark.parametrize(("share", "widest"), [("90%", 8), ("10%", 2)])
def test_a_small_budget_gets_a_narrow_seed_so_that_there_is_room_to_grow(share: str, widest: int) -> None:
    planned = init("./net.py:make", "digits", share).plan
    said = yaml.safe_load(Path("recipe.yaml").read_text())
    assert said["method"]["seed_width"] == widest
    again = compress.plan("recipe.yaml")
    assert again.budget.utilisation(again.seed) <= 0.5
    assert again.floor == planned.floor


def test_nothing_is_ever_overwritten_and_nothing_infeasible_is_written() -> None:
    Path("mine.yaml").write_text("seed: 1\n")
    with pytest.raises(UsageError, match=r"mine\.yaml exists already"):
        init("./net.py:make", "digits", out="mine.yaml")
    assert Path("mine.yaml").read_text() == "seed: 1\n"
    with pytest.raises(Infeasible, match="below the floor"):
        init("./net.py:make", "digits", "9MACs", out="my.yaml")
    with pytest.raises(UsageError, match="'fast' is not"):
        init("./net.py:make", "digits", "fast", out="my.yaml")
    assert not Path("my.yaml").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digits", {"source": "digits"}),
        ("pics", {"source": "folder", "size": 32}),
        ("x.npz", {"source": "npz"}),
    ],
)
def test_images_are_a_known_set_or_a_folder_or_a_file(data: str, says: dict[str, Any]) -> None:
    Path("pics").mkdir()
    Path("x.npz").touch()
    path = {} if data == "digits" else {"path": str(Path(data).absolute())}
    assert source_of(data, 32) == says | path


def test_images_are_what_a_callable_returns() -> None:
    Path("sets.py").touch()
    assert source_of("./sets.py:build") == {"source": "own", "dataset": f"{Path('sets.py').absolute()}:build"}
    assert source_of("pkg.sets:build") == {"source": "own", "dataset": "pkg.sets:build"}
    for lacking in ("./other.py:build", "./sets.py:", "pkg.sets:2"):
        with pytest.raises(UsageError, match="names no images"):
            source_of(lacking)


@pytest.mark.parametrize("data", ["nowhere", "x.npz", "net.py", ""])
def test_anything_else_names_no_images(data: str) -> None:
    with pytest.raises(UsageError, match="names no images; give digits, mnist"):
        source_of(data)


def test_a_factory_in_a_file_is_named_without_its_folder() -> None:
    assert beside("compress.models:vgg") == ("compress.models:vgg", Path.cwd())
    assert beside("a/net.py:make") == ("./net.py:make", Path.cwd() / "a")


# ---- of a trained network -------------------------------------------------------------------------------------------


def weights(name: str = "trained.safetensors", **args: Any) -> Path:
    torch.manual_seed(0)
    save_file(construct("./net.py:make", {"num_classes": 10, "in_chans": 1, **args}).state_dict(), name)
    return Path(name)


def test_weights_make_a_recipe_that_prunes_them_and_that_runs() -> None:
    done = call(
        "./net.py:make", "digits", "--weights", str(weights()), "--mean", "0.3", "--std", "0.4", "--budget", "40%"
    )
    assert (done.exit_code, done.stderr) == (0, "")
    said = recipe.read("recipe.yaml")
    assert said.model.weights == "./trained.safetensors"
    assert (said.data.mean, said.data.std) == ((0.3,), (0.4,))
    assert said.methods[0].name == "reconstruct"
    assert said.methods[0].model_dump()["allocate"] == "even"
    short = {"method.tune.epochs": "1", "method.batches": "2"}
    told = compress.run("recipe.yaml", out="out", overrides=short).report.plain()
    assert [line["event"] for line in told["history"]] == ["start", "narrowed", "recalibrated", "tune"]
    assert told["landing"]["utilisation"] > 0.9


def test_without_mean_and_std_it_says_where_they_belong() -> None:
    init("./net.py:make", "digits", weights=str(weights()))
    assert "  # mean: [0.5]" in Path("recipe.yaml").read_text()
    assert recipe.read("recipe.yaml").data.mean is None


def test_weights_of_torchvision_are_taken_for_imagenets(shop: Path) -> None:
    source = pictures(shop / "images", mode="RGB")
    torch.manual_seed(0)
    model = construct("torchvision.models:squeezenet1_1", {"num_classes": 2})
    save_file(model.state_dict(), "w.safetensors")
    init("torchvision.models:squeezenet1_1", str(source), args={"num_classes": 2}, size=32, weights="w.safetensors")
    said = recipe.read("recipe.yaml")
    assert said.data.mean == (0.485, 0.456, 0.406)
    assert "ImageNet's; write your own" in Path("recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (("digits", "--weights", "trained.safetensors", "--budget", "1MMACs"), "name the factory that they belong to"),
        (("./net.py:make", "digits", "--weights", "none.safetensors"), "there is no such file"),
        (("./net.py:make", "digits", "--mean", "0.5"), "name its --weights, too"),
        (("./net.py:make", "digits", "--weights", "trained.safetensors", "--mean", "0.5"), "belong together"),
        (("./net.py:make", "digits", "--weights", "other.safetensors"), "trained"),
    ],
)
def test_weights_that_cannot_be_used_are_told_and_nothing_is_written(said: tuple[str, ...], says: str) -> None:
    weights()
    weights("other.safetensors", num_classes=7)
    done = call(*said)
    assert done.exit_code == 2
    assert says in done.stderr or "other.safetensors" in said
    assert not Path("recipe.yaml").exists()
