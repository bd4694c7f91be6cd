"""Where images come from: .npz files, torchvision's sets and folders, each read into a source that is asked by number.

A reader returns a source for "train" and perhaps for "val" and "test". Images are held as uint8 on the device; folders
too large for that are read as they are needed. What cannot be used raises UsageError: the file, and what to do.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import UsageError
from compress.packages import demand

EXACT = 2**24  # up to which float32 holds every whole number
MOST_AXES = 6  # of an array of floats [N, C, ...]
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
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
    """int64 [N] on the device; or what is to be predicted for each image, float32 or int64 [N, ...]."""
    shape: tuple[int, ...]
    """(C, H, W) of every image; (C, ...) of other arrays."""
    scale: int
    """What 1 is stored as: 255 in images uint8, 1 in arrays of floats."""
    others: tuple[Tensor, ...]
    """The further inputs of a model that has several, float32 [N, ...] each, on the device."""

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """For each int64 [n] (CPU) yield (images uint8 [n, C, H, W] or arrays float32 [n, C, ...], *others, labels
        int64 [n]) on the device.
        """


class Found(NamedTuple):
    """What a reader returns: the names of the classes (none where targets are something else), and a source a split."""

    classes: tuple[str, ...]
    sources: Mapping[str, Source]


class Memory:
    """Images held as one uint8 tensor [N, C, H, W] on the device, or arrays float32 [N, C, ...], and what stands beside
    them.
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device, others: Sequence[Tensor] = ()) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.others = tuple(other.to(device) for other in others)
        self.shape = tuple(images.shape[1:])
        self.scale = 255 if images.dtype == torch.uint8 else 1

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """See Source."""
        for some in numbers:
            # Not blocking, so that a GPU with work queued is not waited for; pageable memory is staged at the call.
            at = some.to(self.labels.device, non_blocking=True)
            yield tuple(column.index_select(0, at) for column in (self.images, *self.others, self.labels))


class Files:
    """Images read from files each time they are asked for, three batches ahead.

    In threads rather than in a DataLoader's processes: decoding runs outside the interpreter lock, threads cost nothing
    to start at each call, and no process is forked from one that holds threads or a GPU.
    """

    others: tuple[Tensor, ...] = ()
    scale = 255

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        shape: tuple[int, int, int],
        *,
        resize: bool,
        workers: int,
        device: torch.device,
    ) -> None:
        self.paths, self.labels = paths, labels.to(device)
        self.shape: tuple[int, ...] = shape
        self.resize, self.workers = resize, max(1, workers)

    def take(self, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """See Source; raises UsageError at a file that is no image or of another size."""
        ahead: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for some in numbers:
                ahead.append((some, [pool.submit(self._read, self.paths[i]) for i in some.tolist()]))
                if len(ahead) > 3:
                    yield self._ready(*ahead.popleft())
            while ahead:
                yield self._ready(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def held(self) -> Memory:
        """Read all images into memory."""
        images = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        parts = torch.split(torch.arange(len(self.paths)), 256)
        for at, (some, _) in zip(parts, self.take(parts), strict=True):
            images[at] = some.cpu()
        return Memory(images, self.labels, self.labels.device)

    def _ready(self, some: Tensor, images: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        device = self.labels.device
        read = torch.stack([image.result() for image in images])
        return read.to(device), self.labels.index_select(0, some.to(device))

    def _read(self, path: Path) -> Tensor:
        from PIL import Image

        channels, height, width = self.shape
        try:
            with Image.open(path) as opened:
                if opened.mode[0] in "IF":
                    raise UsageError(f"{path} has more than 8 bits a pixel and channel; convert it to 8 bits.")
                image = opened.convert("L" if channels == 1 else "RGB")
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
        return torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)


def read_folder(root: Path, *, size: int | None, workers: int, device: torch.device, in_memory: int) -> Found:
    """Read images lying as SPLIT/CLASS/NAME.png (or .jpg and so on), SPLIT being train, val (if any) and test (if any).

    All become gray where all of a sample are, else RGB. With `size`, their shorter side is resized to it and the middle
    taken. They are held in memory when they are at most `in_memory` bytes of uint8.
    """
    demand("PIL")
    listed = {
        split: {
            of.name: sorted(file for file in of.rglob("*") if file.suffix.lower() in SUFFIXES)
            for of in sorted((root / split).iterdir())
            if of.is_dir() and not of.name.startswith(".")
        }
        for split in ("train", "val", "test")
        if (root / split).is_dir()
    }
    classes = tuple(listed.get("train", ()))
    if not root.is_dir():
        raise UsageError(f"data.path: there is no folder {root}.")
    if not classes:
        raise UsageError(f"data.path: {root} has no classes; expected images as train/CLASS/NAME.png (or .jpg, ...).")
    for split, by_class in listed.items():
        for name in by_class:
            if not listed["train"].get(name):
                raise UsageError(f"data.path: {root / split / name} is a class without training images.")
    files = {split: [file for same in by_class.values() for file in same] for split, by_class in listed.items()}
    shape = _shape(files["train"], size)
    fits = sum(map(len, files.values())) * shape[0] * shape[1] * shape[2] <= in_memory
    sources: dict[str, Source] = {}
    for split, paths in files.items():
        labels = [classes.index(name) for name, same in listed[split].items() for _ in same]
        source = Files(paths, torch.tensor(labels), shape, resize=size is not None, workers=workers, device=device)
        if paths:
            sources[split] = source.held() if fits else source
    return Found(classes, sources)


def _shape(paths: Sequence[Path], size: int | None) -> tuple[int, int, int]:
    from PIL import Image

    first, gray = None, True
    for path in paths[:: -(-len(paths) // 64)]:  # 64 headers tell gray from colour
        try:
            with Image.open(path) as image:
                first, gray = first or image.size, gray and image.mode in ("1", "L", "LA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"{path} cannot be read as an image ({error}); replace or remove it.") from error
    width, height = (size, size) if size else first or (0, 0)
    return 1 if gray else 3, height, width


def read_npz(path: Path, *, device: torch.device) -> Found:
    """Read x_train, y_train, x_test, y_test and perhaps x_val, y_val from an .npz file, never unpickling.

    Images are uint8 [N, H, W, C] or [N, H, W], other arrays floats [N, C, ...], as series [N, C, L] and volumes
    [N, C, D, H, W] are; labels integers [N] from 0 to classes - 1. Floats [N, ...], or integers
    of more dimensions (a class for each pixel, say), are targets of a task that the recipe states: no classes then.
    A model of several inputs finds the others in x2_train, x2_test, x3_train, ...: floats [N, ...], used as they are,
    or whole numbers, as token ids are, which come as floats: forward() writes x.long().
    """
    try:
        with path.open("rb") as opened:  # opened here, as numpy leaves a broken file open
            file = np.load(opened, allow_pickle=False)
            arrays = {key: np.asarray(file[key]) for key in file} if isinstance(file, np.lib.npyio.NpzFile) else {}
    except FileNotFoundError:
        raise UsageError(f"data.path: there is no file {path}.") from None
    except Exception as error:  # a header goes through Python's own parser, and its errors are of every kind
        why = str(error)
        if "contains pickled" in why:  # what numpy takes all junk for
            why = "it is damaged or something else"
        raise UsageError(f"{path} cannot be read as an .npz file of plain arrays: {why}") from error
    keys = set(arrays)
    more = [f"x{number}" for number in range(2, len(keys)) if f"x{number}_train" in keys]
    splits = [split for split in ("train", "val", "test") if split != "val" or f"x_{split}" in keys]
    if keys != {f"{axis}_{split}" for axis in ("x", *more, "y") for split in splits}:
        raise UsageError(
            f"{path} has the arrays {', '.join(sorted(keys)) or '(none with a name)'}; expected x_test, x_train, "
            "y_test, y_train and, if you like, x_val and y_val; of a model with several inputs also x2_train, x2_test "
            "(and x2_val) and so on."
        )
    pairs = {split: (arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in splits}
    return _checked(str(path), pairs, device, more={s: {x: arrays[f"{x}_{s}"] for x in more} for s in splits})


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
            count = _check_labels(where, split, x, y, count)
        shape = shape or x.shape[1:]
        if x.shape[1:] != shape or x.dtype.kind != arrays["train"][0].dtype.kind:
            here, there = f"{x.dtype} {list(x.shape[1:])}", f"{arrays['train'][0].dtype} {list(shape)}"
            raise UsageError(f"{where}: x_{split} has images {here}, x_train has {there}.")
        kind = np.float32 if y.dtype.kind == "f" else np.int64
        others = [
            _further(where, f"{name}_{split}", of, (len(x), *more["train"][name].shape[1:]))
            for name, of in more.get(split, {}).items()
        ]
        sources[split] = Memory(tensor, torch.from_numpy(y.astype(kind)), device, others)
    return Found(names or tuple(map(str, range(count))), sources)


def _images(where: str, split: str, x: NDArray[Any]) -> Tensor:
    """Images as uint8 [N, C, H, W]."""
    if x.dtype != np.uint8:
        raise UsageError(
            f"{where}: x_{split} is {x.dtype}; images must be uint8, from 0 to 255, other arrays floats [N, C, ...]."
        )
    if x.ndim not in (3, 4) or x.size == 0 or (x.ndim == 4 and x.shape[1] <= 4 < x.shape[3]):
        raise UsageError(
            f"{where}: x_{split} has the shape {list(x.shape)}; expected [N, H, W, C] or [N, H, W]; floats [N, C, ...]."
        )
    return torch.from_numpy(np.array(x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2), order="C"))


def _numbers(where: str, split: str, x: NDArray[Any]) -> Tensor:
    """Arrays as float32 [N, C, ...]: channels first, as the network takes them."""
    if not 2 <= x.ndim <= MOST_AXES or x.size == 0:
        raise UsageError(
            f"{where}: x_{split} is {x.dtype} {list(x.shape)}; expected floats [N, C, ...], as [N, C, L] of series or "
            "[N, C, D, H, W] of volumes, with one row for each label."
        )
    tensor = _float32(where, f"x_{split}", x)
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
    if x.dtype.kind in "iu" and (int(x.max()) > EXACT or int(x.min()) < -EXACT):
        raise UsageError(f"{where}: {name} holds whole numbers above {EXACT:,}, which float32 does not hold exactly.")
    return _float32(where, name, x)


def _float32(where: str, name: str, x: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(x.astype(np.float32))
    if not tensor.isfinite().all():
        raise UsageError(f"{where}: {name} holds numbers that are not finite in float32.")
    return tensor


def _is_target(y: NDArray[Any]) -> bool:
    """Whether these are values or maps to be predicted, and not one class label for each image."""
    return y.dtype.kind == "f" or (y.dtype.kind in "iu" and y.ndim > 1)


def _check_target(where: str, split: str, x: NDArray[Any], y: NDArray[Any], like: NDArray[Any]) -> None:
    got, want = f"{y.dtype} {list(y.shape)}", f"{like.dtype} {[len(x), *like.shape[1:]]}"
    if got != want:
        raise UsageError(f"{where}: y_{split} is {got}; expected {want}, one for each image and all as y_train.")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise UsageError(f"{where}: y_{split} holds numbers that are not finite.")


def _check_labels(where: str, split: str, x: NDArray[Any], y: NDArray[Any], count: int) -> int:
    """The number of classes, which the training labels tell when nothing else does."""
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise UsageError(
            f"{where}: y_{split} is {y.dtype} {list(y.shape)}; expected a whole number for each of {len(x)} images."
        )
    seen = np.unique(y)
    count = count or len(seen)
    if seen[0] < 0 or seen[-1] >= count:
        raise UsageError(
            f"{where}: y_{split} goes from {seen[0]} to {seen[-1]}, but y_train has {count} different labels; labels "
            "are 0, 1, 2 and so on, each of them in y_train."
        )
    return count
