"""Peak activation memory of an ONNX graph, from the graph alone; `compress.budget.memory` says what is counted.

Nodes run in the order of the file, a batch of 1. Initializers and what is computed from them or from shapes alone are
no activations. Operators that move data in eager torch without copying it are views here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import GraphProto

from compress.budget.memory import Operation, largest
from compress.export.onnx.shapes import op_name
from compress.reading.operators import NEW, NONE, OVER, VIEW, onnx


def peak(graph: GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the activations that are alive at once, at most; raises KeyError with the name of a value of no shape.

    Views of a buffer are not told apart from it: all of it lives while one of them is still to be read.
    """
    constants = {tensor.name for tensor in graph.initializer} | {""}  # an input left out has an empty name
    constants |= {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    holder = {name: name for name in inputs}  # the buffer that holds a value
    rows = onnx()
    operations: list[Operation] = []
    for node in graph.node:
        name = op_name(node)
        place = rows[name].place if name in rows else NEW
        if place == NONE or constants.issuperset(node.input):
            constants.update(node.output)
            continue
        reads = [holder[name] for name in node.input if name not in constants]
        outs = [name for name in node.output if name]
        if not outs:
            continue
        if place == VIEW:
            holder |= dict.fromkeys(outs, reads[0])
            continue
        holder |= {name: name for name in outs}
        size = prod(shapes[outs[0]])
        over = [buffer for buffer in reads if place == OVER and prod(shapes[buffer]) == size]
        operations.append(Operation(node.name, set(reads), outs, over))
    outputs = {holder[value.name] for value in graph.output if value.name in holder}
    read = outputs.union(*(operation.reads for operation in operations))
    operations = [
        operation._replace(makes=[out for out in operation.makes if out == operation.makes[0] or out in read])
        for operation in operations
    ]
    return 4 * largest(operations, inputs, outputs, lambda buffer: prod(shapes[buffer]))
