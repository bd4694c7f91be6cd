"""torch's older exporter, by TorchScript (dynamo=False), at opsets from 9 to 17."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_nets as nets
from table import Make, Truth, counted, folded, parameters
from torch import Tensor, nn

PACKAGES = ("torch", "torchvision", "onnx")

TORCH = "torch's counter"
Axes = dict[str, dict[int, str]]


def export(path: Path, model: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, opset: int, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options |= {"input_names": [name for name in axes if name != "y"], "output_names": ["y"]}
        torch.onnx.export(model, inputs, path, dynamo=False, opset_version=opset, dynamic_axes=axes, **options)


def sample(*sizes: int, tokens: bool = False) -> Tensor:
    return torch.randint(0, 50, sizes) if tokens else torch.rand(sizes)


def free(
    path: Path,
    *,
    net: Callable[[], nn.Module],
    sizes: Sequence[int],
    opset: int,
    tokens: bool = False,
    extra: int | None = 0,
    macs: int | None = None,
    how: str = TORCH,
    axes: Axes | None = None,
    given: str = "",
    word: str = "",
    **options: Any,
) -> Truth:
    """Any batch, and any other axes that `axes` names; `extra` as in by_torch_dynamo.py."""
    model = nets.redraw(net())
    axes = axes or {"x": {0: "batch"}, "y": {0: "batch"}}
    export(path, model, (sample(2, *sizes, tokens=tokens),), axes, opset, **options)
    numbers = None if extra is None else (parameters(model) if options else folded(model)) + extra
    seen = counted(model, sample(1, *sizes, tokens=tokens)) if macs is None else macs
    return Truth(seen, numbers, how, (given,) if given else (), {"MACs": word} if word else {})


class Turns(nn.Module):
    """Five turns of one layer, as a loop that TorchScript sees, and unrolls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 12] to features [N, 12]."""
        for _ in range(5):
            x = self.layer(x).relu()
        return x


class Choice(nn.Module):
    """A wide or a narrow layer, by the sum of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out, self.narrow = nn.Linear(12, 30), nn.Linear(30, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 12] to scores [N, 5]."""
        return self.out(self.wide(x)) if bool(x.sum() > 0) else self.narrow(x)


def scripted(path: Path, *, net: Callable[[], nn.Module], macs: int, how: str, kind: str = "") -> Truth:
    """A module that was compiled and not traced: its If is in the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(nets.redraw(net()))
    export(path, module, (sample(2, 12),), {"x": {0: "batch"}, "y": {0: "batch"}}, 17)
    return Truth(macs, parameters(module), how, either={"MACs": kind} if kind else {})


def steps_first(path: Path) -> Truth:
    """An LSTM as torch has it by default: steps on the first axis, any number of them, samples on the second."""
    model = nets.redraw(nn.LSTM(6, 10))
    export(path, model, (sample(9, 1, 6),), {"x": {0: "ticks"}, "y": {0: "ticks"}}, 13)
    how = "5 steps x 4 x 10 x (6 + 10)"
    return Truth(5 * 640, parameters(model), how, ("x=5,1,6",), {"MACs": "ticks"})


def grown(path: Path) -> Truth:
    """Bilinear and nearest upsampling between convolutions: their scales are no weights."""
    up = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), up[0], nn.Conv2d(8, 8, 3, padding=1), up[1], nn.Conv2d(8, 2, 1))
    return free(path, net=lambda: net, sizes=(3, 10, 10), opset=11)


def static_batch(path: Path) -> Truth:
    """Sixteen images for ever."""
    model = nets.redraw(nets.block(3, 8))
    export(path, model, (sample(16, 3, 8, 8),), {"photos": {}, "y": {}}, 12)
    return Truth(None, folded(model), "16 samples are not one", refused={"MACs": "photos"})


def swin(path: Path) -> Truth:
    """Tables of 49 positions become biases of 16 x 16 places, one for each head."""
    heads = 2 + 2 + 4 + 4
    return free(path, net=nets.swin, sizes=(3, 64, 64), opset=17, extra=heads * (256 - 49))


RECURRENT = {
    "lstm": (nn.LSTM, 4, 1, False, 9),
    "lstm_deep": (nn.LSTM, 4, 3, False, 13),
    "gru": (nn.GRU, 3, 2, True, 11),
    "rnn": (nn.RNN, 1, 1, False, 17),
}
FILES: dict[str, Make] = {
    "resnet18": partial(free, net=partial(nets.zoo, "resnet18"), sizes=(3, 64, 64), opset=9),
    "mobilenet_v2": partial(free, net=partial(nets.zoo, "mobilenet_v2"), sizes=(3, 64, 64), opset=11),
    "upsampled": grown,
    "unet": partial(free, net=nets.UNet, sizes=(3, 16, 16), opset=10),
    "convolutions": partial(free, net=nets.convolutions, sizes=(4, 12, 12), opset=9, extra=6),
    "sound": partial(free, net=nets.sound, sizes=(2, 64), opset=12),
    "volume": partial(free, net=nets.volume, sizes=(1, 8, 8, 8), opset=9),
    **{
        name: partial(
            free, net=partial(nets.Recurrent, kind, layers, both), sizes=(7, 6), opset=opset,
            macs=nets.recurrent_macs(gates, 7, layers, both), how="steps x gates x (input + state) by hand",
        )
        for name, (kind, gates, layers, both, opset) in RECURRENT.items()
    },
    "text_causal": partial(free, net=partial(nets.Text, True), sizes=(12,), opset=17, tokens=True),
    "einsum": partial(free, net=nets.Einsum, sizes=(6, 16), opset=12),
    "sdpa": partial(free, net=nets.Sdpa, sizes=(6, 32), opset=14),
    "vit": partial(free, net=nets.vit, sizes=(3, 32, 32), opset=17),
    "swin": swin,
    "norms_kept": partial(
        free, net=partial(nets.zoo, "shufflenet_v2_x0_5"), sizes=(3, 32, 32), opset=13,
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        how="torch's counter; batch norms are kept, their means and variances are no parameters",
    ),
    "words_free": partial(
        free, net=nets.Text, sizes=(12,), opset=16, tokens=True,
        axes={"tokens": {0: "batch", 1: "words"}, "y": {0: "batch"}}, given="tokens=1,12", word="words",
    ),
    "height_free": partial(
        free, net=nets.UNet, sizes=(3, 16, 16), opset=13,
        axes={"image": {0: "batch", 2: "height", 3: "width"}, "y": {0: "batch", 2: "height", 3: "width"}},
        given="image=1,3,16,16", word="height|width",
    ),
    "steps_first": steps_first,
    "static_batch": static_batch,
    "turns": partial(scripted, net=Turns, macs=5 * 144, how="5 turns x 12 x 12, unrolled: five share a weight"),
    "if": partial(scripted, net=Choice, macs=12 * 30 + 30 * 5, how="the wider way, 12 x 30 and 30 x 5", kind=r"\bIf\b"),
}  # fmt: skip
