"""Plain networks of AutoGrow (Wen et al. 2020, section 2.1): stages of single convolutions, no shortcuts."""

from collections.abc import Sequence

from torch import Tensor, nn

from compress.models.stages import Block, StageNet


class PlainBlock(Block):
    """One 3x3 convolution with batch norm and ReLU: [N, inp, H, W] to [N, out, H / stride, W / stride]."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out

    def sibling(self) -> "PlainBlock":
        """Return a block of stride 1 from this one's outputs to as many."""
        width = self.conv.weight.shape[0]
        return PlainBlock(width, width)


def plain3net(
    depths: Sequence[int] = (1, 1, 1),
    *,
    width: int = 16,
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> StageNet:
    """Plain3Net: three stages of `depths` convolutions, `width` filters in the first and twice as many in each next."""
    return _plain(depths, [width, 2 * width, 4 * width], classes, in_channels, stem)


def plain4net(
    depths: Sequence[int] = (1, 1, 1, 1),
    *,
    width: int = 64,
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> StageNet:
    """Plain4Net: four stages of `depths` convolutions; `stem="imagenet"` for images of 224 px."""
    return _plain(depths, [width, 2 * width, 4 * width, 8 * width], classes, in_channels, stem)


def _plain(depths: Sequence[int], widths: Sequence[int], classes: int, in_channels: int, stem: str) -> StageNet:
    return StageNet(
        PlainBlock, depths, widths, stem_width=widths[0], classes=classes, in_channels=in_channels, stem=stem
    )
