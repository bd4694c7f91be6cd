"""A densely connected network of the CondenseNet kind (Huang et al. 2018): every layer reads all layers before it.

As there: connections across blocks too, each block's layers twice as wide as those before ("exponentially increasing
growth rate"), a 1x1 and a grouped 3x3 convolution in each. Differs: the 1x1 convolution is not grouped. Which of its
inputs a layer can do without is left to a method, such as LWP.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.models.weights import he


class CondenseLayer(nn.Module):
    """`growth` new channels from all earlier ones: 1x1 to `bottleneck` channels, then 3x3 in groups."""

    def __init__(self, inp: int, bottleneck: int, growth: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inp)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inp, bottleneck, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, padding=1, groups=groups, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return [N, growth, H, W] from the outputs of all layers before."""
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        out: Tensor = self.conv2(self.relu2(self.norm2(x)))
        return out


class CondenseNet(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, classes]; H and W are halved between blocks."""

    def __init__(
        self,
        depths: Sequence[int],
        growth: int,
        init: int,
        bottleneck: int,
        groups: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, init, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.blocks = nn.ModuleList()
        channels = init
        for number, depth in enumerate(depths):
            wide = growth * 2**number
            layers = (CondenseLayer(channels + k * wide, bottleneck * wide, wide, groups) for k in range(depth))
            self.blocks.append(nn.ModuleList(layers))
            channels += depth * wide
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        features = [self.conv0(x)]
        for number, block in enumerate(self.blocks):
            if number:
                features = [self.pool(each) for each in features]  # one by one: each may be left out for itself
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
        x = self.relu(self.norm(torch.cat(features, 1)))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def condense(
    depths: Sequence[int] = (6, 6, 6),
    *,
    growth: int = 8,
    init: int | None = None,
    bottleneck: int = 4,
    groups: int = 4,
    classes: int = 10,
    in_channels: int = 3,
) -> CondenseNet:
    """Blocks of `depths` layers with `growth`, 2 `growth`, 4 `growth`, ... channels each, after a stem of `init`.

    `init` is twice `growth` where it is not given; `bottleneck` is the width of the 1x1 convolutions, in channels for
    each new one; `groups` is that of the 3x3 convolutions (1: not grouped). Raises ValueError where `growth` is no
    multiple of it, or `depths` holds no numbers of 1 or more.
    """
    if not depths or min(depths) < 1:
        raise ValueError(f"condense: depths {list(depths)} must be numbers of layers, each 1 or more")
    if growth % groups:
        raise ValueError(f"condense: growth {growth} is no multiple of groups {groups}")
    return CondenseNet(depths, growth, init or 2 * growth, bottleneck, groups, classes, in_channels)
