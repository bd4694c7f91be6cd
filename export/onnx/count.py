"""What an ONNX file costs: MACs, parameters and the peak of its activations, by shapes of our own. Needs onnx and
numpy, never torch or onnxruntime.

One MAC is one multiply-accumulate of a convolution, linear or matmul-like operator, for one input (batch 1) or for the
shapes that a caller names. Every other operator costs nothing by that convention, as its row in
`compress.reading.operators` says, or is reported by name: nothing is silently zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from compress.export.onnx import axes, stored
from compress.export.onnx.memory import peak
from compress.export.onnx.shapes import Shape
from compress.export.onnx.walk import Step, Walk, walk
from compress.reading.formulas import is_matrix_product


@dataclass(frozen=True, slots=True)
class FileCost:
    """What an ONNX file costs, read off the file alone; one input, batch 1, or the shapes that were given.

    `macs` is exact when `why` is empty, else a lower bound; `params` is exact when `hidden` is empty, else a lower
    bound, and counts the numbers in weights after whatever folding the exporter did, as `stored` says. `bytes` is the
    size of the file, with those that it keeps weights in where `file.count_file` has seen them. `memory` is the peak
    that `compress.budget.memory` describes, None where an operator or the shape of an activation is not known.
    """

    macs: int
    params: int
    bytes: int
    unknown: tuple[str, ...]  # operators of unknown cost
    shapes: Mapping[str, tuple[int | None, ...]]  # of its inputs, as counted
    output: Shape  # of the first one
    memory: int | None
    why: str  # its MACs are not known; "" where they are
    hidden: tuple[str, ...]  # what may hold parameters out of sight

    @property
    def input(self) -> tuple[int | None, ...]:
        """The shape of the first input."""
        return next(iter(self.shapes.values()), ())


def count(model: ModelProto, given: Mapping[str, Shape] | None = None) -> FileCost:
    """Count an ONNX model, for these shapes of its inputs by name; the batch is 1 where they do not say otherwise.

    Raises UsageError where a shape is of no input or contradicts it, ArtifactError where the model holds more than is
    followed.
    """
    bound = axes.bind(model, given or {})
    seen = walk(model, bound.inputs)
    params, hidden = stored.tally(model, seen)
    unknown = sorted({**seen.unknown, **_sums_of_products(seen)})
    why = f"the cost of these operators is not known: {', '.join(unknown)}" if unknown else ""
    unbound = bound.why or ("" if unknown or seen.gaps else _batch(model, bound, seen, given or {}))
    if seen.gaps:
        why = why or unbound or (axes.refusal(bound, f"with one, {seen.gaps[0]}") if bound.batch else seen.gaps[0])
    why = why or unbound
    if not why and seen.macs == 0:
        why = "no multiply-accumulate was counted in it"
    memory = None
    if not (unknown or unbound or seen.gaps) and not any(
        node.op_type in ("If", "Loop", "Scan") for node in model.graph.node
    ):
        with contextlib.suppress(KeyError):
            memory = peak(model.graph, seen.scope)
    ends = [value.name for value in model.graph.output]
    output = seen.scope.know(ends[0]).shape if ends else None
    return FileCost(
        macs=seen.macs,
        params=params,
        bytes=model.ByteSize(),
        unknown=tuple(unknown),
        shapes=bound.inputs,
        output=output or (),
        memory=memory,
        why=why,
        hidden=hidden,
    )


def _batch(model: ModelProto, bound: axes.Bound, seen: Walk, given: Mapping[str, Shape]) -> str:
    """Why axis 0 is not shown to be the batch, or is one that is fixed above 1; "" where one input was counted."""
    if bound.batch:
        why = axes.disproof(seen, walk(model, bound.doubled(bound.batch)), bound)
        return axes.refusal(bound, why) if why else ""
    ends = [shape[:1] for value in model.graph.output if (shape := seen.scope.know(value.name).shape)]
    for name, axis in ((name, axes_of[0]) for name, axes_of in bound.inputs.items() if axes_of and name not in given):
        if axis is None or axis < 2 or (axis,) not in ends:
            continue
        twice = walk(model, bound.doubled([name]))
        if twice.gaps or not axes.disproof(seen, twice, bound):
            whole = ",".join(map(str, bound.inputs[name]))
            return (
                f"the batch of input {name!r} is fixed at {axis}, and costs are stated for one input: export the model "
                f"with a symbolic batch, or count all of them with --shape {name}={whole}"
            )
    return ""


def _sums_of_products(seen: Walk) -> dict[str, None]:
    """Matrix products in disguise, by name: stored weights are multiplied with something, one of them spread along an
    axis of the other, and the product is summed along an axis that both have.
    """
    products: dict[str, tuple[Shape, Shape, str]] = {}
    for step in seen.steps:
        one, two = (*step.reads, None, None)[:2]
        if step.name == "Mul" and one is not None and two is not None and len(step.makes) == 1:
            if any(seen.scope.know(name).constant for name in step.node.input):
                products[step.node.output[0]] = (one, two, f"Mul {step.node.name!r}, summed up as matrix products are")
        elif step.name in ("ReduceSum", "ReduceMean") and (product := products.get(step.node.input[0])):
            left, right, name = product
            if is_matrix_product(left, right, _summed(step, seen, max(len(left), len(right)))):
                return {name: None}
    return {}


def _summed(step: Step, seen: Walk, rank: int) -> set[int]:
    """The axes along which a node sums: all where it names none."""
    listed = next((list(a.ints) for a in step.node.attribute if a.name == "axes"), [])
    if len(step.node.input) > 1 and (data := seen.scope.know(step.node.input[1]).data) is not None:
        listed = [int(axis) for axis in data.reshape(-1)]
    return {axis % rank for axis in listed} if listed else set(range(rank))
