"""Blocks of which nets at random are built, to see that what is called free is exact: each [N, 8, 8, 8] to the same."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as fn
from nets import Net, conv, shuffled
from torch import Tensor, nn

W = 8  # channels


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def written(x: Tensor, upto: int) -> Tensor:
    x = x.clone()
    x[:, :upto] = x[:, :upto].relu()
    return x


def every_other(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2] *= 2
    return x


def shifted(x: Tensor) -> Tensor:
    k, out = x.shape[1] // 4, torch.zeros_like(x)
    out[:, :k, 1:], out[:, k:] = x[:, :k, :-1], x[:, k:]
    return out


def frozen_norm(s: Net, x: Tensor) -> Tensor:
    scale = s.g.reshape(1, -1, 1, 1) * (s.v.reshape(1, -1, 1, 1).abs() + 1).rsqrt()
    return x * scale + s.h.reshape(1, -1, 1, 1)


def standardised(s: Net, x: Tensor) -> Tensor:
    w = s.a.weight - s.a.weight.mean((1, 2, 3), keepdim=True)
    return fn.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 0.1), s.a.bias, padding=1)


def selected(s: Net, x: Tensor) -> Tensor:
    both = torch.stack([s.a(x).relu(), s.b(x).relu()], 1)
    z = s.z(both.sum(1).mean((2, 3))).relu()
    return (both * torch.stack([s.c(z), s.d(z)], 1).softmax(1)[..., None, None]).sum(1)


def attended(s: Net, x: Tensor) -> Tensor:
    q, k, v = (part.flatten(2) for part in s.a(x).chunk(3, 1))
    return (v @ (q.transpose(1, 2) @ k).softmax(-1)).view_as(x)


def involved(x: Tensor, kernels: Tensor) -> Tensor:
    """Every pixel has a kernel of its own, the same for all channels."""
    patches = fn.unfold(x, 3, padding=1).unflatten(1, (-1, 9)).unflatten(3, tuple(x.shape[2:]))
    return (patches * kernels[:, None]).sum(2)


def swapped(x: Tensor) -> Tensor:
    one, other = x.split(x.shape[1] // 2, 1)
    return torch.cat([other, one], 1)


def grouped_mean(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return (x.view(n, 2, c // 2, h, w) - x.view(n, 2, c // 2, h, w).mean(1, keepdim=True)).view(n, c, h, w)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    # layers
    "residual": lambda: Net(lambda s, x: x + s.b(fn.relu(s.a(x))), a=conv(W, 3), b=conv(3, W)),
    "grouped": lambda: nn.Sequential(conv(W, 4, groups=2), nn.BatchNorm2d(4), conv(4, W, groups=4)),
    "depthwise": lambda: nn.Sequential(conv(W, W, groups=W), nn.ReLU6(), conv(W, W, 1)),
    "squeeze and excite": lambda: Net(
        lambda s, x: x * s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid(), a=conv(W, 2, 1), b=conv(2, W, 1)
    ),
    "dense": lambda: Net(lambda s, x: s.b(torch.cat([x, s.a(x), x], 1)), a=conv(W, 3), b=conv(19, W)),
    "up and down": lambda: nn.Sequential(nn.ConvTranspose2d(W, 6, 2, 2, groups=2), nn.AvgPool2d(2), conv(6, W)),
    "linear": lambda: Net(lambda s, x: s.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.Linear(W, W)),
    "twice": lambda: Net(lambda s, x: s.a(s.a(x).relu()), a=conv(W, W)),
    "shared by two": lambda: Net(lambda s, x: s.b(s.a(x).relu()) + s.b(x), a=conv(W, W), b=conv(W, W)),
    "attention": lambda: Net(attended, a=conv(W, 3 * W, 1)),
    "selected branches": lambda: Net(
        selected, a=conv(W, W), b=conv(W, W, 1), z=nn.Linear(W, 4), c=nn.Linear(4, W), d=nn.Linear(4, W)
    ),
    # norms
    "group norm": lambda: nn.GroupNorm(4, W),
    "group norm of one group": lambda: nn.GroupNorm(1, W),
    "instance norm": lambda: nn.InstanceNorm2d(W, affine=True),
    "layer norm": lambda: Net(lambda s, x: s.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(W)),
    "norm and slope": lambda: nn.Sequential(nn.BatchNorm2d(W), nn.PReLU(W)),
    "frozen norm": lambda: Net(frozen_norm, **{name: nn.Buffer(torch.rand(W)) for name in "gvh"}),
    "standardised": lambda: Net(standardised, a=conv(W, W)),
    # parameters and buffers by themselves
    "scaled": lambda: Net(lambda s, x: x * s.k + s.l, k=parameter(W, 1, 1), l=parameter(1, W, 1, 1)),
    "gate": lambda: Net(lambda s, x: (1 + s.k).sigmoid() * x, k=parameter(W, 1, 1)),
    "positions": lambda: Net(lambda s, x: x + s.k, k=parameter(1, W, 8, 8)),
    "blur": lambda: Net(
        lambda s, x: fn.conv2d(x, s.k, padding=1, groups=x.shape[1]), k=nn.Buffer(torch.ones(W, 1, 3, 3) / 9)
    ),
    "fixed bank": lambda: Net(lambda s, x: fn.conv2d(x, s.k), k=nn.Buffer(torch.rand(W, W, 1, 1))),
    "weight through tanh": lambda: Net(lambda s, x: fn.conv2d(x, s.a.weight.tanh(), padding=1), a=conv(W, W)),
    "weight read as a whole": lambda: Net(lambda s, x: s.a(x) / (1 + s.a.weight.abs().sum()), a=conv(W, W)),
    "a ramp": lambda: Net(lambda s, x: x * torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None, None]),
    # channels that move
    "shuffle": lambda: Net(lambda s, x: s.a(shuffled(x, 2)), a=conv(W, W, groups=2)),
    "halves": lambda: Net(lambda s, x: torch.cat([(p := x.chunk(2, 1))[1], s.a(p[0])], 1), a=conv(4, 4)),
    "halves change places": lambda: Net(lambda s, x: swapped(x)),
    "glu": lambda: Net(lambda s, x: fn.glu(s.a(x), 1), a=conv(W, 2 * W)),
    "pixels": lambda: Net(lambda s, x: fn.pixel_shuffle(s.a(fn.pixel_unshuffle(x, 2)), 2), a=conv(32, 32, 1)),
    "patches": lambda: Net(
        lambda s, x: fn.fold(s.a(fn.unfold(x, 2, stride=2)), 8, 2, stride=2), a=nn.Conv1d(32, 32, 1)
    ),
    "involution": lambda: Net(lambda s, x: involved(x, s.a(x)), a=conv(W, 9)),
    "outer product": lambda: Net(
        lambda s, x: x * s.c((s.a(x)[:, :, None] * s.b(x)[:, None]).flatten(1, 2)),
        a=conv(W, 3, 1),
        b=conv(W, 5, 1),
        c=conv(15, W, 1),
    ),
    "flipped": lambda: Net(lambda s, x: x.flip(1)),
    "rolled": lambda: Net(lambda s, x: x.roll(1, 1)),
    "sorted": lambda: Net(lambda s, x: x.sort(1).values),
    "padded": lambda: Net(lambda s, x: s.a(fn.pad(x, (0, 0, 0, 0, 0, 4))), a=conv(12, W)),
    "a number": lambda: Net(lambda s, x: x.view(len(x), W, -1, 8)),
    "groups less their mean": lambda: Net(lambda s, x: grouped_mean(x)),
    # channels treated apart
    "slices": lambda: Net(lambda s, x: torch.cat([x[:, :3], s.a(x)[:, 3:]], 1), a=conv(W, W)),
    "relu on a quarter": lambda: Net(lambda s, x: written(x, x.shape[1] // 4)),
    "relu on five": lambda: Net(lambda s, x: written(x, 5)),
    "every other": lambda: Net(lambda s, x: every_other(x)),
    "shifted": lambda: Net(lambda s, x: shifted(x)),
    "over their number": lambda: Net(lambda s, x: x / x.shape[1]),
    "by whether they are many": lambda: Net(lambda s, x: x if x.shape[1] >= W else -x),
    # what runs over an axis
    "softmax": lambda: nn.Softmax(1),
    "softmax over pixels": lambda: Net(lambda s, x: x.flatten(2).softmax(-1).view_as(x)),
    "less the mean": lambda: Net(lambda s, x: x - x.mean(1, keepdim=True)),
    "over the deviation": lambda: Net(lambda s, x: x / (1 + x.std((2, 3), keepdim=True))),
    "length 1": lambda: Net(lambda s, x: fn.normalize(x, dim=1)),
    "length 1 over pixels": lambda: Net(lambda s, x: fn.normalize(x.flatten(2), dim=2).view_as(x)),
    "running sum": lambda: Net(lambda s, x: x.cumsum(1) / 8),
    "running sum of rows": lambda: Net(lambda s, x: x.cumsum(3) / 8),
    "largest of branches": lambda: Net(lambda s, x: torch.stack([s.a(x), x]).amax(0), a=conv(W, W)),
    # pixels that move
    "pooled and back": lambda: Net(lambda s, x: fn.interpolate(fn.max_pool2d(x, 2), scale_factor=2)),
    "rows and columns": lambda: Net(lambda s, x: x.transpose(2, 3) + x.flip(3).roll(1, 2)),
    "mirrored edge": lambda: Net(lambda s, x: fn.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]),
    "one row at a time": lambda: Net(
        lambda s, x: fn.interpolate(fn.max_pool1d(x.flatten(2), 2), scale_factor=2.0).view_as(x)
    ),
    "where": lambda: Net(lambda s, x: torch.where(x > 0, s.a(x), x.clamp(-1, 1)), a=conv(W, W)),
}


def chain(names: Sequence[str]) -> nn.Module:
    """A net of these blocks, the same with each call."""
    torch.manual_seed(0)
    return nn.Sequential(conv(3, W), *(BLOCKS[name]() for name in names), conv(W, 5), nn.Flatten(2))
