"""Stages are found in any model, and more or fewer blocks change nothing else."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.errors import UsageError
from compress.reading.measure import measure
from compress.surgery.stages import arrange, find, last_norm, layout
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE = (1, 8, 8)


class Block(nn.Module):
    def __init__(self, inp: int, out: int, stride: int = 1, residual: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(out)
        self.residual = residual and stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return x + out if self.residual else out


def resnet() -> nn.Module:
    return models.basic3resnet([2, 2, 2], width=4, in_channels=1)


def flat() -> nn.Module:
    """Two stages, stem and head in one container, as MobileNet has them; wrappers are no blocks."""
    blocks = [Block(4, 4), Block(4, 4), Block(4, 6, 2), Block(6, 6), Block(6, 6)]
    body = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 1)), *blocks)
    return nn.Sequential(OrderedDict(body=body, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(6, 3)))


def test_stages_are_found_in_the_order_in_which_they_run() -> None:
    stages = find(resnet(), SHAPE)
    assert [(s.name, s.container, s.blocks) for s in stages] == [
        (f"stage{n}", f"stage{n}", ("0", "1")) for n in (1, 2, 3)
    ]
    assert [stage.name for stage in find(resnet(), SHAPE, ["stage3", "stage1"])] == ["stage1", "stage3"]
    with pytest.raises(UsageError, match=r"method.stages: 'stage4' is no stage of this model; did you mean 'stage3'\?"):
        find(resnet(), SHAPE, ["stage4"])


def test_several_stages_may_share_a_container() -> None:
    stages = find(flat(), SHAPE)
    assert [(s.name, s.blocks) for s in stages] == [("body.1", ("1", "2")), ("body.3", ("3", "4", "5"))]
    net = flat()
    depths = dict(zip(stages, (4, 1), strict=True))
    wanted = ("0", "1", "2", "2_2", "2_3", "3")
    assert layout(net, depths) == {"body": wanted}
    assert arrange(net, layout(net, depths)) == ["body.2_2", "body.2_3"]
    assert [stage.depth(net) for stage in stages] == [4, 1]
    assert net(torch.zeros(2, *SHAPE)).shape == (2, 3)
    arrange(net, layout(net, dict(zip(stages, (2, 3), strict=True))), {"body.4": flat().get_submodule("body.5")})
    assert [name for name, _ in net.get_submodule("body").named_children()] == list("012345")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenet_v2", ["features.2", "features.4", "features.7", "features.11", "features.14"]),
        ("convnext_tiny", ["features.1", "features.3", "features.5", "features.7"]),
    ],
)
def test_torchvisions_networks_have_the_stages_that_their_papers_tell_of(make: str, names: list[str]) -> None:
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, make)()
    assert [stage.name for stage in find(net, (3, 32, 32))] == names


def test_a_model_without_stages_is_told_what_makes_one() -> None:
    with pytest.raises(UsageError, match=r"no stage that could grow: no nn\.Sequential in it"):
        find(models.lenet5(), (1, 28, 28))


def test_the_models_own_new_block_makes_stages_of_single_blocks() -> None:
    net = models.plain3net(width=4, in_channels=1)
    stages = find(net, SHAPE)
    assert [stage.blocks for stage in stages] == [("0",)] * 3
    assert arrange(net, layout(net, {stages[1]: 3})) == ["stage2.1", "stage2.2"]
    net.new_block = lambda stage: 1 / 0  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"new_block\('stage2'\) failed: ZeroDivisionError: division by zero"):
        arrange(net, layout(net, {stages[1]: 4}))


@pytest.mark.parametrize(
    ("make", "shape", "norm"),
    [
        (resnet, SHAPE, "stage2.1.bn2"),
        (lambda: models.bottleneck4resnet([2, 2, 2, 2], width=2, in_channels=1), (1, 32, 32), "stage2.1.bn3"),
        (flat, SHAPE, "body.2.norm"),
        (lambda: models.plain3net([2, 2, 2], width=4, in_channels=1), SHAPE, None),
    ],
)
def test_the_last_batch_norm_is_that_of_a_residual_block(
    make: Callable[[], nn.Module], shape: tuple[int, ...], norm: str | None
) -> None:
    net = make()
    before = copy.deepcopy(net.state_dict())
    block = norm.rpartition(".")[0] if norm else "stage2.1"
    assert last_norm(net, shape, block) == norm
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(("make", "shape"), [(resnet, SHAPE), (flat, SHAPE)])
def test_a_silent_new_block_leaves_the_function_as_it_was(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = make().double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    before, stages = net(x), find(make(), shape)
    for path in arrange(net, layout(net, {stage: stage.depth(net) + 2 for stage in stages})):
        norm = net.get_submodule(str(last_norm(net, shape, path)))
        nn.init.zeros_(norm.get_parameter("weight"))
        nn.init.zeros_(norm.get_parameter("bias"))
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("make", [resnet, flat])
def test_the_graph_and_the_optimizer_follow_a_change_of_depth(make: Callable[[], nn.Module]) -> None:
    net = make()
    decay = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": 0.1}, {"params": plain}], lr=0.1, momentum=0.9)
    surgeon = Surgeon(net, survey(net, SHAPE), optimizer)
    stages = find(net, SHAPE)

    def trained() -> None:
        net(torch.randn(4, *SHAPE)).square().mean().backward()
        optimizer.step()
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in net.parameters())
        assert all(p.dim() > 1 for p in optimizer.param_groups[0]["params"])
        assert {id(p) for p in optimizer.state} <= set(held)
        assert surgeon.graph.alike(survey(net, SHAPE))
        assert surgeon.graph.price.cost(surgeon.graph.widths) == measure(net, SHAPE)

    trained()
    kept = {id(p): optimizer.state[p]["momentum_buffer"].clone() for p in net.parameters()}
    surgeon.arrange(layout(net, {stages[0]: 4}))
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], kept[id(p)]) for p in optimizer.state)
    assert len(optimizer.state) == len(kept)
    trained()
    surgeon.resize({name: width + 1 for name, width in surgeon.graph.widths.items()})
    trained()
    surgeon.arrange(layout(net, {stages[0]: 3, stages[1]: 1}))
    trained()


@pytest.mark.parametrize("make", [resnet, flat])
def test_depth_and_widths_are_built_again_from_what_a_file_says(make: Callable[[], nn.Module]) -> None:
    net = make()
    surgeon, stages = Surgeon(net, survey(net, SHAPE)), find(net, SHAPE)
    depths = layout(net, {stages[0]: 5, stages[1]: 1})
    surgeon.arrange(depths)
    surgeon.resize({name: width + 1 for name, width in surgeon.graph.widths.items()})
    structure = Structure.read(net, "net.py:make", {}, depths)
    assert structure.to_json()["depths"] == {path: list(names) for path, names in depths.items()}
    again = structure.build(make).eval()
    again.load_state_dict(net.state_dict())
    x = torch.randn(3, *SHAPE)
    assert torch.equal(again(x), net.eval()(x))


def test_a_container_that_is_not_there_is_told_by_name() -> None:
    with pytest.raises(UsageError, match="the model has no module 'nowhere' whose depth could be set"):
        arrange(resnet(), {"nowhere": ("0",)})


def test_a_model_that_is_itself_a_sequential_has_stages_too() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), Block(4, 4), Block(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (stage,) = find(net, SHAPE)
    assert (stage.name, stage.container, stage.blocks) == ("1", "", ("1", "2"))
    assert arrange(net, layout(net, {stage: 3})) == ["2_2"]
    assert net(torch.zeros(2, *SHAPE)).shape == (2, 4)


def test_a_parameter_that_no_block_before_has_joins_others_of_its_kind() -> None:
    net = flat()
    net.get_submodule("body.4").register_parameter("scale", nn.Parameter(torch.ones(6)))
    template, stages = copy.deepcopy(net.get_submodule("body.4")), find(net, SHAPE)
    arrange(net, layout(net, {stages[1]: 1}))
    decay = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD([{"params": decay}, {"params": plain}], lr=0.1)
    Surgeon(net, survey(net, SHAPE), optimizer).arrange(layout(net, {stages[1]: 2}), {"body.4": template})
    fresh = net.get_parameter("body.4.scale")
    assert any(held is fresh for held in optimizer.param_groups[1]["params"])
