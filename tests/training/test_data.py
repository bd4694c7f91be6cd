"""The stream is a function of (seed, number), splits are disjoint and stratified, and bad data is told of, not used."""

import struct
import threading
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from compress.errors import UsageError
from compress.recipe import settings
from compress.training import data
from compress.training.variation import blank, vary

CPU = torch.device("cpu")
MODES = {"zero": "constant", "reflect": "reflect"}  # of padding, as numpy calls them
PADDINGS = st.sampled_from(sorted(MODES))


def load(at: Path | None = None, *, batch: int = 16, seed: int = 0, in_memory: int = 10**9, **said: Any) -> data.Data:
    if at is not None:
        said = {"source": "npz" if at.suffix == ".npz" else "folder", "path": str(at), **said}
    return data.load(settings.Data(**said), batch=batch, seed=seed, device=CPU, in_memory=in_memory)


def arrays(train: int = 120, test: int = 30, side: int = 6) -> dict[str, Any]:
    """Images whose first two pixels are their number: they can be told apart in every split."""
    found: dict[str, Any] = {}
    for split, n, first in (("train", train, 0), ("test", test, train)):
        x = np.random.default_rng(first).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        x[:, 0, 0, 0], x[:, 0, 1, 0] = np.divmod(np.arange(first, first + n), 256)
        found |= {f"x_{split}": x, f"y_{split}": np.arange(n) % 3}
    return found


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    np.savez(tmp_path / "numbered.npz", **arrays())
    return tmp_path / "numbered.npz"


def numbers(of: data.Data, x: Tensor) -> list[int]:
    pixels = x * torch.tensor(of.std).view(1, -1, 1, 1) + torch.tensor(of.mean).view(1, -1, 1, 1)
    first = (pixels[:, 0, 0, :2] * 255).round().int()
    return (first[:, 0] * 256 + first[:, 1]).tolist()


def in_split(of: data.Data, split: str) -> list[int]:
    return [k for x, _ in of.split(split) for k in numbers(of, x)]


def test_digits_come_with_the_package_in_three_fixed_stratified_splits() -> None:
    digits = load()
    assert digits.counts == {"train": 1000, "val": 400, "test": 397}
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    found = {split: torch.cat([y for _, y in digits.split(split)]).bincount() for split in digits.counts}
    for split, count in digits.counts.items():
        assert (found[split] - sum(found.values()) * count / 1797).abs().max() <= 2  # two cuts, each within one
    assert load(seed=7).digest == digits.digest


def test_training_validation_and_test_images_are_disjoint_and_complete(numbered: Path) -> None:
    of = load(numbered, val=0.25)
    train, val, test = (in_split(of, split) for split in ("train", "val", "test"))
    assert of.counts == {"train": 90, "val": 30, "test": 30}
    assert sorted(train + val) == list(range(120))
    assert test == list(range(120, 150))
    assert in_split(load(numbered, val=0.25, seed=1), "val") != val


@examples(max_examples=100)
@given(st.data())
def test_holding_out_takes_the_same_share_of_every_class(drawn: st.DataObject) -> None:
    labels = torch.tensor(drawn.draw(st.lists(st.integers(0, 5), min_size=2, max_size=60)))
    count, seed = drawn.draw(st.integers(1, len(labels) - 1)), drawn.draw(st.integers(0, 2**32 - 1))
    held, rest = data.hold_out(labels, count, seed)
    assert len(held) == count
    assert sorted(held.tolist() + rest.tolist()) == list(range(len(labels)))
    for of in range(6):
        in_class = (labels == of).sum() * count / len(labels)
        assert abs((labels[held] == of).sum() - in_class) < 1


def test_every_batch_is_the_same_from_wherever_the_stream_is_entered(numbered: Path) -> None:
    of = load(numbered, crop=2, flip=True)
    steps = 3 * of.steps_per_epoch + 1
    whole = list(of.stream(0, steps))
    assert len(whole) == steps
    for start in range(steps):
        (x, y), *_ = load(numbered, crop=2, flip=True).stream(start, 1)
        assert torch.equal(x, whole[start][0])
        assert torch.equal(y, whole[start][1])


def test_an_epoch_shows_each_image_at_most_once_and_each_epoch_has_its_own_order(numbered: Path) -> None:
    of = load(numbered, val=20)
    assert of.steps_per_epoch == 100 // 16
    epochs = [
        [k for x, _ in of.stream(e * of.steps_per_epoch, of.steps_per_epoch) for k in numbers(of, x)] for e in range(12)
    ]
    assert all(len(set(epoch)) == 96 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert set().union(*epochs) == set(in_split(of, "train"))  # the 4 left over are others each time
    other = [k for x, _ in load(numbered, val=20, seed=1).stream(0, of.steps_per_epoch) for k in numbers(of, x)]
    assert other not in epochs


def test_labels_stay_with_their_images(numbered: Path) -> None:
    of = load(numbered)
    for batches in (of.stream(0, 9), of.split("train"), of.split("val")):
        for x, y in batches:
            assert [k % 3 for k in numbers(of, x)] == y.tolist()


@examples(max_examples=60)
@given(st.data())
def test_cropping_and_mirroring_a_batch_equals_doing_it_image_by_image(drawn: st.DataObject) -> None:
    b, c, h, w = (drawn.draw(st.integers(1, most)) for most in (5, 3, 7, 7))
    crop, seed, padding = drawn.draw(st.integers(0, 3)), drawn.draw(st.integers(0, 99)), drawn.draw(PADDINGS)
    crop = min(crop, h - 1, w - 1) if padding == "reflect" else crop
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (b, c, h, w), dtype=np.uint8)
    draws = np.concatenate([rng.integers(0, 2 * crop + 1, (2, b)), rng.integers(0, 2, (1, b))])
    expected = []
    for image, (top, left, mirrored) in zip(images, draws.T, strict=True):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode=MODES[padding])
        cut = padded[:, top : top + h, left : left + w]
        expected.append(cut[:, :, ::-1] if mirrored else cut)
    varied = vary(torch.from_numpy(images), torch.from_numpy(draws), crop, padding)
    assert np.array_equal(varied.numpy(), np.stack(expected))


def test_the_stream_is_the_images_varied_by_their_batchs_draws(numbered: Path) -> None:
    of = load(numbered, crop=2, flip=True)
    plain, varied = list(of.stream(5, 3, varied=False)), list(of.stream(5, 3))
    train = np.load(numbered)["x_train"]
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (of.mean, of.std))
    for number, (x, _), (v, _) in zip(range(5, 8), plain, varied, strict=True):
        images = torch.from_numpy(train[numbers(of, x)]).permute(0, 3, 1, 2)
        for seen, expected in (
            (x, images),
            (v, vary(images, of.draws(number, torch.tensor(numbers(of, x))), 2)),
        ):
            torch.testing.assert_close(seen.double(), (expected / 255.0 - mean) / std, atol=2e-6, rtol=0)


@examples(max_examples=60)
@given(st.data())
def test_blanking_a_batch_equals_doing_it_pixel_by_pixel(drawn: st.DataObject) -> None:
    b, c, h, w, side = (drawn.draw(st.integers(1, most)) for most in (4, 3, 7, 7, 8))
    centres = np.array([[drawn.draw(st.integers(0, most - 1)) for _ in range(b)] for most in (h, w)])
    x = np.random.default_rng(0).uniform(1, 2, (b, c, h, w)).astype(np.float32)
    expected = x.copy()
    for image, (row, column) in enumerate(centres.T):
        for i in range(row - side // 2, row - side // 2 + side):
            for j in range(column - side // 2, column - side // 2 + side):
                if 0 <= i < h and 0 <= j < w:
                    expected[image, :, i, j] = 0
    blank(blanked := torch.from_numpy(x), torch.from_numpy(centres), side)
    assert np.array_equal(blanked.numpy(), expected)


def test_cutout_blanks_what_the_stream_gave_without_it_and_leaves_the_splits_alone(numbered: Path) -> None:
    whole, cut = load(numbered, crop=2, flip=True), load(numbered, crop=2, flip=True, cutout=3)
    for number, (x, y), (v, labels) in zip(range(4, 9), whole.stream(4, 5), cut.stream(4, 5), strict=True):
        blank(x, cut.centres(number), 3)
        assert torch.equal(v, x)
        assert torch.equal(labels, y)
    assert all((v == 0).all(1).flatten(1).sum(1).min() >= 4 for v, _ in cut.stream(0, 3))  # a corner at the least
    plain = zip(whole.stream(0, 3, varied=False), cut.stream(0, 3, varied=False), strict=True)
    assert all(torch.equal(a, b) for (a, _), (b, _) in plain)
    assert in_split(cut, "train") == in_split(whole, "train")
    assert in_split(cut, "val") == in_split(whole, "val")


def test_squares_are_centred_on_every_pixel_alike() -> None:
    of = load(batch=1000, cutout=4)
    seen = Counter(tuple(at) for number in range(64) for at in of.centres(number).T.tolist())
    assert len(seen) == 8 * 8
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in seen.values())


def test_flips_that_alternate_show_each_image_one_way_in_one_epoch_and_the_other_way_in_the_next() -> None:
    of = load(batch=100, flip="alternate")
    sides = []
    for epoch in range(3):
        seen = {}
        for number in range(epoch * 10, epoch * 10 + 10):
            (x, _), (v, _) = next(of.stream(number, 1, varied=False)), next(of.stream(number, 1))
            for plain, varied in zip(x, v, strict=True):
                assert torch.equal(varied, plain) or torch.equal(varied, plain.flip(2))
                seen[plain.numpy().tobytes()] = torch.equal(varied, plain)
        sides.append(seen)
    lopsided = [image for image in sides[0] if not (sides[0][image] and sides[1][image])]
    assert len(lopsided) > 950  # some digits are their own mirror images
    assert all(sides[0][image] != sides[1][image] for image in lopsided)
    assert sides[2] == sides[0]
    assert 400 < sum(sides[0].values()) < 600


def test_an_image_too_small_to_be_reflected_is_refused() -> None:
    load(crop=7, padding="reflect")
    with pytest.raises(UsageError, match=r"data\.crop: 8 is too much for images of 8 x 8 pixels"):
        load(crop=8, padding="reflect")


def test_every_shift_and_both_sides_are_equally_likely() -> None:
    of = load(batch=1000, crop=1, flip=True)
    seen = Counter(tuple(draw) for number in range(18) for draw in of.draws(number, torch.arange(1000)).T.tolist())
    assert len(seen) == 3 * 3 * 2
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in seen.values())  # 18,000 over 18: 5 standard errors
    assert {tuple(draw) for draw in load(flip=False).draws(0, torch.arange(0)).T.tolist()} == {(0, 0, 0)}


def test_training_images_have_mean_0_and_deviation_1_and_a_constant_channel_is_harmless(tmp_path: Path) -> None:
    of = arrays()
    of["x_train"][..., 2] = 7
    np.savez(tmp_path / "constant.npz", **of)
    constant = load(tmp_path / "constant.npz")
    x = torch.cat([x for x, _ in constant.split("train")]).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    expected = torch.tensor([1.0, 1.0, 0.0]).double()
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), expected, atol=1e-6, rtol=0)
    assert constant.std[2] == 1


def test_a_subset_of_the_training_images_can_be_asked_for_and_the_rest_is_unchanged(numbered: Path) -> None:
    whole, part = load(numbered), load(numbered, train=40)
    assert part.counts == {"train": 40, "val": 12, "test": 30}
    assert set(in_split(part, "train")) < set(in_split(whole, "train"))
    assert in_split(part, "train") == sorted(in_split(part, "train"))
    assert in_split(part, "val") == in_split(whole, "val")
    assert part.digest != whole.digest


def test_raw_images_are_the_files_bytes(numbered: Path) -> None:
    expected = torch.from_numpy(np.load(numbered)["x_test"][:5]).permute(0, 3, 1, 2)
    assert torch.equal(load(numbered).raw("test", 5), expected)


def test_the_digest_changes_with_a_label_a_pixel_or_the_split(numbered: Path, tmp_path: Path) -> None:
    digests = {load(numbered).digest, load(numbered).digest, load(numbered, seed=1).digest}
    for key in ("y_test", "x_train"):
        of = arrays()
        of[key].flat[-1] = (of[key].flat[-1] + 1) % 3
        np.savez(tmp_path / "other.npz", **of)
        digests.add(load(tmp_path / "other.npz", train=108, val=12).digest)
    assert len(digests) == 4


def test_an_npz_may_bring_its_own_validation_images_and_may_be_gray(tmp_path: Path) -> None:
    of = {key: x[..., 0] if x.ndim == 4 else x.astype(np.uint8) for key, x in arrays().items()}
    np.savez_compressed(tmp_path / "own.npz", **of, x_val=of["x_test"][:9], y_val=of["y_test"][:9])
    own = load(tmp_path / "own.npz")
    assert own.counts == {"train": 120, "val": 9, "test": 30}
    assert own.shape == (1, 6, 6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "float images": ({"x_train": np.zeros((120, 6, 6, 3), np.float32)}, "float32 .* looks like .* transpose them"),
    "wide integers": ({"x_train": np.zeros((120, 6, 6, 3), int)}, "x_train is int64; images must be uint8"),
    "floats beside images": ({"x_test": np.zeros((30, 3, 6, 6))}, r"images float64 \[3, 6, 6\], x_train has uint8"),
    "floats without channels": ({"x_train": np.zeros(120)}, r"float64 \[120\]; expected floats \[N, C, ...\]"),
    "floats that are none": ({"x_train": np.full((120, 2, 9), np.nan)}, "x_train holds numbers that are not finite"),
    "channels first": ({"x_train": np.zeros((120, 3, 6, 6), np.uint8)}, r"\[120, 3, 6, 6\]; expected \[N, H, W, C\]"),
    "flat images": ({"x_train": np.zeros((120, 108), np.uint8)}, r"\[120, 108\]; expected"),
    "no images": ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test has the shape"),
    "float labels": ({"y_train": np.zeros(120)}, r"y_test is int64 .* expected float64"),
    "one-hot labels": (
        {"y_train": np.eye(3, dtype=int)[np.arange(120) % 3]},
        r"y_test is int64 \[30\]; expected int64 \[30, 3\]",
    ),
    "fewer labels": ({"y_train": np.arange(119) % 3}, "whole number for each of 120 images"),
    "labels from 1": ({"y_train": np.arange(120) % 3 + 1}, "from 1 to 3, but y_train has 3 different labels"),
    "an unknown label": ({"y_test": np.arange(30) % 4}, "y_test goes from 0 to 3"),
    "negative labels": ({"y_test": -(np.arange(30) % 3)}, "y_test goes from -2 to 0"),
    "other sizes": ({"x_test": np.zeros((30, 7, 6, 3), np.uint8)}, r"x_test has images uint8 \[7, 6, 3\]"),
    "a missing array": ({"y_test": None}, "expected x_test, x_train, y_test, y_train"),
    "an unknown array": ({"x_vall": np.zeros(3)}, "has the arrays x_test, x_train, x_vall"),
    "half a split": ({"x_val": np.zeros((3, 6, 6, 3), np.uint8)}, "has the arrays"),
    "pickled labels": ({"y_train": np.array([Path("x")] * 120)}, "cannot be read .* Python objects"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG.keys())
def test_an_npz_that_cannot_be_used_is_refused_with_a_sentence(change: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", **{key: x for key, x in (arrays() | change).items() if x is not None})
    with pytest.raises(UsageError, match=said):
        load(tmp_path / "wrong.npz")


def test_no_damaged_or_foreign_file_gets_past_the_reader(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", **arrays(12, 3, 4))
    good = (tmp_path / "good.npz").read_bytes()
    rng = np.random.default_rng(0)
    bad = [b"", b"PK", b"x" * 99, good[1:], *(good[: len(good) * k // 40] for k in range(40))]
    for _ in range(200):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            damaged[at] = rng.integers(256)
        bad.append(bytes(damaged))
    refused = 0
    for content in bad:
        (tmp_path / "bad.npz").write_bytes(content)
        try:
            load(tmp_path / "bad.npz", batch=2)
        except UsageError:
            refused += 1
    assert refused >= 44  # a changed date, say, harms nothing
    with zipfile.ZipFile(tmp_path / "forged.npz", "w") as forged:
        forged.writestr("x_train.npy", b"\x93NUMPY\x01\x00\x06\x00{'a':(")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("forged.npz", "one.npz", "none.npz"):
        with pytest.raises(UsageError, match=name):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("said", "batch", "sentence"),
    [
        ({"val": 120}, 4, "holds out 120 of 120 training images"),
        ({"val": 0.001}, 4, "holds out 0 of 120"),
        ({"train": 109}, 4, "more than the 108 training images"),
        ({}, 109, "train.batch: 109 is more than the 108"),
        ({"cutout": 6}, 4, "data.cutout: 6 would blank all or most of images of 6 x 6 pixels"),
    ],
)
def test_splits_that_leave_nothing_are_refused(said: Any, batch: int, sentence: str, numbered: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(numbered, batch=batch, **said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    of = arrays()
    for split in ("train", "test"):
        for k, (x, y) in enumerate(zip(of[f"x_{split}"], of[f"y_{split}"], strict=True)):
            path = tmp_path / split / "abc"[y] / f"{k:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_images_is_read_class_by_class(folder: Path) -> None:
    of = load(folder)
    assert of.classes == ("a", "b", "c")
    assert of.counts == {"train": 108, "val": 12, "test": 30}
    assert in_split(of, "test") == sorted(range(120, 150), key=lambda k: k % 3)
    assert all([k % 3 for k in numbers(of, x)] == y.tolist() for x, y in of.stream(0, 6))


@pytest.mark.parametrize("workers", [0, 3])
def test_a_folder_too_large_for_memory_gives_the_same_batches(workers: int, folder: Path) -> None:
    held, streamed = load(folder, crop=1, flip=True), load(folder, crop=1, flip=True, workers=workers, in_memory=9999)
    assert streamed.digest == held.digest
    for a, b in (
        (held.stream(4, 9), streamed.stream(4, 9)),
        (held.split("val", batch=5), streamed.split("val", batch=5)),
    ):
        for (x, y), (p, q) in zip(a, b, strict=True):
            assert torch.equal(x, p)
            assert torch.equal(y, q)
    threads = threading.active_count()
    left = streamed.stream(0, 100)
    next(left)
    del left
    assert threading.active_count() == threads  # leaving early leaves nothing running


def test_images_of_unequal_size_are_resized_to_the_middle_or_refused(folder: Path) -> None:
    wide = np.zeros((12, 24, 3), np.uint8)
    wide[:, 3:21] = 200  # wider than the middle square by what resizing blurs
    Image.fromarray(wide).save(folder / "test" / "a" / "000.png")
    with pytest.raises(UsageError, match=r"000.png is 24 x 12 pixels .* is 6 x 6; set data.size"):
        load(folder)
    of = load(folder, size=4)
    assert of.shape == (3, 4, 4)
    assert set(of.raw("test", 1).flatten().tolist()) == {200}


def test_a_folder_of_gray_images_has_one_channel_and_needs_no_test_images(tmp_path: Path) -> None:
    for k in range(20):
        path = tmp_path / "train" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 4), k, np.uint8)).save(path)
    gray = load(tmp_path, batch=4, val=4)
    assert gray.shape == (1, 5, 4)
    assert gray.counts == {"train": 16, "val": 4, "test": 0}
    with pytest.raises(UsageError, match="no test images, only 16 train and 4 val images"):
        gray.split("test")


def test_a_folder_that_cannot_be_used_is_refused_with_a_sentence(folder: Path) -> None:
    with pytest.raises(UsageError, match="no classes in train/; expected images as train/CLASS/NAME"):
        load(folder / "train")
    (folder / "test" / "d").mkdir()
    with pytest.raises(UsageError, match="d is a class without training images"):
        load(folder)
    (folder / "test" / "d").rmdir()
    deep = folder / "test" / "a" / "000.png"
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(deep)
    with pytest.raises(UsageError, match="more than 8 bits"):
        load(folder)
    deep.write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"000.png cannot be read as an image"):
        load(folder)
    (folder / "train" / "a" / "000.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"000.png cannot be read as an image"):
        load(folder)


def test_torchvisions_sets_are_read_where_they_are_and_never_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mnist cannot be read from .* set data.download: true"):
        load(source="mnist", path=str(tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    for split, n in (("train", 50), ("t10k", 20)):
        pixels = struct.pack(">4i", 2051, n, 28, 28) + images[:n].tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(k % 10 for k in range(n)))
    mnist = load(source="mnist", path=str(tmp_path), val=10)
    assert mnist.counts == {"train": 40, "val": 10, "test": 20}
    assert torch.equal(mnist.raw("test", 20)[:, 0], torch.from_numpy(images[:20]))
    assert len(mnist.classes) == 10
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="mnist cannot be read"):
        load(source="mnist", path=str(tmp_path))
