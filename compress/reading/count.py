"""What one traced forward pass costs, term by term: parameters, MACs, thop's operations, bytes of the ONNX
file, and the activations that are alive at each moment.

Each term is a constant times the lengths of at most two tensor axes. With the units of a graph, the lengths become
affine functions of the widths, and the terms a `Price`; without them they are plain numbers, and the price that of one
network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from compress.budget.memory import Buffer, Operation, moments
from compress.budget.price import Ints, Moment, Price, Term
from compress.errors import UsageError
from compress.reading import formulas
from compress.reading.ghost import flat
from compress.reading.ids import Axis
from compress.reading.operators import NEW, OVER, Operator
from compress.reading.trace import Call, Trace

# Bytes of model.onnx beside its numbers: upper bounds of what was measured on files that torch 2.15 exported.
SEAL_BYTES = 547  # of what model.onnx seals of its run: three numbers of up to 24 characters, and five digests
FILE_BYTES = 2048 + SEAL_BYTES  # header, input, output, seal, and about 1 kB of metadata
CLASS_BYTES = 24  # the name of one class, in the metadata
TENSOR_BYTES = 24  # one stored tensor beside its name and numbers (measured: up to 18)
INPUT_BYTES = 14  # the name of one activation more in a concatenation

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
         nn.InstanceNorm3d, nn.SyncBatchNorm)  # fmt: skip
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
UPSAMPLES = (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d)
# thop's operations of a recurrent layer for each step and hidden channel, beside its products: gates, and element by
# element what follows them. A gate adds its two products, and two biases if it has them.
RECURRENT: dict[type[nn.Module], tuple[int, int]] = {
    nn.RNN: (1, 0), nn.RNNCell: (1, 0), nn.GRU: (3, 4), nn.GRUCell: (3, 4), nn.LSTM: (4, 4), nn.LSTMCell: (4, 4),
}  # fmt: skip
UPSAMPLE_FACTOR = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}


class Piece(NamedTuple):
    """coef (params, macs, thop, bytes) times the lengths of two axes, given by the unit of every index."""

    coef: tuple[int, int, int, int]
    left: Ints
    right: Ints


ONE: Ints = np.zeros(1, dtype=np.int64)  # an axis of length 1 without units


@dataclass(frozen=True)
class Tally:
    """A traced pass with what is known of its units; without them every length is a constant."""

    traced: Trace
    units: Mapping[Axis, Ints] = field(default_factory=dict)  # of parameter and buffer axes
    free: Mapping[int, str] = field(default_factory=dict)  # unit -> its space
    widths: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[int, str] = field(default_factory=dict)  # id of a call's output -> the weight it multiplied with
    holds: Callable[[Tensor], tuple[Ints, int]] | None = None  # an activation's units and how often each stands there
    top: int = 0  # the largest unit

    def price(self) -> Price:
        """The cost of every net of this family."""
        pieces = [*self._params(), *self._macs(), *self._thop(), *self._bytes()]
        return Price.from_terms(tuple(self.widths), [self._term(piece) for piece in pieces], self._moments())

    def _term(self, piece: Piece) -> Term:
        left, left0 = self._affine(piece.left)
        right, right0 = self._affine(piece.right)
        return Term(piece.coef, left, left0, right, right0)

    def _affine(self, units: Ints) -> tuple[dict[str, int], int]:
        """How often each space stands on an axis, and how many indices belong to none."""
        times = np.bincount(self._number[units], minlength=len(self.widths) + 1).tolist()
        counts = zip(self.widths.items(), times[1:], strict=True)
        return {name: -(-count // width) for (name, width), count in counts if count}, times[0]

    @cached_property
    def _number(self) -> Ints:
        """The number of each unit's space, from 1 on; 0 for units of none."""
        order = {name: number for number, name in enumerate(self.widths, 1)}
        number = np.zeros(self.top + 1, dtype=np.int64)
        for unit, name in self.free.items():
            number[unit] = order[name]
        return number

    def _sized(self, name: str, tensor: Tensor) -> tuple[int, Ints, Ints]:
        """A tensor's element count as a constant and two axes."""
        axes = [(d, self.units[name, d]) for d in range(tensor.dim()) if (name, d) in self.units]
        axes = [(d, vec) for d, vec in axes if self._number[vec].any()][:2]
        rest = prod(size for d, size in enumerate(tensor.shape) if d not in [axis for axis, _ in axes])
        vectors = [vec for _, vec in axes] + [ONE, ONE]
        return rest, vectors[0], vectors[1]

    def _count(self, tensor: Tensor) -> tuple[int, Ints]:
        """An activation's element count as a constant and one axis."""
        if self.holds is None:
            return tensor.numel(), ONE
        units, times = self.holds(tensor)
        return times, units

    def _params(self) -> Iterable[Piece]:
        for name, parameter in self.traced.model.named_parameters():
            rest, left, right = self._sized(name, parameter)
            yield Piece((rest, 0, 0, 0), left, right)

    def _macs(self) -> Iterable[Piece]:
        for call in self.traced.calls:
            if (total := macs(call)) is not None:
                yield from self._product(1, total, self.weights.get(id(call.out)))

    def _thop(self) -> Iterable[Piece]:
        often = paths(self.traced.model)
        for visit in self.traced.visits:
            module, out = visit.module, visit.output
            x = visit.inputs[0] if visit.inputs else None
            out = next(flat(out), None) if type(module) in RECURRENT else out
            if not isinstance(x, Tensor) or not isinstance(out, Tensor):
                continue
            known = often[id(module)] ** 2  # thop hooks a module once for each path to it, and adds it up as often
            if type(module) in WEIGHTED:
                weight = module.weight
                assert isinstance(weight, Tensor)
                channels = out.shape[-1 if type(module) is nn.Linear else 1]
                name = self.traced.names.get(id(weight)) or self.weights.get(id(out))
                yield from self._product(2, known * out.numel() // channels * weight.numel(), name)
            yield from self._recurrent(visit.name, module, known * x.numel() // x.shape[-1])
            for factor, tensor in thop_terms(module, x, out):
                times, units = self._count(tensor)
                yield Piece((0, 0, known * factor * times, 0), units, ONE)

    def _recurrent(self, path: str, module: nn.Module, steps: int) -> Iterable[Piece]:
        """thop's operations of a recurrent layer that runs over so many steps, of all inputs together."""
        gates, beside = RECURRENT.get(type(module), (0, 0))
        for leaf, tensor in module._parameters.items() if gates else ():
            name = f"{path}.{leaf}".strip(".")
            if tensor is None or not leaf.startswith(("weight_ih", "weight_hh")):
                continue
            yield from self._product(2, steps * tensor.numel(), name)
            if leaf.startswith("weight_hh"):
                units = self.units.get((name, 1), np.zeros(tensor.shape[1], dtype=np.int64))
                factor = gates * (3 if f"bias_hh{leaf[9:]}" in module._parameters else 1) + beside
                yield Piece((0, 0, steps * factor, 0), units, ONE)

    def _moments(self) -> Iterable[Moment]:
        """The bytes alive while each operator runs; a buffer is a storage, so that views cost nothing."""
        operations, inputs, tensors = _operations(self.traced)
        sizes = {buffer: self._bytes_of(tensor) for buffer, tensor in tensors.items()}
        for call in reversed(self.traced.calls):  # zeros that are padded on belong to no channel, what they meet does
            for tensor in call.tensors if _row(call).place == OVER else ():
                out = next(flat(call.out))
                if _storage(tensor) in sizes and tensors[_storage(tensor)].shape == out.shape:
                    sizes[_storage(tensor)] = sizes[_storage(out)]
        for where, alive in moments(
            operations, inputs, {_storage(tensor) for tensor in self.traced.outputs} & sizes.keys()
        ):
            left: Counter[str] = Counter()
            for buffer in alive:
                left.update(sizes[buffer][0])
            yield Moment(where, left, sum(sizes[buffer][1] for buffer in alive))

    def _bytes_of(self, tensor: Tensor) -> tuple[dict[str, int], int]:
        """Bytes of an activation in float32, for each channel of each space and for what belongs to none."""
        times, units = self._count(tensor)
        left, left0 = self._affine(units)
        return {name: 4 * times * count for name, count in left.items()}, 4 * times * left0

    def _product(self, column: int, total: int, weight: str | None) -> Iterable[Piece]:
        """A total that follows the size of a weight; a constant where the weight is computed."""
        coef = [0, 0, 0, 0]
        left = right = ONE
        if weight is not None:
            tensor = self._tensors[weight]
            rest, left, right = self._sized(weight, tensor)
            total = total // tensor.numel() * rest
        coef[column] = total
        yield Piece((coef[0], coef[1], coef[2], coef[3]), left, right)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return dict([*self.traced.model.named_parameters(), *self.traced.model.named_buffers()])

    def _bytes(self) -> Iterable[Piece]:
        names, folded = self.traced.names, _folded(self.traced)
        stored: set[str] = set()
        rest = FILE_BYTES + CLASS_BYTES * max(self.traced.outputs[0].shape[1:2], default=1)
        # a recurrent layer's first state is not stored: its size depends on the batch
        layers = {name for name, module in self.traced.model.named_modules() if type(module) in RECURRENT}
        for call in self.traced.calls:
            row = _row(call)
            if row.ids == "maker" or (row.ids == "blank" and call.module not in layers):
                rest += sum(tensor.numel() * _number_bytes(tensor) for tensor in flat(call.out))
                continue
            lacking = 0  # vectors that the exporter adds: the bias that a folded norm leaves, weight and bias of others
            if id(call) in folded:
                lacking = int(len(folded[id(call)].tensors) == 2)
            elif row.ids == "batch_norm":
                lacking = sum(tensor is None for tensor in call.args[1:3])
            if lacking and (like := names.get(id(call.args[3]))) is not None:
                rest += lacking * (TENSOR_BYTES + 2 * len(like))
                size, left, right = self._sized(like, self._tensors[like])
                yield Piece((0, 0, 0, 4 * lacking * size), left, right)
            if id(call) in folded:
                continue
            read = [names[id(t)] for t in call.tensors if id(t) in names]
            stored.update(read)
            rest += sum(map(len, read)) + INPUT_BYTES * max(len(call.tensors) - 2, 0)
            if len(read) == len(call.tensors) and call.args and (like := names.get(id(call.args[0]))) is not None:
                copies = sum(tensor.numel() for tensor in flat(call.out)) // self._tensors[like].numel()
                size, left, right = self._sized(like, self._tensors[like])  # a weight alone: stored as it comes out
                yield Piece((0, 0, 0, 4 * size * max(copies - 1, 0)), left, right)
            else:
                rest += row.bytes
        for name in sorted(stored):
            rest += TENSOR_BYTES + len(name)
            size, left, right = self._sized(name, self._tensors[name])
            yield Piece((0, 0, 0, size * _number_bytes(self._tensors[name])), left, right)
        yield Piece((0, 0, 0, rest), ONE, ONE)


def _storage(tensor: Tensor) -> int:
    """What tells a tensor's storage from others; a trace keeps all its tensors, so none is used again."""
    return int(tensor.untyped_storage()._cdata)


def _operations(traced: Trace) -> tuple[list[Operation], set[Buffer], dict[Buffer, Tensor]]:
    """The operators that read activations, the storage of the model's input, and for every storage what began it.

    What is computed from weights alone is no activation. Operators that are several in an ONNX file (silu, gelu) need
    room for their output even where torch writes over their operand.
    """
    held = {_storage(t) for module in traced.model.modules() for t in flat(list(vars(module).values()))}
    read = [tensor for call in traced.calls for tensor in call.tensors]
    tensors: dict[Buffer, Tensor] = {}
    made: set[Buffer] = set()
    for call in traced.calls:  # an input is read before any operator makes it; a view of it is the same storage
        unmade = {_storage(t): t for t in call.tensors if t.is_meta and _storage(t) not in held | made}
        tensors = unmade | tensors
        made |= {_storage(out) for out in flat(call.out)}
    inputs, wanted = set(tensors), {_storage(tensor) for tensor in (*read, *traced.outputs)}
    operations: list[Operation] = []
    for call in traced.calls:
        reads, outs = {_storage(t) for t in call.tensors} & tensors.keys(), list(flat(call.out))
        if not reads or not outs:
            continue
        makes: list[Buffer] = []
        for out in outs:
            if _storage(out) not in tensors and (out is outs[0] or _storage(out) in wanted):
                tensors[_storage(out)] = out
                makes.append(_storage(out))
        row = _row(call)
        over = [key for key in reads if row.place == OVER and tensors[key].numel() == outs[0].numel()]
        if row.ids == "same" and row.place == NEW and not makes:
            makes.append(("beside", _storage(outs[0])))
            tensors[makes[0]] = outs[0]
        operations.append(Operation(call.module or "forward()", reads, makes, over))
    return operations, inputs, tensors


def _number_bytes(tensor: Tensor) -> int:
    """Bytes of one number in the file, which is written in float32 whatever the model is trained in."""
    return 4 if tensor.is_floating_point() else tensor.element_size()


def _folded(traced: Trace) -> dict[int, Call]:
    """id of a batch-norm call -> the layer before it that takes it in, if nothing else reads either's tensors."""
    makers = {id(call.out): call for call in traced.calls if _row(call).ids in ("convolution", "linear")}
    turned = {id(call.out): call.args[0] for call in traced.calls if call.op == "aten.t"}
    readers = Counter(id(tensor) for call in traced.calls for tensor in call.tensors)
    taken: dict[int, Call] = {}
    for call in traced.calls:
        maker = makers.get(id(call.args[0])) if _row(call).ids == "batch_norm" else None
        if maker is not None and readers[id(call.args[0])] == 1:
            parts = [turned.get(id(tensor), tensor) for tensor in maker.tensors]
            if all(readers[id(part)] == 1 for part in parts if id(part) in traced.names):
                taken[id(call)] = maker
    return taken


def thop_terms(module: nn.Module, x: Tensor, out: Tensor) -> list[tuple[int, Tensor]]:
    """thop's operations of a layer without weights: factors, each for every element of a tensor."""
    kind = type(module)
    if kind in NORMS:
        affine = getattr(module, "affine", False) or getattr(module, "elementwise_affine", False)
        return [(4 if affine else 2, x)]
    if kind is nn.PReLU:
        return [(1, x)]
    if kind in AVERAGES:
        return [(1, out)]
    if kind in ADAPTIVE:
        return [(1, x), (1, out)]  # thop divides first and rounds down: where sizes do not divide it may be 1 less
    if kind in UPSAMPLES:
        return [(UPSAMPLE_FACTOR.get(str(module.mode), 0), out)]
    if isinstance(module, nn.Softmax) and kind is nn.Softmax and module.dim is not None:
        return [(3, x), (-1, x.select(module.dim, 0))]
    return []


def paths(model: nn.Module) -> Counter[int]:
    """By how many paths of children each module is reached, by its id."""
    often = Counter([id(model)])
    for child in model.children():
        often.update(paths(child))
    return often


def unknown_to(traced: Trace) -> dict[str, str]:
    """Every operator that can neither be counted nor is known to cost nothing, with a module in which it runs."""
    unknown = {call.op: call.module for call in traced.calls if call.row is None}
    for visit in traced.visits:  # thop takes the hidden channels for what goes back into the layer, and needs a tensor
        if type(visit.module) in RECURRENT and (
            getattr(visit.module, "proj_size", False)
            or not isinstance(visit.inputs[0], Tensor)
            or visit.inputs[0].dim() < 2
        ):
            unknown[f"a {type(visit.module).__name__} with proj_size or packed sequences"] = visit.name
    return dict(sorted(unknown.items()))


def refuse_unknown(unknown: Mapping[str, str], what: str = "a budget") -> None:
    """Raise UsageError naming these operators, if there are any, because of which `what` would mean nothing."""
    if unknown:
        listed = ", ".join(f"{op} (in {where or 'forward()'})" for op, where in unknown.items())
        raise UsageError(
            f"the cost of the model cannot be counted: no rule for {listed}; {what} on it would mean nothing. Limits "
            f"of params and bytes hold all the same, and model.uncounted: [{next(iter(unknown))}] in the recipe says "
            "that it costs nothing"
        )


def refuse_disguised(traced: Trace) -> None:
    """Raise UsageError where weights are multiplied element by element and summed up as a matrix product is: neither
    torch nor thop counts that, and `compress verify` refuses the file.
    """
    made_of_weights = set(traced.names)
    products: dict[int, tuple[Tensor, Tensor]] = {}
    for call in traced.calls:
        tensors = call.tensors
        if tensors and all(id(tensor) in made_of_weights for tensor in tensors):
            made_of_weights |= {id(tensor) for tensor in flat(call.out)}
        elif call.op in ("aten.mul", "aten.mul_") and any(id(tensor) in made_of_weights for tensor in tensors):
            products[id(call.out)] = (tensors[0], tensors[-1])
        elif call.op in ("aten.sum", "aten.mean") and id(call.args[0]) in products:
            one, two = products[id(call.args[0])]
            axes = call.args[1] if len(call.args) > 1 else ()
            summed = [axes] if isinstance(axes, int) else list(axes or range(call.args[0].dim()))
            if formulas.is_matrix_product(one.shape, two.shape, summed):
                raise UsageError(
                    f"{call.module or 'forward()'} multiplies {list(one.shape)} with {list(two.shape)} and sums up the "
                    "products, which no counter takes for the matrix product that it is; write it with torch.matmul"
                )


def macs(call: Call) -> int | None:
    """The multiply-accumulates of an operator as it ran; None where it does not multiply."""
    count = _row(call).macs
    return None if count is None else count(call.args, call.out)


def _row(call: Call) -> Operator:
    """What is known of an operator; of one without a row that it may do anything."""
    return call.row or Operator()
