"""Peak activation memory: what must be held at once while a network runs.

Batch 1, eval mode, operators in the order in which forward() runs them, 4 bytes a number whatever the model is trained
in. While an operator runs, these are alive: the model's input while it is still to be read, everything else that is
still to be read later, what the operator reads and what it writes. The peak is the largest sum over all operators.

- Weights are no activations, nor is anything that is computed from weights alone.
- Views (reshapes, permutations, slices and chunks) cost nothing; the whole tensor lives as long as any view of it.
- An element-wise operator (`OVER` in `operators`: batch norm, relu and the like, an addition or a product) writes over
  an operand of its output's size that nobody reads later: eager modules and the exported graph then have the same peak.

Both counters, of modules (`reading.count`) and of ONNX files (`export.onnx.memory`), say what runs as `Operation`s;
`moments` says what is alive when.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

Buffer = Any  # hashable: whatever a counter tells one piece of memory from another by


class Operation(NamedTuple):
    """One operator as memory sees it."""

    name: str  # where it stands, for people
    reads: Collection[Buffer]
    makes: Sequence[Buffer]  # whose lives begin here
    over: Collection[Buffer] = ()  # operands of the first output's size, any of which it may write into


def moments(
    operations: Sequence[Operation], inputs: Collection[Buffer], outputs: Collection[Buffer]
) -> Iterator[tuple[str, frozenset[Buffer]]]:
    """For every operation its name and the buffers that are alive while it runs.

    Of a buffer that takes another one's place only that other one is named: both have the same size.
    """
    last = {buffer: at for at, operation in enumerate(operations) for buffer in operation.reads}
    last |= dict.fromkeys(outputs, len(operations))
    alive = {buffer: buffer for buffer in inputs}  # -> the one whose place it has
    for at, operation in enumerate(operations):
        dying = [buffer for buffer in operation.over if buffer in alive and last[buffer] == at]
        for number, made in enumerate(operation.makes):
            alive[made] = alive[dying[0]] if dying and number == 0 else made
        yield operation.name, frozenset(alive.values())
        alive = {buffer: place for buffer, place in alive.items() if last.get(buffer, -1) > at}


def largest(
    operations: Sequence[Operation],
    inputs: Collection[Buffer],
    outputs: Collection[Buffer],
    size: Callable[[Buffer], int],
) -> int:
    """The largest sum of the sizes of the buffers of any moment, in as many steps as there are reads.

    A buffer in another one's place is as large as that: so it counts as itself, and the other one as gone.
    """
    last = {buffer: at for at, operation in enumerate(operations) for buffer in operation.reads}
    last |= dict.fromkeys(outputs, len(operations))
    alive = dict.fromkeys(inputs)
    now = sum(map(size, alive))
    most = 0
    for at, operation in enumerate(operations):
        dying = [buffer for buffer in operation.over if buffer in alive and last[buffer] == at]
        if dying:
            del alive[dying[0]]
            now -= size(dying[0])
        for made in operation.makes:
            if made not in alive:
                alive[made] = None
                now += size(made)
        most = max(most, now)
        ended = [buffer for buffer in {*operation.reads, *operation.makes} if last.get(buffer, -1) <= at]
        if at == 0:  # inputs that nobody reads
            ended += [buffer for buffer in alive if last.get(buffer, -1) <= 0]
        for buffer in ended:
            if buffer in alive:
                del alive[buffer]
                now -= size(buffer)
    return most


__all__ = ["Buffer", "Operation", "largest", "moments"]
