"""Masks are cut out, what still speaks stays, and the compact network computes what the masked one did."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.nn.utils import parametrizations, prune

from compress import models
from compress.errors import ArtifactError
from compress.reading.ghost import copied
from compress.reading.graph import read
from compress.reading.measure import measure
from compress.surgery.finalize import DOUBLE, SINGLE, compare, finalize
from compress.surgery.plain import plain
from compress.surgery.proof import silence
from compress.surgery.structure import Structure
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)
STRUCTURE = Structure("compress.models:vgg", {})


class Net(nn.Module):
    """conv `a` (6 filters), norm `n`, `middle`, then conv `b` and a linear layer on its average."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = fn.relu, **options: object) -> None:
        super().__init__()
        self.middle = middle
        self.a, self.n = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, **options)
        self.b, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(fn.relu(self.b(self.middle(self.n(self.a(x))))).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: models.vgg([6, 7], [1], hidden=[5], classes=4, size=8, last_pool="avg"),
    "resnet, option A": lambda: models.resnet_cifar([1, 1, 1], [4, 6, 8], option="A", classes=4),
    "resnet, option B": lambda: models.resnet_cifar([2, 1], [4, 6], option="B", classes=4),
    "densenet": lambda: models.densenet([2, 2], growth=3, init=4, bottleneck=5, shrink=2, classes=4),
    "bottlenecks": lambda: models.bottleneck4resnet(width=2, classes=4, stem="cifar"),
}


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode, with no number that hides anything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return model.eval()


def images(count: int = 3) -> Iterator[Tensor]:
    """Batches that can be looked at once only, as those of a data set."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(4, *SHAPE, generator=generator) for _ in range(count))


@torch.no_grad()
def gap(one: nn.Module, other: nn.Module, dtype: torch.dtype = torch.float64) -> float:
    nets = [copied(net, lambda t: t.to(dtype) if t.is_floating_point() else t.clone()) for net in (one, other)]
    return max(float((nets[0](x.to(dtype)) - nets[1](x.to(dtype))).abs().max()) for x in images())


@settings(max_examples=5)
@given(st.sampled_from(sorted(NETS)), st.randoms(use_true_random=False))
def test_silenced_channels_are_gone_and_nothing_changes(name: str, chance: object) -> None:
    net = lively(NETS[name]())
    graph = survey(net, SHAPE)
    masked = {}
    for space in graph.free:
        width = graph.widths[space]
        masked[space] = chance.sample(range(width), chance.randint(0, width - 1))
        silence(net, graph, space, masked[space])
    compact = finalize(net, SHAPE, STRUCTURE, images())
    assert compact.removed == {space: len(gone) for space, gone in masked.items() if gone}
    assert gap(net, compact.model) <= DOUBLE
    assert compact.drift <= SINGLE
    widths = {space: width - len(masked[space]) for space, width in graph.widths.items()}
    assert compact.cost == graph.price.cost(widths) == measure(compact.model, SHAPE)
    assert compact.cost.params == sum(p.numel() for p in compact.model.parameters())
    assert finalize(compact.model, SHAPE, STRUCTURE).removed == {}  # no mask is left


def test_the_result_is_plain_and_its_structure_holds_its_shapes() -> None:
    net = lively(Net()).train().to(memory_format=torch.channels_last)
    silence(net, read(net, SHAPE), "a", [0, 4])
    compact = finalize(net, SHAPE, Structure("./net.py:Net", {"x": 1}), images())
    model = compact.model
    assert (compact.shape, compact.removed) == (SHAPE, {"a": 2})
    assert (compact.structure.factory, compact.structure.args) == ("./net.py:Net", {"x": 1})
    assert compact.structure.shapes == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert not any(module.training for module in model.modules())
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in model.parameters())
    assert net.training
    assert net.a.weight.shape[0] == 6


def test_with_nothing_to_remove_outputs_are_equal_bit_for_bit() -> None:
    for make in NETS.values():
        net = lively(make())
        compact = finalize(net, SHAPE, STRUCTURE, images())
        assert (compact.removed, compact.drift) == ({}, 0.0)
        assert gap(net, compact.model, torch.float32) == 0.0


def test_a_pruned_filter_behind_a_batch_norm_with_bias_still_speaks() -> None:
    net = lively(Net())
    prune.random_structured(net.a, "weight", 2, dim=0)
    prune.custom_from_mask(net.a, "bias", net.a.weight_mask.flatten(1).amax(1))
    dead = net.a.bias_mask.eq(0)
    assert dead.sum() == 2
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}
    with torch.no_grad():
        net.n.bias[dead] = 0.0
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}  # its running mean still does
    with torch.no_grad():
        net.n.weight[dead] = 0.0
    compact = finalize(net, SHAPE, STRUCTURE, images())
    assert compact.removed == {"a": 2}
    assert gap(net, compact.model) <= DOUBLE


def test_zero_gamma_and_beta_silence_a_filter_whatever_its_weights_are() -> None:
    net = lively(Net())
    with torch.no_grad():
        net.n.weight[[1, 3]] = 0.0
        net.n.bias[[1, 3]] = 0.0
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {"a": 2}
    net.middle = torch.sigmoid  # which makes one half of zero
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}


def test_a_filter_without_norm_or_bias_is_silent_when_it_is_zero() -> None:
    net = lively(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(2)))
    with torch.no_grad():
        net[0].weight[2] = 0.0
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {"0": 1}
    shifted = lively(Net(affine=False))
    with torch.no_grad():
        shifted.a.weight[2] = shifted.a.bias[2] = 0.0
    assert finalize(shifted, SHAPE, STRUCTURE, images()).removed == {}  # minus its running mean
    with torch.no_grad():
        shifted.n.running_mean[2] = 0.0
    assert finalize(shifted, SHAPE, STRUCTURE, images()).removed == {"a": 1}


def test_a_filter_that_happens_to_be_off_on_all_images_stays() -> None:
    net = lively(Net())
    with torch.no_grad():
        net.n.bias[0] = -1e6
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}


def test_a_residual_channel_is_dead_only_when_all_its_makers_are_silent() -> None:
    net = lively(models.resnet_cifar([2], [4], classes=4))
    makers = [net.bn1, net.stage1[0].bn2, net.stage1[1].bn2]
    for number, norm in enumerate(makers):
        assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}, number
        with torch.no_grad():
            norm.weight[2] = norm.bias[2] = 0.0
    compact = finalize(net, SHAPE, STRUCTURE, images())
    assert compact.removed == {"conv1": 1}
    assert gap(net, compact.model) <= DOUBLE


def test_what_feeds_only_dead_channels_dies_with_them() -> None:
    net = lively(models.vgg([5, 6, 7], [1], hidden=[], classes=4, size=8, last_pool="max"))
    graph = read(net, SHAPE)
    silence(net, graph, "features.conv2", [0, 1, 2])
    with torch.no_grad():
        net.features.conv2.weight[3:, 4] = 0.0  # what is left of conv2 does not read channel 4
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {"features.conv1": 1, "features.conv2": 3}


def test_a_space_that_is_dead_altogether_keeps_one_channel() -> None:
    net = lively(Net())
    silence(net, read(net, SHAPE), "a", range(6))
    compact = finalize(net, SHAPE, STRUCTURE, images())
    assert compact.removed == {"a": 5}
    assert compact.model.a.weight.shape == (1, 3, 3, 3)


def test_masks_and_parametrizations_are_multiplied_in() -> None:
    net = lively(Net())
    parametrizations.weight_norm(net.b)
    prune.l1_unstructured(net.a, "weight", amount=0.5)
    net.train()(torch.randn(4, *SHAPE)).sum().backward()  # masked weights are now part of an autograd graph
    net.eval()
    compact = finalize(net, SHAPE, STRUCTURE, images())
    assert type(compact.model.b) is nn.Conv2d
    assert {name for name, _ in compact.model.named_parameters()} == {name for name, _ in Net().named_parameters()}
    assert compact.model.a.weight.eq(0).sum() == 6 * 3 * 9 // 2
    assert gap(net, compact.model) <= 1e-6  # the mask and the norm were multiplied in float32
    assert isinstance(net.a.weight_orig, nn.Parameter)


def test_plain_copies_share_nothing_with_the_model() -> None:
    net = lively(Net()).to(torch.float64)
    other = plain(net)
    shared = {t.data_ptr() for t in net.state_dict().values()} & {t.data_ptr() for t in other.state_dict().values()}
    assert shared == set()
    assert other.n.num_batches_tracked.dtype == torch.int64


def test_spaces_that_cannot_change_keep_their_masks() -> None:
    class Baked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.n(self.a(x)).view(len(x), 6, 36).sum((1, 2))[:, None]

    net = lively(Baked())
    silence(net, read(net, SHAPE), "a", [0])
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}


def test_something_silent_that_speaks_after_all_is_kept() -> None:
    class Picky(Net):
        """Looks at its width where it gets many pictures: no rule sees that, and no trial with a few."""

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out if x.is_meta or len(x) < 8 or self.a.out_channels == 6 else out + 1

    net = lively(Picky())
    with torch.no_grad():
        net.n.weight[1] = net.n.bias[1] = 0.0
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}
    silence(net, read(net, SHAPE), "a", [2])
    with pytest.raises(ArtifactError, match=r"changed the outputs by 1.0e\+00 in float64"):
        finalize(net, SHAPE, STRUCTURE, images())


def test_networks_that_differ_are_an_artifact_error() -> None:
    net, other = lively(Net()), lively(Net())
    assert compare(net, other, SHAPE, images()) == 0.0
    with torch.no_grad():
        other.fc.bias[0] += 1e-3
    with pytest.raises(ArtifactError, match=r"changed the outputs by 1.0e-03 in float64"):
        compare(net, other, SHAPE)
    with torch.no_grad():
        other.fc.bias[0] = float("nan")
    with pytest.raises(ArtifactError, match="changed the outputs by nan"):
        compare(net, other, SHAPE)


class Single(Net):
    """A net that turns its input into float32 and so cannot run in float64."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return super().forward(x.float())


def test_a_net_that_insists_on_float32_is_finalized_by_its_masks_and_compared_in_float32() -> None:
    net = lively(Single())
    with torch.no_grad():
        net.n.weight[1] = net.n.bias[1] = 0.0  # silent, which only float64 could tell
    assert finalize(net, SHAPE, STRUCTURE, images()).removed == {}
    silence(net, read(net, SHAPE), "a", [0, 3])
    done = finalize(net, SHAPE, STRUCTURE, images())
    assert done.removed == {"a": 2}
    assert done.drift < 1e-5
    with pytest.raises(ArtifactError, match=r"changed the outputs by .* in float32"):
        compare(net, lively(Single()).apply(_redrawn), SHAPE, images())


def _redrawn(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter)


class Rounded(nn.Module):
    """Exact in float64; in float32, `error` is added to class 0 of pictures that are brighter than noise."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.tensor([[1.0, 1.0 + 5e-6, 0.0]], dtype=x.dtype).repeat(len(x), 1)
        if x.dtype == torch.float32 and x.mean() > 10:
            logits[:, 0] += self.error
        return logits


def test_float32_and_the_class_of_every_image_are_compared_too() -> None:
    bright = [torch.full((2, *SHAPE), 100.0)]
    assert compare(Rounded(0.0), Rounded(2e-6), SHAPE, bright) == pytest.approx(2e-6, abs=2e-7)
    with pytest.raises(ArtifactError, match="changed the class of an image"):
        compare(Rounded(0.0), Rounded(8e-6), SHAPE, bright)
    with pytest.raises(ArtifactError, match=r"changed the outputs by 1.0e-03 in float32"):
        compare(Rounded(0.0), Rounded(1e-3), SHAPE, bright)
