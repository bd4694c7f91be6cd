"""A densely connected network: what it costs, what reads what, and that every connection can be decided about."""

import pytest
import torch

from compress.models import condense
from compress.reading.calls import traced
from compress.reading.measure import measure
from compress.surgery.wires import Wires


def params_and_macs(side: int, depths: list[int], growth: int, bottleneck: int, groups: int) -> tuple[int, int]:
    """By formula: a layer of block b makes growth x 2^b channels of all before it."""
    channels = 2 * growth
    params, macs = 9 * channels, 9 * channels * side * side
    for block, depth in enumerate(depths):
        side = side // 2 if block else side
        for _ in range(depth):
            wide = growth * 2**block
            inner = bottleneck * wide
            weights = channels * inner + 9 * inner * wide // groups
            params, macs = params + weights + 2 * channels + 2 * inner, macs + weights * side * side
            channels += wide
    return params + 2 * channels + 10 * channels + 10, macs + 10 * channels


@pytest.mark.parametrize(("bottleneck", "groups"), [(4, 4), (1, 1), (2, 2)])
def test_it_costs_what_its_layers_cost(bottleneck: int, groups: int) -> None:
    args = {"growth": 4, "bottleneck": bottleneck, "groups": groups}
    cost = measure(condense([3, 2, 1], in_channels=1, **args), (1, 12, 12))
    assert (cost.params, cost.macs) == params_and_macs(12, [3, 2, 1], **args)


def test_every_layer_reads_all_before_it_across_blocks_and_each_connection_can_go() -> None:
    wires = Wires(traced(condense([2, 2, 1], growth=4, in_channels=1)))
    assert [len(layer.sources) for layer in wires.layers] == [1, 2, 3, 4, 5]
    assert wires.undecided == {}


def test_what_a_later_block_reads_of_an_earlier_one_is_its_average_over_four_pixels() -> None:
    net = condense([1, 1], growth=4, in_channels=1).eval()
    seen: list[torch.Tensor] = []
    net.conv0.register_forward_hook(lambda _, inputs, output: seen.append(output))
    net.blocks[1][0].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[index]
    net(torch.randn(1, 1, 6, 6))
    first, read = seen
    assert read.shape == (1, 12, 3, 3)
    torch.testing.assert_close(read[0, :8, 0, 1], first[0, :, 0:2, 2:4].mean((1, 2)))
