"""Arrays as people have them: labels that are certain are used, what would not fit is refused before it is unpacked."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UsageError
from compress.recipe import settings
from compress.training.arrays import plain_labels, read_arrays
from compress.training.data import Data, load

X = np.random.default_rng(0).integers(0, 255, (60, 4, 4, 3), dtype=np.uint8)
Y = np.arange(60) % 5


def loaded(path: Path, x: np.ndarray = X, y: np.ndarray = Y, *, targets: bool = False, **more: object) -> Data:
    arrays = {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20], **more}
    np.savez(path / "a.npz", **{key: value for key, value in arrays.items() if value is not None})
    keys = settings.Data.model_validate({"source": "npz", "path": str(path / "a.npz"), "val": 10})
    return load(keys, batch=5, seed=0, device=torch.device("cpu"), targets=targets)


FORMS = {
    "a column": Y[:, None].astype(np.uint8),
    "one-hot": np.eye(5, dtype=np.uint8)[Y],
    "one-hot floats": np.eye(5, dtype=np.float32)[Y],
    "floats": Y.astype(np.float64),
    "a column of floats": Y[:, None].astype(np.float32),
    "from 1": Y + 1,
    "a column from 1": (Y + 1)[:, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_that_are_certain_are_those_of_the_plain_array(tmp_path: Path, form: str) -> None:
    plain, data = loaded(tmp_path), loaded(tmp_path, y=FORMS[form])
    for split in ("train", "val", "test"):
        ours, theirs = (torch.cat([y for _, y in of.split(split)]) for of in (data, plain))
        assert torch.equal(ours, theirs)
    assert plain.notes == ()
    assert len(data.notes) >= 1
    names = ("1", "2", "3", "4", "5") if "from 1" in form else ("0", "1", "2", "3", "4")
    assert data.classes == names


@pytest.mark.parametrize("form", ["one-hot floats", "floats", "a column of floats", "a column"])
def test_a_loss_of_the_recipes_own_gets_the_targets_as_they_lie_there(tmp_path: Path, form: str) -> None:
    data = loaded(tmp_path, y=FORMS[form], targets=True)
    assert (data.classes, data.notes) == ((), ())
    seen = torch.cat([y for _, y in data.split("test")])
    assert seen.numpy().tolist() == FORMS[form][:20].astype(np.float32).tolist()


def test_truth_values_are_two_classes(tmp_path: Path) -> None:
    assert loaded(tmp_path, y=Y % 2 == 0).classes == ("0", "1")


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (Y * 2, "return_inverse=True"),
        (Y + 7, "return_inverse=True"),
        (np.where(Y == 0, -1, Y), "return_inverse=True"),
        (Y.astype(str), "expected a whole number for each of 60 images"),
    ],
)
def test_labels_that_are_not_certain_are_refused_with_the_cure(tmp_path: Path, y: np.ndarray, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        loaded(tmp_path, y=y)


@given(st.lists(st.floats(-3, 3).filter(lambda v: v != int(v)), min_size=1, max_size=20))
def test_values_are_never_taken_for_labels(values: list[float]) -> None:
    y = np.array(values, np.float32)
    found, names, notes = plain_labels({"train": y})
    if not (y == np.floor(y)).all():
        assert (found["train"] is y, names, notes) == (True, (), ())


def test_names_that_others_use_are_understood(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=X, train_labels=Y[:, None], test_images=X[:9], test_labels=Y[:9, None],
             val_images=X[:8], val_labels=Y[:8, None])  # fmt: skip
    data = load(settings.Data(source="npz", path=str(tmp_path / "a.npz")), batch=5, seed=0, device=torch.device("cpu"))
    assert data.counts == {"train": 60, "val": 8, "test": 9}


def test_pixels_of_zero_and_one_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 and 1 of 255, nearly black; write \(255 \* x\)"):
        loaded(tmp_path, x=X % 2)


def test_large_arrays_that_are_not_packed_stay_in_their_file_and_are_the_same(tmp_path: Path) -> None:
    small = loaded(tmp_path)
    keys = settings.Data(source="npz", path=str(tmp_path / "a.npz"), val=10, crop=1)
    large = load(keys, batch=5, seed=0, device=torch.device("cpu"), in_memory=100)
    arrays = read_arrays(tmp_path / "a.npz", 100)
    assert isinstance(arrays["x_train"], np.memmap)
    assert np.array_equal(arrays["x_train"], X)
    assert (large.mean, large.std, large.digest) == (small.mean, small.std, small.digest)
    for (x, y), (a, b) in zip(large.stream(3, 9, varied=False), small.stream(3, 9, varied=False), strict=True):
        assert isinstance(x, torch.Tensor)
        assert isinstance(a, torch.Tensor)
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_a_packed_array_larger_than_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**5, 10**4)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", head.getvalue() + b"\0" * 1000)
    with pytest.raises(UsageError, match=r"packed and would take 1000000\.0 GB .* np\.savez in place of"):
        read_arrays(tmp_path / "a.npz")


def test_a_folder_in_the_place_of_the_arrays_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file of arrays"):
        read_arrays(tmp_path)
