"""DenseNet (Huang et al. 2017): every layer of a block reads everything the block made before it."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.models.stages import STEMS
from compress.models.weights import he


class DenseLayer(nn.Module):
    """`growth` new channels from all earlier ones; a 1x1 convolution to `bottleneck` channels comes first unless 0."""

    def __init__(self, inp: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(norm1=nn.BatchNorm2d(inp), relu1=nn.ReLU(inplace=True))
        if bottleneck:
            layers["conv1"] = nn.Conv2d(inp, bottleneck, 1, bias=False)
            layers["norm2"] = nn.BatchNorm2d(bottleneck)
            layers["relu2"] = nn.ReLU(inplace=True)
            layers["conv2"] = nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)
        else:
            layers["conv1"] = nn.Conv2d(inp, growth, 3, padding=1, bias=False)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return [N, growth, H, W] from the block's input and the outputs of the layers before."""
        x = torch.cat(features, 1)
        for layer in self.children():
            x = layer(x)
        return x


class DenseBlock(nn.ModuleDict):
    """Dense layers in a row: [N, C, H, W] to the concatenation [N, C + depth * growth, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and every layer's output, concatenated."""
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, classes]; names as in torchvision."""

    def __init__(
        self,
        depths: Sequence[int],
        growth: int,
        init: int,
        bottleneck: int,
        shrink: int,
        classes: int,
        in_channels: int,
        stem: str,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem is {stem!r}; expected one of {', '.join(STEMS)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "imagenet":
            layers["conv0"] = nn.Conv2d(in_channels, init, 7, 2, padding=3, bias=False)
            layers["norm0"] = nn.BatchNorm2d(init)
            layers["relu0"] = nn.ReLU(inplace=True)
            layers["pool0"] = nn.MaxPool2d(3, 2, padding=1)
        else:
            layers["conv0"] = nn.Conv2d(in_channels, init, 3, padding=1, bias=False)
        channels = init
        for number, depth in enumerate(depths, 1):
            names = [f"denselayer{index + 1}" for index in range(depth)]
            layers[f"denseblock{number}"] = DenseBlock(
                {name: DenseLayer(channels + index * growth, growth, bottleneck) for index, name in enumerate(names)}
            )
            channels += depth * growth
            if number < len(depths):
                layers[f"transition{number}"] = _transition(channels, channels // shrink)
                channels //= shrink
        layers[f"norm{len(depths) + 1}"] = nn.BatchNorm2d(channels)
        layers[f"relu{len(depths) + 1}"] = nn.ReLU(inplace=True)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def _transition(inp: int, out: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["norm"] = nn.BatchNorm2d(inp)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["conv"] = nn.Conv2d(inp, out, 1, bias=False)
    layers["pool"] = nn.AvgPool2d(2)
    return nn.Sequential(layers)


def densenet(
    depths: Sequence[int],
    *,
    growth: int = 12,
    init: int = 24,
    bottleneck: int = 0,
    shrink: int = 1,
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> DenseNet:
    """A DenseNet of blocks with `depths` layers of `growth` channels each, after a stem of `init` channels.

    `bottleneck` is the width of the 1x1 convolution in every layer (0: none), `shrink` what a transition divides its
    channels by (1: keeps them all). Raises ValueError for an unknown stem.
    """
    return DenseNet(depths, growth, init, bottleneck, shrink, classes, in_channels, stem)


def densenet40(*, growth: int = 12, init: int = 24, classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-40 for images of 32 px: three blocks of 12 layers, no bottleneck; the first paper has `init=16`."""
    return densenet([12, 12, 12], growth=growth, init=init, classes=classes, in_channels=in_channels)


def densenet100(*, growth: int = 12, init: int = 24, classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-100 for images of 32 px: three blocks of 32 layers, no bottleneck."""
    return densenet([32, 32, 32], growth=growth, init=init, classes=classes, in_channels=in_channels)


def densenet121(*, growth: int = 32, init: int = 64, classes: int = 1000, in_channels: int = 3) -> DenseNet:
    """DenseNet-121-BC for images of 224 px: bottlenecks of 4 * growth, halving transitions; names as torchvision's."""
    return densenet(
        [6, 12, 24, 16],
        growth=growth,
        init=init,
        bottleneck=4 * growth,
        shrink=2,
        classes=classes,
        in_channels=in_channels,
        stem="imagenet",
    )
