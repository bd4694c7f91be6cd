"""What plain and residual networks share: a stem, stages of blocks, a global average, one linear layer."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from compress.models.weights import he

STEMS = ("cifar", "imagenet")


class Block(nn.Module):
    """One sub-module of a stage."""

    def sibling(self) -> "Block":
        """Return a new block that may follow this one: same shape in and out, at this block's present widths."""
        raise NotImplementedError(f"{type(self).__name__} has no sibling()")


class StageNet(nn.Module):
    """Images [N, in_channels, H, W] to logits [N, classes]; the first block of every later stage halves H and W.

    `block(in, out, stride)` makes a block. The stages are `nn.Sequential`s called stage1, stage2, ... (or whatever
    `names` says), so that depth can be added by appending to them.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], Block],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        stem_width: int,
        classes: int,
        in_channels: int,
        stem: str = "cifar",
        names: str = "stage",
    ) -> None:
        super().__init__()
        if len(depths) != len(widths) or min(depths) < 1:
            raise ValueError(f"depths {list(depths)} must be {len(widths)} numbers of blocks, each 1 or more")
        if stem not in STEMS:
            raise ValueError(f"stem is {stem!r}; expected one of {', '.join(STEMS)}")
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, stem_width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        self.stages = tuple(f"{names}{number}" for number in range(1, len(depths) + 1))
        channels = stem_width
        for index, (name, depth, width) in enumerate(zip(self.stages, depths, widths, strict=True)):
            first = block(channels, width, 1 if index == 0 else 2)
            self.add_module(name, nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1))))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits

    def new_block(self, stage: str) -> Block:
        """Return a fresh block that can be appended to `stage`: identity shape, at the widths the stage has now.

        It lies on the device of the stage, in its dtype and mode. Raises ValueError for a stage that is not there.
        """
        if stage not in self.stages:
            raise ValueError(f"there is no stage {stage!r} in this network; it has {', '.join(self.stages)}")
        last = next(reversed(list(self.get_submodule(stage).children())))
        if not isinstance(last, Block):
            raise ValueError(f"{stage} ends with a {type(last).__name__}, which is no block of this network")
        block = last.sibling()
        he(block)
        example = next(last.parameters())
        return block.to(example.device, example.dtype).train(last.training)
