"""Faults on purpose: runs that are killed, files that are damaged, recipes and budgets that are none.

    python benchmarks/faults.py                     (what lacks in results/faults.jsonl, and the page)
    python benchmarks/faults.py --kinds kill        (of these alone)

- kills: runs of many methods are killed by SIGKILL at random moments, and gone on with by --resume; model.safetensors
  and model.onnx must be those of a run that nobody killed, byte for byte.
- corruptions: bytes of checkpoints, weights, arrays and recipes are changed, cut off or added by seeds. Right is a
  result that is the same, or a sentence with exit code 2 or 4: never 70, a hang, or another result. Where the newest
  checkpoint alone is damaged, the one before it must lead to the same result.
- recipes and budgets: texts made of pieces of good ones, for thirty minutes each. Right is a recipe or a budget, or a
  UsageError, within two seconds of the processor's time.

Every kill, every ten corruptions and every minute of texts is a row with a seed of its own, written as it ends.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from evidence import command, machine, rows_in

from compress.budget.limits import Budget
from compress.errors import UsageError
from compress.recipe.file import read

Outcome = tuple[str, int, list[str]]  # what was tried, how often, and what was wrong
ROWS, PAGE = (Path(__file__).with_name("results") / f"faults.{kind}" for kind in ("jsonl", "md"))
PATIENCE, QUICK, TENS = 180, 2.0, 10  # seconds for a run, and for reading a text; files in a row
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


def unharmed(home: Path, method: str) -> tuple[Path, float]:
    """The folder of a run that nobody killed, made once, and its seconds."""
    folder = home / "whole" / method
    if not folder.exists():
        begin = time.monotonic()
        prepared(home / "whole", method)
        code = finished(folder)
        if code not in (0, 1):
            raise SystemExit(f"{method}: the run itself ended with {code}: {(folder / 'log').read_text()[-500:]}")
        (folder / "seconds").write_text(str(time.monotonic() - begin))
    return folder, float((folder / "seconds").read_text())


def killed(home: Path, turn: int, chance: random.Random) -> Outcome:
    """What came of one kill: the end is compared with one that nobody killed."""
    method = [*METHODS][turn % len(METHODS)]
    whole, seconds = unharmed(home, method)
    folder = prepared(home / f"kill-{turn}", method)
    process = started(folder)
    time.sleep(chance.uniform(0.2, 1.0) * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = (folder / "out.partial" / "checkpoint.safetensors").exists()
    met = "after its end" if (folder / "out").exists() else "within" if begun else "before its first checkpoint"
    again = ["--resume"] if (folder / "out.partial").exists() else []
    code = 0 if (folder / "out").exists() else finished(folder, *again)
    same = code in (0, 1) and ends(folder) == ends(whole)
    shutil.rmtree(folder.parent)
    return f"{method} killed {met}", 1, [] if same else [f"code {code}"]


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


def begun(home: Path) -> Path:
    """The folder of a run that ended in `out`, and of one in `other.partial` that was killed after two checkpoints."""
    base = home / "base" / "group"
    if not base.exists():
        prepared(home / "base", "group")
        if (code := finished(base)) not in (0, 1):
            raise SystemExit(f"the run itself ended with {code}")
        process = started(base, "--out", "other")
        while process.poll() is None and not (base / "other.partial" / "checkpoint.previous.safetensors").exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
    return base


DAMAGED = {
    "checkpoint": ["other.partial/checkpoint.safetensors"],
    "both checkpoints": [f"other.partial/checkpoint{of}.safetensors" for of in ("", ".previous")],
    "weights": ["out/model.safetensors"],
    "arrays": ["data.npz"],
    "recipe": ["r.yaml"],
}


def corrupted(home: Path, turn: int, chance: random.Random) -> Outcome:
    """What came of ten damaged files of one kind."""
    kind, base, wrong = [*DAMAGED][turn % len(DAMAGED)], begun(home), list[str]()
    for number in range(TENS):
        folder = home / f"corrupt-{turn}-{number}"
        shutil.copytree(base, folder)
        for name in DAMAGED[kind]:
            (folder / name).write_bytes(damaged((folder / name).read_bytes(), chance))
        if "checkpoint" in kind:
            code = finished(folder, "--out", "other", "--resume")
            same = code in (0, 1) and (folder / "other" / "model.onnx").read_bytes() == ends(base)["model.onnx"]
            right = same or (code == 2 and kind.startswith("both"))
        elif kind == "weights":
            asked = [sys.executable, "-m", "compress", "verify", "out", "--budget", "1Gparams"]
            code = subprocess.run(asked, cwd=folder, capture_output=True, timeout=PATIENCE).returncode
            right = code in (2, 4) or ends(folder) == ends(base)
        else:
            code = finished(folder, "--out", "third")
            right = code in (0, 1, 2, 3)
        if not right:
            wrong.append(f"number {number}: code {code}: {(folder / 'log').read_text()[-300:]}")
        shutil.rmtree(folder)
    return f"{kind} damaged", TENS, wrong


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


def fuzzed(kind: str, attempt: Callable[[str], object], chance: random.Random, seconds: float = 60) -> Outcome:
    """What came of texts, for so long."""
    recipes = Path(__file__).parent.parent / "recipes"
    good = [path.read_text() for path in sorted(recipes.glob("*.yaml"))] if kind == "recipe" else [
        "43MFLOPs", "0.58 Mparams, 43 MMACs", "256KiB@activations", "5ms@onnxruntime-cpu/1", "50%", "33% MACs",
        "2.4 MB", "1e6 params", "\u2264 10 GFLOPs@2", "10M", "<=1.5kMACs",
    ]  # fmt: skip
    ending, tried, wrong = time.monotonic() + seconds, 0, list[str]()
    while time.monotonic() < ending:
        text = pieces(good, chance)
        begin = time.process_time()
        tried += 1
        try:
            attempt(text)
        except UsageError:
            pass
        except Exception as error:
            wrong.append(f"{type(error).__name__} of {text[:200]!r}")
        if (took := time.process_time() - begin) > QUICK:
            wrong.append(f"{took:.1f} s of {text[:200]!r}")
    return f"texts as a {kind}", tried, wrong


def budgets(home: Path, turn: int, chance: random.Random) -> Outcome:
    return fuzzed("budget", Budget.parse, chance)


def recipes(home: Path, turn: int, chance: random.Random) -> Outcome:
    """Texts as the file of a recipe."""
    file = home / "text.yaml"

    def attempt(text: str) -> None:
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        read(file)

    return fuzzed("recipe", attempt, chance)


KINDS: dict[str, tuple[int, Callable[[Path, int, random.Random], Outcome]]] = {  # and how many rows of each
    "kill": (50, killed),
    "corruption": (200 // TENS, corrupted),
    "budget": (30, budgets),
    "recipe": (30, recipes),
}


def page() -> str:
    """The table, and what went wrong."""
    tried, bad, wrong = Counter[str](), Counter[str](), list[str]()
    rows = rows_in(ROWS)
    for row in rows:
        tried[row["what"]] += row["tried"]
        bad[row["what"]] += len(row["wrong"])
        wrong += [f"- {row['kind']} {row['turn']}, {row['what']}: {told}" for told in row["wrong"]]
    there = Counter(row["kind"] for row in rows)
    lacking = [
        f"{many - there[kind]} of {many} rows of {kind}" for kind, (many, _) in KINDS.items() if there[kind] < many
    ]
    lines = ["# Faults on purpose", "", *(__doc__ or "").splitlines()[5:], "", "| what | tried | right | wrong |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {what} | {many:,} | {many - bad[what]:,} | {bad[what]} |" for what, many in sorted(tried.items())]
    lines += ["", *wrong, *([""] if wrong else []), f"Missing: {', '.join(lacking) or 'nothing'}."]
    return "\n".join([*lines, "", f"`{command()}`; {machine()}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for kind in args.kinds:
            many, attempt = KINDS[kind]
            known = {row["turn"] for row in rows_in(ROWS) if row["kind"] == kind}
            for turn in sorted({*range(many)} - known):
                what, tried, wrong = attempt(Path(place), turn, random.Random(f"{kind} {turn}"))
                row = {"kind": kind, "turn": turn, "what": what, "tried": tried, "wrong": wrong}
                with ROWS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(kind, turn, what, *wrong, flush=True)
                PAGE.write_text(page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
