"""The control trains exactly the shape that it is told, from weights drawn anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from compress._plan import methods_of
from compress._run import prepare
from compress.errors import Infeasible, UsageError
from compress.methods.scratch.method import FromScratch
from compress.models import densenet, lenet5, resnet_cifar, vgg
from compress.reading.graph import Graph
from compress.recipe.settings import Recipe
from compress.surgery.shapes import widths_of
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.training.bench import Bench
from compress.training.train import lr_at

NET = {"widths": [12, 16], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg": (lambda: vgg([3, 5], [1, 2], hidden=[6], in_channels=1, size=8), (1, 8, 8)),  # a flatten after 2x2 pixels
    "lenet": (lambda: lenet5(3, 4, [5], size=16), (1, 16, 16)),
    "resnet A": (lambda: resnet_cifar([1, 1, 1], [3, 5, 8], in_channels=1), (1, 8, 8)),
    "resnet B": (lambda: resnet_cifar([2, 1], [4, 6], in_channels=1, option="B"), (1, 8, 8)),
    "densenet": (lambda: densenet([2, 2], growth=3, init=5, bottleneck=4, in_channels=1), (1, 8, 8)),
}
GRAPHS: dict[str, Graph] = {}  # each read once


def lab_of(folder: Path = Path(), budget: str = "10MMACs", **method: Any) -> tuple[Bench, Any]:
    keys = {
        "model": {"factory": "compress.models:vgg", "args": NET},
        "method": {"name": "scratch", "epochs": 2, **method},
        "budget": budget,
    }
    recipe = Recipe.model_validate(keys).placed(folder)
    return prepare(recipe, "cpu")[0], methods_of(recipe)[0]


def saved(path: Path, lab: Bench, factory: str = "compress.models:vgg") -> None:
    """Write the weights as a finished run does: its shapes are in the header, its structure in the metadata."""
    structure = {"compress": json.dumps({"structure": Structure(factory, NET).to_json()})}
    save_file({name: t.contiguous() for name, t in lab.model.state_dict().items()}, path, structure)


def test_widths_are_taken_as_they_are_said_and_the_others_stay() -> None:
    lab, method = lab_of(widths={"features.conv1": 5})
    method.init(lab)
    assert list(lab.widths.values()) == [5, 16]
    wider, method = lab_of(widths={"features.conv1": 14, "features.conv2": 3})
    method.init(wider)
    assert list(wider.widths.values()) == [14, 3]
    assert wider.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_space_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"called 'features.conv3', only features.conv1, features.conv2"):
        lab_of(widths={"features.conv3": 5})


def test_the_budget_is_that_of_the_shape_and_not_of_the_full_network(tmp_path: Path) -> None:
    narrow, method = lab_of(widths={"features.conv1": 3, "features.conv2": 4})
    method.init(narrow)
    saved(tmp_path / "finished.safetensors", narrow)
    limit = f"{narrow.cost().macs}MACs"
    like, _ = lab_of(tmp_path, limit, like="finished.safetensors")
    assert like.budget.holds(narrow.cost())
    with pytest.raises(Infeasible, match=r"is less than 3\.\d+ kMACs"):
        lab_of(tmp_path, f"{narrow.cost().macs - 1}MACs", like="finished.safetensors")


def test_like_takes_the_shapes_of_a_finished_run_and_other_weights(tmp_path: Path) -> None:
    trained, method = lab_of(widths={"features.conv1": 3, "features.conv2": 7})
    method.step(trained, method.init(trained))
    saved(tmp_path / "finished.safetensors", trained)
    lab, method = lab_of(tmp_path, like="finished.safetensors")
    method.init(lab)
    shapes = {name: t.shape for name, t in trained.model.state_dict().items()}
    assert {name: t.shape for name, t in lab.model.state_dict().items()} == shapes
    weights = [dict(each.model.named_parameters())["features.conv2.weight"] for each in (lab, trained)]
    assert not torch.equal(*weights)


def test_like_refuses_a_missing_file_and_another_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file none\.safetensors beside the recipe"):
        lab_of(tmp_path, like="none.safetensors")
    lab, _ = lab_of()
    del lab.model.get_submodule("features").conv2
    saved(tmp_path / "other.safetensors", lab)
    with pytest.raises(UsageError, match=r"features\.conv2\.weight is missing in the file, and no widths"):
        lab_of(tmp_path, like="other.safetensors")
    lab, _ = lab_of()
    lab.model.get_parameter("features.norm1.weight").data = torch.ones(5)
    saved(tmp_path / "odd.safetensors", lab)
    with pytest.raises(UsageError, match=r"is \[\d+.*in the file, and no widths of this model"):
        lab_of(tmp_path, like="odd.safetensors")


@settings(max_examples=15)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_the_widths_that_shapes_tell_are_those_that_made_them(family: str, data: st.DataObject) -> None:
    make, shape = FAMILIES[family]
    model = make()
    graph = GRAPHS.setdefault(family, survey(model, shape))
    widths = {name: data.draw(st.integers(1, 2 * width), label=name) for name, width in graph.widths.items()}
    surgeon = Surgeon(model, graph)
    for name, width in widths.items():
        if width > graph.widths[name]:
            surgeon.widen(name, width - graph.widths[name])
        else:
            surgeon.narrow(name, range(width))
    assert widths_of(graph, {name: tuple(t.shape) for name, t in model.state_dict().items()}) == widths


def test_the_rate_falls_over_all_epochs_however_training_is_cut() -> None:
    lab, method = lab_of(schedule="cosine", warmup=0.25, lr=0.3)
    state = method.init(lab)
    total, rates = 2 * lab.data.steps_per_epoch, []
    while method.done(lab, state) is None:
        state = method.step(lab, state)
        rates.append((lab.step, lab.optimizer.param_groups[0]["lr"]))
    assert state.at == lab.step == total
    assert rates == [(step, lr_at("cosine", 0.3, (step - 1) / total, 0.25)) for step, _ in rates]


def test_vectors_have_no_weight_decay() -> None:
    lab, method = lab_of()
    assert isinstance(method, FromScratch)
    method.init(lab)
    for group in lab.optimizer.param_groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert sum(len(group["params"]) for group in lab.optimizer.param_groups) == len(list(lab.model.parameters()))
