"""What a finished run left goes to another budget: narrowed to its largest filters, or widened and still the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Finished

import compress
from compress._plan import methods_of, plan
from compress._run import develop, prepare
from compress.errors import ArtifactError, CompressError, Infeasible, Interrupted, UsageError
from compress.recipe.settings import Recipe
from compress.training.bench import Bench
from compress.training.events import Event, Progress

NET = {"widths": [16, 24], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
CONV1, CONV2 = "features.conv1", "features.conv2"


@pytest.fixture(autouse=True)
def shop(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with a finished run in it: two convolutions and a linear layer, 60 kMACs at most."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.out, "old")
    (tmp_path / "work").mkdir()
    return tmp_path


def recipe(budget: str, epochs: float = 0.0, **said: Any) -> Recipe:
    keys = {
        "model": {"factory": "compress.models:vgg", "args": NET},
        "data": {"source": "digits", "crop": 1},
        "train": {"batch": 100, "lr": 0.05},
        "method": {"name": "refit", "of": "old", "tune": {"epochs": epochs}},
        "budget": budget,
        "checkpoint": "3 steps",
    }
    return Recipe.model_validate(keys | said)


def fitted(said: Recipe, folder: Path) -> Bench:
    lab, _ = prepare(said, "cpu")
    develop(lab, methods_of(said), folder)
    return lab


def macs(a: int, b: int) -> int:
    """Of the net: 3x3 over 8x8 pixels, 3x3 over 4x4 pixels behind a pooling, and 10 classes."""
    return 9 * 64 * a + 9 * 16 * a * b + 10 * b


def test_a_smaller_budget_keeps_the_filters_of_largest_norm_with_their_weights(shop: Path) -> None:
    lab = fitted(recipe("20kMACs"), shop / "work")
    old = safetensors.torch.load_file("old/model.safetensors")
    a, b = lab.widths[CONV1], lab.widths[CONV2]
    assert macs(a, b) == lab.cost().macs <= 20_000 < min(macs(a + 1, b), macs(a, b + 1))
    assert lab.step == 0
    first, second = old[f"{CONV1}.weight"].double().numpy(), old[f"{CONV2}.weight"].double().numpy()
    kept = np.sort(np.argsort(-np.abs(first).sum((1, 2, 3)), kind="stable")[:a])
    rows = np.sort(np.argsort(-np.abs(second).sum((1, 2, 3)), kind="stable")[:b])
    new = lab.model.state_dict()
    assert np.array_equal(new[f"{CONV1}.weight"].numpy(), first[kept].astype(np.float32))
    assert np.array_equal(new[f"{CONV2}.weight"].numpy(), second[rows][:, kept].astype(np.float32))
    assert torch.equal(new["features.norm2.running_var"], old["features.norm2.running_var"][rows])


def test_a_larger_budget_is_filled_by_a_net_that_computes_the_same(shop: Path) -> None:
    lab = fitted(recipe("150kMACs"), shop / "work")
    old = compress.load("old")
    widths = safetensors.torch.load_file("old/model.safetensors")
    assert 0.97 * 150_000 < lab.cost().macs <= 150_000
    assert lab.widths[CONV1] > len(widths[f"{CONV1}.weight"])
    assert lab.widths[CONV2] > len(widths[f"{CONV2}.weight"])
    x, _ = next(iter(lab.data.split("val")))
    with torch.no_grad():
        torch.testing.assert_close(lab.model.eval()(x), old(x), rtol=0, atol=1e-5)


def test_the_history_says_what_was_taken_and_what_the_run_had_cost(shop: Path, finished: Finished) -> None:
    rows = [note.row for note in fitted(recipe("30kMACs", epochs=1), shop / "work").history]
    assert [row["event"] for row in rows] == ["taken", "landed", "tune", "tune", "tune", "tune"]
    assert rows[0]["source"] == "model.safetensors"
    assert rows[0]["spent"] == finished.report["train_cost"]["macs_images"]
    assert rows[0]["macs"] == finished.report["cost"]["macs"]
    assert rows[-1]["val"] > rows[1]["val"]


def test_widths_are_multiples_where_the_recipe_asks_for_them(shop: Path) -> None:
    lab = fitted(recipe("120kMACs", align=8), shop / "work")
    old = safetensors.torch.load_file("old/model.safetensors")
    was = [len(old[f"{name}.weight"]) for name in (CONV1, CONV2)]
    assert all(now % 8 == 0 or now == old for now, old in zip(lab.widths.values(), was, strict=True))
    assert all(width % 8 == 0 for width in fitted(recipe("25kMACs", align=8), shop / "work").widths.values())


def test_a_stopped_refit_goes_on_to_the_same_bits(shop: Path) -> None:
    said, stretches = recipe("30kMACs", epochs=1), 0

    def stop(event: Event) -> None:
        nonlocal stretches
        stretches += isinstance(event, Progress) and event.step == event.steps
        if stretches == 2:
            raise Interrupted("stopped")

    (shop / "parts").mkdir()
    lab, _ = prepare(said, "cpu", stop)
    with pytest.raises(Interrupted):
        develop(lab, methods_of(said), shop / "parts")
    whole, parts = fitted(said, shop / "work"), fitted(said, shop / "parts")
    assert parts.books() == whole.books()
    tensors = whole.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in parts.model.state_dict().items())


def test_the_smallest_net_has_one_filter_everywhere_and_less_is_refused(shop: Path) -> None:
    assert plan(recipe("20kMACs")).floor.macs == macs(1, 1)
    with pytest.raises(Infeasible, match="The budget is below the floor"):
        plan(recipe(f"{macs(1, 1) - 1} MACs")).refuse()


BEHIND = [{"name": "scratch", "epochs": 1}, {"name": "refit", "of": "old"}]
WRONG: list[tuple[dict[str, Any], type[CompressError], str]] = [
    ({"method": {"name": "refit", "of": "none"}}, UsageError, r"method\.of: there is no model\.safetensors in none"),
    ({"method": {"name": "refit", "of": "bad"}}, ArtifactError, r"method\.of: model\.safetensors is not a readable"),
    ({"method": None, "steps": BEHIND}, UsageError, "no other method may come before it"),
    (
        {"model": {"factory": "compress.models:vgg", "args": NET | {"classes": 11}}}, UsageError,
        r"method\.of: classifier\.linear1.* is \[10.* in the file, and no widths of this model make it so",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kind", "says"), WRONG)
def test_what_is_no_network_of_this_model_is_told_before_anything_is_trained(
    shop: Path, said: dict[str, Any], kind: type[CompressError], says: str
) -> None:
    (shop / "bad").mkdir()
    (shop / "bad/model.safetensors").write_text(json.dumps({}))
    with pytest.raises(kind, match=says):
        prepare(recipe("20kMACs", **said), "cpu")
