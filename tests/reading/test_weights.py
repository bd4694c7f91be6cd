"""What is computed from parameters and buffers alone follows their channels, or fixes what it runs over."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as fn
from exact import assert_exact, why
from nets import Net, conv
from torch import Tensor, nn

from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE, C = (3, 12, 12), 6
Middle = Callable[[Net, Tensor], Tensor]


def between(middle: Middle, after: int = C, **parts: object) -> Net:
    """A convolution `a`, what is between, a convolution `b` and a head."""
    run = lambda s, x: s.fc(fn.relu(s.b(middle(s, s.a(x)))).mean((2, 3)))  # noqa: E731
    return Net(run, a=conv(3, C), **parts, b=conv(after, 5), fc=nn.Linear(5, 4))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape))


def frozen_norm(s: Net, x: Tensor) -> Tensor:
    """As detectors write batch norm that is not trained: four buffers, a scale and a bias made of them."""
    scale = s.weight.reshape(1, -1, 1, 1) * (s.v.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
    return x * scale + (s.bias.reshape(1, -1, 1, 1) - s.mean.reshape(1, -1, 1, 1) * scale)


def blurred(s: Net, x: Tensor) -> Tensor:
    return fn.conv2d(fn.pad(x, (1, 1, 1, 1), mode="reflect"), s.kernel, stride=2, groups=x.shape[1])


def kernel(channels: int) -> nn.Buffer:
    side = torch.tensor([1.0, 2.0, 1.0])
    return nn.Buffer((side[:, None] * side / 16).repeat(channels, 1, 1, 1))


def buffers() -> dict[str, nn.Buffer]:
    return {name: nn.Buffer(torch.rand(C) + 0.5) for name in ("weight", "bias", "mean", "v")}


FOLLOWS: dict[str, Callable[[], Net]] = {
    "a frozen batch norm": lambda: between(frozen_norm, **buffers()),
    "a blur": lambda: between(blurred, kernel=kernel(C)),
    "a sharpened blur": lambda: between(lambda s, x: fn.conv2d(x, 2 * s.kernel, groups=len(x[0])), kernel=kernel(C)),
    "a layer scale": lambda: between(lambda s, x: x + s.g.view(1, -1, 1, 1) * s.c(x), g=parameter(C), c=conv(C, C)),
    "a gate through a sigmoid": lambda: between(lambda s, x: torch.sigmoid(s.g) * x, g=parameter(C, 1, 1)),
    "one and a gate": lambda: between(lambda s, x: (1 + s.g) * x, g=parameter(1, C, 1, 1)),
    "a factor through softplus": lambda: between(lambda s, x: x * fn.softplus(s.g), g=parameter(C, 1, 1)),
    "the product of two": lambda: between(lambda s, x: x * (s.g * s.h)[:, None, None], g=parameter(C), h=parameter(C)),
    "a gate of a file and of training": lambda: between(
        lambda s, x: x * (s.g.exp() - s.h)[None, :, None, None], g=parameter(C), h=nn.Buffer(torch.rand(C))
    ),
    "a mask on each filter": lambda: between(
        lambda s, x: fn.conv2d(x, s.c.weight * s.m.view(-1, 1, 1, 1)), c=conv(C, 4, 1), after=4,
        m=nn.Buffer(torch.rand(4))
    ),
    "a gain on each filter": lambda: between(
        lambda s, x: fn.conv2d(x, s.g[:, None, None, None] * s.c.weight), c=conv(C, 4, 1), g=parameter(4), after=4
    ),
    "a weight cut to a range": lambda: between(
        lambda s, x: fn.conv2d(x, s.c.weight.clamp(-1, 1), s.c.bias.tanh()), c=conv(C, 4, 1), after=4
    ),
    "a matrix through tanh": lambda: Net(
        lambda s, x: s.fc(fn.linear(s.a(x).mean((2, 3)), s.l.weight.tanh())), a=conv(3, C), l=nn.Linear(C, 5),
        fc=nn.Linear(5, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLLOWS)
def test_what_is_computed_from_them_number_by_number_follows_their_channels(case: str) -> None:
    graph = survey(FOLLOWS[case](), SHAPE)
    assert set(why(graph)) == {"fc"}, why(graph)
    assert_exact(FOLLOWS[case], SHAPE)


def standardised(s: Net, x: Tensor) -> Tensor:
    """Qiao et al. 2019, "Weight Standardization": every filter has mean 0 and variance 1."""
    w = s.c.weight
    w = w - w.mean((1, 2, 3), keepdim=True)
    return fn.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), s.c.bias)


def standardised_as_a_norm(s: Net, x: Tensor) -> Tensor:
    """The same as a batch norm of the weight, as fast code writes it."""
    w = s.c.weight
    flat = fn.batch_norm(w.reshape(1, len(w), -1), None, None, weight=s.g * 0.5, training=True, momentum=0.0)
    return fn.conv2d(x, flat.reshape_as(w), s.c.bias)


RUNS_OVER: dict[str, tuple[Callable[[], Net], str]] = {
    "a standardised convolution": (lambda: between(standardised, c=conv(C, 4, 1), after=4), "mean runs over it"),
    "a standardised convolution by a norm": (
        lambda: between(standardised_as_a_norm, c=conv(C, 4, 1), g=parameter(4), after=4),
        "averages over it",
    ),
    "filters of length 1": (
        lambda: between(
            lambda s, x: fn.conv2d(x, fn.normalize(s.c.weight, dim=(1, 2, 3))), c=conv(C, 4, 1), after=4
        ),
        "runs over it",
    ),
    "a softmax over what is read": (
        lambda: between(lambda s, x: fn.conv2d(x, s.c.weight.softmax(1)), c=conv(C, 4, 1), after=4),
        "softmax averages over it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS_OVER)
def test_filters_that_are_made_equal_are_free_and_what_they_read_stays_for_that_reason(case: str) -> None:
    make, reason = RUNS_OVER[case]
    graph = survey(make(), SHAPE)
    assert set(graph.free) == {"b", "c"}, why(graph)
    assert reason in why(graph)["a"]
    assert_exact(make, SHAPE)


def test_a_fixed_kernel_goes_on_as_it_is_in_new_channels() -> None:
    net = between(blurred, kernel=kernel(C))
    surgeon = Surgeon(net, survey(net, SHAPE))
    surgeon.widen("a", 5)
    assert torch.equal(net.kernel, kernel(C + 5))
    assert [name for name, _ in surgeon.graph.spaces["a"].producers] == ["a.weight"]  # a buffer makes no channels


def test_a_bank_of_fixed_filters_keeps_what_it_makes_and_what_it_reads() -> None:
    net = between(lambda s, x: fn.conv2d(x, s.bank), after=4, bank=nn.Buffer(torch.rand(4, C, 1, 1)))
    assert why(survey(net, SHAPE)) == {
        "a": "bank is a buffer", "bank": "bank is a buffer", "fc": "it reaches the model's output",
    }  # fmt: skip


def test_what_meets_a_tensor_of_a_size_of_its_own_is_not_free() -> None:
    net = between(lambda s, x: x * (s.g + torch.linspace(0, 1, C))[:, None, None], g=parameter(C))
    assert "a" in why(survey(net, SHAPE))
