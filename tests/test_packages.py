"""What is not installed is named with the line that brings it, before anything is begun; the core works by itself."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

import compress
from compress import packages
from compress.cli import main
from compress.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
UNIX = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty")  # of Python's own; Windows has none of them
READ = ("torch", "thop", "setuptools")
WRITE = (*READ, "onnxscript", "onnxruntime")
MODULE = {
    "setuptools": "distutils",
    "pillow": "PIL",
    "pyyaml": "yaml",
}  # what is imported, where it is called otherwise
beside_the_extra = pytest.mark.skipif(find_spec("torch") is None, reason="needs compress-budget[torch]")
EXPORT = "export ./net.py:make --weights w.safetensors --budget 1MMACs --data digits"
HIDING = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
from compress.cli import main
for words in {commands!r}:
    print("$", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        print("->", end.code or 0, flush=True)
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of each kind that the core reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    weight = np.ones((3, 4), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "net.onnx")
    save_file({"weight": weight}, "net.safetensors")
    Path("done").mkdir()
    Path("done/report.md").write_text("kept\n")
    Path("done/report.json").write_text("{}\n")
    return tmp_path


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)


def without(hidden: tuple[str, ...], *commands: str) -> tuple[list[int], str, str]:
    """Run these commands where modules are hidden: their exit codes, what went to stdout and what to stderr."""
    code = HIDING.format(hidden=hidden, commands=[shlex.split(command) for command in commands])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore" if "numpy" in hidden else "error"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    codes = [int(number) for number in re.findall(r"^-> (\d+)$", done.stdout, re.MULTILINE)]
    assert len(codes) == len(commands), done.stderr
    return codes, done.stdout, done.stderr


# ---- what is lacking ------------------------------------------------------------------------------------------------


@beside_the_extra
@pytest.mark.parametrize(
    ("command", "package"),
    [
        *[("run quickstart", package) for package in WRITE],
        *[(EXPORT, package) for package in WRITE],
        *[("plan quickstart", package) for package in READ],
        *[("init ./net.py:make digits", package) for package in READ],
        ("report done --draw history.png", "matplotlib"),
        ("verify net.onnx --budget 1MMACs,5ms@onnxruntime-cpu/1", "onnxruntime"),
    ],
)
def test_a_command_names_the_package_that_it_lacks_and_begins_nothing(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE.get(package, package), None)  # as Python marks what cannot be imported
    before = files()
    done = CliRunner().invoke(main, shlex.split(command))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (f"compress: {package} is not installed; pip install 'compress-budget[torch]' brings it.\n")
    assert files() == before


@beside_the_extra
@pytest.mark.parametrize(
    ("verb", "package"),
    [
        *[("run", package) for package in WRITE],
        *[("export_model", package) for package in WRITE],
        *[("plan", package) for package in READ],
        *[("measure", package) for package in READ],
        ("load", "torch"),
    ],
)
def test_a_verb_names_the_package_that_it_lacks(verb: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE.get(package, package), None)
    with pytest.raises(UsageError, match=rf"^{package} is not installed; pip install 'compress-budget\[torch\]'"):
        getattr(compress, verb)


def test_the_verb_verify_names_what_a_latency_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"^onnxruntime is not installed; pip install 'compress-budget\[torch\]'"):
        compress.verify("net.onnx", "1MMACs, 5ms@onnxruntime-cpu/1")
    assert compress.verify("net.onnx", "1MMACs").code == 0


@beside_the_extra
@pytest.mark.parametrize(
    ("data", "package"),
    [("data.source=mnist", "torchvision"), ("data.source=mnist", "pillow"), ("data.folder=.", "pillow")],
)
def test_data_names_the_package_that_it_lacks_and_the_place_of_work_is_given_back(
    data: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE.get(package, package), None)
    before = files()
    done = CliRunner().invoke(main, ["run", "quickstart", "--set", data, "--out", "out"])
    assert done.exit_code == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"compress: {package} is not installed; pip install 'compress-budget[torch]' brings it."
    )
    assert files() == before


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("verify net.onnx --budget 1MMACs", "onnx"),
        ("verify net.onnx --budget 1MMACs", "numpy"),
        ("verify net.safetensors --budget 1Mparams", "safetensors"),
        ("schema", "pydantic"),
        ("schema", "pyyaml"),
        ("recipes", "pyyaml"),
        pytest.param("plan quickstart", "numpy", marks=beside_the_extra),
        pytest.param("run quickstart", "filelock", marks=beside_the_extra),
    ],
)
def test_what_an_unfinished_installation_lacks_of_the_core_is_named_too(command: str, package: str) -> None:
    before = files()
    codes, _, stderr = without((MODULE.get(package, package),), command)
    assert codes == [2]
    assert stderr == f"compress: {package} is not installed; pip install compress-budget brings it.\n"
    assert files() == before


@pytest.mark.parametrize(
    "command",
    [
        "verify net.onnx --budget 12MACs --signed-by key.pub",
        pytest.param("run quickstart --sign key.pem", marks=beside_the_extra),
        pytest.param(f"{EXPORT} --sign k", marks=beside_the_extra),
    ],
)
def test_signatures_name_the_package_that_they_need_before_anything_is_begun(command: str) -> None:
    before = files()
    codes, _, stderr = without(("cryptography",), command)
    assert codes == [2]
    assert stderr == "compress: cryptography is not installed; pip install 'compress-budget[sign]' brings it.\n"
    assert files() == before


def test_several_packages_are_named_in_one_sentence_and_a_small_one_with_its_own_line() -> None:
    hidden = tuple(packages.EXTRA)
    latency = "verify net.onnx --budget 1MMACs,5ms@onnxruntime-cpu/1"
    codes, _, stderr = without(hidden, "run quickstart", "report done --draw history.png", latency)
    assert codes == [2, 2, 2]
    lines = [line.removeprefix("compress: ") for line in stderr.splitlines()]
    named, line = lines[0].split(" are not installed; ")
    assert set(re.split(", | and ", named)) == set(WRITE)
    assert line == "pip install 'compress-budget[torch]' brings them."
    for package, said in zip(("matplotlib", "onnxruntime"), lines[1:], strict=True):
        line = "pip install 'compress-budget[torch]' brings it with all that runs need"
        assert said == f"{package} is not installed; {line}, pip install {package} alone."


@beside_the_extra
def test_what_somebody_elses_file_lacks_is_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net.py").write_text("import matplotlib\n\ndef make():\n    pass\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["plan", "quickstart", "--set", "model.factory=./net.py:make"])
    assert done.exit_code == 2
    assert "net.py cannot be imported: ModuleNotFoundError" in done.stderr
    assert "compress-budget" not in done.stderr


@pytest.mark.parametrize("name", ["mine", "torch.nothing", None])
def test_a_module_that_is_none_of_ours_to_install_is_another_fault(name: str | None) -> None:
    assert packages.of_error(ModuleNotFoundError(f"No module named {name!r}", name=name)) is None


# ---- what the core does ---------------------------------------------------------------------------------------------


def test_the_core_checks_reports_and_explains_without_the_extra_and_without_what_only_unix_has() -> None:
    commands = {
        "--version": f"compress {compress.__version__}",
        "--help": "Usage: compress",
        "verify net.onnx --budget 12MACs,12params": "net.onnx: keeps 12MACs, 12params.",
        "verify net.safetensors --budget 12params": "net.safetensors: keeps 12params.",
        "report done": "kept",
        "report done --json": "{}",
        "schema": '"Recipe of compress"',
        "schema report": '"$schema"',
        "recipes": "quickstart",
        "recipes quickstart": "factory: compress.models:vgg",
        "recipes --json": '"name": "quickstart"',
    }
    codes, stdout, stderr = without((*packages.EXTRA, *packages.SIGN, *UNIX), *commands)
    assert (codes, stderr) == ([0] * len(commands), "")
    for part, (command, says) in zip(stdout.split("$ ")[1:], commands.items(), strict=True):
        assert part.startswith(command)
        assert says in part.removeprefix(command)


def test_the_tables_of_packages_are_those_that_pip_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> list[str]:
        return sorted(re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements)

    extra = project["optional-dependencies"]
    assert sorted(packages.CORE.values()) == names(project["dependencies"])
    assert sorted(packages.EXTRA.values()) == names(extra["torch"])
    assert f"{project['name']}[torch]" in extra["dev"]  # whoever develops has all of it
    assert sorted(packages.SIGN.values()) == names(extra["sign"])
    assert f"{project['name']}[sign]" in extra["dev"]
    assert not set(names(extra["dev"])) & set(names([*project["dependencies"], *extra["torch"]]))


def test_nothing_is_asked_for_that_no_table_names() -> None:
    places = [path for folder in ("compress", "export") for path in (ROOT / folder).rglob("*.py")]
    calls = [call for path in places for call in re.findall(r"\bdemand\((.*?)\)", path.read_text(encoding="utf-8"))]
    asked = {name for call in calls for name in re.findall(r'"(\w+)"', call)}
    assert asked == {"cryptography", "matplotlib", "onnxruntime", "PIL", "torchvision"}
    assert asked <= set(packages.EXTRA | packages.SIGN)
