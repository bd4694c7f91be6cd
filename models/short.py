"""A short convolutional network for small images: it begins with the images' own statistics and as an identity.

After the networks of the airbench line of work (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU"); there
the widths are those of one data set, the logits are scaled, and norms have no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (40, 136, 136)
CONVS = (2, 3)
EPS = 5e-4  # added to variances of patches, which are those of normalised pixels
CHUNK = 250  # images whose patches are in memory at a time


class Block(nn.Module):
    """[N, inputs, H, W] to [N, width, H / 2, W / 2]: a convolution and a halving, then one or two convolutions more.

    With three convolutions the last one's output is added to what the halving left.
    """

    def __init__(self, inputs: int, width: int, convs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(width)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False) if convs == 3 else None
        self.norm3 = nn.BatchNorm2d(width) if convs == 3 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make of every convolution a partial identity: its first filters hand on what they are given."""
        for conv in (self.conv1, self.conv2, self.conv3):
            if conv is not None:
                conv.reset_parameters()
                nn.init.dirac_(conv.weight.detach()[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, width, H / 2, W / 2]."""
        x = self.act(self.norm1(self.pool(self.conv1(x))))
        y = self.norm2(self.conv2(x))
        if self.conv3 is not None and self.norm3 is not None:
            y = x + self.norm3(self.conv3(self.act(y)))
        out: Tensor = self.act(y)
        return out


class Short(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, classes]: a fixed stem that whitens patches, and a few blocks."""

    def __init__(self, widths: Sequence[int], *, convs: int, classes: int, in_channels: int) -> None:
        super().__init__()
        directions = 4 * in_channels  # as many as a patch of 2 x 2 pixels has numbers
        self.stem = nn.Conv2d(in_channels, 2 * directions, 2)
        self.stem.weight.requires_grad_(False)
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        self.act = nn.GELU()
        inputs = [2 * directions, *widths]
        blocks = (Block(before, width, convs) for before, width in pairwise(inputs))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs[-1], classes, bias=False)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the stem to the patches' principal directions over the roots of their variances, and their opposites.

        images [N, in_channels, H, W], normalised as the network will get them. Both signs, since GELU keeps one.
        """
        size = self.stem.weight[0].numel()
        moments, count = torch.zeros(size, size, dtype=torch.float64), 0
        for some in torch.split(images, CHUNK):
            patches = nn.functional.unfold(some, 2).transpose(1, 2).reshape(-1, size)
            moments += (patches.T @ patches).double()
            count += len(patches)
        variances, directions = torch.linalg.eigh(moments / count)
        filters = (directions / (variances.clamp(min=0) + EPS).sqrt()).T.flip(0)  # the largest variance first
        self.stem.weight.copy_(torch.cat([filters, -filters]).view_as(self.stem.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        logits: Tensor = self.head(self.blocks(self.act(self.stem(x))).amax((2, 3)))
        return logits


def short(
    widths: Sequence[int] = WIDTHS, *, convs: int = 2, classes: int = 10, in_channels: int = 3, size: int = 32
) -> Short:
    """A short network with one block for each entry of `widths`, and `convs` (2 or 3) convolutions in each.

    A 2x2 convolution without padding, whose 8 x `in_channels` filters `prepare` takes from the images and which are
    never trained; blocks that halve the picture; the maximum over all pixels; a linear layer without bias. The default
    has 40.65 M multiply-accumulates and 574,312 parameters on images of 32 px. `size` is the images' side in px: blocks
    must leave something of it. Raises ValueError where they do not, or for another number of convolutions.
    """
    if not widths:
        raise ValueError("short: widths is empty; give the number of filters of each block")
    if convs not in CONVS:
        raise ValueError(f"short: convs is {convs}; a block has 2 or 3 convolutions")
    if (size - 1) >> len(widths) < 1:
        raise ValueError(f"short: {len(widths)} halvings leave nothing of {size} px; give fewer widths")
    return Short(widths, convs=convs, classes=classes, in_channels=in_channels)
