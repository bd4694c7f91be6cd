"""Files changed at random, until `compress verify` fails on one in a way that is its own fault.

    python benchmarks/fuzz.py --minutes 30 --out fuzz

Each seed takes a small ONNX file, a file of weights, or the folder of a finished run, changes it a few times (bytes,
fields of the protocol buffer, JSON; sealed anew half of the time, so that the change gets past the seal) and asks for a
verdict on a random limit. A verdict, or a sentence, is right; anything else is a fault: another exception, a process
that dies, more than 5 seconds of CPU or 1 GB. What fails is kept in the output folder with its seed. Exits with 1 then.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

BLOCK = 200  # seeds for each process: one that dies costs no more than these
SECONDS, GIGABYTE = 5.0, 2**30
LIMITS = (
    "1MMACs",
    "1GFLOPs",
    "2GFLOPs@2",
    "1kparams",
    "10MB",
    "64KiB@activations",
    "50%",
    "1MMACs, 1Mparams",
    "sealed",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 32, 255, 2**16, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))


def main() -> int:
    """Run blocks of seeds in processes of their own until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--corpus", type=Path, help="A folder of further files to change, such as the oracle set.")
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.block is not None:
        return work(options.out, options.corpus, options.block)
    options.out.mkdir(parents=True, exist_ok=True)
    ends, seed, codes, faults = time.monotonic() + 60 * options.minutes, options.first, {}, 0
    while time.monotonic() < ends:
        command = [sys.executable, __file__, "--out", str(options.out), "--block", str(seed)]
        command += ["--corpus", str(options.corpus)] if options.corpus else []
        done = subprocess.run(command, capture_output=True, text=True)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        for row in told:
            codes[row["code"]] = codes.get(row["code"], 0) + 1
        bad = [row for row in told if row.get("fault")]
        if done.returncode:
            at = seed + len(told)
            bad.append({"seed": at, "fault": f"the process ended with {done.returncode}: {done.stderr[-300:]}"})
            seed = at + 1
        else:
            seed += BLOCK
        for row in bad:
            faults += 1
            print(f"seed {row['seed']}: {row['fault']}", flush=True)
    print(f"{seed - options.first:,} files; by exit code: {dict(sorted(codes.items()))}; {faults} faults")
    return 1 if faults else 0


def work(out: Path, corpus: Path | None, first: int) -> int:
    """Try a block of seeds, a line of JSON for each."""
    starts = corpus_of(corpus)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(first, first + BLOCK):
            row = attempt(seed, starts, Path(scratch) / str(seed))
            if row.get("fault"):
                shutil.copytree(Path(scratch) / str(seed), out / str(seed), dirs_exist_ok=True)
            shutil.rmtree(Path(scratch) / str(seed), ignore_errors=True)
            print(json.dumps(row), flush=True)
    return 0


def attempt(seed: int, starts: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Change one file, ask for a verdict, and say what is wrong with the answer, if anything is."""
    from compress.errors import CompressError
    from compress.export.verify import verify

    dice = random.Random(seed)
    start = dice.choice(starts)
    if start.is_dir():
        shutil.copytree(start, folder)
        target, victim = folder, dice.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    else:
        folder.mkdir(parents=True)
        victim = target = folder / start.name
        shutil.copy(start, target)
    for _ in range(dice.choice((1, 1, 2, 5))):
        change(victim, dice)
    shape = dice.choice(((), (), (), "1,3,8,8", "x=1,3,32,32", "x=-1", "=", "\x1b=1"))
    began, fault = time.process_time(), ""
    try:
        code = verify(target, dice.choice(LIMITS), shape=shape).code
    except CompressError as error:
        code = error.exit_code
    except Exception as error:
        code, fault = 70, f"{type(error).__name__}: {str(error)[:200]} ({victim.name})"
    if code == 70 and not fault:
        fault = "a fault of its own"
    if (took := time.process_time() - began) > SECONDS:
        fault = fault or f"{took:.1f} s of CPU"
    if (peak := 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > GIGABYTE:
        fault = fault or f"{peak:,} B of memory"
    return {"seed": seed, "code": code, "fault": fault}


# ---- changes --------------------------------------------------------------------------------------------------------


def change(path: Path, dice: random.Random) -> None:
    """Change a file a little: its bytes, or what they mean."""
    data = path.read_bytes()
    if path.suffix == ".onnx" and dice.random() < 0.8:
        return change_onnx(path, dice)
    if path.suffix == ".json" and dice.random() < 0.8:
        with suppress(ValueError, RecursionError):
            path.write_text(json.dumps(change_json(json.loads(data), dice)), encoding="utf-8")
        return None
    at = dice.randrange(len(data) + 1)
    size = dice.choice((1, 1, 4, 64, len(data)))
    match dice.randrange(5):
        case 0:
            data = data[:at] + dice.randbytes(size % 512) + data[at + size :]
        case 1:
            data = data[:at]
        case 2:
            data = data[:at] + data[at : at + size][: 2**17] * dice.choice((2, 100)) + data[at + size :]
        case 3:
            data = data[:at] + bytes(min(size, 4096)) + data[at + size :]
        case 4:
            data = data[at:] + data[:at]
    path.write_bytes(data[: 2**24])
    return None


def change_json(value: Any, dice: random.Random) -> Any:
    """Change one thing somewhere in a value."""
    odd = (None, True, "", "x" * 5000, "\x1b[31m", "\u202e", 10**4000, -1, 1.5, [], {}, [[]] * 9, dice.choice(NUMBERS))
    if not isinstance(value, dict | list) or not value or dice.random() < 0.15:
        return dice.choice(odd)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = dice.choice(keys)
    match dice.randrange(5):
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.append(value[key])
        case 1:
            value[dice.choice(("x", "../../x", "y" * 5000, "\x1b"))] = value[key]
        case _:
            value[key] = change_json(value[key], dice)
    return value


def change_onnx(path: Path, dice: random.Random) -> None:
    """Change one field of one message of a model; what is not a model any more stays as it is."""
    import onnx
    from google.protobuf.message import DecodeError

    from compress.export.onnx import file

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return
    message: Any = model
    while True:
        fields = [field for field, _ in message.ListFields()]
        if not fields:
            break
        field = dice.choice(fields)
        inner = getattr(message, field.name)
        many = field.is_repeated
        if field.message_type is not None and dice.random() < 0.9 and (not many or len(inner)):
            message = dice.choice(inner) if many else inner
            continue
        change_field(message, field, many, dice)
        break
    sealed = model.SerializeToString()
    if any(entry.key == file.SEAL for entry in model.metadata_props) and dice.random() < 0.5:
        kept = [entry for entry in model.metadata_props if entry.key != file.SEAL]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        file.write_sealed(model, path)
        return
    path.write_bytes(sealed)


def change_field(message: Any, field: Any, many: bool, dice: random.Random) -> None:
    """Give a field another value, one more, or one less."""
    name = field.name
    try:
        if many:
            values = getattr(message, name)
            match dice.randrange(4):
                case 0 if len(values):
                    del values[dice.randrange(len(values))]
                case 1 if len(values):
                    values.extend([values[dice.randrange(len(values))]] * dice.choice((1, 1, 40)))
                case 2 if field.message_type is None:
                    values.append(scalar(field, dice))
                case _ if len(values) and field.message_type is None:
                    values[dice.randrange(len(values))] = scalar(field, dice)
        elif field.message_type is None and dice.random() < 0.8:
            setattr(message, name, scalar(field, dice))
        else:
            message.ClearField(name)
    except (ValueError, TypeError):
        pass


def scalar(field: Any, dice: random.Random) -> Any:
    """A value for a field of numbers or of text; operators and domains are real ones more often than not."""
    match field.cpp_type:
        case field.CPPTYPE_STRING if field.type == field.TYPE_BYTES:
            return dice.randbytes(dice.choice((0, 1, 8, 64)))
        case field.CPPTYPE_STRING:
            from compress.reading import operators

            names = [
                *operators.onnx(),
                "If",
                "Loop",
                "Scan",
                "Constant",
                "",
                "x",
                "y",
                "com.microsoft",
                "\x1b[2J",
                "a" * 3000,
            ]
            return dice.choice(names)
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return dice.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
        case _:
            return dice.choice(NUMBERS)


# ---- what is changed ------------------------------------------------------------------------------------------------


def corpus_of(more: Path | None) -> list[Path]:
    """Small files of several kinds, made once; and those of a folder."""
    home = Path(tempfile.gettempdir()) / "compress-fuzz"
    if not (home / "done").is_file():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        make_corpus(home)
        (home / "done").touch()
    paths = [path for path in home.iterdir() if path.name != "done"]
    beside = [path for path in more.rglob("*") if path.suffix in (".onnx", ".safetensors")] if more else []
    return sorted(paths + [path for path in beside if path.stat().st_size < 200_000])


def make_corpus(home: Path) -> None:
    """A finished run of one epoch, its parts alone, and small graphs with branches, loops, functions, whole numbers."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    run = [
        sys.executable,
        "-m",
        "compress",
        "run",
        "quickstart",
        "--out",
        str(home / "run"),
        "--set",
        "method.tune.epochs=1",
    ]
    subprocess.run(run, check=True, capture_output=True)
    for name in ("model.onnx", "model.safetensors"):
        shutil.copy(home / "run" / name, home / name)
    node = helper.make_node
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    whole = numpy_helper.from_array(np.ones((8, 8), np.uint8), "q")
    number = [
        numpy_helper.from_array(np.array(n, k), m) for m, n, k in (("n", 5, "i8"), ("go", True, "?"), ("s", 0.1, "f4"))
    ]

    def value(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    step = [node("Identity", ["c"], ["d"]), node("MatMul", ["t", "w"], ["u"])]
    ends = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("t", ["N", 8])]
    body = helper.make_graph(step, "body", ends, [value("d", [], TensorProto.BOOL), value("u", ["N", 8])])
    branch = helper.make_graph([node("MatMul", ["x", "w"], ["o"])], "branch", [], [value("o", ["N", 8])])
    block = helper.make_function(
        "f", "F", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 18)]
    )
    graphs = {
        "loop": [node("Loop", ["n", "go", "x"], ["y"], body=body)],
        "if": [node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)],
        "function": [node("F", ["x", "w"], ["y"], domain="f")],
        "whole": [node("DequantizeLinear", ["q", "s"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
        "shapes": [
            node("Shape", ["x"], ["h"]),
            node("Reshape", ["x", "h"], ["r"]),
            node("Einsum", ["r", "w"], ["y"], equation="ij,jk->ik"),
        ],
        "sequence": [node("LSTM", ["u", "l", "l"], ["y"], hidden_size=2), node("Unsqueeze", ["x", "n"], ["u"])][::-1],
    }
    stored = [weight, whole, *number, numpy_helper.from_array(np.ones((1, 8, 8), np.float32), "l")]
    for name, nodes in graphs.items():
        made = helper.make_graph(nodes, name, [value("x", ["N", 8])], [value("y", ["N", 8])], stored)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
        onnx.save(helper.make_model(made, opset_imports=opsets, functions=[block], ir_version=8), home / f"{name}.onnx")


if __name__ == "__main__":
    sys.exit(main())
