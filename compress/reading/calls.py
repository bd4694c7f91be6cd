"""The Python code of a network as a graph of calls, and what each call does to channels.

`torch.fx` writes the code down so that a concatenation can lose an input and everything else stays. Channels are known
by the call that made them, their *root*: a convolution makes a root, a concatenation lines roots up, and what works on
each channel alone (batch norm, ReLU, pooling) passes them on. What is not understood makes a root, and fixes those that
it reads: they stay.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UsageError, one_line
from compress.reading import operators
from compress.reading.count import WEIGHTED, thop_terms
from compress.reading.ghost import countable, ghost
from compress.reading.inputs import Shape, blanks

_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # and the rank of their inputs
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
          nn.InstanceNorm3d)  # fmt: skip
_ALONE = {  # modules that work on each channel by itself and hold no tensors
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample,
}  # fmt: skip
_CALLS = {  # the same as functions and methods
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "clone",
    "interpolate", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
}  # fmt: skip


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
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return found


def _give(node: fx.Node, leaves: Iterator[Any]) -> None:
    """Call it with these instead."""
    node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda _: next(leaves))


class _Macs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiply-accumulates of the operators that run."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := operators.MACS.get(str(func.overloadpacket))) is not None:
            self.total += count(args, out)
        return out


class _Probe(fx.Interpreter):
    """A pass over tensors without numbers: the shape of every value, the MACs and thop's total of every call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.counts: dict[str, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        counter = _Macs()  # type: ignore[no-untyped-call]
        with counter:
            out = super().run_node(n)
        thop = 0
        if isinstance(out, Tensor):
            self.shapes[n.name] = tuple(out.shape)
            if n.op == "call_module" and isinstance(x := self.fetch_args_kwargs_from_env(n)[0][0], Tensor):
                module = self.fetch_attr(str(n.target))
                thop = counter.total if type(module) in WEIGHTED else 0
                thop += sum(factor * tensor.numel() for factor, tensor in thop_terms(module, x, out))
        self.counts[n.name] = (counter.total, thop)
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
        found: Any = self.net
        for name in str(node.target).split(".") if node.op == "get_attr" else ():
            found = getattr(found, name)
        return [found] if isinstance(found, nn.Parameter) else []

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
        found = [each for each in tensors if isinstance(each, fx.Node)]
        return found if len(found) == len(tensors) else []

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
        if node.op == "call_module":
            module = self.module(node)
            if getattr(module, "return_indices", False):
                return False
            if isinstance(module, nn.PReLU):
                return self._once(node) and module.weight.numel() > 1
            if type(module) is nn.Flatten:
                return [module.start_dim, module.end_dim] == [1, -1]
            return type(module) in _ALONE or (type(module) in _NORMS and self._once(node))
        if node.op not in ("call_function", "call_method") or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        name, rest = _called(node), node.args[1:]
        if name == "flatten":
            return [*rest, *node.kwargs.values()] in ([1], [1, -1])
        if name in ("view", "reshape"):
            return len(rest) == 2 and isinstance(rest[1], int) and rest[1] == -1
        if name == "mean":
            dims = rest[0] if rest else node.kwargs.get("dim")
            dims = list(dims) if isinstance(dims, list | tuple) else [dims]
            return sorted(d % self._rank if isinstance(d, int) else -1 for d in dims) == list(range(2, self._rank))
        return name in _CALLS and not node.kwargs.get("return_indices", False)

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
        elif self.is_through(node):
            first = inputs[0]
            layout = self.layouts[first]
            if self._fits(node, layout) and not any(self.tangled(each) for each in (first, node)):
                return layout
        elif self.is_reader(node) or self.is_size(node):
            return (node,)
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


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
