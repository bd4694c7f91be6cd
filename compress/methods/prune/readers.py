"""What the layers that read a space are given, and what they make of it: for scores and repairs, layer by layer.

A reader is a convolution or linear layer without groups. Its input is seen as rows of columns, one row for each of its
outputs' places: the weight [O, columns] times a row is what the layer puts out there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd as Convolution

from compress.methods.protocol import Lab
from compress.reading.graph import Graph
from compress.reading.inputs import arguments
from compress.training.seeds import seed_of
from compress.training.train import Loop, Watch, modes_kept

WIDEST = 8192  # columns; of a wider layer the matrix of second moments is no matter of seconds

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads channels of free spaces."""

    name: str
    module: Any  # of torch
    channels: Mapping[str, Ints]  # of each free space that it reads: the channel [columns] of a column, -1 of others'

    @property
    def weight(self) -> Tensor:
        """Its weight [O, columns], without gradients; to be changed by `give`, for it may be a copy."""
        flat: Tensor = self.module.weight.detach().flatten(1)
        return flat

    def give(self, weight: Tensor) -> None:
        """Let it have these numbers [O, columns] as its weight."""
        own = self.module.weight.detach()
        own.copy_(weight.view(own.shape))


def readers_of(model: nn.Module, graph: Graph) -> list[Reader]:
    """The layers that read free spaces, and of which rows can be taken."""
    found: dict[str, dict[str, Ints]] = {}
    for space in (graph.spaces[name] for name in graph.free):
        position = {unit: number for number, unit in enumerate(space.units)}
        for tensor, dim in space.consumers:
            name = tensor.removesuffix(".weight")
            if dim == 1 and _takes_rows(model, name, tensor):
                units = graph.slots[tensor, dim].units
                numbers = np.array([position.get(unit, -1) for unit in units.tolist()], np.int64)
                spread = model.get_submodule(name).weight[0, 0].numel()  # type: ignore[index]
                found.setdefault(name, {})[space.name] = numbers.repeat(spread)
    return [Reader(name, model.get_submodule(name), channels) for name, channels in found.items()]


def _takes_rows(model: nn.Module, name: str, tensor: str) -> bool:
    module = dict(model.named_modules()).get(name)
    if name == tensor or not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    plain = isinstance(module, nn.Linear) or module.groups == 1
    return plain and "weight" in module._parameters and module.weight[0].numel() <= WIDEST


def look(lab: Lab, batches: int, rows: Callable[[Reader], int], see: Callable[[Reader, Tensor], None]) -> None:
    """Let `see` have rows [n, columns] of every reader's input, `rows` of them about, over some training batches.

    The network is as it is when it is used, the images are not varied, and places are drawn from the seed.
    """
    readers = readers_of(lab.model, lab.graph)
    draw = torch.Generator().manual_seed(seed_of(lab.seed, "places that readers are looked at", lab.step))

    def hooked(reader: Reader) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            see(reader, _rows(module, given[0].detach().float(), ceil(rows(reader) / batches), draw))

        return hook

    def run(loop: Loop) -> None:
        watch = Watch(loop)
        with modes_kept(lab.model), torch.no_grad():
            lab.model.eval()
            for step, (x, _) in enumerate(loop.data.stream(loop.start, loop.steps, varied=False), loop.start):
                lab.model(*arguments(x))
                watch.rows.append([0.0])
                if watch.is_due(step):
                    watch.tell(step)

    handles = [reader.module.register_forward_pre_hook(hooked(reader)) for reader in readers]
    try:
        lab.loop(batches, run)
    finally:
        for handle in handles:
            handle.remove()


def _rows(module: nn.Module, x: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """About `count` rows [n, columns] of what a layer multiplies its weight with, at places drawn at random."""
    if isinstance(module, nn.Linear):
        flat = x.flatten(0, -2)
        return flat[torch.randperm(len(flat), generator=draw)[:count].to(x.device)]
    assert isinstance(module, Convolution)
    pad = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, pad, mode=mode) if any(pad) else x
    layout = list(zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True))
    sizes = [(side - apart * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, apart in layout]
    many = min(prod(sizes), ceil(count / len(x)))
    places = torch.randperm(prod(sizes), generator=draw)[:many]
    offsets = torch.tensor(list(product(*(range(kernel) for kernel in module.kernel_size))))  # [K, dims]
    index: list[Tensor] = []
    for dim in reversed(range(len(sizes))):
        places, at = places // sizes[dim], places % sizes[dim]
        index.insert(0, (at[:, None] * module.stride[dim] + offsets[:, dim] * module.dilation[dim]).to(x.device))
    some = torch.randperm(len(x), generator=draw)[: ceil(count / many)].to(x.device)
    every: list[Any] = [slice(None), slice(None), *index]
    patches: Tensor = x[some][tuple(every)]  # [n, C, places, K]
    return patches.movedim(2, 1).flatten(2).flatten(0, 1)


def moments(lab: Lab, batches: int) -> dict[str, Tensor]:
    """Of every reader the mean [columns + 1, columns + 1] of its rows' products, float64; the last column is one."""
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def see(reader: Reader, rows: Tensor) -> None:
        rows = functional.pad(rows, (0, 1), value=1.0)
        sums[reader.name] = sums.get(reader.name, 0) + (rows.T @ rows).double()
        seen[reader.name] = seen.get(reader.name, 0) + len(rows)

    look(lab, batches, lambda reader: 2 * reader.weight.shape[1] + 512, see)
    return {name: total / seen[name] for name, total in sums.items()}


def by_channel(values: Tensor, channels: Ints, width: int) -> Tensor:
    """Sums [..., width] over the columns of each channel of values [..., columns]."""
    mine = torch.from_numpy(np.flatnonzero(channels >= 0)).to(values.device)
    index = torch.from_numpy(channels).to(values.device)[mine]
    return values.new_zeros(*values.shape[:-1], width).index_add_(-1, index, values[..., mine])


def of_space(lab: Lab, space: str) -> Iterator[tuple[Reader, Ints]]:
    """The readers of a space, and the channel of each of their columns."""
    for reader in readers_of(lab.model, lab.graph):
        if space in reader.channels:
            yield reader, reader.channels[space]
