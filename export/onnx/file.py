"""ONNX files as evidence: read them, clean them, sign them, count them. Needs onnx, never torch or onnxruntime.

A file of ours ends with a seal, the digest of every byte before it, so that it cannot be cut short or edited unnoticed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, StringStringEntryProto, TensorProto, ValueInfoProto

from compress.errors import ArtifactError, UsageError
from compress.export.canonical import read_json, written
from compress.export.onnx.count import FileCost, count
from compress.export.onnx.fold import SMALL
from compress.export.onnx.shapes import Shape, first_line
from compress.export.onnx.stored import BAKED, bodies, tensors
from compress.export.onnx.wire import weigh

PRODUCER = "compress"
PREFIX = "compress."  # of our metadata keys
SEAL = PREFIX + "seal"  # the last entry of a file: the digest of every byte before it
UNLISTED = ("SimplifiedLayerNormalization",)  # operators that onnxruntime puts among onnx's own
LARGEST = 2**31  # bytes: what protocol buffers can hold
MOST_TOPICS = 64  # of ours in a file, which has seven
BATCH = "batch"  # the symbol of axis 0 in files that we write


def read(path: Path | str) -> ModelProto:
    """Load an ONNX file and refuse what is not whole.

    Weights may lie in other files beside it; they stay there. Raises UsageError where there is no file; ArtifactError
    where it is empty, truncated, foreign, inconsistent, would take far more memory than it has bytes, lacks weights,
    or was written by us and changed since (its seal is broken or gone).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give the path of an .onnx file.")
    if (size := path.stat().st_size) >= LARGEST:
        raise ArtifactError(f"{path}: no ONNX file has {size:,} bytes: weights of that size lie in files beside it.")
    data = path.read_bytes()
    if not data:
        raise ArtifactError(f"{path}: the file is empty (0 bytes); export it again.")
    try:
        weigh(data, ModelProto.DESCRIPTOR)
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise ArtifactError(f"{path}: not an ONNX model, or a truncated one ({len(data)} bytes).") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not an ONNX model: a name in it is no UTF-8 ({error.object[:40]!r}).") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    if not model.graph.node or not model.opset_import:
        raise ArtifactError(f"{path}: holds no ONNX graph ({len(data)} bytes): truncated, or another kind of file.")
    _check_seal(path, data, model)
    try:
        outside(path, model)
        _fetch_small(path, model)
        _check_sizes(model)
        onnx.checker.check_model(_checkable(model, data))
    except ArtifactError:
        raise
    except Exception as error:  # onnx raises kinds of its own, of which some are not where they are documented
        raise ArtifactError(f"{path}: not a valid ONNX model: {first_line(error)}") from None
    return model


def outside(path: Path, model: ModelProto) -> int:
    """Return the size of the files in which a model keeps weights, in bytes: what a device needs beside it.

    Raises ArtifactError where one is missing, too short for what it must hold, or not in the folder of the model.
    """
    ends: dict[str, int] = {}
    for tensor in filter(_is_outside, tensors(model)):
        name, offset, length = _place(path, tensor)
        needed = _bytes(tensor)
        if length and needed is not None and length < needed:
            raise ArtifactError(f"{path}: its tensor {tensor.name!r} needs {needed:,} bytes and has {length:,}.")
        ends[name] = max(ends.get(name, 0), offset + (length or needed or 0))
    total = 0
    for name, end in ends.items():
        try:
            file = (path.parent / name).resolve()
            size = file.stat().st_size if file.is_file() else -1
        except (OSError, ValueError):  # a name that no system has files of
            size, file = -1, path
        if size < end or not file.is_relative_to(path.parent.resolve()):
            short = f"has {size:,} bytes of {end:,}" if size >= 0 else "is missing"
            raise ArtifactError(f"{path}: keeps weights in {name[:80]!r}, which {short}; copy it beside the model.")
        total += size
    return total


def write_sealed(model: ModelProto, path: Path | str) -> int:
    """Write the model with its seal behind it, and return the size of the file in bytes. Equal models, equal bytes."""
    body = model.SerializeToString(deterministic=True)
    data = body + _seal(body)
    Path(path).write_bytes(data)
    return len(data)


def clean(model: ModelProto) -> ModelProto:
    """Return a copy with nothing in it but the network: no traces, comments, inner shapes, metadata or paths."""
    model = _twin_of(model)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("producer_version")
    model.producer_name = PRODUCER
    for body in bodies(model):
        things = [body, *body.node, *(attribute for node in body.node for attribute in node.attribute)]
        if isinstance(body, GraphProto):
            things += [*body.input, *body.output, *body.initializer]
        for thing in things:
            for field in ("doc_string", "metadata_props", "quantization_annotation", "value_info"):
                if field in thing.DESCRIPTOR.fields_by_name:
                    thing.ClearField(field)
    for symbol in {dim.dim_param for value in model.graph.input for dim in dims(value)[:1] if dim.dim_param}:
        for dim in (d for v in (*model.graph.input, *model.graph.output) for d in dims(v) if d.dim_param == symbol):
            dim.dim_param = BATCH
    return model


def bake(model: ModelProto, scale: Sequence[float], shift: Sequence[float], axes: int = 3) -> ModelProto:
    """Return a copy whose input [N, C, ...], of so many `axes` beside its batch, is first multiplied by `scale`, then
    shifted by `shift`, per channel.
    """
    model = _twin_of(model)
    graph = model.graph
    name = graph.input[0].name
    taken = {n for node in graph.node for n in (*node.input, *node.output)}
    if taken & set(BAKED):
        raise ArtifactError(f"the graph already holds {sorted(taken & set(BAKED))}: its preprocessing is baked in.")
    for node in graph.node:
        node.input[:] = ["preprocessing.output" if n == name else n for n in node.input]
    for constant, numbers in zip(BAKED, (scale, shift), strict=True):
        shape = (1, len(numbers), *[1] * (axes - 1))
        graph.initializer.append(onnx.helper.make_tensor(constant, TensorProto.FLOAT, shape, numbers))
    nodes = [
        onnx.helper.make_node("Mul", [name, BAKED[0]], ["preprocessing.scaled"]),
        onnx.helper.make_node("Add", ["preprocessing.scaled", BAKED[1]], ["preprocessing.output"]),
        *graph.node,
    ]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return model


def stamp(model: ModelProto, metadata: Mapping[str, Any]) -> ModelProto:
    """Return a copy that carries our metadata and no other: one sorted entry of sorted JSON for each topic."""
    model = _twin_of(model)
    model.ClearField("metadata_props")
    for topic in sorted(metadata):
        model.metadata_props.append(_metadata_entry(topic, metadata[topic]))
    return model


def metadata(model: ModelProto) -> dict[str, Any]:
    """Return our metadata by topic; empty for a file that others wrote.

    Raises ArtifactError on broken JSON, a topic that is there twice, and more topics than anybody writes.
    """
    entries = [entry for entry in model.metadata_props if entry.key.startswith(PREFIX) and entry.key != SEAL]
    if len(entries) > MOST_TOPICS:
        raise ArtifactError(f"its metadata has {len(entries):,} entries of compress, of at most {MOST_TOPICS}.")
    topics: dict[str, Any] = {}
    for entry in entries:
        topic = entry.key.removeprefix(PREFIX)
        if topic in topics:
            raise ArtifactError(f"the metadata {entry.key[:60]!r} is there twice.")
        try:
            topics[topic] = read_json(entry.value)
        except ValueError as error:
            what = f"the metadata {entry.key[:60]!r} is not JSON: {entry.value[:40]!r}"
            raise ArtifactError(f"{what} ({error}).") from None
    return topics


def metadata_bytes(metadata: Mapping[str, Any]) -> int:
    """Return how many bytes `stamp` and the seal add to a file: exact, so that a budget in bytes can reserve them."""
    size: int = ModelProto(metadata_props=[_metadata_entry(k, v) for k, v in metadata.items()]).ByteSize()
    return size + len(_seal(b""))


def count_file(source: ModelProto | Path | str, given: Mapping[str, Shape] | None = None) -> FileCost:
    """Count a model in memory or in a file; `count.count` says how. Raises what that and `read` raise."""
    if isinstance(source, ModelProto):
        return count(source, given)
    path, model = Path(source), read(source)
    return replace(count(model, given), bytes=path.stat().st_size + outside(path, model))


def _checkable(model: ModelProto, data: bytes) -> bytes | ModelProto:
    """What onnx's checker is to see: the file, or a twin in which weights that lie elsewhere have no numbers, operators
    that onnx lacks are a stranger's, and an output of no stated shape has one: for it these would be mistakes.
    """
    ours = [node for node in model.graph.node if node.op_type in UNLISTED and not node.domain]
    shapeless = [
        v for v in model.graph.output if v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape")
    ]
    if not (ours or shapeless or any(map(_is_outside, tensors(model)))):
        return data
    twin = _twin_of(model)
    for tensor in filter(_is_outside, tensors(twin)):
        for field in ("external_data", "data_location", "raw_data", "dims"):
            tensor.ClearField(field)
        tensor.dims[:] = [0]
    for node in twin.graph.node:
        if node.op_type in UNLISTED and not node.domain:
            node.domain = "com.microsoft"
    if ours and all(entry.domain != "com.microsoft" for entry in twin.opset_import):
        twin.opset_import.add(domain="com.microsoft", version=1)
    for value in twin.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return twin


def _place(path: Path, tensor: TensorProto) -> tuple[str, int, int]:
    """The file of a tensor's numbers, where they begin in it, and their length, 0 where that is not said."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    name, numbers = told.get("location", ""), [told.get(key, "0") or "0" for key in ("offset", "length")]
    strange = not name or Path(name).is_absolute() or ".." in Path(name).parts
    if strange or not all(len(n) < 20 and n.isascii() and n.isdigit() for n in numbers):
        raise ArtifactError(f"{path}: its tensor {tensor.name!r} lies nowhere that can be read ({name[:80]!r}).")
    return name, int(numbers[0]), int(numbers[1])


def _fetch_small(path: Path, model: ModelProto) -> None:
    """Bring the few numbers that shapes may be reckoned from into the model; they still say where they lie."""
    for tensor in filter(_is_outside, tensors(model)):
        needed = _bytes(tensor)
        if needed and prod(tensor.dims) <= SMALL:
            name, offset, _ = _place(path, tensor)
            with (path.parent / name).open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(needed)
            tensor.data_location = TensorProto.DEFAULT


def dims(value: ValueInfoProto) -> list[Any]:
    """Return the axes of a value, each with `dim_value` or `dim_param`."""
    return list(value.type.tensor_type.shape.dim)


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)


def _check_sizes(model: ModelProto) -> None:
    """Raise ValueError where a tensor says that it holds other numbers than it does."""
    for tensor in tensors(model):
        if any(n < 0 for n in tensor.dims):
            raise ValueError(f"the tensor {tensor.name!r} has an axis below 0")
        needed = _bytes(tensor)
        if needed is not None and tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise ValueError(f"the tensor {tensor.name!r} needs {needed:,} bytes and has {len(tensor.raw_data):,}")


def _bytes(tensor: TensorProto) -> int | None:
    """How many bytes the numbers of a tensor take; None for texts and kinds of the future."""
    bits = _BITS.get(TensorProto.DataType.Name(tensor.data_type)) if tensor.data_type in _KINDS else None
    return None if bits is None else -(-prod(tensor.dims) * bits // 8)


_KINDS = frozenset(TensorProto.DataType.values())
_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2,
    "INT2": 2, "FLOAT8E8M0": 8,
}  # fmt: skip


def _twin_of(model: ModelProto) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    return twin


def _metadata_entry(topic: str, value: Any) -> StringStringEntryProto:
    return StringStringEntryProto(key=PREFIX + topic, value=written(value))


def _seal(body: bytes) -> bytes:
    # Protocol buffers join by concatenation, so the digest of all bytes so far can simply follow them.
    entry = StringStringEntryProto(key=SEAL, value=hashlib.sha256(body).hexdigest())
    data: bytes = ModelProto(metadata_props=[entry]).SerializeToString(deterministic=True)
    return data


def _check_seal(path: Path, data: bytes, model: ModelProto) -> None:
    if model.producer_name != PRODUCER and all(not entry.key.startswith(PREFIX) for entry in model.metadata_props):
        return
    length = len(_seal(b""))
    if data[-length:] != _seal(data[:-length]):
        raise ArtifactError(f"{path}: changed or cut short since compress wrote it (its seal is broken); copy it anew.")
