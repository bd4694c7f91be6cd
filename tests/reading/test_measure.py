"""Our counts are torch's and thop's, whatever they cannot see is said, and measuring leaves no trace."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from compress import models
from compress.budget.limits import Cost
from compress.errors import ArtifactError, UsageError
from compress.reading.count import SEAL_BYTES, Tally
from compress.reading.graph import read
from compress.reading.measure import measure, unseen
from compress.reading.trace import trace

SHAPE = (3, 16, 16)


class Net(nn.Module):
    """Modules by name, and a forward pass as a function of them and the input."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Masked(nn.Conv2d):
    """A subclass, as mask libraries make them."""


@torch.library.custom_op("compress_tests::twin", mutates_args=())
def twin(x: Tensor) -> Tensor:
    """An operator that nobody but its author knows."""
    return x.clone()


@twin.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def attended(net: Net, x: Tensor) -> Tensor:
    tokens = net.a(x).flatten(2).transpose(1, 2)
    return net.fc(net.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def layered(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *layers)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lambda: models.lenet5(in_channels=3, size=16),
    "vgg": lambda: models.vgg([4, 5], [1, 2], hidden=[6], size=16, last_pool="avg"),
    "resnet": lambda: models.resnet_cifar([1, 1], [4, 6], option="B"),
    "densenet": lambda: models.densenet([2, 2], growth=3, init=4, bottleneck=4, shrink=2),
    "grouped and transposed": lambda: layered(
        nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1, groups=2), nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
    ),
    "norms": lambda: layered(
        nn.BatchNorm2d(6, affine=False), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True),
        nn.InstanceNorm2d(6, track_running_stats=True), nn.LayerNorm(14), nn.LayerNorm(14, elementwise_affine=False)),
    "pools": lambda: layered(
        nn.AvgPool2d(2, 1), nn.MaxPool2d(2, 1), nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((2, 1)),
        nn.AdaptiveMaxPool2d(1)),
    "activations": lambda: layered(
        nn.PReLU(6), nn.PReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Softmax(1), nn.GELU(), nn.SiLU(), nn.Hardswish()),
    "upsampling": lambda: layered(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5), nn.BatchNorm1d(4), nn.AvgPool1d(2)),
    "three dimensions": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)),
    "attention": lambda: Net(
        attended, a=nn.Conv2d(3, 8, 4, 4), attention=nn.MultiheadAttention(8, 2, batch_first=True), fc=nn.Linear(8, 4)),
    "functional and subclassed": lambda: Net(
        lambda s, x: fn.linear(s.m(fn.conv2d(x, s.w)).mean((2, 3)), s.v), m=Masked(5, 6, 3),
        w=nn.Parameter(torch.rand(5, 3, 3, 3)), v=nn.Parameter(torch.rand(4, 6))),
    "one layer": lambda: nn.Conv2d(3, 4, 3),
}  # fmt: skip


def thops(model: nn.Module, shape: tuple[int, ...]) -> int:
    from thop import profile  # the tests' own call, on a real input

    return int(profile(copy.deepcopy(model), inputs=(torch.rand(1, *shape),), verbose=False)[0])


def torchs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Half of what torch counts, its fused attentions switched off: of the one on CPUs torch 2.14 counts nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        copy.deepcopy(model).eval()(torch.rand(1, *shape))
    torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


@pytest.mark.filterwarnings("ignore")  # thop imports distutils
@pytest.mark.parametrize("name", MODULES)
def test_measure_counts_what_torch_and_thop_count(name: str) -> None:
    model = MODULES[name]()
    cost = measure(model, SHAPE)
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.macs == torchs(model, SHAPE)
    assert cost.thop == thops(model, SHAPE)
    assert read(model, SHAPE).price.cost(read(model, SHAPE).widths) == cost
    assert Tally(trace(model, SHAPE)).price().cost({}) == cost


def test_measure_agrees_with_pencil_and_paper() -> None:
    cost = measure(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)), SHAPE)
    conv, norm, linear = 14 * 14 * 4 * 3 * 9, 4 * 14 * 14 * 4, 4 * 14 * 14 * 5
    assert cost.params == (4 * 3 * 9 + 4) + 2 * 4 + (4 * 14 * 14 * 5 + 5)
    assert (cost.macs, cost.thop) == (conv + linear, conv + norm + linear)


@pytest.mark.parametrize(
    ("make", "shape", "params", "macs", "thop"),
    [  # known figures of the published networks
        (models.vgg16, (3, 32, 32), 14_987_722, 313_463_808, 314_572_288),
        (models.resnet20, (3, 32, 32), 269_722, 40_551_040, 41_308_864),
        (models.densenet40, (3, 32, 32), 1_059_298, 282_917_328, 292_594_584),
    ],
)
def test_published_networks_cost_what_is_known(
    make: Callable[[], nn.Module], shape: tuple[int, int, int], params: int, macs: int, thop: int
) -> None:
    cost = measure(make(), shape)
    assert (cost.params, cost.macs, cost.thop) == (params, macs, thop)


def test_what_thop_does_not_see_counts_for_us_and_is_listed() -> None:
    model = MODULES["functional and subclassed"]()
    first, second, last = 14 * 14 * 5 * 3 * 9, 12 * 12 * 6 * 5 * 9, 4 * 6
    cost = measure(model, SHAPE)
    assert (cost.macs, cost.thop) == (first + second + last, 0)
    assert unseen(model, SHAPE) == [f"forward(): {first + last} MACs, thop 0", f"m: {second} MACs, thop 0"]
    assert cost.of("FLOPs") == cost.macs


def test_thops_errors_in_transposed_and_shared_layers_are_listed() -> None:
    transposed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 2, 2))
    assert unseen(transposed, SHAPE) == [f"1: {14 * 14 * 4 * 5 * 4} MACs, thop {28 * 28 * 4 * 5 * 4}"]
    layer = nn.Conv2d(3, 3, 1)
    shared = nn.Sequential(nn.Sequential(layer), nn.Sequential(layer))
    once = 16 * 16 * 9
    assert measure(shared, SHAPE).macs == 2 * once
    assert measure(shared, SHAPE).thop == 8 * once  # two hooks at two calls, and the sum is taken twice
    assert Tally(trace(shared, SHAPE)).price().cost({}) == measure(shared, SHAPE)
    assert unseen(shared, SHAPE) == [f"0.0: {2 * once} MACs, thop {4 * once}"]
    assert unseen(models.resnet20(), (3, 32, 32)) == []


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Net(lambda s, x: s.l(x[0])[0], l=nn.LSTM(16, 4, proj_size=2)), "a LSTM with proj_size"),
        (lambda: Net(lambda s, x: s.l(twin(x)), l=nn.Conv2d(3, 4, 3)), "compress_tests.twin (in forward())"),
        (
            lambda: Net(lambda s, x: x.cummax(2).values + x.kthvalue(2, 2, True).values),
            "aten.cummax (in forward()), aten.kthvalue",
        ),
    ],
)
def test_operators_that_cannot_be_counted_are_refused_by_name(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(UsageError) as refused:
        measure(make(), SHAPE)
    assert f"no rule for {name}" in str(refused.value)


def test_an_operator_without_a_rule_counts_as_nothing_where_that_is_asked_for() -> None:
    net = Net(lambda s, x: s.a(x).cummax(2).values, a=nn.Conv2d(3, 4, 3))
    assert read(net, SHAPE).uncounted == {"aten.cummax": ""}
    assert read(net.a, SHAPE).uncounted == {}
    assert measure(net, SHAPE, lenient=True).macs == measure(net.a, SHAPE).macs == 14 * 14 * 4 * 27


def test_recurrent_layers_cost_their_products_at_every_step_and_thop_adds_gates() -> None:
    """Of x [3 steps, 16, 16]: four gates of 4 channels that read 16 + 4; thop adds 4 + 8 a gate, and 16 behind them."""
    lstm = measure(Net(lambda s, x: s.l(x[0])[0], l=nn.LSTM(16, 4)), SHAPE)
    assert (lstm.macs, lstm.thop) == (3 * 16 * 4 * 4 * 20, 3 * 16 * (4 * (4 * 20 + 4 + 8) + 16))
    cell = measure(Net(lambda s, x: s.l(x[0, 0]), l=nn.GRUCell(16, 4, bias=False)), SHAPE)
    assert (cell.macs, cell.thop) == (16 * 3 * 4 * 20, 16 * (3 * (4 * 20 + 4) + 16))


def test_a_deformable_convolution_costs_as_much_as_one_without_offsets() -> None:
    net = Net(lambda s, x: s.d(x, s.offsets(x)), d=DeformConv2d(3, 5, 3, padding=1), offsets=nn.Conv2d(3, 18, 1))
    assert measure(net, SHAPE).macs == 16 * 16 * (3 * 5 * 9 + 3 * 18)


def test_zeros_of_a_stated_size_take_as_many_bytes_of_the_file_as_ones() -> None:
    """The exporter may store either: 4 bytes a number."""
    first = Net(lambda s, x: s.l(torch.cat([x, torch.zeros(1, 5, 16, 16)], 1)), l=nn.Conv2d(8, 4, 3))
    other = Net(lambda s, x: s.l(torch.cat([x, torch.ones(1, 5, 16, 16)], 1)), l=nn.Conv2d(8, 4, 3))
    assert measure(first, SHAPE) == measure(other, SHAPE)
    assert measure(first, SHAPE).bytes > 4 * 5 * 16 * 16


def test_a_layer_that_lies_about_its_size_is_an_artifact_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    model[2].in_features = 1  # what thop believes
    with pytest.raises(ArtifactError, match="thop counts 5 for 2 and we 3920 MACs"):
        measure(model, SHAPE)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = MODULES["resnet"]().train()
    model.fc.weight.requires_grad_(False)
    model.stage1[0].eval()
    before = copy.deepcopy(model.state_dict())
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    measure(model, SHAPE)
    unseen(model, SHAPE)
    read(model, SHAPE)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == grads
    assert [id(p) for p in model.parameters()] == identities


def test_pruning_masks_in_the_middle_of_training_do_not_disturb_the_count() -> None:
    model = models.vgg([4, 5], [1], size=16, hidden=[])
    plain = measure(model, SHAPE)
    prune.ln_structured(model.features.conv1, "weight", 0.5, n=2, dim=0)
    model(torch.rand(2, *SHAPE)).sum().backward()  # the masked weight is now part of an autograd graph
    masked = measure(model, SHAPE)
    assert (masked.params, masked.macs, masked.thop) == (plain.params, plain.macs, plain.thop)


def test_a_network_that_makes_its_own_tensors_or_buffers_in_lists_is_counted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.tables = nn.Conv2d(3, 4, 3), [torch.ones(4, 1, 1)]

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.tables[0] + torch.zeros(4, 14, 14)

    assert measure(Odd(), SHAPE).macs == 14 * 14 * 4 * 3 * 9


class Pointwise(nn.Module):
    """A block as in ConvNeXt: linear layers at every pixel, and a parameter that scales each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(fn.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
        return (x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3))


@pytest.fixture(scope="module")
def sized() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    wide = models.vgg([16, 16, 32], [2, 3], in_channels=1, size=8, hidden=[32], last_pool="global")
    return {
        "lenet5": (models.lenet5(), (1, 28, 28)),
        "vgg": (wide, (1, 8, 8)),
        "resnet20": (models.resnet20(), (3, 32, 32)),
        "densenet": (models.densenet([3, 3], growth=8, init=16, bottleneck=16), (3, 16, 16)),
        "no affine, no bias, shared": (
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.BatchNorm2d(6),
                          nn.Flatten(), nn.Linear(6 * 36, 40, bias=False), nn.BatchNorm1d(40)), (3, 8, 8)),
        "a bias and a scale on many places": (Pointwise(), (3, 24, 24)),
    }  # fmt: skip


def test_the_room_for_what_is_sealed_is_that_of_its_longest_form() -> None:
    from compress.export.onnx import file as onnx_file
    from compress.export.seal import LONGEST, SCORES, SEALED

    assert (tuple(LONGEST["accuracy"]), tuple(LONGEST["files"])) == (SCORES, SEALED)
    assert onnx_file.metadata_bytes({"sealed": LONGEST}) - onnx_file.metadata_bytes({}) == SEAL_BYTES


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its own insides
@pytest.mark.parametrize(
    "name",
    ["lenet5", "vgg", "resnet20", "densenet", "no affine, no bias, shared", "a bias and a scale on many places"],
)
def test_the_predicted_bytes_are_a_close_upper_bound_of_the_file(
    name: str, sized: dict[str, tuple[nn.Module, tuple[int, ...]]], tmp_path: Path
) -> None:
    from compress.export.onnx import file as onnx_file
    from compress.export.seal import LONGEST

    model, shape = sized[name]
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)  # the exporter drops biases of zeros
    options = {"dynamo": True, "external_data": False, "verbose": False}
    axes = ({0: torch.export.Dim("batch")},)
    exported = torch.onnx.export(model.eval(), (torch.rand(2, *shape),), dynamic_shapes=axes, **options)
    assert exported is not None
    metadata = {
        "base": {"params": 10**7, "macs": 10**9, "thop": 10**9, "bytes": 10**8, "memory": 10**8},
        "budget": 3 * [{"unit": "FLOPs@2", "limit": 10**7, "text": "10 MFLOPs@2", "level": "error"}],
        "claims": {"params": 10**7, "macs": 10**9, "thop": 10**9, "memory": 10**8},
        "preprocessing": {
            "layout": "NCHW", "shape": list(shape), "range": [0, 255], "mean": [1 / 3] * 3, "std": [1 / 3] * 3,
            "baked": True, "classes": ["automobile"] * 10},
        "sealed": LONGEST,
        "structure": "0" * 64,
        "versions": {"onnx": "1.22.0", "torch": str(torch.__version__)},
    }  # fmt: skip
    scaled = onnx_file.bake(onnx_file.clean(exported.model_proto), [1.0] * shape[0], [0.0] * shape[0])
    size = onnx_file.write_sealed(onnx_file.stamp(scaled, metadata), tmp_path / "model.onnx")
    predicted = measure(model, shape)
    assert isinstance(predicted, Cost)
    assert size <= predicted.bytes <= size + 6_000


def test_a_matrix_product_that_is_written_as_a_sum_of_products_is_refused_before_any_training() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return (x.flatten(1).unsqueeze(2) * net.weight.squeeze(0)).sum(1)

    hidden = Net(forward, weight=nn.Parameter(torch.randn(1, 3 * 16 * 16, 5)))
    with pytest.raises(UsageError, match=r"forward\(\) multiplies \[1, 768, 1\] with \[768, 5\].*torch\.matmul"):
        measure(hidden, SHAPE)


def test_weights_that_scale_channels_before_a_mean_are_no_matrix_product() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return (net.a(x) * net.scale[:, None, None]).mean((2, 3))

    assert (
        measure(Net(forward, a=nn.Conv2d(3, 8, 3), scale=nn.Parameter(torch.ones(8))), SHAPE).macs == 8 * 27 * 14 * 14
    )
