"""Images in folders, as labelling tools, archives and people leave them: found, counted, and read.

    root/train/CLASS/NAME.png    and below in any depth; val/ (or valid/, validation/) and test/ likewise

Nothing is dropped silently: names that begin with a dot, copies of a Mac's archiver and what is no image are left out
and counted. Links to folders are followed, each folder once.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compress.errors import UsageError
from compress.packages import demand
from compress.training.items import Items
from compress.training.readers import Columns, Readers
from compress.training.sources import Found, Memory, Source

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".pjp", ".pjpeg", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NAMED = 3  # classes, files at most


@dataclass(frozen=True)
class Picture:
    """Reads an image file as uint8 [C, H, W] of one shape. Raises UsageError."""

    shape: tuple[int, int, int]
    resize: bool
    background: str

    def __call__(self, path: Path) -> Columns:
        """Read one, upright; raises UsageError at what is no image, has more than 8 bits, or is of another size."""
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        try:
            with Image.open(path) as opened:
                if opened.mode[0] in "IF":
                    raise UsageError(f"{path} has more than 8 bits a pixel and channel; convert it to 8 bits.")
                upright = ImageOps.exif_transpose(opened)  # as a camera's note on how it was held says
                image = _composed(upright, self.background).convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"{path} cannot be read as an image ({error}); replace or remove it.") from error
        if self.resize:  # the shorter side to the size wanted, then the middle
            scale = max(width / image.width, height / image.height)
            wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            left, top = (wide - width) // 2, (high - height) // 2
            image = image.resize((wide, high), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise UsageError(
                f"{path} is {image.width} x {image.height} pixels (width x height), but the first image is "
                f"{width} x {height}; set data.size to resize all of them."
            )
        return (np.ascontiguousarray(np.array(image).reshape(height, width, channels).transpose(2, 0, 1)),)


def read_folder(
    root: Path, *, size: int | None, workers: int, device: torch.device, in_memory: int, background: str = "white"
) -> Found:
    """Read images lying as SPLIT/CLASS/NAME.png (or .jpg and so on), SPLIT being train, val (if any) and test (if any).

    All become gray where all of a sample are, else RGB; what is transparent shows the background. With `size`, their
    shorter side is resized to it and the middle taken. They are held in memory when they are at most `in_memory` bytes
    of uint8.
    """
    demand("PIL")
    if not root.is_dir():
        raise UsageError(f"data.path: there is no folder {root}.")
    listed, notes = _listed(root)
    classes = tuple(listed.get("train", ()))
    if not classes:
        there = sorted(of.name for of in root.iterdir() if of.is_dir() and not _is_hidden(of.name))[:NAMED]
        has = f"has {', '.join(f'{name}/' for name in there)} and " if there else "has "
        raise UsageError(
            f"data.path: {root} {has}no classes in train/; expected images as train/CLASS/NAME.png (or .jpg, ...)."
        )
    for split, by_class in listed.items():
        for name in by_class:
            if not listed["train"].get(name):
                raise UsageError(f"data.path: {root / split / name} is a class without training images.")
        lacking = [name for name in classes if not by_class.get(name)]
        if lacking and any(by_class.values()):
            some = ", ".join(lacking[:NAMED]) + (f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else "")
            notes.append(f"{root / split} has no images of {len(lacking)} of {len(classes)} classes: {some}")
    files = {split: [file for same in by_class.values() for file in same] for split, by_class in listed.items()}
    shape = _shape(files["train"], size)
    fits = sum(map(len, files.values())) * shape[0] * shape[1] * shape[2] <= in_memory
    read, sources = Picture(shape, size is not None, background), dict[str, Source]()
    readers = Readers(read, workers)
    for split, paths in files.items():
        labels = torch.tensor([classes.index(name) for name, same in listed[split].items() for _ in same])
        if paths and fits:
            sources[split] = Memory(_all(read, paths, workers), labels, device)
        elif paths:
            sources[split] = Items(readers, paths, labels, like=read(paths[0]), device=device)
    return Found(classes, sources, tuple(notes))


def _all(read: Picture, paths: Sequence[Path], workers: int) -> Tensor:
    """All images in memory: by threads, which cost nothing to start, and decode outside the interpreter's lock."""
    images = torch.empty(len(paths), *read.shape, dtype=torch.uint8)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for at, (image,) in enumerate(pool.map(read, paths)):
            images[at] = torch.from_numpy(image)
    return images


def _listed(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The images of every class of every split, and what is to be said of the rest."""
    listed: dict[str, dict[str, list[Path]]] = {}
    hidden: list[Path] = []
    strange: list[Path] = []
    for split, names in SPLITS.items():
        there = [root / name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise UsageError(f"data.path: {root} has {' and '.join(f'{p.name}/' for p in there)}; keep one of them.")
        for folder in there:
            listed[split] = {}
            for of in sorted(folder.iterdir()):
                if _is_hidden(of.name):
                    hidden.append(of)
                elif of.is_dir():
                    name = unicodedata.normalize("NFC", of.name)  # a Mac's archives write accents as two characters
                    listed[split][name] = sorted(images_in(of, hidden, strange))
                else:
                    strange.append(of)
    notes = (
        [f"{_some(sorted(hidden), root)} left out: names that begin with a dot, and what archivers add"]
        if hidden
        else []
    )
    notes += [f"{_some(sorted(strange), root)} left out: no image, or in no class's folder"] if strange else []
    return listed, notes


def images_in(folder: Path, hidden: list[Path], strange: list[Path]) -> Iterator[Path]:
    """The images in a folder and below it; other files, and links that lead back up, are added to one of the lists."""
    seen: set[str] = set()
    home = Path(os.path.realpath(folder))
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if home.is_relative_to(real) and Path(place) != folder:
            strange.append(Path(place))
        if real in seen or Path(place) in strange:
            folders.clear()
            continue
        seen.add(real)
        hidden += [Path(place) / name for name in folders if _is_hidden(name)]
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in files:
            path = Path(place) / name
            if _is_hidden(name):
                hidden.append(path)
            elif path.exists() and not path.is_file():  # a pipe, which may never end
                strange.append(path)
            elif path.suffix.lower() in SUFFIXES or _is_image(path):
                yield path
            else:
                strange.append(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: Path) -> bool:
    """Whether a file whose name does not say so holds an image all the same."""
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _some(paths: Sequence[Path], root: Path) -> str:
    names = ", ".join(path.relative_to(root).as_posix() for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{root}: {names}{more} {'is' if len(paths) == 1 else 'are'}"


def _composed(image: Image.Image, background: str) -> Image.Image:
    """An image without transparency: where there was some, the background shows."""
    from PIL import Image

    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    canvas = Image.new("RGBA", image.size, background)
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _shape(paths: Sequence[Path], size: int | None) -> tuple[int, int, int]:
    from PIL import Image, ImageOps

    first, gray = None, True
    for path in paths[:: -(-len(paths) // 64)]:  # 64 headers tell gray from colour
        try:
            with Image.open(path) as image:
                first = first or ImageOps.exif_transpose(image).size
                gray = gray and image.mode in ("1", "L", "LA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"{path} cannot be read as an image ({error}); replace or remove it.") from error
    width, height = (size, size) if size else first or (0, 0)
    return 1 if gray else 3, height, width
