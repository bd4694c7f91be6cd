"""What may change of a network: read from its operators, then tried, first without numbers and then with them.

A rule says what an operator does with channels, and nothing of the Python around it: a slice up to the half of however
many channels there are, a factor that follows from their number. So all that is free is made wider on a copy without
numbers, which must run and read as foretold; and on a copy with random ones half of every space is cut and as many new
channels as there were are added, which must compute what the whole one does with that half silenced. What fails is
frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from compress.errors import UsageError, one_line
from compress.reading.flow import Flow
from compress.reading.ghost import countable, ghost
from compress.reading.graph import Graph, read
from compress.reading.ids import small
from compress.reading.inputs import Shape, blanks
from compress.reading.trace import Recorder, taught, trace
from compress.surgery.proof import Proof
from compress.surgery.tensors import fit

Hold = Callable[[Graph], Mapping[str, str]]  # spaces that stay as they are, each with its reason


def survey(model: nn.Module, shape: Shape, held: Hold | None = None) -> Graph:
    """Read a module and try its free spaces; one that does not change as its operators say is frozen, and says why.

    `held` says which spaces of a graph stay as they are, each with its reason. Raises UsageError as `graph.read` does.
    """
    graph = read(model, shape)
    hold = dict(held(graph)) if held else {}
    if hold:
        graph = read(model, shape, hold)
    # Each by another number, two apart for the sake of halves: spaces must not hide that they only change together.
    amounts = {name: 2 * number + 3 for number, name in enumerate(graph.free)}
    if broken := _breaking(model, graph, amounts):
        hold |= {name: f"the model breaks when it is wider: {why}" for name, why in broken.items()}
        graph = read(model, shape, hold)
    amounts = {name: amounts[name] for name in graph.free}
    if _unforetold(model, graph, amounts, hold) is not None:
        reasons = {name: _unforetold(model, graph, {name: by}, hold) for name, by in amounts.items()}
        hold |= {name: _why_unforetold(graph, name, why) for name, why in reasons.items() if why is not None}
        graph = read(model, shape, hold)
        if (why := _unforetold(model, graph, {name: amounts[name] for name in graph.free}, hold)) is not None:
            return read(model, shape, hold | dict.fromkeys(graph.free, f"it does not change without others: {why}"))
    proof = Proof(model, graph)
    if moved := by_halves(sorted(graph.free, key=lambda name: name in graph.parted), proof.fails):
        hold |= {name: _why(graph, name) for name in moved}
        graph = read(model, shape, hold)
    return graph


def _breaking(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> dict[str, str]:
    """The spaces with which the model does not run when they are wider, each with what it says.

    Where it stops, an operator was about to read channels of the one that is to blame.
    """
    left, reasons = dict(amounts), dict[str, str]()
    touched: Callable[[int], set[str]] | None = None
    while left and (fault := _stumbles(model, graph, left)) is not None:
        why, at = fault
        touched = touched or _touched(model, graph)
        suspects = sorted(touched(at) & left.keys()) or list(left)
        alone = {name: one[0] for name in suspects if (one := _stumbles(model, graph, {name: left[name]}))}
        if not alone and len(suspects) < len(left):
            alone = {name: one[0] for name in left if (one := _stumbles(model, graph, {name: left[name]}))}
        reasons |= alone or dict.fromkeys(suspects, why)
        left = {name: by for name, by in left.items() if name not in reasons}
    return reasons


def _stumbles(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> tuple[str, int] | None:
    """What a model says that is wider by these amounts, and after how many operators; None where it runs."""
    tried, recorder = _widened(model, graph, amounts)[0], Recorder([""])
    try:
        with countable(), recorder:
            tried(*blanks(tried, graph.shape))
    except Exception as error:
        return one_line(error), len(recorder.calls)
    return None


def _touched(model: nn.Module, graph: Graph) -> Callable[[int], set[str]]:
    """By the number of an operator, the free spaces that it reads channels of."""
    traced = taught(trace(model, graph.shape), graph.shape)
    flow = Flow(traced)
    homes = {unit: name for name in graph.free for unit in graph.spaces[name].units}

    def touched(at: int) -> set[str]:
        read_there = traced.calls[min(at, len(traced.calls) - 1)].tensors
        units = [unit for tensor in read_there for unit in flow.units(small(flow.ids(tensor))).tolist()]
        return {homes[unit] for unit in units if unit in homes}

    return touched


def by_halves(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """Those with which the trial fails, beside those before them with which it does not: found by halves."""
    good: list[str] = []
    bad: list[str] = []

    def tell(some: Sequence[str]) -> None:
        if not some or not fails([*good, *some]):
            good.extend(some)
        elif len(some) == 1:
            bad.extend(some)
        else:
            tell(some[: len(some) // 2])
            tell(some[len(some) // 2 :])

    tell(names)
    return bad


def _why_unforetold(graph: Graph, name: str, why: str) -> str:
    return _why(graph, name) if name in graph.parted else f"the model breaks when it is wider: {why}"


def _why(graph: Graph, name: str) -> str:
    if name in graph.parted:
        return f"{graph.parted[name]} takes some of its channels apart, and others when their number changes"
    return "the model computes something else when their number changes, as where it multiplies with that number"


def _unforetold(model: nn.Module, graph: Graph, amounts: Mapping[str, int], held: Mapping[str, str]) -> str | None:
    """None where the model, with these spaces widened, reads and costs as foretold; else what went wrong."""
    tried, wider = _widened(model, graph, amounts)
    try:
        again = read(tried, graph.shape, held)
    except UsageError as error:
        return one_line(error.__cause__ or error)
    if not wider.alike(again) or again.price.cost(again.widths) != graph.price.cost(wider.widths):
        return "other tensors change than its operators say"
    return None


def _widened(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> tuple[nn.Module, Graph]:
    """A copy without numbers whose spaces are wider by these amounts, and what its graph should be."""
    for name, by in amounts.items():
        graph = graph.widen(name, by).after
    tried = ghost(model)
    shapes = {name: list(t.shape) for name, t in [*tried.named_parameters(), *tried.named_buffers()]}
    for (name, dim), slot in graph.slots.items():
        shapes[name][dim] = len(slot.units)
    fit(tried, {name: tuple(shape) for name, shape in shapes.items()})
    return tried, graph
