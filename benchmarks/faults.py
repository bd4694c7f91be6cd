"""Faults on purpose: runs that are killed, files that are damaged, recipes and budgets that are none.

    python benchmarks/faults.py --kills 50 --corruptions 200 --minutes 30 --out benchmarks/results/faults.md

- kills: runs of many methods are killed by SIGKILL at random moments, and gone on with by --resume; model.safetensors
  and model.onnx must be those of a run that nobody killed, byte for byte.
- corruptions: bytes of checkpoints, weights, arrays and recipes are changed, cut off or added by seeds. Right is a
  result that is the same, or a sentence with exit code 2 or 4: never 70, a hang, or another result.
- recipes and budgets: texts made of pieces of good ones, for so many minutes each. Right is a recipe or a budget, or a
  UsageError, within two seconds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from evidence import command, machine

from compress.budget.limits import Budget
from compress.errors import UsageError
from compress.recipe.file import read

PATIENCE, QUICK = 180, 2.0  # seconds for a run, and for reading a text
NET = (
    "{factory: compress.models:vgg, args: {widths: [8, 12], pools: [1, 2], last_pool: global, in_channels: 1, size: 8}}"
)
DENSE = "{factory: compress.models:densenet, args: {depths: [2, 2], growth: 4, init: 4, in_channels: 1}}"
DEEP = "{factory: compress.models:resnet_cifar, args: {depths: [2, 2], widths: [4, 6], in_channels: 1}}"
METHODS = {
    "adenel": (NET, "{name: adenel, seed_width: 2, round: 4 steps, max_rounds: 4, tune: {epochs: 2}}"),
    "autogrow": (DEEP, "{name: autogrow, interval: 4 steps, patience: 8 steps, max_epochs: 2, tune: {epochs: 2}}"),
    "lwp": (DENSE, "{name: lwp, search: 12 epochs, joint: 2 epochs, samples: 4, tune: {epochs: 2}}"),
    "group": (NET, "{name: group, rounds: 2, round: 4 steps, tune: {epochs: 3}}"),
    "reconstruct": (NET, "{name: reconstruct, batches: 4, tune: {epochs: 3}}"),
    "slimming": (NET, "{name: slimming, before: {epochs: 2}, tune: {epochs: 2}}"),
    "uniform": (NET, "{name: uniform, epochs: 4}"),
}
RECIPE = """model: {}
data: {{source: npz, path: data.npz}}
train: {{batch: 50}}
method: {}
budget: {}
checkpoint: 4 steps
"""


def started(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        whole = [sys.executable, "-m", "compress", "run", "r.yaml", "--out", "out", *more]
        return subprocess.Popen(whole, cwd=folder, stdout=log, stderr=log)


def finished(folder: Path, *more: str) -> int:
    """The exit code of a run; 124 where it does not end."""
    process = started(folder, *more)
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return 124


def prepared(home: Path, method: str) -> Path:
    """A folder with a recipe and its data."""
    folder = home / method
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 255, (400, 8, 8), dtype=np.uint8), np.arange(400) % 10
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    net, said = METHODS[method]
    (folder / "r.yaml").write_text(RECIPE.format(net, said, "70%"))
    return folder


def ends(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "out" / name).read_bytes() for name in ("model.safetensors", "model.onnx")}


def kills(home: Path, count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """What came of each kill, by method: all ends are compared with one that nobody killed."""
    for turn in range(count):
        method = [*METHODS][turn % len(METHODS)]
        whole = home / "whole" / method
        if not whole.exists():
            begin = time.monotonic()
            prepared(home / "whole", method)
            code = finished(whole)
            (whole / "seconds").write_text(str(time.monotonic() - begin))
            if code not in (0, 1):
                yield f"kill {method}", f"the run itself ended with {code}"
                continue
        seconds = float((whole / "seconds").read_text())
        folder = prepared(home / f"kill-{turn}", method)
        process = started(folder)
        time.sleep(chance.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / "out").exists():
            code = 0
        else:
            again = (folder / "out.partial").exists()
            code = finished(folder, *(["--resume"] if again else []))
        same = code in (0, 1) and ends(folder) == ends(whole)
        yield f"kill {method}", "right" if same else f"wrong: code {code}, turn {turn}"
        shutil.rmtree(folder.parent)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bits, bytes or pieces changed."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 3, 20])):
        at = chance.randrange(max(1, len(data)))
        match chance.choice(["bit", "byte", "cut", "add", "zero"]):
            case "bit" if data:
                data[at] ^= 1 << chance.randrange(8)
            case "byte" if data:
                data[at] = chance.randrange(256)
            case "cut":
                del data[at : at + chance.choice([1, 8, len(data)])]
            case "add":
                data[at:at] = chance.randbytes(chance.choice([1, 8, 300]))
            case _:
                data[at : at + 8] = bytes(len(data[at : at + 8]))
    return bytes(data)


def corruptions(home: Path, count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """What came of damaged checkpoints, weights, arrays and recipes."""
    base = prepared(home / "base", "group")
    if (code := finished(base)) not in (0, 1):
        yield "corruption", f"the run itself ended with {code}"
        return
    shutil.copy(base / "out" / "model.safetensors", base / "compact.safetensors")
    process = started(base, "--out", "other")
    begun = base / "other.partial" / "checkpoint.previous.safetensors"
    while process.poll() is None and not begun.exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    for turn in range(count):
        kind = ("checkpoint", "both checkpoints", "weights", "arrays", "recipe")[turn % 5]
        folder = home / f"corrupt-{turn}"
        shutil.copytree(base, folder)
        paths = {
            "checkpoint": ["other.partial/checkpoint.safetensors"],
            "both checkpoints": [f"other.partial/checkpoint{of}.safetensors" for of in ("", ".previous")],
            "weights": ["out/model.safetensors"], "arrays": ["data.npz"], "recipe": ["r.yaml"],
        }[kind]  # fmt: skip
        for name in paths:
            (folder / name).write_bytes(damaged((folder / name).read_bytes(), chance))
        if kind.endswith("checkpoint") or kind.startswith("both"):
            code = finished(folder, "--out", "other", "--resume")
            same = code in (0, 1) and (folder / "other" / "model.onnx").read_bytes() == ends(base)["model.onnx"]
            right = same or code == 2
        elif kind == "weights":
            asked = [sys.executable, "-m", "compress", "verify", "out", "--budget", "1Gparams"]
            code = subprocess.run(asked, cwd=folder, capture_output=True, timeout=PATIENCE).returncode
            right = code in (2, 4) or (folder / "out/model.safetensors").read_bytes() == ends(base)["model.safetensors"]
        else:
            code = finished(folder, "--out", "third")
            right = code in (0, 1, 2, 3)
        yield f"damaged {kind}", "right" if right else f"wrong: code {code}, turn {turn}"
        shutil.rmtree(folder)


def pieces(texts: list[str], chance: random.Random) -> str:
    """A text made of pieces of others, some of them changed."""
    text = chance.choice(texts)
    for _ in range(chance.randint(1, 6)):
        at, other = chance.randrange(len(text) + 1), chance.choice(texts)
        begin = chance.randrange(len(other) + 1)
        piece = other[begin : begin + chance.randint(0, 20)]
        odd = chance.choice(
            ["", "\0", "\n", ": ", "- ", "{", "}", "[", "&a ", "*a", "!!", "1e999", "-1", "\u0661", "'", "%"]
        )
        text = text[:at] + chance.choice([piece, odd, odd * 40]) + text[at + chance.choice([0, 0, 1, 9]) :]
    return text[:60_000]


def fuzzed(
    kind: str, minutes: float, chance: random.Random, attempt: Callable[[str], object]
) -> Iterator[tuple[str, str]]:
    """What came of texts, for so long."""
    recipes = Path(__file__).parent.parent / "recipes"
    good = [path.read_text() for path in recipes.glob("*.yaml")] if kind == "recipe" else [
        "43MFLOPs", "0.58 Mparams, 43 MMACs", "256KiB@activations", "5ms@onnxruntime-cpu/1", "50%", "33% MACs",
        "2.4 MB", "1e6 params", "\u2264 10 GFLOPs@2", "10M", "<=1.5kMACs",
    ]  # fmt: skip
    ending = time.monotonic() + 60 * minutes
    while time.monotonic() < ending:
        text = pieces(good, chance)
        begin, told = time.perf_counter(), "right"
        try:
            attempt(text)
        except UsageError:
            pass
        except Exception as error:
            told = f"wrong: {type(error).__name__} of {text[:200]!r}"
        if time.perf_counter() - begin > QUICK:
            told = f"wrong: {time.perf_counter() - begin:.1f} s of {text[:200]!r}"
        yield kind, told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "faults.md")
    args = parser.parse_args()
    chance, tried, wrong = random.Random(args.seed), Counter[str](), list[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as place:
        home, text = Path(place), Path(place) / "text.yaml"

        def as_recipe(said: str) -> None:
            text.write_text(said, encoding="utf-8", errors="surrogatepass")
            read(text)

        for kind, told in itertools.chain(
            fuzzed("budget", args.minutes, chance, Budget.parse),
            fuzzed("recipe", args.minutes, chance, as_recipe),
            kills(home, args.kills, chance),
            corruptions(home, args.corruptions, chance),
        ):
            tried[kind] += 1
            if told != "right":
                wrong.append((kind, told))
                print(kind, told, flush=True)
    bad = Counter(kind for kind, _ in wrong)
    lines = ["# Faults on purpose", "", *(__doc__ or "").splitlines()[4:], "", "| what | tried | right | wrong |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {kind} | {many:,} | {many - bad[kind]:,} | {bad[kind]} |" for kind, many in tried.items()]
    lines += ["", *(f"- {kind}: {told}" for kind, told in wrong), "", f"`{command()}`; {machine()}", ""]
    args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
