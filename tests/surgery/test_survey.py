"""What Python does with channels, beyond what operators say, is seen by trying it with numbers."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from blocks import chain, every_other, written
from exact import gap, inputs, lively
from hypothesis import given
from hypothesis import strategies as st
from nets import Net, conv
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import compress.surgery.survey as module
from compress.errors import UsageError
from compress.reading.graph import read
from compress.surgery.proof import Proof, halves, silence
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import by_halves, survey

SHAPE, C = (3, 12, 12), 16
Trick = Callable[[Tensor], Tensor]


def made(trick: Trick, after: int = C) -> Net:
    """A convolution, what is done with its channels, another convolution and a head."""
    forward = lambda s, x: s.fc(fn.relu(s.b(trick(s.a(x)))).mean((2, 3)))  # noqa: E731
    return Net(forward, a=conv(3, C), b=conv(after, 24), fc=nn.Linear(24, 4))


def written_through_a_view(x: Tensor, upto: int) -> Tensor:
    x[:, :upto].relu_()
    return x


def of_two(x: Tensor, sizes: Sequence[int]) -> Tensor:
    one, other = x.split(sizes, 1)
    return torch.cat([one.sigmoid(), other], 1)


def shifted(x: Tensor, parts: int) -> Tensor:
    k, out = x.shape[1] // parts, torch.zeros_like(x)
    out[:, :k, 1:], out[:, k : 2 * k, :-1] = x[:, :k, :-1], x[:, k : 2 * k, 1:]
    out[:, 2 * k :] = x[:, 2 * k :]
    return out


def rolled(x: Tensor) -> Tensor:
    """Some channels see the picture two pixels to the right."""
    k = x.shape[1] // 2
    return torch.cat([x[:, :k], x[:, k:].roll(2, 3)], 1)


def normed(x: Tensor) -> Tensor:
    k = x.shape[1] // 2
    return torch.cat([fn.instance_norm(x[:, :k]), x[:, k:]], 1)


APART: dict[str, Trick] = {
    "relu on the first eight": lambda x: torch.cat([x[:, :8].relu(), x[:, 8:]], 1),
    "relu on the first half": lambda x: torch.cat([x[:, : len(x[0]) // 2].relu(), x[:, len(x[0]) // 2 :]], 1),
    "tanh on the last third": lambda x: torch.cat([x[:, : -(len(x[0]) // 3)], x[:, -(len(x[0]) // 3) :].tanh()], 1),
    "a quarter is written over": lambda x: written(x, len(x[0]) // 4),
    "eight are written over": lambda x: written(x, 8),
    "eight are written over in a view": lambda x: written_through_a_view(x, 8),
    "every other one": every_other,
    "split at a quarter": lambda x: of_two(x, [len(x[0]) // 4, len(x[0]) - len(x[0]) // 4]),
    "split at five": lambda x: of_two(x, [5, len(x[0]) - 5]),
    "a quarter up, a quarter down": lambda x: shifted(x, 4),
    "an eighth up, an eighth down": lambda x: shifted(x, 8),
    "half of them rolled": rolled,
    "half of them pooled": lambda x: torch.cat(
        [fn.avg_pool2d(x[:, : len(x[0]) // 2], 3, 1, 1), x[:, len(x[0]) // 2 :]], 1
    ),
    "half of them normed": normed,
    "narrowed": lambda x: torch.cat([x.narrow(1, 0, 4) * 2, x.narrow(1, 4, len(x[0]) - 4)], 1),
    "in three uneven chunks": lambda x: torch.cat([x.chunk(3, 1)[0] * 2, *x.chunk(3, 1)[1:]], 1),
}


@pytest.mark.parametrize("name", APART)
def test_channels_that_operators_treat_apart_are_frozen_for_that_reason(name: str) -> None:
    assert "a" in read(made(APART[name]), SHAPE).free, "the operators alone tell: this needs no trial"
    graph = survey(made(APART[name]), SHAPE)
    assert graph.free == ("b",)
    said = graph.spaces["a"].frozen or ""
    assert "takes some of its channels apart, and others when their number changes" in said or "breaks when" in said


COUNTED: dict[str, Trick] = {
    "over the root of their number": lambda x: x * x.shape[1] ** -0.5,
    "over their number": lambda x: x / x.shape[1],
    "by whether they are many": lambda x: x if x.shape[1] > 12 else -x,
    "a kernel as large as they are many": lambda x: fn.avg_pool2d(x, 1 + len(x[0]) // 8, 1, len(x[0]) // 16),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_a_model_computes_from_the_number_of_channels_keeps_that_number(name: str) -> None:
    graph = survey(made(COUNTED[name]), SHAPE)
    assert graph.free == ("b",)
    said = graph.spaces["a"].frozen or ""
    assert "computes something else when their number changes" in said or "breaks when" in said


def thresholds(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :5].clamp_(-9, 9)
    return x


def half_relu(x: Tensor) -> Tensor:
    return torch.cat([x[:, : x.shape[1] // 2].relu(), x[:, x.shape[1] // 2 :]], 1)


def remembering(net: Net, x: Tensor) -> Tensor:
    out = net.fc(half_relu(net.a(x)).mean((2, 3)))
    net.m.mul_(0.9).add_(out.mean(0) * 0.1)
    return out - net.m


def ended(pre: Trick, post: Trick) -> Net:
    """A net that does something to its input, treats half of its channels apart, and does something to its output."""
    return Net(lambda s, x: post(s.fc(half_relu(s.a(pre(x))).mean((2, 3)))), a=conv(3, C), fc=nn.Linear(C, 4))


HIDDEN: dict[str, Callable[[], Net]] = {
    "a threshold that small numbers never reach": lambda: made(thresholds),
    "relu and relu6": lambda: made(
        lambda x: torch.cat([fn.relu6(x[:, : x.shape[1] // 2]), x[:, x.shape[1] // 2 :].relu()], 1)
    ),
    "a root of the input": lambda: ended(lambda x: x.pow(0.45), lambda x: x),
    "a logarithm of the input": lambda: ended(lambda x: x.log(), lambda x: x),
    "a class that is never chosen": lambda: ended(
        lambda x: x, lambda x: x.masked_fill(torch.tensor([1, 0, 0, 0], device=x.device).bool(), -torch.inf)
    ),
    "complex numbers": lambda: ended(lambda x: x, lambda x: torch.complex(x, 2 * x)),
    "a memory of what it has seen": lambda: Net(
        remembering, a=conv(3, C), fc=nn.Linear(C, 4), m=nn.Buffer(torch.zeros(4))
    ),
    "dice of Python": lambda: ended(lambda x: x, lambda x: x + random.random() * 1e-3),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_treated_apart_is_frozen_whatever_hides_it(name: str) -> None:
    graph = survey(HIDDEN[name](), SHAPE)
    assert "takes some of its channels apart" in (graph.spaces["a"].frozen or "")


ALIKE: dict[str, Trick] = {
    "two halves, one of them through relu": lambda x: torch.cat([x.chunk(2, 1)[0].relu(), x.chunk(2, 1)[1]], 1),
    "two halves that change places": lambda x: torch.cat(x.split(len(x[0]) // 2, 1)[::-1], 1),
    "pixels cut off": lambda x: torch.cat([x[:, :, 2:], x[:, :, :2].relu()], 2),
    "shuffled": lambda x: fn.channel_shuffle(x, 2),
    "all of them": lambda x: x[:, :] + x.narrow(1, 0, x.shape[1]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_treats_all_channels_alike_stays_free(name: str) -> None:
    assert survey(made(ALIKE[name]), SHAPE).free == ("a", "b")


def test_a_trial_sees_what_cutting_the_silent_channels_of_such_a_net_would_do() -> None:
    graph = read(made(APART["relu on the first eight"]), SHAPE)
    proof = Proof(made(APART["relu on the first eight"]), graph)
    assert (proof.dtype, proof.fails(["a"]), proof.fails(["b"]), proof.fails(["b", "a"])) == (
        torch.float64, True, False, True,
    )  # fmt: skip


def ways_apart(width: int) -> dict[str, Callable[[int, int], object]]:
    """How channel i of n may be treated apart, by what it is called."""
    ways: dict[str, Callable[[int, int], object]] = {}
    for period in (2, 3, 4)[: width - 2]:
        ways[f"every {period}"] = lambda i, n, period=period: i % period
    for many in range(1, width):
        ways[f"the first {many}"] = lambda i, n, many=many: i < many
    for part in (8, 4, 3, 2):
        if width >= part:
            ways[f"the first of {part} parts"] = lambda i, n, part=part: i < n // part
    return ways


@given(st.integers(3, 200), st.integers(0, 99))
def test_one_of_the_two_halves_meets_another_treatment_wherever_channels_are_treated_apart(
    width: int, seed: int
) -> None:
    both = halves(width, seed)
    assert all(len(kept) == (width + 1) // 2 and kept == sorted(set(kept)) for kept in both)
    for way, treated in ways_apart(width).items():
        assert any(treated(old, width) != treated(new, len(kept)) for kept in both for new, old in enumerate(kept)), way


MISSED_ONCE = [  # by a single half, or by numbers that happened to be positive
    ["relu on five", "pooled and back"],
    ["every other", "shared by two"],
    ["up and down", "relu on a quarter"],
    ["frozen norm", "relu on a quarter"],
    ["positions", "every other", "slices", "over the deviation"],
    ["halves change places", "every other"],
    ["slices", "blur"],
    ["norm and slope", "relu on a quarter", "halves change places", "depthwise", "fixed bank"],
    ["pixels", "mirrored edge", "pooled and back", "relu on a quarter", "gate"],
]


@torch.no_grad()
@pytest.mark.parametrize("names", MISSED_ONCE, ids=", ".join)
def test_what_is_free_is_exact_whichever_half_is_cut(names: list[str]) -> None:
    net = lively(chain(names))
    graph, x, chance = survey(net, (3, 8, 8)), inputs((3, 8, 8)), random.Random(0)
    for _ in range(12):
        silent, narrow = copy.deepcopy(net), Surgeon(copy.deepcopy(net), graph)
        for name, width in graph.widths.items():
            kept = sorted(chance.sample(range(width), max(1, width // 2)))
            silence(silent, graph, name, sorted(set(range(width)) - set(kept)))
            narrow.narrow(name, kept)
        assert gap(narrow.model(*x), silent(*x)) <= 1e-9


def test_filters_that_groups_do_not_divide_break_a_model_without_numbers_too() -> None:
    blur = lambda s, x: fn.conv2d(x, s.k, groups=x.shape[1])  # noqa: E731
    with pytest.raises(UsageError, match="5 groups has 8 filters"):
        read(Net(blur, k=nn.Buffer(torch.ones(8, 1, 1, 1))), (5, 8, 8))


def test_a_net_that_insists_on_float32_is_tried_in_that() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.fc(net.b(torch.cat([y[:, :5], y[:, 5:].relu()], 1)).mean((2, 3)) + torch.eye(24)[:1].float())

    net = Net(lambda s, x: forward(s, x.float()), a=conv(3, C), b=conv(C, 24), fc=nn.Linear(24, 4))
    assert Proof(net, read(net, SHAPE)).dtype == torch.float32
    assert survey(net, SHAPE).free == ()  # a fixed row meets b


def test_what_does_not_run_with_numbers_or_throws_dice_is_not_told_by_them() -> None:
    def picky(x: Tensor) -> Tensor:
        if x.device.type != "meta" and bool(x.abs().max() > 0):
            raise ValueError("not these numbers")
        return x

    net = made(picky)
    assert Proof(net, read(net, SHAPE)).dtype is None
    assert survey(net, SHAPE).free == ("a", "b")


def test_roots_and_logarithms_are_tried_with_positive_numbers() -> None:
    net = made(lambda x: x.log())
    net.a.bias = nn.Parameter(torch.ones(C))  # type: ignore[assignment]
    assert survey(net, SHAPE).free == ("a", "b")


@pytest.mark.parametrize("bad", [set(), {3}, {0, 7}, {1, 2, 5}, set(range(8))])
def test_halving_finds_all_that_fail_and_no_other(bad: set[int]) -> None:
    names, trials = [str(number) for number in range(8)], []

    def fails(some: Sequence[str]) -> bool:
        trials.append(some)
        return any(int(name) in bad for name in some)

    assert set(by_halves(names, fails)) == {str(number) for number in bad}
    assert len(trials) <= 1 + 2 * len(bad) * 3


def test_a_run_never_cuts_what_would_change_the_net() -> None:
    net = made(APART["a quarter up, a quarter down"]).eval()
    surgeon = Surgeon(net, survey(net, SHAPE))
    with pytest.raises(Exception, match=r"a cannot change its width: .* apart"):
        surgeon.narrow("a", range(8))


class Split(nn.Module):
    """Half of what a convolution makes goes through another one; how many that is stands in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(width, 2 * width, 1), conv(width, width), conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).split([8, 8], 1)
        out: Tensor = x + self.c(torch.cat([one, self.b(other).relu()], 1))
        return out


def test_of_many_that_break_each_is_found_where_it_breaks_and_not_by_reading_the_net_once_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = 12
    net = nn.Sequential(conv(3, 8), *(Split(8) for _ in range(blocks)), nn.Flatten(), nn.Linear(8 * 144, 4))
    looks = {"read": 0, "ghost": 0}  # whole looks, and forward passes without numbers
    for name in looks:
        real = getattr(module, name)

        def counted(*args: object, real: object = real, name: str = name, **kwargs: object) -> object:
            looks[name] += 1
            return real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counted)
    graph = module.survey(net, SHAPE)
    assert {n for n, space in graph.spaces.items() if "sum exactly" in (space.frozen or "")} == {
        f"{number}.a" for number in range(1, blocks + 1)
    }
    assert set(graph.free) == {"0", *(f"{number}.b" for number in range(1, blocks + 1))}
    assert looks["read"] <= 4
    assert looks["ghost"] <= 3 * blocks


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(lambda s, x: s.b(s.a(x)), a=conv(3, C), b=weight_norm(nn.ConvTranspose2d(C, 8, 2, 2))),
        lambda: Net(lambda s, x: s.r(x.flatten(2))[0], r=weight_norm(nn.GRU(144, C, batch_first=True), "weight_hh_l0")),
    ],
)
def test_weights_that_are_computed_from_what_does_not_change_together_are_frozen_and_no_crash(make: Any) -> None:
    graph = survey(make(), SHAPE)
    assert all(space.frozen for space in graph.spaces.values())


def test_a_net_that_magnifies_rounding_is_tried_with_numbers_that_it_does_not_magnify() -> None:
    forward = lambda s, x: s.c(torch.sin(s.b(torch.relu(s.a(x))).pow(12)))  # noqa: E731
    net = Net(forward, a=nn.Linear(64, 2000), b=nn.Linear(2000, 50), c=nn.Linear(50, 8))
    assert survey(net, (64,)).free == ("a", "b")
    broken = lambda s, x: s.c(torch.sin(s.b(torch.relu(s.a(x)) * s.a.out_features).pow(12)))  # noqa: E731
    net = Net(broken, a=nn.Linear(64, 2000), b=nn.Linear(2000, 50), c=nn.Linear(50, 8))
    assert "a" not in survey(net, (64,)).free  # b: where the machine sums 25 columns in the order of 50
