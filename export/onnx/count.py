"""What an ONNX file costs: MACs, parameters and the peak of its activations, by shapes of our own. Needs onnx and
numpy, never torch or onnxruntime.

One MAC is one multiply-accumulate of a convolution, linear or matmul-like operator, for one input (batch 1) or for the
shapes that a caller names. Every other operator costs nothing by that convention, as its row in
`compress.reading.operators` says, or is reported by name: nothing is silently zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from compress.export.onnx import axes, samples, stored
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
    uncounted: tuple[str, ...]  # operators of unknown cost that count as nothing because somebody says so
    hidden: tuple[str, ...]  # what may hold parameters out of sight

    @property
    def input(self) -> tuple[int | None, ...]:
        """The shape of the first input."""
        return next(iter(self.shapes.values()), ())


def count(
    model: ModelProto, given: Mapping[str, Shape] | None = None, uncounted: Collection[str] | None = ()
) -> FileCost:
    """Count an ONNX model, for these shapes of its inputs by name; the batch is 1 where they do not say otherwise.

    Of operators whose cost is not known those of these names count as nothing; None is whichever there are.

    Raises UsageError where a shape is of no input or contradicts it, ArtifactError where the model holds more than is
    followed.
    """
    bound = axes.bind(model, given or {})
    seen = walk(model, bound.inputs)
    params, hidden = stored.tally(model, seen)
    excused = [name for name in seen.unknown if " " not in name and (uncounted is None or name in uncounted)]
    unknown = sorted({*seen.unknown, *_sums_of_products(seen)} - set(excused))
    why = f"the cost of these operators is not known: {', '.join(unknown)}" if unknown else ""
    unbound = bound.why or ("" if unknown or seen.gaps else _batch(model, bound, seen, given or {}, excused))
    if seen.gaps:
        several = len(bound.batch) > 1  # they may have to be of other lengths than one
        why = why or unbound or (axes.refusal(bound, f"with one, {seen.gaps[0]}") if several else seen.gaps[0])
    why = why or unbound
    if not why and seen.macs == 0:
        why = "no multiply-accumulate was counted in it"
    memory = None
    if not (unknown or unbound or seen.gaps or any(_has_insides(node, seen) for node in model.graph.node)):
        with contextlib.suppress(KeyError):
            memory = peak(model.graph, seen.scope)
    ends = [value.name for value in model.graph.output]
    output = seen.scope.know(ends[0]).shape if ends else None
    return FileCost(
        macs=seen.macs,
        params=params,
        bytes=model.ByteSize(),
        unknown=tuple(unknown),
        uncounted=tuple(sorted(excused)),
        shapes=bound.inputs,
        output=output or (),
        memory=memory,
        why=why,
        hidden=hidden,
    )


def _has_insides(node: NodeProto, seen: Walk) -> bool:
    """Whether activations live inside an operator, where the peak of a graph does not see them."""
    called = (node.domain, node.op_type, node.overload) in seen.functions
    return called or node.op_type in ("If", "Loop", "Scan")


def _batch(
    model: ModelProto, bound: axes.Bound, seen: Walk, given: Mapping[str, Shape], excused: Collection[str]
) -> str:
    """Why axis 0 is not shown to be the batch, or is one that is fixed above 1; "" where one input was counted."""
    if bound.batch:
        why = samples.disproof(seen, walk(model, bound.scaled(dict.fromkeys(bound.batch, 2))), excused)
        groups = bound.groups()
        if not why and len(groups) > 1:
            several = {name: times for times, names in enumerate(groups, 2) for name in names}
            if not walk(model, bound.scaled(several)).gaps:
                why = "they may be of different lengths"
        return axes.refusal(bound, why) if why else ""
    made = [seen.scope.know(value.name).shape for value in model.graph.output]
    ends = {shape[0] for shape in made if shape}
    fixed: dict[int, list[str]] = {}
    for name, shape in bound.inputs.items():
        if shape and shape[0] is not None and shape[0] > 1 and shape[0] in ends and name not in given:
            fixed.setdefault(shape[0], []).append(name)
    for size, names in list(fixed.items())[:2]:  # each takes a walk
        twice = walk(model, bound.scaled(dict.fromkeys(names, 2)))
        if twice.gaps or not samples.disproof(seen, twice, excused):
            whole = ",".join(map(str, bound.inputs[names[0]]))
            return (
                f"the batch of input {names[0][:60]!r} is fixed at {size}, and costs are stated for one input: export "
                f"the model with a symbolic batch, or count all of them with --shape {names[0][:60]}={whole}"
            )
    return ""


_LINEAR = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Add", "Sub", "Neg", "Cast", "Div"})
_LINEAR |= {"Slice", "Split", "Concat"}
_SUMS = frozenset(
    """
    ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum GlobalAveragePool GlobalLpPool AveragePool
    LpPool Einsum CumSum Sum MatMul Gemm Conv
    """.split()  # noqa: SIM905
)


def _sums_of_products(seen: Walk) -> dict[str, None]:
    """Matrix products in disguise, by name: stored weights are multiplied with something, one of them spread along an
    axis of the other, and the product is summed along an axis that both have; or, behind other linear operators, where
    weights gave it an axis that the other factor had not, at all.
    """
    products: dict[tuple[int, str], tuple[Shape, Shape, str]] = {}
    spread: dict[tuple[int, str], str] = {}  # what is linear in a product to which weights gave an axis
    for step in seen.steps:
        reads = [(step.body, name) for name in step.node.input]
        made = (step.body, step.node.output[0]) if step.node.output else (0, "")
        one, two = (*step.reads, None, None)[:2]
        if step.name in ("Mul", "Div") and one is not None and two is not None and any(step.constant):
            name = f"{step.name} {step.node.name[:60]!r}, summed up as matrix products are"
            products[made] = (one, two, name)
            if not all(step.constant) and _gives_an_axis(*((one, two) if step.constant[0] else (two, one))):
                spread[made] = name
        if step.name in _SUMS and reads and (product := products.get(reads[0])):
            left, right, name = product
            rank = max(len(left), len(right))
            if step.name.startswith("Reduce") and is_matrix_product(left, right, _summed(step, seen, rank)):
                return {name: None}
        behind = next((spread[key] for key in reads if key in spread), None)
        if behind and step.name in _SUMS and made not in spread:
            return {behind: None}
        if behind and step.name in _LINEAR:
            spread[made] = behind
    return {}


def _gives_an_axis(weights: Shape, other: Shape) -> bool:
    """Whether weights have an axis that the other factor is spread along, and the other way round or in common."""
    rank = max(len(weights), len(other))
    left, right = ((1,) * (rank - len(shape)) + shape for shape in (weights, other))
    return any(a > 1 and b == 1 for a, b in zip(left, right, strict=True)) and any(n > 1 for n in right)


def _summed(step: Step, seen: Walk, rank: int) -> set[int]:
    """The axes along which a node sums: all where it names none."""
    listed = next((list(a.ints) for a in step.node.attribute if a.name == "axes"), [])
    if len(step.node.input) > 1 and (data := seen.scope.know(step.node.input[1]).data) is not None:
        listed = [int(axis) for axis in data.reshape(-1)]
    return {axis % rank for axis in listed} if listed else set(range(rank))
