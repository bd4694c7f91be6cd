"""From a network to torch's exported program and to ONNX: traced once, quietly, without traces of this machine."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compress.errors import ArtifactError
from compress.export.onnx.shapes import first_line

TRACES = (
    "stack_trace",
    "nn_module_stack",
    "source_fn_stack",
)  # of an exported program: they name files of this machine


def to_program(model: nn.Module, *example: Tensor) -> torch.export.ExportedProgram:
    """Trace the network once, with a free batch. The example holds two images: one would fix the batch at 1.

    Raises ArtifactError where it cannot be traced.
    """
    batch = torch.export.Dim("batch")
    with _quiet(), _refusing("traced by torch.export"):
        return torch.export.export(model, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str]) -> onnx.ModelProto:
    """Translate a program; `inputs` are the names of its inputs. Raises ArtifactError where that cannot be done."""
    with _quiet(), _refusing("translated to ONNX"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=inputs,
            output_names=["logits"],
        )
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    return model


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save the program without traces of this machine, without a pickle, and with fixed times: equal in equal bytes."""
    for node in program.graph.nodes:
        for key in TRACES:
            node.meta.pop(key, None)
    whole = io.BytesIO()
    with _quiet():
        torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            emptied = "sample_inputs/" in name or "example_inputs" in name or name.endswith("serialization_id")
            archive.writestr(zipfile.ZipInfo(name), b"" if emptied else data)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the exporters raise dozens of kinds
        why = first_line(error)
        if "Constraints violated (batch)" in why:
            why = "forward() takes the batch for a number that is fixed, as len(x) and int() do; write x.shape[0]"
        raise ArtifactError(f"the network cannot be {what}: {why}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about its own insides off the terminal."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")  # of torch's own recurrent layers
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
