"""JSON as evidence: read strictly and within bounds, written in one way, so that equal contents have one digest.

    read_json(text)      the value; ValueError says what is wrong, in a few words, whatever the text is
    written(value)       sorted, without spaces, in ASCII
    fingerprint(value)   the SHA-256 of that, in hexadecimal: anybody can reckon it with a JSON library and sha256sum

No torch, no pydantic.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any, NoReturn

import numpy as np

LARGEST = 2**23  # bytes of one text: the longest report that was seen has a hundredth of it
DEEPEST = 64  # tables in tables; ours have seven
DIGITS = 40  # of one whole number; a count of ours has at most 19

_STEPS = np.zeros(256, np.int8)  # of every byte: what it adds to the depth
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def read_json(text: bytes | str) -> Any:
    """Return what a JSON text holds.

    Raises ValueError for what is no JSON, has a key twice, a number that is none or has more than 40 digits, is longer
    than 8 MiB, or is nested more than 64 deep: in time and memory that grow with the length of the text alone.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    if (depth := _depth(data)) > DEEPEST:
        raise ValueError(f"nested {depth:,} deep, of at most {DEEPEST}")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_table, parse_int=_whole, parse_float=_real, parse_constant=_no_number
        )
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None


def written(value: Any) -> str:
    """Return a value as JSON that has one spelling: keys sorted, no spaces, ASCII. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a value as `written` writes it, in hexadecimal."""
    return hashlib.sha256(written(value).encode()).hexdigest()


def _depth(data: bytes) -> int:
    """How many brackets are open at once, outside of strings."""
    return int(np.cumsum(_STEPS[np.frombuffer(_STRING.sub(b"", data), np.uint8)], dtype=np.int32).max(initial=0))


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:40]!r} twice")
        table[key] = value
    return table


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text):,} digits, of at most {DIGITS}")
    return int(text)


def _real(text: str) -> float:
    number = float(text) if len(text) <= 1_000 else float("inf")
    if not isfinite(number):
        raise ValueError(f"the number {text[:40]}, which is no finite number")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no finite number")
