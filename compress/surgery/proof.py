"""Whether a network computes the same with fewer and more channels: tried with numbers, whatever its operators are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from compress.reading.ghost import copied, eager, flat
from compress.reading.graph import Edit, Graph
from compress.reading.inputs import each
from compress.surgery.tensors import change

BOUNDS = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
}  # of differences, times the largest output; what is wrong is near 1

LONG = 10**10  # multiply-accumulates from which on float32 will do, at half of the time
PRIME = 65521  # numbers that are drawn for one tensor, laid end to end: rows of hardly any length repeat


class Proof:
    """A network with random numbers in all its tensors, in float64, or in float32 where forward() insists on that or
    takes long.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.graph = graph
        self.dtype: torch.dtype | None = None  # None where it does not run: nothing is told then
        dtypes = [torch.float32] if graph.price.cost(graph.widths).macs > LONG else list(BOUNDS)
        for dtype, signs in [(dtype, signs) for dtype in dtypes for signs in (True, False)]:
            self.model = copied(model, _Draw(dtype, signs=signs))
            generator = torch.Generator().manual_seed(1)
            self.inputs = [torch.randn(1, *one, generator=generator, dtype=dtype) for one in each(graph.shape)]
            try:
                finite = all(bool(out.isfinite().all()) for out in self._outputs(self.model))
            except Exception:  # whatever a forward pass says to numbers like these
                continue
            if finite:
                self.dtype = dtype
                break

    @cached_property
    def _steady(self) -> bool:
        """Whether the network computes the same twice: else nothing is told by what it computes."""
        return _gap(self._outputs(self.model), self._outputs(self.model)) == 0

    def fails(self, names: Sequence[str]) -> bool:
        """Whether the network without a random half of these spaces computes something else than the whole one whose
        readers multiply that half by zero, at once or after it got as many new channels, unread, as there were.
        """
        if self.dtype is None:
            return False
        whole, edited, graph = copy.deepcopy(self.model), copy.deepcopy(self.model), self.graph
        for number, name in enumerate(names):
            order = np.random.default_rng(number).permutation(self.graph.spaces[name].width)
            kept, gone = np.split(order, [(len(order) + 1) // 2])
            silence(whole, self.graph, name, gone.tolist())
            graph = _changed(edited, graph.narrow(name, sorted(kept.tolist())))
        expected = self._outputs(whole)
        if self._differs(edited, expected):
            return self._steady
        for number, name in enumerate(names):
            graph = _changed(edited, graph.widen(name, self.graph.spaces[name].width), seed=number)
        return self._differs(edited, expected) and self._steady

    def _differs(self, edited: nn.Module, expected: Sequence[Tensor]) -> bool:
        assert self.dtype is not None
        try:
            outputs = self._outputs(edited)
        except Exception:  # it runs without numbers, and not with them
            return True
        largest = max((float(out.abs().max()) for out in expected if out.numel()), default=0.0)
        return not _gap(expected, outputs) <= BOUNDS[self.dtype] * max(1.0, largest)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        """What it returns; chance in it is the same each time."""
        with torch.random.fork_rng([]), eager(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that were written for one number of channels
            torch.manual_seed(0)
            return [out for out in flat(model(*self.inputs)) if out.is_floating_point()]


def silence(model: nn.Module, graph: Graph, space: str, positions: Sequence[int]) -> None:
    """Mask channels of a space in place: everything that reads them multiplies them by zero."""
    units = [graph.spaces[space].units[p] for p in positions]
    for name, dim in graph.spaces[space].consumers:
        index = np.flatnonzero(np.isin(graph.slots[name, dim].units, units))
        with torch.no_grad():
            model.get_parameter(name).index_fill_(dim, torch.from_numpy(index), 0.0)


def _changed(model: nn.Module, edit: Edit, seed: int = 0) -> Graph:
    """Carry out an edit on a model, and return what it is like then."""
    change(model, edit, seed=seed)
    return edit.after


class _Draw:
    """Random numbers for a tensor, of a size that keeps activations near 1, without `signs` for roots and logarithms.

    Whole numbers and infinities stay.
    """

    def __init__(self, dtype: torch.dtype, *, signs: bool) -> None:
        self.dtype, self.signs = dtype, signs
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu().clone()
        fan = max(tensor.numel() // max(len(tensor), 1), 1) if tensor.dim() else 1
        if tensor.dim() < 2:
            drawn = torch.rand(tensor.shape, generator=self.generator, dtype=self.dtype) + 0.5
        else:
            few = torch.randn(min(tensor.numel(), PRIME), generator=self.generator, dtype=self.dtype)
            few = few * (2 / fan) ** 0.5 if self.signs else few.abs() / fan
            drawn = few.repeat(-(-tensor.numel() // PRIME))[: tensor.numel()].view(tensor.shape)
        if tensor.is_meta or bool((finite := tensor.cpu().isfinite()).all()):
            return drawn
        return torch.where(finite, drawn, tensor.cpu().to(self.dtype))


def _gap(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference; infinite where shapes differ, or a number is none."""
    if [out.shape for out in one] != [out.shape for out in other]:
        return float("inf")
    gaps = [(a - b).abs().nan_to_num(float("inf")) for a, b in zip(one, other, strict=True)]
    return max((float(gap.max()) for gap in gaps if gap.numel()), default=0.0)
