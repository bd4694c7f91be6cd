"""Whatever a network is built from: it is read, and then every edit is exact, or it is frozen with its reason."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as fn
from blocks import BLOCKS, chain, involved, parameter
from exact import assert_exact, gap, why
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, conv, headed
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from compress.reading.inputs import Shape
from compress.reading.measure import measure
from compress.surgery.finalize import finalize
from compress.surgery.proof import silence
from compress.surgery.structure import Structure
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)
C = 6


def learner(net: Net, x: Tensor) -> object:
    """With an auxiliary head that only training sees."""
    y = fn.relu(net.n(net.a(x)))
    out = net.fc(fn.relu(net.b(y)).mean((2, 3)))
    side = fn.dropout2d(net.drop(net.side(y)), training=net.training)
    return (out, net.aux(side.flatten(1))) if net.training else out


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


def recurrent(kind: type[nn.RNNBase], **options: object) -> nn.Module:
    """Six pixels are steps; first or second, as the layer has it."""
    order = (0, 2, 1) if options.get("batch_first") else (2, 0, 1)
    ways = 2 if options.get("bidirectional") else 1
    return Net(
        lambda s, x: s.fc(s.r(fn.relu(s.a(x))[:, :, :2, :3].flatten(2).permute(order))[0].mean(order.index(2))),
        a=conv(3, C), r=kind(C, 5, **options), fc=nn.Linear(5 * ways, 4))  # fmt: skip


def stepped(kind: type[nn.RNNCellBase]) -> nn.Module:
    """A cell that goes over pixels."""

    def forward(net: Net, x: Tensor) -> object:
        state = None
        for pixel in fn.relu(net.a(x[:, :, :2, :2])).flatten(2).unbind(2):
            state = net.r(pixel, state)
        return net.fc(state[0] if isinstance(state, tuple) else state)

    return Net(forward, a=conv(3, C), r=kind(C, 5), fc=nn.Linear(5, 4))


def bent(net: Net, x: Tensor) -> object:
    """Pixels are read where two other layers say."""
    y = fn.relu(net.d(net.a(x), net.offsets(x)))
    grid = net.grid(x).permute(0, 2, 3, 1).tanh()
    return net.fc(fn.relu(net.b(fn.grid_sample(y, grid, align_corners=False))).mean((2, 3)))


def depth_to_space(net: Net, x: Tensor) -> object:
    y = net.a(x)
    n, c, h, w = y.shape
    y = y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
    return net.fc(fn.relu(net.b(y)).mean((2, 3)))


def tied_linear() -> nn.Module:
    net = Net(
        lambda s, x: s.c(fn.relu(s.b(fn.relu(s.a(x.flatten(1)))))),
        a=nn.Linear(192, C),
        b=nn.Linear(C, C),
        c=nn.Linear(C, C),
    )
    net.c.weight = net.b.weight
    return net


def tied_embedding() -> nn.Module:
    net = Net(
        lambda s, x: s.out(fn.relu(s.b(fn.relu(s.a(s.table(x.long().clamp(0, 8)).mean(1)))))),
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
    "patches added up again": (
        lambda: headed(lambda s, x: s.c(fn.fold(fn.unfold(s.a(x), 3, padding=1), x.shape[2:], 3, padding=1)),
            a=conv(3, C), c=conv(C, 5)),
        SHAPE, {"a", "c"}),
    "patches as channels": (
        lambda: headed(lambda s, x: s.c(fn.unfold(s.a(x), 2, stride=2).unflatten(2, (4, 4))),
            a=conv(3, C), c=conv(4 * C, 5)),
        SHAPE, {"a", "c"}),
    "channels as patches": (
        lambda: headed(lambda s, x: s.c(fn.fold(s.a(x).flatten(2), (16, 16), 2, stride=2)),
            a=conv(3, 4 * C), c=conv(C, 5)),
        SHAPE, {"a", "c"}),
    "involution": (
        lambda: headed(lambda s, x: s.c(involved(s.a(x), s.k(x))), a=conv(3, C), k=conv(3, 9), c=conv(C, 5)),
        SHAPE, {"a", "c"}),
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
    "group norms of two sizes": (  # whole groups of both: six channels at once
        lambda: headed(lambda s, x: s.b(s.n(s.a(x)) + s.m(s.c(x))), a=conv(3, 24), n=nn.GroupNorm(12, 24),
            c=conv(3, 24), m=nn.GroupNorm(8, 24), b=conv(24, 5)),
        SHAPE, {"a", "b"}),
    "group norm over the border of a concat": (
        lambda: headed(lambda s, x: s.b(s.n(torch.cat([s.a(x), s.c(x)], 1))), a=conv(3, 4), c=conv(3, 5),
            n=nn.GroupNorm(3, 9), b=conv(9, 5)),
        SHAPE, {"b"}),
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


@pytest.mark.parametrize("case", READ)
def test_what_it_is_built_from_is_read_and_edits_are_exact(case: str) -> None:
    make, shape, free = READ[case]
    assert set(survey(make(), shape).free) == free
    assert_exact(make, shape)


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str, set[str]]] = {  # a space, why it is frozen, what is free
    "attention by einsum": (
        lambda: Net(attended, a=conv(3, C), qkv=conv(C, 3 * C), o=conv(C, 5), fc=nn.Linear(5, 4)),
        "qkv", "bmm in forward() is not understood", {"a", "o"}),
    "tied embedding": (tied_embedding, "b", "embedding in table is not understood", {"a"}),
    "uneven split": (
        lambda: headed(lambda s, x: s.b(torch.cat(s.a(x).split([1, 5], 1)[::-1], 1)), a=conv(3, C), b=conv(C, 5)),
        "a", "where another channel would stand in b.weight is not known", {"b"}),
    "uneven chunks": (
        lambda: headed(lambda s, x: s.b(s.a(x).chunk(2, 1)[1]), a=conv(3, 7), b=conv(3, 5)), "a#2", "breaks", {"b"}),
    "slices": (
        lambda: headed(lambda s, x: s.b(torch.cat([s.a(x)[:, 4:], s.a(x)[:, :2]], 1)), a=conv(3, C), b=conv(4, 5)),
        "a", "where another channel would stand in b.weight is not known", {"b"}),
    "a view with a number in it": (
        lambda: headed(lambda s, x: s.b(s.a(x).view(-1, 2 * C, 4, 8)), a=conv(3, C), b=conv(2 * C, 5)),
        "a", "", {"b"}),
    "an embedding of patches": (
        lambda: headed(lambda s, x: s.b(s.a(x).view(len(x), C, -1).transpose(1, 2).reshape(-1, C, 8, 8)),
            a=conv(3, C), b=conv(C, 5)),
        "a", "channels lie along more than one axis", set()),
    "training that throws dice": (
        lambda: headed(lambda s, x: s.b(s.a(x)) if not s.training or torch.rand(1) > 0 else 0, a=conv(3, C),
            b=conv(C, 5)),
        "fc", "it reaches the model's output", {"a", "b"}),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_followed_stays_for_a_reason_and_the_rest_is_exact(case: str) -> None:
    make, name, reason, free = LEFT[case]
    shape = [10] if case == "tied embedding" else SHAPE
    graph = survey(make(), shape)
    assert set(graph.free) == free
    assert reason in why(graph)[name]
    assert_exact(make, shape)


def test_parameters_that_nothing_reads_stay_and_are_named() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = fn.relu(net.a(x))
        if net.training and net.dice and torch.rand(1) > 0:
            y = y + net.never(y)
        return net.fc(y.mean((2, 3)))

    parts = {"a": conv(3, C), "never": conv(C, C), "fc": nn.Linear(C, 4)}
    graph = survey(Net(forward, dice=False, **parts), SHAPE)
    assert graph.notes == ("2 parameters are not read in either mode: never.weight, never.bias",)
    assert graph.free_params == (27 + 1 + 4) * C
    (note,) = survey(Net(forward, dice=True, **parts), SHAPE).notes
    assert "not read in eval mode, and training mode cannot be tried (RuntimeError: " in note


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "bidirectional": True, "bias": False}, {"num_layers": 2, "bidirectional": True}],
    ids=["plain", "both ways", "two layers"],
)
def test_what_recurrent_layers_read_and_their_hidden_channels_are_free(
    kind: type[nn.RNNBase], options: dict[str, object]
) -> None:
    make = lambda: recurrent(kind, **options)  # noqa: E731
    graph = survey(make(), SHAPE)
    assert list(graph.widths.values()) == [C, 5]
    assert_exact(make, SHAPE)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_that_are_stepped_by_hand_are_too(kind: type[nn.RNNCellBase]) -> None:
    assert list(survey(stepped(kind), SHAPE).widths.values()) == [C, 5]
    assert_exact(lambda: stepped(kind), SHAPE)


def test_pictures_that_are_read_elsewhere_change_and_what_says_where_does_not() -> None:
    def make() -> nn.Module:
        return Net(bent, a=conv(3, C), d=DeformConv2d(C, 8, 3, padding=1), offsets=conv(3, 18), grid=conv(3, 2),
                   b=conv(8, 5), fc=nn.Linear(5, 4))  # fmt: skip

    graph = survey(make(), SHAPE)
    assert (graph.free, set(why(graph))) == (("a", "d", "b"), {"offsets", "grid", "fc"})
    assert "it says where another picture is read" in why(graph)["grid"]
    assert_exact(make, SHAPE)


def test_channels_that_become_pixels_by_views_are_free() -> None:
    make = lambda: Net(depth_to_space, a=conv(3, 24), b=conv(6, 5), fc=nn.Linear(5, 4))  # noqa: E731
    assert survey(make(), SHAPE).widths == {"a": 6, "b": 5}
    assert_exact(make, SHAPE)


def test_a_net_of_several_inputs_and_outputs_is_finalized() -> None:
    def forward(net: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = fn.relu(net.a(x) + net.b(y)[:, :, None, None])
        return {"logits": net.fc(z.mean((2, 3))), "map": net.c(z)}

    net = Net(forward, a=conv(3, C), b=nn.Linear(10, C), c=conv(C, 2), fc=nn.Linear(C, 4)).eval()
    shape = (SHAPE, (10,))
    silence(net, survey(net, shape), "a", [1, 4])
    batch = torch.rand(2, *SHAPE), torch.rand(2, 10)
    compact = finalize(net, shape, Structure("net.py:make"), [batch])
    assert (compact.shape, compact.removed) == (shape, {"a": 2})
    assert compact.cost == measure(compact.model, shape)
    assert gap(compact.model(*batch), net(*batch)) <= 1e-5


@settings(max_examples=20)
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4))
def test_any_chain_of_blocks_is_read_and_edits_are_exact(names: list[str]) -> None:
    assert_exact(lambda: chain(names), SHAPE)
