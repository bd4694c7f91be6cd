"""Weight norms are followed where a net has them, and multiplied in before it is trained or finished."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from exact import assert_exact, gap, inputs, lively
from nets import Net, conv
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as older

from compress.surgery.plain import plain, unnormed
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)


def old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return older(layer)


OWN = {f"{layer}.{leaf}" for layer in ("a", "b", "d", "fc") for leaf in ("weight", "bias")}
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {"new": parametrizations.weight_norm, "old": old}


def make(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda s, x: s.fc(s.d(fn.relu(s.b(fn.relu(s.a(x)))).mean((2, 3)))),
        a=norm(conv(3, 6)), b=norm(conv(6, 5)), d=norm(nn.Linear(5, 7)), fc=nn.Linear(7, 4))  # fmt: skip


def test_filters_with_a_norm_of_their_own_are_free_and_edits_are_exact() -> None:
    graph = survey(make(NORMS["new"]), SHAPE)
    assert graph.widths == {"a": 6, "b": 5, "d": 7}
    assert_exact(lambda: make(NORMS["new"]), SHAPE)


def test_the_older_weight_norm_is_read_alike() -> None:
    assert list(survey(make(NORMS["old"]), SHAPE).widths.values()) == [6, 5, 7]


@pytest.mark.parametrize("name", NORMS)
def test_multiplied_in_the_net_computes_the_same_with_weights_of_its_own(name: str) -> None:
    net = make(NORMS[name]).eval()
    x = torch.rand(2, *SHAPE)
    before = net(x)
    for other in (plain(net), unnormed(make(NORMS[name])).eval()):
        assert gap(other(x), before) < 1e-6
        assert {n for n, _ in other.named_parameters()} == OWN
    assert len(list(net.parameters())) == 11, "the model itself keeps its norms"


@pytest.mark.parametrize("name", NORMS)
def test_a_finished_net_is_built_again_by_a_factory_that_has_norms(name: str) -> None:
    net = lively(unnormed(make(NORMS[name])))
    surgeon = Surgeon(net, survey(net, SHAPE))
    surgeon.narrow("a", [0, 2, 5])
    structure = Structure.read(net, "nets:make", {})
    again = structure.build(lambda: make(NORMS[name])).double().eval()
    again.load_state_dict(net.state_dict())
    assert gap(again(*inputs(SHAPE)), net(*inputs(SHAPE))) == 0.0


def test_other_parametrizations_and_masks_are_left_to_the_end() -> None:
    net = Net(lambda s, x: s.b(s.a(x)), a=parametrizations.orthogonal(conv(3, 6)), b=conv(6, 5))
    prune.random_unstructured(net.b, "weight", 0.5)
    before = copy.deepcopy(sorted(net.state_dict()))
    assert sorted(unnormed(net).state_dict()) == before != sorted(plain(net).state_dict())
