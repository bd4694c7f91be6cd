"""Operators that run over pixels, positions or branches leave channels free; those that run over channels do not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as fn
from exact import assert_exact, why
from nets import Net, conv
from torch import Tensor, nn

from compress.reading.inputs import Shape
from compress.surgery.survey import survey

SHAPE, C = (3, 8, 8), 6
Middle = Callable[[Net, Tensor], Tensor]


def between(middle: Middle, **parts: object) -> Net:
    """A convolution `a`, what is between [N, C, ...] and [N, C], a layer `b` and a head."""
    run = lambda s, x: s.fc(fn.relu(s.b(middle(s, s.a(x)))))  # noqa: E731
    return Net(run, a=conv(3, C), **parts, b=nn.Linear(C, 5), fc=nn.Linear(5, 4))


def attended(s: Net, x: Tensor) -> Tensor:
    """A weighted average over pixels, as attention pooling makes it."""
    return (x.flatten(2) * s.p(x).flatten(2).softmax(-1)).sum(-1)


def selected(s: Net, x: Tensor) -> Tensor:
    """Two branches, each channel's share of them by a softmax: selective kernels, Li et al. 2019."""
    both = torch.stack([fn.relu(s.p(x)), fn.relu(s.q(x))], 1)
    z = fn.relu(s.z(both.sum(1).mean((2, 3))))
    shares = torch.stack([s.one(z), s.two(z)], 1).softmax(1)
    return (both * shares[..., None, None]).sum(1).mean((2, 3))


def branches(x: Tensor, s: Net) -> Tensor:
    return torch.stack([s.p(x), s.q(x), x])


FREE: dict[str, tuple[Callable[[], Net], Shape, set[str]]] = {
    "a softmax over pixels": (lambda: between(attended, p=conv(C, C, 1)), SHAPE, {"a", "b"}),
    "a softmax over branches": (
        lambda: between(selected, p=conv(C, C), q=conv(C, C), z=nn.Linear(C, 4), one=nn.Linear(4, C),
            two=nn.Linear(4, C)),
        SHAPE, {"a", "p", "z", "b"}),
    "branches stacked and summed up": (
        lambda: between(lambda s, x: branches(x, s).sum(0).mean((2, 3)), p=conv(C, C, 1), q=conv(C, C, 1)),
        SHAPE, {"a", "b"}),
    "the largest of branches": (
        lambda: between(lambda s, x: branches(x, s).amax(0).mean((2, 3)), p=conv(C, C, 1), q=conv(C, C, 1)),
        SHAPE, {"a", "b"}),
    "the deviation of branches": (
        lambda: between(lambda s, x: branches(x, s).std(0).mean((2, 3)), p=conv(C, C, 1), q=conv(C, C, 1)),
        SHAPE, {"a", "b"}),
    "a deviation over pixels": (lambda: between(lambda s, x: x.std((2, 3))), SHAPE, {"a", "b"}),
    "a variance over pixels": (lambda: between(lambda s, x: x.var((2, 3), unbiased=False)), SHAPE, {"a", "b"}),
    "mean and variance over pixels": (
        lambda: between(lambda s, x: torch.mul(*torch.var_mean(x, (2, 3)))), SHAPE, {"a", "b"}),
    "a norm over pixels": (lambda: between(lambda s, x: x.flatten(2).norm(dim=2)), SHAPE, {"a", "b"}),
    "another norm over pixels": (
        lambda: between(lambda s, x: torch.linalg.vector_norm(x, 3, (2, 3))), SHAPE, {"a", "b"}),
    "the largest pixel": (lambda: between(lambda s, x: x.flatten(2).max(2).values), SHAPE, {"a", "b"}),
    "the smallest in each row": (lambda: between(lambda s, x: x.min(3).values.mean(2)), SHAPE, {"a", "b"}),
    "a product of pixels": (lambda: between(lambda s, x: x.mean(3).tanh().prod(2)), SHAPE, {"a", "b"}),
    "the logarithm of a sum": (lambda: between(lambda s, x: x.flatten(2).logsumexp(2)), SHAPE, {"a", "b"}),
    "a layer norm over pixels": (
        lambda: between(lambda s, x: fn.layer_norm(x, (8, 8)).relu().mean((2, 3))), SHAPE, {"a", "b"}),
    "pixels made to length 1": (
        lambda: between(lambda s, x: fn.normalize(x.flatten(2), dim=2).amax(2)), SHAPE, {"a", "b"}),
    "an instance norm": (
        lambda: between(lambda s, x: s.n(x).relu().mean((2, 3)), n=nn.InstanceNorm2d(C, affine=True)),
        SHAPE, {"a", "b"}),
    "one row at a time": (
        lambda: between(lambda s, x: fn.max_pool1d(x.flatten(2), 4).mean(2)), SHAPE, {"a", "b"}),
    "the largest of parts of a row": (
        lambda: between(lambda s, x: fn.adaptive_max_pool1d(x.flatten(2), 3).mean(2)), SHAPE, {"a", "b"}),
}  # fmt: skip


@pytest.mark.parametrize("case", FREE)
def test_what_runs_over_other_axes_leaves_channels_free_and_edits_are_exact(case: str) -> None:
    make, shape, free = FREE[case]
    graph = survey(make(), shape)
    assert set(graph.free) == free, why(graph)
    assert_exact(make, shape)


OVER: dict[str, Middle] = {
    "a softmax": lambda s, x: x.softmax(1).amax((2, 3)),
    "a deviation": lambda s, x: (x / x.std(1, keepdim=True)).mean((2, 3)),
    "a norm": lambda s, x: (x / x.norm(dim=1, keepdim=True)).mean((2, 3)),
    "the largest": lambda s, x: (x - x.max(1, keepdim=True).values).mean((2, 3)),
    "all numbers": lambda s, x: (x - x.mean()).amax((2, 3)),
    "a layer norm over all": lambda s, x: fn.layer_norm(x, (C, 8, 8)).relu().mean((2, 3)),
    "branches, each over its channels": lambda s, x: (x - branches(x, s).mean(2).mean(0)[:, None]).mean((2, 3)),
}


@pytest.mark.parametrize("case", OVER)
def test_what_runs_over_channels_keeps_their_number(case: str) -> None:
    graph = survey(between(OVER[case], p=conv(C, C, 1), q=conv(C, C, 1)), SHAPE)
    assert "a" in why(graph)
    assert any(word in why(graph)["a"] for word in ("runs over channels", "averages over it")), why(graph)


@pytest.mark.parametrize(
    "act",
    [torch.atan, torch.asinh, fn.selu, torch.trunc, torch.erfc, torch.sinc, torch.nan_to_num,
     lambda x: torch.atan2(x, x + 1), lambda x: torch.hypot(x, x.roll(1, 2)), lambda x: torch.logaddexp(x, -x)],
)  # fmt: skip
def test_what_torch_itself_calls_element_by_element_needs_no_row(act: Callable[[Tensor], Tensor]) -> None:
    make = lambda: between(lambda s, x: act(x).mean((2, 3)))  # noqa: E731
    assert survey(make(), SHAPE).free == ("a", "b")
    assert_exact(make, SHAPE)
