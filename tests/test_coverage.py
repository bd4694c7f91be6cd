"""Whatever a network is built from: it is read, and then every edit is exact, or it is frozen with its reason."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from compress.cost import measure
from compress.finalize import silence
from compress.graph import Graph
from compress.surgery import Surgeon, fit, survey
from compress.trace import Shape, each, flat

SHAPE = (3, 8, 8)
C = 6


class Net(nn.Module):
    """Modules and parameters by name, and a forward pass as a function of them and the inputs."""

    def __init__(self, run: Callable[..., object], **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


def conv(inp: int, out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, padding=kernel // 2, **options)


def headed(run: Callable[..., Tensor], width: int = 5, **parts: object) -> Net:
    """A net to [N, 4]: `run` makes a picture of `width` channels, a linear layer reads its average."""
    return Net(lambda net, *x: net.fc(run(net, *x).mean((2, 3))), **parts, fc=nn.Linear(width, 4))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def learner(net: Net, x: Tensor) -> object:
    """With an auxiliary head that only training sees."""
    y = fn.relu(net.n(net.a(x)))
    out = net.fc(fn.relu(net.b(y)).mean((2, 3)))
    return (
        (out, net.aux(fn.dropout2d(net.drop(net.side(y)), training=net.training).flatten(1))) if net.training else out
    )


def supervised(net: Net, x: Tensor) -> object:
    """With a head that reads both stages in training, and only the last one later."""
    y = fn.relu(net.a(x))
    z = fn.relu(net.b(y))
    out = net.fc(z.mean((2, 3)))
    return [net.fc(y.mean((2, 3))), out] if net.training else out


def attended(net: Net, x: Tensor) -> Tensor:
    q, k, v = (part.flatten(2) for part in net.qkv(net.a(x)).chunk(3, 1))
    weights = torch.einsum("ncs,nct->nst", q, k).softmax(-1)
    return net.fc(net.o(torch.einsum("nst,nct->ncs", weights, v).unsqueeze(-1)).mean((2, 3)))


def gated(net: Net, x: Tensor) -> Tensor:
    y = net.n(net.a(x))
    gate = fn.hardsigmoid(net.up(fn.relu(net.down(y.mean((2, 3), keepdim=True)))))
    return net.b(y * gate)


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    return Net(
        lambda s, x: s.fc(s.r(fn.relu(s.a(x)).flatten(2).transpose(1, 2))[0].mean(1)),
        a=conv(3, C), r=kind(C, 5, batch_first=True), fc=nn.Linear(5, 4))  # fmt: skip


def tied_linear() -> nn.Module:
    net = Net(
        lambda s, x: s.c(fn.relu(s.b(fn.relu(s.a(x.flatten(1)))))),
        a=nn.Linear(192, C),
        b=nn.Linear(C, C),
        c=nn.Linear(C, C),
    )  # noqa: E501
    net.c.weight = net.b.weight
    return net


def tied_embedding() -> nn.Module:
    net = Net(
        lambda s, x: s.out(fn.relu(s.b(fn.relu(s.a(s.table(x.long()).mean(1)))))),
        table=nn.Embedding(9, C), a=nn.Linear(C, 5), b=nn.Linear(5, C), out=nn.Linear(C, 9, bias=False))  # fmt: skip
    net.out.weight = net.table.weight
    return net


def own(s: Net, x: Tensor) -> Tensor:
    return fn.conv2d(fn.relu(fn.batch_norm(fn.conv2d(x, s.w, s.c, padding=1), s.m, s.v, s.g, s.h)), s.u)


READ: dict[str, tuple[Callable[[], nn.Module], Shape, set[str]]] = {
    "transposed": (
        lambda: headed(lambda s, x: s.d(fn.elu(s.c(fn.elu(s.b(fn.elu(s.a(x))))))), a=conv(3, 12),
            b=nn.ConvTranspose2d(12, 12, 3, 2, groups=4), c=nn.ConvTranspose2d(12, 4, 2), d=conv(4, 5)),
        SHAPE, {"a", "b", "c", "d"}),
    "pixel shuffle and back": (
        lambda: headed(lambda s, x: s.c(fn.pixel_unshuffle(s.b(fn.pixel_shuffle(s.a(x), 2)), 4)),
            a=conv(3, 12), b=conv(3, 2), c=conv(32, 5)),
        SHAPE, {"a", "b", "c"}),
    "squeeze and excite": (
        lambda: headed(gated, a=conv(3, C), n=nn.BatchNorm2d(C), down=conv(C, 2, 1), up=conv(2, C, 1), b=conv(C, 5)),
        SHAPE, {"a", "down", "b"}),
    "a module called on two inputs": (
        lambda: headed(lambda s, x: s.b(s.m(fn.relu(s.a(x))) * s.m(fn.relu(s.c(x.flip(1))))),
            a=conv(3, C), c=conv(3, C), m=conv(C, 4), b=conv(4, 5)),
        SHAPE, {"a", "m", "b"}),
    "tied linear layers": (tied_linear, SHAPE, set()),
    "a slope for each channel": (
        lambda: headed(lambda s, x: s.b(s.p(s.a(x))), a=conv(3, C), p=nn.PReLU(C), b=conv(C, 5)), SHAPE, {"a", "b"}),
    "bare parameters": (
        lambda: headed(lambda s, x: s.b(s.a(x) * s.k + s.l[None, :, None, None]), a=conv(3, C), k=parameter(C, 1, 1),
            l=parameter(C), b=conv(C, 5)),
        SHAPE, {"a", "b"}),
    "functional calls": (
        lambda: headed(own, w=parameter(C, 3, 3, 3), c=parameter(C), m=nn.Buffer(torch.zeros(C)),
            v=nn.Buffer(torch.ones(C)), g=parameter(C), h=parameter(C), u=parameter(5, C, 1, 1)),
        SHAPE, {"w", "u"}),
    "several outputs": (
        lambda: Net(lambda s, x: {"one": [s.b(y := fn.relu(s.a(x)))], "two": (s.c(y).mean((2, 3)), y.sum())},
            a=conv(3, C), b=conv(C, 5), c=conv(C, 2)),
        SHAPE, set()),
    "several outputs of several layers": (
        lambda: Net(lambda s, x: {"one": [s.b(y := fn.relu(s.a(x)))], "two": (s.c(y).mean((2, 3)), None)},
            a=conv(3, C), b=conv(C, 5), c=conv(C, 2)),
        SHAPE, {"a"}),
    "two inputs": (
        lambda: headed(lambda s, x, y: s.c(fn.relu(s.a(x) + s.b(y)[:, :, None, None])),
            a=conv(3, C), b=nn.Linear(10, C), c=conv(C, 5)),
        (SHAPE, (10,)), {"a", "c"}),
    "a vector": (lambda: nn.Sequential(nn.Linear(10, C), nn.ReLU(), nn.Linear(C, 4)), [10], {"0"}),
    "an auxiliary head": (
        lambda: Net(learner, a=conv(3, C), n=nn.BatchNorm2d(C), b=conv(C, 5), fc=nn.Linear(5, 4), side=conv(C, 2),
            drop=nn.Dropout2d(), aux=nn.Linear(2 * 64, 4)),
        SHAPE, {"a", "b", "side"}),
    "a head that training uses twice": (
        lambda: Net(supervised, a=conv(3, C), b=conv(C, C), fc=nn.Linear(C, 4)), SHAPE, {"a"}),
}  # fmt: skip


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with no number that hides anything."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.double().named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = drawn.abs() + 0.5 if name.endswith(("running_var", "v")) and tensor.dim() == 1 else drawn
    return model.eval()


def inputs(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, *one, dtype=torch.float64, generator=generator) for one in each(shape)]


def gap(one: object, other: object) -> float:
    """The largest difference of any output, relative to the largest number above 1."""
    pairs = zip(flat(one), flat(other), strict=True)
    return max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1.0)) for a, b in pairs)


def why(graph: Graph) -> dict[str, str]:
    return {name: space.frozen for name, space in graph.spaces.items() if space.frozen is not None}


def assert_exact(make: Callable[[], nn.Module], shape: Shape) -> None:
    """Wider and, where what goes is silent, narrower: the same function, the foretold price, and training goes on."""
    net = lively(make())
    graph, before = survey(net, shape), net(*inputs(shape))
    wide, narrow = (Surgeon(copy.deepcopy(net), graph) for _ in range(2))
    for number, name in enumerate(graph.free, 1):
        wide.widen(name, number)
    assert gap(wide.model(*inputs(shape)), before) <= 1e-10
    gone = {name: range(0, width - 2, 2) for name, width in graph.widths.items()}
    for name, positions in gone.items():
        silence(narrow.model, graph, name, positions)
    before = narrow.model(*inputs(shape))
    for name, width in graph.widths.items():
        narrow.narrow(name, sorted(set(range(width)) - set(gone[name])))
    assert gap(narrow.model(*inputs(shape)), before) <= 1e-10
    for surgeon in (wide, narrow):
        assert graph.price.cost(surgeon.graph.widths) == measure(surgeon.model, shape)
        assert surgeon.graph.alike(survey(surgeon.model, shape, why(graph)))
        again = make().double().eval()
        fit(again, {name: tuple(tensor.shape) for name, tensor in surgeon.model.state_dict().items()})
        again.load_state_dict(surgeon.model.state_dict())
        assert gap(again(*inputs(shape)), surgeon.model(*inputs(shape))) == 0.0
        sum(out.sum() for out in flat(surgeon.model.train()(*inputs(shape)))).backward()


@pytest.mark.parametrize("case", READ)
def test_what_it_is_built_from_is_read_and_edits_are_exact(case: str) -> None:
    make, shape, free = READ[case]
    assert set(survey(make(), shape).free) == free
    assert_exact(make, shape)
