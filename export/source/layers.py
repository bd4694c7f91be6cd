"""The modules of a network as the constructors that build them again: torch.nn's layers under their own names."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from compress.export.source.spelling import Unspelled, attribute, is_name, literal

_ONE_FOR_ALL = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")  # (3, 3) is 3
_HELD_AS = {"bias": "in_proj_bias", "add_bias_kv": "bias_k"}  # by an attention layer
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Tree:
    """A network's modules, and which of them are plain: layers of torch.nn, or a Sequential of such, that can be built
    again and called.
    """

    network: nn.Module
    homes: Mapping[str, str]  # by every name of a tensor, the one that the file of weights has: tied tensors have one
    layers: dict[str, str] = field(default_factory=dict)  # the constructor, by the path of a plain module
    lists: set[str] = field(default_factory=set)  # the paths whose children are reached by number

    @classmethod
    def of(cls, network: nn.Module, kept: Collection[str]) -> Tree:
        """Find the plain modules; `kept` names the tensors in the file of weights, of tied ones the first."""
        state = network.state_dict(keep_vars=True)
        places = {_identity(name, state[name]): name for name in kept}
        tree = cls(network, {name: places[_identity(name, tensor)] for name, tensor in state.items()})
        for path, module in reversed(list(network.named_modules(remove_duplicate=False))):  # children first
            if path and (text := tree._layer(path, module)):
                tree.layers[path] = text
        return tree

    def _layer(self, path: str, module: nn.Module) -> str | None:
        if any(self.homes.get(f"{path}.{name}") != f"{path}.{name}" for name in module.state_dict()):
            return None
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
            return None
        if not _is_sequential(module):
            return _constructor(module)
        texts = {name: self.layers.get(f"{path}.{name}") for name in module._modules}
        if module._parameters or module._buffers or not texts:
            return None
        arguments = [text if is_numbered(texts) else f"{name}={text}" for name, text in texts.items() if text]
        if len(arguments) < len(texts):
            return None
        if is_numbered(texts):
            return f"nn.Sequential({', '.join(arguments)})"
        return f"nn.Sequential(OrderedDict({', '.join(arguments)}))" if all(map(is_name, texts)) else None

    def parts(self, called: Collection[str]) -> dict[str, str]:
        """What the network consists of, in its order: by name, the text of a constructor or tensor.

        `called` are the paths of the layers that are used: what neither computes nor holds anything is left out.
        """
        first: dict[int, str] = {}
        for path, module in self.network.named_modules(remove_duplicate=False):
            first.setdefault(id(module), path)
        return self._parts("", self.network, {self.network.get_submodule(path) for path in called}, first)

    def _parts(
        self, path: str, module: nn.Module, called: Collection[nn.Module], first: Mapping[int, str]
    ) -> dict[str, str]:
        tensors = {**module._parameters, **module._buffers}
        own = {
            name: _tensor(tensor)
            for name, tensor in tensors.items()
            if tensor is not None and self.homes.get(_join(path, name)) == _join(path, name)
        }
        children = {
            name: self._part(_join(path, name), child, called, first)
            for name, child in module._modules.items()
            if child is not None
        }
        present = {name: text for name, text in children.items() if text}
        if present and not own and is_numbered(children):
            self.lists.add(path)
            return {name: text or "nn.Identity()" for name, text in children.items()}
        return own | present

    def _part(
        self, path: str, module: nn.Module, called: Collection[nn.Module], first: Mapping[int, str]
    ) -> str | None:
        if path in self.layers:
            if module not in called and not module.state_dict():
                return None
            inner = [(_join(path, name) if name else path, m) for name, m in module.named_modules()]
            self.lists.update(p for p, m in inner if _is_sequential(m) and is_numbered(m._modules))
            return self.layers[path]
        if first[id(module)] != path:
            return None
        parts = self._parts(path, module, called, first)
        if path in self.lists:
            return f"nn.ModuleList([{', '.join(parts.values())}])"
        if all(map(is_name, parts)):
            return f"Group({', '.join(f'{name}={text}' for name, text in parts.items())})" if parts else None
        return f"Group(**{{{', '.join(f'{literal(name)}: {text}' for name, text in parts.items())}}})"

    def is_attention(self, path: str) -> bool:
        """Whether a layer takes queries, keys and values."""
        return isinstance(self.network.get_submodule(path), nn.MultiheadAttention)

    def call(self, path: str, value: str) -> str:
        """The call of a layer with a value."""
        if self.is_attention(path):
            return f"{self.access(path)}({value}, {value}, {value}, need_weights=False)[0]"
        return f"{self.access(path)}({value})"

    def frozen(self) -> list[str]:
        """The names of the parameters that the original does not train."""
        return [
            self.homes[n] for n, p in self.network.named_parameters() if not p.requires_grad and p.is_floating_point()
        ]

    def access(self, path: str) -> str:
        """The expression of a module or tensor: `self.layer1[0].conv1.weight`."""
        text, above = "self", ""
        for name in path.split("."):
            text = f"{text}[{name}]" if above in self.lists else attribute(text, name)
            above = _join(above, name)
        return text


def is_numbered(names: Iterable[str]) -> bool:
    """Whether these are "0", "1", and so on: the names in a list."""
    names = list(names)
    return bool(names) and names == [str(n) for n in range(len(names))]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _identity(name: str, tensor: Tensor) -> Any:
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name


def _is_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _tensor(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={literal(tensor.dtype)}"
    shape = ", ".join(str(size) for size in tensor.shape) or "()"
    text = f"torch.zeros({shape}{dtype})"
    if not isinstance(tensor, nn.Parameter):
        return text
    return f"nn.Parameter({text}{'' if tensor.is_floating_point() else ', requires_grad=False'})"


def _constructor(module: nn.Module) -> str | None:
    """How to build a layer of torch.nn again; None for other modules and where it is not certain."""
    kind = nn.Linear if type(module) is NonDynamicallyQuantizableLinear else type(module)
    if getattr(nn, kind.__name__, None) is not kind or (module._modules and kind is not nn.MultiheadAttention):
        return None
    given: dict[str, Any] = {}
    texts = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype"):
            continue
        held = _HELD_AS.get(name, name) if kind is nn.MultiheadAttention else name
        if not hasattr(module, held):
            return None
        value = getattr(module, held)
        if held in module._parameters:  # `bias`: there or not
            value = value is not None
        if name in ("kdim", "vdim") and value == given["embed_dim"]:
            continue
        if name == "normalized_shape" and len(value) == 1:
            value = value[0]
        if name in _ONE_FOR_ALL and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if name == "stride" and parameter.default is None and value == given["kernel_size"]:
            continue
        if parameter.default is not parameter.empty and value == parameter.default:
            continue
        by_position = parameter.default is parameter.empty
        given[name] = value
        try:
            texts.append(literal(value) if by_position else f"{name}={literal(value)}")
        except Unspelled:
            return None
    try:
        with torch.device("meta"):
            again = kind(**given)
    except Exception:  # whatever a constructor says to arguments that are not its own
        return None
    return f"nn.{kind.__name__}({', '.join(texts)})" if _held_sizes(again) == _held_sizes(module) else None


def _held_sizes(module: nn.Module) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
