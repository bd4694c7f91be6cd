"""The free axes of a network's inputs: what is shown to be the batch is 1, what a caller gives is believed, and all
else is unknown. A step of a sequence, or a row of an image, is never taken for a sample.

Axis 0 is the batch where no other axis has its symbol, its name does not say otherwise, and where two in its place
change what one would if samples are samples: every product costs twice, no operator mixes along it, and it is the
outputs' first axis too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from onnx import GraphProto, ModelProto, ValueInfoProto

from compress.errors import UsageError
from compress.export.onnx.shapes import Shape
from compress.export.onnx.walk import Step, Walk

# What symbols are called that are no batch: parts of words, and whole words.
_NOT_SAMPLES = re.compile(
    "seq|len|time|step|token|frame|height|width|word|char|past|context|position|point|node|edge|box|roi|patch"
)
_NOT_SAMPLES_ALONE = {"h", "w", "t", "l", "row", "rows", "col", "cols", "x", "y"}

_ALONG = frozenset({"Softmax", "LogSoftmax", "Hardmax", "TopK", "LpNormalization", "LayerNormalization"})
_BY_IMAGE = frozenset(
    {
        "Conv", "ConvTranspose", "DeformConv", "QLinearConv", "ConvInteger", "com.microsoft::FusedConv", "MaxPool",
        "AveragePool", "LpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "Attention",
        "com.microsoft::Attention", "com.microsoft::QAttention", "com.microsoft::MultiHeadAttention",
    }
)  # fmt: skip
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "com.microsoft::DynamicQuantizeLSTM"})


class Bound(NamedTuple):
    """Inputs with sizes. `batch` holds those whose axis 0 is taken for the batch, which is still to be shown."""

    inputs: dict[str, tuple[int | None, ...]]
    batch: dict[str, str]  # and its symbol, "" where it has none
    why: str  # an axis is unknown; "" where all are known

    def doubled(self, names: Collection[str]) -> dict[str, tuple[int | None, ...]]:
        """The inputs with twice the samples in these."""
        return {
            name: ((shape[0] or 0) * 2, *shape[1:]) if name in names else shape for name, shape in self.inputs.items()
        }


def bind(model: ModelProto, given: Mapping[str, Shape]) -> Bound:
    """Give every axis of the inputs a size, where it has one. `given` are whole shapes by the name of an input.

    Raises UsageError where a given shape is of no input, has another number of axes, or contradicts a fixed one.
    """
    ends = {value.name: value for value in inputs_of(model.graph)}
    if strangers := sorted(given.keys() - ends.keys()):
        raise UsageError(f"there is no input {strangers[0]!r}; its inputs are {', '.join(map(repr, ends))}.")
    axes = {name: _axes(value) for name, value in ends.items()}
    sizes: dict[str, int] = {}
    for name, whole in given.items():
        sizes |= _match(name, axes[name], whole)
    elsewhere = {axis for others in axes.values() for axis in (others or ())[1:]}
    bound: dict[str, tuple[int | None, ...]] = {}
    batch: dict[str, str] = {}
    why = ""
    for name, declared in axes.items():
        if name in given:
            bound[name] = given[name]
            continue
        if declared is None:
            why = why or f"input {name!r} has no shape; {_cure(name, ('D', 'D'))}"
            continue
        shape: list[int | None] = [axis if isinstance(axis, int) else sizes.get(axis) for axis in declared]
        if shape and shape[0] is None and (declared[0] or None) not in elsewhere and _may_be_samples(str(declared[0])):
            shape[0] = 1
            batch[name] = str(declared[0])
        for at, (size, axis) in enumerate(zip(shape, declared, strict=True)):
            if size is None and not why:
                called = f" ({axis!r})" if axis else ""
                why = f"axis {at} of input {name!r}{called} has no size; {_cure(name, declared)}"
        bound[name] = tuple(shape)
    return Bound(bound, batch, why)


def inputs_of(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that are given to a network: old files list their weights as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def disproof(one: Walk, two: Walk, bound: Bound) -> str:
    """Why axis 0 is not shown to be the batch by a walk with one sample and one with two; "" where it is.

    A walk that does not know some shape proves nothing; where the first does not, that is told instead of this.
    """
    if two.gaps or two.unknown.keys() - one.unknown.keys():
        return f"with two in its place, {(two.gaps or list(two.unknown))[0]}"
    if [step.name for step in one.steps] != [step.name for step in two.steps]:
        return "with two in its place, other operators run"
    for before, after in zip(one.steps, two.steps, strict=True):
        if before.reads != after.reads and (what := _mixes(before, after)):
            return f"{before.name} {before.node.name!r} {what}"
    ends = [(one.scope.know(value.name).shape, two.scope.know(value.name).shape) for value in one.model.graph.output]
    moved = [(a, b) for a, b in ends if a is not None and b is not None and a != b]
    if not any(_changed(a, b) == [0] and b[0] == 2 * a[0] for a, b in moved):
        return "no output has it as its first axis"
    return ""


def refusal(bound: Bound, why: str) -> str:
    """Say that an axis is not shown to be the batch, and the way out."""
    called = " and of ".join(f"{name!r}{f' ({symbol!r})' if symbol else ''}" for name, symbol in bound.batch.items())
    name = next(iter(bound.batch))
    others = [size if size is not None else "D" for size in bound.inputs[name][1:]]
    return f"axis 0 of input {called} is not shown to be the batch: {why}; {_cure(name, ('D', *others))}"


def _mixes(before: Step, after: Step) -> str:
    """What an operator does along an axis that cannot be of samples, by its shapes for one and for two; or nothing."""
    pairs = [(a, b) for a, b in zip(before.reads, after.reads, strict=True) if a is not None and b is not None]
    moved = [_changed(a, b) for a, b in pairs]
    if not moved or not any(moved):
        return ""
    first = moved[0]
    options = {a.name: a.i for a in before.node.attribute}
    if before.name in _RECURRENT and first and first != [0 if options.get("layout") else 1]:
        return "takes it for the steps of a sequence"
    if before.name in _BY_IMAGE and any(axes not in ([], [0]) for axes in moved):
        return "does not take it for its images"
    if before.name in _ALONG and first:
        rank = len(pairs[0][0])
        axis = options.get("axis", -1) % rank
        if axis in first or (before.name == "LayerNormalization" and max(first) >= axis):
            return "mixes along it"
    if before.macs and (after.macs != 2 * before.macs or before.makes == after.makes):
        return f"would cost {after.macs:,} MACs, not twice {before.macs:,}, or sums along it"
    return ""


def _changed(one: Shape, two: Shape) -> list[int]:
    if len(one) != len(two):
        return [-1]
    return [at for at, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]


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


__all__ = ["Bound", "bind", "disproof", "inputs_of", "refusal"]
