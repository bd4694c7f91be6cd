"""A first recipe for a model and images, or for images alone: all it sets is explained, and tried before it is written.

init("./net.py:make", "images.npz", "50%", "recipe.yaml")
init("./net.py:make", "images.npz", weights="trained.safetensors")     it is pruned
init(None, "images.npz", "43MFLOPs,0.58Mparams")             the model is chosen too
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress._plan import SHAPES, Plan, draw_up
from compress.choice import Choice, Commented, Facts, choose, side_of
from compress.errors import UsageError
from compress.recipe import settings
from compress.recipe.arguments import beside, source_of, stated
from compress.recipe.settings import Recipe
from compress.surgery.structure import construct, locate
from compress.surgery.weights import fill, read_weights
from compress.training.data import load

SEED_WIDTHS = (8, 4, 2, 1)  # the first that leaves room to grow is taken
ROUND = 50  # optimizer steps that a support needs to say anything
LONG_ROUND = 200  # from here on one epoch is a round, and the threshold's default suits it
WIDEST = 60  # characters; comments stand in one column, except behind lines longer than this
TUNING = 600  # optimizer steps that even a small data set deserves at the end

# What pixels were normalised by in the training of most weights that these packages bring.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_MODELS = ("torchvision.", "timm")

# Images and classes of the sets whose shape a plan knows: so that a recipe is written where they are not fetched yet.
COUNTS = {
    "mnist": (60_000, 10),
    "fashionmnist": (60_000, 10),
    "svhn": (73_257, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
}

# Arguments of factories that follow from the data, by the names that people give them.
_FROM_DATA: dict[str, Callable[[Facts], int]] = {
    **dict.fromkeys(("classes", "num_classes", "n_classes"), lambda data: data.classes),
    **dict.fromkeys(("in_channels", "in_chans"), lambda data: data.image[0]),
    **dict.fromkeys(("size", "image_size", "img_size"), lambda data: data.image[1]),
}


@dataclass(frozen=True, slots=True)
class First:
    """A recipe that was written: what it would do, and why it says what was chosen in it."""

    plan: Plan
    reasons: tuple[str, ...] = ()


def init(
    factory: str | None,
    data: str,
    budget: str | None = None,
    out: Path | str = "recipe.yaml",
    *,
    args: Mapping[str, Any] | None = None,
    size: int | None = None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> First:
    """Write a first recipe for a factory and the images that `data` names (see `source_of`), and return its plan.

    Without a factory, one of `compress.models` is chosen, its widths, and how it is trained (see `choice`); then
    `budget` must state amounts, where it is else half of the factory's net. Arguments of the factory called classes,
    in_channels, size and the like are taken from the data, unless `args` has them. Images of a folder are resized to
    `size` pixels. With the `weights` of a trained network the recipe prunes it; its pixels had this `mean` and `std`.
    Raises UsageError where something cannot be used or `out` exists, Infeasible where no network can keep the budget;
    then nothing is written.
    """
    target = Path(out)
    if target.exists():
        raise UsageError(f"{target} exists already; name another file with --out.")
    if weights is not None and factory is None:
        raise UsageError("--weights: name the factory that they belong to: compress init pkg.net:build DATA ...")
    source = source_of(data, size)
    if factory is None and source["source"] == "folder" and size is None:
        source["size"] = side_of(Path(source["path"]))
    facts = facts_of(source)
    choice = choose(facts, budget) if factory is None else None
    factory, folder = beside(factory or choice.factory)  # type: ignore[union-attr]
    follows = _follows(locate(factory, folder), facts)
    given = {**follows, **(choice.args if choice else {}), **(args or {})}
    model = construct(factory, given, folder)
    trained = _trained(model, factory, weights, mean, std)
    limits = budget or "50%"
    named, norm = _from_recipe(factory, folder, target), _normalised(model)
    draft = _Draft(named, given, source, limits, facts, norm, choice, trained)
    planned = draw_up(_read(draft.text(target), target), model, facts.shape)
    planned.refuse()
    for width in SEED_WIDTHS:
        text = draft.text(target, width)
        if (
            choice
            or trained
            or planned.budget.utilisation(draw_up(_read(text, target), model, facts.shape).seed) <= 0.5
        ):
            break
    _write(target, text)
    return First(planned, choice.reasons if choice else ())


def facts_of(source: Mapping[str, Any]) -> Facts:
    """What a recipe follows from: of a known set without its images, else by reading them."""
    name, held_out = source["source"], settings.Data().val
    if name in COUNTS:
        count, classes = COUNTS[name]
        return Facts(name, SHAPES[name], SHAPES[name], classes, count - round(held_out * count), has_val=False)
    images = load(settings.Data(**source), batch=1, seed=0, device=torch.device("cpu"))
    has_val = images.parts["train"][0] is not images.parts["val"][0]
    return Facts(name, images.shape, images.image, len(images.classes), images.counts["train"], has_val)


def _trained(
    model: nn.Module, factory: str, weights: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Trained | None:
    """What is known of a trained network; raises UsageError for weights that do not fit it."""
    if weights is None:
        if mean or std:
            raise UsageError("--mean and --std are those that a trained network's pixels had; name its --weights, too.")
        return None
    fill(model, read_weights(Path(weights).expanduser()), exact=True)
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; write both")
    known = factory.startswith(IMAGENET_MODELS)
    usual = IMAGENET if known else ((), ())
    return Trained(weights, tuple(mean or usual[0]), tuple(std or usual[1]), guessed=mean is None and known)


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists already; name another file with --out.") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink()  # half of it, where the disk was full
        raise UsageError(f"{target} cannot be written ({error.strerror or error}).") from None


def _read(text: str, target: Path) -> Recipe:
    return stated(**yaml.safe_load(text)).placed(target.absolute().parent)


def _from_recipe(factory: str, folder: Path, target: Path) -> str:
    """The factory, or what returns data sets, as a recipe at `target` names it."""
    file, _, name = factory.rpartition(":")
    return f"{_relative(folder / file, target)}:{name}" if file.endswith(".py") else factory


def _relative(path: Path | str, target: Path) -> str:
    way = Path(os.path.relpath(path, target.absolute().parent)).as_posix()
    return way if way.startswith(".") else f"./{way}"


def _follows(make: Callable[..., Any], data: Facts) -> dict[str, int]:
    """The arguments that a factory takes by name and that the data decides, where its default is another value."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    wanted = {name: value(data) for name, value in _FROM_DATA.items() if name in parameters}
    return {name: value for name, value in wanted.items() if parameters[name].default != value}


def _normalised(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network's weights, and what its pixels were normalised by; nothing where that is to be measured."""

    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    guessed: bool


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a first recipe is written from."""

    factory: str
    args: Mapping[str, Any]
    source: Mapping[str, Any]
    budget: str
    facts: Facts
    norm: bool  # whether the model has batch norms
    choice: Choice | None  # where nobody named the model
    trained: Trained | None = None  # where it comes with weights

    def text(self, target: Path, seed_width: int = SEED_WIDTHS[-1]) -> str:
        """The recipe as YAML, the comments in one column."""
        lines = [*self._model(target), *self._data(target), *self._training(seed_width)]
        column = max(len(line) for line, comment in lines if comment and len(line) <= WIDEST) + 2
        return "".join(f"{line.ljust(column - 1)} # {comment}\n" if comment else f"{line}\n" for line, comment in lines)

    def _model(self, target: Path) -> Iterator[Commented]:
        yield f"# A first recipe for {self.factory}, written by `compress init`.", ""
        if self.choice:
            yield from ((f"#   {reason}", "") for reason in self.choice.reasons)
        yield f"#   compress plan {target.name}    what it would do, in seconds", ""
        yield f"#   compress run {target.name}     do it", ""
        yield "# `compress schema` lists the keys that are left out here, with their defaults.", ""
        yield "", ""
        yield "model:", "the full network, which shares (50%) and the training cost refer to"
        factory = _yaml(self.factory)
        yield f"  factory: {factory}", "package.module:callable, or ./file.py:callable beside this recipe"
        if self.args:
            yield "  args:", "keyword arguments of the factory"
        for key, value in self.args.items():
            yield f"    {_yaml(key)}: {_yaml(value)}", self._origin(key, value)
        if self.trained:
            yield f"  weights: {_yaml(_relative(self.trained.weights, target))}", "what it was trained to"
        shape = json.dumps(self.facts.shape)
        yield f"  input: {shape}", "channels, height and width of an image; so a plan needs no data"
        yield "", ""

    def _data(self, target: Path) -> Iterator[Commented]:
        yield "data:", ""
        images = f"{self.facts.train:,} training images"
        if own := self.source.get("dataset"):
            yield (
                f"  dataset: {_yaml(_from_recipe(own, Path(), target))}",
                f"a function that returns data sets: {images}",
            )
        else:
            yield f"  source: {self.source['source']}", images
        if self.source["source"] in COUNTS:
            yield "  download: true", "fetch them where they are not in their usual place"
        if self.source.get("path"):
            yield f"  path: {_yaml(_relative(self.source['path'], target))}", "relative to this recipe"
        if self.source.get("size"):
            yield f"  size: {self.source['size']}", "pixels a side, to which images are resized"
        if not self.facts.has_val:
            yield "  val: 0.1", "fraction of the training images held out, for decisions"
        if self.choice:
            yield from self.choice.data
        elif own:
            yield "  crop: 0", "its own transforms vary the images; more is varied by crop and flip"
        else:
            yield f"  crop: {self.facts.image[1] // 8}", "pixels of zero padding before a random crop"
            yield "  flip: false", "true mirrors half of the training images; not where left and right differ"
        if self.trained and self.trained.mean:
            guessed = "ImageNet's; write your own if they are others" if self.trained.guessed else "as given"
            yield f"  mean: {_yaml(self.trained.mean)}", f"of each channel, of pixels from 0 to 1: {guessed}"
            yield (
                f"  std: {_yaml(self.trained.std)}",
                "likewise; what the weights were trained with",
            )
        elif self.trained:
            yield "  # mean: [0.5]", "of each channel, of pixels from 0 to 1, as in training; else these images' own"
            yield "  # std: [0.25]", "likewise"
        yield "", ""

    def _training(self, seed_width: int) -> Iterator[Commented]:
        yield "train:", ""
        yield from self.choice.train if self.choice else self._train()
        yield "", ""
        yield "method:", ""
        if self.trained:
            yield from self._pruning()
        else:
            yield from self.choice.method if self.choice else self._method(seed_width)
        yield "", ""
        yield f"budget: {_yaml(self.budget)}", "limits, all of which hold; --budget replaces them"
        yield "", ""
        yield "seed: 0", "number that all randomness starts from"

    def _method(self, seed_width: int) -> Iterator[Commented]:
        epoch = self.facts.epoch
        long = epoch >= LONG_ROUND
        rounds = 1 if long else -(-ROUND // epoch)
        yield "  name: adenel", "grow filters where none is idle, until the budget is filled"
        yield f"  seed_width: {seed_width}", "filters of each growing layer at the start"
        yield f"  round: {rounds} epoch{'s' * (rounds > 1)}", f"training between two growths, {rounds * epoch:,} steps"
        yield f"  theta: {'0.9' if long else '0.97'}", "threshold of the support, of an unchanged filter's norm"
        yield "  tau: 0.8", "a layer grows when this fraction of its filters is in the support"
        yield "  tune:", "training of the final shape"
        yield f"    epochs: {max(20, -(-TUNING // epoch))}", "passes over the training images; more is better"
        yield "    schedule: cosine", "course of the learning rate, down to zero"

    def _pruning(self) -> Iterator[Commented]:
        epochs = max(20, -(-TUNING // self.facts.epoch))
        yield "  name: reconstruct", "narrow it; what reads a narrowed layer is solved anew, to put out what it did"
        yield "  tune:", "training of the narrow net, at the best of three shares of train.lr, tried shortly"
        yield f"    epochs: {epochs}", "passes over the training images; more is better"
        yield "    schedule: linear", "course of the learning rate, down to zero"

    def _origin(self, key: str, value: Any) -> str:
        if key in _FROM_DATA and _FROM_DATA[key](self.facts) == value:
            return "follows from the data"
        return "chosen" if self.choice and self.choice.args.get(key) == value else "as given"

    def _train(self) -> Iterator[Commented]:
        rate, norm = ("0.1", "with") if self.norm else ("0.05", "without")
        yield f"  batch: {self.facts.batch}", f"images a step; {self.facts.epoch:,} steps an epoch"
        yield f"  lr: {rate}", f"peak learning rate of SGD, usual {norm} batch norm"
        yield "  momentum: 0.9", "of SGD, a fraction below 1"
        yield "  weight_decay: 5.0e-4", "L2 decay a step, of weights only"


def _yaml(value: Any) -> str:
    """A value as YAML on one line: words plain where that is safe, everything else as JSON, which YAML reads."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./:]*", value) and yaml.safe_load(value) == value
    return str(value) if plain else json.dumps(value)
