"""The command line: results on stdout, sentences on stderr, an exit code for every way it can end."""

import errno
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import compress
from compress.cli import Commands, main
from compress.errors import ArtifactError, Infeasible, OverBudget, UsageError
from compress.export.report import report_schema
from compress.recipe import file as recipe
from compress.workplace import claim

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("run", "plan", "export", "cut", "verify", "report", "schema", "recipes", "init")
TINY = """\
model:
  factory: ./net.py:make
data: {source: digits, crop: 1}
train: {batch: 100}
method:
  name: adenel
  seed_width: 2
  round: 5 steps
  max_rounds: 3
  tune: {epochs: 2}
budget: 60kMACs
checkpoint: 5 steps
"""
NET = """
import torch
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )

def coloured():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def number():
    return 3

class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make()
    def forward(self, x):
        return self.body(x) if x.sum().item() > 0 else self.body(-x)

def quitter():
    raise SystemExit(0)
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as a user has it: a model and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("COMPRESS_TRACEBACK", raising=False)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def process(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "compress", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder of a finished run, and what the command said; made once."""
    folder, here = tmp_path_factory.mktemp("finished"), Path.cwd()
    (folder / "net.py").write_text(NET)
    (folder / "tiny.yaml").write_text(TINY)
    os.chdir(folder)
    try:
        done = call("run", "tiny.yaml", "--seed", "7", "--set", "train.lr=0.05")
    finally:
        os.chdir(here)
    return folder, done


# ---- what it costs to start -----------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from compress.cli import main
for words in [[], *([c] for c in {COMMANDS})]:
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0, words
heavy = "numpy torch pydantic onnx onnxruntime yaml rich safetensors matplotlib".split()
print("heavy:", sorted(set(heavy) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("heavy: []\n")
    assert done.stdout.count("Usage: compress") == 1 + len(COMMANDS)


def test_verify_imports_nothing_that_takes_long(finished: tuple[Path, Result]) -> None:
    code = """
import sys
from compress.cli import main
try:
    main(["verify", "runs/tiny/model.onnx", "--budget", "60kMACs"])
except SystemExit as end:
    assert end.code == 0
print(sorted({"torch", "matplotlib", "onnxruntime", "pydantic", "rich"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=finished[0], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("[]\n")


def test_python_m_compress_is_the_same_command() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"compress {compress.__version__}\n", "")


def test_a_command_that_is_forgotten_is_not_a_success() -> None:
    done = call()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: compress")


# ---- run, report, verify --------------------------------------------------------------------------------------------


def test_a_run_says_what_it_left_and_how_to_guard_it(finished: tuple[Path, Result]) -> None:
    folder, done = finished
    report = json.loads((folder / "runs/tiny/report.json").read_text())
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert lines[0] == report["verdict"]["text"]
    assert lines[0].startswith("kept: ")
    assert re.fullmatch(r"60kMACs .* kept  MACs, our count", lines[2])
    assert f"{report['cost']['macs']:,}" in lines[2]
    assert lines[3].startswith("accuracy: validation ")
    assert lines[4].startswith("training: ")
    assert set(lines[5].removeprefix("files: ").split(", ")) == {
        str(p.relative_to(folder)) for p in folder.glob("runs/tiny/*")
    }
    guard = shlex.split(lines[6].removeprefix("guard it in CI: "))
    assert guard == ["compress", "verify", "runs/tiny/model.onnx", "--budget", "60kMACs"]
    os.chdir(folder)
    assert call(*guard[1:]).exit_code == 0


def test_a_run_hears_its_options(finished: tuple[Path, Result]) -> None:
    full = recipe.read(finished[0] / "runs/tiny/recipe.yaml")
    assert (full.seed, full.train.lr) == (7, 0.05)


def test_progress_in_a_log_has_no_control_characters(finished: tuple[Path, Result]) -> None:
    lines = finished[1].stderr.splitlines()
    assert all(line.isprintable() for line in lines)
    starts = [line.split()[0] for line in lines]
    assert starts[:4] == ["digits:", "./net.py:make:", "event", "seed"]
    assert starts.count("round") == 3
    assert starts.count("tune") == 4  # 20 steps, saved every 5


def test_json_is_all_that_is_printed_with_json(finished: tuple[Path, Result]) -> None:
    folder = finished[0]
    os.chdir(folder)
    for words in (["verify", "runs/tiny", "--budget", "60kMACs"], ["report", "runs/tiny"], ["plan", "tiny.yaml"]):
        done = call(*words, "--json")
        assert (done.exit_code, done.stderr) == (0, "")
        json.loads(done.stdout)


def test_a_report_is_printed_as_it_was_written(finished: tuple[Path, Result]) -> None:
    folder = finished[0] / "runs/tiny"
    assert call("report", str(folder)).stdout == (folder / "report.md").read_text()
    assert json.loads(call("report", str(folder), "--json").stdout) == json.loads((folder / "report.json").read_text())


def test_verify_ends_with_1_over_the_budget_and_with_4_on_broken_files(finished: tuple[Path, Result]) -> None:
    model = finished[0] / "runs/tiny/model.onnx"
    over = call("verify", str(model), "--budget", "1kMACs")
    assert (over.exit_code, over.stderr) == (OverBudget.exit_code, "")
    assert over.stdout.splitlines()[0] == f"{model}: does not keep 1kMACs."
    assert json.loads(call("verify", str(model), "--budget", "1kMACs", "--json").stdout)["code"] == 1
    whole = model.read_bytes()
    for data in (b"", whole[: len(whole) // 2], whole[:-1], b"\x89PNG\r\n\x1a\n" * 9, b"not a model"):
        Path("x.onnx").write_bytes(data)
        sentence(call("verify", "x.onnx", "--budget", "60kMACs"), ArtifactError.exit_code, "x.onnx: ")
        Path("x.safetensors").write_bytes(data)
        sentence(call("verify", "x.safetensors", "--budget", "1Mparams"), ArtifactError.exit_code, "x.safetensors: ")


def test_a_verdict_does_not_depend_on_who_reads_it(finished: tuple[Path, Result]) -> None:
    command = [
        sys.executable,
        "-m",
        "compress",
        "verify",
        str(finished[0] / "runs/tiny/model.onnx"),
        "--budget",
        "1kMACs",
    ]
    reader, writer = os.pipe()
    os.close(reader)  # nobody listens
    done = subprocess.run(command, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told_in_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "compress", "schema", "report"]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "compress: The output cannot be written: No space left on device.\n")


STOPPED = """
import os, signal, sys
from compress.training import checkpoint
from compress.cli import main

save, saved = checkpoint.save, []

def save_and_stop(*state):  # the signal comes from within: by a clock it would meet a fast machine at the wrong time
    save(*state)
    saved.append(state)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGINT)

checkpoint.save = save_and_stop
main(sys.argv[1:])
"""


def test_an_interrupted_run_is_resumed_and_a_missed_requirement_is_1() -> None:
    words = ["run", "tiny.yaml", "--out", "out", "--set", "require.val_accuracy=1.0", "--set", "method.tune.epochs=3"]
    command = [sys.executable, "-c", STOPPED, *words, "--set", "method.tune.lr=0.01"]
    stopped = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert re.fullmatch(r"compress: stopped; --resume goes on .*\.", stopped.stderr.splitlines()[-1])
    assert not Path("out").exists()
    sentence(call(*words), 2, r"out\.partial holds an interrupted run; go on with --resume")
    done = call(*words, "--set", "method.tune.lr=0.01", "--resume", "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["folder"] == "out"
    assert report["resumed_from"] == 10
    assert report["verdict"]["text"].startswith("not kept")
    assert not Path("out.partial").exists()
    assert call("verify", "out", "--budget", "60kMACs").exit_code == 1
    assert call("verify", "out/model.onnx", "--budget", "60kMACs").exit_code == 0


# ---- plan, schema ---------------------------------------------------------------------------------------------------


def test_a_plan_names_every_space_and_every_cost() -> None:
    done = call("plan", "tiny.yaml")
    assert (done.exit_code, done.stderr) == (0, "")
    planned = compress.plan("tiny.yaml")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "16", "2", "1", "free"] in lines
    assert ["4", "24", "2", "1", "free"] in lines
    assert ["9", "10", "10", "10", "frozen:", "it", "reaches", "the", "model's", "output"] in lines
    # Everything but the last layer's biases goes with some channel; all multiplications do.
    params = 9 * 16 + 2 * 16 + 9 * 16 * 24 + 2 * 24 + 24 * 10
    assert (
        f"free: {int(params / (params + 10) * 10_000) / 100:.2f} % of the params and 100.00 % of the MACs"
        in done.stdout
    )
    macs = [64 * 9 * a + 16 * 9 * a * b + 10 * b for a, b in ((16, 24), (2, 2), (1, 1))]
    assert [cost.macs for cost in (planned.base, planned.seed, planned.floor)] == macs
    assert ["MACs,", "our", "count", *(f"{count:,}" for count in macs)] in lines
    facts = json.loads(call("plan", "tiny.yaml", "--json").stdout)
    assert [facts["cost"][net]["MACs"] for net in ("base", "seed", "floor")] == macs
    assert facts["budget"][0]["used"]["floor"] == macs[2] / 60_000
    assert facts["free"]["params"] == pytest.approx(params / (params + 10))


def test_a_plan_of_a_budget_below_the_floor_ends_with_3_and_says_why() -> None:
    done = call("plan", "tiny.yaml", "--budget", "500MACs")
    assert done.stdout.startswith("infeasible: ")
    sentence(done, Infeasible.exit_code, "The budget is below the floor: 500MACs is less than 730 MACs")
    assert json.loads(call("plan", "tiny.yaml", "--budget", "500MACs", "--json").stdout)["feasible"] is False


def test_a_plan_needs_no_data_where_the_recipe_names_its_input() -> None:
    away = ["--set", "data.npz=not-here.npz"]
    assert call("plan", "tiny.yaml", *away, "--set", "model.input=[1, 8, 8]").exit_code == 0
    sentence(call("plan", "tiny.yaml", *away), 2, "not-here.npz")


def test_schemas_are_those_of_recipes_and_of_reports() -> None:
    assert json.loads(call("schema").stdout) == recipe.schema()
    assert json.loads(call("schema", "recipe").stdout) == recipe.schema()
    assert json.loads(call("schema", "report").stdout) == report_schema()


# ---- what can go wrong ----------------------------------------------------------------------------------------------


def sentence(done: Result, code: int, says: str) -> None:
    """A command failed with this code and one clear line, the last."""
    assert done.exit_code == code, (done.stdout, done.stderr)
    last = [line for line in done.stderr.splitlines() if line.startswith("compress: ")]
    assert last == done.stderr.splitlines()[-1:]
    assert re.search(says, last[0]), last[0]
    assert last[0].endswith((".", "?"))


WRONG: list[tuple[str, int, str]] = [
    ("rnu", 2, "No such command 'rnu'"),
    ("run", 2, "Missing argument 'RECIPE'"),
    ("run tiny.yaml --bugdet 1MMACs", 2, r"No such option\W+--bugdet"),
    ("run tiny.yml", 2, r"tiny\.yml: no such file; did you mean 'tiny\.yaml'\?"),
    ("run tiny.yaml --set lr", 2, "'lr' is not KEY=VALUE; write --set train.lr=0.05"),
    ("run tiny.yaml --set train.rl=1", 2, r"--set: train\.rl: unknown key"),
    ("run tiny.yaml --set train.lr=fast", 2, r"train\.lr: expected a number"),
    ("run tiny.yaml --seed -1", 2, "seed: expected a number of at least 0"),
    ("run tiny.yaml --budget 43MFLOPS", 2, "--budget: '43MFLOPS' is a rate"),
    ("run tiny.yaml --set budget=null", 2, "states no budget"),
    ("run tiny.yaml --budget 9MACs", 3, "The budget is below the floor: 9MACs is less than 730 MACs"),
    ("run tiny.yaml --device tpu9", 2, "--device tpu9 is not a device"),
    ("run tiny.yaml --out net.py", 2, r"net\.py exists already"),
    ("run tiny.yaml --out net.py/x", 2, r"net\.py/x\.partial cannot be made"),
    ("run tiny.yaml --set data.npz=none.npz", 2, r"none\.npz"),
    ("run tiny.yaml --set model.input=[3,8,8]", 2, r"3, 8, 8\]"),
    ("run tiny.yaml --set model.factory=./net.py:coloured", 2, "cannot be traced with an input of shape"),
    ("run tiny.yaml --set model.factory=./net.py:Moody", 2, "does not depend on the values of its input"),
    ("run tiny.yaml --set model.factory=./net.py:number", 2, r"must return a torch\.nn\.Module, it returned int"),
    ("run tiny.yaml --set model.factory=./net.py:none", 2, "has no callable named none"),
    ("run tiny.yaml --set model.factory=./none.py:make", 2, r"there is no file \S*none\.py"),
    ("run tiny.yaml --set model.factory=no_such_module:make", 2, "no_such_module cannot be imported: Module"),
    ("run tiny.yaml --set model.factory=./net.py:quitter", 2, r"called sys\.exit\(0\)"),
    ("verify none.onnx --budget 1MMACs", 2, r"none\.onnx: there is no such file"),
    ("verify net.py --budget 1MMACs", 2, r"net\.py: give an \.onnx file"),
    ("verify .", 2, "say which budget it must keep"),
    ("verify . --budget 1MMACs", 2, r"holds no model\.onnx"),
    ("report .", 2, r"holds no report\.md"),
    ("report . --json", 2, r"holds no report\.json"),
    ("schema recipes", 2, "'recipes' is not one of 'recipe', 'report'"),
    ("init ./net.py:make nowhere", 2, "'nowhere' names no images"),
    ("init net.py:make digits more", 2, "'more' is one name too many"),
    ("init digits --budget 50%", 2, "'50%' is a share of the base model, unknown here; write a count"),
    ("init ./net.py:make digits --out net.py", 2, r"net\.py exists already"),
    ("init ./net.py:make digits --out none/my.yaml", 2, r"none/my\.yaml cannot be written"),
    ("init ./net.py:coloured digits", 2, "cannot be traced with an input of shape"),
    ("export ./net.py:make --budget 1MMACs --data digits", 2, "Missing option '--weights'"),
    ("export ./net.py:make --weights w.pt --budget 1MMACs --data digits", 2, r"w\.pt: there is no such file"),
    ("export a:b --weights w --budget 1MMACs --data digits --shape 3x8x8", 2, "write 3,32,32"),
    ("export a:b --weights w --budget 1MMACs --data digits --args 10", 2, "'10' is not a JSON object"),
    ("export ./net.py:make --weights net.py --budget 1MMACs --data digits", 4, r"net\.py: torch\.load"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "says"), WRONG, ids=[line for line, _, _ in WRONG])
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(line: str, code: int, says: str) -> None:
    def left() -> list[str]:
        return sorted(
            str(path) for path in Path().rglob("*") if "__pycache__" not in str(path) and path != Path("runs")
        )

    before = left()
    done = call(*shlex.split(line))
    sentence(done, code, says)
    assert done.stdout == ""
    assert left() == before


@pytest.mark.parametrize("line", ["run tiny.yaml --out out", "init ./net.py:make digits"])
def test_a_disk_that_fills_up_is_told_and_nothing_half_written_stays(line: str) -> None:
    before = sorted(Path().iterdir())
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most[1]))  # no file may be longer; the error is that of a disk
    try:
        done = call(*shlex.split(line))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    sentence(done, 2, "cannot be written.*File too large")
    assert sorted(path for path in Path().iterdir() if path.name != "__pycache__") == before


def test_a_folder_that_somebody_works_on_is_left_alone() -> None:
    with claim(Path("out"), resume=False) as work:
        sentence(call("run", "tiny.yaml", "--out", "out"), 2, f"process {os.getpid()} is working in {work} right now")
        assert [path.name for path in work.iterdir()] == ["lock"]


def ended(error: Callable[[], BaseException]) -> Result:
    """What the command line makes of an exception that a command raises."""
    group = Commands()

    @group.command()
    @click.option("--out")
    def work(out: str | None) -> int:
        raise error()

    return CliRunner().invoke(group, ["work", "--out", "out/x"])


def of_ours() -> BaseException:
    """An exception that a file of ours raises."""
    raise eval(compile("1 / 0", compress.__file__, "eval"))


def test_our_own_fault_is_named_and_its_traceback_is_kept() -> None:
    Path("out").mkdir()
    done = ended(of_ours)
    sentence(
        done, 70, r"^compress: ZeroDivisionError: this is a fault of compress, not yours; .* out/x\.traceback\.txt\.$"
    )
    assert "division by zero" in Path("out/x.traceback.txt").read_text()


def test_the_traceback_goes_to_stderr_when_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_TRACEBACK", "1")
    done = ended(of_ours)
    assert done.exit_code == 70
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.endswith(
        "\ncompress: ZeroDivisionError: this is a fault of compress, not yours; the traceback is above.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "model.onnx"), 2, r"model\.onnx: No space left on device"),
        (MemoryError(), 2, "Out of memory"),
        (UsageError("a sentence"), 2, r"^compress: a sentence\.$"),
        (ArtifactError("broken."), 4, r"^compress: broken\.$"),
    ],
)
def test_what_is_not_our_fault_has_its_own_code(error: BaseException, code: int, says: str) -> None:
    sentence(ended(lambda: error), code, says)


def test_commands_that_do_not_train_end_cleanly_when_they_are_stopped() -> None:
    work = "import signal, time; from compress.cli import Commands; group = Commands()\n"
    work += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job inherits it ignored
    work += "@group.command()\ndef wait():\n    print('on', flush=True)\n    time.sleep(10**6)\n"
    command = [sys.executable, "-c", work + "group(['wait'])"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, env=environment(), stdout=-1, stderr=-1, text=True) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            running.stdout.readline()
            running.send_signal(number)
            assert running.wait(timeout=300) == 130
            assert running.stderr.read() == "compress: interrupted.\n"
