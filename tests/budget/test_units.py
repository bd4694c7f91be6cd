from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget.units import LARGEST, UNITS, Quantity, exact, parse, parse_list, show, threads
from compress.errors import UsageError

PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
always = settings(max_examples=300)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("43MFLOPs", 43 * 10**6, "FLOPs"),
        ("43 MMACs", 43 * 10**6, "MACs"),
        ("  <= 43 M flops ", 43 * 10**6, "FLOPs"),
        ("≤43Mmacs", 43 * 10**6, "MACs"),
        ("86MFLOPs@2", 86 * 10**6, "FLOPs@2"),
        ("0.58Mparams", 58 * 10**4, "params"),
        ("0.29 k parameters", 290, "params"),
        ("1 param", 1, "params"),
        ("2.4MB", 24 * 10**5, "B"),
        ("300KiB", 300 * 2**10, "B"),
        ("1.5 MiB", 3 * 2**19, "B"),
        ("1GiB", 2**30, "B"),
        ("7kB", 7000, "B"),
        ("12 B", 12, "B"),
        ("256KiB@activations", 256 * 2**10, "B@activations"),
        ("1.5 MB @ activation", 15 * 10**5, "B@activations"),
        ("2kB@act", 2000, "B@activations"),
        ("100 bytes@activations", 100, "B@activations"),
        ("43e6MACs", 43 * 10**6, "MACs"),
        ("1.5e-3GMACs", 15 * 10**5, "MACs"),
        (".5kMACs", 500, "MACs"),
        ("5.MACs", 5, "MACs"),
        (f"{LARGEST}MACs", LARGEST, "MACs"),
    ],
)
def test_an_amount_is_read_as_an_exact_count(text: str, value: int, unit: str) -> None:
    assert parse(text) == Quantity(value, None, unit, text.strip())


@pytest.mark.parametrize(
    ("text", "share", "unit"),
    [
        ("50%", Fraction(1, 2), "FLOPs"),
        ("50% params", Fraction(1, 2), "params"),
        ("<=12.5%MACs", Fraction(1, 8), "MACs"),
        ("0.1 % FLOPs@2", Fraction(1, 1000), "FLOPs@2"),
        ("99% B", Fraction(99, 100), "B"),
        ("150%", Fraction(3, 2), "FLOPs"),
        ("50%@activations", Fraction(1, 2), "B@activations"),
        ("50% B@act", Fraction(1, 2), "B@activations"),
    ],
)
def test_a_percentage_is_an_exact_share_of_the_base(text: str, share: Fraction, unit: str) -> None:
    assert parse(text) == Quantity(None, share, unit, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("43MFLOPS", "rate"),
        ("43GFLOPS@2", "rate"),
        ("50% FLOPS", "rate"),
        ("43MFLOP/s", "rate"),
        ("43 MACS/s", "rate"),
        ("43mFLOPs", "milli, a thousandth; did you mean '43MFLOPs'?"),
        ("43mflops", "did you mean '43MFLOPs'?"),
        ("2.4mB", "did you mean '2.4MB'?"),
        ("43M", "has no unit; write '43MMACs', '43Mparams', '43MFLOPs' or '43MB'"),
        ("43m", "has no unit; write '43MMACs'"),
        ("43", "has no unit"),
        ("3Ki", "has no unit"),
        ("0MACs", "zero"),
        ("0%", "zero"),
        ("-3MACs", "negative"),
        ("-1%", "negative"),
        ("nan MACs", "finite"),
        ("NaN", "finite"),
        ("inf", "finite"),
        ("-Infinity FLOPs", "finite"),
        (f"{LARGEST + 1}MACs", "above 2**62"),
        ("1e30MACs", "above 2**62"),
        ("1e30%", "above 2**62"),
        ("1e999999999999MACs", "exponent out of range"),
        ("1e-999999999999MACs", "exponent out of range"),
        ("0.5MACs", "not a whole number of MACs"),
        ("0.0000001Mparams", "not a whole number of params"),
        ("1.2B", "bytes, not billions: write '1.2GB'"),
        ("43Mb", "bit; write bytes"),
        ("43Mbit", "bit; write bytes"),
        ("43Mib", "bit; write bytes"),
        ("43gflops", "did you mean 'GFLOPs'?"),
        ("43Mparms", "did you mean 'Mparams'?"),
        ("43MiFLOPs", "unknown"),
        ("43 furlongs", "write one of params, MACs, FLOPs, FLOPs@2, B"),
        ("43MFLOPs@3", "FLOPs@2"),
        ("43MMACs@2", "only FLOPs"),
        ("256KiB@weights", "B@activations for the memory of activations"),
        ("256@activations", "B@activations for the memory of activations"),
        ("43kparams@act", "only FLOPs and B may say what they count"),
        ("0.5B@act", "bytes, not billions"),
        ("256kB@actvations", "B@activations"),
        ("50% Mparams", "write '50%' or '50% params'"),
        (">=43MFLOPs", "at most"),
        ("<43MFLOPs", "at most"),
        ("", "empty"),
        (" <= ", "empty"),
        ("1.2.3MACs", "not one number with a unit"),
        ("1 000 MACs", "not one number with a unit"),
        ("garbage", "not one number with a unit"),
        ("\uff14\uff13MFLOPs", "not one number with a unit"),
        ("1" * 100 + "MACs", "not one number with a unit"),
    ],
)
def test_what_is_no_amount_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5ms@onnxruntime-cpu/1", 5_000_000, "ns@onnxruntime-cpu/1"),
        ("<= 0.25 ms @ onnxruntime-cpu / 4", 250_000, "ns@onnxruntime-cpu/4"),
        ("1.5s@onnxruntime-cpu/16", 1_500_000_000, "ns@onnxruntime-cpu/16"),
        ("80us@onnxruntime-cpu/1", 80_000, "ns@onnxruntime-cpu/1"),
        ("7 ns@onnxruntime-cpu/1", 7, "ns@onnxruntime-cpu/1"),
    ],
)
def test_a_time_is_read_in_whole_nanoseconds(text: str, value: int, unit: str) -> None:
    assert parse(text) == Quantity(value, None, unit, text)
    assert parse(exact(value, unit)).value == value
    assert threads(unit) == int(unit.rpartition("/")[2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5ms", "a time needs the runtime that takes it; write '5ms@onnxruntime-cpu/1' (1 thread)"),
        ("5 ms @", "write '5ms@onnxruntime-cpu/1'"),
        ("5ms onnxruntime-cpu/1", "write '5ms@onnxruntime-cpu/1'"),
        ("5s@tensorrt", "only onnxruntime-cpu is measured here; write '5s@onnxruntime-cpu/1'"),
        ("5ms@onnxruntime-gpu/1", "only onnxruntime-cpu is measured here"),
        ("5ms@onnxruntime-cpu", "the number of threads is from 1 to 999; write '5ms@onnxruntime-cpu/1'"),
        ("5ms@onnxruntime-cpu/0", "the number of threads is from 1 to 999"),
        ("5ms@onnxruntime-cpu/two", "the number of threads is from 1 to 999"),
        ("5 m", "has no unit; write '5 MMACs', '5 Mparams', '5 MFLOPs' or '5 MB'; a time is '5ms@onnxruntime-cpu/1'"),
        ("0.5ns@onnxruntime-cpu/1", "not a whole number of ns"),
        ("0ms@onnxruntime-cpu/1", "zero"),
        ("50%@onnxruntime-cpu/1", "a time has no share"),
        ("50%ms", "a time has no share"),
        ("5ms@onnxruntime-cpu/1, 6ms@onnxruntime-cpu/1", "Two limits in ns@onnxruntime-cpu/1"),
    ],
)
def test_a_time_without_its_runtime_or_threads_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_list(text)
    assert says in str(refused.value)


def test_a_time_is_shown_in_the_unit_that_fits() -> None:
    unit = "ns@onnxruntime-cpu/4"
    shown = [show(value, unit) for value in (7, 999, 5_123_456, 80_000, 2 * 10**9)]
    assert [text.removesuffix("@onnxruntime-cpu/4") for text in shown] == [
        "7 ns",
        "999 ns",
        "5.123 ms",
        "80.0 us",
        "2.0 s",
    ]
    assert [threads(unit) for unit in UNITS] == [None] * len(UNITS)


def test_something_that_is_not_text_is_refused() -> None:
    with pytest.raises(UsageError, match="43 is not an amount"):
        parse(43)  # type: ignore[arg-type]


def test_a_list_holds_all_its_amounts() -> None:
    amounts = parse_list("43MFLOPs, 86 MFLOPs@2,0.58Mparams,50%B")
    assert [(q.value, q.share, q.unit) for q in amounts] == [
        (43 * 10**6, None, "FLOPs"),
        (86 * 10**6, None, "FLOPs@2"),
        (580_000, None, "params"),
        (None, Fraction(1, 2), "B"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("43MFLOPs, 40Mflops", "Two limits in FLOPs: '43MFLOPs' and '40Mflops'"),
        ("43MMACs, 50%MACs", "Two limits in MACs"),
        ("43MFLOPs,", "comma"),
        (",", "comma"),
        ("", "empty"),
        ("1,000 MACs", "'1' has no unit"),
    ],
)
def test_a_list_with_twins_or_gaps_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_list(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (43_000_000, "43.0 MMACs"),
        (42_999_999, "42.99 MMACs"),
        (580_000, "0.58 MMACs"),
        (313_201_664, "313.2 MMACs"),
        (999_999_999, "999.9 MMACs"),
        (10**9, "1.0 GMACs"),
        (99_999, "99.99 kMACs"),
        (1000, "1.0 kMACs"),
        (999, "999 MACs"),
        (0, "0 MACs"),
        (-43_000_000, "-43.0 MMACs"),
    ],
)
def test_a_count_is_shown_with_a_prefix_and_its_unit(value: int, text: str) -> None:
    assert show(value, "MACs") == text


@always
@given(st.integers(1, LARGEST), st.sampled_from(UNITS))
def test_an_exact_count_reads_back_as_itself(value: int, unit: str) -> None:
    read = parse(exact(value, unit))
    assert (read.value, read.unit) == (value, unit)


@always
@given(st.integers(1, LARGEST), st.sampled_from(UNITS))
def test_a_shown_count_is_never_larger_than_the_count_and_within_a_hundredth(value: int, unit: str) -> None:
    shown = parse(show(value, unit)).value
    assert shown is not None
    assert value - value / 100 <= shown <= value


@always
@given(st.integers(0, 10**9), st.integers(0, 9), st.sampled_from(sorted(PREFIXES)), st.sampled_from(UNITS))
def test_decimals_and_prefixes_multiply_out_or_are_refused(digits: int, places: int, prefix: str, unit: str) -> None:
    whole, rest = divmod(digits, 10**places)
    text = f"{whole}.{rest:0{places}d}{prefix}{unit}" if places else f"{whole}{prefix}{unit}"
    value, remainder = divmod(digits * PREFIXES[prefix], 10**places)
    if remainder or not 1 <= value <= LARGEST:
        with pytest.raises(UsageError):
            parse(text)
    else:
        assert parse(text).value == value


near_miss = st.lists(
    st.sampled_from(
        [
            *"0123456789.eE+-%@<=, \t\n\0kKMGTmiBb/",
            "FLOPs",
            "MACs",
            "params",
            "FLOPS",
            "nan",
            "inf",
            "²",
            "s",
            "@onnxruntime-cpu/",
        ]
    )
).map("".join)


@always
@given(st.text() | near_miss)
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        amounts = parse_list(text)
    except UsageError:
        return
    for quantity in amounts:
        assert (quantity.value is None) != (quantity.share is None)
        assert 0 < (quantity.value or quantity.share or 0) <= LARGEST
        assert quantity.unit in UNITS or threads(quantity.unit)
