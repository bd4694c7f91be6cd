"""Every number in a header of weights is counted, or the file is refused by the name of what cannot be."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from compress.errors import ArtifactError
from compress.export.tensors import HEADER, count
from compress.export.verify import verify

BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "U16": 16,
    "U32": 32,
    "BOOL": 8,
    "C64": 64,
    "F4": 4,
    "F8_E8M0": 8,
}


def write(folder: Path, name: str = "model.safetensors", **tensors: tuple[str, list[int]]) -> Path:
    """A file of tensors of these kinds and shapes; "_" in a keyword stands for "."."""
    header: dict[str, Any] = {}
    at = 0
    for key, (kind, shape) in tensors.items():
        size = prod(shape) * BITS[kind] // 8
        header[key.replace("__", ".")] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = folder / name
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return path


COUNTED = {
    **{
        f"one number each, {kind}": ({"a__weight": (kind, [6, 4])}, 24)
        for kind in (
            "F64",
            "F32",
            "F16",
            "BF16",
            "F8_E4M3",
            "F8_E5M2",
            "I8",
            "I16",
            "F4",
            "F8_E8M0",
            "BOOL",
            "C64",
            "I64",
        )
    },
    "8 bits of bitsandbytes, with their scales": ({"a__weight": ("I8", [8, 4]), "a__SCB": ("F32", [8])}, 40),
    "4 bits of bitsandbytes": ({"a__weight": ("U8", [16, 1])}, 32),
    "4 bits of bitsandbytes, with their state": (
        {"a__weight": ("I8", [4, 4]), "a__weight__absmax": ("F32", [2]), "a__weight__quant_state__x": ("F32", [1])},
        35,
    ),
    "4 bits of GPTQ": (
        {
            "a__qweight": ("I32", [64 // 8, 10]),
            "a__qzeros": ("I32", [2, 2]),
            "a__scales": ("F16", [2, 16]),
            "a__g_idx": ("I32", [64]),
        },
        None,
    ),  # 10 columns and 16 scales contradict each other
    "4 bits of GPTQ, whole": (
        {
            "a__qweight": ("I32", [8, 16]),
            "a__qzeros": ("I32", [2, 2]),
            "a__scales": ("F16", [2, 16]),
            "a__g_idx": ("I32", [64]),
        },
        64 * 16 + 2 * 16 + 2 * 16,
    ),
    "8 bits of GPTQ": (
        {
            "a__qweight": ("I32", [16, 16]),
            "a__qzeros": ("I32", [2, 4]),
            "a__scales": ("F16", [2, 16]),
            "a__g_idx": ("I32", [64]),
        },
        64 * 16 + 2 * 16 + 2 * 16,
    ),
    "4 bits of AWQ": (
        {"a__qweight": ("I32", [64, 2]), "a__qzeros": ("I32", [4, 2]), "a__scales": ("F16", [4, 16])},
        64 * 16 + 4 * 16 + 4 * 16,
    ),
    "packed by nobody known": ({"a__weight": ("I32", [8, 4])}, None),
    "packed by nobody known, without sign": ({"a__weight": ("U32", [8, 4])}, None),
    "packed bytes": ({"a__blocks": ("U8", [8, 4])}, None),
    "batch norm": (
        {
            "n__weight": ("F32", [4]),
            "n__bias": ("F32", [4]),
            "n__running_mean": ("F32", [4]),
            "n__running_var": ("F32", [4]),
            "n__num_batches_tracked": ("I64", []),
        },
        8,
    ),
    "batch norm without a weight": (
        {"n__running_mean": ("F32", [4]), "n__running_var": ("F32", [4]), "w": ("F32", [2])},
        2,
    ),
    "batch norm at the top": ({"weight": ("F32", [4]), "running_mean": ("F32", [4]), "running_var": ("F32", [4])}, 4),
    "half of a pair": ({"n__running_mean": ("F32", [4])}, 4),
    "a matrix that is named like a statistic": (
        {"n__running_mean": ("F32", [4, 4]), "n__running_var": ("F32", [4, 4])},
        32,
    ),
    "a pair of different lengths": ({"n__running_mean": ("F32", [4]), "n__running_var": ("F32", [5])}, 9),
    "a pair longer than its weight": (
        {"n__weight": ("F32", [4]), "n__running_mean": ("F32", [9]), "n__running_var": ("F32", [9])},
        22,
    ),
    "a counter that is none": ({"n__num_batches_tracked": ("F32", [3, 4]), "w": ("F32", [2])}, 14),
    "a counter of many": ({"n__num_batches_tracked": ("I64", [3]), "w": ("F32", [2])}, 5),
    "positions that are no whole numbers": ({"e__position_ids": ("F32", [3, 4]), "w__g_idx": ("F16", [5])}, 17),
    "a pair of more channels than any": (
        {"n__running_mean": ("F16", [65_537]), "n__running_var": ("F16", [65_537])},
        131_074,
    ),
    "4 bits of bitsandbytes, their scales packed too": (
        {
            "l__weight": ("U8", [64, 1]),
            "l__weight__absmax": ("U8", [2]),
            "l__weight__nested_absmax": ("F32", [1]),
            "l__weight__quant_map": ("F32", [16]),
            "l__weight__quant_state__bitsandbytes__nf4": ("U8", [87]),
        },
        128 + 2 + 1 + 16,
    ),
    "codes of a codebook": ({"l__codes": ("I16", [8, 4, 1]), "l__codebooks": ("F16", [1, 256, 1, 8])}, None),
    "indices of a lattice": ({"l__Qidxs": ("I64", [8, 4])}, None),
    "packed, and said to be": ({"l__weight_packed": ("I8", [8, 4]), "l__weight_scale": ("F16", [8, 1])}, None),
    "positions": ({"e__position_ids": ("I64", [1, 512]), "e__weight": ("F32", [3, 3])}, 9),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_of_every_kind_are_counted_or_refused(name: str, tmp_path: Path) -> None:
    tensors, params = COUNTED[name]
    path = write(tmp_path, **tensors)
    if params is None:
        with pytest.raises(ArtifactError):
            count(path)
        assert verify(path, "1Gparams").code == 4
    else:
        assert count(path)[0] == params
        assert [verify(path, f"{n}params").code for n in (params, params - 1)] == [0, 1]


def test_what_was_unpacked_is_said(tmp_path: Path) -> None:
    assert count(write(tmp_path, a__weight=("U8", [16, 1])))[1] == [
        "'a.weight': 16 numbers of type U8 are 32 weights packed"
    ]
    assert "count once" in count(write(tmp_path, a=("C64", [4])))[1][0]


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00003.safetensors",
        "model-00001-of-00003.fp16.safetensors",
        "model_00001-of-00003.safetensors",
        "model-1_of_3.safetensors",
        "consolidated.00.safetensors",
    ],
)
def test_one_of_several_files_is_no_network(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="one part of several"):
        count(write(tmp_path, name, a=("F32", [4])))


def test_a_list_beside_it_tells_a_part_whatever_its_name(tmp_path: Path) -> None:
    path, index = write(tmp_path, a=("F32", [4])), tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": path.name, "b": "other.safetensors"}}))
    with pytest.raises(ArtifactError, match="one part of several"):
        count(path)
    for harmless in (json.dumps({"weight_map": {"a": path.name}}), "{", "[]", '{"weight_map": 3}'):
        index.write_text(harmless)
        assert count(path)[0] == 4


@pytest.mark.parametrize("size", [HEADER + 1, 2**63])
def test_a_header_larger_than_any_is_not_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="header would have"):
        count(path)


def test_a_header_as_deep_as_the_sea_is_a_sentence(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert verify(tmp_path / "model.safetensors", "1Gparams").code == 4
