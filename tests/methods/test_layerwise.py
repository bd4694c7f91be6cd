"""Channels are judged by what the layers that read them would put out, and those are repaired after a cut."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress._plan import methods_of
from compress._run import prepare
from compress.methods.prune.layerwise import going, gram
from compress.methods.prune.readers import look, moments, readers_of
from compress.methods.prune.repair import repair
from compress.methods.prune.scores import SCORES
from compress.recipe.settings import Recipe
from compress.training.bench import Bench

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.side = nn.Conv2d(1, 3, 1)
        self.body = nn.Conv2d(width + 3, 6, 3, stride=2, padding=1, dilation=1, bias=True)
        self.head = nn.Linear(6 * 4, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(x, 2)
        x = torch.cat([torch.relu(self.stem(x)), torch.relu(self.side(x))], 1)
        return self.head(torch.relu(self.body(x)).flatten(1))
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A small net whose second layer reads two spaces, and whose last one reads four places of a channel."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    said = {
        "model": {"factory": "./net.py:Net", "weights": None},
        "train": {"batch": 50},
        "method": {"name": "thinet", "batches": 2, "tune": {"epochs": 0}},
        "budget": "60%",
    }
    lab, _ = prepare(Recipe.model_validate(said), "cpu")
    methods_of(lab.recipe)[0].ready(lab, None)
    return lab


def given(lab: Bench, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """What the body and the head of the net are given, batch by batch, by its own lines."""
    net, found = lab.model, []
    for x, _ in lab.data.stream(0, count, varied=False):
        with torch.no_grad():
            x = functional.max_pool2d(x, 2)
            inner = torch.cat([torch.relu(net.stem(x)), torch.relu(net.side(x))], 1)  # type: ignore[operator]
            found.append((inner, torch.relu(net.body(inner)).flatten(1)))  # type: ignore[operator]
    return found


def test_readers_are_the_layers_that_read_a_space_with_a_channel_for_each_column(lab: Bench) -> None:
    readers = {reader.name: reader for reader in readers_of(lab.model, lab.graph)}
    assert readers.keys() == {"body", "head"}
    assert readers["body"].channels["stem"].tolist() == np.repeat([0, 1, 2, 3, 4, -1, -1, -1], 9).tolist()
    assert readers["body"].channels["side"].tolist() == np.repeat([-1] * 5 + [0, 1, 2], 9).tolist()
    assert readers["head"].channels["body"].tolist() == np.repeat(range(6), 4).tolist()


def test_rows_times_the_weight_are_the_layers_own_outputs(lab: Bench) -> None:
    seen: dict[str, list[Tensor]] = {"body": [], "head": []}
    look(lab, 2, lambda reader: 10**9, lambda reader, rows: seen[reader.name].append(rows @ reader.weight.T))
    for (inner, last), body, head in zip(given(lab), seen["body"], seen["head"], strict=True):
        net: Any = lab.model
        outputs = functional.conv2d(inner, net.body.weight, stride=2, padding=1).movedim(1, -1).flatten(0, 2)
        assert torch.allclose(body.sort(0).values, outputs.sort(0).values, atol=1e-5)  # places come in another order
        assert torch.allclose(head.sort(0).values, (last @ net.head.weight.T).sort(0).values, atol=1e-5)
    assert lab.step == 2  # and its batches are in the books
    few: list[int] = []
    look(lab, 1, lambda reader: 70, lambda reader, rows: few.append(len(rows)))
    assert all(70 <= count <= 140 for count in few[:1])


def test_mean_products_are_those_of_all_rows(lab: Bench) -> None:
    last = torch.cat([given_last for _, given_last in given(lab)]).double()
    last = torch.cat([last, torch.ones(len(last), 1)], 1)
    assert torch.allclose(moments(lab, 2)["head"], last.T @ last / len(last), atol=1e-5)


def test_thinet_takes_the_channel_that_changes_the_outputs_least_with_those_that_went_before(lab: Bench) -> None:
    rank = SCORES["thinet"](lab, lab.recipe.methods[0])["body"]
    last = torch.cat([one for _, one in given(lab)]).view(-1, 6, 4).double()
    weight = lab.model.head.weight.detach().view(10, 6, 4).double()  # type: ignore[union-attr, operator]

    def change(gone: tuple[int, ...]) -> float:
        parts = torch.einsum("nck,ock->noc", last, weight)
        return float((parts[:, :, list(gone)].sum(2) ** 2).sum())

    gone: tuple[int, ...] = ()
    for turn in range(6):
        first = min((c for c in range(6) if c not in gone), key=lambda c: change((*gone, c)))
        assert rank[first] == turn
        gone = (*gone, first)


def test_channels_that_cancel_each_other_go_together() -> None:
    parts = torch.tensor([[3.0, -3.0, 1.0], [-2.0, 2.0, 1.5]]).double()
    order = going(parts.T @ parts)
    assert order.tolist() == [1, 2, 0] or order.tolist() == [2, 1, 0]


def test_provable_is_the_largest_share_of_a_channel_in_an_output(lab: Bench) -> None:
    ranks = SCORES["provable"](lab, lab.recipe.methods[0])
    last = torch.cat([one for _, one in given(lab)]).view(-1, 6, 4)
    parts = torch.einsum("nck,ock->nock", last, lab.model.head.weight.detach().view(10, 6, 4))  # type: ignore[union-attr, operator]
    shares = torch.zeros(6)
    for signed in (parts, -parts):
        whole = signed.clamp(min=0).sum((2, 3))
        own = signed.sum(3).clamp(min=0) / whole.clamp(min=1e-30)[:, :, None]
        shares = torch.maximum(shares, own.amax((0, 1)))
    assert ranks["body"] == pytest.approx(shares.numpy(), abs=1e-5)
    assert ranks["stem"].shape == (5,)


def error(last: Tensor, before: Tensor, weight: Tensor, bias: Tensor) -> float:
    return float(((last @ weight.T + bias - before) ** 2).mean())


def test_reconstruct_takes_first_what_least_squares_repair_best(lab: Bench) -> None:
    rank = SCORES["reconstruct"](lab, lab.recipe.methods[0])["body"]
    last = torch.cat([one for _, one in given(lab)]).double()
    outputs = last @ lab.model.head.weight.detach().double().T  # type: ignore[union-attr, operator]
    lost = []
    for channel in range(6):
        kept = torch.cat([last[:, [c for c in range(24) if c // 4 != channel]], torch.ones(len(last), 1)], 1)
        kept = torch.cat([kept, (1e-3 * len(last) * (last**2).mean()).sqrt() * torch.eye(kept.shape[1])])
        aim = torch.cat([outputs, torch.zeros(kept.shape[1], 10)])
        solved = torch.linalg.lstsq(kept, aim).solution
        lost.append(float(((kept @ solved - aim) ** 2).sum()))
    assert int(rank.argmin()) == int(np.argmin(lost))


@pytest.mark.parametrize("how", ["scale", "solve"])
def test_a_repair_lowers_the_output_error_of_the_very_layers(lab: Bench, how: str) -> None:
    net: Any = lab.model
    keep = {"body": [0, 2, 5], "stem": [1, 3], "side": [0, 1, 2]}
    before = [(inner, net.body(inner).detach(), last, net.head(last).detach()) for inner, last in given(lab)]

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        body = head = 0.0
        for inner, out, last, logits in before:
            channels = [1, 3, 5, 6, 7]  # of the stem, and all of the side
            some = functional.conv2d(inner[:, channels], net.body.weight[:, channels], net.body.bias, 2, 1)
            body += float(((some - out) ** 2).mean())
            columns = [c for c in range(24) if c // 4 in keep["body"]]
            head += float(((last[:, columns] @ net.head.weight[:, columns].T + net.head.bias - logits) ** 2).mean())
        return body, head

    cut = errors()
    repair(lab, how, 2, keep)
    after = errors()
    most = {"scale": 0.999, "solve": 0.8}[how]
    assert after[0] < most * cut[0]
    assert after[1] < most * cut[1]


@pytest.mark.parametrize("how", ["scale", "solve"])
def test_a_channel_that_is_always_zero_keeps_the_weights_that_read_it(lab: Bench, how: str) -> None:
    """They change no output now, and it may wake up in tuning; with zeros it would be cut out at the end."""
    net: Any = lab.model
    with torch.no_grad():
        net.body.weight[2] = 0.0
        net.body.bias[2] = -1.0
    before = net.head.weight.detach().clone()
    repair(lab, how, 2, {"body": [0, 2, 5]})
    assert torch.equal(net.head.weight.detach()[:, 8:12], before[:, 8:12])
    assert not torch.equal(net.head.weight.detach()[:, :4], before[:, :4])


def test_solving_anew_finds_the_best_weights_that_there_are(lab: Bench) -> None:
    net: Any = lab.model
    last = torch.cat([one for _, one in given(lab)])
    outputs = net.head(last).detach()
    columns = [c for c in range(24) if c // 4 in (0, 2, 5)]
    repair(lab, "solve", 2, {"body": [0, 2, 5]})
    rows = torch.cat([last[:, columns], torch.ones(len(last), 1)], 1)
    best = torch.linalg.lstsq(rows, outputs).solution
    ours = error(last[:, columns], outputs, net.head.weight.detach()[:, columns], net.head.bias.detach())
    assert ours <= 1.02 * float(((rows @ best - outputs) ** 2).mean())


def test_a_gram_of_channels_sums_what_their_columns_put_out_together() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(30, 6, generator=draw).double(), torch.randn(4, 6, generator=draw).double()
    ones = torch.cat([rows, torch.ones(30, 1)], 1)
    channels = np.array([0, 1, -1, 1, 0, 1])
    found = gram(weight, ones.T @ ones / 30, channels)
    for a, b in itertools.product(range(2), repeat=2):
        pair = [
            (rows[:, torch.from_numpy(channels == c)] @ weight[:, torch.from_numpy(channels == c)].T) for c in (a, b)
        ]
        assert float(found[a, b]) == pytest.approx(float((pair[0] * pair[1]).sum() / 30))
