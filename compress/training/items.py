"""Images that are read one by one whenever they are asked for: of large folders, and of anybody's own data set.

    data: {dataset: "./data.py:build", args: {root: images}}

    def build(root):                   called once, and once in each process that reads
        return {"train": ..., "val": ..., "test": ...}        val and test if you like

Each is a data set as torch's and torchvision's are: len() of it, and [i] gives (x, y), or (x, x2, ..., y) for a model
that takes several inputs. x is a picture of Pillow's, an array uint8 [H, W] or [H, W, C], a tensor uint8 [C, H, W], or
floats [C, ...]; y a class's number, or what the recipe's own loss takes. What a data set varies by the generators of
Python, numpy or torch follows from the recipe's seed and from which images are together in a batch: so a run can be
resumed, and each image of a validation set is read alike whenever it is scored.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import UsageError, one_line, place_of
from compress.surgery.structure import locate, undisturbed
from compress.training.arrays import plain_labels
from compress.training.readers import Columns, Readers
from compress.training.seeds import seed_of
from compress.training.sources import Found, Source, check_labels, in_float32

SPLITS = ("train", "val", "test")
TOGETHER = 256  # items in a request, where labels alone are read
TRIED = 8  # items whose labels must be those that `targets` lists


class Items:
    """Images read each time they are asked for, some batches ahead, by processes of their own; see Source."""

    others: tuple[Tensor, ...] = ()

    def __init__(
        self, readers: Readers, keys: Sequence[Hashable], labels: Tensor, *, like: Columns, device: torch.device,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """`like` are the inputs of one item. Its label, read behind them, counts where `labels` hold none."""
        self.readers, self.keys, self.labels, self.seed = readers, keys, labels.to(device), seed
        self.holds = labels.dim() == 1
        self.shape: tuple[int, ...] = tuple(like[0].shape)
        self.further: Sequence[tuple[int, ...]] = [tuple(of.shape) for of in like[1:]]
        self.scale = 255 if like[0].dtype == np.uint8 else 1

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """See Source; raises UsageError where an item cannot be read."""
        ahead: deque[tuple[Tensor, Future[Columns]]] = deque()
        try:
            for some in numbers:
                named = [self.keys[i] for i in some.tolist()]
                together = hashlib.sha256(some.numpy().tobytes()).hexdigest()
                ahead.append((some, self.readers.ask(named, seed_of(self.seed, f"items {together}", 0) >> 8)))
                if len(ahead) > self.readers.ahead:
                    yield self._ready(*ahead.popleft())
            while ahead:
                yield self._ready(*ahead.popleft())
        finally:
            for _, asked in ahead:
                asked.cancel()

    def _ready(self, some: Tensor, asked: Future[Columns]) -> tuple[Tensor, ...]:
        device = self.labels.device
        columns = [torch.from_numpy(column).to(device) for column in asked.result()]
        if self.holds:
            columns[1 + len(self.further) :] = [self.labels.index_select(0, some.to(device))]
        return tuple(columns)


@dataclass
class Own:
    """Reads the items (split, number) of what a factory of data sets returns; made anew in each process."""

    factory: str
    args: Mapping[str, Any]
    folder: Path
    _made: dict[str, Any] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def made(self) -> dict[str, Any]:
        """The data sets by split. Raises UsageError."""
        if self._made is None:
            build = locate(self.factory, self.folder, "data.dataset")
            try:
                with undisturbed():
                    made = build(**self.args)
            except Exception as error:
                where = place_of(error) or self.factory
                raise UsageError(f"data.dataset: {where} failed: {one_line(error)}") from None
            parts = made if isinstance(made, Mapping) else {}
            if "train" not in parts or {*parts} - {*SPLITS} or not all(_is_dataset(of) for of in parts.values()):
                held = ", ".join(f"{name!r}: {type(of).__name__}" for name, of in parts.items())
                raise UsageError(
                    f"data.dataset: {self.factory} must return {{'train': ..., 'val': ..., 'test': ...}}, of which val "
                    f"and test may be left out, each with len() of it and [i]; it returned {type(made).__name__}"
                    + (f" with {held}" if held else "")
                )
            self._made = dict(parts)
        return self._made

    def __call__(self, key: tuple[str, int]) -> Columns:
        """Read one item of a split, as arrays. Raises UsageError where it is none."""
        split, number = key
        item = self.made()[split][number]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UsageError(f"data.dataset: {split}[{number}] is {type(item).__name__}; expected (x, y).")
        *inputs, y = item
        where = f"data.dataset: {split}[{number}]"
        columns = [_image(where, inputs[0]), *(_numbers(where, of) for of in inputs[1:])]
        return (*columns, _label(where, y))


def read_own(
    factory: str, args: Mapping[str, Any], folder: Path, *, workers: int, seed: int, device: torch.device, targets: bool
) -> Found:
    """Read what a recipe's `data.dataset` names. `targets`: the recipe has a loss of its own, and takes y as it is.

    Labels are those that a data set lists as `targets` (as torchvision's do), where a few items agree with them; else
    each item is read once for them. Raises UsageError.
    """
    own = Own(factory, args, folder)
    made, readers = own.made(), Readers(own, workers)
    for split, of in made.items():
        if not len(of):
            raise UsageError(f"data.dataset: {factory} returned no {split} images.")
    first = {split: _one(readers, split) for split in made}
    like = first["train"]
    for split, of in first.items():
        if [(c.dtype, c.shape) for c in of[:-1]] != [(c.dtype, c.shape) for c in like[:-1]]:
            raise UsageError(
                f"data.dataset: {split}[0] is {_described(of)}, train[0] is {_described(like)}; they must be alike."
            )
    held = like[-1].ndim == 0 and like[-1].dtype.kind == "i" if targets else like[-1].ndim < 2
    if not held:
        empty = {s: torch.empty(len(of), 0, *first[s][-1].shape[1:]) for s, of in made.items()}
        return Found((), {s: _source(readers, s, empty[s], like, device, seed) for s in made})
    labels, notes = _labels(made, readers)
    names: tuple[str, ...] = ()
    if not targets:
        labels, names, said = plain_labels(labels)
        notes += said
    own_names = getattr(made["train"], "classes", ())
    if isinstance(own_names, (list, tuple)) and all(isinstance(name, str) for name in own_names):
        names = tuple(own_names) or names
    count = len(names)
    for split, y in labels.items():
        count = check_labels(factory, split, len(made[split]), y, count)
    sources = {
        s: _source(readers, s, torch.from_numpy(y.astype(np.int64)), like, device, seed) for s, y in labels.items()
    }
    return Found(names or tuple(map(str, range(count))), sources, notes)


def _source(readers: Readers, split: str, labels: Tensor, like: Columns, device: torch.device, seed: int) -> Source:
    keys = [(split, number) for number in range(len(labels))]
    return Items(readers, keys, labels, like=like[:-1], device=device, seed=seed)


def _one(readers: Readers, split: str) -> Columns:
    return tuple(column[0] for column in readers.ask([(split, 0)], 0).result())


def _labels(made: Mapping[str, Any], readers: Readers) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Every label, and what is to be said of how they were found."""
    labels, read = {}, list[str]()
    for split, of in made.items():
        many = len(of)
        listed = _listed(of)
        some = [i * many // TRIED for i in range(min(many, TRIED))] if listed is not None else range(many)
        found = _asked(readers, split, some)
        if listed is not None and not np.array_equal(listed[list(some)].reshape(-1), found.reshape(-1)):
            listed, found = None, _asked(readers, split, range(many))
        labels[split] = found if listed is None else listed
        if listed is None:
            read.append(f"{many:,} of {split}")
    notes = f"labels were read item by item ({', '.join(read)}); a data set that lists them as `targets` begins sooner"
    return labels, (notes,) if read else ()


def _asked(readers: Readers, split: str, numbers: Sequence[int]) -> NDArray[Any]:
    parts = [numbers[i : i + TOGETHER] for i in range(0, len(numbers), TOGETHER)]
    asked = [readers.ask([(split, n) for n in part], 0) for part in parts]
    return np.concatenate([of.result()[-1] for of in asked])


def _listed(of: Any) -> NDArray[Any] | None:
    """What a data set lists as its labels, where these are one for each item."""
    try:
        listed = np.asarray(of.targets)
    except Exception:  # none, or of a kind that is no array: they are read
        return None
    return listed if listed.shape[:1] == (len(of),) and listed.dtype.kind in "iub" and listed.ndim <= 2 else None


def _is_dataset(of: Any) -> bool:
    return hasattr(of, "__len__") and hasattr(of, "__getitem__")


def _array(x: Any) -> NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _image(where: str, x: Any) -> NDArray[Any]:
    """A picture as uint8 [C, H, W], other arrays as float32 [C, ...]."""
    if type(x).__module__.startswith("PIL."):
        x = np.asarray(x if x.mode in ("L", "RGB") else x.convert("RGB"))
    planes = isinstance(x, Tensor)
    array = _array(x)
    if array.dtype == np.uint8 and array.ndim in (2, 3) and array.size:
        if array.ndim == 2:
            return array[None]
        return array if planes else np.ascontiguousarray(array.transpose(2, 0, 1))
    if array.dtype.kind == "f" and array.ndim and array.size:
        return in_float32(where, "x", array)
    raise UsageError(
        f"{where} has an x that is {type(x).__name__} {list(array.shape)} of {array.dtype}; expected a picture, an "
        "array uint8 [H, W, C], a tensor uint8 [C, H, W], or floats [C, ...]."
    )


def _numbers(where: str, x: Any) -> NDArray[Any]:
    """A further input as float32; ids are whole numbers, which float32 holds."""
    array = _array(x)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{where} has a further input of {array.dtype}; expected numbers.")
    return in_float32(where, "a further input", array)


def _label(where: str, y: Any) -> NDArray[Any]:
    array = _array(y)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return in_float32(where, "y", array)
    raise UsageError(f"{where} has a y that is {type(y).__name__}; expected a class's number, or an array of numbers.")


def _described(item: Columns) -> str:
    return ", ".join(f"{of.dtype} {list(of.shape)}" for of in item[:-1])
