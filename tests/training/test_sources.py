"""Arrays of floats are taken with their channels first, and normalised by their own statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.errors import UsageError
from compress.recipe import settings
from compress.training import data

SHAPES = {"features": (5,), "series": (2, 9), "pictures": (3, 4, 6), "volumes": (1, 3, 4, 5)}


def load(at: Path, **said: Any) -> data.Data:
    keys = settings.Data(source="npz", path=str(at), val=20, **said)
    return data.load(keys, batch=10, seed=0, device=torch.device("cpu"))


def write(at: Path, shape: tuple[int, ...], dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    own = 1 + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))  # another mean and spread for each channel
    found: dict[str, Any] = {}
    for split, n in (("train", 100), ("test", 30)):
        x = rng.normal(own * 10, own, (n, *shape)).astype(dtype)
        found |= {f"x_{split}": x, f"y_{split}": np.arange(n) % 3}
    np.savez(at, **found)
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_arrays_of_any_rank_are_split_and_normalised_channel_by_channel(kind: str, tmp_path: Path) -> None:
    written, of = write(tmp_path / "a.npz", SHAPES[kind]), load(tmp_path / "a.npz")
    assert (of.shape, of.scale, of.counts) == (SHAPES[kind], 1, {"train": 80, "val": 20, "test": 30})
    seen = torch.cat([x for x, _ in of.split("train")]).transpose(0, 1).flatten(1)
    assert seen.mean(1).abs().max() < 1e-4
    assert (seen.std(1, unbiased=False) - 1).abs().max() < 1e-4
    x, _ = next(iter(of.split("test")))
    axes = (1, -1, *[1] * (len(SHAPES[kind]) - 1))
    again = x.double() * torch.tensor(of.std).view(axes) + torch.tensor(of.mean).view(axes)
    assert np.abs(again.numpy() - written["x_test"]).max() < 1e-4
    assert torch.equal(of.raw("test", 3), torch.tensor(written["x_test"][:3], dtype=torch.float32))
    (batch, _), _ = of.stream(0, 2)
    assert batch.shape == (10, *SHAPES[kind])


def test_stated_means_hold_and_may_be_negative_where_there_are_no_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", (2, 9))
    of = load(tmp_path / "a.npz", mean=(-1.0, 300.0), std=(2.0, 4.0))
    assert (of.mean, of.std) == ((-1.0, 300.0), (2.0, 4.0))
    with pytest.raises(UsageError, match=r"data.mean is \[1.0\]; it needs 2 numbers.$"):
        load(tmp_path / "a.npz", mean=(1.0,))


def test_a_number_in_an_array_that_changes_changes_the_digest(tmp_path: Path) -> None:
    written = write(tmp_path / "a.npz", (2, 9))
    first = load(tmp_path / "a.npz").digest
    written["x_train"][:, 1, 3] += 1e-3
    np.savez(tmp_path / "b.npz", **written)
    assert load(tmp_path / "b.npz").digest != first == load(tmp_path / "a.npz").digest


@pytest.mark.parametrize("said", [{"crop": 1}, {"flip": True}, {"cutout": 2}])
def test_what_varies_pictures_is_refused_for_other_arrays(said: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a.npz", (2, 9))
    with pytest.raises(UsageError, match=r"vary pictures .* arrays \[2, 9\] have none"):
        load(tmp_path / "a.npz", **said)
    write(tmp_path / "b.npz", (3, 8, 9), "float16")
    assert next(load(tmp_path / "b.npz", **said).stream(0, 1))[0].shape == (10, 3, 8, 9)
