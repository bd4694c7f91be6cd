"""The numbers in a .safetensors file, counted from its header alone: every one that is a parameter, whatever its type.

Batch norm's statistics are none, where they are a pair as batch norm keeps them; nor are the positions that some
networks store beside their weights, by the names that these have everywhere. What holds several numbers in one is
counted by what it is unpacked to where its names tell how; where they do not, nothing is vouched for.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from compress.errors import ArtifactError

HEADER = 16 * 2**20  # bytes: of a network with a hundred thousand tensors
INDEX = 16 * 2**20  # bytes: of the list of what lies in which part
CHANNELS = 65_536  # of batch norm, at most; what has more is no statistic
STATE = 4096  # bytes: of the text by which bitsandbytes says how a tensor is packed, at most
_SHARD = re.compile(r"\d+[-_]of[-_]\d+|consolidated\.\d+")
_BEHIND = ("position_ids", "token_type_ids", "relative_position_index", "g_idx")
_WHOLE = ("I64", "I32", "I16", "U8", "BOOL")  # kinds of positions and of counters
_CODES = re.compile(r"packed|codes|qidxs", re.IGNORECASE)  # in names of what holds several weights in one number
_PLAIN = frozenset(
    "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0 F6_E2M3 F6_E3M2 F4 I64 I16 I8 BOOL C64".split()  # noqa: SIM905
)  # one number in each, even where several share a byte


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header has it."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers of its kind it holds."""
        return prod(self.shape)

    def beside(self, last: str) -> str:
        """The name of a tensor of the same module: "a.weight" beside "bias" is "a.bias"."""
        return f"{self.name.rpartition('.')[0]}.{last}".lstrip(".")


def count(path: Path) -> tuple[int, list[str]]:
    """Count the parameters in a .safetensors file; notes on what was unpacked, or is no real number.

    Raises ArtifactError where the file is broken, empty or one of several, or may hold numbers that cannot be counted.
    """
    if _SHARD.search(path.name) or _is_listed(path):
        raise ArtifactError(
            f"{path}: one part of several; nobody can vouch for the params of a network by a part of it."
        )
    tensors = {tensor.name: tensor for tensor in _header(path)}
    if not tensors:
        raise ArtifactError(f"{path}: holds no tensors; nobody can vouch for the params of a network without any.")
    total, notes = 0, []
    for tensor in tensors.values():
        if _is_statistic(tensor, tensors) or _is_behind(tensor):
            continue
        size = _unpacked(tensor, tensors)
        if size is None:
            raise ArtifactError(
                f"{path}: nobody can vouch for its params: {tensor.name!r} holds {tensor.size:,} numbers of type "
                f"{tensor.kind}, each of which may be several weights packed together."
            )
        if size != tensor.size:
            notes.append(f"{tensor.name!r}: {tensor.size:,} numbers of type {tensor.kind} are {size:,} weights packed")
        if tensor.kind == "C64":
            notes.append(f"{tensor.name!r}: its {size:,} numbers are complex, of two reals each, and count once")
        total += size
    return total, notes


def _header(path: Path) -> Iterator[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > HEADER:
                raise ArtifactError(f"{path}: not a safetensors file: its header would have {size:,} bytes.")
            known = json.loads(file.read(size) or b"null")
        with safe_open(path, framework="numpy"):  # it checks that what the header says is true of the file
            pass
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file: {error}") from None
    for name, entry in known.items():
        if name != "__metadata__":
            yield Tensor(name, str(entry["dtype"]), tuple(entry["shape"]))


def _is_listed(path: Path) -> bool:
    """Whether a list beside the file says that the network lies in it and in others."""
    for index in path.parent.glob("*.index.json"):
        try:
            with index.open("rb") as file:
                places = json.loads(file.read(INDEX))["weight_map"]
            files = {str(name) for name in places.values()}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            continue
        if path.name in files and len(files) > 1:
            return True
    return False


def _is_behind(tensor: Tensor) -> bool:
    """Whether it is a position, a counter, or the state of a packing, by its name and by its kind."""
    last = tensor.name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return tensor.kind in _WHOLE and tensor.size <= 1
    if ".quant_state." in tensor.name:  # a text in bytes that says how its neighbour is packed
        return tensor.kind == "U8" and tensor.size <= STATE
    return last in _BEHIND and tensor.kind in _WHOLE


def _is_statistic(tensor: Tensor, others: Mapping[str, Tensor]) -> bool:
    """Whether it is batch norm's running mean or variance: a pair of one axis, beside a weight of it or of none."""
    last = tensor.name.rpartition(".")[2]
    if last not in ("running_mean", "running_var") or len(tensor.shape) != 1 or tensor.size > CHANNELS:
        return False
    pair = [others.get(tensor.beside(name)) for name in ("running_mean", "running_var")]
    weight = others.get(tensor.beside("weight"))
    shapes = {other.shape for other in [*pair, weight or tensor] if other is not None}
    return None not in pair and shapes == {tensor.shape} and tensor.kind in ("F64", "F32", "F16", "BF16")


def _unpacked(tensor: Tensor, others: Mapping[str, Tensor]) -> int | None:
    """How many weights a tensor holds; None where nobody can tell."""
    last = tensor.name.rpartition(".")[2]
    if tensor.kind in ("U8", "I8") and _bits_and_bytes(tensor, others):
        return 2 * tensor.size
    if tensor.kind == "U8" and last in ("absmax", "nested_absmax"):  # scales of bitsandbytes, one in each
        return tensor.size
    if tensor.size > 1 and tensor.kind[0] in "IU" and _CODES.search(tensor.name):
        return None
    if tensor.kind in _PLAIN:
        return tensor.size
    if tensor.kind in ("I32", "U32") and last in ("qweight", "qzeros"):
        if (bits := _bits(tensor, others)) is not None:
            return 32 * tensor.size // bits
        return None
    return tensor.size if tensor.size <= 1 else None


def _bits_and_bytes(tensor: Tensor, others: Mapping[str, Tensor]) -> bool:
    """Four bits each, as bitsandbytes packs them: one column, or with the state of the packing beside."""
    return (tensor.kind == "U8" and tensor.shape[1:] == (1,)) or any(
        name.startswith(f"{tensor.name}.quant_state.") for name in others
    )


def _bits(tensor: Tensor, others: Mapping[str, Tensor]) -> int | None:
    """How many bits a weight has, as GPTQ (rows packed) and AWQ (columns packed) lay them out.

    Scales are [groups, out]. GPTQ: qweight [in x bits / 32, out], g_idx [in]; AWQ: qweight [in, out x bits / 32]. Zero
    points are [groups, out x bits / 32] in both.
    """
    scales, zeros, weight, index = (others.get(tensor.beside(n)) for n in ("scales", "qzeros", "qweight", "g_idx"))
    if scales is None or zeros is None or weight is None or len(scales.shape) != 2 or len(weight.shape) != 2:
        return None
    groups, out = scales.shape
    found = {32 * zeros.size / (groups * out) if groups * out else 0.0}
    if index is not None:
        found.add(32 * weight.size / (index.size * out) if index.size else 0.0)
    elif weight.shape[1] != out:
        found.add(32 * weight.shape[1] / out)
    bits = found.pop()
    return int(bits) if not found and bits in (2.0, 3.0, 4.0, 8.0) else None
