"""Data sets of one's own: read as torch's are, alike wherever and whenever an item is read, faults told as theirs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress.errors import UsageError
from compress.recipe import settings
from compress.training.data import Data, load

SETS = """
import random
import numpy as np
import torch
from PIL import Image

print("this is no reply")

class Set:
    def __init__(self, count, kind="array", vary=False, first=0, broken=None, listed=None):
        self.count, self.kind, self.vary, self.first, self.broken = count, kind, vary, first, broken
        if listed is not None:
            self.targets = listed

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number == self.broken:
            raise ValueError("this item is broken")
        x = np.full((4, 5, 3), number, dtype=np.uint8)
        x[0, 0] = 7, 8, 9
        if self.vary:
            x[1, 1] = random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))
        if self.kind == "picture":
            x = Image.fromarray(x)
        if self.kind == "planes":
            x = torch.from_numpy(x).permute(2, 0, 1)
        if self.kind == "floats":
            x = torch.from_numpy(x).permute(2, 0, 1) / 255
        y = self.first + number % 3
        if self.kind == "map":
            return x, np.full((4, 5), y)
        if self.kind == "two":
            return x, np.array([number, number]), y
        return x, y

def build(count=12, **said):
    others = {**said, "listed": None}
    return {"train": Set(count, **said), "val": Set(3, **others), "test": Set(3, **others)}

def nothing():
    return {"training": []}

def alone(count):
    return {"train": Set(count)}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(SETS)
    return tmp_path


def loaded(
    folder: Path, name: str = "build", *, workers: int = 0, targets: bool = False, seed: int = 0, **args: object
) -> Data:
    said = {"dataset": f"./data.py:{name}", "args": args, "workers": workers, "val": 3}
    keys = settings.Data.model_validate(said)
    return load(keys, batch=4, seed=seed, device=torch.device("cpu"), root=folder, targets=targets)


@pytest.mark.parametrize("kind", ["array", "picture", "planes"])
def test_pictures_arrays_and_planes_are_the_same_images(own: Path, kind: str) -> None:
    data = loaded(own, kind=kind)
    images = data.raw("val", 3)
    assert isinstance(images, torch.Tensor)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 4, 5)
    assert images[2, :, 0, 0].tolist() == [7, 8, 9]
    assert images[2, :, 2, 2].tolist() == [2, 2, 2]
    assert data.counts == {"train": 12, "val": 3, "test": 3}
    assert data.classes == ("0", "1", "2")
    assert [y.tolist() for _, y in data.split("val")] == [[0, 1, 2]]


def test_floats_are_arrays_and_normalised_as_such(own: Path) -> None:
    data = loaded(own, kind="floats")
    (x, _), *_ = data.split("test")
    expected = (2 / 255 - data.mean[0]) / data.std[0]
    assert isinstance(x, torch.Tensor)
    assert x[2, 0, 3, 3].item() == pytest.approx(expected, abs=1e-5)


def test_what_varies_follows_from_the_seed_in_processes_as_here_and_from_any_step(own: Path) -> None:
    here, apart = loaded(own, vary=True), loaded(own, vary=True, workers=2)
    state = torch.get_rng_state()
    batches = [x for x, _ in here.stream(0, 7)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(batches, [x for x, _ in apart.stream(0, 7)], strict=True):
        assert torch.equal(first, second)
    assert torch.equal(batches[5], next(iter(apart.stream(5, 1)))[0])
    assert not torch.equal(batches[0], next(iter(loaded(own, vary=True, seed=1).stream(0, 1)))[0])
    assert [x.tolist() for x, _ in here.split("val")] == [x.tolist() for x, _ in apart.split("val")]


def test_labels_that_are_listed_are_believed_only_where_items_agree(own: Path) -> None:
    listed = loaded(own, listed=[number % 3 for number in range(12)])
    wrong = loaded(own, listed=[2 - number % 3 for number in range(12)])
    assert "train" not in listed.notes[0]
    assert "12 of train" in wrong.notes[0]
    assert listed.parts["train"][0].labels.tolist() == wrong.parts["train"][0].labels.tolist()


def test_labels_from_one_are_classes_of_that_name(own: Path) -> None:
    assert loaded(own, first=1).classes == ("1", "2", "3")


def test_targets_and_further_inputs_come_with_each_item(own: Path) -> None:
    (_, y), *_ = loaded(own, kind="map", targets=True).split("val")
    assert y.shape == (3, 4, 5)
    two = loaded(own, kind="two")
    assert two.shape == ((3, 4, 5), (2,))
    (x, _), *_ = two.split("val")
    assert isinstance(x, tuple)
    assert x[1].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_ids_that_float32_does_not_hold_are_refused(own: Path) -> None:
    (own / "data.py").write_text(SETS.replace("[number, number]", "[number, 2**24 + 1]"))
    with pytest.raises(UsageError, match="whole numbers above 16,777,216, which float32 does not hold exactly"):
        loaded(own, kind="two")


def test_validation_images_are_held_out_where_there_are_none(own: Path) -> None:
    assert loaded(own, "alone", count=12).counts == {"train": 9, "val": 3, "test": 0}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_fails_is_told_with_the_place_in_the_users_file(own: Path, workers: int) -> None:
    with pytest.raises(UsageError, match=r"data.py, line 2\d, in __getitem__\(\) failed: ValueError: this item is"):
        loaded(own, broken=5, workers=workers)


def test_a_process_that_dies_is_told(own: Path) -> None:
    (own / "data.py").write_text(SETS.replace('raise ValueError("this item is broken")', "import os; os._exit(9)"))
    with pytest.raises(UsageError, match=r"A process that reads data ended with 9"):
        loaded(own, broken=5, workers=1)


def test_what_is_no_data_set_is_refused(own: Path) -> None:
    with pytest.raises(UsageError, match=r"must return \{'train': \.\.\., 'val'"):
        loaded(own, "nothing")
    with pytest.raises(UsageError, match="has no callable named other"):
        loaded(own, "other")
    with pytest.raises(ValidationError, match="leave out source"):
        settings.Data.model_validate({"dataset": "./data.py:build", "source": "digits"})
    with pytest.raises(ValidationError, match="args are those of a dataset"):
        settings.Data.model_validate({"source": "digits", "args": {"a": 1}})


def test_targets_too_large_for_float32_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((8, 3, 4), np.float32), np.full((8, 2), 1e300)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    keys = settings.Data.model_validate({"source": "npz", "path": str(tmp_path / "a.npz"), "val": 3})
    with pytest.raises(UsageError, match="y_train holds numbers that are not finite in float32"):
        load(keys, batch=2, seed=0, device=torch.device("cpu"), targets=True)
