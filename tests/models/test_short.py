"""The short network whitens patches before it is trained, begins as an identity, and fits images of many sizes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.models import short
from compress.models.short import EPS
from compress.training.draw import draw


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth ones, so that neighbours are alike, in three channels that are alike too: [300, 3, 12, 12]."""
    noise = torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 5, 1) + 0.3 * noise[:, :1, 2:14, 2:14]


def test_what_the_stem_makes_of_patches_has_no_two_numbers_alike_and_each_of_variance_one(images: torch.Tensor) -> None:
    net = short([8, 8], size=12)
    net.prepare(images)
    assert net.stem.bias is not None
    assert not net.stem.bias.any()
    half = len(net.stem.weight) // 2
    assert half == 12
    assert torch.equal(net.stem.weight[half:], -net.stem.weight[:half])
    made = nn.functional.conv2d(images.double(), net.stem.weight.detach()[:half].double()).numpy()
    made = np.moveaxis(made, 1, 0).reshape(half, -1)
    moments = made @ made.T / made.shape[1]
    rooms = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))
    patches = np.moveaxis(rooms, 1, 3).reshape(-1, 12)
    variances = np.linalg.svd(patches, compute_uv=False) ** 2 / len(patches)
    np.testing.assert_allclose(moments, np.diag(variances / (variances + EPS)), atol=2e-4)


def test_a_draw_of_all_weights_leaves_the_stem_and_gives_back_the_partial_identities(images: torch.Tensor) -> None:
    net = short([6, 20], size=12, convs=3)
    net.prepare(images)
    stem = net.stem.weight.detach().clone()
    draw(net)
    assert torch.equal(net.stem.weight, stem)
    assert not net.stem.weight.requires_grad
    convs = {name: m for name, m in net.blocks.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convs) == 6
    for conv in convs.values():
        handed = min(conv.weight.shape[:2])
        x = torch.randn(2, conv.in_channels, 5, 5)
        torch.testing.assert_close(conv(x)[:, :handed], x[:, :handed])
    assert convs["1.conv1"].weight[6:].std() > 0  # of 20 filters that read 6 channels, 14 are drawn


@pytest.mark.parametrize(("size", "channels", "blocks"), [(8, 1, 2), (28, 1, 3), (32, 3, 3), (64, 3, 4)])
def test_it_takes_images_of_many_sizes(size: int, channels: int, blocks: int) -> None:
    for convs in (2, 3):
        net = short([4] * blocks, convs=convs, classes=7, in_channels=channels, size=size).eval()
        assert net(torch.randn(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"widths": []}, "widths is empty"),
        ({"convs": 1}, "convs is 1; a block has 2 or 3 convolutions"),
        ({"size": 8}, "3 halvings leave nothing of 8 px; give fewer widths"),
    ],
)
def test_what_it_cannot_be_is_told(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        short(**args)
