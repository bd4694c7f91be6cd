"""Counts of channels that stand in Python's numbers follow the widths, and nothing else does."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact import assert_exact, gap, inputs, lively
from nets import Net, conv
from torch import Tensor, nn

import compress.surgery.survey as module
from compress.errors import ArtifactError
from compress.reading.measure import measure
from compress.surgery.numbers import numbers, put
from compress.surgery.proof import silence
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)


class Half(nn.Module):
    """Half of what a convolution makes goes through another one; how many that is stands in an attribute."""

    def __init__(self, inp: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.a, self.b, self.c = conv(inp, 2 * width, 1), conv(width, width), conv(2 * width, inp, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).split([self.width, self.width], 1)
        out: Tensor = x + self.c(torch.cat([one, self.b(other).relu()], 1))
        return out


class Ghost(nn.Module):
    """Twice as many channels as a convolution makes, and of those as many as are wanted."""

    def __init__(self, inp: int, width: int) -> None:
        super().__init__()
        self.wanted, self.stride = width, 1
        self.a, self.b = conv(inp, width // 2), conv(width // 2, width // 2, groups=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.a(x)
        out: Tensor = torch.cat([one, self.b(one)], 1)[:, : self.wanted]
        return out


class Uneven(nn.Module):
    """Two parts of sizes of their own, both in one list, that come together again the other way round."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__()
        self.sizes = [one, other]
        self.a, self.b = conv(3, one), conv(3, other)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.cat([self.a(x), self.b(x)], 1).split(self.sizes, 1)
        return torch.cat([other.relu(), one], 1)


class Heads(nn.Module):
    """As many heads as each has channels, so that two numbers are alike and one of them must stay."""

    def __init__(self, heads: int, each: int) -> None:
        super().__init__()
        self.heads, self.each = heads, each
        self.a = conv(3, heads * each)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y.view(len(x), self.heads, self.each, -1).relu().reshape(y.shape)


class Outer(nn.Module):
    """The number is held by the module around the one that needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.inner = Net(lambda net, x, width: net.a(x)[:, :width] + net.b(x), a=conv(3, 6), b=conv(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.run(self.inner, x, self.width)
        return out


def headed(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), conv(width, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[str, int]]]] = {
    "halves": (lambda: headed(conv(3, 7), Half(7, 6), width=7), {"1.width": {"1.a": 1}}),
    "two of one class": (
        lambda: headed(conv(3, 7), Half(7, 6), Half(7, 4), width=7),
        {"1.width": {"1.a": 1}, "2.width": {"2.a": 1}},
    ),
    "all that are wanted": (lambda: headed(Ghost(3, 8), width=8), {"0.wanted": {"0.a": 2}}),
    "uneven parts": (lambda: headed(Uneven(9, 3), width=12), {"0.sizes.0": {"0.a": 1}, "0.sizes.1": {"0.b": 1}}),
    "one of two that are alike": (lambda: headed(Heads(4, 4), width=16), {"0.each": {"0.a": 1}}),
    "held outside": (lambda: headed(Outer(), width=6), {"0.width": {"0.inner.a": 1}}),
    "torch's own": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), conv(6, 5),
                              nn.Flatten(), nn.Linear(20, 4)),
        {"3.unflattened_size.0": {"1": 1}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_numbers_that_are_counts_of_channels_follow_them_exactly(name: str) -> None:
    make, expected = NETS[name]
    graph = survey(make(), SHAPE)
    assert {key: {k: n for k, n in of.items() if n} for key, of in graph.counts.items()} == expected
    assert [space.frozen for space in graph.spaces.values() if space.frozen] == ["it reaches the model's output"]
    assert_exact(make, SHAPE)


def test_a_narrow_net_holds_the_narrow_numbers_and_is_built_again_with_them() -> None:
    make = NETS["two of one class"][0]
    net = lively(make())
    surgeon = Surgeon(net, survey(net, SHAPE))
    surgeon.narrow("1.a", [0, 3, 5])
    surgeon.widen("2.a", 4)
    assert (net[1].width, net[2].width) == (3, 8)  # type: ignore[index]
    assert [len(net[k].a.weight) for k in (1, 2)] == [6, 16]  # type: ignore[index]
    structure = Structure.read(net, "nets:make", {})
    assert structure.numbers == structure.to_json()["numbers"] == {"1.width": 3, "2.width": 8}
    again = structure.build(make).double().eval()
    again.load_state_dict(net.state_dict())
    assert gap(again(*inputs(SHAPE)), net(*inputs(SHAPE))) == 0.0
    assert Structure.read(copy.deepcopy(again), "nets:make", {}).numbers == structure.numbers


@pytest.mark.parametrize(
    "numbers",
    [{"1.depth": 3}, {"9.width": 3}, {"1.width": 0}, {"1.width": True}, {"1.a.kernel_size.2": 3}, {"training": 3}],
)
def test_a_file_cannot_set_what_a_model_does_not_hold(numbers: dict[str, int]) -> None:
    make = NETS["halves"][0]
    structure = Structure.read(make(), "nets:make", {})
    with pytest.raises(ArtifactError, match="does not build the stored network"):
        Structure("nets:make", {}, structure.shapes, numbers=numbers).build(make)


def test_what_stands_in_the_code_keeps_its_number() -> None:
    net = headed(Net(lambda net, x: net.a(x)[:, :6] + net.b(x), a=conv(3, 6), b=conv(3, 6)), width=6)
    graph = survey(net, SHAPE)
    assert (graph.free, graph.counts) == (("2",), {})
    assert "breaks when it is wider" in (graph.spaces["0.a"].frozen or "")


def test_a_number_that_is_computed_with_as_well_keeps_its_channels() -> None:
    class Scaled(Half):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) / self.width
            return out

    graph = survey(headed(conv(3, 7), Scaled(7, 6), width=7), SHAPE)
    assert "others when their number changes" in (graph.spaces["1.a"].frozen or "")
    assert {"0", "1.b", "3"} <= set(graph.free)


def test_blocks_of_one_class_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(blocks: int) -> int:
        count, real = [0], module.attempted

        def counted(*args: object) -> object:
            count[0] += 1
            return real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "attempted", counted)
        graph = survey(headed(conv(3, 7), *(Half(7, 4 + k) for k in range(blocks)), width=7), SHAPE)
        monkeypatch.setattr(module, "attempted", real)
        assert len(graph.counts) == blocks
        return count[0]

    assert runs(9) == runs(2)


def test_numbers_are_whole_and_positive_and_known_by_where_they_stand() -> None:
    part = nn.Module()
    vars(part).update(width=3, none=0, yes=True, half=0.5, sizes=[4, 0, 5], pair=(6, "x"), text="7")
    assert numbers(part) == {"width": 3, "sizes.0": 4, "sizes.2": 5, "pair.0": 6}
    put(part, {"sizes.2": 9, "pair.0": 8, "width": 1})
    assert (part.sizes, part.pair, part.width) == ([4, 0, 9], (8, "x"), 1)


@dataclass(frozen=True)
class Config:
    """What several blocks share."""

    width: int
    kernel: int = 3


class Configured(nn.Module):
    """How many channels there are stands in a configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        width = config["width"] if isinstance(config, dict) else config.width
        self.a, self.b = conv(3, 2 * width), conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        width = self.config["width"] if isinstance(self.config, dict) else self.config.width
        y = self.a(x)
        return self.b(y[:, :width] * y[:, width:].sigmoid())


@pytest.mark.parametrize("kind", [dict, Config, SimpleNamespace, argparse.Namespace])
def test_numbers_of_a_configuration_are_followed_for_each_module_and_stay_for_all_others(kind: Any) -> None:
    config = kind(width=6, kernel=3)

    def make() -> nn.Module:
        return Net(lambda s, x: s.c(s.two(s.one(x))), one=Configured(config), two=Configured(config), c=conv(3, 2))

    assert set(survey(make(), SHAPE).free) == {"one.a", "one.b", "two.a", "two.b"}
    assert_exact(make, SHAPE)
    assert config == kind(width=6, kernel=3)
    net = make()
    put(net, {"one.config[width]": 4})
    assert (numbers(net.one)["config[width]"], numbers(net.two)["config[width]"]) == (4, 6)
    with pytest.raises(KeyError, match=r"no whole number one\.config\[depth\]"):
        put(net, {"one.config[depth]": 4})


class Stateful(nn.Module):
    """A recurrent layer, whole or step by step, that is given its first state; how long that is stands in a number."""

    def __init__(self, kind: Any, *, own: bool) -> None:
        super().__init__()
        self.r, self.hidden, self.own = kind(10, 16), 16, own
        self.z = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        size = self.hidden if self.own else self.r.hidden_size
        if isinstance(self.r, nn.RNNBase):
            zeros = x.new_zeros(1, x.shape[0], size)
            state = (zeros, zeros) if isinstance(self.r, nn.LSTM) else zeros
            return self.z(self.r(x.transpose(0, 1), state)[0][-1])
        zeros = x.new_zeros(x.shape[0], size)
        state = (zeros, zeros) if isinstance(self.r, nn.LSTMCell) else zeros
        for step in x.unbind(1):
            state = self.r(step, state)
        return self.z(state[0] if isinstance(state, tuple) else state)


class BothWays(nn.Module):
    """The two directions are added up: the number is a half of what there is."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.r, self.z = nn.GRU(10, 16, batch_first=True, bidirectional=True), nn.Linear(16, 5)
        self.hidden, self.cut = 16, cut

    def forward(self, x: Tensor) -> Tensor:
        out = self.r(x)[0]
        if self.cut:
            return self.z((out[..., : self.hidden] + out[..., self.hidden :])[:, -1])
        return self.z(out.view(x.shape[0], x.shape[1], 2, self.hidden).sum(2)[:, -1])


CELLS = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
STATEFUL = {f"{kind.__name__}, {'' if own else 'not '}its own": (kind, own) for kind in CELLS for own in (True, False)}


@pytest.mark.parametrize(
    "make",
    [partial(Stateful, kind, own=own) for kind, own in STATEFUL.values()]
    + [partial(BothWays, cut=c) for c in (True, False)],
)
def test_first_states_and_two_directions_follow_what_a_recurrent_layer_holds(make: Callable[[], nn.Module]) -> None:
    net = lively(make())
    graph, x = survey(net, (6, 10)), inputs((6, 10))
    (name,) = graph.free
    before = net(*x)
    for wide in (True, False):
        surgeon, whole = Surgeon(copy.deepcopy(net), graph), copy.deepcopy(net)
        if wide:
            surgeon.widen(name, 5)
        else:
            silence(whole, graph, name, [0, 3, 15])
            surgeon.narrow(name, sorted(set(range(16)) - {0, 3, 15}))
        assert gap(surgeon.model(*x), before if wide else whole(*x)) <= 1e-10
        cost, counted = graph.price.cost(surgeon.graph.widths), measure(surgeon.model, (6, 10))
        assert (cost.params, cost.macs, cost.thop) == (counted.params, counted.macs, counted.thop)
