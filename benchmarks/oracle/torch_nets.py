"""Small torch networks that both of torch's exporters, and onnxruntime's optimizer, are given."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

ZOO = torchvision.models


def redraw(model: nn.Module) -> nn.Module:
    """Fill every parameter and statistic with random numbers, so that no exporter finds two tensors equal."""
    generator = torch.Generator().manual_seed(14)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.2 + 0.1
    return model.eval()


class UNet(nn.Module):
    """Two steps down, two up by transposed convolutions, with what was left behind laid beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 8), block(8, 16), block(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 4, 2, 1)])
        self.join = nn.ModuleList([block(32, 16), block(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to maps [N, 2, H, W]; H and W are multiples of 4."""
        left = []
        for layer in self.down[:2]:
            left.append(layer(x))
            x = functional.max_pool2d(left[-1], 2)
        x = self.down[2](x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), left.pop()], 1))
        return self.head(x)


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def convolutions() -> nn.Sequential:
    """Grouped, depthwise, dilated, long and thin, strided."""
    return nn.Sequential(*[
        nn.Conv2d(4, 16, 3, groups=2, padding=1), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.Conv2d(16, 16, 5, groups=16, padding=2, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 24, (1, 7), padding=(0, 3), dilation=1), nn.LeakyReLU(),
        nn.Conv2d(24, 12, 3, dilation=2, padding=2, stride=(2, 1)), nn.GroupNorm(3, 12), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10, bias=False), nn.Softmax(1),
    ])  # fmt: skip


def sound() -> nn.Sequential:
    """One dimension: strided, transposed."""
    return nn.Sequential(*[
        nn.Conv1d(2, 8, 9, 4, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 3, groups=4), nn.Tanh(),
        nn.ConvTranspose1d(16, 6, 4, 2), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(6 * 10, 5),
    ])  # fmt: skip


def volume() -> nn.Sequential:
    """Three dimensions."""
    return nn.Sequential(*[
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, (1, 3, 3)),
        nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
    ])  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer, and a linear one on its last step."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.layer = kind(6, 10, layers, batch_first=True, bidirectional=both)  # type: ignore[call-arg, arg-type]
        self.head = nn.Linear(10 * (1 + both), 4)

    def forward(self, x: Tensor) -> Tensor:
        """Steps [N, T, 6] to scores [N, 4]."""
        return self.head(self.layer(x)[0][:, -1])


def recurrent_macs(gates: int, steps: int, layers: int = 1, both: bool = False) -> int:
    """MACs of `Recurrent`: of each step, the gates' products with the input and with the state."""
    ways = 1 + both
    inputs = [6] + [10 * ways] * (layers - 1)
    return steps * sum(ways * gates * 10 * (size + 10) for size in inputs) + 10 * ways * 4


class Text(nn.Module):
    """Tokens, embedded with their positions, through two encoder layers, averaged, to four scores."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(50, 32), nn.Parameter(torch.zeros(1, 40, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] to scores [N, 4]."""
        x = self.word(tokens) + self.place[:, : tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1) if self.causal else None
        return self.head(self.encoder(x, mask=mask).mean(1))


class BertLayer(nn.Module):
    """Attention and a two-layer net as the first papers wrote them, so that an optimizer knows them again."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens [N, T, 32], and a mask [N, 1, 1, T] of 0 and much less, to tokens."""
        q, k, v = (
            layer(x).view(x.shape[0], x.shape[1], 4, 8).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v)
        )
        heads = (torch.matmul(q, k.transpose(-1, -2)) / 8**0.5 + mask).softmax(-1)
        y = torch.matmul(heads, v).permute(0, 2, 1, 3).contiguous()
        x = self.first(self.o(y.view(y.shape[0], y.shape[1], 32)) + x)
        return self.second(self.narrow(functional.gelu(self.wide(x))) + x)


class Bert(nn.Module):
    """A small BERT: words, positions, types, two layers, four scores by the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.kind = nn.Embedding(50, 32), nn.Embedding(40, 32), nn.Embedding(2, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)
        self.layers = nn.ModuleList([BertLayer(), BertLayer()])
        self.register_buffer("places", torch.arange(40)[None])

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three times tokens [N, T] to scores [N, 4]."""
        places = self.place(self.places[:, : input_ids.shape[1]])
        x = self.norm(self.word(input_ids) + self.kind(token_type_ids) + places)
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x[:, 0])


class Two(nn.Module):
    """An image and some figures about it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.head = block(3, 8), nn.Linear(5, 8), nn.Bilinear(8, 8, 3)

    def forward(self, image: Tensor, figures: Tensor) -> Tensor:
        """An image [N, 3, H, W] and figures [N, 5] to scores [N, 3]."""
        return self.head(self.body(image).mean((2, 3)), self.side(figures))


class Einsum(nn.Module):
    """Attention spelt out in Einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.ParameterList([nn.Parameter(torch.zeros(16, 4, 5)) for _ in range(3)])
        self.out = nn.Parameter(torch.zeros(4, 5, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, 16] to tokens [N, T, 16]."""
        q, k, v = (torch.einsum("btc,chd->bhtd", x, weight) for weight in self.weight)
        heads = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v)
        return torch.einsum("bhtd,hdc->btc", heads, self.out)


class Sdpa(nn.Module):
    """torch's own attention, causal, as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, 32] to tokens [N, T, 32]."""
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(2))


class Stream(nn.Module):
    """An LSTM of two layers that is given its state and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 10, 2, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps [N, T, 6] and states [2, N, 10] to scores [N, 4] and states."""
        y, (h, c) = self.layer(x, (h, c))
        return self.head(y[:, -1]), h, c


class Photo(nn.Module):
    """One image as cameras give it: no batch, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 8), nn.Conv2d(8, 4, 1))

    def forward(self, photo: Tensor) -> Tensor:
        """A photo [H, W, 3] of values up to 255 to a map [H, W] of classes."""
        return self.body(photo.permute(2, 0, 1).unsqueeze(0).float() / 255).argmax(1)[0]


def vit() -> nn.Module:
    """torchvision's vision transformer, two layers of 32."""
    return ZOO.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def swin() -> nn.Module:
    """torchvision's Swin transformer, four blocks, the second of each pair shifted."""
    return ZOO.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10)


def zoo(name: str, **options: Any) -> nn.Module:
    """A network of torchvision without its trained weights."""
    return getattr(ZOO, name)(weights=None, num_classes=10, **options)
