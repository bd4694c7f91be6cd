"""A photograph of a module: which channels there are, which tensors hold them, what they cost, and which cannot change.

Ids flow through one traced forward pass (`flow.py`). Ids that an addition ties become one *unit*; units that live in
the same places of the same tensors form a *space*, the thing whose width can change: one convolution's filters, or a
residual stage's channels with all their producers. A space is `frozen`, with a reason, where a rule did not understand
what becomes of its channels, or where they reach the output.

A width change needs no second look: the topology stays, and an `Edit` says for every axis of every tensor which old
index each new one comes from (-1: fresh). `surgery/surgeon.py` applies it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.budget.price import Ints, Price
from compress.errors import UsageError
from compress.reading.count import Tally, unknown_to
from compress.reading.flow import Cut, Flow
from compress.reading.ids import Axis
from compress.reading.inputs import Shape, plainly
from compress.reading.trace import Trace, taught, trace

Count = Mapping[str, int]  # how often each free space is counted; "" is what is counted beside them


@dataclass(frozen=True, slots=True)
class Slot:
    """One axis of one tensor: the unit that each index belongs to, and what the axis does with it.

    A free space stands on it in blocks, each holding all its units in order, every one `run` times in a row: one block
    of run 1 behind a convolution, of run height x width behind a flatten; one block for each group of a convolution.
    """

    units: Ints  # [n]; 0 where an index belongs to no unit
    role: str  # "out" makes channels, "in" reads them, "channel" holds one value for each
    runs: Mapping[str, tuple[int, ...]]  # for every free space on this axis, the run of each of its blocks


@dataclass(frozen=True, slots=True)
class Space:
    """Channels that come and go together in all the tensors that hold them."""

    name: str  # the module that makes them first
    units: tuple[int, ...]
    producers: tuple[Axis, ...]
    consumers: tuple[Axis, ...]
    frozen: str | None  # why the number cannot change; None where it can

    @property
    def width(self) -> int:
        """The number of channels."""
        return len(self.units)


@dataclass(frozen=True, slots=True)
class Edit:
    """A width change, decided and not yet applied."""

    takes: Mapping[Axis, Ints]  # for every new index its old one, -1 where it is fresh
    before: Graph
    after: Graph

    def then(self, other: Edit) -> Edit:
        """Both in one step: of `other`, which was planned on what this one leaves."""
        takes = dict(self.takes)
        for axis, later in other.takes.items():
            first = takes.get(axis)
            takes[axis] = later if first is None else np.where(later < 0, -1, first[later])
        return Edit(takes, self.before, other.after)


@dataclass(frozen=True)
class Graph:
    """Slots, spaces and prices of one module; read-only."""

    shape: tuple[int, ...] | tuple[tuple[int, ...], ...]  # of the input without its batch, or of several
    slots: Mapping[Axis, Slot]
    spaces: Mapping[str, Space]
    price: Price  # cost of every net of this family, in the widths of the free spaces
    free_params: int  # as read: parameters that removing channels of free spaces would delete
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # convolution weight -> its kernel, in pixels
    notes: tuple[str, ...] = ()  # operators that no rule knows
    uncounted: Mapping[str, str] = field(default_factory=dict)  # operators of unknown cost -> a module where one runs
    parted: Mapping[str, str] = field(default_factory=dict)  # spaces of which an operator takes a part -> where it runs
    cuts: tuple[Cut, ...] = ()  # views that cut an axis of channels in several
    counts: Mapping[str, Count] = field(default_factory=dict)  # numbers that modules hold: "block.width" -> of what
    spare: int = 0  # bytes of a file that the price leaves out, because they were seen not to be there

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The names of the spaces whose width can change."""
        return tuple(name for name, space in self.spaces.items() if space.frozen is None)

    @property
    def widths(self) -> dict[str, int]:
        """The present width of every free space."""
        return {name: self.spaces[name].width for name in self.free}

    @property
    def numbers(self) -> dict[str, int]:
        """What the numbers that modules hold must be at the present widths, by their dotted names."""

        def length(count: Count) -> int:
            return sum(times * (self.spaces[of].width if of else 1) for of, times in count.items())

        return {name: length(count) for name, count in self.counts.items()}

    def spared(self, size: int) -> Graph:
        """The same with a price of so many bytes less than it was read with."""
        return replace(self, price=self.price.less(size - self.spare), spare=size) if size != self.spare else self

    def widen(self, name: str, by: int) -> Edit:
        """An edit that adds `by` channels to a space, behind its last one wherever that stands."""
        space = self._changeable(name)
        top = max(int(slot.units.max(initial=0)) for slot in self.slots.values())
        return self._edit(space, space.units, tuple(range(top + 1, top + 1 + by)))

    def narrow(self, name: str, keep: Sequence[int]) -> Edit:
        """An edit that keeps these channels (positions within the space, ascending) and removes the others."""
        space, kept = self._changeable(name), list(keep)
        if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= space.width:
            raise ValueError(f"{name} keeps {kept[:8]}...: need at least one ascending position below {space.width}")
        return self._edit(space, tuple(space.units[k] for k in kept), ())

    def alike(self, other: Graph) -> bool:
        """Whether both say the same about the same tensors, whatever numbers their units have."""
        return (
            self.slots.keys() == other.slots.keys()
            and [(s.name, s.width, s.frozen is None) for s in self.spaces.values()]
            == [(s.name, s.width, s.frozen is None) for s in other.spaces.values()]
            and all(slot.role == other.slots[axis].role for axis, slot in self.slots.items())
            and all(np.array_equal(self._places(axis), other._places(axis)) for axis in self.slots)
        )

    def _places(self, axis: Axis) -> Ints:
        """Which channel of which space each index of an axis is, as one number."""
        return self._number[self.slots[axis].units]

    @cached_property
    def _number(self) -> Ints:
        units = [unit for space in self.spaces.values() for unit in space.units]
        number = np.zeros(max(units, default=0) + 1, dtype=np.int64)
        number[units] = np.arange(1, len(units) + 1)
        return number

    def _changeable(self, name: str) -> Space:
        if name not in self.spaces:
            raise UsageError(f"there is no space named {name!r}; the spaces are {', '.join(self.spaces)}")
        if (why := self.spaces[name].frozen) is not None:
            raise UsageError(f"{name} cannot change its width: {why}")
        return self.spaces[name]

    def _edit(self, space: Space, kept: tuple[int, ...], added: tuple[int, ...]) -> Edit:
        takes: dict[Axis, Ints] = {}
        slots = dict(self.slots)
        for axis, slot in self.slots.items():
            if space.name in slot.runs:
                takes[axis], units = _rewritten(slot, space, kept, added)
                slots[axis] = replace(slot, units=units)
        spaces = {**self.spaces, space.name: replace(space, units=(*kept, *added))}
        return Edit(takes, self, replace(self, slots=slots, spaces=spaces))


def _rewritten(slot: Slot, space: Space, kept: Sequence[int], added: Sequence[int]) -> tuple[Ints, Ints]:
    """Old index of every new one, and the units: only the `kept` of this space, and the `added` behind each block."""
    runs, top = slot.runs[space.name], int(slot.units.max(initial=0))
    mine = np.flatnonzero(_marked(space.units, top)[slot.units])
    ends = mine[np.cumsum(runs) * space.width - 1] + 1
    stays = ~_marked(set(space.units) - set(kept), top)[slot.units]
    source: list[Ints] = []
    units: list[Ints] = []
    for start, end, run in zip([0, *ends], [*ends, len(slot.units)], [*runs, 0], strict=True):
        old = np.arange(start, end)[stays[start:end]]
        fresh = np.repeat(np.array(added, dtype=np.int64), run)
        source += [old, np.full(len(fresh), -1)]
        units += [slot.units[old], fresh]
    return np.concatenate(source), np.concatenate(units)


def _marked(units: Iterable[int], top: int) -> NDArray[np.bool_]:
    """Which of the units from 0 to `top` these are [top + 1]: looking one up is quicker than looking for it."""
    marks, some = np.zeros(top + 1, bool), np.fromiter(units, np.int64)
    marks[some[some <= top]] = True
    return marks


def read(
    model: nn.Module,
    shape: Shape,
    hold: Mapping[str, str] | None = None,
    follows: Mapping[int, int] | None = None,
    *,
    lessons: bool = True,
) -> Graph:
    """Read a module through one forward pass on inputs of shape [1, *shape], and one in training mode if that differs.

    `hold` names spaces that stay as they are, each with its reason, and `follows` says of views (by their number in
    `cuts`) which axis grows with the channels; a price alone needs no `lessons`, which are the pass in training mode.
    Raises UsageError where the model cannot be traced or has no such space. What a model's Python does with a changed
    width is not known here: `surgery.survey` tries it.
    """
    traced = trace(model, shape)
    traced = taught(traced, shape) if lessons else traced
    flow = Flow(traced, follows=follows)
    units = {axis: flow.units(ids) for axis, ids in flow.slots.items()}
    spaces = _spaces(units, flow.roles, flow.frozen, hold or {})
    runs = _blocks(units, spaces)
    slots = {axis: Slot(vec, flow.roles[axis], runs[axis]) for axis, vec in units.items()}
    free = {unit: name for name, space in spaces.items() if space.frozen is None for unit in space.units}
    widths = {name: space.width for name, space in spaces.items() if space.frozen is None}
    price = Tally(traced, units, free, widths, flow.weights, flow.holds, flow.top).price()
    parted = {free[unit]: where for unit, where in flow.parted.items() if unit in free}
    params, kernels = _free_params(traced, units, free), _kernels(traced)
    return Graph(
        plainly(shape),
        slots,
        spaces,
        price,
        params,
        kernels,
        tuple(flow.notes),
        unknown_to(traced),
        parted=parted,
        cuts=tuple(flow.cuts),
    )


def _spaces(
    units: Mapping[Axis, Ints], roles: Mapping[Axis, str], frozen: Mapping[int, str], hold: Mapping[str, str]
) -> dict[str, Space]:
    """Units that live in the same axes, equally often, form a space."""
    homes: dict[int, list[tuple[Axis, int]]] = defaultdict(list)
    for axis, vec in units.items():
        for unit, times in zip(*(part.tolist() for part in np.unique(vec, return_counts=True)), strict=True):
            if unit:
                homes[unit].append((axis, times))
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for unit in sorted(homes):
        groups[(tuple(homes[unit]), frozen.get(unit))].append(unit)
    spaces: dict[str, Space] = {}
    for (home, why), members in groups.items():
        makers = tuple(axis for axis, _ in home if roles[axis] == "out")
        readers = tuple(axis for axis, _ in home if roles[axis] == "in")
        name = _free_name(makers[0][0] if makers else home[0][0], spaces)
        why = hold.get(name) or why or (None if makers else "no layer makes it")
        spaces[name] = Space(name, tuple(members), makers, readers, why)
    if unknown := sorted(set(hold) - set(spaces)):
        raise UsageError(f"there is no space named {unknown[0]!r} to hold; the spaces are {', '.join(spaces)}")
    return spaces


def _blocks(units: Mapping[Axis, Ints], spaces: dict[str, Space]) -> dict[Axis, dict[str, tuple[int, ...]]]:
    """How the free spaces stand on each axis; one that stands in no blocks somewhere is frozen, in `spaces` itself."""
    order = list(spaces.values())
    number = np.zeros(max((u for s in order for u in s.units), default=0) + 1, dtype=np.int64)
    position = np.zeros_like(number)
    for k, space in enumerate(order):
        number[list(space.units)] = k + 1
        position[list(space.units)] = np.arange(space.width)
    runs: dict[Axis, dict[str, tuple[int, ...]]] = {axis: {} for axis in units}
    for axis, vec in units.items():
        sorting = np.argsort(number[vec], kind="stable")
        present, starts = np.unique(number[vec][sorting], return_index=True)
        for k, positions in zip(present.tolist(), np.split(position[vec][sorting], starts[1:]), strict=True):
            if k and (space := order[k - 1]).frozen is None:
                if (run := _runs(positions, space.width)) is not None:
                    runs[axis][space.name] = run
                else:
                    why = f"where another channel would stand in {axis[0]} is not known"
                    spaces[space.name] = order[k - 1] = replace(space, frozen=why)
    free = {name for name, space in spaces.items() if space.frozen is None}
    return {axis: {name: run for name, run in own.items() if name in free} for axis, own in runs.items()}


def _free_name(maker: str, taken: Iterable[str]) -> str:
    """A free name for what this tensor makes: the module's, or the tensor's own where it is no module's weight."""
    layer, computed, _ = maker.partition(".parametrizations.weight.")  # as weight norms have it
    maker = f"{layer}.weight" if computed else maker
    path, _, leaf = maker.rpartition(".")
    base = path if path and leaf == "weight" else maker
    name, copy = base, 2
    while name in taken:
        name, copy = f"{base}#{copy}", copy + 1
    return name


def _runs(positions: Ints, width: int) -> tuple[int, ...] | None:
    """The run of every block in which a space's channels stand on an axis; None where they stand otherwise."""
    if width == 1 and len(positions) > 1:
        return None  # one block with a long run, or many blocks: a single channel cannot tell
    blocks = np.split(positions, np.flatnonzero(np.diff(positions) < 0) + 1)
    runs = tuple(len(block) // width for block in blocks)
    regular = all(np.array_equal(b, np.repeat(np.arange(width), r)) for b, r in zip(blocks, runs, strict=True))
    return runs if regular else None


def _free_params(traced: Trace, units: Mapping[Axis, Ints], free: Mapping[int, str]) -> int:
    """How many parameters stand at an index that belongs to a free space, along any of their axes."""
    known = _marked(free, max((int(vec.max(initial=0)) for vec in units.values()), default=0))
    none, count = np.zeros(0, np.int64), 0
    for name, parameter in traced.model.named_parameters():
        taken = [int(known[units.get((name, d), none)].sum()) for d in range(parameter.dim())]
        count += parameter.numel() - prod(size - n for size, n in zip(parameter.shape, taken, strict=True))
    return count


def _kernels(traced: Trace) -> dict[str, tuple[int, ...]]:
    """The kernel of every convolution weight, in pixels."""
    calls = (*traced.calls, *traced.lessons)
    weights = [call.args[1] for call in calls if call.op == "aten.convolution"]
    return {traced.names[id(w)]: tuple(w.shape[2:]) for w in weights if id(w) in traced.names}
