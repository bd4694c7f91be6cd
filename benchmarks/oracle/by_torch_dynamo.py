"""torch's newer exporter: torch.export first, then a graph that onnxscript has optimized."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_nets as nets
from table import Make, Truth, counted, folded, parameters
from torch import Tensor, nn

PACKAGES = ("torch", "torchvision", "onnxscript", "onnx")

BATCH = torch.export.Dim("batch")
TORCH = "torch's counter"
Net = Callable[[], nn.Module]


def export(path: Path, model: nn.Module, inputs: tuple[Tensor, ...], free: Any, **options: Any) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, inputs, path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=free, **options
        )


def sample(*sizes: int, tokens: bool = False) -> Tensor:
    return torch.randint(0, 50, sizes) if tokens else torch.rand(sizes)


def free(path: Path, *, net: Net, sizes: Sequence[tuple[int, ...]], extra: int | None = 0, **options: Any) -> Truth:
    """Any batch; one sample of `sizes` is counted by torch. Batch norms are folded by the exporter.

    `extra` numbers are in the file and not in the module, or the other way round; None where that is open.
    """
    model = nets.redraw(net())
    tokens, macs, how = (options.pop(key, None) for key in ("tokens", "macs", "how"))
    inputs = [tuple(sample(count, *one, tokens=bool(tokens)) for one in sizes) for count in (2, 1)]
    export(path, model, inputs[0], tuple({0: BATCH} for _ in sizes), **options)
    numbers = None if extra is None else folded(model) + extra
    return Truth(counted(model, *inputs[1]) if macs is None else macs, numbers, how or TORCH)


def symbols(path: Path, *, net: Net, example: Tensor, axes: dict[int, str], given: str, word: str) -> Truth:
    """Axes beside the batch that are free too: counted at the shape of `example` where that is given."""
    model = nets.redraw(net())
    dims = {
        axis: torch.export.Dim(name, min=4, max=40) if axis else torch.export.Dim(name) for axis, name in axes.items()
    }
    export(path, model, (torch.cat([example] * 2) if dims.get(0) and axes[0] == "batch" else example,), (dims,))
    return Truth(counted(model, example), folded(model), f"{TORCH} at {given}", (given,), {"MACs": word})


def fixed(path: Path, count: int) -> Truth:
    """As many samples as there were in the example, for ever."""
    model = nets.redraw(nets.convolutions())
    export(path, model, (sample(count, 4, 12, 12),), None, input_names=["photos"])
    macs, params = counted(model, sample(1, 4, 12, 12)), folded(model) + GROUPS
    return Truth(macs, params, TORCH) if count == 1 else Truth(None, params, "8 samples", refused={"MACs": "photos"})


def stream(path: Path) -> Truth:
    """States have the batch on their second axis, steps on their first."""
    model = nets.redraw(nets.Stream())
    states = sample(2, 2, 10), sample(2, 2, 10)
    export(path, model, (sample(2, 3, 6), *states), ({0: BATCH}, {1: BATCH}, {1: BATCH}))
    macs = 3 * 4 * 10 * (6 + 10 + 10 + 10) + 40
    how = "3 steps x 4 x 10 x (16 + 20), 10 x 4"
    return Truth(macs, parameters(model), how, either={"MACs": "batch"})


def swin(path: Path) -> Truth:
    """Which of its tables, biases and masks are weights is open; all that is no table of 49 positions surely is."""
    sure = parameters(nets.swin()) - 49 * (2 + 2 + 4 + 4)
    return replace(free(path, net=nets.swin, sizes=[(3, 64, 64)], extra=None), never={"params": sure - 1})


def densenet(path: Path) -> Truth:
    """A norm right after a convolution is folded into it, which gets a bias; one after a concatenation stays."""
    model = nets.zoo("densenet121")
    seen = free(path, net=lambda: model, sizes=[(3, 32, 32)])
    after = [norm for name, norm in model.named_modules() if name.endswith(("norm0", "norm2"))]
    params = parameters(model) - sum(norm.num_features for norm in after)
    return replace(seen, params=params, how=f"{seen.how}; {len(after)} of 121 norms folded")


GROUPS = 2 * 3  # GroupNorm is written as an InstanceNormalization of 3 groups, with 3 ones and 3 zeros of its own
CUT = -28 * 32  # of 40 positions, the 12 that are used are stored
FILES: dict[str, Make] = {
    **{
        name: partial(free, net=partial(nets.zoo, name), sizes=[(3, 64, 64)])
        for name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
    },
    "densenet121": densenet,
    "vit": partial(free, net=nets.vit, sizes=[(3, 32, 32)]),
    "swin": swin,
    "unet": partial(free, net=nets.UNet, sizes=[(3, 16, 16)]),
    "convolutions": partial(free, net=nets.convolutions, sizes=[(4, 12, 12)], extra=GROUPS),
    "sound": partial(free, net=nets.sound, sizes=[(2, 64)]),
    "volume": partial(free, net=nets.volume, sizes=[(1, 8, 8, 8)]),
    "lstm": partial(
        free, net=partial(nets.Recurrent, nn.LSTM), sizes=[(7, 6)],
        macs=nets.recurrent_macs(4, 7), how="7 x 4 x 10 x 16, 10 x 4",
    ),
    "gru": partial(
        free, net=partial(nets.Recurrent, nn.GRU, 2, True), sizes=[(7, 6)],
        macs=nets.recurrent_macs(3, 7, 2, True), how="7 x 2 ways x 3 x 10 x (16 + 30), 20 x 4",
    ),
    "text": partial(free, net=nets.Text, sizes=[(12,)], tokens=True, extra=CUT),
    "two": partial(
        free, net=nets.Two, sizes=[(3, 8, 8), (5,)], macs=64 * 216 + 40 + 3 * 64 + 3 * 8,
        how="64 x 8 x 27, 5 x 8, and the bilinear layer's two products, 3 x 8 x 8 and 3 x 8",
    ),
    "einsum": partial(free, net=nets.Einsum, sizes=[(6, 16)]),
    "sdpa": partial(free, net=nets.Sdpa, sizes=[(6, 32)]),
    "sdpa_opset23": partial(free, net=nets.Sdpa, sizes=[(6, 32)], opset_version=23),
    "words_free": partial(
        symbols, net=nets.Text, example=sample(1, 12, tokens=True), axes={0: "batch", 1: "words"},
        given="tokens=1,12", word="words",
    ),
    "height_free": partial(
        symbols, net=partial(nets.block, 3, 8), example=sample(1, 3, 16, 16),
        axes={0: "batch", 2: "height", 3: "width"}, given="input=1,3,16,16", word="height|width",
    ),
    "photo": partial(
        symbols, net=nets.Photo, example=sample(8, 12, 3), axes={0: "height", 1: "width"},
        given="photo=8,12,3", word="height|width",
    ),
    "fixed_one": partial(fixed, count=1),
    "fixed_eight": partial(fixed, count=8),
    "stream": stream,
}  # fmt: skip
