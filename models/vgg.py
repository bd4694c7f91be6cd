"""VGG (Simonyan & Zisserman 2015, configuration D) in its forms for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from compress.models.weights import he

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLS = (2, 4, 7, 10, 13)
LAST_POOLS = ("max", "avg", "global")


class VGG(nn.Module):
    """Images [N, in_channels, size, size] to logits [N, classes]: 3x3 convolutions, halvings, linear layers."""

    def __init__(
        self,
        widths: Sequence[int],
        pools: Sequence[int],
        *,
        hidden: Sequence[int],
        classes: int,
        in_channels: int,
        size: int,
        bias: bool,
        norm: bool,
        hidden_norm: bool,
        last_pool: str,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, side = in_channels, size
        for number, width in enumerate(widths, 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            if norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if number in pools:
                kind = last_pool if number == max(pools) else "max"
                layers[f"pool{sorted(pools).index(number) + 1}"] = _pool(kind)
                side = 1 if kind == "global" else side // 2
            channels = width
        self.features = nn.Sequential(layers)
        self.flatten = nn.Flatten()
        layers = OrderedDict()
        features = channels * side * side
        for number, width in enumerate(hidden, 1):
            layers[f"linear{number}"] = nn.Linear(features, width)
            if hidden_norm:
                layers[f"norm{number}"] = nn.BatchNorm1d(width)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            features = width
        layers[f"linear{len(hidden) + 1}"] = nn.Linear(features, classes)
        self.classifier = nn.Sequential(layers)
        he(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.features(x)))
        return logits


def _pool(kind: str) -> nn.Module:
    if kind == "global":
        return nn.AdaptiveAvgPool2d(1)
    return nn.AvgPool2d(2) if kind == "avg" else nn.MaxPool2d(2)


def vgg(
    widths: Sequence[int],
    pools: Sequence[int],
    *,
    hidden: Sequence[int] = (),
    classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    bias: bool = False,
    norm: bool = True,
    hidden_norm: bool = True,
    last_pool: str = "max",
) -> VGG:
    """A VGG with one 3x3 convolution per entry of `widths` and a halving after each convolution numbered in `pools`.

    `size` is the images' side in px, convolutions are numbered from 1, `hidden` lists the widths of the linear layers
    before the last. `bias` is that of the convolutions, `norm` their batch norm, `hidden_norm` that of the hidden
    linear layers. `last_pool` is the kind of the last halving: "max", "avg", or "global" (the average over all pixels).
    Raises ValueError for a pool after a convolution that is not there, more halvings than `size` allows, or another
    kind of last pool.
    """
    if not widths:
        raise ValueError("vgg: widths is empty; give the number of filters of each convolution")
    if any(not 1 <= number <= len(widths) for number in pools) or len(set(pools)) < len(pools):
        raise ValueError(f"vgg: pools {list(pools)} must be different numbers of convolutions, 1 to {len(widths)}")
    if last_pool not in LAST_POOLS:
        raise ValueError(f"vgg: last_pool is {last_pool!r}; expected one of {', '.join(LAST_POOLS)}")
    halvings = len(pools) - (last_pool == "global")
    if size >> max(halvings, 0) < 1:
        raise ValueError(f"vgg: {halvings} halvings leave nothing of {size} px; give fewer pools or last_pool='global'")
    return VGG(
        widths,
        pools,
        hidden=hidden,
        classes=classes,
        in_channels=in_channels,
        size=size,
        bias=bias,
        norm=norm,
        hidden_norm=hidden_norm,
        last_pool=last_pool,
    )


def vgg16(
    widths: Sequence[int] = WIDTHS,
    pools: Sequence[int] = POOLS,
    *,
    hidden: Sequence[int] = (512,),
    classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    bias: bool = False,
    norm: bool = True,
    hidden_norm: bool = True,
    last_pool: str = "avg",
) -> VGG:
    """VGG16 for images of 32 px: 13 convolutions, five halvings, one hidden linear layer of 512; see `vgg`.

    The defaults are the variant that the pruning literature counts as 14.99 M parameters and 313 M
    multiply-accumulates (no bias in convolutions, the last pool an average).
    """
    return vgg(
        widths,
        pools,
        hidden=hidden,
        classes=classes,
        in_channels=in_channels,
        size=size,
        bias=bias,
        norm=norm,
        hidden_norm=hidden_norm,
        last_pool=last_pool,
    )
