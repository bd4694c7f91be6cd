"""The exact test: in float64, wider and narrower nets compute what the whole one does."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.reading.ghost import flat
from compress.reading.graph import Graph
from compress.reading.inputs import Shape, each
from compress.reading.measure import measure
from compress.surgery.proof import silence
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.surgery.tensors import fit


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with no number that hides anything."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.double().named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = drawn.abs() + 0.5 if name.endswith(("running_var", "v")) and tensor.dim() == 1 else drawn
    return model.eval()


def inputs(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, *one, dtype=torch.float64, generator=generator) for one in each(shape)]


def gap(one: object, other: object) -> float:
    """The largest difference of any output, relative to the largest number above 1."""
    pairs = zip(flat(one), flat(other), strict=True)
    return max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1.0)) for a, b in pairs)


def why(graph: Graph) -> dict[str, str]:
    return {name: space.frozen for name, space in graph.spaces.items() if space.frozen is not None}


def assert_exact(make: Callable[[], nn.Module], shape: Shape) -> None:
    """Wider and, where what goes is silent, narrower: the same function, the foretold price, and training goes on."""
    net = lively(make())
    graph, before = survey(net, shape), net(*inputs(shape))
    wide, narrow = (Surgeon(copy.deepcopy(net), graph) for _ in range(2))
    for number, name in enumerate(graph.free, 1):
        wide.widen(name, number)
    assert gap(wide.model(*inputs(shape)), before) <= 1e-10
    gone = {name: range(0, width - 2, 2) for name, width in graph.widths.items()}
    for name, positions in gone.items():
        silence(narrow.model, graph, name, positions)
    before = narrow.model(*inputs(shape))
    for name, width in graph.widths.items():
        narrow.narrow(name, sorted(set(range(width)) - set(gone[name])))
    assert gap(narrow.model(*inputs(shape)), before) <= 1e-10
    for surgeon in (wide, narrow):
        assert graph.price.cost(surgeon.graph.widths) == measure(surgeon.model, shape)
        assert surgeon.graph.alike(survey(surgeon.model, shape, lambda _: why(graph)))
        again = make().double().eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in surgeon.model.state_dict().items()}
        fit(again, shapes, surgeon.graph.numbers)
        again.load_state_dict(surgeon.model.state_dict())
        assert gap(again(*inputs(shape)), surgeon.model(*inputs(shape))) == 0.0
        sum(out.sum() for out in flat(surgeon.model.train()(*inputs(shape)))).backward()
