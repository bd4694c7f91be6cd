"""A backbone, its widths and its training, chosen for images and a budget, each with its reason.

The numbers come from what was measured: nets of these widths from scratch, on 9,000 and on 50,000 images of 32 px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

from compress.budget.limits import Budget
from compress.errors import UsageError
from compress.packages import demand
from compress.reading.graph import Graph, read
from compress.surgery.structure import construct
from compress.training.folders import images_in

Commented = tuple[str, str]  # a line of a recipe, and the comment behind it

LARGEST = 64  # pixels a side that the short backbone is for
LEFT = 3  # pixels a side that its blocks leave
LATER = 3.4  # widths of its later blocks, of the first one's: 40-136-136 within 43 MFLOPs was the best known
BEGIN = 0.5  # of the full net's filters, that the seed has: growing decides about the rest
WIDEST = 1024  # fewer filters than that has a first block: where the budget does not say how wide

SEEN = 2_200_000  # training images, each time that one is seen: CIFAR-10's 45,000 in 49 epochs
COST = 1e14  # MACs x images, an hour on two cores that compute in bf16 ...
SPEED, STEP = 3e10, 0.005  # ... of so many a second, and seconds that a step takes beside
FEWEST, MOST = 10, 100  # epochs
RATE, MUON = 0.25, 0.1  # learning rates for batches of 128, of SGD and of Muon
MANY = 5000  # optimizer steps from which on SGD alone is ahead of Muon
STEPS = 600  # optimizer steps that even a small data set deserves
LONG = 40  # epochs from which on cutout pays, and less decay
GROWTHS = 2  # until the budget is filled, about ...
ROUNDS = 15  # ... each after a part of the epochs
LOOKED_AT = 64  # images of a folder
MIRRORED = 32  # pixels a side from which on colour images are taken for photographs


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recipe follows from, of some images."""

    source: str
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...]  # of one input, or of each of several
    image: tuple[int, ...]  # channels, height, width
    classes: int  # 0 where targets are no classes
    train: int  # training images, those held out not among them
    has_val: bool  # whether they bring validation images of their own

    @property
    def batch(self) -> int:
        """Training images a step: at least a dozen steps an epoch, where there are so many images."""
        return int(max(1, min(128, 2 ** max(0, (self.train // 12).bit_length() - 1))))

    @property
    def epoch(self) -> int:
        """Optimizer steps of one pass."""
        return max(1, self.train // self.batch)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backbone and a training, and why."""

    factory: str
    args: dict[str, Any]  # of the factory, beside those that follow from the data
    data: tuple[Commented, ...]  # lines of the recipe
    train: tuple[Commented, ...]
    method: tuple[Commented, ...]
    reasons: tuple[str, ...]


def choose(facts: Facts, budget: str | None) -> Choice:
    """Choose for images and limits; raises UsageError where no image is told apart, or the limits are no amounts."""
    if budget is None:
        raise UsageError("--budget: without a model, say what it may cost: --budget 43MFLOPs,0.58Mparams.")
    limits = Budget.parse(budget)
    if not facts.classes or facts.shape != facts.image:
        raise UsageError(
            f"{facts.source}: a network is chosen for images of classes alone; name one of yours, as in "
            "compress init ./net.py:build DATA."
        )
    if facts.classes == 1:
        raise UsageError(f"{facts.source}: all images are of one class; a network is chosen to tell two or more apart.")
    side = min(facts.image[1:])
    make, what = (_short, "short") if side <= LARGEST else (_preact, "preact")
    if side < 4:
        raise UsageError(f"{facts.source}: images of {side} px are too small to choose for; name a factory.")
    factory = f"compress.models:{what}"
    args, graph = _fitting(factory, lambda first: make(facts, first), facts.image, limits)
    macs = graph.price.cost(graph.widths).macs
    epochs, span = _epochs(facts, macs)
    crop, mirrored = side // 8, facts.image[0] == 3 and side >= MIRRORED and facts.source != "svhn"
    cutout = side // 4 if mirrored and epochs >= LONG else 0
    cost = epochs * macs * facts.train
    seconds = cost / SPEED + STEP * epochs * facts.epoch
    return Choice(
        factory=factory,
        args=args,
        data=tuple(_varied(crop, cutout, mirrored)),
        train=tuple(_train(facts, epochs, cost)),
        method=tuple(_method(facts, epochs, graph)),
        reasons=(
            f"{what}: {_why(facts, args)}",
            *_sizes(args["widths"]),
            f"train-cost of {epochs} epochs of the full net, {cost:.1e} MACs x images: {span}; {_time(seconds)} on two "
            "cores with bf16",
            f"variation: {_variation(crop, cutout, mirrored)}",
        ),
    )


def side_of(folder: Path) -> int | None:
    """To how many pixels a side a folder's images are resized: none where all those looked at are small and alike."""
    demand("PIL")
    from PIL import Image

    files = sorted(images_in(folder / "train", [], []))
    sizes = set()
    for path in files[:: -(-len(files) // LOOKED_AT) or 1]:
        with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
            sizes.add(image.size)  # what cannot be read is told when all are
    least = min((min(size) for size in sizes), default=LARGEST)
    return None if len(sizes) == 1 and least <= LARGEST else min(least, LARGEST)


# ---- the network ----------------------------------------------------------------------------------------------------


def _short(facts: Facts, first: int) -> dict[str, Any]:
    side = min(facts.image[1:])
    blocks = min(max(2, int(log2(max(1, (side - 1) / LEFT)))), int(log2(side - 1)))
    sizes = {"widths": [first, *[round(LATER * first)] * (blocks - 1)], "size": side}
    return sizes | _of_data(facts)


def _preact(facts: Facts, first: int) -> dict[str, Any]:
    widths = [first * 2**stage for stage in range(4)]
    return {"depths": [2, 2, 2, 2], "widths": widths, "stem": "imagenet"} | _of_data(facts)


def _of_data(facts: Facts) -> dict[str, Any]:
    return {"classes": facts.classes, "in_channels": facts.image[0]}


def _why(facts: Facts, args: dict[str, Any]) -> str:
    side = min(facts.image[1:])
    if side > LARGEST:
        return f"residual, its stem narrows {side} px to a quarter; images of {LARGEST} px or less would be cheaper"
    blocks = len(args["widths"])
    leave = f"{blocks} blocks leave" if blocks > 1 else "1 block leaves"
    return f"{leave} {(side - 1) >> blocks} px of {side}; at 32 px ahead of VGG and ResNet at equal cost"


def _sizes(widths: list[int]) -> tuple[str, str]:
    """Why the full net is as wide as it is, and the seed."""
    full, seed = f"full net of {'-'.join(map(str, widths))}", f"seed of {BEGIN:.0%} of its filters"
    if widths[0] == WIDEST - 1:
        return f"{full}: as wide as one is chosen; the budget has room for more", f"{seed}, which grow"
    return (
        f"{full}: the widest of these proportions that keeps the budget",
        f"{seed}, so that about {GROWTHS} growths fill the budget",
    )


def _fitting(
    factory: str, make: Callable[[int], dict[str, Any]], image: tuple[int, ...], limits: Budget
) -> tuple[dict[str, Any], Graph]:
    """The arguments of the widest net that keeps the limits, and its channels; of the narrowest where none does."""

    def graph(first: int) -> Graph:
        return read(construct(factory, make(first)), image, lessons=False)

    def holds(first: int) -> bool:
        made = graph(first)
        return limits.holds(made.price.cost(made.widths))

    low, high = 1, 2
    while high < WIDEST and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return make(low), graph(low)


# ---- how it is trained ----------------------------------------------------------------------------------------------


def _epochs(facts: Facts, macs: int) -> tuple[int, str]:
    """How many epochs of the full net the whole run costs, and why so many."""
    wanted, why = min(
        (SEEN // facts.train, f"{SEEN / 1e6:g} million images seen"),
        (int(COST / (max(1, macs) * facts.train)), "as many as an hour pays for"),
        (MOST, "no image is shown more often"),
    )
    least = max(FEWEST, ceil(STEPS / facts.epoch))
    return (wanted, why) if wanted >= least else (least, "as few as train a net")


def _varied(crop: int, cutout: int, mirrored: bool) -> list[Commented]:
    flip = ("alternate", "mirrors every image every other epoch; write false where left and right differ")
    still = ("false", "mirroring is for colour photographs, not for digits")
    lines = [
        (f"  crop: {crop}", "pixels by which images are shifted at random"),
        ("  padding: reflect", "what a shift brings in: the image, mirrored at its edge"),
        (f"  flip: {(flip if mirrored else still)[0]}", (flip if mirrored else still)[1]),
    ]
    return (
        [*lines, (f"  cutout: {cutout}", "side of a square that is blanked; pays in long trainings")]
        if cutout
        else lines
    )


def _train(facts: Facts, epochs: int, cost: int) -> Iterator[Commented]:
    steps, long = epochs * facts.epoch, epochs >= LONG
    ema = next(decay for decay, least in ((0.998, MANY), (0.99, 1000), (0.9, 0)) if steps >= least)
    yield f"  cost: {cost:.2e}", "MACs x images of the whole run; more is better"
    yield f"  optimizer: {'sgd' if steps >= MANY else 'muon'}", "muon, for filters, where steps are few"
    yield f"  batch: {facts.batch}", f"images a step; {facts.epoch:,} steps an epoch"
    yield f"  lr: {RATE * facts.batch / 128:g}", "peak learning rate of SGD, in proportion to the batch"
    if steps < MANY:
        yield f"  muon_lr: {MUON * (facts.batch / 128) ** 0.5:.2g}", "... and of Muon, to its root"
        yield "  muon_momentum: 0.6", "of Muon, a fraction below 1"
        yield "  muon_decay: 0.1", "of filters, times the rate"
    yield "  momentum: 0.9", "of SGD, a fraction below 1"
    yield "  nesterov: true", "its better kind"
    yield f"  weight_decay: {'7.0e-4' if long else '1.0e-3'}", "L2 decay a step, of weights only"
    yield "  label_smoothing: 0.15", "share of the target spread over all classes"
    yield f"  ema: {ema:g}", "decay a step of the averaged weights, which are scored and exported"


def _method(facts: Facts, epochs: int, graph: Graph) -> Iterator[Commented]:
    full = graph.widths.values()
    filters = max(1, round(sum(full) * (1 - BEGIN) / len(full) / GROWTHS))
    rounds = max(1, round(epochs / ROUNDS))
    yield "  name: adenel", "grow filters, until the budget is filled"
    yield f"  seed_width: {BEGIN}", "share of the full net's filters at the start"
    yield f"  round: {_epochs_of(rounds)}", f"training between two growths, {rounds * facts.epoch:,} steps"
    yield "  grow: score", "all layers, each by how much of their norm its filters keep over time"
    yield "  amount: even", "in proportion to the full net's widths; else cheap layers become too wide"
    yield f"  filters: {filters}", f"added to a layer in a growth, on average; about {GROWTHS} growths fill the budget"
    yield f"  warmup: {_epochs_of(max(1, round(0.75 * rounds)))}", "rise of the learning rates at the start"
    yield "  tune:", "training of the final shape, as long as the cost pays for"
    yield "    schedule: linear", "fall of the learning rates, down to zero"


def _epochs_of(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def _variation(crop: int, cutout: int, mirrored: bool) -> str:
    parts = [
        f"shifts of up to {crop} px" if crop else "not shifted",
        "mirrored, as photographs may be" if mirrored else "not mirrored",
    ]
    return ", ".join(parts + [f"squares of {cutout} px blanked, since training is long"] * bool(cutout))


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{ceil(seconds / 10) * 10} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.0f} hours"
