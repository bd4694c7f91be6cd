"""Written amounts and what they count: "43MFLOPs", "0.58Mparams", "2.4MB", "256KiB@activations", "50%".

    [<=] NUMBER [k|K|M|G|T] params|MACs|FLOPs|FLOPs@2|B|B@activations    decimal prefixes: M is 1,000,000
    [<=] NUMBER Ki|Mi|Gi|Ti B|B@activations                              binary prefixes: MiB is 1,048,576
    [<=] NUMBER % [params|MACs|FLOPs|FLOPs@2|B|@activations]             a share of the base model's; FLOPs if none
    [<=] NUMBER ns|us|ms|s @onnxruntime-cpu/THREADS                      a time: the median of runs with a batch of 1

`FLOPs` is one per multiply-accumulate, as thop counts; `FLOPs@2` is two, as torch counts. `B` is bytes of the exported
file, never billions; `B@activations` (or `@act`) bytes of activations at their peak, see `budget/memory.py`.
Times are whole nanoseconds, each runtime and number of threads a unit of its own ("ns@onnxruntime-cpu/4"); nobody can
foretell them, so they are measured once the file is written. Amounts are exact integers: no float is involved, so
"0.58Mparams" is 580,000 and nothing near it.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from compress.errors import UsageError

MEMORY = "B@activations"
UNITS = ("params", "MACs", "FLOPs", "FLOPs@2", "B", MEMORY)
LARGEST = 2**62  # one bit below int64, so that sums of two amounts still fit

_PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SPELLINGS = {  # lower case, with the singular; bytes are apart because b is a bit
    **dict.fromkeys(("params", "param", "parameters", "parameter"), "params"),
    **dict.fromkeys(("macs", "mac"), "MACs"),
    **dict.fromkeys(("flops", "flop"), "FLOPs"),
    **dict.fromkeys(("flops@2", "flop@2"), "FLOPs@2"),
    **dict.fromkeys(("bytes", "byte"), "B"),
}
_TIMES = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_RUNTIME = "onnxruntime-cpu"
_LATENCY = f"ms@{_RUNTIME}/1"
_ACTIVATIONS = ("activations", "activation", "act")
_USUAL = [p + u for u in UNITS for p in _PREFIXES] + [p + b for p in _BINARY for b in ("B", MEMORY)]
_NUMBER = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?)([0-9]+))?(?!\s*[.0-9])\s*(.*)", re.DOTALL)
_TIME = re.compile(r"(ns|us|ms|s)\b\s*(.*)", re.DOTALL)
_SHOWN_TIMES = tuple((scale, scale, name) for name, scale in _TIMES.items() if scale > 1)
_SHOWN = ((10**12, 10**12, "T"), (10**9, 10**9, "G"), (10**5, 10**6, "M"), (10**3, 10**3, "k"))  # 0.58 M, not 580 k


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount as somebody wrote it: either a count of `unit`, or a share of what the base model has of it."""

    value: int | None
    share: Fraction | None
    unit: str
    text: str


def parse(text: str) -> Quantity:
    """Read one amount, exactly.

    Raises UsageError, a sentence saying what to write instead, for everything that the grammar of this module does
    not cover, and for amounts that are zero, negative, fractional or above 2**62.
    """
    if not isinstance(text, str):
        raise UsageError(f"{_quote(text)} is not an amount; write it as text with a unit, such as '43MFLOPs'.")
    written = text.strip()
    body = written.removeprefix("<=").removeprefix("≤").strip()
    if not body:
        raise UsageError("An empty amount; write a number and a unit, such as '43MFLOPs' or '0.58Mparams'.")
    if body[0] in "<>=":
        raise UsageError(f"{_quote(written)}: an amount is always 'at most'; write '43MFLOPs' or '<=43MFLOPs'.")
    if re.match(r"[+-]?(nan|inf)", body, re.IGNORECASE):
        raise UsageError(f"{_quote(written)} is not a finite number; write a count such as '43MFLOPs'.")
    match = _NUMBER.fullmatch(body) if body.isascii() and len(body) <= 80 else None
    if match is None:
        raise UsageError(f"{_quote(written)} is not one number with a unit; write it as in '43MFLOPs'.")
    number = _number(written, *match.group(1, 2, 3, 4))
    word = match[5]
    if word.startswith("%"):
        unit = _unit_of_share(written, word[1:].strip())
        return Quantity(None, _in_range(written, number / 100), unit, written)
    time = _TIME.fullmatch(word)
    factor, unit = _latency(written, word, *time.groups()) if time else _unit(written, word)
    amount = _in_range(written, number * factor)
    if amount.denominator != 1:
        hint = (
            "B is bytes, not billions: write '1.2GB' or '1.2Gparams'"
            if unit in ("B", MEMORY)
            else "write a whole number"
        )
        raise UsageError(f"{_quote(written)} is not a whole number of {unit}; {hint}.")
    return Quantity(int(amount), None, unit, written)


def parse_list(text: str) -> tuple[Quantity, ...]:
    """Read amounts with commas between them, all of which hold: "43MFLOPs, 0.58Mparams".

    Raises UsageError for what `parse` refuses and for two amounts of the same unit.
    """
    if not isinstance(text, str) or not text.strip():
        return (parse(text),)
    parts = text.split(",")
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise UsageError(f"{_quote(text)} has nothing on one side of a comma; write '43MFLOPs, 0.58Mparams'.")
    return refuse_twins(tuple(parse(part) for part in parts))


def refuse_twins(amounts: tuple[Quantity, ...]) -> tuple[Quantity, ...]:
    """Return the amounts as they came; raise UsageError where two are of the same unit."""
    seen: dict[str, Quantity] = {}
    for amount in amounts:
        twin = seen.setdefault(amount.unit, amount)
        if twin is not amount:
            raise UsageError(
                f"Two limits in {amount.unit}: {_quote(twin.text)} and {_quote(amount.text)}; keep the one you mean."
            )
    return amounts


def threads(unit: str) -> int | None:
    """The number of threads that a unit of time names; None for what is counted and not measured."""
    start, _, number = unit.rpartition("/")
    return int(number) if start == f"ns@{_RUNTIME}" else None


def show(value: int, unit: str) -> str:
    """Say a count for people: `show(42_412_345, "MACs")` is "42.41 MMACs", and 5,100,000 ns are "5.1 ms".

    At most four significant digits, cut off and never rounded up, so that nothing reads larger than it is. Figures
    that must be compared need `exact`.
    """
    if value < 0:
        return "-" + show(-value, unit)
    counted = threads(unit) is None
    name = unit if counted else unit.removeprefix("ns")
    for start, scale, prefix in _SHOWN if counted else _SHOWN_TIMES:
        if value >= start:
            decimals = max(1, 4 - len(str(value // scale)))
            whole, rest = divmod(value * 10**decimals // scale, 10**decimals)
            return f"{whole}.{f'{rest:0{decimals}d}'.rstrip('0') or '0'} {prefix}{name}"
    return f"{value} {unit}"


def span(ends: Sequence[int], unit: str) -> str:
    """Say from where to where a measured time goes: "801.7 us to 1.291 ms"."""
    return " to ".join(show(value, unit).partition("@")[0] for value in ends)


def duration(seconds: float) -> str:
    """Say a time that people wait, in the unit that they would: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for size, unit, digits in ((86_400, "days", 1), (3_600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{max(round(seconds), 1)} s"


def percent(share: float) -> str:
    """Say a fraction of 1, never more than it is: 0.9987 is "99.87 %", and 100 % is nothing less."""
    return f"{floor(round(share * 10_000, 6)) / 100:.2f} %"


def show_score(value: float | None, metric: str) -> str:
    """Say an accuracy in percent, another metric's score as it is, and None as nothing."""
    return "" if value is None else percent(value) if metric == "top-1" else f"{value:.4g}"


def exact(value: int, unit: str) -> str:
    """Say a count to the last digit; `parse` reads it back as the same count."""
    return f"{value} {unit}"


def _number(written: str, sign: str, digits: str, exponent_sign: str | None, exponent: str | None) -> Fraction:
    power = (exponent or "0").lstrip("0") or "0"
    number = Fraction(digits if digits[-1] != "." else digits[:-1])
    if number == 0:
        raise UsageError(f"{_quote(written)} is zero, which no network keeps; write a count such as '43MFLOPs'.")
    if sign == "-":
        raise UsageError(f"{_quote(written)} is negative; write a count above zero, such as '43MFLOPs'.")
    if len(power) > 3:  # past any amount, and 10**(10**9) would never end
        raise UsageError(f"{_quote(written)} has an exponent out of range; amounts go up to 2**62.")
    scale = Fraction(10) ** int(power)
    return number / scale if exponent_sign == "-" else number * scale


def _latency(written: str, word: str, name: str, where: str) -> tuple[int, str]:
    """Nanoseconds in one `name`, and the unit for what stands behind it: "@onnxruntime-cpu/4"."""
    runtime, _, number = where.removeprefix("@").partition("/")
    like = written.removesuffix(word).rstrip() + f"{name}@{_RUNTIME}/1"
    if not where.startswith("@") or not runtime.strip():
        raise UsageError(f"{_quote(written)}: a time needs the runtime that takes it; write {_quote(like)} (1 thread).")
    if runtime.strip() != _RUNTIME:
        raise UsageError(f"{_quote(written)}: only {_RUNTIME} is measured here; write {_quote(like)} (1 thread).")
    if not re.fullmatch(r"[1-9][0-9]{0,2}", number.strip()):
        raise UsageError(f"{_quote(written)}: the number of threads is from 1 to 999; write {_quote(like)}.")
    return _TIMES[name], f"ns@{_RUNTIME}/{number.strip()}"


def _unit(written: str, word: str) -> tuple[int, str]:
    """What `word` multiplies by and counts: "MFLOPs" is 1,000,000 and FLOPs."""
    if word in _PREFIXES or word in _BINARY or word == "m":
        bare = written[: len(written) - len(word)] + word.upper()[:1]
        time = f"; a time is '{written[:-1].rstrip()}{_LATENCY}'" if word == "m" else ""
        raise UsageError(
            f"{_quote(written)} has no unit; write '{bare}MACs', '{bare}params', '{bare}FLOPs' or '{bare}B'{time}."
        )
    _refuse_rate(written, word)
    for prefix, factor in _PREFIXES.items():
        if word.startswith(prefix) and (unit := _name(word[len(prefix) :].lstrip())):
            return factor, unit
    for prefix, factor in _BINARY.items():
        if word.startswith(prefix) and (unit := _name(word[len(prefix) :].lstrip())) in ("B", MEMORY):
            return factor, unit
    if word[0] == "m" and (unit := _name(word[1:].lstrip())):
        better = written[: len(written) - len(word)] + "M" + unit
        raise UsageError(f"{_quote(written)}: 'm' is milli, a thousandth; did you mean {_quote(better)}?")
    if re.fullmatch(r"(.i?)?b(its?)?", word):
        raise UsageError(f"{_quote(written)}: a small 'b' is a bit; write bytes with a capital, such as '2.4MB'.")
    if "@" in word:
        raise UsageError(
            f"{_quote(written)}: only FLOPs and B may say what they count; write FLOPs (1 a MAC), FLOPs@2, or "
            f"{MEMORY} for the memory of activations."
        )
    raise UsageError(f"{_quote(written)}: the unit {_quote(word)} is unknown; {_nearest(word)}")


def _unit_of_share(written: str, word: str) -> str:
    if _RUNTIME in word or _TIME.fullmatch(word):
        raise UsageError(
            f"{_quote(written)}: a time has no share, the base model is not measured; write '5{_LATENCY}'."
        )
    _refuse_rate(written, word)
    unit = _name("B" * word.startswith("@") + word) if word else "FLOPs"
    if unit is None:
        raise UsageError(
            f"{_quote(written)}: a share is of {', '.join(UNITS[:-1])} or {MEMORY}; write '50%' or '50% params' "
            "or '50%@activations'."
        )
    return unit


def _refuse_rate(written: str, word: str) -> None:
    if "/" in word or word.partition("@")[0].endswith("FLOPS"):
        raise UsageError(
            f"{_quote(written)} is a rate, work per second; write an amount of work: '43MFLOPs', '43MMACs'."
        )


def _in_range(written: str, amount: Fraction) -> Fraction:
    if amount > LARGEST:
        raise UsageError(f"{_quote(written)} is above 2**62, more than can be counted; is the prefix right?")
    return amount


def _name(word: str) -> str | None:
    head, at, where = word.partition("@")
    if at and where.strip().lower() in _ACTIVATIONS:
        return MEMORY if _name(head.rstrip()) == "B" else None
    return "B" if word == "B" else _SPELLINGS.get(word.lower())


def _nearest(word: str) -> str:
    lower = {usual.lower(): usual for usual in _USUAL}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.7)
    return f"did you mean '{lower[near[0]]}'?" if near else f"write one of {', '.join(UNITS)}."


def _quote(written: object) -> str:
    words = repr(written)
    return words if len(words) <= 60 else words[:57] + "..."
