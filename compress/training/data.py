"""Images and labels as batches of tensors: where they come from, how they are split and how training varies them.

    data = load(settings.Data(), batch=128, seed=0, device=torch.device("cpu"))
    data.stream(start, steps)      training batches, varied, number start .. start + steps - 1 of an endless sequence
    data.split("val")              one split in order, not varied

A batch is (x, y): normalised images, or a tuple of them and the further inputs of a model that takes several, which are
neither varied nor normalised; and the labels or targets.

Nothing here has a random state. The order of epoch e depends on (seed, e) alone, what varies the images of batch b on
(seed, b) alone, drawn on the CPU for every device: the sequence can be entered anywhere, and so a run can be resumed.

The built-in digits are "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository (CC BY 4.0), as made by benchmarks/make_digits.py.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from compress.errors import UsageError
from compress.reading.inputs import Batch, each, plainly
from compress.training.folders import read_folder
from compress.training.items import Items, read_own
from compress.training.seeds import seed_of
from compress.training.sources import TORCHVISION, Found, Source, read_npz, read_torchvision
from compress.training.variation import blank, vary

if TYPE_CHECKING:
    from compress.recipe import settings

IN_MEMORY = 2 * 10**9  # bytes of uint8 images: ten times CIFAR, and twice this still loads on a small machine


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A data set, split and ready to train on; made by `load`."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes; none where the targets are no class labels."""
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...]
    """Channels, height and width of one image, or channels and what else an array has; of several inputs the shape of
    each, the image first."""
    mean: tuple[float, ...]
    """What is subtracted from each channel, of images in the range 0 to 1: its mean over the training images, unless
    stated."""
    std: tuple[float, ...]
    """What it is divided by: its standard deviation likewise; 1 where a channel is constant."""
    counts: dict[str, int]
    """Images in "train", "val" and "test"; 0 where the data has no test images."""
    batch: int
    """Images in a training batch."""
    steps_per_epoch: int
    """Full batches in a pass over the training images; which images are left over changes with each epoch."""
    digest: str
    """SHA-256 over names, labels, further inputs, who is in which split, and the histogram of the training pixels."""
    device: torch.device
    seed: int
    crop: int
    flip: bool | str
    parts: Mapping[str, tuple[Source, Tensor]]
    """Each split's source, and its images' numbers there: int64 [n] on the CPU."""
    scaling: tuple[Tensor, Tensor]
    """Factor and summand [1, C, 1, ...] that turn what is stored into normalised values."""
    scale: int = 255
    """What 1 is stored as: 255 in images uint8, 1 in arrays of floats."""
    cutout: int = 0
    """Side in pixels of the square that is blanked in each training image; 0 for none."""
    colours: Literal["RGB", "gray", "as stored"] = "as stored"
    """The order of an image's channels, where it is known."""
    resized: bool = False
    """Whether images were made of one size: the shorter side resized, and the middle taken."""
    notes: tuple[str, ...] = ()
    """What was left out of a folder, or read in another way than it lies there."""
    share: float = 1.0
    """Training images that are used, of those that there are."""
    padding: str = "zero"
    """What a crop finds outside of its image: "zero" or "reflect"."""
    firsts: Tensor = field(default_factory=lambda: torch.empty(0))
    """With flip "alternate", 1 for each image of the training images' source that is mirrored in the first epoch."""

    @property
    def image(self) -> tuple[int, ...]:
        """Channels, height and width of one image."""
        return each(self.shape)[0]

    def stream(self, start: int, steps: int, *, varied: bool = True) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the training batches number `start` to `start + steps - 1`, counted from 0 across all epochs.

        Each is (x float32 [B, C, H, W], y int64 [B]). `varied=False` leaves out crops, flips and cutout.
        """
        source, _ = self.parts["train"]
        steps_from = range(start, start + steps)
        picks, again = itertools.tee(self._picks(steps_from))
        for number, mine, (images, *others, y) in zip(steps_from, again, source.take(picks), strict=True):
            if varied and (self.crop or self.flip):
                draws = self.draws(number, mine).to(self.device, non_blocking=True)
                images = vary(images, draws, self.crop, self.padding)
            x = self._normalised(images)
            if varied and self.cutout:
                blank(x, self.centres(number).to(self.device, non_blocking=True), self.cutout)
            yield _batch(x, others), y

    def split(self, name: str, batch: int = 512, most: int | None = None) -> Iterator[tuple[Batch, Tensor]]:
        """Yield all of "train", "val" or "test" in order, not varied: (x float32 [n, C, H, W], y int64 [n]).

        Or `most` of them, evenly spread, for they may lie class by class. Raises UsageError where the data has no such
        images.
        """
        source, numbers = self._part(name)
        if most is not None and most < len(numbers):
            numbers = numbers[torch.arange(most) * len(numbers) // most]
        taken = source.take(torch.split(numbers, batch))
        return ((_batch(self._normalised(images), others), y) for images, *others, y in taken)

    def raw(self, name: str, n: int) -> Batch:
        """Return a split's first `n` images as they are, uint8 [n, C, H, W] on the CPU, and what stands beside them;
        fewer where it has fewer.
        """
        source, numbers = self._part(name)
        images, *others, _ = (column.cpu() for column in next(source.take([numbers[:n]])))
        return _batch(images, others)

    def draws(self, number: int, images: Tensor) -> Tensor:
        """Return what varies training batch `number`, int64 [3, B]: top and left of its crops, 1 for mirrored.

        `images` are the numbers of its images in their source, int64 [B]: with flip "alternate" each is mirrored in
        every other epoch, beginning with the first or the second.
        """
        draw = torch.Generator().manual_seed(seed_of(self.seed, "variation", number))
        corner = torch.randint(0, 2 * self.crop + 1, (2, self.batch), generator=draw)
        mirrored = torch.randint(0, 1 + bool(self.flip), (1, self.batch), generator=draw)
        if self.flip == "alternate":
            mirrored = (self.firsts[images] + number // self.steps_per_epoch).remainder(2)[None]
        return torch.cat([corner, mirrored])

    def centres(self, number: int) -> Tensor:
        """Return where the squares that are blanked in training batch `number` lie, int64 [2, B]: row and column."""
        draw = torch.Generator().manual_seed(seed_of(self.seed, "cutout", number))
        return torch.stack([torch.randint(0, side, (self.batch,), generator=draw) for side in self.image[1:]])

    def _picks(self, steps: Iterable[int]) -> Iterator[Tensor]:
        _, numbers = self.parts["train"]
        epoch, order = -1, numbers
        for step in steps:
            if epoch != step // self.steps_per_epoch:
                epoch = step // self.steps_per_epoch
                draw = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
                order = numbers[torch.randperm(len(numbers), generator=draw)]
            first = step % self.steps_per_epoch * self.batch
            yield order[first : first + self.batch]

    def _part(self, name: str) -> tuple[Source, Tensor]:
        if not self.counts.get(name):
            have = " and ".join(f"{count} {split}" for split, count in self.counts.items() if count)
            raise UsageError(f"The data '{self.name}' has no {name} images, only {have} images.")
        return self.parts[name]

    def _normalised(self, images: Tensor) -> Tensor:
        factor, summand = self.scaling
        return images.float().mul_(factor).add_(summand)


def _batch(images: Tensor, others: Sequence[Tensor]) -> Batch:
    """What a model is called with."""
    return (images, *others) if others else images


def load(
    keys: "settings.Data",
    *,
    batch: int,
    seed: int,
    device: torch.device,
    root: Path = Path(),
    in_memory: int = IN_MEMORY,
    targets: bool = False,
) -> Data:
    """Load what a recipe's `data` says; relative paths start at `root`, the recipe's folder. `targets` says that the
    recipe has a loss of its own, which takes the labels of an .npz file as they lie there.

    Validation images are held out of the training images, every class in proportion, unless the data has its own.
    Folders of more than `in_memory` bytes of uint8 images are read as they are needed. Raises UsageError.
    """
    read = _found(keys, device, root, in_memory, targets, seed)
    parts = {name: (source, torch.arange(len(source.labels))) for name, source in read.sources.items()}
    train, numbers = parts["train"]
    if "val" not in parts:
        labels = train.labels.cpu() if read.classes else torch.zeros(len(numbers), dtype=torch.int64)
        held, numbers = hold_out(labels, _count(keys.val, len(numbers)), seed)
        parts["val"] = (train, held)
    there, numbers = len(numbers), _subset(keys.train, numbers, seed)
    _refuse(keys, batch, len(numbers), train, classes=bool(read.classes))
    parts["train"] = (train, numbers)
    mean, std, seen = _statistics(train, numbers)
    mean, std = (
        _stated(key, of, it, train.scale) for key, of, it in (("mean", keys.mean, mean), ("std", keys.std, std))
    )
    axes = (1, -1, *[1] * (len(train.shape) - 1))
    factor = torch.tensor([1 / (train.scale * s) for s in std], device=device).view(axes)
    summand = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(axes)
    return Data(
        name=keys.dataset or keys.source,
        classes=read.classes,
        shape=plainly((train.shape, *train.further) if train.further else train.shape),
        mean=mean,
        std=std,
        counts={name: len(parts[name][1]) if name in parts else 0 for name in ("train", "val", "test")},
        batch=batch,
        steps_per_epoch=len(numbers) // batch,
        digest=_digest(keys.dataset or keys.source, read.classes, parts, seen),
        device=device,
        seed=seed,
        crop=keys.crop,
        flip=keys.flip,
        parts=parts,
        scaling=(factor, summand),
        scale=train.scale,
        notes=read.notes,
        cutout=keys.cutout,
        colours=_colours(keys.source, train.shape),
        resized=keys.source == "folder" and keys.size is not None,
        share=len(numbers) / there,
        padding=keys.padding,
        firsts=torch.randint(
            0, 2, (len(train.labels),), generator=torch.Generator().manual_seed(seed_of(seed, "mirrored first", 0))
        ),
    )


def _refuse(keys: "settings.Data", batch: int, images: int, train: Source, *, classes: bool) -> None:
    """Raise UsageError for what these images cannot be varied by."""
    if len(train.shape) != 3 and (keys.crop or keys.flip or keys.cutout):
        raise UsageError(
            f"data.crop, data.flip and data.cutout vary pictures [channels, height, width]; arrays {list(train.shape)} "
            "have none: set crop: 0, flip: false and cutout: 0."
        )
    if batch > images:
        raise UsageError(f"train.batch: {batch} is more than the {images} training images; choose a smaller one.")
    if (keys.crop or keys.flip) and not classes and train.labels.dim() > 2:
        raise UsageError("data.crop and data.flip would move the images and not their targets; leave both out.")
    if keys.padding == "reflect" and keys.crop and keys.crop >= min(train.shape[1:3]):
        raise UsageError(
            f"data.crop: {keys.crop} is too much for images of {train.shape[1]} x {train.shape[2]} pixels, which show "
            "less beside their edges; choose a smaller one or padding: zero."
        )
    if keys.cutout and keys.cutout >= min(train.shape[1:3]):
        height, width = train.shape[1:3]
        raise UsageError(
            f"data.cutout: {keys.cutout} would blank all or most of images of {height} x {width} pixels; choose less: "
            "a quarter of a side is usual."
        )


def _colours(source: str, shape: Sequence[int]) -> Literal["RGB", "gray", "as stored"]:
    if len(shape) == 3 and shape[0] == 1:
        return "gray"
    return "RGB" if len(shape) == 3 and (source == "folder" or source in TORCHVISION) else "as stored"


def _found(keys: "settings.Data", device: torch.device, root: Path, in_memory: int, targets: bool, seed: int) -> Found:
    if keys.dataset:
        return read_own(keys.dataset, keys.args, root, workers=keys.workers, seed=seed, device=device, targets=targets)
    if keys.source == "digits":
        return read_npz(Path(__file__).with_name("digits.npz"), device=device)
    path = None if keys.path is None else root / Path(keys.path).expanduser()
    if keys.source in TORCHVISION:
        return read_torchvision(keys.source, path, download=keys.download, device=device)
    if path is None:
        raise UsageError(f"data.path: the source '{keys.source}' needs one; write data.path, relative to the recipe.")
    if keys.source == "npz":
        return read_npz(path, device=device, in_memory=in_memory, targets=targets)
    return read_folder(
        path,
        size=keys.size,
        workers=keys.workers,
        device=device,
        in_memory=in_memory,
        background=keys.background,
    )


def _count(val: float, images: int) -> int:
    count = round(val * images) if val < 1 else int(val)
    if not 0 < count < images:
        raise UsageError(
            f"data.val: {val} holds out {count} of {images} training images. Decisions are made on images held out and "
            "training on the others: there must be at least one of both."
        )
    return count


def _subset(count: int | None, numbers: Tensor, seed: int) -> Tensor:
    """So many of the training images, drawn; all where `count` is None."""
    if count is None:
        return numbers
    if count > len(numbers):
        raise UsageError(f"data.train: {count} is more than the {len(numbers)} training images there are.")
    draw = torch.Generator().manual_seed(seed_of(seed, "subset", 0))
    return numbers[torch.randperm(len(numbers), generator=draw)[:count]].sort().values


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split image numbers into `count` held out and the rest, each class in proportion to within one image.

    labels int64 [N]; returns two ascending int64 tensors.
    """
    sizes = labels.bincount()
    share, rest = sizes * count // len(labels), sizes * count % len(labels)
    share[rest.argsort(descending=True, stable=True)[: count - int(share.sum())]] += 1  # largest remainders round up
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of(seed, "held out", 0)))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]  # within its class
    held = rank < share[labels[by_class]]
    return by_class[held].sort().values, by_class[~held].sort().values


def _statistics(source: Source, numbers: Tensor) -> tuple[tuple[float, ...], tuple[float, ...], bytes]:
    """Mean and standard deviation of each channel, and what they were made from, for the digest."""
    if source.scale == 255:
        histogram = _histogram(source, numbers)
        _refuse_blank(histogram)
        return *_moments(histogram), histogram.numpy().tobytes()
    arrays = torch.cat([images for images, *_ in source.take(torch.split(_some(source, numbers), 1024))])
    rows = arrays.cpu().numpy().astype("float64").swapaxes(0, 1).reshape(len(arrays[0]), -1)
    mean, std = (tuple(float(of) for of in each.astype("float32")) for each in (rows.mean(1), rows.std(1)))
    return mean, tuple(of or 1.0 for of in std), arrays.cpu().numpy().tobytes()


def _refuse_blank(histogram: Tensor) -> None:
    """Raise UsageError where all pixels are equal, or none is above 1 of 255: nothing could be learnt of them."""
    counts = (histogram > 0).sum(1)
    if int(counts.max()) <= 1:
        value = int(histogram[0].argmax())
        raise UsageError(f"All pixels of the training images are equal, {value} of 255; look at how they were written.")
    if not histogram[:, 2:].any():
        raise UsageError(
            "The pixels of the training images are 0 and 1 of 255, nearly black; write (255 * x).astype('uint8')."
        )


def _histogram(source: Source, numbers: Tensor) -> Tensor:
    total = torch.zeros(source.shape[0], 256, dtype=torch.int64)
    for images, *_ in source.take(torch.split(_some(source, numbers), 1024)):
        total += torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).cpu()
    return total


def _some(source: Source, numbers: Tensor) -> Tensor:
    """All that are held; at most 4,096 of those that are read one by one: their mean is as good as that of all."""
    return numbers[:: -(-len(numbers) // 4096)] if isinstance(source, Items) else numbers


def _moments(histogram: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = [], []
    for counts in histogram.tolist():  # whole numbers until the end: exact, so equal on every machine
        n, once = sum(counts), sum(v * k for v, k in enumerate(counts))
        square = n * sum(v * v * k for v, k in enumerate(counts)) - once * once
        mean.append(once / (255 * n))
        std.append(math.sqrt(square) / (255 * n) or 1.0)
    return tuple(mean), tuple(std)


def _stated(key: str, given: tuple[float, ...] | None, measured: tuple[float, ...], scale: int) -> tuple[float, ...]:
    pixels = scale == 255
    odd = given is not None and pixels and not 0 <= min(given) <= max(given) < 256
    if given is not None and (odd or len(given) != len(measured)):
        of = ", of pixels from 0 to 1" * pixels
        raise UsageError(f"data.{key} is {list(given)}; it needs {len(measured)} numbers{of}.")
    return measured if given is None else given


def _digest(name: str, classes: Sequence[str], parts: Mapping[str, tuple[Source, Tensor]], seen: bytes) -> str:
    digest = hashlib.sha256(repr((name, tuple(classes))).encode())
    for split, (source, numbers) in sorted(parts.items()):
        digest.update(split.encode())
        digest.update(numbers.numpy().tobytes())
        for column in (source.labels, *source.others):
            digest.update(column.cpu()[numbers].numpy().tobytes())
    digest.update(seen)
    return digest.hexdigest()
