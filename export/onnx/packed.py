"""How many numbers stand behind whole ones that hold several each, or that choose from a palette.

What is taken apart bit by bit, or by dividing and rounding, is counted by what becomes of it, where that is made of
stored numbers alone and its shape is known; where it is not, it is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from onnx import TensorProto

from compress.export.onnx.flow import FLOATS, MOVED, Flow, Step
from compress.export.onnx.walk import Walk

INDEX = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ai.onnx.ml::ArrayFeatureExtractor": 1,
    "OneHot": 0,
    "Where": 0,
}
_APART = frozenset({"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Mod", "Floor", "Ceil", "Round"})
_ARITHMETIC = _APART | frozenset(
    """
    Add Sub Mul Div Neg Abs Clip Min Max Sign CastLike DequantizeLinear Less Greater LessOrEqual GreaterOrEqual Xor
    OneHot Sum Pow
    """.split()  # noqa: SIM905
)
_TOLD = frozenset("And Equal Greater GreaterOrEqual Less LessOrEqual Not Or Xor".split())  # noqa: SIM905 -- truths
_ADDED = frozenset({"Add", "Sum"})
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)
_MOST = 64  # stored tensors that a value is made of; what is made of more is not followed
_MANY = frozenset({""})
_NONE: frozenset[str] = frozenset()


def carried(step: Step) -> list[str]:
    """What a step reads as values, and the numbers by which it looks others up, as they stand for these."""
    at = INDEX.get(step.name)
    return step.data() + ([step.reads[at]] if at is not None and at < len(step.reads) and step.reads[at] else [])


def reckoned_with(flow: Flow) -> dict[str, int]:
    """Values with which something is reckoned that is not stored, other than by adding them to it.

    A table of positions or a mask is added; what is multiplied, or scales, is a weight.
    """
    ends: dict[str, int] = {}
    for step in flow.steps:
        if step.name not in MOVED | _ADDED and not flow.is_constant(step):
            ends |= dict.fromkeys(step.data(), 1)
    return flow.reach(
        ends, lambda step, level: level if step.name in MOVED or flow.is_constant(step) else 0, _carried_in(flow)
    )


def _carried_in(flow: Flow) -> Callable[[Step], Sequence[str]]:
    return lambda step: carried(step) if step.name != "Where" or flow.is_constant(step) else step.data()


# ---- palettes -------------------------------------------------------------------------------------------------------


def looked_up(flow: Flow, reckoned: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Indices into stored numbers, which are a palette: 2 where something is reckoned with the result, else 1; and
    those that are looked up themselves before, in a table of indices, 2.
    """
    ends: dict[str, int] = {}
    chosen: dict[str, int] = {}
    for step in flow.steps:
        at = INDEX.get(step.name)
        if at is None or at >= len(step.reads) or not step.reads[at]:
            continue
        index, rest = step.reads[at], [n for i, n in enumerate(step.reads) if n and i != at]
        if (step.name != "Where" or index in flow.constant) and all(n in flow.constant for n in rest):
            level = 2 if any(made in reckoned for made in step.makes) else 1
            ends[index] = max(level, ends.get(index, 0))
        if step.name != "Where" and index not in flow.constant:
            chosen[index] = 1
    looks = frozenset(INDEX) - {"Where"}

    def by_moves(step: Step, level: int) -> int:
        return level if flow.is_constant(step) or (step.name in MOVED and step.name not in looks) else 0

    def by_lookups(step: Step, level: int) -> int:
        if step.name in looks and not flow.is_constant(step):
            return 2
        return level if step.name in MOVED else 0

    def reads(step: Step) -> Sequence[str]:
        return carried(step) if flow.is_constant(step) else step.data()

    return flow.reach(ends, by_moves, reads), flow.reach(chosen, by_lookups)


# ---- packed by an operator's own rule -------------------------------------------------------------------------------


def by_operators(flow: Flow) -> dict[str, int]:
    """Tensors that hold several numbers in each of theirs, by what the operator says that reads them."""
    sizes: dict[str, int] = {}
    for step in flow.steps:
        if step.name.startswith("com.microsoft::"):
            for name, size in _unpacked(step, flow):
                if name in flow.stored:
                    sizes[name] = max(size, sizes.get(name, 0))
                else:
                    flow.hidden[f"{step.name}, whose packed numbers are not stored as it reads them"] = None
    return sizes


def _unpacked(step: Step, flow: Flow) -> Iterator[tuple[str, int]]:
    options: Mapping[str, int] = {a.name: a.i for a in step.node.attribute}
    reads = step.reads
    match step.name:
        case "com.microsoft::MatMulNBits" | "com.microsoft::MatMulBnb4" if len(reads) > 1:
            columns, depth = options.get("N", 0), options.get("K", 0)
            yield reads[1], columns * depth
            if len(reads) > 3 and reads[3]:
                yield reads[3], columns * -(-depth // max(1, options.get("block_size", 32)))
        case "com.microsoft::GatherBlockQuantized" if reads:
            for name in (reads[0], *[n for n in reads[3:4] if n]):
                stored = flow.stored.get(name)
                each = 8 // max(1, options.get("bits", 4)) if stored and stored.kind not in _FOUR_BITS else 1
                yield name, stored.size * each if stored else 0


# ---- taken apart by hand --------------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """Of which stored tensors a value is made, and which of them were taken apart on the way."""

    flow: Flow
    seen: Walk
    reckoned: Mapping[str, int]
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    apart: dict[str, frozenset[str]] = field(default_factory=dict)
    derived: set[str] = field(default_factory=set)  # made of stored numbers alone, or picked from them
    far: set[str] = field(default_factory=set)  # taken apart in a function or a branch, or handed to one
    whole: set[str] = field(default_factory=set)
    real: set[str] = field(default_factory=set)

    def follow(self) -> None:
        """Let everything flow from what is stored until nothing changes any more."""
        for name, stored in self.flow.stored.items():
            self.sources[name] = frozenset([name]) if stored.size > 1 else _NONE
            self.derived.add(name)
            (self.real if stored.kind in FLOATS else self.whole).add(name)
        todo, waiting = deque(range(len(self.flow.steps))), [True] * len(self.flow.steps)
        while todo:
            at = todo.popleft()
            waiting[at] = False
            step = self.flow.steps[at]
            for name in self._made(step):
                for reader in self.flow.read_by.get(name, ()):
                    if not waiting[reader]:
                        waiting[reader] = True
                        todo.append(reader)

    def reads(self, step: Step) -> list[str]:
        """The values of a step; indices too, where what they look up is a weight."""
        values, at = step.data(), INDEX.get(step.name)
        if at is not None and at < len(step.reads) and step.reads[at] in self.derived:
            values += [step.reads[at]] if any(made in self.reckoned for made in step.makes) else []
        return values

    def passes(self, step: Step, data: Sequence[str]) -> bool:
        """Whether what a step makes is made of stored numbers alone, or picked from them."""
        moved = step.name in MOVED or step.name in _ARITHMETIC
        return bool(data) and ((moved and all(n in self.derived for n in data)) or self.flow.is_constant(step))

    def joins(self, step: Step, data: Sequence[str]) -> bool:
        """Whether it puts two tensors together of which each was taken apart: each is counted before."""
        return step.name not in ("Concat", "") and len({self.largest(n) for n in data if self.apart.get(n)}) > 1

    def largest(self, name: str) -> str:
        """The one that was taken apart; the others say how."""
        return max(self.apart[name], key=lambda n: (self.flow.stored[n].size if n else 0, n))

    def _made(self, step: Step) -> list[str]:
        """Make what a step makes; the names of what changed."""
        data = self.reads(step)
        inner = self.passes(step, data)
        if not inner and step.name not in MOVED:
            return []
        of = _few([self.sources.get(n, _NONE) for n in data])
        apart = _NONE if self.joins(step, data) else _few([self.apart.get(n, _NONE) for n in data])
        if inner and of and self._takes_apart(step, data):
            apart = _few([apart, of])
        far = bool(apart) and (not step.name or any(n in self.far for n in data))
        kinds = self._kinds(step, data)
        changed = []
        for name in filter(None, step.makes):
            before = (self.sources.get(name), self.apart.get(name), *(name in s for s in self._sets()))
            self.sources[name] = _few([self.sources.get(name, _NONE), of])
            self.apart[name] = _few([self.apart.get(name, _NONE), apart])
            for group, belongs in zip(self._sets(), (inner, far, *kinds), strict=True):
                if belongs:
                    group.add(name)
            if before != (self.sources[name], self.apart[name], *(name in s for s in self._sets())):
                changed.append(name)
        return changed

    def _sets(self) -> tuple[set[str], ...]:
        return self.derived, self.far, self.whole, self.real

    def _kinds(self, step: Step, data: Sequence[str]) -> tuple[bool, bool]:
        """Whether what a step makes may be whole numbers, and whether it may be real ones."""
        if step.name == "Cast":
            to = next((a.i for a in step.node.attribute if a.name == "to"), 0)
            return to not in FLOATS and to != TensorProto.BOOL, to in FLOATS
        if step.name in _TOLD or step.name == "DequantizeLinear":
            return False, step.name == "DequantizeLinear"
        values = step.data()
        return any(n in self.whole for n in values), any(n in self.real for n in values)

    def _takes_apart(self, step: Step, data: Sequence[str]) -> bool:
        if step.name in ("Div", "Mul"):
            return all(n in self.whole for n in data)
        if step.name in ("Add", "Sum"):  # a number added to itself until it is too large for its kind
            shared = len(data) > 1 and frozenset.intersection(*(self.sources.get(n, _NONE) for n in data))
            return bool(shared) and all(n in self.whole for n in data)
        if step.name == "Cast":
            return self._kinds(step, data)[0] and any(n in self.real for n in data)
        if step.name in ("Gather", "GatherElements", "GatherND", "ai.onnx.ml::ArrayFeatureExtractor"):
            return self._gives_rows(step, data)
        return step.name in _APART

    def _gives_rows(self, step: Step, data: Sequence[str]) -> bool:
        """Whether it looks up several numbers by each index, of which there are more than rows: a table of parts."""
        if step.name != "Gather" or len(data) < 2 or not all(n in self.derived for n in data):
            return False
        largest = max((self.flow.stored[n].size if n else 2**63 for n in self.sources.get(data[1], _NONE)), default=0)
        table = self.seen.scope.know(data[0]).shape
        if data[0] in self.flow.stored:
            table = self.flow.stored[data[0]].dims
        axis = next((a.i for a in step.node.attribute if a.name == "axis"), 0)
        if table is None or not -len(table) <= axis < len(table):
            return largest > 1
        return prod(table) > table[axis] and largest > table[axis]


def _few(sets: Sequence[frozenset[str]]) -> frozenset[str]:
    whole = _NONE.union(*sets) if len(sets) > 1 else (sets[0] if sets else _NONE)
    return _MANY if len(whole) > _MOST or "" in whole else whole


def taken_apart(flow: Flow, seen: Walk, reckoned: Mapping[str, int], outputs: Sequence[str]) -> dict[str, int]:
    """How many numbers stored ones become that are taken apart, by the stored tensor's name."""
    parts = _Parts(flow, seen, reckoned)
    parts.follow()
    ends: dict[str, str] = {n: "an output" for n in outputs if parts.apart.get(n)}
    for step in flow.steps:
        data = parts.reads(step)
        if parts.joins(step, data) or not (step.name in MOVED or parts.passes(step, data)):
            ends |= {n: step.name for n in data if parts.apart.get(n)}
    counts: dict[str, int] = {}
    for name, reader in ends.items():
        shape, largest = seen.scope.know(name).shape, parts.largest(name)
        if shape is None or not largest or name not in flow.constant or name in parts.far or name in flow.inside:
            flow.hidden[f"{reader or 'a function'}, given numbers that are taken apart"] = None
        else:
            counts[largest] = counts.get(largest, 0) + prod(shape)
    return counts
