"""Averaged weights are the recursion that they are said to be, are lent and given back, and end a stage."""

import torch
from torch import nn

from compress.training.average import Average


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    model.train()(torch.randn(4, 1, 2, 2))


def test_it_is_the_mean_that_forgets_and_that_a_short_stage_has_not_begun_with() -> None:
    model, average, expected = net(), Average(0.7), {}
    for n in range(1, 30):
        moved(model)
        average.update(model)
        decay = min(0.7, (1 + n) / (10 + n))
        for name, tensor in model.state_dict().items():
            old = expected.get(name, tensor.double())
            expected[name] = decay * old + (1 - decay) * tensor.double()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(average.tensors[name].double(), expected[name], atol=1e-5, rtol=0)
    assert "1.running_mean" in average.tensors
    assert "1.num_batches_tracked" not in average.tensors


def test_the_model_has_it_for_a_while_or_for_good() -> None:
    model, average = net(), Average(0.9)
    moved(model)
    average.update(model)
    mean = model[0].weight.detach().clone()  # the first update is the weights themselves
    moved(model)
    own = model[0].weight.detach().clone()
    with average.in_place(model):
        assert torch.equal(model[0].weight, mean)
    assert torch.equal(model[0].weight, own)
    average.settle(model)
    assert torch.equal(model[0].weight, mean)
    assert not average.tensors


def test_with_a_decay_of_0_nothing_is_averaged() -> None:
    model, average = net(), Average(0.0)
    average.update(model)
    own = model[0].weight.detach().clone()
    with average.in_place(model):
        assert torch.equal(model[0].weight, own)
    average.settle(model)
    assert torch.equal(model[0].weight, own)
    assert not average.tensors
