"""The folders are the packages, imports go down only, and importing the tool costs nothing."""

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("export", "models", "recipes")  # folders at the top that are packages inside compress

# Low to high. A module imports what stands in a row below its own, or to its left in the same row.
LAYERS = (
    ("texts", "errors", "packages", "budget", "workplace", "queue"),
    ("recipe", "reading", "surgery"),
    ("training", "export", "methods"),
    (
        "delivery",
        "_plan",
        "story",
        "console",
        "_run",
        "timing",
        "_cut",
        "_compare",
        "outcomes",
        "choice",
        "_init",
        "_export",
        "exits",
        "options",
        "cli",
    ),
)
HEIGHT = {name: height for height, name in enumerate(name for row in LAYERS for name in row)}
WITHOUT_TORCH = (
    "compress.texts",
    "compress.errors",
    "compress.packages",
    "compress.workplace",
    "compress.console",
    "compress.outcomes",
    "compress.exits",
    "compress.options",
    "compress.cli",
    "compress.budget.*",
    "compress.recipe.*",
    "compress.methods.*.settings",
    "compress.export.onnx.*",
    "compress.export.verify",
    "compress.export.canonical",
    "compress.export.seal",
    "compress.export.folder",
    "compress.export.sign",
    "compress.export.machine",
    "compress.export.latency",
    "compress.export.parts",
    "compress.export.report",
    "compress.export.page",
    "compress.export.panels",
    "compress.export.picture",
    "compress.export.curve",
)
HEAVY = ("torch", "torchvision", "thop", "matplotlib", "cryptography")
MOST_LINES = 500
GENERATED = {"build", "dist", "runs", "__pycache__"}  # and everything hidden, and *.egg-info
PROSE_AND_CODE = {".py", ".md", ".yaml", ".yml", ".toml", ".sh"}


class Import(NamedTuple):
    """A module as another one imports it, whole or one name of it."""

    target: str
    name: str  # "" for the module itself
    at_import: bool  # at the module's top level, outside `if TYPE_CHECKING`


def folder(package: str) -> Path:
    name = package.removeprefix("compress.")
    return ROOT / name if name in LINKED else ROOT / package.replace(".", "/")


def pyproject() -> dict[str, dict[str, dict[str, object]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package stands for its __init__."""
    by_name = {}
    for package in packages():
        for path in sorted(folder(package).glob("*.py")):
            by_name[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return by_name


def packages() -> list[str]:
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert isinstance(listed, list)
    return listed


MODULES = modules()


def imports(name: str) -> Iterator[Import]:
    path = MODULES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node not in lazy)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{source}.{alias.name}" in MODULES
                yield Import(
                    f"{source}.{alias.name}" if whole else source, "" if whole else alias.name, node not in lazy
                )


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def layer(name: str) -> str:
    """`compress.methods.adenel` belongs to `methods`, `compress` itself to no layer: it stands above all.

    What a recipe may say about a method, and the table of methods, are part of the recipe, wherever they lie.
    """
    if fnmatch(name, "compress.methods.*.settings") or name == "compress.methods":
        return "recipe"
    return name.split(".")[1] if "." in name else ""


def inner_imports() -> list[tuple[str, str]]:
    """(importer, imported) for the package's own modules, wherever in the file; its public lists are left out."""
    return [
        (name, imported.target)
        for name in MODULES
        if name not in ("compress", "compress.__main__", "compress.models")
        for imported in imports(name)
        if imported.target.split(".")[0] == "compress"
    ]


def test_the_listed_packages_are_the_folders_on_disk() -> None:
    inside = [
        path.parent
        for path in (ROOT / "compress").glob("*/**/__init__.py")
        if path.parents[-len(ROOT.parts) - 2].is_symlink() is False
    ]
    linked = [path.parent for name in LINKED for path in (ROOT / name).glob("**/__init__.py")]
    on_disk = {"compress"} | {".".join(path.relative_to(ROOT).parts) for path in inside}
    on_disk |= {"compress." + ".".join(path.relative_to(ROOT).parts) for path in linked}
    assert sorted(packages()) == sorted(on_disk)
    mapped = pyproject()["tool"]["setuptools"]["package-dir"]
    assert mapped == {"compress": "compress"} | {f"compress.{name}": name for name in LINKED}


@pytest.mark.parametrize("name", LINKED)
def test_the_links_lead_from_the_package_to_the_folders_at_the_top(name: str) -> None:
    link = ROOT / "compress" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # relative, so that a clone works wherever it lies
    assert (link / "__init__.py").is_file()


def test_every_module_has_its_place_in_the_layers() -> None:
    unplaced = {name for name in MODULES if layer(name) not in HEIGHT}
    assert unplaced <= {"compress", "compress.__main__"} | {n for n in MODULES if layer(n) in ("models", "recipes")}


def test_imports_go_down_only() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in inner_imports()
        if layer(name) != layer(target)
        and target != "compress"  # the version
        and layer(name) in HEIGHT
        and HEIGHT.get(layer(target), len(HEIGHT)) > HEIGHT[layer(name)]
    ]
    assert wrong == []


def test_only_what_delivers_runs_or_verifies_imports_export() -> None:
    importers = {layer(name) for name, target in inner_imports() if layer(target) == "export"}
    tell = {"story", "outcomes", "_plan"}  # which show a report, or ask how large a file will be
    assert importers <= {"export", "delivery", "_run", "_cut", "_compare", "cli", *tell}


def test_nobody_imports_the_shipped_models_nor_do_they_import_anything_of_ours() -> None:
    pairs = [(layer(name), layer(target)) for name, target in inner_imports() if name != target]
    assert [pair for pair in pairs if ("models" in pair) and pair != ("models", "models")] == []
    used = {imported.target.split(".")[0] for name in MODULES if layer(name) == "models" for imported in imports(name)}
    assert used <= {"torch", "compress"} | sys.stdlib_module_names


def test_methods_import_neither_each_other_nor_what_reads_a_graph() -> None:
    """Shown by their folders; a `Graph` may be read by them, not made."""
    folders = {package.rpartition(".")[2] for package in packages() if package.startswith("compress.methods.")}
    wrong = [
        f"{name} imports {imported.target} {imported.name}"
        for name in MODULES
        for imported in imports(name)
        if name.startswith("compress.methods.")
        and (
            (
                imported.target.startswith("compress.methods.")
                and imported.target.split(".")[2] in folders - {name.split(".")[2]}
            )
            or imported.target in ("compress.reading.trace", "compress.reading.count")
            or (imported.target == "compress.reading.graph" and imported.name != "Graph")
        )
    ]
    assert wrong == []


def test_nobody_but_methods_asks_which_method_it_has() -> None:
    names = {package.rpartition(".")[2] for package in packages() if package.startswith("compress.methods.")}
    outside = {name: path for name, path in MODULES.items() if not name.startswith("compress.methods")}
    for name, path in outside.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        quoted = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names}
        assert quoted == set(), name
        assert not [
            one for one in imports(name) if one.target.startswith("compress.methods.") and one.target.count(".") > 2
        ], name


def test_what_must_start_fast_imports_no_torch_by_any_way() -> None:
    initial = [n for n in MODULES if any(fnmatch(n, p) for p in WITHOUT_TORCH) or MODULES[n].stem == "__init__"]
    reached = set(initial)
    queue = list(initial)
    while queue:
        for imported in imports(queue.pop()):
            if imported.at_import and imported.target not in reached:
                reached.add(imported.target)
                queue += [imported.target] if imported.target in MODULES else []
    assert {target for target in reached if target.split(".")[0] in HEAVY} == set()


AS_ON_WINDOWS = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import errno, os, signal, subprocess, tempfile, click, filelock, numpy, onnx, pydantic, rich, safetensors, yaml
for module, names in ((os, "O_NOFOLLOW fork getuid geteuid uname nice"), (signal, "SIGKILL SIGHUP SIGUSR1"),
                      (errno, "EDQUOT")):
    for name in names.split():
        vars(module).pop(name, None)
from importlib import import_module
for name in {modules!r}:
    import_module(name)
"""


def test_what_needs_no_torch_is_imported_where_there_is_neither_the_extra_nor_unix() -> None:
    hidden = ["fcntl", "grp", "pwd", "resource", "syslog", "termios", *HEAVY, "onnxruntime", "onnxscript", "PIL"]
    light = [name for name in MODULES if any(fnmatch(name, pattern) for pattern in WITHOUT_TORCH)]
    code = AS_ON_WINDOWS.format(hidden=hidden, modules=light)
    command = [sys.executable, "-W", "ignore:only soft file lock", "-c", code]  # filelock's word on such a Unix
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "compress.workplace" in light


@pytest.mark.parametrize("package", packages())
def test_importing_a_package_imports_no_torch(package: str) -> None:
    code = f"import sys, {package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_factory_that_shares_its_name_with_a_file_stays_the_factory() -> None:
    code = "import compress.models as m; m.vgg16; m.densenet40; assert callable(m.vgg) and callable(m.densenet)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", [name for name in packages() if name in MODULES])
def test_every_public_name_is_there_once(package: str) -> None:
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])  # their order is the linter's to check (RUF022)
    assert len(names) == len(set(names))
    assert [name for name in names if getattr(module, name, None) is None] == []


def test_no_file_is_longer_than_anyone_reads() -> None:
    long = {}
    for where, folders, files in os.walk(ROOT):  # does not follow the links
        folders[:] = [name for name in folders if name not in GENERATED and not name.startswith(".")]
        folders[:] = [name for name in folders if not name.endswith(".egg-info")]
        for path in (Path(where, name) for name in files):
            if path.suffix in PROSE_AND_CODE:
                lines = path.read_text(encoding="utf-8").count("\n")
                if lines > MOST_LINES:
                    long[str(path.relative_to(ROOT))] = lines
    assert long == {}
