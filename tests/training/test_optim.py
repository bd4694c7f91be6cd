"""Descent is torch's SGD and, for filters, Muon: as far along each of the momentum's directions as along the others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.recipe import settings
from compress.training.optim import Descent, descent, orthogonal


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_an_orthogonal_step_has_the_directions_of_the_weight_and_lengths_of_about_one(
    o: int, n: int, seed: int
) -> None:
    weight = torch.randn(o, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    found = u.T @ orthogonal(weight) @ v.T / max(1.0, o / n) ** 0.5  # diagonal where the directions are the same
    lengths = found.diagonal()
    assert (found - torch.diag(lengths)).abs().max() < 1e-9
    large = s > s.max() / 20  # small ones need more steps than there are to become 1
    assert lengths[large].min() > 0.3
    assert lengths.max() < 1.3


def test_a_convolution_is_a_matrix_of_filters_and_zeros_stay_zeros() -> None:
    weight = torch.randn(6, 2, 3, 3)
    torch.testing.assert_close(orthogonal(weight).flatten(1), orthogonal(weight.flatten(1)))
    assert torch.equal(orthogonal(torch.zeros(3, 2, 1, 1)), torch.zeros(3, 2, 1, 1))


def test_muon_steps_along_nesterovs_momentum_and_decays_the_weight_itself() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    expected, buffer = weight.detach().clone(), torch.zeros(4, 3, 3, 3)
    optimizer = Descent([weight], lr=0.05, momentum=0.6, nesterov=True, weight_decay=0.2, muon=True)
    for _ in range(4):
        gradient = weight.grad = torch.randn(4, 3, 3, 3)
        buffer = 0.6 * buffer + gradient
        expected = expected - 0.05 * (0.2 * expected + orthogonal(gradient + 0.6 * buffer))
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_recipe_says_what_trains_filters_and_vectors_never_decay(optimizer: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    keys = settings.Train.model_validate({"optimizer": optimizer, "lr": 0.2, "muon_lr": 0.1, "weight_decay": 0.01})
    groups = {id(p): group for group in descent(net, keys).param_groups for p in group["params"]}
    assert len(groups) == len(list(net.parameters()))
    filters = groups[id(net[0].weight)]
    assert filters["muon"] is (optimizer == "muon")
    assert 0.2 * filters.get("lr_scale", 1.0) == pytest.approx(0.1 if optimizer == "muon" else 0.2)
    assert groups[id(net[3].weight)]["weight_decay"] == 0.01
    assert {groups[id(p)]["weight_decay"] for p in net.parameters() if p.dim() == 1} == {0.0}
    assert not any(group["muon"] for group in groups.values() if group is not filters)
