"""Images in folders as tools and people leave them: nothing is dropped, doubled or leaked without being told."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.errors import UsageError
from compress.recipe import settings
from compress.training.data import Data, load


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of two classes to train on, two to validate on, two to test."""
    for split, many in (("train", 4), ("val", 2), ("test", 2)):
        for at, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(many):
                picture(100 * at + number).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def loaded(root: Path, **said: object) -> Data:
    keys = settings.Data.model_validate({"source": "folder", "path": str(root), **said})
    return load(keys, batch=2, seed=0, device=torch.device("cpu"))


def test_hidden_copies_are_no_images_and_are_counted(root: Path) -> None:
    copies = root / "train" / "cat" / ".ipynb_checkpoints"
    copies.mkdir()
    for number in range(2):
        picture(number).save(copies / f"{number}-checkpoint.png")
    (root / "train" / "dog" / "._0.png").write_bytes(b"\0\5Mac OS X")
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "val" / "__MACOSX").mkdir()
    data = loaded(root)
    assert data.counts == {"train": 8, "val": 4, "test": 4}
    assert data.classes == ("cat", "dog")
    (note,) = data.notes
    assert ".ipynb_checkpoints" in note
    assert "and 1 more are left out" in note


def test_other_names_for_images_are_used_and_what_is_none_is_counted(root: Path) -> None:
    home = root / "train" / "cat"
    picture(7).save(home / "a.jpg")
    (home / "a.jpg").rename(home / "a.jfif")
    picture(8).save(home / "b.png")
    (home / "b.png").rename(home / "b")
    picture(9).save(home / "c.png")
    (home / "c.png").rename(home / "c.PNG")
    (home / "Thumbs.db").write_bytes(b"x")
    (home / "list.txt").write_text("a b c")
    os.mkfifo(home / "pipe.png")
    data = loaded(root)
    assert data.counts["train"] == 8 + 3
    assert any(
        "Thumbs.db" in note and "list.txt, train/cat/pipe.png are left out: no image" in note for note in data.notes
    )


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_validation_images_may_be_named_as_elsewhere_but_once(root: Path, name: str) -> None:
    (root / "val").rename(root / name)
    assert loaded(root).counts["val"] == 4
    (root / "val").mkdir()
    with pytest.raises(UsageError, match=f"val/ and {name}/; keep one"):
        loaded(root)


def test_links_are_followed_once_and_never_out_of_their_class(root: Path) -> None:
    (root / "train" / "dog").rename(root / "elsewhere")
    (root / "train" / "dog").mkdir()
    os.symlink("../../elsewhere", root / "train" / "dog" / "part")
    os.symlink("..", root / "train" / "cat" / "loop")
    os.symlink(".", root / "train" / "cat" / "self")
    data = loaded(root)
    assert data.counts["train"] == 8
    labels = torch.cat([y for _, y in data.split("train")])
    assert labels.bincount().tolist() == [4, 4]
    assert any("train/cat/loop" in note for note in data.notes)


def test_a_class_without_validation_images_is_named(root: Path) -> None:
    for path in (root / "val" / "dog").iterdir():
        path.unlink()
    assert any(note.endswith("val has no images of 1 of 2 classes: dog") for note in loaded(root).notes)


def test_one_accent_written_in_two_ways_is_one_class(root: Path) -> None:
    for split, form in (("train", "NFD"), ("val", "NFC"), ("test", "NFC")):
        (root / split / "cat").rename(root / split / unicodedata.normalize(form, "\u00e9"))
    assert loaded(root).classes == ("dog", "\u00e9")


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(root: Path, background: str, value: int, mode: str) -> None:
    whole = np.full((6, 6, 4), 90, np.uint8)
    whole[..., 3] = 0
    whole[1:3, 1:3, 3] = 255
    clear = Image.fromarray(whole)
    if mode == "P":
        clear = Image.fromarray(np.where(whole[..., 3] > 0, 1, 0).astype(np.uint8), "P")
        clear.putpalette([10, 20, 30, 90, 90, 90])
        clear.save(root / "train" / "cat" / "0.png", transparency=0)
    else:
        clear.convert(mode).save(root / "train" / "cat" / "0.png")
    image = np.asarray(loaded(root, background=background).raw("train", 1))[0]
    assert (image[:, 1:3, 1:3] == 90).all()
    image[:, 1:3, 1:3] = value
    assert (image == value).all()


def test_a_folder_without_train_says_what_it_has(root: Path) -> None:
    (root / "train").rename(root / "Train")
    with pytest.raises(UsageError, match="has Train/, test/, val/ and no classes in train/; expected images as train/"):
        loaded(root)


def test_a_set_in_which_all_pixels_are_equal_is_refused(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        Image.new("RGB", (6, 6), (3, 3, 3)).save(path)
    with pytest.raises(UsageError, match="All pixels of the training images are equal, 3 of 255"):
        loaded(root)


def test_pictures_that_a_camera_held_sideways_are_read_upright(root: Path) -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0] = 255  # light above
    for file in root.rglob("*.png"):
        file.unlink()
        lying = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise, when it is shown
        lying.save(file, exif=exif)
    data = loaded(root)
    images = data.raw("test", 1)
    assert isinstance(images, torch.Tensor)
    assert images.shape == (1, 3, 4, 6)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), upright)
