"""The network as a file of plain torch that people read: model.py, beside its weights.

The exported program says what is computed, and of every operator in which module; the modules say how they were built.
What happens in a layer of torch.nn, or in a Sequential of such, becomes a call of that layer under its own name; every
other operator is spelled out. No code of the original is needed or copied, and of its text nothing but names gets into
the file, each checked to be one or quoted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from compress.export.source.forward import forward
from compress.export.source.layers import Tree
from compress.export.source.script import Script
from compress.export.source.spelling import is_name, literal

SOURCE = "model.py"
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
    script = Script.of(program, tree)
    parts = tree.parts(script.called)
    body, long = forward(tree, script.inline(tree, ())), set[fx.Node]()
    while longer := {node for node, line in body if len(line) > _WIDTH - 8} - long:
        long |= longer
        body = forward(tree, script.inline(tree, long))
    listed = "" in tree.lists  # the network itself is a list of layers
    network_class = "\n".join(
        [
            f"class Model(nn.{'Sequential' if listed else 'Module'}):",
            f'    """The network: {_image_shape(preprocessing)} to logits [N, classes]."""',
            "",
            "    def __init__(self) -> None:",
            *chain.from_iterable(wrap(line, 8) for line in _init(parts, tree, script)),
            "",
            "    def forward(self, x: Tensor) -> Tensor:",
            '        """Return the logits."""',
            *chain.from_iterable(wrap(line, 8) for _, line in body),
        ]
    )
    classes = (_GROUP if "Group(" in network_class else "") + network_class
    text = _head(network, script, preprocessing, classes) + classes + _tail(preprocessing)
    compile(text, SOURCE, "exec")
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


def _init(parts: Mapping[str, str], tree: Tree, script: Script) -> Iterator[str]:
    listed = "" in tree.lists
    yield f"super().__init__({', '.join(parts.values()) if listed else ''})"
    for name, text in () if listed else parts.items():
        if name in tree.network._buffers:
            yield f"self.register_buffer({literal(name)}, {text})"
        else:
            yield f"self.{name} = {text}" if is_name(name) else f"setattr(self, {literal(name)}, {text})"
    for name, text in script.constants.values():
        yield f"self.register_buffer({literal(name)}, {text}, persistent=False)"
    for name in tree.frozen():
        yield f"{tree.access(name)}.requires_grad = False"


def _head(network: nn.Module, script: Script, preprocessing: Mapping[str, Any], body: str) -> str:
    numbers = sum(p.numel() for p in network.parameters())
    lines = [
        f'"""A compact network of {numbers:,} parameters in plain torch; its weights are in model.safetensors.',
        "",
        "    from model import load",
        "",
        "    model = load()",
        "",
        f"It takes float32 {'images' if preprocessing['range'] else 'arrays'} {_image_shape(preprocessing)}: "
        f"{_pixels(preprocessing)}less the mean, over the deviation,",
        "",
        f"    mean = {literal(tuple(preprocessing['mean']))}",
        f"    std = {literal(tuple(preprocessing['std']))}",
        "",
        "It can be trained further: after `model.train()`, batch norm and dropout work as in the original. Anything",
        f"else that the original does in training only is not here{_lost(network, script)}.",
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


def _lost(network: nn.Module, script: Script) -> str:
    """Name the modules that leave no trace in evaluation mode, though they may do something in training."""
    names = {
        type(module).__name__
        for path, module in network.named_modules()
        if path not in script.visited and not module._modules and not module.state_dict()
    }
    names = {name for name in names if is_name(name) and not hasattr(nn, name)}
    return f": {', '.join(sorted(names))}" if names else ""


def _pixels(preprocessing: Mapping[str, Any]) -> str:
    if not preprocessing["range"]:
        return ""
    colours = {"RGB": " of red, green and blue", "gray": " of gray"}.get(preprocessing.get("colours") or "", "")
    return f"pixels{colours} in [0, 1], "


def _image_shape(preprocessing: Mapping[str, Any]) -> str:
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
