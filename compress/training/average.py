"""The exponential moving average of a network's weights: what a stage of training is scored by, and ends with.

    average = Average(0.99)
    average.update(model)               after each optimizer step
    with average.in_place(model): ...   the model with averaged weights, for scoring
    average.settle(model)               the stage is over: the model takes them for good

After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short stage does not end with the weights that it
began with. Running statistics are averaged as weights are; whole numbers are those of the last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The averaged tensors of one network of fixed shape; nothing before the first update."""

    def __init__(self, decay: float, tensors: Mapping[str, Tensor] | None = None, done: int = 0) -> None:
        self.decay = decay  # 0: nothing is averaged
        self.tensors = dict(tensors or {})
        self.done = done  # updates so far

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step's weights into the average."""
        if not self.decay:
            return
        live = _floating(model)
        if not self.tensors:
            self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}
        self.done += 1
        weight = 1 - min(self.decay, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_([self.tensors[name] for name in live], list(live.values()), weight)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged tensors for a while; it ends with its own, to the bit."""
        own = {name: tensor.detach().clone() for name, tensor in _floating(model).items()} if self.tensors else {}
        self._put(model, self.tensors)
        try:
            yield
        finally:
            self._put(model, own)

    def settle(self, model: nn.Module) -> None:
        """Give the model the averaged tensors for good, and begin anew."""
        self._put(model, self.tensors)
        self.tensors, self.done = {}, 0

    @staticmethod
    @torch.no_grad()
    def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in _floating(model).items() if tensors else ():
            tensor.copy_(tensors[name])


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
