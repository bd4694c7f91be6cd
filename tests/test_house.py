"""The house itself: short files, short functions, tests where their rooms are, and no test behind the curtains."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings

Node = TypeVar("Node", bound=ast.AST)
ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("compress", "export", "models")
LINES = {"compress": 400, "export": 400, "models": 400, "benchmarks": 500, "tests": 500, "recipes": 500}
MOST_LINES, MOST_ARGUMENTS = 60, 8  # of a function; given by position in a call
VERBS = {
    "_run",
    "_plan",
    "_init",
    "_export",
    "_cut",
    "_compare",
}  # private modules, and yet what a user calls: `compress.run` and others

# What does not keep a rule below yet. This list only gets shorter.
OWED: dict[str, Any] = {
    "lines": set(),
    "functions": set(),
    "arguments": set(),
    "private": {},
    "settings": set(),
    "clocks": set(),
}

# Files of tests that are not named after a module, and what they are about.
ABOUT = {
    "tests/test_house.py": "the layout of all code",
    "tests/export/test_edits.py": "edits and corruptions of a whole folder",
    "tests/test_docs.py": "the map, the site and the changelog",
    "tests/methods/test_own.py": "a method of one's own, which is no module of ours",
    "tests/reading/test_both_ways.py": "networks read by the graph and by LWP's side",
    "tests/test_inputs.py": "networks of several inputs, through the whole house",
    "tests/test_packaging.py": "folders, imports and layers",
    "tests/methods/test_steps.py": "several methods, one after the other",
    "tests/models/test_models.py": "all factories",
    "tests/reading/test_coverage.py": "what networks are built from",
    "tests/surgery/test_cut.py": "the half of connections that removes them",
}


@cache
def files() -> tuple[str, ...]:
    """Our own code, by its path from the root; links are not followed."""
    paths = (path for folder in LINES for path in sorted((ROOT / folder).rglob("*.py")))
    plain = (path for path in paths if not any(parent.is_symlink() for parent in path.parents))
    return tuple(path.relative_to(ROOT).as_posix() for path in plain)


@cache
def parsed(path: str) -> tuple[ast.AST, ...]:
    """Everything in a file, from the whole to its parts."""
    return tuple(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def nodes(kind: type[Node], *folders: str) -> Iterator[tuple[str, Node]]:
    for path in files():
        if path.split("/")[0] in folders:
            yield from ((path, node) for node in parsed(path) if isinstance(node, kind))


# ---- short ----------------------------------------------------------------------------------------------------------


def test_no_file_is_longer_than_anyone_reads() -> None:
    count = {path: (ROOT / path).read_text(encoding="utf-8").count("\n") for path in files()}
    assert {path for path, lines in count.items() if lines > LINES[path.split("/")[0]]} == set()


def test_no_function_is_longer_than_a_screen() -> None:
    found = nodes(ast.FunctionDef, *PRODUCT, "benchmarks")
    long = {f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in found}
    assert {name for name, lines in long.items() if lines > MOST_LINES} == set()


def test_nobody_counts_to_nine_to_read_a_call() -> None:
    found = nodes(ast.Call, *PRODUCT, "benchmarks")
    many = {f"{path}:{ast.unparse(node.func)}" for path, node in found if len(node.args) > MOST_ARGUMENTS}
    assert many == set()


# ---- where tests are ------------------------------------------------------------------------------------------------


def rooms() -> list[str]:
    inside = (path.parent for path in (ROOT / "compress").glob("*/__init__.py"))
    return sorted({path.name for path in inside} - {"recipes"})


def modules(room: str) -> set[str]:
    """Names of the modules in a room and of the folders in it; with "", of those that are in no room."""
    folder = ROOT / "compress" / room
    paths = folder.rglob("*") if room else folder.glob("*")
    return {path.stem.lstrip("_") for path in paths if path.suffix == ".py" or path.is_dir()}


def test_every_room_has_its_tests() -> None:
    assert [room for room in rooms() if not list((ROOT / "tests" / room).glob("test_*.py"))] == []
    assert [path.name for path in (ROOT / "tests").glob("*/") if path.name not in [*rooms(), "__pycache__"]] == []


def test_every_file_of_tests_names_a_module_of_its_room_or_says_what_it_is_about() -> None:
    paths = [Path(path) for path in files() if Path(path).name.startswith("test_")]
    here = {path: "" if path.parent.name == "tests" else path.parent.name for path in paths}
    other = {path.as_posix() for path, room in here.items() if path.stem.removeprefix("test_") not in modules(room)}
    assert other == ABOUT.keys()


# ---- how tests are written ------------------------------------------------------------------------------------------


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def hidden() -> set[str]:
    """Every private name that our own code gives to anything."""
    named = {node.name for kind in (ast.FunctionDef, ast.ClassDef) for _, node in nodes(kind, *PRODUCT)}
    named |= {node.id for _, node in nodes(ast.Name, *PRODUCT) if isinstance(node.ctx, ast.Store)}
    named |= {node.attr for _, node in nodes(ast.Attribute, *PRODUCT) if isinstance(node.ctx, ast.Store)}
    return set(filter(private, named)) - {"_replace", "_asdict", "_fields", "_make"}  # public, of any named tuple


def reached(path: str) -> Iterator[str]:
    """Names that a file of tests imports from compress, or reads, calls or replaces in anything."""
    for node in parsed(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("compress."):
            yield from {*(node.module or "").split(".")} - VERBS
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("compress.")]
            yield from {part for name in names for part in name.split(".")} - VERBS
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "compress":
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "setattr",
            "getattr",
            "patch",
        ):
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            yield from (text.rpartition(".")[2] for text in texts)


def test_tests_call_no_private_name_of_compress() -> None:
    """What they need of the inside has a public name there; a private one may change without a test."""
    inside, paths = hidden(), [path for path in files() if path.startswith("tests/")]
    assert {path: called for path in paths if (called := inside & set(reached(path)))} == {}


def test_every_property_is_tried_on_the_same_examples_everywhere_and_without_a_clock() -> None:
    assert settings.default is not None
    assert (settings.default.deadline, settings.default.derandomize) == (None, True)
    said = {"deadline", "derandomize", "database", "suppress_health_check"}  # in conftest.py, for all
    calls = nodes(ast.Call, "tests")
    again = {path for path, node in calls if said & {word.arg for word in node.keywords}} - {"tests/conftest.py"}
    assert again == set()


def test_no_test_looks_at_a_clock() -> None:
    """A busy machine is slow and not wrong: what is to be quick has few steps, few tensors, few imports."""
    clocks = {"perf_counter", "perf_counter_ns", "monotonic", "process_time", "thread_time", "time_ns"}
    looks = {path for path, node in nodes(ast.Attribute, "tests") if node.attr in clocks}
    looks |= {path for path, node in nodes(ast.alias, "tests") if node.name in clocks}
    texts = [(path, node.value) for path, node in nodes(ast.Constant, "tests") if isinstance(node.value, str)]
    looks |= {path for path, text in texts if any(f"{clock}(" in text for clock in clocks)}  # what a process is to run
    assert looks == set()
