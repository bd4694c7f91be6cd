"""The peak of activations is what a naive simulation of a real forward pass finds, in every net of a family."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.utils._python_dispatch import TorchDispatchMode

from compress import models
from compress.budget import memory
from compress.budget.landing import land
from compress.budget.limits import Budget, Limit
from compress.budget.memory import Operation, moments
from compress.budget.units import MEMORY
from compress.export.onnx import count as onnx_count
from compress.export.translate import to_onnx, to_program
from compress.reading.graph import read
from compress.reading.measure import measure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

Shape = tuple[int, ...]


class Net(nn.Module):
    """A convolution, something in the middle, and a head."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor], width: int = 6, **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.fc, self.middle = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(width, 5), middle
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self, self.stem(x)).mean((2, 3)))


def gated(net: Net, x: Tensor) -> Tensor:
    gates: Tensor = net.g(x.mean((2, 3), keepdim=True))
    return x * gates.sigmoid()


def late(net: Net, x: Tensor) -> Tensor:
    """An early tensor is read again at the end."""
    y = net.b(net.a(x).relu())
    return torch.cat([y, x], 1) + 1


NETS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "lenet": (lambda: models.lenet5(in_channels=3, size=16), (3, 16, 16)),
    "vgg": (lambda: models.vgg([4, 5], [1, 2], hidden=[6], size=16), (3, 16, 16)),
    "resnet, zeros padded": (lambda: models.resnet_cifar([1, 1], [4, 6], option="A"), (3, 16, 16)),
    "resnet, convolved": (lambda: models.resnet_cifar([1, 1], [4, 6], option="B"), (3, 16, 16)),
    "densenet": (lambda: models.densenet([2, 3], growth=3, init=4, bottleneck=4), (3, 16, 16)),
    "gates": (lambda: Net(gated, g=nn.Conv2d(6, 6, 1)), (3, 8, 8)),
    "silu": (lambda: Net(lambda s, x: s.a(fn.silu(s.b(x))), a=nn.Conv2d(9, 6, 1), b=nn.Conv2d(6, 9, 1)), (3, 8, 8)),
    "read again": (lambda: Net(late, 12, a=nn.Conv2d(6, 6, 3, 2, 1), b=nn.ConvTranspose2d(6, 6, 2, 2)), (3, 8, 8)),
    "own tensors": (lambda: Net(lambda s, x: (x + torch.ones(1, 1, 8, 8)).add_(x)), (3, 8, 8)),
}  # fmt: skip


class Viewed(nn.Module):
    """A view of the input, and a small net behind it."""

    def __init__(self, view: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.view = view
        self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(self.view(x)).relu()).mean((2, 3)))


def focus(x: Tensor) -> Tensor:
    """Every other pixel, the four pictures side by side, as detectors begin."""
    return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], int, Shape]] = {  # and the channels that come out
    "one channel of three": (lambda x: x[:, :1], 1, (3, 8, 8)),
    "the middle of a picture": (lambda x: x[..., 2:-2, 2:-2], 3, (3, 12, 12)),
    "channels last": (lambda x: x.permute(0, 3, 1, 2), 3, (8, 8, 3)),
    "no channel axis": (lambda x: x.unsqueeze(1), 1, (8, 8)),
    "a flat picture": (lambda x: x.view(-1, 3, 8, 8), 3, (192,)),
    "flattened and back": (lambda x: x.flatten(1).view(-1, 3, 8, 8), 3, (3, 8, 8)),
    "turned": (lambda x: x.transpose(2, 3), 3, (3, 8, 8)),
    "one of two pictures": (lambda x: x[:, 0], 3, (2, 3, 8, 8)),
    "split": (lambda x: x.split(2, 1)[0], 2, (4, 8, 8)),
    "focus": (focus, 12, (3, 16, 16)),
}
NETS |= {name: (lambda v=v, c=c: Viewed(v, c), shape) for name, (v, c, shape) in VIEWS.items()}  # type: ignore[misc]


WRITES_OVER = [  # of the operators of these networks: element by element, and one node in an ONNX file
    "aten.relu", "aten.sigmoid", "aten.add", "aten.add_", "aten.mul", "aten.native_batch_norm",
    "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training"]  # fmt: skip


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the storages that each operator of a real forward pass reads and returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[Any] = []  # so that no address is used twice
        self.ran: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        listed = [item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])]
        outs = list(out) if isinstance(out, list | tuple) else [out]
        self.kept += [args, out]
        self.ran.append(
            (str(func.overloadpacket), [t for t in listed if isinstance(t, Tensor)], [t for t in outs if t is not None])
        )
        return out


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def simulated(model: nn.Module, shape: Shape) -> int:
    """The peak in bytes: for each operator, everything that was made before it and is read from it on, and its outputs.

    An operator that can write over an operand (of as many bytes, read by nobody later) has one buffer for both.
    """
    x = torch.rand(1, *shape)
    with Watch() as watch:
        result = model.eval()(x)
    size, begun = {address(x): x.untyped_storage().nbytes()}, {address(x): -1}
    for at, (_, ins, outs) in enumerate(watch.ran):
        for number, out in enumerate(outs):
            used = any(address(out) == address(t) for _, later, _ in watch.ran for t in later)
            kept = number == 0 or used
            if kept and address(out) not in begun and any(address(t) in begun for t in ins):
                size[address(out)], begun[address(out)] = out.untyped_storage().nbytes(), at
    last = {
        key: max([at for at, (_, ins, _) in enumerate(watch.ran) if key in map(address, ins)] or [-1]) for key in begun
    }
    last[address(result)] = len(watch.ran)
    peak = 0
    for at, (op, ins, outs) in enumerate(watch.ran):
        alive = {key for key, start in begun.items() if start <= at <= last[key] or start == at}
        total = sum(size[key] for key in alive)
        first = address(outs[0])
        if begun.get(first) == at and op in WRITES_OVER:
            given_up = [t for t in ins if last.get(address(t)) == at and size[address(t)] == size[first]]
            total -= size[first] if given_up else 0
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize("name", NETS)
def test_the_peak_of_every_net_of_a_family_is_what_a_simulation_of_it_finds(name: str) -> None:
    make, shape = NETS[name]
    chance = random.Random(name)
    graph = survey(make(), shape)
    assert graph.free, [space.frozen for space in graph.spaces.values()]
    for _ in range(4):
        model = make()
        surgeon = Surgeon(model, graph)
        for space in graph.free:
            width = surgeon.graph.spaces[space].width
            if chance.random() < 0.5:
                surgeon.widen(space, chance.randint(1, 12))
            elif width > 1:
                surgeon.narrow(space, sorted(chance.sample(range(width), chance.randint(1, width - 1))))
        widths = surgeon.graph.widths
        assert graph.price.cost(widths).memory == measure(model, shape).memory == simulated(model, shape)
        assert graph.price.peak(widths) in [*(n for n, _ in model.named_modules() if n), "forward()"]


def test_the_peak_agrees_with_pencil_and_paper() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    image, wide, pooled = 3 * 8 * 8, 4 * 6 * 6, 4 * 3 * 3
    assert measure(net, (3, 8, 8)).memory == 4 * max(image + wide, wide + pooled, pooled + 5)
    assert measure(net.double(), (3, 8, 8)).memory == 4 * (image + wide)  # as it is exported, whatever trains it
    late = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3))
    assert measure(late, (1, 8, 8)).memory == 4 * (64 + 8 * 36)


def test_the_published_networks_have_the_peaks_that_their_shapes_say() -> None:
    plane = 4 * 32 * 32
    assert measure(models.vgg16(), (3, 32, 32)).memory == 2 * 64 * plane
    assert measure(models.resnet20(), (3, 32, 32)).memory == 3 * 16 * plane  # a block's input waits for its output
    assert measure(models.densenet40(), (3, 32, 32)).memory == 2 * 168 * plane  # the last concatenation of a block


@pytest.mark.parametrize("name", NETS)
def test_narrowing_never_raises_the_peak(name: str) -> None:
    make, shape = NETS[name]
    price = read(make(), shape).price
    assert (price.alive >= 0).all()
    assert (price.alive0 >= 0).all()


@pytest.mark.parametrize("name", NETS)
def test_no_moment_is_kept_that_never_is_the_peak(name: str) -> None:
    make, shape = NETS[name]
    price = read(make(), shape).price
    rows = [[base, *row] for base, row in zip(price.alive0.tolist(), price.alive.tolist(), strict=True)]
    for one, row in enumerate(rows):
        assert not any(
            all(a <= b for a, b in zip(row, other, strict=True)) for two, other in enumerate(rows) if two != one
        )


# ---- the rules, in small --------------------------------------------------------------------------------------------


def largest(steps: list[Operation], sizes: dict[str, int], outputs: str = "z") -> int:
    return max(sum(sizes[str(b)] for b in alive) for _, alive in moments(steps, ["x"], [outputs]))


def test_an_operator_writes_over_an_operand_that_nobody_reads_later() -> None:
    sizes = {"x": 10, "y": 10, "z": 1}
    over = [Operation("relu", ["x"], ["y"], ["x"]), Operation("head", ["y"], ["z"])]
    assert largest(over, sizes) == 11
    assert largest([over[0]._replace(over=()), over[1]], sizes) == 20
    assert largest([over[0], Operation("head", ["y", "x"], ["z"])], sizes) == 21
    assert largest([Operation("relu", ["x"], ["z"], ["x"])], {"x": 10, "z": 10}) == 10


def test_what_took_a_place_leaves_it_to_the_next() -> None:
    sizes = {"x": 10, "a": 10, "b": 10, "z": 1}
    steps = [Operation("n", ["x"], ["a"], ["x"]), Operation("r", ["a"], ["b"], ["a"]), Operation("head", ["b"], ["z"])]
    assert largest(steps, sizes) == 11


# ---- landing --------------------------------------------------------------------------------------------------------


def test_a_budget_of_memory_is_filled_by_real_networks() -> None:
    for make, shape in (NETS["resnet, zeros padded"], NETS["densenet"], NETS["vgg"]):
        price = read(make(), shape).price
        start, goal = dict.fromkeys(price.spaces, 2), dict.fromkeys(price.spaces, 40)
        for share in (0.3, 0.7):
            low, high = price.cost(start).memory, price.cost(goal).memory
            budget = Budget((Limit(MEMORY, int(low + share * (high - low)), "memory"),))
            reached = price.cost(land(price, start, goal, budget)).memory
            assert 0.9 <= reached / budget.limits[0].limit <= 1


def test_moments_below_every_limit_do_not_change_a_landing() -> None:
    make, shape = NETS["densenet"]
    price = read(make(), shape).price
    start, goal = dict.fromkeys(price.spaces, 2), dict.fromkeys(price.spaces, 20)
    macs = Limit("MACs", price.cost(dict.fromkeys(price.spaces, 9)).macs, "MACs")
    roomy = Limit(MEMORY, 10 * price.cost(goal).memory, "room")
    assert land(price, start, goal, Budget((macs,))) == land(price, start, goal, Budget((macs, roomy)))


# ---- the exported file ----------------------------------------------------------------------------------------------


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "lenet5": (models.lenet5, (1, 28, 28)),
    "vgg16": (models.vgg16, (3, 32, 32)),
    "resnet20": (models.resnet20, (3, 32, 32)),
    "densenet": (lambda: models.densenet([4, 4, 4], growth=12, init=24), (3, 32, 32)),
}


def in_the_file(model: nn.Module, shape: Shape) -> int | None:
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        return onnx_count.count(to_onnx(to_program(model.eval(), torch.zeros(2, *shape)), ["images"])).memory


@pytest.mark.parametrize("name", [*PUBLISHED, *VIEWS, "gates", "silu", "read again", "resnet, convolved"])
def test_the_exported_file_has_the_same_peak(name: str) -> None:
    make, shape = (PUBLISHED | NETS)[name]
    model = make()
    assert in_the_file(model, shape) == measure(model, shape).memory


@pytest.mark.parametrize("function", [torch.erf, torch.square, torch.detach, fn.celu, torch.exp_])
def test_a_function_needs_as_much_room_in_the_module_as_in_the_file(function: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda s, x: function(x))
    assert measure(net, (3, 8, 8)).memory == in_the_file(net, (3, 8, 8)) == 4 * (3 + 6) * 64  # the image and its planes


def test_what_the_exporter_makes_several_operators_of_counts_in_the_file() -> None:
    net = Net(lambda s, x: fn.softplus(x))
    assert measure(net, (3, 8, 8)).memory < (in_the_file(net, (3, 8, 8)) or 0)


@given(st.data())
def test_the_largest_moment_is_the_largest_of_all_moments(data: st.DataObject) -> None:
    sizes = {name: data.draw(st.integers(0, 9)) for name in range(3)}
    operations = []
    for number in range(data.draw(st.integers(1, 6))):
        known = sorted(sizes)
        reads = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True))
        made = [len(sizes) + k for k in range(data.draw(st.integers(1, 2)))]
        over = data.draw(st.lists(st.sampled_from(reads), max_size=1)) if reads else []
        sizes |= {name: data.draw(st.integers(0, 9)) for name in made}
        if over:
            sizes[made[0]] = sizes[over[0]]  # it may write over what is as large
        operations.append(Operation(str(number), reads, made, over))
    outputs = data.draw(st.lists(st.sampled_from(sorted(sizes)), max_size=2, unique=True))
    alive = [sum(sizes[buffer] for buffer in buffers) for _, buffers in moments(operations, [0, 1, 2], outputs)]
    assert memory.largest(operations, [0, 1, 2], outputs, sizes.__getitem__) == max(alive)
