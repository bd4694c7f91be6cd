"""How one operator of an exported program is written by hand: `F.relu(x)`, `x + y`, `x.mean((2, 3))`.

Torch's own schema of an operator names its arguments and defaults. Where plain torch has no name for an operator, it is
called as `torch.ops.aten.<name>.<overload>(...)`: no prettier, and exact.
"""

from __future__ import annotations

import inspect
import keyword
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

Say = Callable[[Any], str]  # the text of a value: a node by its name, a number as it is

_COUNTS: Mapping[Any, str] = {  # between whole numbers that depend on the batch
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@"}
_DROPOUTS = {"dropout": "dropout", "feature_dropout": "dropout2d", "alpha_dropout": "alpha_dropout"}
_FUNCTIONS = ("relu", "softmax", "log_softmax", "prelu")  # rather F.relu(x) than x.relu()
_VARIADIC = ("view", "reshape", "permute", "expand", "repeat")  # rather x.view(n, -1) than x.view((n, -1))
_SILENT = ("cudnn_enabled", "cudnn_enable", "pin_memory", "layout", "non_blocking")  # change no number


class Unspelled(Exception):
    """What stands in the way of writing a network down: a sentence about it."""


def literal(value: Any) -> str:
    """The text of a plain value, of a list as a tuple. Raises Unspelled for anything else."""
    if value is None or type(value) in (bool, int):
        return repr(value)
    if type(value) is str:
        text = repr(value)
        return f'"{text[1:-1]}"' if text.isascii() and not {'"', "\\"} & set(text) else ascii(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, list | tuple):
        return tuple_of([literal(item) for item in value])
    if isinstance(value, torch.dtype | torch.memory_format):
        return str(value)  # torch.float32
    raise Unspelled(f"it holds a {type(value).__name__}, which has no literal")


def tuple_of(texts: Sequence[str]) -> str:
    """The text of a tuple of these texts."""
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def is_name(text: str) -> bool:
    """Whether this can be written as an attribute or an argument's name."""
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def attribute(owner: str, name: str) -> str:
    """`owner.name`, however odd the name."""
    return f"{owner}.{name}" if is_name(name) else f"getattr({owner}, {literal(name)})"


def operand(value: Any, say: Say) -> str:
    """The text of a value as a part of a larger expression, in brackets where it needs them."""
    text = say(value)
    return f"({text})" if _is_loose(text) else text


def is_mutable(node: fx.Node) -> bool:
    """Whether a node changes one of its arguments in place."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def is_index(node: fx.Node) -> bool:
    """Whether a node is a slice, or one place of a dimension."""
    return node.target in (torch.ops.aten.slice.Tensor, torch.ops.aten.select.int)


def passes(node: fx.Node) -> bool:
    """Whether a node gives what it takes: the slice of everything, the dropout of nothing, a copy cut off its past."""
    if node.target == torch.ops.aten.slice.Tensor:
        return _subscript(node, literal) == ":"
    if node.target == torch.ops.aten.detach_.default:
        return _is_copy(node.args[0])
    return node.target == torch.ops.aten.dropout.default and bool(node.args[1] == 0.0)


def _is_copy(value: Any) -> bool:
    """Whether a value is torch.tensor(...) within forward(): a copy of a constant."""
    return isinstance(value, fx.Node) and value.target == torch.ops.aten.lift_fresh_copy.default


def index(chain: Sequence[fx.Node], say: Say) -> str:
    """Slices and selections, each taken of the one before, as one: `x[:, 0, ::2]`."""
    places: list[str] = []
    for node in chain:
        source, dim = node.args[0], given_to(node).get("dim", 0)
        assert isinstance(source, fx.Node)
        left = [at for at, place in enumerate(places) if ":" in place]  # the dimensions that the source has
        while len(left) <= dim % source.meta["val"].dim():
            left.append(len(places))
            places.append(":")
        at, place = left[dim % source.meta["val"].dim()], _subscript(node, say)
        if places[at] != ":" and place != ":":
            raise Unspelled("it slices one dimension twice in a row")
        places[at] = place if place != ":" else places[at]
    return f"{operand(chain[0].args[0], say)}[{', '.join(places)}]"


def _subscript(node: fx.Node, say: Say) -> str:
    given = {"start": None, "end": None, "step": 1} | given_to(node)
    if "index" in given:
        return say(given["index"])
    start = "" if given["start"] in (None, 0) else say(given["start"])
    end = "" if given["end"] in (None, torch.iinfo(torch.int64).max) else say(given["end"])
    return f"{start}:{end}" + ("" if given["step"] == 1 else f":{say(given['step'])}")


def given_to(node: fx.Node) -> dict[str, Any]:
    """The arguments by the names of the schema, without those that are at their defaults or change no number."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {
        argument.name: given[argument.name]
        for argument in schema.arguments
        if argument.name in given
        and argument.name not in _SILENT
        and not (argument.has_default_value() and _same(given[argument.name], argument.default_value))
    }


def augmented(node: fx.Node, say: Say) -> tuple[str, str] | None:
    """`x += y` as its two sides, for an operator that adds (or the like) in place; None for others."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name, given = node.target._schema.name.removeprefix("aten::"), given_to(node)
    if not name.endswith("_") or name[:-1] not in _INFIX or list(given) != ["self", "other"]:
        return None
    return say(given["self"]), f"{_INFIX[name[:-1]]}= {say(given['other'])}"


def spell(node: fx.Node, say: Say) -> str:
    """The expression of a node, its operands spelled by `say`. Raises Unspelled where torch has no such operator."""
    if node.target in _COUNTS:
        return f" {_COUNTS[node.target]} ".join(operand(value, say) for value in node.args)
    if node.target == torch.ops.aten.sym_size.int:
        return f"{operand(node.args[0], say)}.shape[{say(node.args[1])}]"
    if getattr(node.target, "__name__", "") == "getitem":
        return f"{operand(node.args[0], say)}[{say(node.args[1])}]"
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        raise Unspelled(f"torch alone does not have its operator {op}")
    name, given = op._schema.name.removeprefix("aten::"), given_to(node)
    values = list(given.values())
    if name in _INFIX and len(values) == 2 and list(given) in (["self", "other"], ["self", "tensor2"]):
        return f"{operand(values[0], say)} {_INFIX[name]} {operand(values[1], say)}"
    if _is_copy(node):
        return f"{operand(values[0], say)}.clone()"
    if name == "index":
        return f"{operand(values[0], say)}[{', '.join(':' if i is None else say(i) for i in values[1])}]"
    if name.removesuffix("_") in _DROPOUTS:
        training = "True" if given["train"] else "self.training"
        inplace = ", inplace=True" if name.endswith("_") else ""
        return f"F.{_DROPOUTS[name.removesuffix('_')]}({say(values[0])}, {say(given['p'])}, {training}{inplace})"
    return _spell_call(op, name, given, say)


def _spell_call(op: Any, name: str, given: Mapping[str, Any], say: Say) -> str:
    """A call of a method, of torch.nn.functional, of torch, or of the operator itself: the first that there is."""
    wanted = [argument for argument in op._schema.arguments if argument.name in given]
    texts = {argument.name: say(given[argument.name]) for argument in wanted}
    words = [f"{a.name}={texts[a.name]}" if a.has_default_value() or a.kwarg_only else texts[a.name] for a in wanted]
    plain = name.removesuffix("_")
    public = not name.startswith("_")
    of_one = bool(wanted) and isinstance(wanted[0].type, torch.TensorType)
    if (
        public
        and of_one
        and wanted[0].name in ("self", "input")
        and plain not in _FUNCTIONS
        and callable(getattr(Tensor, name, None))
    ):
        if name in _VARIADIC and len(wanted) == 2:
            words[1:] = [say(number) for number in given[wanted[1].name]]
        return f"{operand(given[wanted[0].name], say)}.{name}({', '.join(words[1:])})"
    function = getattr(functional, plain, None)
    if public and of_one and callable(function) and len(op._schema.returns) == 1:
        known = _parameters(function)
        if known is None and name == plain:
            return f"F.{name}({', '.join(words)})"
        rest = {a.name: texts[a.name] for a in wanted[1:]} | ({} if name == plain else {"inplace": "True"})
        if known and set(rest) <= known:
            if plain == "batch_norm" and not given["training"]:
                rest["training"] = "self.training"
            return f"F.{plain}({', '.join([words[0], *(f'{n}={text}' for n, text in rest.items())])})"
    if public and not of_one and callable(getattr(torch, name, None)):
        return f"torch.{name}({', '.join(words)})"
    return f"torch.ops.aten.{name}.{op._overloadname}({', '.join(words)})"


def _parameters(function: Callable[..., Any]) -> set[str] | None:
    """The names of a function's arguments; None for torch's own, which are those of the schema."""
    try:
        names = set(inspect.signature(function).parameters)
    except ValueError:
        return None
    return None if "args" in names else names


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, fx.Node):
        return False
    if isinstance(value, list | tuple):
        wanted = default if isinstance(default, list | tuple) else [default] * len(value)
        return not any(isinstance(v, fx.Node) for v in value) and list(value) == list(wanted)
    return type(value) is type(default) and bool(value == default)


def _is_loose(text: str) -> bool:
    """Whether an operator stands outside all brackets and quotes, as in `x + y` or `-1`."""
    depth, quote = 0, ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[at - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
            if depth == 0 and (char == " " or (at == 0 and char == "-")):
                return True
    return False
