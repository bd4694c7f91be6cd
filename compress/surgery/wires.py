"""Which layer reads whose output, and a network without some of these connections.

A *reader* is a convolution or linear layer that reads a concatenation. A dense *layer* is everything between such
readers and a root that is itself concatenated with what they read, later on. It is decided source by source what it
reads; all others (transitions, the last norm and the classifier) read whatever is left. Nothing here needs widths, so
that a network can be rewired before it has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from compress.errors import UsageError
from compress.reading.calls import Calls, traced

Cuts = Mapping[str, tuple[str, ...]]  # layer -> the sources that it no longer reads, sorted; a dead layer reads none

KEY = "compress.cuts"  # in the `meta` of a rewired network: what was cut since its factory made it


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A dense layer: the calls that are gone without it, and what they read."""

    name: str
    root: fx.Node  # makes its output
    nodes: frozenset[fx.Node]  # from batch norms and readers to the root
    bases: tuple[fx.Node, ...]  # the concatenations that it reads, or the source itself where there is only one
    sources: tuple[fx.Node, ...]  # roots, in the order of the concatenation


class Wires(Calls):
    """The calls of a network, and its dense layers."""

    def __init__(self, net: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__(net, shapes)
        self.undecided: dict[str, str] = {}  # would-be layers, and why nothing is decided about them
        self._lined_up = [set(self.layouts[node]) for node in net.graph.nodes if self.elements(node)]
        self.features = {root for roots in self._lined_up if len(roots) > 1 for root in roots}
        layers = {}
        for root in [node for node in net.graph.nodes if node in self.features]:
            if (layer := self._layer(root)) is not None:
                layers[root] = layer
        self._protect(layers)
        self.layers = tuple(layers.values())
        self.unit = {node: layer for layer in self.layers for node in layer.nodes}  # the layer that a call belongs to

    def _layer(self, root: fx.Node) -> Layer | None:
        """The layer that ends in this root, if it is one; a would-be layer that is not understood is noted."""
        nodes: set[fx.Node] = set()
        read: set[fx.Node] = set()
        odd, queue = "", [root]
        while queue:
            node = queue.pop()
            if node in nodes:
                continue
            nodes.add(node)
            for each in node.all_input_nodes:
                if roots := self.features.intersection(self.layouts[each]):
                    read |= roots
                    odd = odd or ("" if self.is_reader(node) else f"{self.call(node)} reads a concatenation")
                elif each.op == "placeholder":
                    odd = odd or f"{self.call(node)} reads the network's input"
                elif each.op != "get_attr" and not self.is_size(each):
                    queue.append(each)
        if root.op == "placeholder" or not any(root in roots and roots & read for roots in self._lined_up):
            return None
        queue = list(nodes)
        while queue:  # what stands between the concatenation and its readers, and serves nobody else
            for each in queue.pop().all_input_nodes:
                if each not in nodes and self.is_through(each) and nodes.issuperset(each.users):
                    nodes.add(each)
                    queue.append(each)
        bases = [each for node in self.net.graph.nodes if node in nodes for each in node.all_input_nodes]
        bases = [each for each in dict.fromkeys(bases) if each not in nodes and self.features & {*self.layouts[each]}]
        pieces = [list(self.pieces(base)) for base in bases]
        sources = {tuple(dict.fromkeys(root for piece in row for root in self.layouts[piece])) for row in pieces}
        touched = {*nodes, *bases, *(piece for row in pieces for piece in row)}
        if any(len({*self.layouts[piece]}) > 1 for row in pieces for piece in row):
            odd = odd or "it shares its norm, or whatever stands before its convolution, with others"
        if len(sources) > 1:
            odd = odd or "it reads two different concatenations"
        if any(not nodes.issuperset(node.users) for node in nodes - {root}):
            odd = odd or "what it computes inside is read by others"
        inside = Counter(id(tensor) for node in nodes for tensor in self.tensors(node))
        if any(self.used[key] != count for key, count in inside.items()):
            odd = odd or "it shares weights with others"
        if any(next(self.module(node).children(), None) for node in nodes if node.op == "call_module"):
            odd = odd or "it calls a module with parts"
        if any(self.tangled(node) for node in touched):
            odd = odd or "something writes over what it reads"
        if odd := odd or self.fixed.get(root, ""):
            self.undecided[self.name(root)] = odd
            return None
        return Layer(self.name(root), root, frozenset(nodes), tuple(bases), sources.pop())

    def _protect(self, layers: dict[fx.Node, Layer]) -> None:
        """Take back what would leave something that is not decided without anything to read, or without a reader."""
        while True:
            decided = {node for layer in layers.values() for node in layer.nodes}
            readers = [node for node in self.net.graph.nodes if self.is_reader(node) and node not in decided]
            read = [self.layouts[node.all_input_nodes[0]] for node in readers]
            heard = {root for roots in read for root in roots} | self.fixed.keys()
            last = next((roots[-1] for roots in read if all(root in layers for root in roots)), None)
            for root in [n for n in self.net.graph.nodes if n in self.features - heard - layers.keys()]:
                using = [layer.root for layer in layers.values() if root in layer.sources]
                last = last or (using[-1] if using else None)
            if last is None:
                return
            self.undecided[self.name(last)] = "without it something else would read nothing, or be read by nothing"
            del layers[last]

    # taking connections out

    def dead(self, cuts: Mapping[str, Collection[str]]) -> set[fx.Node]:
        """The roots of the layers that have nothing left to read."""
        dead: set[fx.Node] = set()
        for layer in self.layers:
            gone = cuts.get(layer.name, ())
            if all(source in dead or self.name(source) in gone for source in layer.sources):
                dead.add(layer.root)
        return dead

    def check(self, cuts: Mapping[str, Collection[str]]) -> None:
        """Raise UsageError for a layer or a source that there is not."""
        known = {layer.name: {self.name(source) for source in layer.sources} for layer in self.layers}
        for name, sources in cuts.items():
            if name not in known:
                raise UsageError(f"there is no dense layer named {name!r}; the layers are {', '.join(known)}")
            if odd := sorted(set(sources) - known[name]):
                raise UsageError(f"{name} does not read {odd[0]!r}; it reads {', '.join(sorted(known[name]))}")

    def rewired(self, cuts: Mapping[str, Collection[str]], before: Cuts) -> fx.GraphModule:
        """The network without these connections, its modules as they are; call `check` first. This graph is used up."""
        graph, dead = self.net.graph, self.dead(cuts)
        had_users = {node for node in graph.nodes if node.users}
        for layer in self.layers:
            gone = {source for source in layer.sources if self.name(source) in cuts.get(layer.name, ())} - dead
            if layer.root in dead or not gone:
                continue
            gone |= dead
            for base in layer.bases:
                kept = [piece for piece in self.pieces(base) if self.layouts[piece][0] not in gone]
                with graph.inserting_after(base):
                    own = graph.call_function(torch.cat, (kept, 1))
                self.layouts[own] = tuple(root for piece in kept for root in self.layouts[piece])
                for node in layer.nodes & base.users.keys():
                    node.replace_input_with(base, own)
        for node in list(graph.nodes):
            if elements := self.elements(node):
                kept = [each for each in elements if not dead.issuperset(self.layouts[each])]
                aside = any(self.in_place(user) for user in node.users) or any(map(self.tangled, kept))
                if len(kept) == 1 and not aside:  # a copy is needed only where something writes over it
                    node.replace_all_uses_with(kept[0])
                elif 0 < len(kept) < len(elements):
                    node.args, node.kwargs = (kept, 1), {}
        for node in reversed(list(graph.nodes)):
            if not node.users and (node in had_users or node.target is torch.cat):
                graph.erase_node(node)
        net = fx.GraphModule(self.net, graph, class_name="Rewired")
        net.meta[KEY] = merged(before, cuts)
        return net


def rewire(model: nn.Module, cuts: Mapping[str, Collection[str]]) -> nn.Module:
    """The same network without these connections, on the model's own modules, every width as it was.

    What runs it must give its tensors their sizes: `Structure.build` does. Raises UsageError for unknown names.
    """
    if not (new := without(cuts, cuts_in(model))):
        return model
    wires = Wires(traced(model))
    wires.check(new)
    return wires.rewired(new, cuts_in(model))


def cuts_in(model: nn.Module) -> Cuts:
    """What has been cut of a network since its factory made it."""
    meta = getattr(model, "meta", None)
    cuts: Cuts = meta.get(KEY, {}) if isinstance(meta, dict) else {}
    return dict(cuts)


def merged(*cuts: Mapping[str, Collection[str]]) -> Cuts:
    """Cuts of cuts as one, sorted."""
    names = sorted({name for each in cuts for name in each})
    together = {name: tuple(sorted({source for each in cuts for source in each.get(name, ())})) for name in names}
    return {name: sources for name, sources in together.items() if sources}


def without(cuts: Mapping[str, Collection[str]], done: Cuts) -> Cuts:
    """The cuts that are not done yet."""
    return merged({name: set(sources) - set(done.get(name, ())) for name, sources in cuts.items()})
