"""What may change of a network: read from its operators, then tried, first without numbers and then with them.

A rule says what an operator does with channels, and nothing of the Python around it: a slice up to the half of however
many channels there are, a factor that follows from their number. So all that is free is made wider on a copy without
numbers, which must run and read as foretold; and on a copy with random ones half of every space is cut and as many new
channels as there were are added, which must compute what the whole one does with that half silenced. What fails is
frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from compress.budget.limits import Cost
from compress.errors import UsageError, one_line
from compress.reading.flow import Cut, Flow
from compress.reading.ghost import flat, ghost
from compress.reading.graph import Count, Graph, read
from compress.reading.inputs import Shape, blanks
from compress.reading.trace import Call, Trace, attempted, taught, trace
from compress.surgery.counts import Beside
from compress.surgery.proof import Proof
from compress.surgery.tensors import fit

LOOKS = 4  # at views, each time with what was learnt from those before
Hold = Callable[[Graph], Mapping[str, str]]  # spaces that stay as they are, each with its reason


def survey(model: nn.Module, shape: Shape, held: Hold | None = None) -> Graph:
    """Read a module and try its free spaces; one that does not change as its operators say is frozen, and says why.

    `held` says which spaces of a graph stay as they are, each with its reason. Raises UsageError as `graph.read` does.
    """
    hold: dict[str, str] = {}
    counts: dict[str, Count] = {}
    graph = _cut_right(model, read(model, shape))

    def look() -> Graph:
        return replace(read(model, shape, hold, _follows(graph)), counts=counts)

    if held and (said := dict(held(graph))):
        hold |= said
        graph = look()
    amounts = _amounts(graph)
    counts, broken = _breaking(model, graph, amounts)
    if counts or broken:
        hold |= {name: f"the model breaks when it is wider: {why}" for name, why in broken.items()}
        graph = look()
    amounts = {name: amounts[name] for name in graph.free}
    fault = _unforetold(model, graph, amounts, hold)
    if fault is not None and (more := _counted(model, graph, amounts)):
        counts |= more
        graph = look()
        fault = _unforetold(model, graph, amounts, hold)
    if fault is not None:
        reasons = {name: _unforetold(model, graph, {name: by}, hold) for name, by in amounts.items()}
        hold |= {name: _why_unforetold(graph, name, why) for name, why in reasons.items() if why is not None}
        graph = look()
        if (why := _unforetold(model, graph, {name: amounts[name] for name in graph.free}, hold)) is not None:
            hold |= dict.fromkeys(graph.free, f"it does not change without others: {why}")
            return look()
    proof = Proof(model, graph)
    if moved := by_halves(sorted(graph.free, key=lambda name: name in graph.parted), proof.fails):
        hold |= {name: _why(graph, name) for name in moved}
        graph = look()
    if (parted := graph.parted.keys() & set(graph.free)) and proof.blind:
        hold |= {name: f"{graph.parted[name]} takes some of its channels apart, and no trial tells" for name in parted}
        graph = look()
    return graph


def _amounts(graph: Graph) -> dict[str, int]:
    """By how many channels each free space is made wider.

    Each by another number, two apart for the sake of halves: spaces must not hide that they only change together.
    """
    return {name: 2 * number + 3 for number, name in enumerate(graph.free)}


def _cut_right(model: nn.Module, graph: Graph) -> Graph:
    """The graph in which views cut channels as they do on a wider copy: the part that is longer there follows them."""
    if any("more than one axis" in (space.frozen or "") for space in graph.spaces.values()):
        first = {number: cut.parts[0] for number, cut in enumerate(graph.cuts)}
        other = read(model, graph.shape, None, first)  # as where channels turn into pixels
        graph = max(graph, other, key=lambda each: each.free_params)
    for _ in range(LOOKS):
        calls = _calls(model, graph, _amounts(graph))[0] if graph.cuts else ()
        others = dict(_longer(graph.cuts, calls))
        if not others:
            break
        graph = read(model, graph.shape, None, _follows(graph) | others)
    return graph


def _longer(cuts: Sequence[Cut], calls: Sequence[Call]) -> Iterator[tuple[int, int]]:
    """The numbers of views of which another part is longer on a wider copy, which made these calls, with that part."""
    for number, cut in enumerate(cuts):
        out = calls[cut.call].out if cut.call < len(calls) else None
        if not isinstance(out, Tensor) or out.dim() != len(cut.shape):
            return
        longer = [d for d in cut.parts if out.size(d) != cut.shape[d]]
        if len(longer) == 1 and longer[0] != cut.follows:
            yield number, longer[0]


def _follows(graph: Graph) -> dict[int, int]:
    return {number: cut.follows for number, cut in enumerate(graph.cuts)}


def _breaking(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> tuple[dict[str, Count], dict[str, str]]:
    """The numbers that must follow the widths for the model to run when it is wider, and the spaces with which it does
    not run even so, each with what it says.

    Where it stops, an operator was about to read channels of the one that is to blame.
    """
    left, counts, reasons = dict(amounts), dict[str, Count](), dict[str, str]()
    beside: Beside | None = None
    while left:
        calls, why = _calls(model, graph, left)
        if why is None:
            break
        beside = beside or Beside(*_seen(model, graph), graph, left)
        beside.amounts = left
        if more := beside.found(partial(_calls, model, graph, left), counts, calls):
            counts |= more
            graph = replace(graph, counts=counts)
            continue
        suspects = sorted(beside.touched(len(calls)) & left.keys()) or list(left)
        alone = {name: one for name in suspects if (one := _stumbles(model, graph, {name: left[name]}))}
        if not alone and len(suspects) < len(left):
            alone = {name: one for name in left if (one := _stumbles(model, graph, {name: left[name]}))}
        reasons |= alone or dict.fromkeys(suspects, why)
        left = {name: by for name, by in left.items() if name not in reasons}
    return counts, reasons


def _counted(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> dict[str, Count]:
    """The numbers that must follow the widths where a model runs without that, and is another then."""
    calls, _ = _calls(model, graph, amounts)
    return Beside(*_seen(model, graph), graph, amounts).found(
        partial(_calls, model, graph, amounts), graph.counts, calls
    )


def _seen(model: nn.Module, graph: Graph) -> tuple[Trace, Flow]:
    traced = taught(trace(model, graph.shape), graph.shape)
    return traced, Flow(traced, follows=_follows(graph))


def _stumbles(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> str | None:
    """What a model says that is wider by these amounts; None where it runs."""
    return _calls(model, graph, amounts)[1]


def _calls(
    model: nn.Module, graph: Graph, amounts: Mapping[str, int], counts: Mapping[str, Count] | None = None
) -> tuple[Sequence[Call], str | None]:
    """What a model calls that is wider by these amounts, with these counts, and what it says where it stops."""
    try:
        tried = _widened(model, graph if counts is None else replace(graph, counts=counts), amounts)[0]
    except UsageError as error:
        return [], str(error)
    return attempted(tried, blanks(tried, graph.shape))


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
    try:
        tried, wider = _widened(model, graph, amounts)
        again = read(tried, graph.shape, held, _follows(graph))
    except UsageError as error:
        return one_line(error.__cause__ or error)
    found, foretold = again.price.cost(again.widths), graph.price.cost(wider.widths)
    if not wider.alike(again) or (found != foretold and not _but_for_blanks(model, tried, graph, found, foretold)):
        return "other tensors change than its operators say"
    return None


def _but_for_blanks(model: nn.Module, tried: nn.Module, graph: Graph, found: Cost, foretold: Cost) -> bool:
    """Whether two costs differ by no more than zeros that a model makes itself, as what recurrent layers begin with.

    They belong to no channel, and only where they are made it shows how they grow.
    """
    before, after = (
        sum(
            out.numel()
            for call in attempted(net, blanks(net, graph.shape))[0]
            if _is_blank(call)
            for out in flat(call.out)
        )
        for net in (ghost(model), tried)
    )
    more = 4 * (after - before)
    same = (found.params, found.macs, found.thop) == (foretold.params, foretold.macs, foretold.thop)
    return same and abs(found.bytes - foretold.bytes) <= more and abs(found.memory - foretold.memory) <= more


def _is_blank(call: Call) -> bool:
    return call.row is not None and call.row.ids == "blank"


def _widened(model: nn.Module, graph: Graph, amounts: Mapping[str, int]) -> tuple[nn.Module, Graph]:
    """A copy without numbers whose spaces are wider by these amounts, and what its graph should be."""
    for name, by in amounts.items():
        graph = graph.widen(name, by).after
    tried = ghost(model)
    shapes = {name: list(t.shape) for name, t in [*tried.named_parameters(), *tried.named_buffers()]}
    for (name, dim), slot in graph.slots.items():
        shapes[name][dim] = len(slot.units)
    try:
        fit(tried, {name: tuple(shape) for name, shape in shapes.items()}, graph.numbers)
    except Exception as error:  # a weight that is computed from tensors which do not change together
        raise UsageError(one_line(error)) from error
    return tried, graph
