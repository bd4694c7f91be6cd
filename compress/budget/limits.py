"""What a network costs, and what it may cost.

Costs are counted and known before any training; latencies are measured on the finished file, and decide nothing before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from math import floor
from typing import Any, Self

from compress.budget import units
from compress.errors import UsageError

LEVELS = ("error", "warn")
Amounts = str | Sequence[str | Mapping[str, str]]  # one text, or a list of texts and {limit, level}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one network costs: one input, batch 1, eval mode, at the input shape it was counted for."""

    params: int  # elements of all parameters; buffers are not counted
    macs: int  # multiply-accumulates of convolution, linear and matmul operators, exact
    thop: int  # thop's total: its multiply-accumulates plus its terms for batch norm and pooling
    bytes: int  # size of model.onnx as written
    memory: int = (
        0  # bytes of activations at their peak, in float32; `compress.budget.memory` says how they are counted
    )

    def of(self, unit: str) -> int:
        """Count this cost in `unit`, one of `units.UNITS`; FLOPs take the stricter of the two counters.

        Raises ValueError for any other, a unit of time too.
        """
        match unit:
            case "params":
                return self.params
            case "MACs":
                return self.macs
            case "FLOPs":
                return max(self.thop, self.macs)
            case "FLOPs@2":
                return 2 * self.macs
            case "B":
                return self.bytes
            case units.MEMORY:
                return self.memory
        raise ValueError(f"no unit {unit!r}; there are {', '.join(units.UNITS)}")

    def __add__(self, other: Cost) -> Cost:
        return self._each(operator.add, other)

    def __sub__(self, other: Cost) -> Cost:
        return self._each(operator.sub, other)

    def _each(self, act: Callable[[int, int], int], other: Cost) -> Cost:
        return Cost(*map(act, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one run took, in nanoseconds."""

    median: int
    low: int  # a tenth of all runs took at most this
    high: int  # nine tenths did
    runs: int
    processor: str


@dataclass(frozen=True, slots=True)
class Limit:
    """The most a network may cost in one unit; a broken limit of level "warn" is told and never fails."""

    unit: str
    limit: int
    text: str
    level: str = "error"


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits, all of which hold. At least one is of level "error": warnings alone would permit everything.

    `measured`, wherever it is asked for, holds the latency for every unit of time among the limits.
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not any(limit.level == "error" for limit in self.limits):
            raise UsageError("The budget permits everything: give at least one limit of level 'error'.")

    @classmethod
    def parse(cls, stated: Amounts, base: Cost | None = None, *, finished: bool = False) -> Self:
        """Read a budget; shares such as "50%" are of `base` and rounded down. `finished` is as in `amounts`.

        Raises UsageError for what `amounts` refuses, for a share when no base is known, and for one below 1.
        """
        return cls(tuple(_limit(amount, level, base) for amount, level in amounts(stated, finished=finished)))

    @property
    def hard(self) -> tuple[Limit, ...]:
        """The limits of level "error" on what is counted: those that decide how large a network may be."""
        return tuple(limit for limit in self.limits if limit.level == "error" and limit not in self.latencies)

    @property
    def latencies(self) -> tuple[Limit, ...]:
        """The limits on what can only be measured."""
        return tuple(limit for limit in self.limits if units.threads(limit.unit) is not None)

    @property
    def limits_file(self) -> bool:
        """Whether any of them, a warning too, is on the bytes of the file."""
        return any(limit.unit == "B" for limit in self.limits)

    def holds(self, cost: Cost) -> bool:
        """Tell whether every limit of level "error" on what is counted is kept."""
        return all(cost.of(limit.unit) <= limit.limit for limit in self.hard)

    def utilisation(self, cost: Cost) -> float:
        """Return cost over limit, as a fraction of 1, of the tightest limit of level "error" on what is counted."""
        return max(cost.of(limit.unit) / limit.limit for limit in self.hard)

    def scaled(self, share: float) -> Budget:
        """This share of every limit on what is counted, rounded down: what one of several steps may use."""
        if share == 1:
            return self

        def part(limit: Limit) -> Limit:
            most = max(1, min(floor(limit.limit * Fraction(share)), units.LARGEST))
            return limit if limit in self.latencies else replace(limit, limit=most, text=f"{share:g} x {limit.text}")

        return Budget(tuple(part(limit) for limit in self.limits))

    def rows(self, cost: Cost, measured: Mapping[str, Latency] | None = None) -> list[dict[str, Any]]:
        """Return one row a limit, warnings included, as the report holds them; none for what was not measured."""
        rows = []
        for limit in self.limits:
            latency = (measured or {}).get(limit.unit)
            if latency is None and limit in self.latencies:
                continue
            value = latency.median if latency else cost.of(limit.unit)
            row: dict[str, Any] = {
                "unit": limit.unit,
                "limit": limit.limit,
                "value": value,
                "utilisation": value / limit.limit,
                "pass": value <= limit.limit,
                "level": limit.level,
                "text": limit.text,
            }
            if latency:
                row |= {"spread": [latency.low, latency.high], "runs": latency.runs, "processor": latency.processor}
            rows.append(row)
        return rows


def amounts(stated: Amounts, *, finished: bool = False) -> tuple[tuple[units.Quantity, str], ...]:
    """Read the limits and their levels without any base model: the grammar and nothing else.

    A latency is a warning unless its level says "error": it depends on the machine. Where it is all that is asked of a
    `finished` file, it decides.

    Raises UsageError for a bad amount, an entry that is neither text nor {limit, level}, an unknown level, no entry
    at all, two limits in one unit, and limits that are all warnings.
    """
    if isinstance(stated, Mapping):
        raise UsageError(f"A budget is text or a list, got {dict(stated)!r}; write [{{limit: 43MFLOPs, level: warn}}].")
    entries: list[object] = [stated] if isinstance(stated, str) or not isinstance(stated, Sequence) else list(stated)
    if not entries:
        raise UsageError("The budget is empty; write at least one limit, such as '43MFLOPs'.")
    read = [(amount, level) for entry in entries for amount, level in _entry(entry)]
    units.refuse_twins(tuple(amount for amount, _ in read))
    timed = [amount.text for amount, _ in read if units.threads(amount.unit)]
    if finished and len(timed) == len(read):
        return tuple((amount, "error") for amount, _ in read)
    if not any(level == "error" and not units.threads(amount.unit) for amount, level in read):
        if timed:
            raise UsageError(
                f"A latency is measured once the network is finished and cannot say how large it may be; add a limit "
                f"that can, of level 'error': '43MFLOPs, {timed[0]}'."
            )
        raise UsageError("Every limit of the budget is a warning; give at least one of level 'error'.")
    return tuple(read)


def _entry(entry: object) -> list[tuple[units.Quantity, str]]:
    if isinstance(entry, str):
        return [(amount, _usual(amount)) for amount in units.parse_list(entry)]
    if not isinstance(entry, Mapping):
        text = f"'{entry} MACs'" if isinstance(entry, int | float) and not isinstance(entry, bool) else "'43MFLOPs'"
        raise UsageError(f"A limit needs a number and a unit, got {entry!r}; write {text}.")
    if unknown := sorted(map(str, set(entry) - {"limit", "level"})):
        raise UsageError(f"A limit has no key '{unknown[0]}'; write {{limit: 43MFLOPs, level: warn}}.")
    level = entry.get("level")
    if level not in (*LEVELS, None):
        raise UsageError(f"A limit's level is 'error' or 'warn', got {level!r}.")
    if not isinstance(entry.get("limit"), str):
        raise UsageError(f"A limit needs a number and a unit, got {dict(entry)!r}; write {{limit: 43MFLOPs}}.")
    return [(amount, str(level or _usual(amount))) for amount in units.parse_list(entry["limit"])]


def _usual(amount: units.Quantity) -> str:
    return "error" if units.threads(amount.unit) is None else "warn"


def _limit(amount: units.Quantity, level: str, base: Cost | None) -> Limit:
    if amount.share is None:
        assert amount.value is not None
        return Limit(amount.unit, amount.value, amount.text, level)
    if base is None:
        raise UsageError(f"'{amount.text}' is a share of the base model, unknown here; write a count: '43MFLOPs'.")
    limit = floor(amount.share * base.of(amount.unit))
    if not 1 <= limit <= units.LARGEST:
        whole = units.exact(base.of(amount.unit), amount.unit)
        raise UsageError(f"'{amount.text}' of the base model's {whole} is {limit}; limits go from 1 to 2**62.")
    return Limit(amount.unit, limit, amount.text, level)
