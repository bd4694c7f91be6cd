"""What every network of a family costs, as one formula in its widths.

A layer costs (inputs) x (outputs) x a constant, and both counts are affine in the widths of the spaces around it. So
the cost of a family is a sum of terms, each a constant times two affine functions of the widths:

    cost(w) = sum_t coef[t] * (left[t] @ w + left0[t]) * (right[t] @ w + right0[t])

Beside these sums, a family has K moments of its forward pass (see `memory`), each with the bytes of activations that
are alive then, affine in the widths; its peak activation memory is the largest of them.

Everything here is exact: int64, refused where a result could overflow (int64 wraps around, so intermediate ones may).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.budget.limits import Cost
from compress.budget.units import MEMORY
from compress.errors import CompressError

Ints = NDArray[np.int64]

CEILING = 2**62  # half of what int64 holds, so the rounding of the float64 estimate below cannot matter


# The columns of a price (params, macs, thop, bytes, then moments) that each unit limits, and how often one counts.
COLUMNS: dict[str, tuple[list[int] | slice, int]] = {
    "params": ([0], 1),
    "MACs": ([1], 1),
    "FLOPs": ([1, 2], 1),
    "FLOPs@2": ([1], 2),
    "B": ([3], 1),
    MEMORY: (slice(4, None), 1),
}


class Term(NamedTuple):
    """One product: coef * (left @ w + left0) * (right @ w + right0); a linear term says right={}, right0=1."""

    coef: tuple[int, int, int, int]  # params, macs, thop, bytes
    left: Mapping[str, int]
    left0: int
    right: Mapping[str, int]
    right0: int


class Moment(NamedTuple):
    """Bytes of activations alive while one operator runs: left @ w + left0."""

    where: str  # the operator's module
    left: Mapping[str, int]
    left0: int


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """The cost of a family of networks, bilinear in the widths of its S spaces; T terms and K moments.

    coef [T, 4] holds params, macs, thop and bytes; left, right [T, S] and left0, right0 [T] the two factors; alive
    [K, S] and alive0 [K] the bytes of every moment that can be the peak, at the operator named in peaks. All int64.
    Its columns are the four of `coef` and then the moments: C = 4 + K.
    """

    spaces: tuple[str, ...]
    coef: Ints
    left: Ints
    left0: Ints
    right: Ints
    right0: Ints
    alive: Ints
    alive0: Ints
    peaks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        t, s, k = len(self.coef), len(self.spaces), len(self.peaks)
        shapes = {"coef": (t, 4), "left": (t, s), "left0": (t,), "right": (t, s), "right0": (t,)}
        shapes |= {"alive": (k, s), "alive0": (k,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.dtype != np.int64 or array.shape != shape:
                got = f"{array.dtype} {list(array.shape)}"
                raise CompressError(f"price: {name} must be int64 {list(shape)}, got {got}.")
        if len(set(self.spaces)) < s:
            raise CompressError(f"price: every space needs its own name, got {list(self.spaces)}.")

    @classmethod
    def from_terms(cls, spaces: Iterable[str], terms: Iterable[Term], moments: Iterable[Moment] = ()) -> Price:
        """The price made of these terms and moments; raises CompressError for an unknown space.

        Terms with equal factors are merged, and moments left out that never exceed another one.
        """
        names = tuple(spaces)
        merged: dict[tuple[object, ...], Term] = {}
        for term in terms:
            if unknown := sorted({*term.left, *term.right} - set(names)):
                raise CompressError(f"price: a term names the space {unknown[0]!r}; the spaces are {list(names)}.")
            key = (frozenset(term.left.items()), term.left0, frozenset(term.right.items()), term.right0)
            a, b, c, d = merged[key].coef if key in merged else (0, 0, 0, 0)
            coef = (a + term.coef[0], b + term.coef[1], c + term.coef[2], d + term.coef[3])
            merged[key] = term._replace(coef=coef)
        rows, peaks = list(merged.values()), _undominated(names, moments)
        return cls(
            spaces=names,
            coef=_int64([row.coef for row in rows], len(rows), 4),
            left=_int64([[row.left.get(name, 0) for name in names] for row in rows], len(rows), len(names)),
            left0=_int64([row.left0 for row in rows], len(rows)),
            right=_int64([[row.right.get(name, 0) for name in names] for row in rows], len(rows), len(names)),
            right0=_int64([row.right0 for row in rows], len(rows)),
            alive=_int64([[peak.left.get(name, 0) for name in names] for peak in peaks], len(peaks), len(names)),
            alive0=_int64([peak.left0 for peak in peaks], len(peaks)),
            peaks=tuple(peak.where for peak in peaks),
        )

    def vector(self, widths: Mapping[str, int]) -> Ints:
        """The widths [S] in the order of the spaces; every space must be named, and nothing else."""
        if widths.keys() != set(self.spaces):
            odd = sorted(widths.keys() ^ set(self.spaces))
            raise CompressError(f"price: widths and spaces must name the same things; these are in one only: {odd}.")
        return _int64([widths[name] for name in self.spaces], len(self.spaces))

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """The exact cost of the network with these widths."""
        params, macs, thop, size, *moments = self.totals(self.vector(widths)).tolist()
        return Cost(params, macs, thop, size, max(moments, default=0))

    def peak(self, widths: Mapping[str, int]) -> str:
        """The module that runs while the network with these widths holds the most activations; "" of none."""
        moments = self.totals(self.vector(widths))[4:]
        return self.peaks[int(moments.argmax())] if len(moments) else ""

    def reaching(self, most: int, w: Ints) -> Price:
        """The same price with those moments only that are above this many bytes at the widths w [S]."""
        kept = self.alive @ w + self.alive0 > most
        peaks = tuple(where for where, keep in zip(self.peaks, kept.tolist(), strict=True) if keep)
        return replace(self, alive=self.alive[kept], alive0=self.alive0[kept], peaks=peaks)

    def less(self, size: int) -> Price:
        """The same price with so many bytes less at all widths."""
        one, none = np.ones(1, np.int64), np.zeros((1, len(self.spaces)), np.int64)
        return replace(
            self,
            coef=np.concatenate([self.coef, [[0, 0, 0, -size]]]),
            left=np.concatenate([self.left, none]),
            left0=np.concatenate([self.left0, one]),
            right=np.concatenate([self.right, none]),
            right0=np.concatenate([self.right0, one]),
        )

    def steps(self, widths: Mapping[str, int], by: int | Mapping[str, int] = 1) -> Ints:
        """What widening each space alone by `by` channels adds to each column, exactly: [S, C]."""
        w, stride = self.vector(widths), self.vector(dict.fromkeys(self.spaces, by) if isinstance(by, int) else by)
        self.refuse_overflow(np.abs(w) + np.abs(stride))
        own = (self.left * self.right).T @ self.coef  # half the diagonal of `bends`
        own = np.pad(own, ((0, 0), (0, len(self.peaks))))
        return stride[:, None] * (self.slopes(w) + stride[:, None] * own)

    def totals(self, w: Ints) -> Ints:
        """Every column [C] at the widths w [S]."""
        self.refuse_overflow(np.abs(w))
        total: Ints = ((self.left @ w + self.left0) * (self.right @ w + self.right0)) @ self.coef
        return np.concatenate([total, self.alive @ w + self.alive0])

    def slopes(self, w: Ints) -> Ints:
        """The derivative of every column in every width [S, C] at w [S]."""
        self.refuse_overflow(np.abs(w) + 1)
        left, right = self.left @ w + self.left0, self.right @ w + self.right0
        slope: Ints = self.left.T @ (self.coef * right[:, None]) + self.right.T @ (self.coef * left[:, None])
        return np.concatenate([slope, self.alive.T], axis=1)

    def bends(self) -> Ints:
        """How the slope of one width changes with another [S, S, C]; constant, because the cost is bilinear."""
        self.refuse_overflow(np.ones(len(self.spaces), np.int64))
        halves = [self.left.T @ (self.coef[:, k, None] * self.right) for k in range(4)]
        halves += [np.zeros_like(halves[0])] * len(self.peaks)  # moments are straight
        return np.stack([half + half.T for half in halves], axis=-1)

    def refuse_overflow(self, w: Ints) -> None:
        """Raise unless every sum and product at the widths w [S] >= 0 stays exact in int64, estimated in float64."""
        arrays = (self.left, self.left0, self.right, self.right0, self.coef)
        left, left0, right, right0, coef = (np.abs(array).astype(np.float64) for array in arrays)
        totals = ((left @ w + left0) * (right @ w + right0)) @ coef
        moments = np.abs(self.alive).astype(np.float64) @ w + np.abs(self.alive0)
        if (total := float(np.concatenate([totals, moments]).max())) >= CEILING:
            raise CompressError(f"price: the cost of this network is about {total:.3g}, too large to count exactly.")


def _undominated(names: Sequence[str], moments: Iterable[Moment]) -> list[Moment]:
    """The moments that can be the peak: none has another with every coefficient and the constant at least as large."""
    every = list(moments)
    rows = [[moment.left0, *(moment.left.get(name, 0) for name in names)] for moment in every]
    table = _int64(rows, len(every), 1 + len(names))
    kept: list[int] = []
    for at in sorted(range(len(every)), key=lambda at: -sum(rows[at])):  # what dominates another has the larger sum
        if not (table[kept] >= table[at]).all(1).any():
            kept.append(at)
    return [every[at] for at in sorted(kept)]


def _int64(numbers: Sequence[int] | Sequence[Sequence[int]], *shape: int) -> Ints:
    try:
        return np.array(numbers, np.int64).reshape(shape)
    except OverflowError:
        raise CompressError(f"price: a number is too large to count with exactly: {numbers}.") from None
