"""The shipped networks are the published ones, to the last parameter and multiply-accumulate."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import compress
import compress.models as models
from compress.models.stages import StageNet
from compress.reading.measure import measure
from compress.recipe.settings import Recipe

# The VGG of the l1-norm pruning literature is the default; the others have biases in their convolutions and max-pools.
BIASED: dict[str, Any] = {"bias": True, "last_pool": "max"}
NO_BN1D: dict[str, Any] = {**BIASED, "hidden_norm": False}
DEEP3 = {"depths": [42, 42, 42]}
DEEP3_C100 = {"depths": [54, 53, 53], "classes": 100}
LARGE = {"stem": "imagenet", "classes": 1000}

# factory, arguments, then as counted on independent implementations, at batch 1 in eval mode: parameters,
# multiply-accumulates, thop 0.1.1's total, torch's FlopCounterMode
PUBLISHED = [
    ("vgg16", BIASED, 14991946, 313463808, 314571776, 626927616),
    ("vgg16", {}, 14987722, 313463808, 314572288, 626927616),
    ("vgg16", NO_BN1D, 14990922, 313463808, 314569728, 626927616),
    ("vgg16", {**NO_BN1D, "norm": False}, 14982474, 313463808, 313463808, 626927616),
    ("vgg16", {**NO_BN1D, "hidden": []}, 14728266, 313201664, 314307584, 626403328),
    ("vgg16", {**NO_BN1D, "hidden": [512, 512]}, 15253578, 313725952, 314831872, 627451904),
    ("vgg16", {**BIASED, "pools": [2, 4, 7, 10]}, 15778378, 314250240, 315358208, 628500480),  # 2 x 2 x 512 -> 512
    ("resnet20", {}, 269722, 40551040, 41308864, 81102080),
    ("resnet20", {"option": "B"}, 272474, 40813184, 41620160, 81626368),
    ("resnet32", {}, 464154, 68862592, 70079168, 137725184),
    ("resnet32", {"multiplier": 3}, 4157242, 617105280, 620755008, 1234210560),
    ("resnet32", {"multiplier": 3, "option": "B"}, 4180858, 619464576, 623261760, 1238929152),
    ("resnet32", {"multiplier": 4}, 7386186, 1096485376, 1101351680, 2192970752),
    ("resnet32", {"multiplier": 4, "option": "B"}, 7427914, 1100679680, 1105742592, 2201359360),
    ("resnet32", {"multiplier": 5}, 11536730, 1712704640, 1718787520, 3425409280),
    ("resnet32", {"multiplier": 5, "option": "B"}, 11601690, 1719258240, 1725586880, 3438516480),
    ("basic3resnet", {**DEEP3, "option": "A"}, 4061146, 592626304, 602329792, 1185252608),
    ("basic3resnet", DEEP3, 4063898, 592888448, 602641088, 1185776896),
    ("basic3resnet", {**DEEP3_C100, "option": "A"}, 5141044, 753064192, 765421888, 1506128384),
    ("basic3resnet", DEEP3_C100, 5143796, 753326336, 765733184, 1506652672),
    ("resnet18", {}, 11689512, 1814073344, 1824033792, 3628146688),
    ("densenet40", {"init": 16}, 1019722, 264812928, 273928000, 529625856),
    ("densenet40", {}, 1059298, 282917328, 292594584, 565834656),
    ("densenet40", {"classes": 100}, 1100428, 282958368, 292635624, 565916736),
    ("densenet100", {}, 7083538, 1816743408, 1874759304, 3633486816),
    ("densenet100", {"classes": 100}, 7189468, 1816849248, 1874865144, 3633698496),
    ("densenet100", {"init": 16}, 6979642, 1769516448, 1826110000, 3539032896),
    ("densenet121", {}, 7978856, 2834161664, 2897058304, 5668323328),
    ("short", {}, 574312, 40648816, 40783920, 81297632),
    ("short", {"widths": [14, 62, 96]}, 185668, 10404924, 10461340, 20809848),
]

# factory, arguments, parameters, multiply-accumulates; then what one more block costs: parameters in each stage, and
# the multiply-accumulates, which are the same in all (a stage has half the pixels each way and twice the width).
SEEDS = [
    ("basic3resnet", {}, 78042, 12501632, (4672, 18560, 73984), 4718592),
    ("plain3net", {}, 26682, 5161600, (2336, 9280, 36992), 2359296),
    ("basic4resnet", {}, 4903242, 253432832, (73984, 295424, 1180672, 4720640), 75497472),
    ("plain4net", {}, 1594058, 96146432, (36992, 147712, 590336, 2360320), 37748736),
    ("basic4resnet", LARGE, 5418792, 889229312, (73984, 295424, 1180672, 4720640), 231211008),
    ("bottleneck4resnet", {}, 10064936, 1468792832, (70400, 280064, 1117184, 4462592), 218365952),
    ("plain4net", LARGE, 2109608, 407539712, (36992, 147712, 590336, 2360320), 115605504),
]

GROWN = [
    ("basic4resnet", {"depths": [22, 22, 22, 22]}, 136588362, 6595220480),
    ("basic4resnet", {"depths": [12, 12, 11, 11], **LARGE}, 68495400, 10600091648),
    ("basic4resnet", {"depths": [9, 3, 6, 4], **LARGE}, 26666792, 5051027456),
]


def shape_for(factory: str, args: dict[str, Any]) -> tuple[int, int, int]:
    large = factory in ("resnet18", "densenet121", "bottleneck4resnet") or args.get("stem") == "imagenet"
    return (3, 224, 224) if large else (3, 32, 32)


def build(factory: str, args: dict[str, Any], device: str = "meta") -> nn.Module:
    with torch.device(device):
        net: nn.Module = getattr(models, factory)(**args)
    return net


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def torch_flops(net: nn.Module, shape: tuple[int, int, int]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, *shape, device="meta"))
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("factory", "args", "params", "macs", "thop", "flops"), PUBLISHED)
def test_a_published_network_has_its_published_cost_by_every_counter(
    factory: str, args: dict[str, Any], params: int, macs: int, thop: int, flops: int
) -> None:
    net, shape = build(factory, args), shape_for(factory, args)
    assert parameters(net) == params
    cost = measure(
        net, shape
    )  # asks torch and thop too, refuses where torch disagrees, and gives thop's total as it is
    assert (cost.params, cost.macs, cost.thop, cost.of("FLOPs@2")) == (params, macs, thop, flops)


@pytest.mark.parametrize(("factory", "args", "params", "macs", "block_params", "block_macs"), SEEDS)
def test_a_seed_and_every_block_that_it_may_grow_have_their_published_cost(
    factory: str, args: dict[str, Any], params: int, macs: int, block_params: tuple[int, ...], block_macs: int
) -> None:
    net, shape = build(factory, args), shape_for(factory, args)
    assert isinstance(net, StageNet)
    assert (parameters(net), torch_flops(net, shape)) == (params, 2 * macs)
    for stage, more in zip(net.stages, block_params, strict=True):
        before, flops = parameters(net), torch_flops(net, shape)
        grown = net.get_submodule(stage)
        assert isinstance(grown, nn.Sequential)
        grown.append(net.new_block(stage))
        assert parameters(net) - before == more
        assert torch_flops(net, shape) - flops == 2 * block_macs
    depths = [2] * len(block_params)
    assert parameters(build(factory, {**args, "depths": depths})) == parameters(net)


@pytest.mark.parametrize(("factory", "args", "params", "macs"), GROWN)
def test_a_grown_network_has_its_published_size(factory: str, args: dict[str, Any], params: int, macs: int) -> None:
    net = build(factory, args)
    assert (parameters(net), torch_flops(net, shape_for(factory, args))) == (params, 2 * macs)


def test_a_densenet_source_costs_its_consumers_nine_kernels_each() -> None:
    """DenseNet-40's stem, transitions and head alone cost 54,489,552 multiply-accumulates: a child shrinks them."""
    net = build("densenet40", {})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    flops = {name.removeprefix("DenseNet."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    fixed = ["features.conv0", "features.transition1.conv", "features.transition2.conv", "classifier"]
    assert sum(flops[name] for name in fixed) == 2 * 54489552
    growth = 12
    for block, side in ((1, 32), (2, 16), (3, 8)):
        one, two = (flops[f"features.denseblock{block}.denselayer{layer}"] for layer in (1, 2))
        assert two - one == 2 * 9 * growth * growth * side * side


def test_lecuns_lenet_has_its_61706_parameters() -> None:
    convolutions = (25 + 1) * 6 + (25 * 6 + 1) * 16
    assert parameters(build("lenet5", {})) == convolutions + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10 == 61706


def test_the_lenet_of_the_pruning_papers_has_its_431080_parameters() -> None:
    net = build("lenet5", {"c1": 20, "c2": 50, "hidden": [500], "padding": 0})
    assert parameters(net) == (25 + 1) * 20 + (25 * 20 + 1) * 50 + (800 + 1) * 500 + (500 + 1) * 10 == 431080


SMALL = [
    ("lenet5", {"c1": 4, "c2": 5, "hidden": [7]}, (1, 28, 28)),
    ("lenet5", {"c1": 4, "c2": 5, "hidden": [], "padding": 0, "size": 32, "in_channels": 3}, (3, 32, 32)),
    ("vgg", {"widths": [4, 6, 8], "pools": [1, 3], "in_channels": 1, "size": 8}, (1, 8, 8)),
    ("vgg", {"widths": [4, 6], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 28}, (1, 28, 28)),
    ("vgg", {"widths": [4], "pools": [], "hidden": [5], "size": 8, "norm": False}, (3, 8, 8)),
    ("vgg16", {"widths": [4] * 13, "hidden": [8]}, (3, 32, 32)),
    ("resnet20", {}, (3, 32, 32)),
    ("resnet32", {"option": "B"}, (3, 16, 16)),
    ("resnet_cifar", {"depths": [1, 2], "widths": [4, 6], "in_channels": 1}, (1, 9, 9)),
    ("resnet18", {"width": 4, "classes": 10}, (3, 64, 64)),
    ("basic3resnet", {"width": 4}, (3, 16, 16)),
    ("basic4resnet", {"width": 4}, (3, 16, 16)),
    ("bottleneck4resnet", {"width": 4, "classes": 10}, (3, 64, 64)),
    ("plain3net", {"width": 4}, (3, 16, 16)),
    ("plain4net", {"width": 4}, (3, 16, 16)),
    ("densenet", {"depths": [2, 3], "growth": 4, "init": 6, "bottleneck": 8, "shrink": 2}, (3, 16, 16)),
    ("densenet40", {"growth": 4}, (3, 16, 16)),
    ("densenet100", {"growth": 2}, (3, 8, 8)),
    ("densenet121", {"growth": 4, "classes": 10}, (3, 64, 64)),
    ("short", {"widths": [4, 6], "in_channels": 1, "size": 8}, (1, 8, 8)),
    ("short", {"widths": [4, 6, 8], "convs": 3}, (3, 32, 32)),
    ("preact", {"depths": [2, 1], "widths": [4, 6], "squeeze": 0, "in_channels": 1}, (1, 9, 9)),
    ("condense", {"depths": [2, 1], "growth": 4}, (3, 16, 16)),
]


def test_the_small_cases_cover_every_factory() -> None:
    assert {factory for factory, _, _ in SMALL} == set(models.__all__)


@pytest.mark.parametrize(("factory", "args", "shape"), SMALL)
def test_every_parameter_of_every_network_learns(
    factory: str, args: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    net = build(factory, args, "cpu")
    logits = net(torch.randn(4, *shape))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            assert name == "stem.weight", name  # of `short`, which takes it from the images
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvisions_weights_fit_and_compute_the_same(name: str) -> None:
    import torchvision

    theirs = getattr(torchvision.models, name)(num_classes=5).eval()
    ours = build(name, {"classes": 5}, "cpu").eval()
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_option_a_keeps_every_channel_in_its_place_and_adds_zeros_at_the_end() -> None:
    net = build("resnet_cifar", {"depths": [1, 1], "widths": [3, 5]}, "cpu").eval()
    block = net.get_submodule("stage2.0")
    for parameter in block.get_submodule("bn2").parameters():
        nn.init.zeros_(parameter)  # the residual part is now exactly 0
    x = torch.rand(2, 3, 7, 7)
    with torch.no_grad():
        out: Tensor = block(x)
    assert torch.equal(out[:, :3], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 3:], torch.zeros(2, 2, 4, 4))


def resize(net: nn.Module, module: str, tensor: str, shape: tuple[int, ...]) -> None:
    owner = net.get_submodule(module)
    fresh = torch.randn(shape, dtype=getattr(owner, tensor).dtype)
    setattr(owner, tensor, nn.Parameter(fresh) if tensor in ("weight", "bias") else fresh.abs())


def test_option_a_reads_the_channels_to_add_from_the_tensors_after_a_resize() -> None:
    net = build("resnet_cifar", {"depths": [1, 1], "widths": [3, 5]}, "cpu").eval()
    resize(net, "stage2.0.conv2", "weight", (8, 5, 3, 3))
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        resize(net, "stage2.0.bn2", tensor, (8,))
    resize(net, "fc", "weight", (10, 8))
    with torch.no_grad():
        assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_new_block_takes_the_widths_that_its_stage_has_now() -> None:
    net = build("basic3resnet", {"width": 4}, "cpu").double().eval()
    assert isinstance(net, StageNet)
    resize(net, "stage2.0.conv1", "weight", (7, 4, 3, 3))
    resize(net, "stage2.0.conv2", "weight", (9, 7, 3, 3))
    block = net.new_block("stage2")
    shapes = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    assert shapes["conv1.weight"] == (7, 9, 3, 3)
    assert shapes["conv2.weight"] == (9, 7, 3, 3)
    assert not block.training
    assert block(torch.rand(1, 9, 6, 6, dtype=torch.float64)).shape == (1, 9, 6, 6)


def test_a_residual_block_whose_last_batch_norm_is_zero_changes_nothing() -> None:
    for factory, last in (("basic3resnet", "bn2"), ("bottleneck4resnet", "bn3")):
        net = build(factory, {"width": 4, "classes": 10}, "cpu").eval()
        assert isinstance(net, StageNet)
        block = net.new_block("stage2")
        assert isinstance(block.get_submodule("downsample"), nn.Identity)
        for parameter in block.get_submodule(last).parameters():
            nn.init.zeros_(parameter)
        stage = net.get_submodule("stage2")
        assert isinstance(stage, nn.Sequential)
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            before = net(x)
            stage.append(block)
            assert torch.equal(net(x), before)


def test_filters_begin_with_norm_sqrt_2_whatever_the_widths() -> None:
    torch.manual_seed(0)
    for factory, args in (("vgg16", {}), ("resnet20", {}), ("plain4net", {"width": 16}), ("densenet40", {})):
        for name, module in build(factory, args, "cpu").named_modules():
            if isinstance(module, nn.Conv2d):
                norms = module.weight.detach().flatten(1).norm(dim=1)
                fan_in, filters = module.weight[0].numel(), len(norms)
                # a chi distribution: mean about sqrt(2), standard deviation about 1 / sqrt(fan_in)
                tolerance = 4 / math.sqrt(fan_in * filters) + 1 / (2 * fan_in)
                assert abs(float(norms.mean()) - math.sqrt(2)) < tolerance, (factory, name)
    linear = build("vgg16", {}, "cpu").get_submodule("classifier.linear1")
    assert isinstance(linear, nn.Linear)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.02)


# What each is to be at these sizes, and a method that changes its shape.
SHORT = {"widths": [16, 24], "in_channels": 1, "size": 8}
PREACT = {"depths": [1, 1], "widths": [12, 16], "in_channels": 1}
CONDENSE = {"depths": [2, 1], "growth": 4, "groups": 2, "in_channels": 1}
WIDER = {"name": "adenel", "seed_width": 2, "filters": 5, "grow": "all", "include_1x1": True, "tune": {"epochs": 1}}
DEEPER = {"name": "autogrow", "interval": "5 steps", "tune": {"epochs": 1}}
FEWER = {
    "name": "lwp", "pretrain": {"epochs": 1}, "search": "6 steps", "release": "2 steps", "joint": "5 steps",
    "samples": 2, "recalibrate": 1, "tune": {"epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("factory", "args", "steps", "budget"),
    [
        ("short", SHORT, [WIDER], "60kMACs, 9kparams"),
        ("preact", PREACT, [DEEPER, WIDER], "500kMACs"),
        ("condense", CONDENSE, [FEWER, WIDER], "200%"),
    ],
)
def test_a_backbone_for_small_budgets_is_fitted_and_every_file_of_it_verifies(
    factory: str, args: dict[str, Any], steps: list[Any], budget: str, tmp_path: Path
) -> None:
    keys = {"model": {"factory": f"compress.models:{factory}", "args": args, "input": [1, 8, 8]}, "steps": steps}
    recipe = Recipe.model_validate({**keys, "train": {"batch": 100}, "budget": budget})
    planned = compress.plan(recipe)
    assert {why for space in planned.graph.spaces.values() if (why := space.frozen)} <= {
        "it reaches the model's output",
        "stem.weight cannot be trained (requires_grad is False)",
    }
    result = compress.run(recipe, out=tmp_path / "out")
    report = result.report.plain()
    assert report["verdict"]["code"] == 0
    assert max(row["utilisation"] for row in report["budget"]) > 0.9
    assert compress.verify(tmp_path / "out", "sealed").code == 0
    net = compress.load(tmp_path / "out")
    widths = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert widths != {name: tuple(p.shape) for name, p in build(factory, args, "cpu").named_parameters()}


ONE_PER_FILE = [
    case
    for case in SMALL
    if case[0] in ("lenet5", "vgg", "resnet_cifar", "plain3net", "densenet", "preact", "condense")
]


@pytest.mark.parametrize(("factory", "args", "shape"), ONE_PER_FILE)
def test_an_exported_network_computes_the_same(factory: str, args: dict[str, Any], shape: tuple[int, int, int]) -> None:
    net = build(factory, args, "cpu").eval()
    x = torch.randn(2, *shape)
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize(
    ("factory", "args", "sentence"),
    [
        ("lenet5", {"size": 8, "padding": 0}, "8 px are too small"),
        ("vgg", {"widths": [], "pools": []}, "widths is empty"),
        ("vgg", {"widths": [4], "pools": [2]}, "numbers of convolutions, 1 to 1"),
        ("vgg", {"widths": [4, 4], "pools": [1, 1]}, "different numbers"),
        ("vgg", {"widths": [4, 4], "pools": [1, 2], "size": 3}, "2 halvings leave nothing of 3 px"),
        ("vgg", {"widths": [4], "pools": [1], "last_pool": "mean"}, "last_pool is 'mean'"),
        ("resnet_cifar", {"depths": [1, 1]}, "must be 3 numbers of blocks"),
        ("resnet_cifar", {"depths": [1, 0, 1]}, "each 1 or more"),
        ("resnet_cifar", {"depths": [1, 1], "widths": [8, 4]}, "never drops any"),
        ("resnet20", {"option": "C"}, "option is 'C'"),
        ("plain3net", {"stem": "mnist"}, "stem is 'mnist'"),
        ("densenet", {"depths": [1], "stem": "mnist"}, "stem is 'mnist'"),
        ("condense", {"depths": [2, 0]}, "must be numbers of layers, each 1 or more"),
        ("condense", {"growth": 6}, "growth 6 is no multiple of groups 4"),
        ("preact", {"depths": [1, 1]}, "must be 3 numbers of blocks"),
    ],
)
def test_arguments_that_make_no_network_are_refused_in_a_sentence(
    factory: str, args: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(factory, args)


def test_a_stage_that_is_not_there_is_named_with_those_that_are() -> None:
    net = build("resnet18", {})
    assert isinstance(net, StageNet)
    with pytest.raises(ValueError, match=r"no stage 'stage1' in this network; it has layer1, layer2, layer3, layer4"):
        net.new_block("stage1")
