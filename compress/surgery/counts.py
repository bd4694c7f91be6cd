"""Counts of channels that a model's Python holds: `split([16, 16], 1)`, `x[:, :self.width]`, `view(n, self.width, -1)`.

No operator says where such a number comes from. So a wider copy is run beside the traced pass, and where the two part,
the whole numbers of the module that is running, and of those around it, are tried: one that is as large as the channels
there follows them, if with it the copy comes further. What none explains stands in the code, and keeps its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from compress.reading import ids as channels
from compress.reading.flow import Flow
from compress.reading.ghost import flat
from compress.reading.graph import Count, Graph
from compress.reading.trace import Call, Trace
from compress.surgery.numbers import numbers, owner

MOST = 4  # times the channels at hand that a number may be: of queries, keys and values, and one more
AHEAD = 24  # calls of a module that may have stopped before the first: its own check looks at what all of them make
Counts = Mapping[str, Count]
Run = Callable[[Counts], tuple[Sequence[Call], str | None]]  # a wider copy with these counts: its calls, and its fault


class Place(NamedTuple):
    """An axis of what a call of the traced pass made."""

    call: int
    out: int
    dim: int


class Parting(NamedTuple):
    """Where a wider copy parts from the traced pass."""

    at: int  # calls before it that are as foretold
    module: str
    places: tuple[Place, ...]  # axes that have not followed, or may not have


class Beside:
    """A traced pass to run wider copies beside, whose free spaces are wider by these amounts."""

    def __init__(self, traced: Trace, flow: Flow, graph: Graph, amounts: Mapping[str, int]) -> None:
        self.traced, self.flow, self.graph, self.amounts = traced, flow, graph, amounts
        self._home = {unit: name for name in graph.free for unit in graph.spaces[name].units}
        self._maker = {id(out): (at, k) for at, call in enumerate(traced.calls) for k, out in enumerate(flat(call.out))}
        self._paths = dict(traced.model.named_modules())
        self._lengths: dict[Place, Count] = {}
        self._vain: set[tuple[type[nn.Module], frozenset[str], str]] = set()  # what was tried, and came no further

    def found(self, run: Run, known: Counts, calls: Sequence[Call]) -> dict[str, Count]:
        """The counts without which a copy with those that are `known` made no more than these calls: as many as can be
        told.
        """
        counts: dict[str, Count] = {}
        parting = self.parting(calls)
        while parting is not None:
            for more, pattern in self._tries(parting):
                tried = self._kind(pattern, parting)
                if tried in self._vain:
                    continue
                then = self.parting(run({**known, **counts, **more})[0])
                if then is None or then.at > parting.at:
                    counts |= more
                    if alike := self._alike(pattern):
                        farther = self.parting(run({**known, **counts, **alike})[0])
                        if farther is None or (then is not None and farther.at >= then.at):
                            counts, then = counts | alike, farther
                    parting = then
                    break
                self._vain.add(tried)
            else:
                break
        return counts

    def touched(self, at: int) -> set[str]:
        """The free spaces that the operator of this number reads channels of."""
        read_there = self.traced.calls[min(at, len(self.traced.calls) - 1)].tensors
        units = [u for tensor in read_there for u in self.flow.units(channels.small(self.flow.ids(tensor))).tolist()]
        return {self._home[unit] for unit in units if unit in self._home}

    def _kind(self, pattern: Mapping[str, Any], parting: Parting) -> tuple[type[nn.Module], frozenset[str], str]:
        """What is tried: numbers of these names in a module of this class, where this operator is next."""
        owners = [owner(dotted) for dotted in pattern]
        return type(self._paths[owners[0][0]]), frozenset(name for _, name in owners), self.traced.calls[parting.at].op

    def parting(self, calls: Sequence[Call]) -> Parting | None:
        """Where a copy that made these calls parts from what is foretold; None where it does not."""
        for at, (old, new) in enumerate(zip(self.traced.calls, calls, strict=False)):
            if old.op != new.op:  # a slice of all is no call
                return Parting(at, new.module, tuple(self._cut_short(new, calls[:at])))
            outs = list(zip(flat(old.out), flat(new.out), strict=False))
            said = [k for k, (out, _) in enumerate(outs) if self._says(out, first=k == 0)]
            places = [Place(at, k, d) for k in said for d in range(outs[k][0].dim())]
            if odd := [place for place in places if not self._follows(place, outs[place.out][1])]:
                return Parting(at, old.module, tuple(odd))
        if (at := len(calls)) >= len(self.traced.calls):
            return None
        call = self.traced.calls[at]
        ahead = [(j, self.traced.calls[j]) for j in range(at, min(at + AHEAD, len(self.traced.calls)))]
        near = [(j, k, out) for j, of in ahead if of.module == call.module for k, out in enumerate(flat(of.out))]
        near += [(*self._maker[id(t)], t) for t in call.tensors if id(t) in self._maker]
        return Parting(at, call.module, tuple(Place(j, k, d) for j, k, out in near for d in range(out.dim())))

    def _says(self, out: Tensor, *, first: bool) -> bool:
        """Whether it is known how long an output is: no weight that only moved, nor what a norm keeps for itself, nor
        zeros that belong to no channel.
        """
        ids = self.flow.ids(out)
        blank = out.numel() > 0 and bool((channels.small(ids) == channels.ABSENT).all())
        return self.flow.ref(out) is None and (channels.held(ids) or (first and not blank))

    def _cut_short(self, call: Call, before: Sequence[Call]) -> Iterator[Place]:
        """The axes of its operand that a call takes a part of, where all of it was meant."""
        outs, given = list(flat(call.out)), [t for t in call.tensors if t.dim()]
        for at, maker in enumerate(before):
            for k, made in enumerate(flat(maker.out)):
                if outs and given and made is given[0] and outs[0].dim() == made.dim():
                    yield from (Place(at, k, d) for d in range(made.dim()) if outs[0].size(d) != made.size(d))

    def _follows(self, place: Place, wide: Tensor) -> bool:
        count = self._length(place)
        wider = sum(times * self.amounts.get(name, 0) for name, times in count.items())
        return wide.dim() > place.dim and wide.size(place.dim) == self._out(place).size(place.dim) + wider

    def _out(self, place: Place) -> Tensor:
        return list(flat(self.traced.calls[place.call].out))[place.out]

    def _length(self, place: Place) -> Count:
        """How often each free space stands along an axis, and what else does."""
        if place not in self._lengths:
            ids = self.flow.ids(self._out(place))
            for d in range(ids.dim()):
                if d != place.dim and ids.size(d) > 1:
                    ids = ids.narrow(d, 0, 1)
            if ids.numel() > 1 and ids.stride(place.dim) == 0:
                ids = channels.fixed(ids.shape)  # the same channel all along it
            times: dict[str, int] = {}
            for unit, often in zip(*np.unique(self.flow.units(ids), return_counts=True), strict=True):
                name = self._home.get(int(unit), "")
                times[name] = times.get(name, 0) + int(often)
            width = self.graph.widths
            exact = all(n % width[name] == 0 for name, n in times.items() if name)
            self._lengths[place] = {name: n // width[name] if name else n for name, n in times.items()} if exact else {}
        return self._lengths[place]

    def _tries(self, parting: Parting) -> Iterator[tuple[dict[str, Count], dict[str, tuple[Place, Fraction]]]]:
        """Numbers that may be the counts of these places, the nearest first: all of a module, then each alone; whole
        counts and multiples before halves and quarters.
        """
        parts = parting.module.split(".") if parting.module else []
        for fits_in, depth in product((self._fits, self._halves), range(len(parts), -1, -1)):
            path = ".".join(parts[:depth])
            fitting: dict[str, tuple[Place, Fraction]] = {}
            for name, value in numbers(self._paths[path]).items():
                for place in parting.places:
                    fits = fits_in(place, value)
                    if fits and (name not in fitting or fits < fitting[name][1]):
                        fitting[name] = place, fits
            whole = {_dotted(path, name): one for name, one in fitting.items()}
            for some in [whole] * (len(whole) > 1) + [{name: one} for name, one in whole.items()]:
                yield {name: self._times(*one) for name, one in some.items()}, some

    def _fits(self, place: Place, value: int) -> Fraction:
        """How often the channels along an axis go into a number; 0 where they do not, or nothing there can change."""
        size = self._out(place).size(place.dim)
        often = value // size if size > 1 and value % size == 0 else 0
        return Fraction(often if often <= MOST and any(self._length(place)) else 0)

    def _halves(self, place: Place, value: int) -> Fraction:
        """The part of the channels along an axis that a number is, such as a half of two directions; else 0."""
        size, length = self._out(place).size(place.dim), self._length(place)
        part = Fraction(value, size) if value and size in (2 * value, 4 * value) else Fraction(0)
        whole = any(length) and all((part * times).denominator == 1 for times in length.values())
        return part if whole else Fraction(0)

    def _times(self, place: Place, often: Fraction) -> Count:
        return {name: int(often * times) for name, times in self._length(place).items()}

    def _alike(self, pattern: Mapping[str, tuple[Place, Fraction]]) -> dict[str, Count]:
        """The same of all other modules of that class, where they do the same with a number of the same name."""
        found: dict[str, Count] = {}
        for dotted, (place, often) in pattern.items():
            path, name = owner(dotted)
            for other, module in self._paths.items():
                if other == path or type(module) is not type(self._paths[path]):
                    continue
                there = place._replace(call=place.call + self._first(other) - self._first(path))
                value = numbers(module).get(name, 0)
                fits = self._fits if often >= 1 else self._halves
                if self._exists(there, self.traced.calls[place.call].op) and fits(there, value) == often:
                    found[_dotted(other, name)] = self._times(there, often)
        return found

    def _exists(self, place: Place, op: str) -> bool:
        """Whether there is such an axis, of what this operator made."""
        call = self.traced.calls[place.call] if 0 <= place.call < len(self.traced.calls) else None
        outs = [] if call is None or call.op != op else list(flat(call.out))
        return place.out < len(outs) and place.dim < outs[place.out].dim()

    def _first(self, path: str) -> int:
        """The number of the first call within a module."""
        inside = (at for at, call in enumerate(self.traced.calls) if f"{call.module}.".startswith(f"{path}."))
        return next(inside, -len(self.traced.calls))


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
