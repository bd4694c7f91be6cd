"""Widening never changes the function, narrowing only where something was read; optimizers follow, training goes on."""

import copy
import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, conv, headed, lively, shuffled
from torch import Tensor, nn

from compress import models
from compress.errors import UsageError
from compress.methods.adenel.diiss import DIISS
from compress.reading.graph import Graph, read
from compress.reading.measure import measure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.surgery.tensors import take

SHAPE = (3, 8, 8)
C = 6


def sequential() -> nn.Module:
    norms = nn.BatchNorm2d(C), nn.BatchNorm2d(5, affine=False), nn.BatchNorm1d(7)
    first = [conv(3, C), norms[0], nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    second = [conv(C, 5, bias=False), norms[1], nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(5 * 4, 7), norms[2], nn.Dropout(), nn.Linear(7, 4))


def squeeze_excite(net: Net, x: Tensor) -> Tensor:
    y = net.n(net.a(x))
    gate = net.up(fn.silu(net.down(fn.adaptive_avg_pool2d(y, 1))))
    return net.o(y * torch.sigmoid(gate))


def tied() -> nn.Module:
    net = headed(lambda s, x: s.c(fn.relu(s.b(fn.relu(s.a(x))))), C, a=conv(3, C), b=conv(C, C), c=conv(C, C))
    net.c.weight = net.b.weight
    return net


def spatial_attention(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y * torch.sigmoid(net.mask(y)))


def pyramid(net: Net, x: Tensor) -> Tensor:
    y = fn.relu(net.a(x))
    return net.fc(torch.cat([y.flatten(1), fn.avg_pool2d(y, 4).flatten(1), fn.max_pool2d(y, 8).flatten(1)], 1))


def halves(net: Net, x: Tensor) -> Tensor:
    one, other = fn.relu(net.a(x)).chunk(2, 1)
    return net.o(torch.cat([net.b(other), one], 1))


def normed(net: Net, x: Tensor) -> Tensor:
    y = net.n(net.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return net.c(fn.gelu(net.b(y)))


def attended(net: Net, x: Tensor) -> Tensor:
    tokens = net.a(x).flatten(2).transpose(1, 2)
    tokens = tokens + net.attention(tokens, tokens, tokens, need_weights=False)[0]
    return net.fc(net.second(fn.relu(net.first(tokens))).mean(1))


def functional(net: Net, x: Tensor) -> Tensor:
    y = fn.conv2d(fn.conv2d(x, net.w, net.c), net.v).relu()
    return fn.linear(y.flatten(1), net.f) @ net.m


ZOO: dict[str, Callable[[], nn.Module]] = {
    "conv, linear, norms and pools": sequential,
    "depthwise": lambda: headed(
        lambda s, x: s.c(s.n(s.b(fn.relu6(s.a(x))))),
        a=conv(3, C), b=conv(C, 2 * C, groups=C), n=nn.BatchNorm2d(2 * C), c=conv(2 * C, 5, 1)),
    "grouped": lambda: headed(
        lambda s, x: s.d(fn.relu(s.c(fn.relu(s.b(fn.relu(s.a(x))))))),
        a=conv(3, 8), b=conv(8, 12, groups=4), c=conv(12, 6, groups=2), d=conv(6, 5)),
    "squeeze and excite": lambda: headed(
        squeeze_excite, a=conv(3, C), n=nn.BatchNorm2d(C), down=conv(C, 2, 1), up=conv(2, C, 1), o=conv(C, 5)),
    "a module used twice": lambda: headed(
        lambda s, x: s.b(fn.relu(s.b(fn.relu(s.a(x)))) + s.c(fn.relu(s.b(s.a(x))))),
        C, a=conv(3, C), b=conv(C, C), c=conv(C, C)),
    "tied weights": tied,
    "transposed": lambda: headed(
        lambda s, x: s.d(fn.elu(s.c(fn.elu(s.b(fn.elu(s.a(x))))))),
        a=conv(3, C), b=nn.ConvTranspose2d(C, 4, 3, 2), c=nn.ConvTranspose2d(4, 4, 3, groups=2), d=conv(4, 5)),
    "transposed depthwise": lambda: headed(
        lambda s, x: s.d(fn.elu(s.b(s.a(x)))),
        a=conv(3, C), b=nn.ConvTranspose2d(C, 2 * C, 3, 2, groups=C), d=conv(2 * C, 5)),
    "prelu": lambda: headed(
        lambda s, x: s.q(s.b(s.p(s.a(x)))), a=conv(3, C), p=nn.PReLU(C, 0.3), b=conv(C, 5), q=nn.PReLU()),
    "bare scale and shift": lambda: headed(
        lambda s, x: s.b(s.a(x) * s.scale + s.shift.expand_as(s.a(x))), a=conv(3, C), b=conv(C, 5),
        scale=nn.Parameter(torch.rand(C, 1, 1)), shift=nn.Parameter(torch.rand(1, C, 1, 1))),
    "spatial attention": lambda: headed(spatial_attention, a=conv(3, C), mask=conv(C, 1), b=conv(C, 5)),
    "functional": lambda: Net(
        functional, w=nn.Parameter(torch.rand(C, 3, 3, 3)), c=nn.Parameter(torch.rand(C)), f=nn.Parameter(
            torch.rand(7, 5 * 16)), v=nn.Parameter(torch.rand(5, C, 3, 3)), m=nn.Parameter(torch.rand(7, 4))),
    "flattened at three scales": lambda: Net(pyramid, a=conv(3, C), fc=nn.Linear(C * (64 + 4 + 1), 4)),
    "concatenated with itself": lambda: headed(
        lambda s, x: s.b(torch.cat([fn.relu(s.a(x)), x, -s.a(x)], 1)), a=conv(3, C), b=conv(2 * C + 3, 5)),
    "halves": lambda: headed(halves, a=conv(3, 8), b=conv(4, 4), o=conv(8, 5)),
    "gated linear unit": lambda: headed(lambda s, x: s.b(fn.glu(s.a(x), 1)), a=conv(3, 2 * C), b=conv(C, 5)),
    "channel shuffle": lambda: headed(
        lambda s, x: s.d(s.c(shuffled(fn.relu(s.b(shuffled(fn.relu(s.a(x)), 2))), 3))), C,
        a=conv(3, 8), b=conv(8, 12, groups=2), c=conv(12, 12, groups=12), d=conv(12, C, 1)),
    "pixel shuffle": lambda: headed(lambda s, x: s.b(fn.pixel_shuffle(s.a(x), 2)), a=conv(3, 16), b=conv(4, 5)),
    "features cut into pixels": lambda: headed(
        lambda s, x: s.b(fn.relu(s.l(x.flatten(1))).view(len(x), -1, 4, 4)), l=nn.Linear(192, 5 * 16), b=conv(5, 5)),
    "one dimension": lambda: Net(
        lambda s, x: s.fc(s.b(fn.relu(s.n(s.a(x.flatten(2))))).mean(2)),
        a=nn.Conv1d(3, C, 5), n=nn.BatchNorm1d(C), b=nn.Conv1d(C, 5, 3), fc=nn.Linear(5, 4)),
    "layer norm": lambda: headed(normed, a=conv(3, C), n=nn.LayerNorm(C), b=conv(C, 5), c=conv(5, 5)),
    "attention": lambda: Net(
        attended, a=nn.Conv2d(3, 8, 4, 4), attention=nn.MultiheadAttention(8, 2, batch_first=True),
        first=nn.Linear(8, 6), second=nn.Linear(6, 5), fc=nn.Linear(5, 4)),
    "lenet5": lambda: models.lenet5(3, 4, (5,), classes=4, in_channels=3, size=8, padding=6),
    "vgg16": lambda: models.vgg([3, 4, 5], [1, 3], hidden=[6], classes=4, size=8, last_pool="avg"),
    "plain": lambda: models.plain3net(width=3, classes=4),
    "resnet, option A": lambda: models.resnet_cifar([1, 1, 1], [4, 6, 8], option="A", classes=4),
    "resnet, option B": lambda: models.resnet_cifar([2, 1], [4, 6], option="B", classes=4),
    "bottlenecks": lambda: models.bottleneck4resnet(width=2, classes=4, stem="cifar"),
    "densenet": lambda: models.densenet([2, 2], growth=3, init=4, bottleneck=5, shrink=2, classes=4),
}  # fmt: skip


HELD = {  # what is frozen beside the outputs
    "spatial attention": {"mask"},
    "layer norm": {"a"},
    "attention": {"a", "attention.in_proj_weight"},
}


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest number above 1."""
    return float((one - other).detach().abs().max() / other.detach().abs().max().clamp(min=1.0))


@pytest.fixture(params=ZOO)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return lively(ZOO[request.param]())


def test_widening_does_not_change_the_function(net: nn.Module) -> None:
    graph, before = survey(net, SHAPE), net(images())
    assert graph.free
    for name in graph.free:
        surgeon = Surgeon(copy.deepcopy(net), graph)
        surgeon.widen(name, 2)
        assert surgeon.graph.widths[name] == graph.widths[name] + 2
        assert gap(surgeon.model(images()), before) <= 1e-12


@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_frozen_that_could_change(name: str) -> None:
    why = frozen(survey(ZOO[name](), SHAPE))
    assert {space for space in why if why[space] != "it reaches the model's output"} == HELD.get(name, set())


def test_narrowing_is_exact_where_what_reads_the_channels_is_zero(net: nn.Module) -> None:
    graph = survey(net, SHAPE)
    for name in graph.free:
        space = graph.spaces[name]
        keep = list(range(0, space.width, 2))
        for tensor, dim in space.consumers:
            gone = np.isin(graph.slots[tensor, dim].units, [u for p, u in enumerate(space.units) if p not in keep])
            net.get_parameter(tensor).data.index_fill_(dim, torch.from_numpy(np.flatnonzero(gone)), 0.0)
    masked = net(images())
    surgeon = Surgeon(net, graph)
    for name in graph.free:
        surgeon.narrow(name, range(0, graph.widths[name], 2))
    assert gap(net(images()), masked) <= 1e-12
    assert sum(p.numel() for p in net.parameters()) == graph.price.cost(surgeon.graph.widths).params


def frozen(graph: Graph) -> dict[str, str]:
    return {name: space.frozen for name, space in graph.spaces.items() if space.frozen is not None}


def optimizers(net: nn.Module, kind: str) -> torch.optim.Optimizer:
    weights = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    groups = [group for group in ({"params": weights, "weight_decay": 1e-4}, {"params": rest}) if group["params"]]
    if kind == "diiss":
        return DIISS([{"params": weights, "path": True}, {"params": rest}], lr=0.01)
    if kind == "adam":
        return torch.optim.Adam(groups, lr=0.001)
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9)


def learn(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step of training, which must reach every parameter."""
    optimizer.zero_grad()
    out = net(images(3))
    (out.tanh() - 0.5).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    optimizer.step()


def assert_in_step(surgeon: Surgeon, held: Mapping[str, str]) -> None:
    """The graph says what a fresh reading says, the price what a count says, and the optimizer owns what is alive."""
    graph, net, optimizer = surgeon.graph, surgeon.model, surgeon.optimizer
    assert graph.alike(read(net, SHAPE, held))
    assert graph.price.cost(graph.widths) == measure(net, SHAPE)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, net.parameters()))
    assert set(optimizer.state) <= set(owned)


def test_after_any_edits_graph_price_optimizer_and_training_hold(
    net: nn.Module, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(request.node.name)
    graph = survey(net, SHAPE)
    surgeon = Surgeon(net, graph, optimizers(net, chance.choice(["sgd", "adam", "diiss"])))
    for step in range(4):
        learn(net, surgeon.optimizer)
        name = chance.choice(graph.free)
        width = surgeon.graph.widths[name]
        if chance.random() < 0.5:
            surgeon.widen(name, chance.randint(1, 3), seed=step)
        else:
            surgeon.narrow(name, sorted(chance.sample(range(width), chance.randint(min(width, 2), width))))
        assert_in_step(surgeon, frozen(graph))
    learn(net, surgeon.optimizer)


@pytest.mark.parametrize("kind", ["sgd", "adam", "diiss"])
def test_optimizer_state_moves_with_its_channels_and_is_zero_for_new_ones(kind: str) -> None:
    net = lively(ZOO["resnet, option A"]())
    optimizer = optimizers(net, kind)
    surgeon = Surgeon(net, survey(net, SHAPE), optimizer)
    learn(net, optimizer)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:  # from here on, each entry says which weight it belongs to
                state[key] = parameter.detach().clone()
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    surgeon.narrow("conv1", [0, 2, 3])
    kept = {name: p.numel() for name, p in net.named_parameters()}
    surgeon.widen("conv1", 2)
    surgeon.widen("stage2.0.conv1", 1)
    moved = 0
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if value.dim() and key != "threshold":
                assert value.shape == parameter.shape
                assert int(value.ne(0).sum()) == kept[name]
                assert torch.equal(value[value.ne(0)], parameter.detach()[value.ne(0)])
                moved += sizes[name] != kept[name]
    assert moved


def test_new_filters_have_the_mean_threshold_of_the_old_ones() -> None:
    net = lively(sequential())
    optimizer = optimizers(net, "diiss")
    surgeon = Surgeon(net, survey(net, SHAPE), optimizer)
    learn(net, optimizer)
    optimizer.state[net[0].weight]["threshold"] = torch.arange(C, dtype=torch.float64)
    surgeon.widen("0", 2)
    expected = torch.tensor([*range(C), (C - 1) / 2, (C - 1) / 2], dtype=torch.float64)
    assert torch.equal(optimizer.state[net[0].weight]["threshold"], expected)


def test_new_channels_start_as_a_norm_starts_and_elsewhere_at_the_mean() -> None:
    net = lively(headed(
        lambda s, x: s.b(s.p(s.n(s.a(x))) * s.scale), a=conv(3, C), n=nn.BatchNorm2d(C), p=nn.PReLU(C), b=conv(C, 5),
        scale=nn.Parameter(torch.rand(C, 1, 1))))  # fmt: skip
    surgeon = Surgeon(net, survey(net, SHAPE))
    slope, scale = net.p.weight.mean(), net.scale.mean()
    surgeon.widen("a", 1)
    found = [t[-1].item() for t in (net.n.weight, net.n.bias, net.n.running_mean, net.n.running_var, net.a.bias)]
    assert found == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert net.p.weight[-1].item() == pytest.approx(slope.item())
    assert net.scale[-1].item() == pytest.approx(scale.item())
    assert bool(net.a.weight[-1].ne(0).all())
    assert bool(net.b.weight[:, -1].eq(0).all())
    sizes = net.a.out_channels, net.n.num_features, net.p.num_parameters, net.b.in_channels
    assert sizes == (C + 1,) * 4


def test_new_weights_have_the_variance_of_kaiming_and_follow_the_seed() -> None:
    def widened(seed: int, columns: str) -> nn.Module:
        net = models.vgg([64, 32], [1], size=8, hidden=[])
        Surgeon(net, survey(net, SHAPE)).widen("features.conv1", 256, columns=columns, seed=seed)
        return net

    net, again, other = widened(0, "kaiming"), widened(0, "kaiming"), widened(1, "kaiming")
    rows, columns = net.features.conv1.weight[64:], net.features.conv2.weight[:, 64:]
    assert rows.std().item() == pytest.approx((2 / (3 * 9)) ** 0.5, rel=0.05)
    assert columns.std().item() == pytest.approx((2 / (320 * 9)) ** 0.5, rel=0.05)
    assert torch.equal(rows, again.features.conv1.weight[64:])
    assert not torch.equal(rows, other.features.conv1.weight[64:])
    assert not widened(0, "zero").features.conv2.weight[:, 64:].any()


def test_an_autograd_graph_of_before_an_edit_can_still_be_run_backwards() -> None:
    net = lively(sequential()).train()
    old, loss = net[0].weight, net(images(3)).sum()
    Surgeon(net, survey(net, SHAPE)).widen("0", 3)
    loss.backward()
    assert old.grad is not None
    assert net[0].weight is not old


def test_a_space_narrowed_to_one_channel_grows_again() -> None:
    for name in ("depthwise", "grouped", "flattened at three scales", "transposed depthwise"):
        net = lively(ZOO[name]())
        surgeon = Surgeon(net, survey(net, SHAPE))
        surgeon.narrow("a", [0])
        before = net(images())
        surgeon.widen("a", 2)
        assert gap(net(images()), before) <= 1e-12
        assert surgeon.graph.alike(read(net, SHAPE))
        assert surgeon.graph.price.cost(surgeon.graph.widths) == measure(net, SHAPE)


@settings(max_examples=30)
@given(st.integers(1, 6), st.lists(st.integers(-1, 5), min_size=1, max_size=8), st.integers(0, 2))
def test_take_picks_old_indices_and_puts_zeros_for_new_ones(size: int, source: list[int], dim: int) -> None:
    source = [min(s, size - 1) for s in source]
    shape = [2, 3, 4]
    shape[dim] = size
    tensor = torch.rand(shape)
    slices = [torch.zeros_like(tensor.select(dim, 0)) if s < 0 else tensor.select(dim, s) for s in source]
    assert torch.equal(take(tensor, dim, np.array(source)), torch.stack(slices, dim))


def test_impossible_edits_are_refused_and_change_nothing() -> None:
    net = sequential()
    surgeon = Surgeon(net, survey(net, SHAPE))
    for keep in ([], [2, 1], [0, 0], [-1], [C]):
        with pytest.raises(ValueError, match="ascending position"):
            surgeon.narrow("0", keep)
    with pytest.raises(ValueError, match="cannot be widened by 0"):
        surgeon.widen("0", 0)
    with pytest.raises(UsageError, match="no space named 'conv9'"):
        surgeon.widen("conv9", 1)
    with pytest.raises(UsageError, match="12 cannot change its width: it reaches the model's output"):
        surgeon.widen("12", 1)
    assert surgeon.graph.alike(read(net, SHAPE))
