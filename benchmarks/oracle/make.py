"""Write the oracle set: ONNX files by several makers, and truth.json with what each costs, known before we count.

    python benchmarks/oracle/make.py FOLDER [MAKER ...]

Needs the makers, which this project does not: onnx, onnxruntime, torch, torchvision, onnxscript, tensorflow-cpu,
tf2onnx, scikit-learn, skl2onnx, lightgbm, onnxmltools, onnxconverter-common, spox. One that is not installed is left
out, and said. `check.py` then asks our counter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from table import profiled

MAKERS = (  # a script each; `PACKAGES` says what it needs, `FILES` names its files and the functions that write them
    "by_hand_shapes",
    "by_hand_graphs",
    "by_hand_weights",
    "by_spox",
    "by_torch_dynamo",
    "by_torch_script",
    "by_tf2onnx",
    "by_sklearn",
    "by_quantizer",
    "by_optimizer",
)


def versions(packages: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def write(maker: str, folder: Path) -> list[dict[str, Any]]:
    """Write the files of one maker into `folder`, and return a row for each."""
    module = importlib.import_module(maker)
    made, rows = versions(module.PACKAGES), []
    for name, make in module.FILES.items():
        start = time.perf_counter()
        path = folder / f"{maker.removeprefix('by_')}.{name}.onnx"
        try:
            truth = make(path)
        except Exception as error:  # one version of a maker cannot write what another can: the rest goes on
            print(f"{path.name}: NOT WRITTEN, {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            continue
        if maker != "by_optimizer":  # the checker does not know all operators of onnxruntime's own
            onnx.checker.check_model(path)
        seen = profiled(path, truth.shape) if truth.macs is not None else None
        known = {key: value for key, value in asdict(truth).items() if value not in ((), {})}
        rows.append({"file": path.name, "maker": f"{maker}.py with {made}", **known, "profile": seen})
        took = time.perf_counter() - start
        doubt = " BUT onnxruntime's profile" if seen not in (None, truth.macs) else " profile"
        line = f"{path.name}: {truth.macs} MACs, {truth.params} params, {took:.1f} s,{doubt} {seen}"
        print(line, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("makers", nargs="*", default=MAKERS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if len(asked.makers) > 1:  # in a process each: torch and TensorFlow do not bear each other
        for maker in asked.makers:
            subprocess.run([sys.executable, __file__, asked.folder, maker], check=False)
        return
    table, (maker,) = asked.folder / "truth.json", asked.makers
    rows = json.loads(table.read_text()) if table.exists() else []
    try:
        made = write(maker, asked.folder)
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        print(f"{maker}: left out, {error}", file=sys.stderr)
        return
    others = [row for row in rows if not row["maker"].startswith(f"{maker}.py")]
    lines = [json.dumps(row) for row in sorted([*others, *made], key=lambda row: row["file"])]
    table.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
