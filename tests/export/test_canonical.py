"""JSON from a file is the value that anybody reads, or a few words: never an exception of another kind."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compress.export.canonical import DEEPEST, DIGITS, LARGEST, fingerprint, read_json, written

LEAVES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
PIECES = st.sampled_from(
    [*'[]{}",:\\ \n', "1", "-1.5e3", "true", "null", '"a"', '"\\"[{', "\\u0041", "NaN", "Infinity", "1e999"]
)


@given(VALUES)
def test_what_is_written_is_read_again_and_has_one_spelling(value: Any) -> None:
    text = written(value)
    assert text.isascii()
    assert written(read_json(text)) == text
    assert read_json(json.dumps(value, indent=2, ensure_ascii=False)) == value
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert fingerprint(value) == hashlib.sha256(plain.encode()).hexdigest()


def read(text: bytes | str) -> Any:
    """What is read, or the ValueError that refuses it."""
    try:
        return read_json(text)
    except ValueError as error:
        return error


@given(st.binary() | st.lists(PIECES, max_size=12).map("".join) | st.text())
@example("[1]".encode("utf-16"))
@example('"\ud800"')
@example(b'"\\ud800"')
def test_whatever_is_read_is_what_others_read_or_is_refused(text: bytes | str) -> None:
    got = read(text)
    if not isinstance(got, ValueError):
        assert got == json.loads(text)


def nested(value: Any) -> int:
    """How deep tables lie in tables, by going down."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(nested, inner), default=0)


@given(VALUES, st.integers(0, 2 * DEEPEST))
def test_depth_is_counted_outside_of_strings(value: Any, more: int) -> None:
    for _ in range(more):
        value = [value, '"]}\\', "[[["]
    refused = isinstance(read(json.dumps(value)), ValueError)
    assert refused == (nested(value) > DEEPEST)


BOUNDS = {
    "a number of as many digits as may be": ("9" * DIGITS, True),
    "a digit more": ("9" * (DIGITS + 1), False),
    "4,000 digits": ("9" * 4_000, False),
    "a million digits": ("9" * 10**6, False),
    "a million decimals": (f"0.{'9' * 10**6}", False),
    "a finite exponent": ("1e308", True),
    "an infinite one": ("1e309", False),
    "a million zeros in it": (f"1e{'0' * 10**6}", False),
    "100,000 open brackets": ("[" * 100_000, False),
    "100,000 tables": ('{"":' * 100_000 + "1" + "}" * 100_000, False),
    "brackets in a string": (json.dumps("[" * 100_000), True),
    "a string that does not end": ('"' + '\\"' * 100_000, False),
    "as long as may be": (json.dumps("x" * (LARGEST - 2)), True),
    "a letter more": (json.dumps("x" * (LARGEST - 1)), False),
    "a key twice": ('{"a": 1, "a": 1}', False),
    "a key twice, written differently": ('{"a": 1, "\\u0061": 1}', False),
    "two values": ("1 2", False),
    "nothing": ("", False),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_bounds_are_where_they_are_said_to_be(case: str) -> None:
    text, good = BOUNDS[case]
    for form in (text, text.encode()):
        got = read(form)
        assert isinstance(got, ValueError) != good
        assert not isinstance(got, ValueError) or len(str(got)) < 200


def test_what_is_no_number_is_never_written() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="Out of range float"):
            written([number])
