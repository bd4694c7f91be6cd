"""From a masked network to a compact one that provably computes the same.

On a copy: masks that other tools left are multiplied in, dead channels are cut out of every tensor that holds them, and
the result is compared with what was there before, in float64 and float32 on the CPU, and image by image. A mask on a
filter is not a removal: behind batch norm a zeroed filter still speaks its bias. So a channel is dead only where
everything that reads it multiplies it by zero, or where it is zero itself wherever it is read.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compress.budget.limits import Cost
from compress.errors import ArtifactError
from compress.reading.ghost import flat
from compress.reading.graph import Graph
from compress.reading.inputs import Batch, Shape, arguments, each, noise, plainly
from compress.reading.measure import measure
from compress.surgery.plain import plain
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

DOUBLE = 1e-12  # largest |masked - compact| in float64, times max(1, max |output|)
SINGLE = 1e-5  # the same in float32
DRAWS = 3  # sets of weights with which a channel must be zero; the first, all positive, finds nearly all that speak


@dataclass(frozen=True, slots=True)
class Compact:
    """A finished network: plain dense modules on the CPU, float32, eval mode, contiguous."""

    model: nn.Module
    structure: Structure
    cost: Cost
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...]  # of the input without its batch, or of several
    drift: float  # max |masked - compact| over all compared outputs, float32
    removed: Mapping[str, int]  # channels cut, by space


def finalize(
    model: nn.Module,
    shape: Shape,
    structure: Structure,
    images: Iterable[Batch] = (),
    *,
    top1: bool = True,
) -> Compact:
    """Cut out all channels that are masked, and prove that nothing changed.

    `images` are batches [N, C, H, W] of real, normalised inputs, tuples of them where the model takes several; with
    `top1`, outputs are logits [N, classes]. Raises ArtifactError where the compact network does not compute what the
    masked one does, within `DOUBLE` and `SINGLE`, top-1 for top-1; where forward() insists on float32, within the
    latter alone.
    """
    masked = plain(model)
    compact, removed = _cut(masked, shape, silent=True)
    if removed:
        try:
            compare(masked, compact, shape)
        except ArtifactError:  # something silent spoke after all: cut only what is multiplied by zero
            compact, removed = _cut(masked, shape, silent=False)
    drift = compare(masked, compact, shape, images, top1=top1) if removed else 0.0
    built = Structure.read(compact, structure.factory, structure.args, structure.depths)
    return Compact(compact, built, measure(compact, shape, lenient=True), plainly(shape), drift, removed)


def _cut(masked: nn.Module, shape: Shape, *, silent: bool) -> tuple[nn.Module, dict[str, int]]:
    """A copy without dead channels, and how many went from each space; cutting some can leave others dead."""
    surgeon = Surgeon(copy.deepcopy(masked), survey(masked, shape))
    removed: Counter[str] = Counter()
    while True:
        graph, before = surgeon.graph, removed.total()
        alive = _read(surgeon.model, graph)
        if silent:
            alive &= _speaking(surgeon.model, graph)
        for name, space in graph.spaces.items():
            keep = [p for p, unit in enumerate(space.units) if unit in alive] or [0]  # a layer has one channel at least
            if space.frozen is None and len(keep) < space.width:
                surgeon.narrow(name, keep)
                removed[name] += space.width - len(keep)
        if removed.total() == before:
            return surgeon.model, dict(removed)


def _read(model: nn.Module, graph: Graph) -> set[int]:
    """The units that something multiplies by more than zero."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    units: set[int] = set()
    for (name, dim), slot in graph.slots.items():
        if slot.role == "in":
            heard = tensors[name].detach().transpose(0, dim).flatten(1).ne(0).any(1).numpy()
            units.update(slot.units[heard].tolist())
    return units


@torch.no_grad()
def _speaking(model: nn.Module, graph: Graph) -> set[int]:
    """The units that are more than zero where something reads them, with other numbers in place of all but the zeros.

    What is zero for all of these is zero because of zeros alone: not because the numbers at hand happen to be so. All
    units, where the model does not run in float64.
    """
    probe = copy.deepcopy(model).double().eval()
    units: set[int] = set()
    heard: set[str] = set()
    names = {id(parameter): name for name, parameter in probe.named_parameters()}

    def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, axis = names.get(id(module.weight), ""), -1 if isinstance(module, nn.Linear) else 1
        slot = graph.slots.get((name, 0 if getattr(module, "transposed", False) else 1))
        if slot is not None and slot.role == "in":
            loud = inputs[0].transpose(0, axis).flatten(1).ne(0).any(1).numpy()
            units.update(np.resize(slot.units, len(loud))[loud].tolist())  # the same units in each group
            heard.add(name)

    for module in probe.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.register_forward_pre_hook(listen)
    generator = torch.Generator().manual_seed(0)
    for draw in range(DRAWS):
        _redraw(probe, generator, signs=draw > 0)
        inputs = [torch.rand(1, *one, generator=generator, dtype=torch.float64) + 0.5 for one in each(graph.shape)]
        if draw > 0:
            inputs = [x * (torch.rand(x.shape, generator=generator) - 0.5).sign() for x in inputs]
        try:
            probe(*inputs)
        except (RuntimeError, IndexError):  # such as ids below zero
            return {unit for slot in graph.slots.values() for unit in slot.units.tolist()}
    for (name, _), slot in graph.slots.items():
        if slot.role == "in" and name not in heard:  # read by no module's own call
            units.update(slot.units.tolist())
    return units


def _redraw(model: nn.Module, generator: torch.Generator, *, signs: bool) -> None:
    """Other numbers for all that are not zero, so large that activations stay near 1; without `signs` all add up."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
            if tensor.dim() > 1:
                drawn /= max(tensor[0].numel(), 1)
            if name.endswith("running_mean"):
                drawn.neg_()  # it is subtracted
            if signs and not name.endswith("running_var"):
                drawn *= (torch.rand(tensor.shape, generator=generator) - 0.5).sign()
            tensor.copy_(drawn.where(tensor != 0, 0.0))


@torch.no_grad()
def compare(
    masked: nn.Module, compact: nn.Module, shape: Shape, images: Iterable[Batch] = (), *, top1: bool = True
) -> float:
    """The largest |masked - compact| in float32 over noise and images, once everything is within its bound.

    Raises ArtifactError where something is not, or where, with `top1`, an image changes its class.
    """
    drawn = noise(masked, shape, 8)
    try:
        exact = _outputs(
            [copy.deepcopy(m).double().eval() for m in (masked, compact)], tuple(x.double() for x in drawn)
        )
    except RuntimeError:  # forward() insists on its own number format; what else is wrong shows below
        exact = []
    for one, other in exact:
        if not _gap(one, other) <= DOUBLE * max(1.0, float(one.abs().max())):
            raise ArtifactError(
                f"cutting the masked channels changed the outputs by {_gap(one, other):.1e} in float64 "
                f"(at most {DOUBLE})"
            )
    drift = 0.0
    for batch in [drawn, *images]:
        for a, b in _outputs([masked, compact], batch):
            if not _gap(a, b) <= SINGLE * max(1.0, float(a.abs().max())):
                raise ArtifactError(f"cutting the masked channels changed the outputs by {_gap(a, b):.1e} in float32")
            if top1 and batch is not drawn and a.dim() > 1 and not torch.equal(a.argmax(1), b.argmax(1)):
                raise ArtifactError("cutting the masked channels changed the class of an image")
            drift = max(drift, _gap(a, b))
    return drift


def _outputs(models: Sequence[nn.Module], batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """What two models return for one batch, output by output."""
    one, other = (list(flat(model(*arguments(batch)))) for model in models)
    return list(zip(one, other, strict=True))


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
