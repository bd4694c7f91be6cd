"""Which calls work on each channel by itself and give them back in the same order: by the rules of the one reader.

A call is run on a blank, a picture without numbers whose channels have ids, and the ids that come out are looked at:
each has to be where it went in, or stand there several times in a row, as behind a flatten. So whatever `operators` has
a row for is known here, and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.reading.flow import Flow
from compress.reading.ghost import ghost
from compress.reading.ids import UnknownError, vector
from compress.reading.inputs import blanks
from compress.reading.trace import Call, Trace, record

_SIDES = (5, 1024)  # of a blank, in pixels: few, so that ids take no room, and many, for kernels larger than that
_CHANNELS = 13  # of a blank, where the call has no say: no size that a view would be written with


class _Called(nn.Module):
    """A function or method as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def through(call: nn.Module | Callable[[Tensor], Any], rank: int) -> Mapping[str, int] | None:
    """For a call that works on each channel of [N, C, ...] by itself: the axis along which its tensors hold channels.

    The input has `rank` axes. Of a module's parameters and buffers those that have one number for all channels are not
    named. None for a call that mixes channels, moves them, multiplies with a weight, or is not known.
    """
    model = ghost(call) if isinstance(call, nn.Module) else _Called(call)
    own = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dim() and tensor.numel() > 1]
    channels = own[0].shape[0] if own else _CHANNELS
    for side in _SIDES:
        (x,) = blanks(model, [channels, *[side] * (rank - 2)])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what only a blank would ask for
                calls, _, out = record(model, (x,))
        except Exception:  # whatever a call says to a blank of this size
            continue
        return passed(model, calls, x, out)
    return None


def passed(model: nn.Module, calls: Sequence[Call], x: Tensor, out: Any) -> Mapping[str, int] | None:
    """The same of operators that ran within a model and made `out` of `x` [N, C, ...]."""
    if not isinstance(out, Tensor) or x.dim() < 2 or out.dim() < 2:
        return None
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    flow = Flow(Trace(model, tuple(calls), (), names, ()), [x])
    try:
        before, after = vector(flow.ids(x), 1), vector(flow.ids(out), 1)
    except UnknownError:
        return None
    apart = len(set(flow.units(before).tolist())) == len(before)
    if flow.weights or flow.frozen or not flow.is_whole or not apart:
        return None
    if not len(after) or not torch.equal(after, before.repeat_interleave(max(len(after) // len(before), 1))):
        return None
    axes = dict(flow.slots.keys())
    return axes if len(axes) == len(flow.slots) else None
