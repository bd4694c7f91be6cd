"""Whether a network computes the same with fewer and more channels: tried with numbers, whatever its operators are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.budget.price import Ints
from compress.reading.ghost import copied, eager, flat
from compress.reading.graph import Edit, Graph
from compress.reading.inputs import each
from compress.surgery.tensors import change

BOUNDS = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
}  # of differences, times the largest output; what is wrong is near 1

SHORT, LONG = 10**9, 10**10  # multiply-accumulates: up to which many inputs are tried, and above which in float32
MANY = 6
LOUD, PLAIN, POSITIVE = "loud", "plain", "positive"  # inputs: some 30 times as large as others, for what has thresholds
SIGNED = 2
DRAWS = 30  # of a half of the channels
PERIODS, PARTS = (2, 3, 4), (1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)  # how channels may be treated apart
PRIME = 65521  # numbers that are drawn for one tensor, laid end to end: rows of hardly any length repeat


@dataclass(slots=True)
class _Way:
    """A network with such numbers, and inputs for it."""

    model: nn.Module
    inputs: list[Tensor]
    dtype: torch.dtype
    signed: int
    finite: float = 0.0  # the share of finite numbers in what it puts out

    @property
    def steady(self) -> bool:
        """Whether the network computes the same twice: else nothing is told by what it computes."""
        return _gap(self.outputs(self.model), self.outputs(self.model)) == 0

    @property
    def calm(self) -> bool:
        """Whether what rounding moves in its inputs moves its outputs by less than what is told by them."""
        before, held = self.outputs(self.model), self.inputs
        self.inputs = [x * (1 + 4 * torch.finfo(self.dtype).eps) for x in held]
        try:
            return not self.differs(self.model, before)
        finally:
            self.inputs = held

    def differs(self, edited: nn.Module, expected: Sequence[Tensor]) -> bool:
        """Whether another network puts out something else than what is expected."""
        try:
            outputs = self.outputs(edited)
        except Exception:  # it runs without numbers, and not with them
            return True
        sizes = [out.abs()[out.isfinite()] for out in expected]
        largest = max((float(size.max()) for size in sizes if size.numel()), default=0.0)
        return not _gap(expected, outputs) <= BOUNDS[self.dtype] * max(1.0, largest)

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> list[Tensor]:
        """What it returns; chance in it is the same each time, and what it writes into its buffers is undone."""
        held = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng([]), eager(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that were written for one number of channels
            torch.manual_seed(0)
            made = [torch.view_as_real(out) if out.is_complex() else out for out in flat(model(*self.inputs))]
        for buffer, before in held:
            buffer.copy_(before)
        return [out.clone() for out in made if out.is_floating_point()]


class Proof:
    """A network with random numbers in all its tensors, in float64, or in float32 where forward() insists on that or
    takes long.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.graph = graph
        macs = graph.price.cost(graph.widths).macs
        dtypes = [torch.float32] if macs > LONG else list(BOUNDS)
        batches = (MANY, 1) if macs * MANY < SHORT else (1,)
        kinds = product((1.0, 0.0), dtypes, (SIGNED, 1, 0), (LOUD, PLAIN, POSITIVE), batches)
        self._ways = self._running(model, kinds)
        self._way = next(self._ways, None)  # None where it does not run: nothing is told then
        self._chosen = False  # whether it is known that rounding alone moves it less than what is told by it

    def _running(self, model: nn.Module, kinds: Iterable[Any]) -> Iterator[_Way]:
        """The ways to try it in which it runs, and puts out enough that is finite."""
        for least, dtype, signed, kind, batch in kinds:
            try:
                inputs = [
                    _input((batch, *one), kind, dtype, number) for number, one in enumerate(each(self.graph.shape))
                ]
                way = _Way(copied(model, _Draw(dtype, signed)), inputs, dtype, signed)
                way.finite = _finite(way.outputs(way.model))
            except Exception:  # whatever a forward pass says to numbers like these
                continue
            if way.finite >= least and way.finite > 0:  # some mask a part of the output by -inf
                yield way

    @property
    def dtype(self) -> torch.dtype | None:
        """What it is tried in."""
        return self._way.dtype if self._way else None

    @property
    def blind(self) -> bool:
        """Whether nothing is told by numbers: it does not run with them, or computes something else each time."""
        return self._way is None or not self._way.steady

    def fails(self, names: Sequence[str]) -> bool:
        """Whether the network without a half of these spaces computes something else than the whole one whose readers
        multiply that half by zero, at once or after it got as many new channels, unread, as there were; or without
        another half, with all signs turned. Small networks without both halves, with both signs.

        One that magnifies rounding until it hides what is asked for is tried with other numbers, if some are calmer.
        """
        if not self._differs(names):
            return False
        if self._way is not None and not self._chosen:
            first = self._way
            calm = next((way for way in (first, *self._ways) if way.calm), first)
            self._way, self._chosen = calm, True
            if calm is not first:
                return self._differs(names) and not self.blind
        return not self.blind

    def _differs(self, names: Sequence[str]) -> bool:
        if self._way is None:
            return False
        small = len(self._way.inputs[0]) > 1
        turns = [(0, False), (1, True), *([(0, True), (1, False)] if small else [])]
        return any(self._parts(self._way, names, *turn) for turn in turns)

    def _parts(self, way: _Way, names: Sequence[str], which: int, turned: bool) -> bool:
        whole = copy.deepcopy(way.model)
        if turned and way.signed == SIGNED:  # what was positive wherever one looked is negative now
            with torch.no_grad():
                for parameter in whole.parameters():
                    parameter.neg_()
        edited = copy.deepcopy(whole)
        kept = {name: halves(self.graph.spaces[name].width, number)[which] for number, name in enumerate(names)}
        for name, keep in kept.items():
            silence(whole, self.graph, name, sorted(set(range(self.graph.spaces[name].width)) - set(keep)))
        narrow = _all(self.graph, (lambda graph, name: graph.narrow(name, kept[name])), names)
        change(edited, narrow)
        expected = way.outputs(whole)
        if turned and _finite(expected) < way.finite:
            return False
        if way.differs(edited, expected):
            return True
        if which or turned:
            return False
        change(edited, _all(narrow.after, lambda graph, name: graph.widen(name, self.graph.spaces[name].width), names))
        if not way.signed:  # roots and logarithms of new channels too
            with torch.no_grad():
                for parameter in edited.parameters():
                    parameter.abs_()
        return way.differs(edited, expected)


def _finite(outputs: Sequence[Tensor]) -> float:
    """The share of the numbers that are finite, of the output that has the fewest."""
    return min((float(out.isfinite().double().mean()) for out in outputs if out.numel()), default=1.0)


def _input(shape: Sequence[int], kind: str, dtype: torch.dtype, number: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(number + 1), dtype=dtype)
    if kind == LOUD:
        (x[len(x) // 2 :] if len(x) > 1 else x[..., x.shape[-1] // 2 :]).mul_(30)
    return x.abs() + 0.1 if kind == POSITIVE else x


@cache  # asked for each trial anew
def halves(width: int, seed: int) -> list[list[int]]:
    """Two halves of so many channels to keep, so that few of any that are treated apart are as before by accident.

    Of some draws the one that tells the most of what may be said of the first so many, of a part of all, and of every
    second, third or fourth; and the one that tells the most of what the first does not.
    """
    if width < 3:
        return [[width - 1], [0]]
    draw, many = np.random.default_rng(seed), (width + 1) // 2
    tried = [np.sort(draw.permutation(width)[:many]) for _ in range(DRAWS)]
    told = [_told(kept, width) for kept in tried]
    one = max(range(DRAWS), key=lambda k: np.count_nonzero(told[k]))
    other = max(range(DRAWS), key=lambda k: (np.count_nonzero(told[one] + told[k]), np.count_nonzero(told[k])))
    return [tried[one].tolist(), tried[other].tolist()]


def _told(kept: Ints, width: int) -> Ints:
    """For every way to treat channels apart, how many of these are met by another treatment than before."""
    new = np.arange(len(kept))
    every = [(kept - new) % period != 0 for period in PERIODS]
    parts = [(kept < int(width * part)) != (new < int(len(kept) * part)) for part in PARTS]
    first = [(kept < many) != (new < many) for many in (1, 2, 3, width // 2, width - 1)]
    return np.array([one.sum() for one in (*every, *parts, *first)])


def silence(model: nn.Module, graph: Graph, space: str, positions: Sequence[int]) -> None:
    """Mask channels of a space in place: everything that reads them multiplies them by zero."""
    units = [graph.spaces[space].units[p] for p in positions]
    for name, dim in graph.spaces[space].consumers:
        index = np.flatnonzero(np.isin(graph.slots[name, dim].units, units))
        with torch.no_grad():
            model.get_parameter(name).index_fill_(dim, torch.from_numpy(index), 0.0)


def _all(graph: Graph, plan: Callable[[Graph, str], Edit], names: Sequence[str]) -> Edit:
    """One edit that does what the edits of all these spaces do, one behind the other."""
    whole = Edit({}, graph, graph)
    for name in names:
        whole = whole.then(plan(whole.after, name))
    return whole


class _Draw:
    """Random numbers for a tensor, of a size that keeps activations near 1.

    `signed`: SIGNED for what is trained or has signs, so that nothing is positive by chance; 1 for matrices and filters
    alone; 0 for none, where there are roots and logarithms. Whole numbers and infinities stay.
    """

    def __init__(self, dtype: torch.dtype, signed: int) -> None:
        self.dtype, self.signed = dtype, signed
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu().clone()
        fan = max(tensor.numel() // max(len(tensor), 1), 1) if tensor.dim() else 1
        if tensor.dim() < 2:
            drawn = torch.rand(tensor.shape, generator=self.generator, dtype=self.dtype) + 0.5
            known = isinstance(tensor, nn.Parameter) or (not tensor.is_meta and bool((tensor < 0).any()))
            if self.signed == SIGNED and known:
                drawn *= torch.randint(2, tensor.shape, generator=self.generator) * 2 - 1
        else:
            few = torch.randn(min(tensor.numel(), PRIME), generator=self.generator, dtype=self.dtype)
            few = few * (2 / fan) ** 0.5 if self.signed else few.abs() / fan
            drawn = few.repeat(-(-tensor.numel() // PRIME))[: tensor.numel()].view(tensor.shape)
        if tensor.is_meta or bool((finite := tensor.cpu().isfinite()).all()):
            return drawn
        return torch.where(finite, drawn, tensor.cpu().to(self.dtype))


def _gap(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference; infinite where shapes differ, or a number is none."""
    if [out.shape for out in one] != [out.shape for out in other]:
        return float("inf")
    same = [(a == b) | (a.isnan() & b.isnan()) for a, b in zip(one, other, strict=True)]
    gaps = [
        (a - b).abs().nan_to_num(float("inf")).masked_fill(like, 0.0)
        for a, b, like in zip(one, other, same, strict=True)
    ]
    return max((float(gap.max()) for gap in gaps if gap.numel()), default=0.0)
