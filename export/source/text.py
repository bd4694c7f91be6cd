"""The network as a file of plain torch that people read: model.py, beside its weights.

The exported program says what is computed, and of every operator in which module; the modules say how they were built.
What happens in a layer of torch.nn, or in a Sequential of such, becomes a call of that layer under its own name; every
other operator is spelled out. No code of the original is needed or copied, and of its text nothing but names gets into
the file, each checked to be one or quoted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, count
from typing import Any

import torch
from torch import fx, nn

from compress.export.source.layers import Tree
from compress.export.source.spelling import augmented, index, is_index, is_name, literal, passes, spell, tuple_of
from compress.export.source.steps import Flow

FILE = "model.py"
_WIDTH = 120
_GROUP = '''\
class Group(nn.Module):
    """Layers and tensors under their names, computing nothing by themselves."""

    def __init__(self, /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)


'''


def spell_out(
    program: torch.export.ExportedProgram, network: nn.Module, kept: Collection[str], preprocessing: Mapping[str, Any]
) -> str:
    """Return the text of model.py.

    `program` is the export of `network` in evaluation mode with a free batch, the module stacks still on its nodes;
    `kept` are the names of the tensors in model.safetensors. Equal networks give equal text.

    Raises Unspelled, with a sentence about the network, where it cannot be written so.
    """
    tree = Tree.of(network, kept)
    flow = Flow.of(program, tree)
    parts = tree.parts(flow.called)
    forward, long = _forward(tree, flow.inline(tree, ())), set[fx.Node]()
    while found := {node for node, line in forward if len(line) > _WIDTH - 8} - long:
        long |= found
        forward = _forward(tree, flow.inline(tree, long))
    listed = "" in tree.lists  # the network itself is a list of layers
    body = "\n".join(
        [
            f"class Model(nn.{'Sequential' if listed else 'Module'}):",
            '    """The network: images [N, C, H, W] to logits [N, classes]."""',
            "",
            "    def __init__(self) -> None:",
            *chain.from_iterable(wrap(line, 8) for line in _init(parts, tree, flow)),
            "",
            "    def forward(self, x: Tensor) -> Tensor:",
            '        """Return the logits."""',
            *chain.from_iterable(wrap(line, 8) for _, line in forward),
        ]
    )
    body = (_GROUP if "Group(" in body else "") + body
    text = _head(network, flow, preprocessing, body) + body + _tail(preprocessing)
    compile(text, FILE, "exec")
    return text


def wrap(line: str, indent: int) -> list[str]:
    """Break a line of code that is too long at its brackets, outermost first; what has none stays long."""
    space = " " * indent
    if len(line) + indent <= _WIDTH:
        return [space + line]
    pairs = _brackets(line)
    closing = max((close for _, close in pairs if line[close + 1 :] in ("", ",")), default=None)
    if closing is None:
        return [space + line]
    opening = next(start for start, close in pairs if close == closing)
    inside, rest = line[opening + 1 : closing], line[closing:]
    items = _items(inside)
    if len(inside) + indent + 4 <= _WIDTH or len(items) == 1:
        broken = wrap(inside, indent + 4)
    else:
        broken = [part for item in items for part in wrap(f"{item},", indent + 4)]
    return [space + line[: opening + 1], *broken, space + rest]


def _brackets(line: str) -> list[tuple[int, int]]:
    """The places of outermost brackets, in pairs."""
    pairs, stack, quote = [], [], ""
    for at, char in enumerate(line):
        if quote:
            quote = "" if char == quote and line[at - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            stack.append(at)
        elif char in ")]}":
            start = stack.pop()
            if not stack:
                pairs.append((start, at))
    return pairs


def _items(inside: str) -> list[str]:
    """Split at the commas outside of brackets."""
    hidden = {at for start, end in _brackets(inside) for at in range(start, end)}
    cuts = [at for at, char in enumerate(inside) if char == "," and at not in hidden]
    return [inside[a:b].strip() for a, b in zip([0, *(c + 1 for c in cuts)], [*cuts, len(inside)], strict=True)]


def _init(parts: Mapping[str, str], tree: Tree, flow: Flow) -> Iterator[str]:
    listed = "" in tree.lists
    yield f"super().__init__({', '.join(parts.values()) if listed else ''})"
    for name, text in () if listed else parts.items():
        if name in tree.network._buffers:
            yield f"self.register_buffer({literal(name)}, {text})"
        else:
            yield f"self.{name} = {text}" if is_name(name) else f"setattr(self, {literal(name)}, {text})"
    for name, text in flow.constants.values():
        yield f"self.register_buffer({literal(name)}, {text}, persistent=False)"
    for name in tree.frozen():
        yield f"{tree.access(name)}.requires_grad = False"


def _forward(tree: Tree, flow: Flow) -> list[tuple[fx.Node, str]]:
    """The lines of forward(), with what they compute.

    A value has a name from its line to its last reader; there the result may take it over.
    """
    names: dict[fx.Node, str] = {flow.image: "x"}
    order = {step.gives: at for at, step in enumerate(flow.steps)}
    last = {node: max((order.get(end, len(order)) for end in flow.readers(node)), default=-1) for node in flow.users}
    last[flow.result] = len(order)
    headers = set()

    def say(value: Any) -> str:
        if isinstance(value, fx.Node):
            return say_node(value)
        if isinstance(value, list | tuple):
            texts = [say(item) for item in value]
            tensors = any(isinstance(item, fx.Node) and isinstance(item.meta["val"], torch.Tensor) for item in value)
            return f"[{', '.join(texts)}]" if tensors else tuple_of(texts)
        if isinstance(value, torch.device):
            headers.add("device = x.device")
            return "device"
        return literal(value)

    def say_node(node: fx.Node) -> str:
        if node in flow.tensors:
            return tree.access(flow.tensors[node])
        if node in flow.constants:
            return f"self.{flow.constants[node][0]}"
        if node in names:
            return names[node]
        if flow.is_batch(node):
            headers.add("n = len(x)")
            return "n"
        if passes(node):
            return say(node.args[0])
        if is_index(node):
            taken = [node]
            while isinstance(inner := taken[0].args[0], fx.Node) and inner in flow.inlined and is_index(inner):
                taken.insert(0, inner)
            return index(taken, say)
        return spell(node, say)

    def read(inputs: Iterable[fx.Node]) -> Iterator[fx.Node]:
        for node in inputs:
            if node in names:
                yield node
            elif node in flow.inlined and not flow.is_batch(node):
                yield from read(node.all_input_nodes)

    lines: list[tuple[fx.Node, str]] = []
    for at, step in enumerate(flow.steps):
        node = step.gives
        text = tree.call(step.layer, say(step.takes)) if step.layer else say_node(node)
        if node is flow.result and at == len(flow.steps) - 1:
            lines.append((node, f"return {text}"))
            break
        sides = None if step.layer else augmented(node, say)
        dying = [names[n] for n in read(step.inputs) if last[n] == at]
        names = {n: name for n, name in names.items() if last[n] > at}
        if last[node] < 0:
            lines.append((node, text))
            continue
        free = (name for name in chain("xyz", (f"y{n}" for n in count(1))) if name not in names.values())
        names[node] = name = "x" if "x" in dying else next(iter(dying), None) or next(free)
        lines.append((node, f"{name} {sides[1]}" if sides and sides[0] == name else f"{name} = {text}"))
    else:
        lines.append((flow.result, f"return {say(flow.result)}"))
    return [(flow.image, line) for line in sorted(headers)] + lines


def _head(network: nn.Module, flow: Flow, preprocessing: Mapping[str, Any], body: str) -> str:
    numbers = sum(p.numel() for p in network.parameters())
    lines = [
        f'"""A compact network of {numbers:,} parameters in plain torch; its weights are in model.safetensors.',
        "",
        "    from model import load",
        "",
        "    model = load()",
        "",
        f"It takes float32 images {_shape(preprocessing)}: pixels in [0, 1], less the mean, over the deviation,",
        "",
        f"    mean = {literal(tuple(preprocessing['mean']))}",
        f"    std = {literal(tuple(preprocessing['std']))}",
        "",
        "It can be trained further: after `model.train()`, batch norm and dropout work as in the original. Anything",
        f"else that the original does in training only is not here{_lost(network, flow)}.",
        '"""',
        "",
        *(["from collections import OrderedDict"] if "OrderedDict(" in body else []),
        "from pathlib import Path",
        "",
        "import torch",
        *(["import torch.nn.functional as F"] if "F." in body else []),
        "from safetensors.torch import load_file",
        "from torch import Tensor, nn",
        "",
        'WEIGHTS = Path(__file__).with_name("model.safetensors")',
        "",
        "",
    ]
    return "\n".join(lines) + "\n"


def _lost(network: nn.Module, flow: Flow) -> str:
    """Name the modules that leave no trace in evaluation mode, though they may do something in training."""
    names = {
        type(module).__name__
        for path, module in network.named_modules()
        if path not in flow.visited and not module._modules and not module.state_dict()
    }
    names = {name for name in names if is_name(name) and not hasattr(nn, name)}
    return f": {', '.join(sorted(names))}" if names else ""


def _shape(preprocessing: Mapping[str, Any]) -> str:
    return f"[N, {', '.join(str(int(size)) for size in preprocessing['shape'])}]"


def _tail(preprocessing: Mapping[str, Any]) -> str:
    shape = ", ".join(str(int(size)) for size in preprocessing["shape"])
    return f'''


def load(path: str | Path = WEIGHTS) -> Model:
    """Return the network with its weights, in evaluation mode, on the CPU."""
    model = Model()
    model.load_state_dict(load_file(path))
    return model.eval()


if __name__ == "__main__":
    with torch.inference_mode():
        print(list(load()(torch.zeros(1, {shape})).shape))
'''
