"""What the photograph shows: who belongs together, where new channels go, what they cost, what is frozen, and why."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.nn.utils import parametrize

from compress import models
from compress.errors import UsageError
from compress.reading.graph import Graph, read
from compress.reading.measure import measure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)
C = 6


class Net(nn.Module):
    """conv `a` (C filters), then `middle`, then conv `b` and a linear layer on its average: [N, 3, 8, 8] -> [N, 4]."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor], width: int = C, **parts: object) -> None:
        super().__init__()
        self.middle = middle
        self.a = nn.Conv2d(3, C, 3, padding=1)
        for name, part in parts.items():
            setattr(self, name, part)
        self.b = nn.Conv2d(width, 5, 3, padding=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.middle(self, self.a(x))).mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return fn.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


class Loose(nn.Module):
    """One factor for each channel in a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(C, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@torch.library.custom_op("compress_tests::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    """An operator that nobody but its author knows."""
    return 3 * x


@triple.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def attended(net: Net, y: Tensor) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    return (torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).transpose(1, 2).reshape(y.shape)


def first(name: str, graph: Graph) -> str:
    """Why a space is frozen."""
    why = graph.spaces[name].frozen
    assert why is not None
    return why


FROZEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an unknown operator": (lambda: Net(lambda s, y: triple(y)), "triple in forward() is not understood"),
    "a sum that runs on": (lambda: Net(lambda s, y: y.cumsum(1)), "cumsum in forward() is not understood"),
    "the largest first": (lambda: Net(lambda s, y: y.sort(1).values), "sort in forward() is not understood"),
    "other places": (lambda: Net(lambda s, y: y[:, torch.tensor([1, 0, 2, 5, 4, 3])]), "index in forward()"),
    "other order": (lambda: Net(lambda s, y: y.flip(1)), "where another channel would stand in b.weight is not known"),
    "an average over channels": (lambda: Net(lambda s, y: y - y.mean(1, keepdim=True)), "it runs over channels"),
    "a softmax": (lambda: Net(lambda s, y: y.softmax(1)), "softmax averages over it (_softmax in forward())"),
    "a layer norm": (
        lambda: Net(lambda s, y: s.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(C)),
        "layer_norm averages over it (native_layer_norm in n)",
    ),
    "a group norm": (lambda: Net(lambda s, y: s.n(y), n=nn.GroupNorm(1, C)), "group_norm averages over it"),
    "attention": (lambda: Net(attended), "bmm in forward() is not understood"),
    "a fixed tensor": (lambda: Net(lambda s, y: y + torch.ones(C, 1, 1)), "it meets a tensor of fixed size"),
    "a buffer that is not saved": (lambda: Net(lambda s, y: s.l(y), l=Loose()), "it meets a tensor of fixed size"),
    "a weight that is read as a whole": (
        lambda: Net(lambda s, y: y * s.a.weight.square().sum()),
        "sum runs over it (sum in forward())",
    ),
    "a weight used both ways": (
        lambda: Net(lambda s, y: fn.conv_transpose2d(y, s.a.weight, padding=1), width=3),
        "a.weight is used in two ways",
    ),
    "a computed weight": (lambda: Net(lambda s, y: s.c(y), c=Standardised(C, C, 3)), "mean runs over it (mean in c)"),
    "a weight made by another layer": (
        lambda: Net(lambda s, y: fn.conv2d(y, s.l(y.mean((2, 3))).view(C, C, 1, 1)), l=nn.Linear(C, C * C)),
        "its weight is computed",
    ),
    "channels beside pixels": (
        lambda: Net(lambda s, y: s.l(y.transpose(1, 3)).transpose(1, 3), l=nn.Conv2d(8, 8, 1)),
        "channels lie along more than one axis of its input",
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_what_no_rule_understands_is_frozen_with_its_reason(case: str) -> None:
    make, why = FROZEN[case]
    for graph in (read(make(), SHAPE), survey(make(), SHAPE)):
        assert why in first("a", graph)
        assert "b" in graph.free  # what comes after is not touched
    with pytest.raises(UsageError, match="a cannot change its width"):
        graph.widen("a", 1)


def test_unknown_operators_are_listed_once_each() -> None:
    graph = read(Net(lambda s, y: triple(triple(y).cumsum(1))), SHAPE)
    assert len(graph.notes) == 1  # what triple made belongs to no channel any more
    assert "triple in forward() is not understood" in graph.notes[0]
    assert read(models.resnet20(), (3, 32, 32)).notes == ()


def test_one_channel_that_meets_many_is_frozen_and_the_many_are_free() -> None:
    graph = survey(Net(lambda s, y: y * s.m(y).sigmoid(), m=nn.Conv2d(C, 1, 1)), SHAPE)
    assert graph.widths == {"a": C, "b": 5}
    assert "its one channel meets many" in first("m", graph)


def test_element_by_element_all_operands_are_tied() -> None:
    meet: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
        lambda y, z, p: y.exp().pow(z) + p,
        lambda y, z, p: y.clamp(z, p),
        lambda y, z, p: torch.where(y > z, p, y.new_zeros(1)),
        lambda y, z, p: torch.lerp(y, z, p),
    ]
    for act in meet:
        net = Net(lambda s, y, act=act: act(y, s.c(y), s.p), c=nn.Conv2d(C, C, 1), p=nn.Parameter(torch.ones(C, 1, 1)))
        graph = survey(net, SHAPE)
        assert graph.widths == {"a": C, "b": 5}
        assert [name for name, _ in graph.spaces["a"].producers] == ["a.weight", "c.weight"]
        assert ("p", 0) in graph.slots


def test_channels_that_reach_an_output_are_frozen() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, C, 1), nn.Conv2d(C, 5, 1), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.a(x)
            return {"logits": self.c(self.b(y).mean((2, 3))), "features": y.relu()}

    graph = read(Two(), SHAPE)
    assert graph.free == ("b",)
    assert [first(name, graph) for name in ("a", "c")] == ["it reaches the model's output"] * 2


BAKED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a view": (lambda: Net(lambda s, y: y.view(-1, C * 64).view(-1, C, 8, 8)), "is invalid for input of size"),
    "an expand": (lambda: Net(lambda s, y: y + y.mean((2, 3), keepdim=True).expand(-1, C, 8, 8)), "must match"),
    "an assertion": (lambda: Net(lambda s, y: y if y.shape[1] == C else 1 / 0), "ZeroDivisionError: division by zero"),
    "a slice": (lambda: Net(lambda s, y: y[:, :C] * y[:, -C:]), "the model breaks when it is wider: RuntimeError"),
    "an order": (lambda: Net(lambda s, y: y if y.shape[1] == C else y.flip(1)), "other tensors change than its"),
    "a split": (lambda: Net(lambda s, y: sum(y.split([2, 4], 1)[1].chunk(2, 1)), width=2), "the model breaks when"),
}


@pytest.mark.parametrize("case", BAKED)
def test_survey_freezes_what_breaks_and_nothing_else(case: str) -> None:
    make, why = BAKED[case]
    assert any(name.startswith("a") for name in read(make(), SHAPE).free)  # the operators alone do not tell
    graph = survey(make(), SHAPE)
    assert graph.free == ("b",)
    assert any(why in first(name, graph) for name in graph.spaces if name.startswith("a"))


def test_survey_finds_spaces_that_only_change_together() -> None:
    class Crossed(nn.Module):
        """Two convolutions of equal width, taken apart again in the middle of their concatenation."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.c, self.d, self.fc = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.a(x), self.b(x)], 1)
            middle = both.shape[1] // 2
            return self.fc((self.c(both[:, :middle]) * self.d(both[:, middle:])).mean((2, 3)))

    assert read(Crossed(), SHAPE).free == ("a", "b", "c")
    assert survey(Crossed(), SHAPE).free == ("c",)  # one alone moves the middle


def test_held_spaces_stay_for_the_reason_given() -> None:
    graph = survey(Net(lambda s, y: y), SHAPE, lambda _: {"a": "because"})
    assert (graph.free, graph.spaces["a"].frozen) == (("b",), "because")
    with pytest.raises(UsageError, match="no space named 'c' to hold; the spaces are a, b, fc"):
        read(Net(lambda s, y: y), SHAPE, {"c": "because"})


def places(graph: Graph, tensor: str, dim: int) -> list[tuple[str, int]]:
    """Space and position of every index along an axis; ("", 0) for what belongs to none."""
    known = {u: (s.name, p) for s in graph.spaces.values() for p, u in enumerate(s.units)}
    return [known.get(unit, ("", 0)) for unit in graph.slots[tensor, dim].units.tolist()]


def test_with_option_a_a_channel_keeps_its_place_in_every_wider_stage() -> None:
    graph = read(models.resnet_cifar([1, 1], [2, 4], option="A", classes=3), SHAPE)
    stem, wider = [("conv1", 0), ("conv1", 1)], [("stage2.0.conv2", 0), ("stage2.0.conv2", 1)]
    assert places(graph, "conv1.weight", 0) == stem
    assert places(graph, "fc.weight", 1) == stem + wider
    edit = graph.widen("conv1", 1)
    assert edit.takes["stage2.0.conv2.weight", 0].tolist() == [0, 1, -1, 2, 3]
    assert places(edit.after, "fc.weight", 1) == [*stem, ("conv1", 2), *wider]


def test_new_channels_go_behind_the_last_of_their_block() -> None:
    flattened = read(nn.Sequential(nn.Conv2d(3, 2, 7), nn.Flatten(), nn.Linear(8, 4)), SHAPE)
    assert flattened.widen("0", 1).takes["2.weight", 1].tolist() == [*range(8), -1, -1, -1, -1]
    assert flattened.narrow("0", [1]).takes["2.weight", 1].tolist() == [4, 5, 6, 7]
    doubled = read(Net(lambda s, y: torch.cat([y, y], 1), width=2 * C), SHAPE)
    assert doubled.widen("a", 1).takes["b.weight", 1].tolist() == [*range(6), -1, *range(6, 12), -1]
    grouped = read(Net(lambda s, y: s.g(y), g=nn.Conv2d(C, 4, 1, groups=2), width=4), SHAPE)
    edit = grouped.widen("a", 1)
    assert grouped.widths["a"] == 3
    assert edit.takes["a.weight", 0].tolist() == [0, 1, 2, -1, 3, 4, 5, -1]
    assert edit.takes["g.weight", 1].tolist() == [0, 1, 2, -1]
    copies = read(Net(lambda s, y: s.g(y), g=nn.Conv2d(C, 2 * C, 1, groups=C), width=2 * C), SHAPE)
    assert copies.widen("a", 1).takes["g.weight", 0].tolist() == [*range(12), -1, -1]


def test_a_dense_layer_stands_once_in_everything_after_it() -> None:
    graph = read(models.densenet([3], growth=2, init=3, classes=3), SHAPE)
    layer = "features.denseblock1.denselayer1.conv1"
    readers = [*(f"features.denseblock1.denselayer{n}.conv1.weight" for n in (2, 3)), "classifier.weight"]
    assert graph.spaces[layer].consumers == tuple((name, 1) for name in readers)
    assert [places(graph, name, 1).index((layer, 0)) for name in readers] == [3, 3, 3]


def test_tied_things_form_one_space_named_after_its_first_maker() -> None:
    graph = read(models.resnet_cifar([2], [4], classes=3), SHAPE)
    assert list(graph.spaces) == ["conv1", "stage1.0.conv1", "stage1.1.conv1", "fc"]
    assert [name for name, _ in graph.spaces["conv1"].producers] == [
        "conv1.weight", "stage1.0.conv2.weight", "stage1.1.conv2.weight"]  # fmt: skip
    assert graph.kernels["stage1.0.conv1.weight"] == (3, 3)


def test_shuffled_and_halved_channels_are_free_in_equal_parts() -> None:
    def shuffle(s: Net, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        return s.g(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(y.shape))

    nets = [
        Net(shuffle, g=nn.Conv2d(C, C, 3, padding=1, groups=C)),
        Net(lambda s, y: fn.channel_shuffle(y, 2)),
        Net(lambda s, y: torch.cat(y.chunk(2, 1)[::-1], 1)),
        Net(lambda s, y: fn.glu(y, 1), width=3),
    ]
    for net in nets:
        assert survey(net, SHAPE).widths == {"a": 3, "b": 5}


def test_a_lone_channel_that_stands_several_times_is_frozen() -> None:
    graph = survey(nn.Sequential(nn.Conv2d(3, 1, 7), nn.Flatten(), nn.Linear(4, 4)), SHAPE)
    assert first("0", graph) == "where another channel would stand in 2.weight is not known"


BUILT = [
    (lambda a, b, c: models.lenet5(a, b, (c,), size=20, padding=0), (1, 20, 20),
     {"features.conv1": 0, "features.conv2": 1, "classifier.linear1": 2}),
    (lambda a, b, c: models.vgg([a, b], [2], hidden=[c], size=8), SHAPE,
     {"features.conv1": 0, "features.conv2": 1, "classifier.linear1": 2}),
    (lambda a, b, c: models.densenet([1, 1], growth=a, init=a, bottleneck=a), SHAPE, None),
    (lambda a, b, c: models.resnet_cifar([1, 1], [a, b], option="B"), SHAPE,
     {"conv1": 0, "stage1.0.conv1": 0, "stage2.0.conv1": 1, "stage2.0.conv2": 1}),
]  # fmt: skip


@settings(max_examples=4)
@given(st.tuples(*[st.integers(2, 9)] * 3))
def test_a_price_is_the_count_of_the_network_that_the_factory_builds(widths: tuple[int, int, int]) -> None:
    for make, shape, spaces in BUILT:
        built = make(*widths)
        graph = read(make(4, 5, 6), shape)
        if spaces is None:
            now = dict.fromkeys(graph.free, widths[0])
            now["features.transition1.conv"] = 2 * widths[0]
        else:
            now = {name: widths[number] for name, number in spaces.items()}
        assert graph.price.cost(now) == measure(built, shape)


@pytest.mark.parametrize("pools", ["max", "avg", "global"])
def test_a_step_of_the_price_is_the_difference_of_two_counts(pools: str) -> None:
    net = models.vgg([4, 5, 6], [1, 3], hidden=[7], size=8, last_pool=pools)
    graph, before = survey(net, SHAPE), measure(net, SHAPE)
    for name, step in zip(graph.price.spaces, graph.price.steps(graph.widths).tolist(), strict=True):
        wider = models.vgg([4, 5, 6], [1, 3], hidden=[7], size=8, last_pool=pools)
        Surgeon(wider, graph).widen(name, 1)
        difference = measure(wider, SHAPE) - before
        assert step[:4] == [difference.params, difference.macs, difference.thop, difference.bytes]


def test_free_parameters_are_those_that_narrowing_would_delete() -> None:
    net = Net(lambda s, y: torch.cat([y, s.n(y)], 1), n=nn.GroupNorm(1, C), width=2 * C)
    graph = read(net, SHAPE)
    assert graph.free == ("b",)
    assert graph.free_params == 5 * (2 * C) * 9 + 5 + 4 * 5  # all of b, and the columns of fc, not its bias
    assert read(models.lenet5(), (1, 28, 28)).free_params == 61_706 - 10  # all but the last biases


def test_reading_twice_gives_the_same_and_another_width_does_not() -> None:
    net = models.densenet([2, 2], growth=3, init=4)
    graph = read(net, SHAPE)
    assert graph.alike(read(net, SHAPE))
    wider = models.densenet([2, 2], growth=3, init=5)
    assert not graph.alike(read(wider, SHAPE))
    chance = random.Random(0)
    for _ in range(5):
        name = chance.choice(graph.free)
        graph = graph.widen(name, 2).after
        graph = graph.narrow(name, range(graph.widths[name] - 2)).after
    assert graph.alike(read(net, SHAPE))
    assert all(np.array_equal(slot.units, read(net, SHAPE).slots[axis].units) for axis, slot in graph.slots.items())


ELSEWHERE = nn.Conv2d(C, C, 1)


class Sums(nn.Module):
    """Each filter is the sum of those before it and a part of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


def test_parametrized_weights_are_frozen_and_still_counted() -> None:
    net = Net(lambda s, y: y)
    plain = measure(net, SHAPE)
    parametrize.register_parametrization(net.a, "weight", Sums())
    graph, now = survey(net, SHAPE), measure(net, SHAPE)
    assert "b" in graph.free
    assert "convolution in a is not understood: its weight is computed" in graph.notes
    assert (now.macs, now.params) == (plain.macs, plain.params)
    assert graph.price.cost(graph.widths) == now


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda s, y: y if y.sum() > 0 else -y, "does not depend on the values of its input"),
        (lambda s, y: y.view(7, -1), "cannot be traced with an input of shape"),
        (lambda s, y: y.flatten()[y.flatten().nonzero()[:9]], "a factory that returns what comes before them"),
        (lambda s, y: ELSEWHERE(y), "a tensor or a layer that is not among the model's own"),
        (
            lambda s, y: fn.embedding(y[0, 0], torch.zeros(9, C)),
            r"token ids come as floats, .*: write x\.long\(\) in forward",
        ),
    ],
)
def test_what_cannot_be_run_without_numbers_is_refused(forward: Callable[[Net, Tensor], Tensor], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read(Net(forward), SHAPE)


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "hello"

    with pytest.raises(UsageError, match="returns no tensor but str"):
        read(Silent(), SHAPE)


@pytest.mark.parametrize(
    ("still", "frozen"),
    [
        ("a.weight", {"a": "a.weight cannot be trained (requires_grad is False)"}),
        ("a.bias", {}),
        ("norm.weight", {}),
        ("b.weight", dict.fromkeys("ab", "b.weight cannot be trained (requires_grad is False)")),
    ],
)
def test_a_weight_that_cannot_be_trained_keeps_its_filters_and_columns_and_what_holds_one_value_a_channel_follows(
    still: str, frozen: dict[str, str]
) -> None:
    net = Net(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(C))
    net.get_parameter(still).requires_grad_(False)
    spaces = survey(net, SHAPE).spaces
    assert {name: space.frozen for name, space in spaces.items() if space.frozen and name != "fc"} == frozen
