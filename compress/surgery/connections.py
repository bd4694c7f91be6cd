"""The connections of a concatenating network: what each costs, masks that are exact, and cuts that truly remove.

A child of a network is given by a mask over its E connections, True where a dense layer goes on reading a source. What
follows from it is settled first: a layer that reads nothing is gone, and so is one that nobody reads, and with it every
connection from and to it, and its columns in the transitions. The cost of a settled child is a sum over what is left,
so that thousands can be priced in a second:

    cost = rest + sum over live layers of layer_costs + sum over live connections of edge_costs

LWP decides which connections to drop (Learning to prune the connections of DenseNet, section 3); how is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from compress.budget.price import Ints
from compress.errors import UsageError
from compress.reading.calls import probed, traced
from compress.reading.ghost import copied, ghost
from compress.reading.inputs import Shape
from compress.reading.measure import measure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.surgery.tensors import swap
from compress.surgery.wires import Cuts, Layer, Wires, cuts_in, merged, rewire, without

Bools = NDArray[np.bool_]

__all__ = ["Cuts", "Masks", "Picture", "Wiring", "cut", "cuts_in", "merged", "rewire"]


class Picture(NamedTuple):
    """The connections of one block, for drawing."""

    layers: tuple[str, ...]  # the rows
    sources: tuple[str, ...]  # the columns: what comes from outside the block first, then its layers
    cells: NDArray[np.int8]  # [layers, sources]: 1 reads it, 0 does not, -1 cannot


@dataclass(frozen=True, slots=True)
class ReaderColumns:
    """A convolution or linear layer that reads connections: what keeps each of its columns alive."""

    module: str
    keys: Ints  # [columns]: an edge e is e, a layer l is E + l, and E + L is always alive


@dataclass(frozen=True, eq=False)
class Wiring:
    """The L dense layers of a network, the E connections between them and their sources, and what these cost.

    A source is numbered like the layer that it is, or from L on. Edges are in the order of the layers, and of the
    sources in each layer's concatenation.
    """

    layers: tuple[str, ...]  # by the module that makes a layer's output, in the order of the forward pass
    sources: tuple[str, ...]  # the layers again, and behind them what else is read: the inputs of blocks
    block: Ints  # [L], from 0 on
    edge_layer: Ints  # [E]
    edge_source: Ints  # [E], below L for a layer
    heard: Bools  # [L]: read by something that always stays
    rest: Ints  # [3] of what always stays: params, MACs, thop
    layer_costs: Ints  # [L, 3]
    edge_costs: Ints  # [E, 3]
    columns: tuple[ReaderColumns, ...]
    undecided: Mapping[str, str]  # would-be layers that are left as they are, and why

    @classmethod
    def read(cls, model: nn.Module, shape: Shape) -> Wiring:
        """The connections of a live model for inputs of this shape (without the batch); the model stays as it is.

        Raises UsageError where its code cannot be traced, or has no dense layer.
        """
        own = ghost(model)
        unmask(own)
        return _Reading(own, shape).wiring()

    # children: masks [N, E], bool; True keeps

    def settle(self, masks: ArrayLike) -> Bools:
        """The connections that are alive [N, E], once layers without inputs and layers without readers are gone."""
        live: Bools = np.array(masks, dtype=bool, ndmin=2)
        if live.ndim != 2 or live.shape[1] != len(self.edge_layer):
            raise ValueError(f"masks have the shape {list(live.shape)}; the network has {len(self.edge_layer)} edges")
        here = np.ones((len(live), len(self.sources)), dtype=bool)
        for layer, edges in enumerate(self._edges):
            live[:, edges] &= here[:, self.edge_source[edges]]
            here[:, layer] = live[:, edges].any(1)
        if not self.heard.all():
            for layer in np.flatnonzero(~self.heard)[::-1].tolist():
                live[:, self._edges[layer]] &= live[:, self._readers[layer]].any(1, keepdims=True)
        return live

    def alive(self, settled: Bools) -> Bools:
        """Which layers [N, L] are there in settled children [N, E]."""
        starts = [edges.start for edges in self._edges]
        there: Bools = np.logical_or.reduceat(settled, starts, axis=1)
        return there

    def costs(self, masks: ArrayLike) -> Ints:
        """Parameters, MACs and thop's total [N, 3] of the networks that `cut` makes of these masks."""
        live = self.settle(masks)
        whole: Ints = self.rest + self.alive(live).astype(np.int64) @ self.layer_costs
        return whole + live.astype(np.int64) @ self.edge_costs

    @property
    def full(self) -> Bools:
        """The mask [E] that keeps everything."""
        return np.ones(len(self.edge_layer), dtype=bool)

    @property
    def floor(self) -> Ints:
        """The cost [3] of the smallest child: every layer is gone."""
        least: Ints = self.costs(~self.full)[0]
        return least

    # state

    def cuts_of(self, mask: ArrayLike) -> Cuts:
        """What a mask [E] drops, as it is stored: for every layer that loses some the names of its lost sources."""
        gone = np.flatnonzero(~self.settle(mask)[0])
        lost: dict[str, list[str]] = {}
        for edge in gone.tolist():
            lost.setdefault(self.layers[self.edge_layer[edge]], []).append(self.sources[self.edge_source[edge]])
        return merged(lost)

    def mask_of(self, cuts: Mapping[str, Collection[str]]) -> Bools:
        """The mask [E] of stored cuts, of which those that are not edges here are none of its business."""
        pairs = zip(self.edge_layer.tolist(), self.edge_source.tolist(), strict=True)
        return np.array([self.sources[source] not in cuts.get(self.layers[layer], ()) for layer, source in pairs])

    def matrix(self, mask: ArrayLike) -> tuple[Picture, ...]:
        """A mask [E], settled, block by block."""
        live: Bools = self.settle(mask)[0]
        pictures = []
        for number in range(int(self.block.max()) + 1):
            layers = np.flatnonzero(self.block == number).tolist()
            mine = np.flatnonzero(self.block[self.edge_layer] == number).tolist()
            outside = dict.fromkeys(self.edge_source[e] for e in mine if self.edge_source[e] not in layers)
            order = {source: at for at, source in enumerate([*outside, *layers])}
            cells = np.full((len(layers), len(order)), -1, np.int8)
            for edge in mine:
                cells[layers.index(self.edge_layer[edge]), order[self.edge_source[edge]]] = live[edge]
            names = tuple(self.layers[layer] for layer in layers)
            pictures.append(Picture(names, tuple(self.sources[source] for source in order), cells))
        return tuple(pictures)

    @cached_property
    def _edges(self) -> list[slice]:
        """Each layer's own edges."""
        bounds = np.searchsorted(self.edge_layer, np.arange(len(self.layers) + 1)).tolist()
        return [slice(a, b) for a, b in pairwise(bounds)]

    @cached_property
    def _readers(self) -> list[Ints]:
        """The edges that read each layer."""
        return [np.flatnonzero(self.edge_source == layer) for layer in range(len(self.layers))]


class Masks:
    """Connections of a live model switched off: it computes what the cut network would, as long as these are set.

    The columns of whatever reads a connection are multiplied by zero, in a copy of its weight for this one call: a
    batch norm on the way would make something of a zero. Other masks may be set between a forward and its backward
    pass. On device meta nothing is masked, so that the model is read and priced as it is.
    """

    def __init__(self, model: nn.Module, wiring: Wiring) -> None:
        self.model = model
        self.wiring = wiring
        self.now: Bools | None = None  # the settled mask [E] that is set
        self._readers = [model.get_submodule(columns.module) for columns in wiring.columns]
        self._hooks = [_Columns() for _ in self._readers]
        self._handles: list[RemovableHandle] = []
        for module, hook in zip(self._readers, self._hooks, strict=True):
            self._handles.append(module.register_forward_pre_hook(hook.shadow))
            self._handles.append(module.register_forward_hook(hook.unshadow, always_call=True))

    def set(self, mask: ArrayLike | None) -> None:
        """Mask what this child [E] does not have; None masks nothing."""
        self.now = None if mask is None else self.wiring.settle(mask)[0]
        if self.now is None:
            for hook in self._hooks:
                hook.live = None
            return
        keys = np.concatenate([self.now, self.wiring.alive(self.now[None])[0], [True]])
        rows = [keys[columns.keys] for columns in self.wiring.columns]
        weight = self._readers[0].weight
        assert isinstance(weight, Tensor)
        moved = torch.from_numpy(np.concatenate(rows)).to(weight.device, weight.dtype)  # one copy for all readers
        for row, part, hook in zip(rows, torch.split(moved, [len(row) for row in rows]), self._hooks, strict=True):
            hook.live = None if row.all() else part

    def remove(self) -> None:
        """Leave the model as it was."""
        self.set(None)
        for handle in self._handles:
            handle.remove()


class _Columns:
    """The live columns of one reader; two hooks put the masked weight in front of the parameter and take it away."""

    live: Tensor | None = None  # [columns]; None where all are

    def shadow(self, module: nn.Module, inputs: Any) -> None:
        weight = module._parameters["weight"]
        if self.live is not None and weight is not None and not weight.is_meta:
            vars(module)["weight"] = weight * self.live.to(weight).view(1, -1, *[1] * (weight.dim() - 2))

    def unshadow(self, module: nn.Module, inputs: Any, output: Any) -> None:
        vars(module).pop("weight", None)


def unmask(model: nn.Module) -> None:
    """Take the hooks of `Masks` off a copy of a masked model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Columns)]:
                del hooks[key]


def cut(model: nn.Module, cuts: Mapping[str, Collection[str]], shape: Shape) -> nn.Module:
    """A copy of a live model without these connections (as `Wiring.cuts_of` names them), nor anything left of them.

    Each concatenation takes what is still read, batch norms and convolutions have those columns only, and layers that
    read nothing are gone. `shape` is of one input, without the batch. The copy is a graph of calls on modules of the
    same names, which knows what was cut of it (`cuts_in`), these cuts included.

    Raises UsageError for a layer or a source that there is not.
    """
    own = copied(model, torch.clone)
    for mine, theirs in zip(own.modules(), model.modules(), strict=True):
        mine.training = theirs.training
    unmask(own)
    wires = _Reading(own, shape).wires
    before = cuts_in(model)
    new = without(cuts, before)
    wires.check(new)
    dead = wires.dead(new)
    swaps: dict[int, Tensor] = {}
    for node in wires.net.graph.nodes:
        layer = wires.unit.get(node)
        gone = dead | {s for s in layer.sources if wires.name(s) in new.get(layer.name, ())} if layer else dead
        keep = np.repeat(*_counted([(root not in gone, count) for root, count in wires.columns(node)]))
        if keep.any() and not keep.all():  # where nothing is kept, the call goes as a whole
            swaps |= _narrowed(wires.module(node), wires.axes(node), torch.from_numpy(np.flatnonzero(keep)))
    net = wires.rewired(new, before)
    swap(net, swaps)
    return net


def _counted(pairs: Sequence[tuple[Any, int]]) -> tuple[NDArray[Any], Ints]:
    """What and how often, as arrays."""
    return np.array([what for what, _ in pairs]), np.array([count for _, count in pairs], np.int64)


def _narrowed(module: nn.Module, axes: Mapping[str, int], keep: Tensor) -> dict[int, Tensor]:
    """The tensors of a reader, or of a norm, with these columns only, by the ids of what they replace."""
    narrow: dict[int, Tensor] = {}
    for name, dim in axes.items():
        tensor: Any = getattr(module, name)
        taken = tensor.detach().index_select(dim, keep.to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        narrow[id(tensor)] = nn.Parameter(taken, requires_grad=tensor.requires_grad) if is_parameter else taken
    return narrow


class _Reading:
    """A live model's wires with their shapes, and its costs call by call."""

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        net = traced(model)
        shapes, self.counts = probed(net, shape)
        self.shape, self.wires = shape, Wires(net, shapes)
        self._seen: set[int] = set()  # ids of parameters that are counted

    def wiring(self) -> Wiring:
        """The same as numbers."""
        wires = self.wires
        layers = wires.layers
        if not layers:
            raise UsageError(_nothing(wires))
        at = {layer.root: number for number, layer in enumerate(layers)}
        roots = list(dict.fromkeys([*at, *(source for layer in layers for source in layer.sources)]))
        pairs = [(layer.root, source) for layer in layers for source in layer.sources]
        edge = {pair: number for number, pair in enumerate(pairs)}
        always = len(pairs) + len(layers)

        costs = np.zeros((always + 1, 3), np.int64)
        columns, heard = [], np.zeros(len(layers), dtype=bool)
        for node in wires.net.graph.nodes:
            layer, own, each = wires.unit.get(node), always, self._cost(node)
            if layer is not None:
                own = len(pairs) + at[layer.root]
            elif wires.is_through(node) and len({*wires.layouts[node]}) == 1:
                own = len(pairs) + at.get(wires.layouts[node][0], len(layers))
            keys = np.repeat(*_counted([(self._key(layer, root, at, edge), n) for root, n in wires.columns(node)]))
            if keys.size:
                share = self._shared(node) // keys.size
                np.add.at(costs, keys, share)
                each = each - share * keys.size
            costs[own] += each
            if wires.is_reader(node) and (keys < always).any():
                columns.append(ReaderColumns(str(node.target), keys))
            if wires.is_reader(node) and layer is None:
                heard[[at[root] for root in wires.layouts[node.all_input_nodes[0]] if root in at]] = True

        total = measure(wires.net, self.shape, lenient=True)
        rest = np.array([total.params, total.macs, total.thop], np.int64) - costs[:always].sum(0)
        number = {root: n for n, root in enumerate(roots)}
        return Wiring(
            layers=tuple(layer.name for layer in layers),
            sources=tuple(wires.name(root) for root in roots),
            block=_blocks(layers),
            edge_layer=np.array([at[layer] for layer, _ in pairs]),
            edge_source=np.array([number[source] for _, source in pairs]),
            heard=heard,
            rest=rest,
            layer_costs=costs[len(pairs) : always],
            edge_costs=costs[: len(pairs)],
            columns=tuple(columns),
            undecided=dict(wires.undecided),
        )

    def _key(self, layer: Layer | None, root: fx.Node, at: Mapping[fx.Node, int], edge: Mapping[Any, int]) -> int:
        """What a column of this root lives and dies with: an edge, the layer that makes it or is around it, nothing."""
        if layer is not None:
            return edge.get((layer.root, root), len(edge) + at[layer.root])
        return len(edge) + at.get(root, len(at))

    def _cost(self, node: fx.Node) -> Ints:
        """Params, MACs and thop's total of one call; parameters that others read too count at none but the first."""
        new = [tensor for tensor in self.wires.tensors(node) if id(tensor) not in self._seen]
        self._seen.update(map(id, new))
        return np.array([sum(tensor.numel() for tensor in new), *self.counts[node.name]], np.int64)

    def _shared(self, node: fx.Node) -> Ints:
        """The part of it that all columns have in common: everything but a reader's bias."""
        bias = self.wires.module(node).bias if self.wires.is_reader(node) else None
        aside = bias.numel() if isinstance(bias, Tensor) else 0
        params = sum(tensor.numel() for tensor in self.wires.tensors(node))
        return np.array([params - aside, *self.counts[node.name]], np.int64)


def _blocks(layers: Sequence[Layer]) -> Ints:
    """The number of each layer's block: layers that have a source in common, or read each other, are in one."""
    blocks: list[set[fx.Node]] = []
    for layer in layers:
        mine = {layer.root, *layer.sources}
        joined = [block for block in blocks if block & mine]
        blocks = [block for block in blocks if not block & mine] + [mine.union(*joined)]
    numbers = [next(n for n, block in enumerate(blocks) if layer.root in block) for layer in layers]
    order = {old: new for new, old in enumerate(dict.fromkeys(numbers))}
    return np.array([order[n] for n in numbers])


def _nothing(wires: Wires) -> str:
    text = (
        "the model has no dense layer: none whose output is concatenated, along the channels, with what the layer "
        "itself reads through a convolution"
    )
    why = next((f"; {name} is left out: {why}" for name, why in wires.undecided.items()), "")
    return text + why


def prune(surgeon: Surgeon, cuts: Cuts) -> None:
    """Give a surgeon a network without these connections, and no optimizer."""
    surgeon.model = cut(surgeon.model, cuts, surgeon.graph.shape)
    graph = survey(surgeon.model, surgeon.graph.shape, surgeon.hold)
    surgeon.graph, surgeon.optimizer = graph.spared(surgeon.graph.spare), None
