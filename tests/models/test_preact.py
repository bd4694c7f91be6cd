"""Pre-activation blocks: what they cost, that their gates begin at 1, and that silent ones still learn."""

import pytest
import torch
from torch import nn

from compress.models import preact
from compress.models.preact import Gate
from compress.reading.measure import measure
from compress.surgery.stages import find, last_norm
from compress.training.draw import draw


def params_and_macs(side: int, channels: int, depths: list[int], widths: list[int], squeeze: int) -> tuple[int, int]:
    """By formula: 9 x in x out for a 3x3 convolution, 2 for each channel of a norm, and a gate's two layers."""
    before = widths[0]
    params, macs = 9 * channels * before, 9 * channels * before * side * side
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        side = -(-side // 2) if stage else side
        for block in range(depth):
            hidden = max(4, width // squeeze)
            weights = 9 * before * width + 9 * width * width
            projection = before * width if block == 0 and (stage or before != width) else 0
            params += weights + projection + 2 * before + 2 * width + 2 * width * hidden + hidden + width
            macs += (weights + projection) * side * side + 2 * width * hidden
            before = width
    return params + 2 * before + 10 * before + 10, macs + 10 * before


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (9, 1), (32, 3)])
def test_it_costs_what_its_blocks_cost(side: int, channels: int) -> None:
    depths, widths = [2, 1, 1], [8, 12, 20]
    cost = measure(preact(depths, widths, squeeze=2, in_channels=channels), (channels, side, side))
    assert (cost.params, cost.macs) == params_and_macs(side, channels, depths, widths, 2)


def test_gates_begin_at_one_also_after_all_weights_were_drawn_anew() -> None:
    net = preact([1, 1], [8, 8])
    x = torch.randn(3, 8, 5, 5)
    for again in (False, True):
        if again:
            draw(net)
        gate = net.get_submodule("stage2.0.gate")
        assert isinstance(gate, Gate)
        assert torch.equal(gate(x), x)
        assert gate.reduce.weight.any()


def test_a_block_that_autogrow_silenced_passes_on_what_it_gets_and_learns_to_do_otherwise() -> None:
    net = preact([1, 1], [6, 8], in_channels=1)
    stages = find(net, (1, 8, 8))
    assert [stage.name for stage in stages] == ["stage1", "stage2"]
    net.get_submodule("stage1").add_module("1", net.new_block("stage1"))
    name = last_norm(net, (1, 8, 8), "stage1.1")
    assert name == "stage1.1.bn2"
    for parameter in net.get_submodule(name).parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(4, 6, 8, 8)
    out = net.get_submodule("stage1.1")(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    grad = net.get_parameter(f"{name}.weight").grad
    assert grad is not None
    assert bool(grad.all())


def test_a_new_block_takes_the_widths_that_its_stage_has_now() -> None:
    net = preact([1, 1], [6, 8], squeeze=1)
    block = net.new_block("stage2")
    shapes = {name: tuple(tensor.shape) for name, tensor in block.named_parameters()}
    own = net.get_submodule("stage2.0")
    assert shapes["conv1.weight"] == (8, 8, 3, 3)
    assert shapes["gate.reduce.weight"] == tuple(own.get_parameter("gate.reduce.weight").shape) == (8, 8, 1, 1)
    assert not any(name.startswith("downsample") for name in shapes)
