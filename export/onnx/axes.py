"""The free axes of a network's inputs: what is shown to be the batch is 1, what a caller gives is believed, and all
else is unknown. A step of a sequence, or a row of an image, is never taken for a sample.

Axis 0 may be the batch where no other axis has its symbol and its name does not say otherwise; that it is, a second
walk must show (`samples`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from onnx import ModelProto, ValueInfoProto

from compress.errors import UsageError
from compress.export.onnx.shapes import Shape

# What symbols are called that are no batch: parts of words, and whole words.
_NOT_SAMPLES = re.compile(
    "seq|len|time|step|token|frame|height|width|word|char|past|context|position|point|node|edge|box|roi|patch"
)
_NOT_SAMPLES_ALONE = {"h", "w", "t", "l", "row", "rows", "col", "cols", "x", "y"}


DEFAULTS = 4  # the IR version from which initializers that are inputs too are defaults of theirs


class Bound(NamedTuple):
    """Inputs with sizes. `batch` holds the axes that are taken for the batch, which is still to be shown."""

    inputs: dict[str, tuple[int | None, ...]]
    batch: dict[str, str]  # inputs whose axis 0 it is, and its symbol, "" where it has none
    beside: dict[str, int]  # inputs that have such a symbol on another axis, as states of a sequence do
    why: str  # an axis is unknown; "" where all are known

    def scaled(self, times: Mapping[str, int]) -> dict[str, tuple[int | None, ...]]:
        """The inputs with more samples in these, axis 0 for each name; beside them as in the first."""
        others = {name: axis for name, axis in self.beside.items() if times.keys() & self.batch.keys()}
        first = next(iter(times.values()), 1)
        return {
            name: _times(shape, others.get(name, 0), times.get(name, first if name in others else 1))
            for name, shape in self.inputs.items()
        }

    def groups(self) -> list[list[str]]:
        """The inputs whose batch has the same symbol together; of those without one each by itself."""
        named: dict[str, list[str]] = {}
        for name, symbol in self.batch.items():
            named.setdefault(symbol or f" {name}", []).append(name)
        return list(named.values())


def bind(model: ModelProto, given: Mapping[str, Shape]) -> Bound:
    """Give every axis of the inputs a size, where it has one. `given` are whole shapes by the name of an input.

    Raises UsageError where a given shape is of no input, has another number of axes, or contradicts a fixed one.
    """
    ends = {value.name: value for value in inputs_of(model)}
    if strangers := sorted(given.keys() - ends.keys()):
        listed = ", ".join(repr(name[:60]) for name in list(ends)[:8])
        raise UsageError(f"there is no input {strangers[0]!r}; its inputs are {listed}.")
    axes = {name: _axes(value) for name, value in ends.items()}
    sizes: dict[str, int] = {}
    for name, whole in given.items():
        sizes |= _match(name, axes[name], whole)
    free = _batch_symbols(axes.values(), sizes)
    bound: dict[str, tuple[int | None, ...]] = {}
    batch: dict[str, str] = {}
    beside: dict[str, int] = {}
    why = ""
    for name, declared in axes.items():
        if name in given:
            bound[name] = given[name]
            continue
        if declared is None:
            why = why or f"input {name!r} has no shape; {_cure(name, ('D', 'D'))}"
            continue
        shape: list[int | None] = [axis if isinstance(axis, int) else sizes.get(axis) for axis in declared]
        for at, axis in enumerate(declared):
            if shape[at] is None and axis in free and (at == 0 or axis):
                shape[at] = 1
                if at == 0:
                    batch[name] = str(axis)
                else:
                    beside[name] = at
            if shape[at] is None and not why:
                called = f" ({axis!r})" if axis else ""
                why = f"axis {at} of input {name!r}{called} has no size; {_cure(name, declared)}"
        bound[name] = tuple(shape)
    return Bound(bound, batch, beside, why)


def inputs_of(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that are given to a network: old files list their weights as inputs too, newer ones their defaults.

    A default whose input has an open axis stands for any size, and so for none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    opens = {value.name for value in model.graph.input if any(isinstance(axis, str) for axis in _axes(value) or ())}
    given = opens if model.ir_version >= DEFAULTS else set()
    return [value for value in model.graph.input if value.name not in weights - given]


def _batch_symbols(shapes: Iterable[tuple[int | str, ...] | None], sizes: Mapping[str, int]) -> set[str]:
    """Symbols that may be the batch's: on axis 0 and nowhere else; one that is called batch beside it too, but never
    twice in one input. The empty one stands for axes 0 without any.
    """
    shapes = list(shapes)
    known = [[axis for axis in shape or () if isinstance(axis, str)] for shape in shapes]
    first = {shape[0] for shape in shapes if shape and isinstance(shape[0], str)}
    elsewhere = {axis for shape in shapes for axis in (shape or ())[1:] if axis}
    twice = {axis for axes in known for axis in axes if axes.count(axis) > 1}
    return {
        symbol
        for symbol in first - sizes.keys()
        if not symbol
        or (_may_be_samples(symbol) and symbol not in twice and ("batch" in symbol.lower() or symbol not in elsewhere))
    }


def _times(shape: tuple[int | None, ...], axis: int, times: int) -> tuple[int | None, ...]:
    return tuple(size * times if at == axis and size is not None else size for at, size in enumerate(shape))


def refusal(bound: Bound, why: str) -> str:
    """Say that an axis is not shown to be the batch, and the way out."""
    called = " and of ".join(
        f"{name[:60]!r}{f' ({symbol[:60]!r})' if symbol else ''}" for name, symbol in list(bound.batch.items())[:4]
    )
    name = next(iter(bound.batch))
    others = [size if size is not None else "D" for size in bound.inputs[name][1:]]
    return f"axis 0 of input {called} is not shown to be the batch: {why}; {_cure(name, ('D', *others))}"


def _axes(value: ValueInfoProto) -> tuple[int | str, ...] | None:
    """Each axis as a size or as a symbol, "" where it has neither; None where there is no shape."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return tuple(axis.dim_value if axis.dim_value > 0 else axis.dim_param for axis in kind.shape.dim)


def _may_be_samples(symbol: str) -> bool:
    name = symbol.lower()
    return "batch" in name or not (_NOT_SAMPLES.search(name) or name in _NOT_SAMPLES_ALONE)


def _match(name: str, declared: tuple[int | str, ...] | None, shape: Shape) -> dict[str, int]:
    """Which size each symbol has, by a given shape."""
    if declared is None:
        return {}
    if len(declared) != len(shape):
        raise UsageError(
            f"input {name!r} has {len(declared)} axes, [{_listed(declared)}], and --shape gives {len(shape)}, "
            f"[{_listed(shape)}]."
        )
    for at, (axis, size) in enumerate(zip(declared, shape, strict=True)):
        if isinstance(axis, int) and axis != size:
            raise UsageError(f"axis {at} of input {name!r} is fixed at {axis}, and --shape says {size}.")
    return {axis: size for axis, size in zip(declared, shape, strict=True) if isinstance(axis, str) and axis}


def _listed(axes: Sequence[int | str]) -> str:
    return ", ".join(str(axis) if axis else "?" for axis in axes)


def _cure(name: str, axes: Sequence[int | str]) -> str:
    shape = ",".join(str(axis) if isinstance(axis, int) else "D" for axis in axes)
    return f"say for which to count, with --shape {name}={shape} and a number for each D"


__all__ = ["Bound", "bind", "inputs_of", "refusal"]
