"""Residual networks (He et al. 2016) for CIFAR and ImageNet, and AutoGrow's with any depths."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from compress.models.stages import Block, StageNet

OPTIONS = ("A", "B")


class Subsample(nn.Module):
    """Every `stride`-th pixel: the parameter-free shortcut of option A."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return x [N, C, H, W] as [N, C, ceil(H / stride), ceil(W / stride)]."""
        return x[:, :, :: self.stride, :: self.stride]


def shortcut(inp: int, out: int, stride: int, option: str) -> nn.Module:
    """What takes a block's input [N, inp, H, W] to its output's shape: nothing, where neither stride nor width changes.

    Option A subsamples, and the block adds zero channels at the end; option B is a 1x1 convolution with batch norm.
    """
    if option not in OPTIONS:
        raise ValueError(f"option is {option!r}; expected A (zero padding) or B (1x1 convolution)")
    if stride == 1 and inp == out:
        return nn.Identity()
    if option == "A":
        return Subsample(stride)
    return nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class Residual(Block):
    """A block whose input, taken through `downsample`, is added to its output."""

    downsample: nn.Module

    def join(self, x: Tensor, out: Tensor) -> Tensor:
        """Return ReLU(out + shortcut of x).

        Option A's zero channels come at the end, so that channel i stays channel i whatever the widths; how many there
        are is read off the tensors, because channels come and go while the network lives.
        """
        carried: Tensor = self.downsample(x)
        if isinstance(self.downsample, Subsample):
            carried = nn.functional.pad(carried, (0, 0, 0, 0, 0, out.shape[1] - carried.shape[1]))
        return nn.functional.relu(out + carried)


class BasicBlock(Residual):
    """Two 3x3 convolutions, `inner` filters between them: [N, inp, H, W] to [N, out, H / stride, W / stride]."""

    def __init__(self, inp: int, out: int, stride: int = 1, option: str = "B", inner: int | None = None) -> None:
        super().__init__()
        inner = inner or out
        self.conv1 = nn.Conv2d(inp, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = shortcut(inp, out, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.join(x, self.bn2(self.conv2(out)))

    def sibling(self) -> "BasicBlock":
        """Return a block with an identity shortcut, as wide outside and inside as this one."""
        width = self.conv2.weight.shape[0]
        return BasicBlock(width, width, inner=self.conv1.weight.shape[0])


class Bottleneck(Residual):
    """1x1, 3x3 (which has the stride), 1x1; `inner` filters, a quarter of `out`, in the first two."""

    def __init__(self, inp: int, out: int, stride: int = 1, option: str = "B", inner: int | None = None) -> None:
        super().__init__()
        inner = inner or out // 4
        self.conv1 = nn.Conv2d(inp, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = shortcut(inp, out, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.join(x, self.bn3(self.conv3(out)))

    def sibling(self) -> "Bottleneck":
        """Return a block with an identity shortcut, as wide outside and inside as this one's 3x3 convolution."""
        width = self.conv3.weight.shape[0]
        return Bottleneck(width, width, inner=self.conv2.weight.shape[0])


def resnet_cifar(
    depths: Sequence[int],
    widths: Sequence[int] = (16, 32, 64),
    *,
    classes: int = 10,
    in_channels: int = 3,
    option: str = "A",
    stem: str = "cifar",
) -> StageNet:
    """Stages of `depths` basic blocks with `widths` filters; the stem is as wide as the first stage.

    `option` is the shortcut's where the width changes: "A" pads with zero channels, "B" is a 1x1 convolution. With
    option A the widths must not fall from one stage to the next, or ValueError is raised.
    """
    if option == "A" and list(widths) != sorted(widths):
        raise ValueError(f"option A adds channels and never drops any, but the widths are {list(widths)}; use option B")
    return StageNet(
        partial(BasicBlock, option=option),
        depths,
        widths,
        stem_width=widths[0],
        classes=classes,
        in_channels=in_channels,
        stem=stem,
    )


def resnet20(*, multiplier: int = 1, option: str = "A", classes: int = 10, in_channels: int = 3) -> StageNet:
    """ResNet-20 for images of 32 px; `multiplier` times 16, 32 and 64 filters (He et al. 2016, section 4.2)."""
    widths = [multiplier * width for width in (16, 32, 64)]
    return resnet_cifar([3, 3, 3], widths, classes=classes, in_channels=in_channels, option=option)


def resnet32(*, multiplier: int = 1, option: str = "A", classes: int = 10, in_channels: int = 3) -> StageNet:
    """ResNet-32 for images of 32 px; `multiplier` times 16, 32 and 64 filters (3, 4 and 5 in AdeNeL, table 3)."""
    widths = [multiplier * width for width in (16, 32, 64)]
    return resnet_cifar([5, 5, 5], widths, classes=classes, in_channels=in_channels, option=option)


def resnet18(*, width: int = 64, classes: int = 1000, in_channels: int = 3) -> StageNet:
    """ResNet-18 for images of 224 px, laid out as torchvision's: its weights can be loaded."""
    return StageNet(
        BasicBlock,
        [2, 2, 2, 2],
        [width, 2 * width, 4 * width, 8 * width],
        stem_width=width,
        classes=classes,
        in_channels=in_channels,
        stem="imagenet",
        names="layer",
    )


def basic3resnet(
    depths: Sequence[int] = (1, 1, 1),
    *,
    width: int = 16,
    option: str = "B",
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> StageNet:
    """Basic3ResNet: three stages of `depths` basic blocks (AutoGrow, section 2.1; its code has option B)."""
    widths = [width, 2 * width, 4 * width]
    return resnet_cifar(depths, widths, classes=classes, in_channels=in_channels, option=option, stem=stem)


def basic4resnet(
    depths: Sequence[int] = (1, 1, 1, 1),
    *,
    width: int = 64,
    option: str = "B",
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> StageNet:
    """Basic4ResNet: four stages of `depths` basic blocks; `stem="imagenet"` for images of 224 px."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    return resnet_cifar(depths, widths, classes=classes, in_channels=in_channels, option=option, stem=stem)


def bottleneck4resnet(
    depths: Sequence[int] = (1, 1, 1, 1),
    *,
    width: int = 64,
    classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
) -> StageNet:
    """Bottleneck4ResNet: four stages of `depths` bottlenecks, four times as wide outside as inside."""
    return StageNet(
        Bottleneck,
        depths,
        [4 * width, 8 * width, 16 * width, 32 * width],
        stem_width=width,
        classes=classes,
        in_channels=in_channels,
        stem=stem,
    )
