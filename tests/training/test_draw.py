"""Weights are drawn anew as a model's layers want it, and what cannot be trained keeps its numbers."""

import torch
from torch import Tensor, nn

from compress.training.draw import draw


class Threes(nn.Module):
    """A block that begins with threes, in a layer that is its child."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.conv.weight, 3.0)


class Sevens(nn.Conv2d):
    """A convolution with a beginning of its own."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 7.0)


def numbers(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def test_a_block_has_the_last_word_over_its_layers_and_a_convolution_of_ones_own_is_asked() -> None:
    net = nn.Sequential(nn.Sequential(Threes()), Sevens(2, 2, 1), nn.Conv2d(2, 400, 3))
    draw(net)
    block, own, plain = net[0][0], net[1], net[2]
    assert bool((block.conv.weight == 3).all())
    assert not block.conv.bias.any()
    assert bool((own.weight == 7).all())
    assert not plain.bias.any()
    assert abs(float(plain.weight.detach().std()) - (2 / (2 * 9)) ** 0.5) < 0.01  # Kaiming: 2 / fan-in


def test_layers_are_drawn_in_the_order_in_which_a_model_lists_them() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 5))
    torch.manual_seed(3)
    draw(net)
    torch.manual_seed(3)
    first = nn.init.kaiming_normal_(torch.empty(4, 3, 3, 3), nonlinearity="relu")
    torch.testing.assert_close(net[0][0].weight.detach(), first, rtol=0, atol=0)
    torch.testing.assert_close(net[1].weight.detach(), nn.Linear(4, 5).weight.detach(), rtol=0, atol=0)


def test_what_cannot_be_trained_keeps_its_numbers_and_a_bias_beside_it_is_drawn() -> None:
    half, still = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
    half.weight.requires_grad_(False)
    still.requires_grad_(False)
    for tensor in still.state_dict().values():
        tensor.fill_(2)
    nn.init.constant_(half.bias, 5.0)  # type: ignore[arg-type]
    net, weight, statistics = nn.Sequential(half, still, nn.Linear(3, 3)), half.weight.clone(), numbers(still)
    linear = net[2].weight.detach().clone()
    draw(net)
    assert torch.equal(half.weight, weight)
    assert not half.bias.any()  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(numbers(still), statistics, strict=True))
    assert not torch.equal(net[2].weight, linear)
