"""The Python code of a network as a graph of calls, and what each call does to channels.

`torch.fx` writes the code down so that a concatenation can lose an input and everything else stays. Channels are known
by the call that made them, their *root*: a convolution makes a root, a concatenation lines roots up, and what works on
each channel alone (batch norm, ReLU, pooling) passes them on. What is not understood makes a root, and fixes those that
it reads: they stay.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from torch import Tensor, fx, nn

from compress.errors import UsageError, one_line
from compress.reading.count import WEIGHTED, macs, thop_terms
from compress.reading.ghost import countable, ghost
from compress.reading.inputs import Shape, blanks
from compress.reading.through import through
from compress.reading.trace import Recorder

_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # and the rank of their inputs


class _Tracer(fx.Tracer):
    """Writes down what is called with the model's inputs alone: what has a default keeps it."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        called, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for at, given in enumerate(args):
            if isinstance(given, fx.Proxy) and given.node.args:
                args[at] = given.node.args[0]
                self.graph.erase_node(given.node)
        return called, args


def traced(model: nn.Module) -> fx.GraphModule:
    """The model as a graph of calls, on the same modules under the same names.

    Functional dropout follows `training` as before. Raises UsageError where the code depends on values.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        evaluating, training = (_Tracer().trace(model.train(mode)) for mode in (False, True))
        _follow_training(evaluating, training)
    except Exception as error:
        raise UsageError(
            f"the model's connections cannot be read ({one_line(error)}); forward() must be a fixed sequence of calls, "
            "the same in training, for torch.fx to trace it"
        ) from None
    finally:
        for module, flag in flags.items():
            module.training = flag
    for node in evaluating.nodes:
        node.meta.clear()
    return fx.GraphModule(model, evaluating, class_name="Rewired")


def _follow_training(evaluating: fx.Graph, training: fx.Graph) -> None:
    """Where the code said `self.training`, tracing wrote False or True down; let it be asked for again."""
    nodes, others = list(evaluating.nodes), list(training.nodes)
    if [(node.op, node.target) for node in nodes] != [(node.op, node.target) for node in others]:
        raise ValueError("forward() makes other calls in training than in evaluation")
    twin = dict(zip(nodes, others, strict=True))
    asked: fx.Node | None = None
    for node in nodes:
        one, two = _leaves(node), _leaves(twin[node])
        same = [twin[a] is b if isinstance(a, fx.Node) else a is b or a == b for a, b in zip(one, two, strict=False)]
        if len(one) != len(two) or any((one[at], two[at]) != (False, True) for at, ok in enumerate(same) if not ok):
            raise ValueError("forward() passes other values in training than in evaluation")
        if not all(same):
            if asked is None:
                with evaluating.inserting_before(nodes[0]):
                    asked = evaluating.create_node("get_attr", "training")
            twin[asked] = asked
            _give(node, iter([leaf if ok else asked for leaf, ok in zip(one, same, strict=True)]))


def _leaves(node: fx.Node) -> list[Any]:
    """Everything that a call is given, in order."""
    leaves: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), leaves.append)
    return leaves


def _give(node: fx.Node, leaves: Iterator[Any]) -> None:
    """Call it with these instead."""
    node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda _: next(leaves))


class _Probe(fx.Interpreter):
    """A pass over tensors without numbers: the shape of every value, the MACs and thop's total of every call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.counts: dict[str, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        with Recorder([n.name]) as recorder:
            out = super().run_node(n)
        total, thop = sum(macs(call) or 0 for call in recorder.calls), 0
        if isinstance(out, Tensor):
            self.shapes[n.name] = tuple(out.shape)
            if n.op == "call_module" and isinstance(x := self.fetch_args_kwargs_from_env(n)[0][0], Tensor):
                module = self.fetch_attr(str(n.target))
                thop = total if type(module) in WEIGHTED else 0
                thop += sum(factor * tensor.numel() for factor, tensor in thop_terms(module, x, out))
        self.counts[n.name] = (total, thop)
        return out


def probed(net: fx.GraphModule, shape: Shape) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, int]]]:
    """By the name of every call the shape of its value, and its MACs and thop's total, for one input of this shape."""
    probe = _Probe(ghost(net))
    try:
        with countable():
            probe.run(*blanks(net, shape))
    except Exception as error:
        raise UsageError(
            f"the model's connections cannot be read with inputs of {shape} ({one_line(error)})"
        ) from error
    return probe.shapes, probe.counts


class Calls:
    """A network's calls, with what is known about its channels; `shapes` are those of the values, where known."""

    def __init__(self, net: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.net = net
        self.shapes = shapes
        self.layouts: dict[fx.Node, tuple[fx.Node, ...]] = {}  # the roots of its channels, in order
        self.fixed: dict[fx.Node, str] = {}  # roots that cannot go, and why
        self.used = Counter(id(tensor) for node in net.graph.nodes for tensor in self.tensors(node))
        self._through: dict[fx.Node, Mapping[str, int] | None] = {}
        self._tries: dict[Any, Mapping[str, int] | None] = {}
        self._called = Counter(id(self.module(node)) for node in net.graph.nodes if node.op == "call_module")
        for node in net.graph.nodes:
            self.layouts[node] = self._walk(node)

    # what a call is

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.net.get_submodule(str(node.target))

    def tensors(self, node: fx.Node) -> list[nn.Parameter]:
        """The parameters that a call reads."""
        if node.op == "call_module":
            return list(self.module(node).parameters())
        own = self._value(node)
        return [own] if isinstance(own, nn.Parameter) else []

    def columns(self, node: fx.Node) -> list[tuple[fx.Node, int]]:
        """Whose channels a module works on one by one, and how many of each, in order; nothing for other calls."""
        if node.op != "call_module" or not (self.is_reader(node) or self.is_through(node)):
            return []
        before = node.all_input_nodes[0]
        run = self.run(before)
        return [(root, run * self.width(root)) for root in self.layouts[before]]

    def name(self, root: fx.Node) -> str:
        """What a root is called: by its module, or by its call behind the nearest one."""
        return self._roots_by_name[1][root]

    def root(self, name: str) -> fx.Node | None:
        """The root of this name."""
        return self._roots_by_name[0].get(name)

    def elements(self, node: fx.Node) -> list[fx.Node]:
        """What a concatenation of channels lines up; nothing for other calls."""
        if node.op != "call_function" or _called(node) not in ("cat", "concat", "concatenate"):
            return []
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if dim not in (1, 1 - self._rank) or not isinstance(tensors, list | tuple):
            return []
        lined_up = [each for each in tensors if isinstance(each, fx.Node)]
        return lined_up if len(lined_up) == len(tensors) else []

    def pieces(self, node: fx.Node) -> Iterator[fx.Node]:
        """The elements of a concatenation, those of concatenations in it one by one; else the node itself."""
        if not (elements := self.elements(node)):
            yield node
        for element in elements:
            yield from self.pieces(element)

    def is_reader(self, node: fx.Node) -> bool:
        """Whether a node multiplies each channel by columns of its own."""
        if node.op != "call_module" or not self._once(node):
            return False
        module = self.module(node)
        if type(module) is nn.Linear:
            return self.shapes is None or len(self.shapes.get(node.all_input_nodes[0].name, ())) == 2
        return type(module) in _CONVOLUTIONS and getattr(module, "groups", 0) == 1

    def is_through(self, node: fx.Node) -> bool:
        """Whether a node works on each channel of its one input by itself and gives them back in the same order."""
        axes = self._axes_through(node)
        return axes is not None and (not axes or self._once(node))

    def axes(self, node: fx.Node) -> Mapping[str, int]:
        """The axis along which each tensor of a module holds what it has for each of the channels that it is given."""
        return {"weight": 1} if self.is_reader(node) else self._axes_through(node) or {}

    def _axes_through(self, node: fx.Node) -> Mapping[str, int] | None:
        """What `through` says of a call; where its input's shape is not known, that may be a picture or a vector."""
        if node not in self._through:
            self._through[node] = None
            if node.op in ("call_module", "call_function", "call_method") and len(given := self._read(node)) == 1:
                ranks = (self._rank, 2) if self.shapes is None else (len(self.shapes.get(given[0].name, ())),)
                tried = (self._tried(node, given[0], rank) for rank in ranks if rank >= 2)
                self._through[node] = next((axes for axes in tried if axes is not None), None)
        return self._through[node]

    def _tried(self, node: fx.Node, source: fx.Node, rank: int) -> Mapping[str, int] | None:
        """The same for an input of this rank, all else as in evaluation; equal calls are tried once."""
        others = {each: self._value(each) for each in node.all_input_nodes if each is not source}
        if any(isinstance(value, Tensor) for value in others.values()):
            return None  # a tensor that no module has could not be narrowed
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: others.get(each, _Source))
        call: nn.Module | Callable[[Tensor], Any]
        key: Any
        if node.op == "call_module":
            if args != (_Source,) or kwargs:
                return None
            call = module = self.module(node)
            plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
            tensors = [(name, each.shape, each.dtype) for name, each in module.state_dict().items()]
            key = type(module), repr(plain), repr(tensors), rank
        else:
            call, key = partial(_run, node, source, others), (node.op, node.target, repr((args, kwargs)), rank)
        if key not in self._tries:
            self._tries[key] = through(call, rank)
        return self._tries[key]

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """The activations that a call reads."""
        return [each for each in node.all_input_nodes if each.op != "get_attr" and not self._is_batch(each)]

    def _value(self, node: fx.Node) -> Any:
        """What a call is given beside activations: a tensor of the network, whether it is training, or the batch."""
        value: Any = self.net
        if node.op != "get_attr":
            return 1
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return False if isinstance(value, bool) else value

    def _is_batch(self, node: fx.Node) -> bool:
        """Whether a node is the number of images."""
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            return self.is_size(node.args[0]) and node.args[1:] == (0,)
        return node.op == "call_method" and self.is_size(node)

    def is_size(self, node: fx.Node) -> bool:
        """Whether a node asks for nothing but the number of images."""
        name, rest = _called(node), node.args[1:]
        if node.op == "call_method" and name == "size":
            return rest == (0,)
        takes = all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
        return node.op == "call_function" and name == "getattr" and rest == ("shape",) and takes

    def in_place(self, node: fx.Node) -> bool:
        """Whether a node writes over its input."""
        if node.op == "call_module":
            return bool(getattr(self.module(node), "inplace", False))
        called = node.op in ("call_function", "call_method")
        flagged = node.kwargs.get("inplace", False) or any(arg is True for arg in node.args[1:])
        return called and (bool(flagged) or (_called(node).endswith("_") and not _called(node).endswith("__")))

    # how channels flow

    def _walk(self, node: fx.Node) -> tuple[fx.Node, ...]:
        inputs = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if elements := self.elements(node):
            layout = tuple(root for element in elements for root in self.layouts[element])
            if self._fits(node, layout) and all(self.run(element) == 1 for element in elements):
                return layout
        elif self.is_reader(node) or self.is_size(node):
            return (node,)
        elif self.is_through(node):
            (first,) = self._read(node)
            layout = self.layouts[first]
            if self._fits(node, layout) and not any(self.tangled(each) for each in (first, node)):
                return layout
        for each in inputs:
            for root in self.layouts[each]:
                what = "the model's output" if node.op == "output" else self.call(node)
                self.fixed.setdefault(root, f"{what} takes it as a whole")
        return (node,)

    def run(self, node: fx.Node) -> int:
        """How many indices in a row stand for each channel: more than one behind a flatten; 1 if shapes are unknown."""
        width = sum(self.width(root) for root in self.layouts[node])
        return self._wide(node) // width if self.shapes is not None and width else 1

    def width(self, root: fx.Node) -> int:
        """The channels that a root makes; 0 where shapes are unknown or it makes none."""
        return self._wide(root)

    def _wide(self, node: fx.Node) -> int:
        shape = (self.shapes or {}).get(node.name, ())
        return shape[1] if len(shape) > 1 else 0

    def _fits(self, node: fx.Node, layout: tuple[fx.Node, ...]) -> bool:
        """Whether the shape is what the layout says: not where a view moves channels."""
        if self.shapes is None:
            return True
        width = sum(self.width(root) for root in layout)
        return width > 0 and self._wide(node) % width == 0 and all(self.width(root) for root in layout)

    def tangled(self, node: fx.Node) -> bool:
        """Whether one call writes over a value that others read too."""
        return len(node.users) > 1 and any(self.in_place(user) and user.args[0] is node for user in node.users)

    def _once(self, node: fx.Node) -> bool:
        """Whether a module is one layer, called here only, and nobody else has its tensors."""
        module = self.module(node)
        alone = self._called[id(module)] == 1 and all(self.used[id(tensor)] == 1 for tensor in module.parameters())
        return alone and next(module.children(), None) is None

    @cached_property
    def _rank(self) -> int:
        """The dimensions of images [N, C, ...], by the kind of convolution."""
        modules = [self.module(node) for node in self.net.graph.nodes if node.op == "call_module"]
        ranks = {_CONVOLUTIONS[type(module)] for module in modules if type(module) in _CONVOLUTIONS}
        return ranks.pop() if len(ranks) == 1 else 4

    @cached_property
    def _roots_by_name(self) -> tuple[dict[str, fx.Node], dict[fx.Node, str]]:
        names: dict[str, fx.Node] = {}
        for root in dict.fromkeys(root for layout in self.layouts.values() for root in layout):
            base = name = self.call(root)
            copy = 2
            while name in names:
                name, copy = f"{base}#{copy}", copy + 1
            names[name] = root
        return names, {root: name for name, root in names.items()}

    def call(self, node: fx.Node) -> str:
        """A module's name, or a function's behind the nearest module before it: as long as that stays, so does this."""
        if node.op in ("call_module", "placeholder", "output") or not node.all_input_nodes:
            return str(node.target)
        return f"{self.call(node.all_input_nodes[0])}:{_called(node)}"


class _Source:
    """Stands for what a call reads, where calls are compared."""


def _run(node: fx.Node, source: fx.Node, others: Mapping[fx.Node, Any], x: Tensor) -> Any:
    """A call of a function or method on another input."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: x if each is source else others[each])
    called: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
    return called(*(args[1:] if node.op == "call_method" else args), **kwargs)


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
