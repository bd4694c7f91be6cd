"""The walk of channel ids through one traced forward pass: who is tied to whom, who lives where, and who is frozen.

Rules (`rules.py`) say what an operator does with ids; this is the state that they work on, and what happens where there
is no rule: every channel that the operator touches is frozen, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compress.budget.price import Ints
from compress.reading import ids as channels
from compress.reading import rules, weights
from compress.reading.ghost import flat
from compress.reading.ids import ABSENT, FIXED, Axis, Ref, UnknownError
from compress.reading.trace import Call, Trace

FEW = 4096  # elements that Python's own sets take less time for than a sort of rows
_MOVES = ("copy", "view", "squeeze", "turn", "expand", "repeat", "split", "move")  # rules of what only moves data


class Cut(NamedTuple):
    """A view that cuts an axis of channels in several."""

    call: int  # its number in the traced pass
    parts: tuple[int, ...]  # the new axes
    shape: tuple[int, ...]  # of the view
    follows: int  # which of them is taken to grow with the old one


class Flow:
    """The state of one reading: ids of every tensor, ties between them, and who is frozen.

    `inputs` [N, C, ...] are what the pass began with, where their channels are to be told apart too. `follows` says of
    views that cut an axis of channels in several, by their number, which of these grows with it.
    """

    def __init__(self, traced: Trace, inputs: Sequence[Tensor] = (), follows: Mapping[int, int] | None = None) -> None:
        self.traced = traced
        self.slots: dict[Axis, Tensor] = {}  # ids [n] along axes of parameters and buffers
        self.roles: dict[Axis, str] = {}
        self.weights: dict[int, str] = {}  # id of a call's output -> the parameter it multiplied with
        self.notes = list(traced.notes)
        self.cuts: list[Cut] = []
        self._follows = follows or {}
        self._labels: dict[int, Tensor] = {}  # id of an activation -> its ids
        self._refs: dict[int, Ref] = {}  # id of what is computed from parameters alone -> those
        self._over: dict[Axis, str] = {}  # axes of parameters that something runs over
        self._parent: list[int] = [FIXED, ABSENT]
        self._why: dict[int, str] = {}
        self._parted: dict[int, str] = {}  # an id of which an operator saw some of the others without it
        self._opaque: dict[str, str] = {}  # parameters that something unknown is done with
        tensors = dict([*traced.model.named_parameters(), *traced.model.named_buffers()])
        self._still = {name for name, tensor in tensors.items() if not tensor.requires_grad}  # buffers among them
        self._sizes = {name: tensor.shape for name, tensor in tensors.items()}
        saved = traced.model.state_dict().keys()  # a buffer that no file holds could not be given its width back
        self._names = {key: name for key, name in traced.names.items() if name in saved}
        self._call: Call | None = None
        self._slotted: set[str] = set()
        for given in inputs:
            self._labels[id(given)] = channels.along(self._start(given.shape[1]), 1, given.shape)
        for at, call in enumerate(traced.calls):
            self._at = at
            self._run(call)
        cuts, self.cuts = self.cuts, []
        for call in traced.lessons:
            self._run(call)
        self._call, self.cuts = None, cuts
        self._tie_recurrent()
        for output in traced.outputs:
            self.freeze(self.ids(output), "it reaches the model's output")
        parameters = dict(traced.model.named_parameters())
        for (name, dim), ids in self.slots.items():
            if name in self._opaque:
                self.freeze(ids, self._opaque[name])
            elif (name, dim) in self._over:
                self.freeze(ids, self._over[name, dim])
            elif name in self._still and self.roles[name, dim] != "channel":  # one value for each channel follows them
                what = "is a buffer" if name not in parameters else "cannot be trained (requires_grad is False)"
                self.freeze(ids, f"{name} {what}")

    # what came out

    @cached_property
    def frozen(self) -> dict[int, str]:
        """Why a unit cannot change its number, for those that cannot."""
        reasons: dict[int, str] = {}
        for unit, why in self._why.items():
            reasons.setdefault(int(self._root[unit]), why)
        return reasons

    @cached_property
    def parted(self) -> dict[int, str]:
        """Where an operator takes some of the channels among which a unit is, and not others."""
        return {int(self._root[unit]): where for unit, where in reversed(self._parted.items())}

    @property
    def is_whole(self) -> bool:
        """Whether nothing but a rule that knows what it does touched any parameter."""
        return not self._opaque

    @property
    def top(self) -> int:
        """The largest unit that there can be."""
        return len(self._parent) - 1

    def units(self, ids: Tensor) -> Ints:
        """Units [n] of ids of n elements: one number for all ids that are tied, 0 for what belongs to no channel."""
        numbers: Ints = self._root[ids.reshape(-1).numpy()]
        return numbers

    def holds(self, tensor: Tensor) -> tuple[Ints, int]:
        """The units in an activation, and how many elements each of the listed ones stands for."""
        ids = self.ids(tensor)
        few = channels.small(ids)
        return self.units(few), ids.numel() // max(few.numel(), 1)

    @cached_property
    def _root(self) -> Ints:
        root = np.array(self._parent, dtype=np.int64)
        while bool((root[root] != root).any()):
            root = root[root]
        root[ABSENT] = FIXED
        return root

    # what rules may do (rules.Channels)

    def ids(self, tensor: Tensor) -> Tensor:
        """The ids of an activation, of the same shape."""
        label = self._labels.get(id(tensor))
        return channels.fixed(tensor.shape) if label is None else label

    def ref(self, value: Any) -> Ref | None:
        """The parameters that the value is one of or is computed from alone."""
        if not isinstance(value, Tensor):
            return None
        name = self._names.get(id(value))
        if name is None:
            return self._refs.get(id(value))
        return Ref((name,), tuple(frozenset({(name, d)}) for d in range(value.dim())))

    def slot(self, name: str, dim: int, ids: Tensor, role: str) -> None:
        """Axis `dim` of a parameter holds these channels [n]."""
        self._slotted.add(name)
        if (name, dim) in self.slots:
            self.tie(known := self.slots[name, dim], ids)
            ids = torch.where(known > ABSENT, known, ids)  # zeros of one step are channels of the next
        self.slots[name, dim] = ids.clone()
        if self.roles.setdefault((name, dim), role) != role:
            self._opaque.setdefault(name, f"{name} is used in two ways")

    def weight(self, value: Tensor) -> str:
        """The parameter that is multiplied with, or that what is multiplied with is computed from, axis for axis.

        Raises UnknownError where there is none.
        """
        ref = self.ref(value)
        name = ref.whole(self._sizes, value.shape) if ref is not None else None
        if name is None:
            raise UnknownError("its weight is computed")
        return name

    def follow(self, axes: Iterable[Axis], ids: Tensor) -> None:
        """These axes hold one value for each of these channels [n]."""
        for name, dim in sorted(axes):
            self.slot(name, dim, ids, "channel")

    def trained(self, name: str) -> bool:
        """Whether this is a parameter that training changes, and neither a buffer nor one without gradient."""
        return name not in self._still

    def new(self, name: str, dim: int) -> Tensor:
        """Ids [n] of the channels that axis `dim` of this parameter starts (the same at a second use)."""
        if (name, dim) not in self.slots:
            self.slot(name, dim, self._start(self._sizes[name][dim]), "out")
        self.slot(name, dim, self.slots[name, dim], "out")
        return self.slots[name, dim]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Element by element, these are the same channel."""
        for d in range(a.dim()):
            if a.size(d) > 1 and a.stride(d) == 0 and b.stride(d) == 0:
                a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
        if torch.equal(a, b):
            return
        if a.numel() <= FEW:
            self._tie_pairs(set(zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)))
        else:  # sorted by what is not Python: a large picture
            self._tie_pairs(torch.unique(torch.stack([a.reshape(-1), b.reshape(-1)], 1), dim=0).tolist())

    def _tie_pairs(self, pairs: Iterable[Sequence[int]]) -> None:
        for one, other in pairs:
            if one > ABSENT and other > ABSENT:
                self._join(one, other)
            elif FIXED in (one, other) and max(one, other) > ABSENT:
                self._why.setdefault(max(one, other), self._reason("it meets a tensor of fixed size"))

    def freeze(self, ids: Tensor, why: str) -> None:
        """These channels keep their number."""
        for unit in torch.unique(channels.small(ids)).tolist():
            if unit > ABSENT:
                self._why.setdefault(unit, self._reason(why))

    def part(self, ids: Tensor, parts: Any) -> None:
        """The operator at hand takes these parts of the channels."""
        assert self._call is not None
        if channels.held(ids):
            whole = torch.unique(channels.small(ids))
            if any(0 < len(torch.unique(channels.small(one))) < len(whole) for one in flat(parts)):
                for unit in whole.tolist():
                    self._parted.setdefault(unit, _where(self._call))

    def follows(self, parts: Sequence[int], guess: int) -> int:
        """Which of the axes into which the view at hand cuts one grows with it; the `guess` if nobody knows better."""
        assert self._call is not None
        chosen = self._follows.get(len(self.cuts), guess)
        self.cuts.append(Cut(self._at, tuple(parts), tuple(self._call.out.shape), chosen))
        return chosen

    def multiplies(self, name: str) -> None:
        """The operator at hand multiplies with this parameter, so its MACs follow the parameter's size."""
        assert self._call is not None
        self.weights[id(self._call.out)] = name

    # the walk

    def _run(self, call: Call) -> None:
        if self._made_of_parameters(call):
            return
        self._call, self._slotted = call, set()
        outs = list(flat(call.out))
        try:
            row = call.row
            rule = rules.RULES[row.ids] if row is not None and row.ids else None
            labels = [] if rule is None else list(flat(rule(self, call)))
            if rule is None or any(label.shape != out.shape for label, out in zip(labels, outs, strict=False)):
                raise UnknownError("")
        except (UnknownError, RuntimeError, IndexError, TypeError, ValueError) as error:
            self._give_up(call, str(error) if isinstance(error, UnknownError) else "")
            return
        for out, label in zip(outs, labels, strict=False):
            self._labels[id(out)] = label
        for tensor in call.tensors:
            ref = self.ref(tensor)
            for name in ref.names if ref is not None and tensor.numel() > 1 else ():
                if prod(self._sizes[name]) > 1 and name not in self._slotted:
                    self._opaque.setdefault(name, f"{_where(call)} reads {name} as a whole")

    def _tie_recurrent(self) -> None:
        """All layers and directions of a recurrent layer have as many hidden channels as its `hidden_size` says."""
        for path, module in self.traced.model.named_modules():
            if not isinstance(module, nn.RNNBase):
                continue
            own = [f"{path}.{name}".strip(".") for name in module._parameters if name.startswith("weight_hh_l")]
            hidden = [self.slots[name, 1] for name in own if (name, 1) in self.slots]
            for one in hidden[1:]:
                self.tie(hidden[0], one)

    def _give_up(self, call: Call, why: str) -> None:
        """No rule, or none for this form: every channel that this operator touches is frozen."""
        what = f"{_where(call)} is not understood" + (f": {why}" if why else "")
        row = call.row
        touched = row is not None and row.macs is not None
        for tensor in call.tensors:
            if (ref := self.ref(tensor)) is not None:
                self._opaque |= dict.fromkeys(ref.names, what) | self._opaque
            elif channels.held(ids := self.ids(tensor)):
                touched = True
                for unit in torch.unique(channels.small(ids)).tolist():
                    self._why.setdefault(unit, what)
        if touched and what not in self.notes:
            self.notes.append(what)

    def _made_of_parameters(self, call: Call) -> bool:
        """What is computed from parameters and buffers alone is known by their axes, where the operator leaves them."""
        row = call.row
        refs = [ref for tensor in call.tensors if (ref := self.ref(tensor)) is not None]
        if not refs or row is None or any(channels.held(self.ids(tensor)) for tensor in call.tensors):
            return False
        self._call = call
        made = weights.made(call, row, self.ref, self._sizes)
        if made is not None:
            names = tuple(dict.fromkeys(name for ref in refs for name in ref.names))
            for axis, why in made.over.items():
                self._over.setdefault(axis, self._reason(why))
            for out, sets in zip(flat(call.out), made.sets, strict=False):
                self._refs[id(out)] = Ref(names, sets)
        elif row.ids in _MOVES:
            self._opaque |= {name: f"{_where(call)} cuts {name}" for ref in refs for name in ref.names} | self._opaque
        return made is not None or row.ids in _MOVES

    def _reason(self, why: str) -> str:
        return why if self._call is None else f"{why} ({_where(self._call)})"

    def _start(self, count: int) -> Tensor:
        """Ids [count] of new channels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def _join(self, one: int, other: int) -> None:
        a, b = self._find(one), self._find(other)
        self._parent[max(a, b)] = min(a, b)

    def _find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit


def _where(call: Call) -> str:
    return f"{call.op.removeprefix('aten.')} in {call.module or 'forward()'}"
