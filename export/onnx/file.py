"""ONNX files as evidence: read them, clean them, sign them, count them. Needs onnx, never torch or onnxruntime.

A file of ours ends with a seal, the digest of every byte before it, so that it cannot be cut short or edited unnoticed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, StringStringEntryProto, TensorProto

from compress.errors import ArtifactError, UsageError
from compress.export.onnx import count as onnx_count
from compress.export.onnx.count import BAKED, FileCost, bodies, dims, first_line, tensors

PRODUCER = "compress"
PREFIX = "compress."  # of our metadata keys
SEAL = PREFIX + "seal"  # the last entry of a file: the digest of every byte before it
BATCH = "batch"  # the symbol of axis 0 in files that we write


def read(path: Path | str) -> ModelProto:
    """Load an ONNX file and refuse what is not whole.

    Raises UsageError where there is no file; ArtifactError where it is empty, truncated, foreign, inconsistent, keeps
    weights in other files, or was written by us and changed since (its seal is broken or gone).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give the path of an .onnx file.")
    data = path.read_bytes()
    if not data:
        raise ArtifactError(f"{path}: the file is empty (0 bytes); export it again.")
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise ArtifactError(f"{path}: not an ONNX model, or a truncated one ({len(data)} bytes).") from None
    if not model.graph.node or not model.opset_import:
        raise ArtifactError(f"{path}: holds no ONNX graph ({len(data)} bytes): truncated, or another kind of file.")
    outside = [t.name for t, _ in tensors(model) if t.data_location == TensorProto.EXTERNAL or t.external_data]
    if outside:
        raise ArtifactError(f"{path}: keeps weights in other files ({outside[0]!r}, ...); save it as one file.")
    _check_seal(path, data, model)
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a valid ONNX model: {first_line(error)}") from None
    return model


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


def bake(model: ModelProto, scale: Sequence[float], shift: Sequence[float]) -> ModelProto:
    """Return a copy whose input [N, C, H, W] is first multiplied by `scale`, then shifted by `shift`, per channel."""
    model = _twin_of(model)
    graph = model.graph
    name = graph.input[0].name
    taken = {n for node in graph.node for n in (*node.input, *node.output)}
    if taken & set(BAKED):
        raise ArtifactError(f"the graph already holds {sorted(taken & set(BAKED))}: its preprocessing is baked in.")
    for node in graph.node:
        node.input[:] = ["preprocessing.output" if n == name else n for n in node.input]
    for constant, numbers in zip(BAKED, (scale, shift), strict=True):
        graph.initializer.append(onnx.helper.make_tensor(constant, TensorProto.FLOAT, (1, len(numbers), 1, 1), numbers))
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
    """Return our metadata by topic; empty for a file that others wrote. Raises ArtifactError on broken JSON."""
    topics = {}
    for entry in model.metadata_props:
        if entry.key.startswith(PREFIX) and entry.key != SEAL:
            try:
                topics[entry.key.removeprefix(PREFIX)] = json.loads(entry.value)
            except ValueError:
                raise ArtifactError(f"the metadata {entry.key!r} is not JSON: {entry.value[:40]!r}.") from None
    return topics


def metadata_bytes(metadata: Mapping[str, Any]) -> int:
    """Return how many bytes `stamp` and the seal add to a file: exact, so that a budget in bytes can reserve them."""
    size: int = ModelProto(metadata_props=[_metadata_entry(k, v) for k, v in metadata.items()]).ByteSize()
    return size + len(_seal(b""))


def count_file(source: ModelProto | Path | str) -> FileCost:
    """Count a model in memory or in a file; `onnx_count.count` says how. Raises what that and `read` raise."""
    if isinstance(source, ModelProto):
        return onnx_count.count(source)
    return replace(onnx_count.count(read(source)), bytes=Path(source).stat().st_size)


def _twin_of(model: ModelProto) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    return twin


def _metadata_entry(topic: str, value: Any) -> StringStringEntryProto:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return StringStringEntryProto(key=PREFIX + topic, value=text)


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
