"""Pre-activation residual networks (He et al. 2016b) with squeeze-excitation (Hu et al. 2018), for small images.

Differs: a shortcut that narrows the picture averages before its 1x1 convolution, so that every pixel is read; a gate
is twice a sigmoid, 1 where it begins; GELU stands for ReLU, since behind a norm that begins at zero, as AutoGrow's do,
ReLU would hand no gradient back, and the block would never learn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.models.stages import Block, StageNet

LEAST = 4  # channels to which a block is squeezed


class Gate(nn.Module):
    """[N, width, H, W] to the same, each channel times a number from 0 to 2 that follows from the averages of all."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.act = nn.GELU()
        self.expand = nn.Conv2d(hidden, width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with gates of 1."""
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its channels weighed."""
        return x * (2 * torch.sigmoid(self.expand(self.act(self.reduce(self.pool(x))))))


class PreBlock(Block):
    """Norm, GELU and a 3x3 convolution, twice, and a gate: [N, inp, H, W] to [N, out, H / stride, W / stride], added
    to what came in.
    """

    def __init__(self, inp: int, out: int, stride: int = 1, *, squeeze: int = 0, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or out
        self.bn1 = nn.BatchNorm2d(inp)
        self.act = nn.GELU()
        self.conv1 = nn.Conv2d(inp, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        self.gate = Gate(out, squeeze) if squeeze else nn.Identity()
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        project = nn.Sequential(pool, nn.Conv2d(inp, out, 1, bias=False))
        self.downsample = nn.Identity() if stride == 1 and inp == out else project

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = self.act(self.bn1(x))
        carried = x if isinstance(self.downsample, nn.Identity) else self.downsample(active)
        out: Tensor = self.gate(self.conv2(self.act(self.bn2(self.conv1(active)))))
        return out + carried

    def sibling(self) -> "PreBlock":
        """Return a block with an identity shortcut, as wide outside, inside and in its gate as this one."""
        width, inner = self.conv2.weight.shape[0], self.conv1.weight.shape[0]
        squeeze = self.gate.reduce.weight.shape[0] if isinstance(self.gate, Gate) else 0
        return PreBlock(width, width, squeeze=squeeze, inner=inner)


class PreActNet(StageNet):
    """A `StageNet` whose stem is a convolution alone; norm and GELU come before the average, on what blocks add up."""

    def __init__(
        self, depths: Sequence[int], widths: Sequence[int], squeeze: int, classes: int, in_channels: int, stem: str
    ) -> None:
        def block(inp: int, out: int, stride: int) -> PreBlock:
            return PreBlock(inp, out, stride, squeeze=max(LEAST, out // squeeze) if squeeze else 0)

        width = widths[0]
        super().__init__(block, depths, widths, stem_width=width, classes=classes, in_channels=in_channels, stem=stem)
        del self.relu
        self.bn1, self.act = nn.BatchNorm2d(widths[-1]), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        x = self.maxpool(self.conv1(x))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(self.act(self.bn1(x)))))
        return logits


def preact(
    depths: Sequence[int] = (2, 2, 2),
    widths: Sequence[int] = (16, 32, 64),
    *,
    squeeze: int = 4,
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> PreActNet:
    """Stages of `depths` pre-activation blocks with `widths` filters, each but the first stage halving the picture.

    `squeeze` is what a gate divides its block's channels by, to four at least; 0 leaves the gates out. A `stem` of
    "imagenet" is for images of more than 64 px, which it narrows to a quarter a side. Stages grow in depth, all
    convolutions in width. Raises ValueError for other numbers of depths than of widths, and for an unknown stem.
    """
    return PreActNet(depths, widths, squeeze, classes, in_channels, stem)
