"""The lines of forward(): every value gets a name, which is free again behind its last reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import fx

from compress.export.source.layers import Tree
from compress.export.source.script import Line, Script
from compress.export.source.spelling import augmented, index, is_index, literal, passes, spell, tuple_of


def forward(tree: Tree, script: Script) -> list[tuple[fx.Node, str]]:
    """The lines of forward(), with what they compute.

    A value has a name from its line to its last reader; there the result may take it over.
    """
    return _Writer(tree, script).lines()


class _Writer:
    """The names that values have at the line at hand, and what has to stand above all lines."""

    def __init__(self, tree: Tree, script: Script) -> None:
        self.tree, self.script = tree, script
        self.names: dict[fx.Node, str] = {script.image: "x"}
        self.headers: set[str] = set()
        order = {line.gives: at for at, line in enumerate(script.lines)}
        readers = {node: script.readers(node) for node in script.users}
        self.last = {
            node: max((order.get(end, len(order)) for end in ends), default=-1) for node, ends in readers.items()
        }
        self.last[script.result] = len(order)

    def lines(self) -> list[tuple[fx.Node, str]]:
        """Every line with what it computes; those above all others stand for the image."""
        texts: list[tuple[fx.Node, str]] = []
        for at, line in enumerate(self.script.lines):
            if line.gives is self.script.result and at == len(self.script.lines) - 1:
                texts.append((line.gives, f"return {self._value(line)}"))
                break
            texts.append((line.gives, self._line(at, line)))
        else:
            texts.append((self.script.result, f"return {self.say(self.script.result)}"))
        return [(self.script.image, text) for text in sorted(self.headers)] + texts

    def _line(self, at: int, line: Line) -> str:
        """A line that gives its value a name, one that is free from here on; what is never read needs none."""
        node, text = line.gives, self._value(line)
        sides = None if line.layer else augmented(node, self.say)
        dying = [self.names[n] for n in self._read(line.inputs) if self.last[n] == at]
        self.names = {n: name for n, name in self.names.items() if self.last[n] > at}
        if self.last[node] < 0:
            return text
        taken = self.names.values()
        free = (name for name in chain("xyz", (f"y{n}" for n in count(1))) if name not in taken)
        name = "x" if "x" in dying else next(iter(dying), None) or next(free)
        self.names[node] = name
        return f"{name} {sides[1]}" if sides and sides[0] == name else f"{name} = {text}"

    def _value(self, line: Line) -> str:
        """What a line computes."""
        return self.tree.call(line.layer, self.say(line.takes)) if line.layer else self._say_node(line.gives)

    def say(self, value: Any) -> str:
        """The text of a value: a node by its name or as it is written where it is used, a number as it is."""
        if isinstance(value, fx.Node):
            return self._say_node(value)
        if isinstance(value, list | tuple):
            texts = [self.say(item) for item in value]
            tensors = any(isinstance(item, fx.Node) and isinstance(item.meta["val"], torch.Tensor) for item in value)
            return f"[{', '.join(texts)}]" if tensors else tuple_of(texts)
        if isinstance(value, torch.device):
            self.headers.add("device = x.device")
            return "device"
        return literal(value)

    def _say_node(self, node: fx.Node) -> str:
        script = self.script
        if node in script.tensors:
            return self.tree.access(script.tensors[node])
        if node in script.constants:
            return f"self.{script.constants[node][0]}"
        if node in self.names:
            return self.names[node]
        if script.is_batch(node):
            self.headers.add("n = len(x)")
            return "n"
        if passes(node):
            return self.say(node.args[0])
        if is_index(node):
            taken = [node]
            while isinstance(inner := taken[0].args[0], fx.Node) and inner in script.inlined and is_index(inner):
                taken.insert(0, inner)
            return index(taken, self.say)
        return spell(node, self.say)

    def _read(self, inputs: Iterable[fx.Node]) -> Iterator[fx.Node]:
        """The named values that are read, directly or in what is written there."""
        for node in inputs:
            if node in self.names:
                yield node
            elif node in self.script.inlined and not self.script.is_batch(node):
                yield from self._read(node.all_input_nodes)
