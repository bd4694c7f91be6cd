"""Connections are read from any concatenating network, priced to the integer, and settled as a naive walk would."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import models
from compress.errors import UsageError
from compress.reading.measure import measure
from compress.surgery.connections import Bools, Masks, Wiring, cut
from compress.surgery.structure import Structure

SHAPE = (3, 8, 8)


class Grown(nn.Module):
    """A user's own: a concatenation that grows, norms behind convolutions with a bias, a first layer without a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.first = nn.ModuleList([self.layer(5 + 2 * n, 2) for n in range(3)])
        self.squeeze = nn.Conv2d(11, 4, 1)
        self.second = nn.ModuleList([self.layer(4 + 3 * n, 3) for n in range(2)])
        self.fc = nn.Linear(10 * 16, 7)

    @staticmethod
    def layer(inp: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inp, out, 3, padding=1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.first:
            x = torch.cat([x, nn.functional.dropout(layer(x).relu(), 0.2, self.training)], 1)
        x = nn.functional.max_pool2d(self.squeeze(x), 2)
        for layer in self.second:
            x = torch.cat((layer(x), x), dim=-3)
        return self.fc(x.flatten(1))


class Forgetful(nn.Module):
    """Two readers in a layer, ReLU straight on the concatenation, options, and half of the layers do not go on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.ModuleList([nn.Conv2d(4 + 3 * n, 3, 3, padding=1) for n in range(4)])
        self.flat = nn.ModuleList([nn.Conv2d(4 + 3 * n, 3, 1) for n in range(4)])
        self.last = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 7)

    def forward(self, x: Tensor, scale: Tensor | None = None, features: bool = False) -> Tensor:
        made = [self.stem(x if scale is None else x * scale)]
        for wide, flat in zip(self.wide, self.flat, strict=True):
            x = torch.relu_(torch.cat(made, 1))
            made.append(wide(x) + flat(x))
        x = self.last(torch.cat([made[0], made[2], made[4]], 1))
        if features:
            return x
        return self.fc(x.mean((2, 3)))


class Tangled(nn.Module):
    """What nobody can decide stays: a shared activation, and the last of what would leave others without anything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.one, self.two = nn.Conv2d(4, 3, 1), nn.Conv2d(7, 3, 1)
        self.three, self.four = nn.Conv2d(9, 3, 1), nn.Conv2d(13, 3, 3, padding=1)
        self.five = nn.Conv2d(6, 3, 1)
        self.fc = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x, side = self.stem(x), self.side(x)
        one = self.one(x)
        shared = torch.cat([x, one], 1).sigmoid()
        two, three = self.two(shared), self.three(torch.cat([x, one, side], 1))
        four = self.four(torch.cat([shared, two, three], 1))
        five = self.five(torch.cat([one, four], 1))
        return self.fc(torch.cat([one, five], 1).mean((2, 3)))


class Various(nn.Module):
    """Between concatenations and their readers all sorts that work on each channel, with tensors and without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slope = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList([nn.PReLU() for _ in range(3)])
        self.norms = nn.ModuleList([nn.InstanceNorm2d(4 + 3 * n, affine=True) for n in range(3)])
        self.layers = nn.ModuleList([nn.Conv2d(4 + 3 * n, 3, 3, padding=1, bias=False) for n in range(3)])
        self.slopes, self.fc = nn.PReLU(13), nn.Linear(13 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for norm, slope, layer in zip(self.norms, self.slope, self.layers, strict=True):
            made.append(layer(slope(norm(torch.cat(made, 1))) * 2))
        y = nn.functional.logsigmoid(self.slopes(torch.cat(made, 1)))[:, :, ::2, 1::2]
        return self.fc(y.reshape(y.shape[0], -1))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: models.densenet([3, 2], growth=3, init=4, classes=5),
    "bottleneck": lambda: models.densenet([2, 1, 2], growth=3, init=6, bottleneck=5, shrink=2, classes=5),
    "grown": Grown,
    "forgetful": Forgetful,
    "tangled": Tangled,
    "various": Various,
}


def some_masks(wiring: Wiring, count: int, seed: int = 0) -> Bools:
    """Random masks of all densities, the full one and the empty one."""
    draws = np.random.default_rng(seed)
    masks = draws.random((count, len(wiring.full))) < draws.random((count, 1))
    return np.vstack([wiring.full, ~wiring.full, masks])


def figures(model: nn.Module) -> list[int]:
    cost = measure(model, SHAPE)
    return [cost.params, cost.macs, cost.thop]


@pytest.mark.parametrize("name", MAKERS)
def test_a_child_is_priced_masked_cut_and_built_again_alike(name: str) -> None:
    model = MAKERS[name]().eval()
    wiring = Wiring.read(model, SHAPE)
    hidden = Masks(model, wiring)
    x = torch.randn(2, *SHAPE)
    assert wiring.costs(wiring.full)[0].tolist() == figures(model)
    for mask in some_masks(wiring, 5):
        hidden.set(mask)
        child = cut(model, wiring.cuts_of(mask), SHAPE)
        assert wiring.costs(mask)[0].tolist() == figures(child), wiring.cuts_of(mask)
        masked, out = (copy.deepcopy(net).double()(x.double()) for net in (model, child))
        assert (masked - out).detach().abs().max() <= 1e-12
        again = Structure.read(child, name, {}).build(MAKERS[name]).eval()
        again.load_state_dict(child.state_dict())
        assert torch.equal(again(x), child(x))


def test_functional_dropout_of_a_cut_net_follows_its_mode() -> None:
    model, x = Grown(), torch.randn(2, *SHAPE)
    wiring = Wiring.read(model, SHAPE)
    child = cut(model.eval(), wiring.cuts_of(wiring.full), SHAPE)
    assert torch.equal(child(x), model(x))
    first, second = (child.train()(x) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    dropped = child(x)
    torch.manual_seed(0)
    assert torch.equal(dropped, model.train()(x))


def naive(wiring: Wiring, mask: Bools) -> Bools:
    """Take away, one at a time, what lost its inputs or its readers, until nothing more goes."""
    live = {(int(a), int(b)) for a, b, on in zip(wiring.edge_layer, wiring.edge_source, mask, strict=True) if on}
    while True:
        gone = {
            layer
            for layer in range(len(wiring.layers))
            if not any(a == layer for a, _ in live) or not (wiring.heard[layer] or any(b == layer for _, b in live))
        }
        left = {(a, b) for a, b in live if a not in gone and b not in gone}
        if left == live:
            return np.array([pair in live for pair in zip(wiring.edge_layer, wiring.edge_source, strict=True)])
        live = left


@pytest.mark.parametrize("name", MAKERS)
def test_settling_is_what_taking_away_one_by_one_comes_to(name: str) -> None:
    wiring = Wiring.read(MAKERS[name](), SHAPE)
    masks = some_masks(wiring, 300)
    settled = wiring.settle(masks)
    assert np.array_equal(settled, [naive(wiring, mask) for mask in masks])
    assert np.array_equal(settled, wiring.settle(settled))
    assert np.array_equal(wiring.costs(masks), wiring.costs(settled))


@settings(max_examples=50)
@given(data=st.data())
def test_masks_and_cuts_say_the_same(data: st.DataObject) -> None:
    wiring = FORGETFUL
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(wiring.full), max_size=len(wiring.full))))
    cuts = wiring.cuts_of(mask)
    assert np.array_equal(wiring.mask_of(cuts), wiring.settle(mask)[0])
    for layer, sources in cuts.items():
        assert list(sources) == sorted(sources)
        assert {*sources} <= {*wiring.sources}
        assert layer in wiring.layers


FORGETFUL = Wiring.read(Forgetful(), SHAPE)


def test_layers_sources_and_blocks_are_read_in_order() -> None:
    wiring = Wiring.read(Grown(), SHAPE)
    assert wiring.layers == ("first.0.0", "first.1.0", "first.2.0", "second.0.0", "second.1.0")
    assert wiring.sources[5:] == ("stem", "squeeze")
    assert wiring.block.tolist() == [0, 0, 0, 1, 1]
    assert wiring.edge_layer.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    assert wiring.edge_source.tolist() == [5, 5, 0, 5, 0, 1, 6, 3, 6]  # the last concatenation starts with the new
    assert FORGETFUL.heard.tolist() == [False, True, False, True]
    assert FORGETFUL.layers[0] == "wide.0:add"  # no module makes it


def test_what_cannot_be_decided_is_left_as_it_is_and_says_why() -> None:
    assert Wiring.read(Grown(), SHAPE).undecided == {}
    wiring = Wiring.read(Tangled(), SHAPE)
    assert wiring.layers == ("one",)
    alone, left = "without it something else would read nothing", "it shares its norm"
    assert {name: why.split(",")[0] for name, why in wiring.undecided.items()} == {
        "two": left, "four": left, "three": alone, "five": alone
    }  # fmt: skip


def test_the_matrix_shows_every_block_with_its_input_first() -> None:
    wiring = Wiring.read(MAKERS["basic"](), SHAPE)
    mask = wiring.full
    mask[[1, 4]] = False  # layer 2 does not read the input, layer 3 not layer 1
    first, second = wiring.matrix(mask)
    assert first.sources == ("features.conv0", *first.layers)
    assert first.cells.tolist() == [[1, -1, -1, -1], [0, 1, -1, -1], [1, 0, 1, -1]]
    assert second.sources[0] == "features.transition1.conv"
    assert second.cells.tolist() == [[1, -1, -1], [1, 1, -1]]


@pytest.mark.parametrize(
    ("make", "shape", "edges", "figures"),
    [  # 3 x 78, 3 x 528 and 21 + 78 + 300 + 136 connections, the cost by every counter
        (models.densenet40, (3, 32, 32), 234, [1_059_298, 282_917_328, 292_594_584]),
        (models.densenet100, (3, 32, 32), 1584, [7_083_538, 1_816_743_408, 1_874_759_304]),
        (models.densenet121, (3, 224, 224), 535, [7_978_856, 2_834_161_664, 2_897_058_304]),
    ],
)
def test_the_published_densenets_have_their_published_cost(
    make: Callable[[], nn.Module], shape: tuple[int, ...], edges: int, figures: list[int]
) -> None:
    wiring = Wiring.read(make(), shape)
    assert len(wiring.full) == edges
    assert wiring.costs(wiring.full)[0].tolist() == figures
    assert wiring.costs(~wiring.full)[0].tolist() == wiring.floor.tolist()
    assert (wiring.floor < figures).all()
    if make is models.densenet40:
        check_densenet40(wiring)


def check_densenet40(wiring: Wiring) -> None:
    """One source of 12 channels costs the same throughout a block; thousands of children are priced at once."""
    macs = np.array([1_327_104, 331_776, 82_944])
    inside = np.flatnonzero(wiring.edge_source < 36)
    assert np.array_equal(wiring.edge_costs[inside, 1], macs[wiring.block[wiring.edge_layer[inside]]])
    assert (wiring.edge_costs[inside, 0] == 1296 + 24).all()
    first = wiring.edge_source[:1]
    assert wiring.sources[first[0]] == "features.conv0"
    masks = np.random.default_rng(0).random((2000, len(wiring.full))) < 0.5
    assert wiring.costs(masks)[::500].tolist() == [wiring.costs(mask)[0].tolist() for mask in masks[::500]]


def test_torchvisions_densenet_is_read_as_ours() -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = Wiring.read(torchvision.models.densenet121(weights=None), (3, 224, 224))
    assert theirs.costs(theirs.full)[0, :2].tolist() == [7_978_856, 2_834_161_664]
    assert len(theirs.full) == 535


@pytest.mark.parametrize(
    "model", [models.lenet5(in_channels=3, size=8, padding=6), models.resnet20(), nn.Sequential(nn.Conv2d(3, 4, 1))]
)
def test_a_network_without_dense_layers_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="no dense layer: none whose output is concatenated, along the channels, with"):
        Wiring.read(model, (3, 32, 32) if len(list(model.modules())) > 40 else SHAPE)


class Shared(nn.Module):
    """One norm for two concatenations, and nothing in it that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(7, 3, 1)
        self.norm, self.fc = nn.BatchNorm2d(7, affine=False), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        two = self.two(self.norm(torch.cat([x, self.one(x)], 1)))
        return self.fc(self.norm(torch.cat([x, two], 1)).mean((2, 3)))


def test_the_refusal_says_why_what_looks_like_a_layer_is_none() -> None:
    with pytest.raises(UsageError, match=r"no dense layer: .*; one is left out: norm takes it as a whole"):
        Wiring.read(Shared(), SHAPE)


class Fickle(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way = nn.Conv2d(3, 3, 1), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "value" and x.sum() > 0:
            return x
        if self.way == "training" and self.training:
            return self.conv(x)
        return self.conv(x) + 1


@pytest.mark.parametrize("way", ["value", "training"])
def test_code_that_is_no_fixed_sequence_of_calls_is_refused(way: str) -> None:
    with pytest.raises(UsageError, match=r"the model's connections cannot be read .*must be a fixed sequence of calls"):
        Wiring.read(Fickle(way), SHAPE)
