"""LeNet-5 (LeCun et al. 1998): two 5x5 convolutions and a few linear layers, for MNIST."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from compress.models.weights import he


class LeNet(nn.Module):
    """Images [N, in_channels, size, size] to logits [N, classes]; ReLU and max-pooling in place of the original's."""

    def __init__(
        self, c1: int, c2: int, hidden: Sequence[int], classes: int, in_channels: int, padding: int, size: int
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, c1, 5, padding=padding),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(c1, c2, 5),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.flatten = nn.Flatten()
        side = ((size + 2 * padding - 4) // 2 - 4) // 2  # each 5x5 kernel takes 4 pixels, each pool halves
        if side < 1:
            raise ValueError(f"lenet5: images of {size} px are too small for two 5x5 convolutions; give 12 px or more")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        features = c2 * side * side
        for number, width in enumerate(hidden, 1):
            layers[f"linear{number}"] = nn.Linear(features, width)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            features = width
        layers[f"linear{len(hidden) + 1}"] = nn.Linear(features, classes)
        self.classifier = nn.Sequential(layers)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.features(x)))
        return logits


def lenet5(
    c1: int = 6,
    c2: int = 16,
    hidden: Sequence[int] = (120, 84),
    *,
    classes: int = 10,
    in_channels: int = 1,
    padding: int = 2,
    size: int = 28,
) -> LeNet:
    """LeNet-5 with `c1` and `c2` filters and linear layers of the `hidden` widths, for images of `size` px.

    The defaults are LeCun's; `c1=20, c2=50, hidden=(500,), padding=0` is the variant that the pruning papers use.
    Raises ValueError where the images are too small for two 5x5 convolutions.
    """
    return LeNet(c1, c2, hidden, classes, in_channels, padding, size)
