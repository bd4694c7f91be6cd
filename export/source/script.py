"""An exported program as the lines that a person would write: calls of layers, and what is left in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, OutputKind

from compress.export.source.layers import Tree
from compress.export.source.spelling import Unspelled, is_index, is_mutable, literal, passes

_MOST_NUMBERS = 256  # of a constant that is written out
_LONGEST_CHAIN = 4  # operators on one line


@dataclass(eq=False)
class Line:
    """One line of forward(): a node, or all nodes of one call of a layer."""

    nodes: list[fx.Node]
    layer: str = ""  # its path
    takes: fx.Node | None = None  # the layer's input

    @property
    def gives(self) -> fx.Node:
        """The node whose value the line computes."""
        return self.nodes[-1]

    @property
    def inputs(self) -> list[fx.Node]:
        """What the line reads."""
        return [self.takes] if self.takes else self.gives.all_input_nodes


@dataclass
class Script:
    """The lines of a network in their order."""

    image: fx.Node
    result: fx.Node
    tensors: dict[fx.Node, str]  # parameters and buffers: their names in the file of weights
    constants: dict[fx.Node, tuple[str, str]]  # tensors that are in no file: a name, and their text
    users: dict[fx.Node, list[fx.Node]]  # of every node that matters
    lines: list[Line]
    inlined: set[fx.Node]  # the nodes that have no line, but are written where they are used
    visited: set[str]  # the paths of all modules that anything is computed in
    ends: dict[fx.Node, fx.Node] = field(default_factory=dict)  # what its line computes, by every node of a line

    @classmethod
    def of(cls, program: torch.export.ExportedProgram, tree: Tree) -> Script:
        """Read a program with one input and one output; modules that are not called as layers leave `tree.layers`.

        Raises Unspelled for programs that do more, or hold a large constant.
        """
        nodes = {node.name: node for node in program.graph.nodes}
        outputs = program.graph_signature.output_specs
        if [spec.kind for spec in outputs] != [OutputKind.USER_OUTPUT]:
            raise Unspelled("it does more than return one tensor")
        result = nodes[outputs[0].arg.name]
        users = _users(program.graph, result)
        images: list[fx.Node] = []
        tensors: dict[fx.Node, str] = {}
        constants: dict[fx.Node, tuple[str, str]] = {}
        for spec in program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                images.append(node)
            elif spec.target in tree.homes:
                tensors[node] = tree.homes[spec.target]
            elif node in users:
                constants[node] = (f"constant{len(constants)}", _constant(program.constants[str(spec.target)]))
        if len(images) != 1:
            raise Unspelled(f"it has {len(images)} inputs")
        script = cls(images[0], result, tensors, constants, users, [], set(), set())
        while misfit := script._group(tree):
            del tree.layers[misfit]
        return script

    @property
    def called(self) -> set[str]:
        """The paths of the layers that are called."""
        return {line.layer for line in self.lines if line.layer}

    def is_batch(self, node: fx.Node) -> bool:
        """Whether a node is the number of images."""
        return _is_count(node) and str(node.meta["val"]) == str(self.image.meta["val"].shape[0])

    def readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """What the lines compute that read a node, directly or in what is written there; once for each reading."""
        queue = list(self.users.get(node, ()))
        while queue:
            user = queue.pop()
            if user not in self.inlined:
                yield self.ends.get(user, user)
            elif not self.is_batch(user):
                queue += self.users[user]

    def _group(self, tree: Tree) -> str | None:
        """Gather nodes into lines. Returns a layer whose nodes are no call with one tensor, for one tensor."""
        self.lines, calls, last = [], set(), None
        for node in self.users:
            if node.op != "call_function" or _is_count(node):
                continue
            stack = _calls(node)
            self.visited.update(path for path, _ in stack)
            path, call = next(((path, call) for path, call in stack if path in tree.layers), ("", ""))
            if not path and (linear := self._linear(node, tree)):
                self.lines.append(Line([node], linear, node.all_input_nodes[0]))
            elif path and call == last:
                self.lines[-1].nodes.append(node)
            elif path and call in calls:
                return path
            else:
                calls.add(call)
                self.lines.append(Line([node], path))
            last = call
        return next((s.layer for s in self.lines if s.layer and not s.takes and not self._is_call(s)), None)

    def _linear(self, node: fx.Node, tree: Tree) -> str | None:
        """The path of the linear layer whose tensors F.linear is given: attention does so."""
        if node.target != torch.ops.aten.linear.default:
            return None
        own = [self.tensors.get(n, "") for n in node.all_input_nodes[1:]]
        path = own[0].removesuffix(".weight")
        fits = path in tree.layers and own == [
            f"{path}.{name}" for name in tree.network.get_submodule(path).state_dict()
        ]
        return path if fits else None

    def _is_call(self, line: Line) -> bool:
        inside = set(line.nodes)
        read = {n for node in line.nodes for n in node.all_input_nodes if n not in inside and not _is_count(n)}
        taken = [n for n in read if not self.tensors.get(n, "").startswith(f"{line.layer}.")]
        given = [n for n in line.nodes if n is self.result or any(user not in inside for user in self.users[n])]
        if len(taken) != 1 or given != [line.gives]:
            return False
        line.takes = taken[0]
        return True

    def inline(self, tree: Tree, long: Collection[fx.Node]) -> Script:
        """Choose what is written where it is used: numbers, items, views with one user, and chains, but none that end
        in the `long` lines, or in attention, whose call names its input three times.
        """
        self.inlined = {node for node in self.users if node.op == "call_function" and _is_count(node)}
        lines = self.lines
        for line in lines:
            node = line.gives
            item = getattr(node.target, "__name__", "") == "getitem"
            if not line.layer and (item or passes(node) or (is_index(node) and len(self.users[node]) == 1)):
                self.inlined.add(node)
        lines = [line for line in lines if line.gives not in self.inlined]
        self.ends = {node: line.gives for line in lines for node in line.nodes}
        chain, short = 1, set()
        for line, following in pairwise(lines):
            only = (
                not line.layer
                and not tree.is_attention(following.layer)
                and not is_mutable(line.gives)
                and line.gives is not self.result
            )
            only = only and following.gives not in long and list(self.readers(line.gives)) == [following.gives]
            chain = chain + 1 if only and chain < _LONGEST_CHAIN else 1
            if chain > 1:
                short.add(line.gives)
        self.inlined |= short
        return replace(self, lines=[line for line in lines if line.gives not in short])


def _users(graph: fx.Graph, result: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """The users of every node that matters for the result, in the order of the graph."""
    matters = {result}
    for node in reversed(graph.nodes):
        if node.op == "call_function" and is_mutable(node):
            matters.add(node)
        if node in matters:
            if node.op not in ("placeholder", "call_function"):
                raise Unspelled("it holds a graph within its graph")
            matters.update(node.all_input_nodes)
    return {node: [user for user in node.users if user in matters] for node in graph.nodes if node in matters}


def _calls(node: fx.Node) -> list[tuple[str, str]]:
    """The modules that a node is in, outermost first: paths and calls; `relu@1` is the second call of `relu`."""
    calls = [call for call, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [(".".join(name.partition("@")[0] for name in call.split(".")), call) for call in calls]


def _is_count(node: fx.Node) -> bool:
    """Whether a node is a whole number: the batch, or a product of it."""
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def _constant(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype in (torch.float32, torch.int64, torch.bool) else f", dtype={literal(tensor.dtype)}"
    numbers = tensor.detach().cpu()
    if numbers.dim() and numbers.numel() and bool((numbers == numbers.flatten()[0]).all()):
        return f"torch.full({literal(tuple(numbers.shape))}, {literal(numbers.flatten()[0].item())}{dtype})"
    if numbers.numel() > _MOST_NUMBERS:
        raise Unspelled(f"it holds a constant of {numbers.numel():,} numbers that is not among its weights")
    return f"torch.tensor({literal(numbers.tolist())}{dtype})"
