"""Arrays of .npz files as they lie there: nothing is unpickled, nothing unpacked that would not fit in memory.

read_arrays(path, 2 * 10**9)    {"x_train": ..., "y_train": ...}; large ones that are not packed stay in the file
plain_labels({"train": y})      labels as whole numbers from 0, where that is certain, and what was done to them
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UsageError

Arrays = dict[str, NDArray[Any]]
LOCAL = 30  # bytes of the header before the name of a file in an archive
COPIES = 3  # of all arrays that are in memory while they are unpacked and brought into another order
WHOLE = 10_000  # classes at most, for which floats may stand


def read_arrays(path: Path, in_memory: int | None = None) -> Arrays:
    """Read all arrays of an .npz file; those of more than `in_memory` bytes that are not packed are mapped.

    Raises UsageError for what is no such file, or would not fit in memory.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"data.path: {path} is no file of arrays.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [of for of in archive.infolist() if of.filename.endswith(".npy")]
            heads = {of.filename: _head(archive, of) for of in members}
            _refuse_large(path, members, heads)
            return {of.filename.removesuffix(".npy"): _array(path, archive, of, heads, in_memory) for of in members}
    except FileNotFoundError:
        raise UsageError(f"data.path: there is no file {path}.") from None
    except UsageError:
        raise
    except Exception as error:  # a header goes through Python's own parser, and its errors are of every kind
        why = str(error)
        if "Object arrays" in why or "contains pickled" in why:
            why = "it holds Python objects"
        raise UsageError(f"{path} cannot be read as an .npz file of plain arrays: {why}") from error


def _head(archive: zipfile.ZipFile, of: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, kind of number, and where the numbers begin, of a member."""
    with archive.open(of) as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return (*read(opened), opened.tell())


def _refuse_large(
    path: Path, members: list[zipfile.ZipInfo], heads: Mapping[str, tuple[tuple[int, ...], bool, np.dtype[Any], int]]
) -> None:
    packed = sum(_size(heads[of.filename]) for of in members if of.compress_type != zipfile.ZIP_STORED)
    if COPIES * packed > (free := _memory()):
        raise UsageError(
            f"{path} is packed and would take {packed / 1e9:.1f} GB of the {free / 1e9:.1f} GB of memory here; write "
            "it with np.savez in place of np.savez_compressed, and it is read as it is needed."
        )


def _size(head: tuple[tuple[int, ...], bool, np.dtype[Any], int]) -> int:
    shape, _, kind, _ = head
    return int(np.prod(shape, dtype=object)) * kind.itemsize


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 2**63


def _array(
    path: Path,
    archive: zipfile.ZipFile,
    of: zipfile.ZipInfo,
    heads: Mapping[str, tuple[tuple[int, ...], bool, np.dtype[Any], int]],
    in_memory: int | None,
) -> NDArray[Any]:
    shape, fortran, kind, begin = heads[of.filename]
    stored = of.compress_type == zipfile.ZIP_STORED and not fortran and kind == np.uint8
    if in_memory is None or not stored or _size(heads[of.filename]) <= in_memory:
        with archive.open(of) as opened:
            return np.asarray(np.lib.format.read_array(opened, allow_pickle=False))
    with path.open("rb") as whole:
        place = of.header_offset + LOCAL + _lengths(whole, of.header_offset) + begin
    return np.memmap(path, kind, "r", place, shape)


def _lengths(whole: IO[bytes], offset: int) -> int:
    """How long the name and what follows it are in the header of a member."""
    whole.seek(offset + LOCAL - 4)
    name, extra = np.frombuffer(whole.read(4), "<u2").tolist()
    return int(name + extra)


def plain_labels(labels: Mapping[str, NDArray[Any]]) -> tuple[Arrays, tuple[str, ...], tuple[str, ...]]:
    """Labels as whole numbers [N] from 0, where it is certain that they are labels; the names of the classes where they
    are not those numbers; and what was done.
    """
    train, found = labels["train"], dict(labels)
    notes: list[str] = []
    if train.dtype.kind in "iub" and train.ndim == 2 and all(_is_column(y) for y in labels.values()):
        found = {split: y[:, 0] for split, y in found.items()}
        notes.append("labels are a column [N, 1], read as [N]")
    elif all(_is_one_hot(y) and y.shape[1:] == train.shape[1:] for y in labels.values()):
        found = {split: y.argmax(1) for split, y in found.items()}
        notes.append(f"labels are one-hot [N, {train.shape[1]}], read as {train.shape[1]} classes")
    elif all(_are_whole(y) for y in labels.values()):
        found = {split: y.reshape(-1).astype(np.int64) for split, y in found.items()}
        notes.append("labels are floats that are whole numbers, read as classes")
    if all(y.dtype.kind == "b" for y in found.values()):
        found = {split: y.astype(np.int64) for split, y in found.items()}
    seen = np.unique(found["train"]) if found["train"].dtype.kind in "iu" and found["train"].ndim == 1 else np.empty(0)
    if len(seen) > 1 and seen[0] == 1 and seen[-1] == len(seen) and all(y.min(initial=1) > 0 for y in found.values()):
        found = {split: y.astype(np.int64) - 1 for split, y in found.items()}
        notes.append(f"labels go from 1 to {len(seen)}; the first output is that of 1")
        return found, tuple(map(str, seen.tolist())), tuple(notes)
    return found, (), tuple(notes)


def _is_column(y: NDArray[Any]) -> bool:
    return y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "iub"


def _is_one_hot(y: NDArray[Any]) -> bool:
    """Whether each row has one 1 and zeros."""
    return y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all() and ((y == 1).sum(1) == 1).all())


def _are_whole(y: NDArray[Any]) -> bool:
    """Whether floats [N], or [N, 1], are whole numbers of few classes."""
    if y.dtype.kind != "f" or y.size == 0 or y.shape not in ((len(y),), (len(y), 1)) or not np.isfinite(y).all():
        return False
    few = len(np.unique(y)) <= max(2, y.size // 4)
    return bool((y == np.floor(y)).all() and y.min() >= 0 and y.max() < WHOLE and few)
