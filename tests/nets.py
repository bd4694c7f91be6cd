"""Small networks of any shape, for tests that look at what a network is made of."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a forward pass as a function of them and the inputs."""

    def __init__(self, run: Callable[..., object], /, **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


def conv(inp: int, out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inp, out, kernel, padding=kernel // 2, **options)


def headed(run: Callable[..., Tensor], width: int = 5, /, **parts: object) -> Net:
    """A net to [N, 4]: `run` makes a picture of `width` channels, a linear layer reads its average."""
    return Net(lambda net, *x: net.fc(run(net, *x).mean((2, 3))), **parts, fc=nn.Linear(width, 4))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of [N, C, H, W] dealt out to groups, as ShuffleNet does."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with no number that hides anything; variances stay above a half."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.double().named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = drawn.abs() + 0.5 if name.endswith("running_var") else drawn
    return model.eval()
