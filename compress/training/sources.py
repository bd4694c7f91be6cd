"""Where images come from: .npz files and torchvision's sets, each read into a source that is asked by number.

A reader returns a source for "train" and perhaps for "val" and "test". Images are held as uint8 on the device; files
too large for that are read as they are needed. What cannot be used raises UsageError: the file, and what to do.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import UsageError
from compress.packages import demand
from compress.training.arrays import plain_labels, read_arrays

RENAMED = {  # lower case, as others call the arrays
    **{f"{split}_{kind}": f"{axis}_{to}" for split, to in (("train", "train"), ("test", "test"), ("val", "val"))
       for kind, axis in (("images", "x"), ("x", "x"), ("data", "x"), ("labels", "y"), ("y", "y"))},
    **{f"{axis}_{name}": f"{axis}_val" for axis in "xy" for name in ("valid", "validation")},
    **{f"{axis}_{split}": f"{axis}_{split}" for axis in "xy" for split in ("train", "test", "val")},
}  # fmt: skip
EXACT = 2**24  # up to which float32 holds every whole number
MOST_AXES = 6  # of an array of floats [N, C, ...]
TORCHVISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # class, arguments of its train and test part
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashionmnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
}


class Source(Protocol):
    """Images that are asked for by number, with what else a model is given beside each of them."""

    labels: Tensor
    """int64 [N] on the device; or what is to be predicted for each image, float32 or int64 [N, ...]; [N, 0, ...] where
    that is read with each image."""
    shape: tuple[int, ...]
    """(C, H, W) of every image; (C, ...) of other arrays."""
    scale: int
    """What 1 is stored as: 255 in images uint8, 1 in arrays of floats."""
    further: Sequence[tuple[int, ...]]
    """The shape of one of each further input of a model that has several."""
    others: tuple[Tensor, ...]
    """Those inputs, float32 [N, ...] each, on the device, as far as they are held."""

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """For each int64 [n] (CPU) yield (images uint8 [n, C, H, W] or arrays float32 [n, C, ...], *others, labels
        int64 [n]) on the device.
        """


class Found(NamedTuple):
    """What a reader returns: the names of the classes (none where targets are something else), and a source a split."""

    classes: tuple[str, ...]
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()  # what was left out, or read in another way than it lies there


class Memory:
    """Images held as one uint8 tensor [N, C, H, W] on the device, or arrays float32 [N, C, ...], and what stands beside
    them.
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device, others: Sequence[Tensor] = ()) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.others = tuple(other.to(device) for other in others)
        self.shape = tuple(images.shape[1:])
        self.further: Sequence[tuple[int, ...]] = [tuple(other.shape[1:]) for other in others]
        self.scale = 255 if images.dtype == torch.uint8 else 1

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """See Source."""
        for some in numbers:
            # Not blocking, so that a GPU with work queued is not waited for; pageable memory is staged at the call.
            at = some.to(self.labels.device, non_blocking=True)
            yield tuple(column.index_select(0, at) for column in (self.images, *self.others, self.labels))


class Mapped:
    """Images [N, C, H, W] that lie in a file, read each time they are asked for, and what stands beside them."""

    scale = 255

    def __init__(
        self, images: NDArray[Any], labels: Tensor, device: torch.device, others: Sequence[Tensor] = ()
    ) -> None:
        self.images, self.labels = images, labels.to(device)
        self.others = tuple(other.to(device) for other in others)
        self.shape = tuple(images.shape[1:])
        self.further: Sequence[tuple[int, ...]] = [tuple(other.shape[1:]) for other in others]

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """See Source."""
        for some in numbers:
            at = some.to(self.labels.device)
            images = torch.from_numpy(np.ascontiguousarray(self.images[some.cpu().numpy()])).to(self.labels.device)
            yield (images, *(column.index_select(0, at) for column in (*self.others, self.labels)))


def read_npz(path: Path, *, device: torch.device, in_memory: int | None = None, targets: bool = False) -> Found:
    """Read x_train, y_train, x_test, y_test and perhaps x_val, y_val from an .npz file, never unpickling.

    Images are uint8 [N, H, W, C] or [N, H, W], other arrays floats [N, C, ...], as series [N, C, L] and volumes
    [N, C, D, H, W] are; labels integers [N] from 0 to classes - 1. Floats [N, ...], or integers
    of more dimensions (a class for each pixel, say), are targets of a task that the recipe states: no classes then.
    A model of several inputs finds the others in x2_train, x2_test, x3_train, ...: floats [N, ...], used as they are,
    or whole numbers, as token ids are, which come as floats: forward() writes x.long().
    Names that others use for the same, such as train_images, are understood. Unless the recipe has a loss of its own
    (`targets`), labels may be a column [N, 1], one-hot rows, whole floats, or begin with 1.
    """
    arrays = read_arrays(path, in_memory)
    arrays = {RENAMED.get(key.lower(), key): array for key, array in arrays.items()}
    keys = set(arrays)
    more = [f"x{number}" for number in range(2, len(keys)) if f"x{number}_train" in keys]
    splits = [split for split in ("train", "val", "test") if split != "val" or f"x_{split}" in keys]
    if keys != {f"{axis}_{split}" for axis in ("x", *more, "y") for split in splits}:
        raise UsageError(
            f"{path} has the arrays {', '.join(sorted(keys)) or '(none with a name)'}; expected x_test, x_train, "
            "y_test, y_train and, if you like, x_val and y_val; of a model with several inputs also x2_train, x2_test "
            "(and x2_val) and so on."
        )
    labels = {split: arrays[f"y_{split}"] for split in splits}
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if not targets:
        labels, names, notes = plain_labels(labels)
    pairs = {split: (arrays[f"x_{split}"], labels[split]) for split in splits}
    found = _checked(str(path), pairs, device, names, more={s: {x: arrays[f"{x}_{s}"] for x in more} for s in splits})
    return found._replace(notes=tuple(f"{path}: {note}" for note in notes))


def read_torchvision(source: str, path: Path | None, *, download: bool, device: torch.device) -> Found:
    """Read one of TORCHVISION from `path`, torchvision's `root` (default: the user's cache), fetching it if told."""
    demand("torchvision", "PIL")
    import torchvision  # takes a second: only here

    root = path or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "compress"
    name, *arguments = TORCHVISION[source]
    try:
        train, test = (getattr(torchvision.datasets, name)(root, download=download, **part) for part in arguments)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, ImportError) as error:
        do = "check the network and the folder" if download else "set data.download: true, or data.path to where it is"
        raise UsageError(f"data.source: {source} cannot be read from {root} ({error}); {do}.") from error
    if source == "svhn":  # the only one that is [N, C, H, W] and says `labels`
        arrays = {s: (of.data.transpose(0, 2, 3, 1), of.labels) for s, of in (("train", train), ("test", test))}
        return _checked(source, arrays, device)
    arrays = {s: (np.asarray(of.data), np.asarray(of.targets)) for s, of in (("train", train), ("test", test))}
    return _checked(source, arrays, device, tuple(train.classes))


def _checked(
    where: str,
    arrays: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    device: torch.device,
    names: tuple[str, ...] = (),
    more: Mapping[str, Mapping[str, NDArray[Any]]] = MappingProxyType({}),
) -> Found:
    sources: dict[str, Source] = {}
    count, shape = len(names), ()
    for split, (x, y) in arrays.items():
        tensor = _numbers(where, split, x) if x.dtype.kind == "f" else _images(where, split, x)
        if not names and _is_target(arrays["train"][1]):
            count = 0
            _check_target(where, split, x, y, arrays["train"][1])
        else:
            count = check_labels(where, split, len(x), y, count)
        shape = shape or x.shape[1:]
        if x.shape[1:] != shape or x.dtype.kind != arrays["train"][0].dtype.kind:
            here, there = f"{x.dtype} {list(x.shape[1:])}", f"{arrays['train'][0].dtype} {list(shape)}"
            raise UsageError(f"{where}: x_{split} has images {here}, x_train has {there}.")
        kind = np.float32 if y.dtype.kind == "f" else np.int64
        others = [
            _further(where, f"{name}_{split}", of, (len(x), *more["train"][name].shape[1:]))
            for name, of in more.get(split, {}).items()
        ]
        labels = torch.from_numpy(y.astype(kind))
        if isinstance(tensor, np.ndarray):
            sources[split] = Mapped(tensor, labels, device, others)
        else:
            sources[split] = Memory(tensor, labels, device, others)
    return Found(names or tuple(map(str, range(count))), sources)


def _images(where: str, split: str, x: NDArray[Any]) -> Tensor | NDArray[Any]:
    """Images as uint8 [N, C, H, W]; those that lie in a file still, as they do there."""
    if x.dtype != np.uint8:
        raise UsageError(
            f"{where}: x_{split} is {x.dtype}; images must be uint8, from 0 to 255, other arrays floats [N, C, ...]."
        )
    if x.ndim not in (3, 4) or x.size == 0 or (x.ndim == 4 and x.shape[1] <= 4 < x.shape[3]):
        raise UsageError(
            f"{where}: x_{split} has the shape {list(x.shape)}; expected [N, H, W, C] or [N, H, W]; floats [N, C, ...]."
        )
    planes = x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2)
    return planes if isinstance(x, np.memmap) else torch.from_numpy(np.array(planes, order="C"))


def _numbers(where: str, split: str, x: NDArray[Any]) -> Tensor:
    """Arrays as float32 [N, C, ...]: channels first, as the network takes them."""
    if not 2 <= x.ndim <= MOST_AXES or x.size == 0:
        raise UsageError(
            f"{where}: x_{split} is {x.dtype} {list(x.shape)}; expected floats [N, C, ...], as [N, C, L] of series or "
            "[N, C, D, H, W] of volumes, with one row for each label."
        )
    tensor = torch.from_numpy(in_float32(where, f"x_{split}", x))
    if x.ndim == 4 and x.shape[3] <= 4 < x.shape[1] and x.shape[1] == x.shape[2]:
        raise UsageError(
            f"{where}: x_{split} is {x.dtype} {list(x.shape)}, which looks like [N, H, W, C]; floats are taken with "
            "their channels first, [N, C, H, W]: transpose them, or give images as uint8."
        )
    return tensor


def _further(where: str, name: str, x: NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    """A further input as float32 [N, ...], one row of `shape` for each image; ids are whole numbers, held exactly."""
    if x.dtype.kind not in "fiu" or x.ndim < 2 or x.shape != shape or x.size == 0:
        want = list(shape) if len(shape) > 1 else f"[{shape[0]}, ...]"
        raise UsageError(
            f"{where}: {name} is {x.dtype} {list(x.shape)}; expected floats or ids {want}, one row for each image."
        )
    return torch.from_numpy(in_float32(where, name, x))


def in_float32(where: str, name: str, x: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32. Raises UsageError where one is not finite there, or a whole one not exact."""
    if x.dtype.kind in "iu" and x.size and (int(x.max()) > EXACT or int(x.min()) < -EXACT):
        raise UsageError(f"{where}: {name} holds whole numbers above {EXACT:,}, which float32 does not hold exactly.")
    with np.errstate(over="ignore"):
        found = x.astype(np.float32)
    if not np.isfinite(found).all():
        raise UsageError(f"{where}: {name} holds numbers that are not finite in float32.")
    return found


def _is_target(y: NDArray[Any]) -> bool:
    """Whether these are values or maps to be predicted, and not one class label for each image."""
    return y.dtype.kind == "f" or (y.dtype.kind in "iu" and y.ndim > 1)


def _check_target(where: str, split: str, x: NDArray[Any], y: NDArray[Any], like: NDArray[Any]) -> None:
    got, want = f"{y.dtype} {list(y.shape)}", f"{like.dtype} {[len(x), *like.shape[1:]]}"
    if got != want:
        raise UsageError(f"{where}: y_{split} is {got}; expected {want}, one for each image and all as y_train.")
    if y.dtype.kind == "f":
        in_float32(where, f"y_{split}", y)


def check_labels(where: str, split: str, images: int, y: NDArray[Any], count: int) -> int:
    """The number of classes, which the training labels tell when nothing else does. Raises UsageError."""
    if y.dtype.kind not in "iu" or y.shape != (images,):
        raise UsageError(
            f"{where}: y_{split} is {y.dtype} {list(y.shape)}; expected a whole number for each of {images} images."
        )
    seen = np.unique(y)
    count = count or len(seen)
    if seen[0] < 0 or seen[-1] >= count:
        raise UsageError(
            f"{where}: y_{split} goes from {seen[0]} to {seen[-1]}, but y_train has {count} different labels; labels "
            "are 0, 1, 2 and so on, each of them in y_train"
            + (": np.unique(y_train, return_inverse=True)[1] is so." if split == "train" else ".")
        )
    return count
