"""What is written about the program is what the program says: the map, the pages, the changelog."""

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import compress
from compress.budget.units import parse_list
from compress.cli import main
from compress.errors import CompressError
from compress.recipe import file as recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *PAGES]
TOPS = ("compress", "export", "models", "recipes", "tests", "benchmarks", "docs")
ANYWHERE = {"__init__.py", "method.py", "settings.py", "model.py"}  # files that many folders have, of ours or of a run
PARTS = re.compile(r"\{\{ (\w+) \}\}")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


def filled(page: str) -> str:
    return str(GENERATE.fill(text(ROOT / "docs" / page)))


def fenced(source: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", source, re.DOTALL | re.MULTILINE)


# ---- CONTRIBUTING.md ------------------------------------------------------------------------------------------------


def rooms() -> dict[str, str]:
    """The map of CONTRIBUTING.md: where, and what is said to happen there."""
    section = text(ROOT / "CONTRIBUTING.md").partition("## The map")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("room", rooms())
def test_the_map_says_of_a_room_what_its_own_first_sentence_says(room: str) -> None:
    path = ROOT / room / "__init__.py" if room.endswith("/") else ROOT / room
    docstring = ast.get_docstring(ast.parse(text(path)))
    assert docstring is not None
    assert rooms()[room] == re.split(r"(?<=[.?!])\s", " ".join(docstring.split()))[0]


def test_the_map_shows_every_folder_and_every_file_at_the_top_of_the_package() -> None:
    packages = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = {f"{name.replace('.', '/')}/" for name in packages if name != "compress"}
    files = {f"compress/{path.name}" for path in (ROOT / "compress").glob("*.py") if not path.stem.startswith("__")}
    linked = {f"compress/{name}/": f"{name}/" for name in ("export", "models", "recipes")}
    shown = set(rooms())
    assert shown == {re.sub(r"^compress/(?=(export|models|recipes)/)", "", folder) for folder in folders} | files
    assert all((ROOT / alias).resolve() == (ROOT / folder).resolve() for alias, folder in linked.items())


def test_a_room_imports_only_rooms_further_down_the_map() -> None:
    whole = [room for room in rooms() if room.removeprefix("compress/").strip("/").count("/") == 0]
    order = [room.removeprefix("compress/").removesuffix(".py").strip("/") for room in whole]
    wrong = []
    for room, name in zip(whole, order, strict=True):
        for path in (ROOT / room).rglob("*.py") if room.endswith("/") else [ROOT / room]:
            # What a recipe may say of a method, and the table of methods, are at the recipe's height.
            settings = name == "methods" and (path.stem == "settings" or path == ROOT / room / "__init__.py")
            here = order.index("recipe" if settings else name)
            for target in re.findall(r"^\s*(?:from|import) compress\.([\w.]+)", text(path), re.MULTILINE):
                parts = target.split(".")
                keys = parts[0] == "methods" and parts[-1] in ("methods", "settings")
                there = order.index("recipe" if keys else parts[0])
                wrong += [f"{path.relative_to(ROOT)} imports {target}"] * (there < here)
    assert wrong == []


def test_the_map_and_all_that_a_contributor_needs_fit_one_screen() -> None:
    assert text(ROOT / "CONTRIBUTING.md").count("\n") <= 100


def test_every_file_that_is_named_is_there() -> None:
    """With its whole path. NAME is a method that somebody adds: what it must have, every method of ours has."""
    missing, count = [], 0
    for path in PROSE:
        for name in re.findall(r"`([\w./*-]+)`", text(path)):
            if name not in ANYWHERE and (name.endswith(".py") or ("/" in name and name.split("/")[0] in TOPS)):
                count += 1
                real = [name.replace("NAME", one.name) for one in methods()]
                missing += [f"{path.name}: {one}" for one in set(real) if not list(ROOT.glob(one.rstrip("/")))]
    assert missing == []
    assert count > 50


def methods() -> list[Path]:
    return [path.parent for path in (ROOT / "compress" / "methods").glob("*/method.py")]


# ---- README and the site --------------------------------------------------------------------------------------------


def test_readme_shows_every_command_with_options_that_it_has() -> None:
    rows = re.findall(r"^\| `compress (\w+).*$", text(ROOT / "README.md"), re.MULTILINE)
    assert sorted(rows) == sorted(main.commands)
    for line in re.findall(r"^\| `compress \w+.*$", text(ROOT / "README.md"), re.MULTILINE):
        command = main.commands[line.split()[2].strip("`")]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line


def test_every_command_that_is_named_exists() -> None:
    named = {name for path in PROSE for name in re.findall(r"`compress ([a-z]+)", text(path))}
    assert len(named) > 5
    assert named <= set(main.commands)


def test_every_recipe_that_is_shown_can_be_read(tmp_path: Path) -> None:
    shown = [block for path in PROSE for block in fenced(text(path), "yaml")]
    assert shown
    for block in shown:
        (tmp_path / "shown.yaml").write_text(block, encoding="utf-8")
        assert recipe.read(tmp_path / "shown.yaml").methods


def test_every_amount_that_is_shown_can_be_read() -> None:
    cells = re.findall(r"^\| (`.+?) \|", text(ROOT / "docs" / "budgets.md"), re.MULTILINE)
    amounts = [amount for cell in cells for amount in re.findall(r"`(.+?)`", cell)]
    assert len(amounts) >= len(cells) > 5
    assert all(len(parse_list(amount)) == 1 for amount in amounts)


def test_links_of_readme_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text(ROOT / "README.md")) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).is_file()] == []


def test_every_shipped_recipe_and_every_result_is_shown() -> None:
    recipes, results = text(ROOT / "docs" / "recipes.md"), text(ROOT / "docs" / "results.md")
    assert [path.stem for path in (ROOT / "recipes").glob("*.yaml") if f"`{path.stem}`" not in recipes] == []
    pages = (ROOT / "benchmarks" / "results").glob("*.md")
    assert [path.name for path in pages if f"(results/{path.name})" not in results] == []


def test_every_part_that_a_page_asks_for_is_made_and_no_other() -> None:
    asked = [name for path in PAGES for name in PARTS.findall(text(path))]
    assert sorted(asked) == sorted(GENERATE.MADE)
    with pytest.raises(KeyError, match="nothing"):
        GENERATE.fill("{{ nothing }}")


def properties(schema: Any) -> Iterator[str]:
    """The names of all keys anywhere in a JSON Schema."""
    if isinstance(schema, Mapping):
        yield from schema.get("properties", {})
        for part in schema.values():
            yield from properties(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from properties(part)


def test_the_pages_on_recipes_and_reports_name_every_key_of_their_schemas() -> None:
    from compress.export.report import report_schema

    for page, schema in (("keys.md", recipe.schema()), ("report.md", report_schema())):
        rows = set(re.findall(r"^\| `(\w+)` \|", filled(page), re.MULTILINE))
        assert set(properties(schema)) <= rows
        assert len(rows) > 20


def test_the_page_on_keys_says_defaults_and_what_is_required() -> None:
    page = filled("keys.md")
    assert re.search(r"^\| `factory` \| text \| \*required\* \| .+ \|$", page, re.MULTILINE)
    assert re.search(r"^\| `lr` \| number > 0 \| `0.1` \| .+ \|$", page, re.MULTILINE)
    assert re.search(r"^\| `round` \| duration: .+ \| `\"1 epoch\"` \| .+ \|$", page, re.MULTILINE)
    assert re.search(r"^## `method`: adenel$", page, re.MULTILINE)


def test_the_page_on_commands_says_every_option() -> None:
    page = filled("commands.md")
    for name, command in main.commands.items():
        section = page.partition(f"## compress {name}\n")[2].partition("\n## ")[0]
        options = [p.opts[0] for p in command.params if isinstance(p, click.Option)]
        assert [option for option in options if option not in section] == []


def test_the_page_on_exit_codes_says_every_error_of_ours() -> None:
    rows = re.findall(r"^\| (\d+) \| `compress\.errors\.(\w+)` \|", filled("exit-codes.md"), re.MULTILINE)
    kinds = [CompressError, *CompressError.__subclasses__()]
    ours = {(str(kind.exit_code), kind.__name__) for kind in kinds if kind.__module__ == "compress.errors"}
    assert set(rows) == ours


def test_the_page_on_python_says_every_public_name() -> None:
    page = filled("api.md")
    for name in compress.__all__:
        section = page.partition(f"## compress.{name}\n")[2].partition("\n## ")[0]
        docstring = getattr(compress, name).__doc__
        assert docstring.strip().splitlines()[0] in section


def test_the_page_on_methods_says_of_each_what_its_code_says() -> None:
    page = filled("methods.md")
    for folder in methods():
        module = ast.parse(text(folder / "method.py"))
        assert f"## {folder.name}\n\n{(ast.get_docstring(module) or '').splitlines()[0]}" in page


# ---- CHANGELOG.md ---------------------------------------------------------------------------------------------------


def test_the_changelog_ends_where_the_version_stands() -> None:
    heads = re.findall(r"^## (.+)$", text(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == "Unreleased"
    dated = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", head) for head in heads[1:]]
    assert dated
    assert all(dated), heads
    versions = [tuple(map(int, match[1].split("."))) for match in dated if match]
    days = [date.fromisoformat(match[2]) for match in dated if match]
    assert versions == sorted(set(versions), reverse=True)
    assert days == sorted(days, reverse=True)
    newest = ".".join(map(str, versions[0]))
    assert newest == compress.__version__ == tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["version"]
