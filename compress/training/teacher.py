"""A trained network that another one learns from: its logits, softened, beside the labels.

The loss is (1 - weight) x the usual one + weight x T^2 x KL(teacher || net), both nets' logits divided by the
temperature T: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; T^2 keeps the
gradients as large as they are without it. The teacher sees the images as the net does, varied and normalised alike.

Its forward passes are counted, so that train-cost holds them; it has no backward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import CompressError, UsageError
from compress.reading.inputs import Batch, Shape, arguments, each
from compress.reading.measure import measure
from compress.recipe import teacher as keys
from compress.surgery.structure import Structure, construct
from compress.surgery.weights import fill, read_weights
from compress.training.task import logits
from compress.training.train import memory_format_of, place, runs_in_channels_last

if TYPE_CHECKING:
    from compress.recipe.settings import Recipe
    from compress.training.data import Data

RUN = "model.safetensors"  # of a finished run's folder


@dataclass
class Teacher:
    """A network in eval mode whose weights stay as they are, and how its word counts."""

    model: nn.Module
    data: Data
    name: str
    macs: int  # of one image
    temperature: float
    weight: float
    images: int = 0  # that it has looked at so far

    def hints(self, x: Batch, images: int) -> Tensor:
        """Its logits [B, outputs] for a batch."""
        self.images += images
        with torch.no_grad():
            return logits(self.model(*arguments(x)), self.data, images)

    def mixed(self, loss: Tensor, output: Tensor, hints: Tensor) -> Tensor:
        """The mean loss of a batch from the usual one and from what the teacher said: logits [B, outputs], both."""
        t = self.temperature
        ours, theirs = functional.log_softmax(output / t, 1), functional.log_softmax(hints / t, 1)
        apart = functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        return (1 - self.weight) * loss + self.weight * t * t * apart

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its weights and buffers, by name; every checkpoint asks for it, and they stay as they are."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().cpu().contiguous()
            whole.update(f"{name} {flat.dtype} {list(flat.shape)}\n".encode())
            whole.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return whole.hexdigest()


def teacher_of(recipe: Recipe, model: nn.Module, data: Data, device: torch.device) -> Teacher | None:
    """The teacher that a recipe names for a model, on a device; None where it names none.

    Raises UsageError where it cannot be built or counted, does not fit its weights, has none that were trained, or
    says other classes than the model; ArtifactError for a file that is broken.
    """
    said = recipe.train.teacher
    if said is None:
        return None
    if recipe.train.step:
        raise UsageError("train.teacher: train.step makes the loss by itself; let it ask the teacher, or drop one.")
    if not data.classes:
        raise UsageError(f"train.teacher: it teaches classes, and the targets of {data.name} are none; leave it out.")
    with _named():
        teacher = _built(said, recipe).eval().requires_grad_(False)
        _refuse_other_outputs(teacher, model, data)
        macs = measure(teacher, data.shape, lenient=True).macs
    free = recipe.train.memory_format != "contiguous" and runs_in_channels_last(teacher, data.shape, device)
    place(teacher, device, memory_format_of("auto", device, teacher) if free else "contiguous")
    name = said.factory or f"the full {recipe.model.factory}"
    return Teacher(teacher, data, name, macs, said.temperature, said.weight)


def refuse_unusable(recipe: Recipe, shape: Shape) -> None:
    """Raise what `teacher_of` would where a teacher cannot be built, filled or counted; this needs no images."""
    if recipe.train.teacher is not None:
        with _named():
            measure(_built(recipe.train.teacher, recipe).eval(), shape, lenient=True)


@contextmanager
def _named() -> Iterator[None]:
    """Let errors say that the teacher is meant."""
    try:
        yield
    except CompressError as error:
        raise type(error)(f"train.teacher: {error}") from None


def _built(said: keys.Teacher, recipe: Recipe) -> nn.Module:
    """The teacher with its weights."""
    ours, folder = recipe.model, recipe.folder
    factory, args = (said.factory, said.args) if said.factory is not None else (ours.factory, ours.args)
    weights = said.weights if said.factory is not None else said.weights or ours.weights

    def make() -> nn.Module:
        return construct(factory, args, folder)

    if weights is None:
        if _draws(make):
            raise UsageError(
                f"{factory} draws its weights anew with each call, and a teacher must have been trained; name a file "
                "of weights, or the folder of a finished run, as train.teacher.weights"
            )
        return make()
    path = folder / Path(weights).expanduser()
    if not path.is_dir():
        model = make()
        fill(model, read_weights(path), exact=True)
        return model
    structure = Structure.from_file(path / RUN)
    if structure.factory not in (factory, ours.factory) and not structure.factory.startswith("compress.models:"):
        raise UsageError(
            f"the network in {path.name} is made by {structure.factory}; if you trust that, write it as "
            "train.teacher.factory"
        )
    model = structure.build(folder=folder)
    fill(model, read_weights(path / RUN), exact=True)
    return model


def _draws(make: Callable[[], nn.Module]) -> bool:
    """Whether a factory's weights follow the seed: it has loaded none."""
    states = []
    for seed in (0, 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            states.append(make().state_dict())
    return any(not torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@torch.no_grad()
def _refuse_other_outputs(teacher: nn.Module, model: nn.Module, data: Data) -> None:
    """Raise UsageError where the teacher does not return as many logits as the model does."""
    shapes = [_outputs(teacher, data.shape, data), _outputs(model, data.shape, data)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"it returns {shapes[0]} logits for one image and the model {shapes[1]}, of {len(data.classes)} classes in "
            f"{data.name}; both must mean the same classes"
        )


def _outputs(model: nn.Module, shape: Shape, data: Data) -> int:
    """How many logits a model gives for one image; it is left in the mode it was in."""
    trained = model.training
    model.eval()
    device = next(iter(model.parameters()), torch.empty(0)).device
    try:
        return int(logits(model(*(torch.zeros(1, *one, device=device) for one in each(shape))), data, 1).shape[1])
    finally:
        model.train(trained)
