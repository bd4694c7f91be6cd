"""Copies of a model without numbers: shapes without storage, so that a look at a network costs nothing."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def flat(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)


def copied(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy in eval mode with every tensor that a module holds replaced by `change` of it.

    Also what copy.deepcopy refuses: a weight that was computed from another, as masks and weight norms leave it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in flat(list(vars(module).values())):
            if id(tensor) not in memo:
                with torch.no_grad():
                    new = change(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
    return copy.deepcopy(model, memo).eval()


def ghost(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode whose tensors have shapes and no numbers."""
    return copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def eager() -> AbstractContextManager[Any]:
    """A compiled model runs as it was written: each look at it has other shapes, and is not worth compiling for."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def countable() -> Iterator[None]:
    """How a ghost runs: no gradients, what forward() makes has no numbers either, and attention as matrix products.

    The fused attention paths hide their multiplications from every counter.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device("meta"), sdpa_kernel(SDPBackend.MATH), eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
