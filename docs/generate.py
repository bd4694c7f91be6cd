"""The parts of the site that are made from the program itself, so that they cannot drift from it.

mkdocs calls `on_files` and `on_page_markdown` (see mkdocs.yml). A line `{{ keys }}` in a page is replaced by what
`MADE` makes under that name; CONTRIBUTING.md, CHANGELOG.md, SECURITY.md and the pages of benchmarks/results are shown
as they lie. Sources are parsed, not imported: the site is built without torch.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {"CONTRIBUTING.md": ROOT, "CHANGELOG.md": ROOT, "SECURITY.md": ROOT, "results/*.md": ROOT / "benchmarks"}
_PLACE = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)

Schema = Mapping[str, Any]  # a JSON Schema, or a part of one


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of docs/ (an event of mkdocs)."""
    from mkdocs.structure.files import File

    for pattern, folder in ELSEWHERE.items():
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            files.append(File(name, str(folder), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of a page (an event of mkdocs)."""
    return fill(markdown)


def fill(markdown: str) -> str:
    """The page with everything that is made for it; a KeyError names what nobody makes."""
    return _PLACE.sub(lambda place: MADE[place[1]](), markdown)


# ---- JSON Schemas ---------------------------------------------------------------------------------------------------


def keys() -> str:
    """Every key of a recipe."""
    from compress.recipe.file import schema

    return _tables(schema(), ("key", "type", "default", "meaning"), "The recipe itself")


def report() -> str:
    """Every key of report.json."""
    from compress.export.report import report_schema

    return _tables(report_schema(), ("key", "type", "meaning"), "The report itself")


def _tables(schema: Schema, head: Sequence[str], title: str) -> str:
    """A section for every table of a schema; the tables that one holds come right behind it, each of them once."""
    return "\n\n".join(
        f"## {name}\n\n{description}\n\n{_table(head, [[row[column] for column in head] for row in rows])}"
        for name, description, rows in _sections(schema, schema, title, "", {})
    )


def _sections(
    schema: Schema, part: Schema, title: str, path: str, shown: dict[str, str]
) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """The title, description and rows of one table, and of those in it; `path` leads to its keys, with dots.

    `shown` has the contents of tables that have their section, or are about to get it, and where that is.
    """
    rows, inner = [], []
    for key, value in part.get("properties", {}).items():
        elsewhere = set()
        for suffix, table in _within(value, schema):
            content, name = json.dumps(table, sort_keys=True), f"{path}{key}{suffix}"
            if content in shown:
                elsewhere.add(f", as `{shown[content]}`")
                continue
            shown[content] = name
            method = table["properties"].get("name", {}).get("const")
            inner.append((f"`{name}`" + f": {method}" * bool(method), f"{name}.", table))
        default = next((said for said, keys in _required(part).items() if key in keys), None) or _default(value)
        kind, meaning = _type(value, schema) + "".join(sorted(elsewhere)), _line(value.get("description", ""))
        rows.append({"key": f"`{key}`", "type": kind, "default": default, "meaning": meaning})
    yield title, _line(part.get("description", "")), rows
    for name, below, table in inner:
        yield from _sections(schema, table, name, below, shown)


def _required(part: Schema) -> dict[str, set[str]]:
    """The keys of a table that must be there, and those that may be in the place of one."""
    first, *others = [set(option.get("required", ())) for option in part.get("anyOf", ())] or [set()]
    return {"*required*": {*part.get("required", ()), *first}, "*in its place*": set().union(*others)}


def _within(value: Schema, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The tables with keys of their own that a value may be or hold, each with what leads to it."""
    value = _resolved(value, schema)
    if value.get("properties"):
        yield "", value
    for option in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from _within(option, schema)
    for suffix, key in (("[]", "items"), (".*", "additionalProperties")):
        if isinstance(value.get(key), Mapping):
            yield from ((suffix + more, table) for more, table in _within(value[key], schema))


def _resolved(value: Schema, schema: Schema) -> Schema:
    definition: Schema = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
    return definition


def _type(value: Schema, schema: Schema) -> str:
    """What a value may be, in a few words."""
    value = _resolved(value, schema)
    if "const" in value or "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value.get("enum", [value.get("const")]))
    if options := (*value.get("anyOf", ()), *value.get("oneOf", ())):
        return " or ".join(dict.fromkeys(_type(option, schema) for option in options))
    kind = value.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_type({**value, "type": one}, schema) for one in kind)
    if kind == "array":
        items = _type(value.get("items", {}), schema)
        return f"list of ({items})" if " or " in items else f"list of {items}"
    if kind == "string" and "epoch" in value.get("pattern", ""):
        return "duration: `10 epochs`, `100 steps`"
    words = {"string": "text", "object": "table", "boolean": "`true`, `false`", "null": "`null`"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:,}" for key, sign in signs.items() if key in value and kind in ("integer", "number")]
    return f"{words.get(kind, kind)} {', '.join(bounds)}".strip()


def _default(value: Schema) -> str:
    """The default as JSON; a table's are in its own section."""
    return "" if isinstance(value.get("default", {}), Mapping) else f"`{json.dumps(value['default'])}`"


def _line(text: str) -> str:
    """Text of a docstring in one line, as Markdown that reads the same; what is in backticks stays."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- commands -------------------------------------------------------------------------------------------------------


def commands() -> str:
    """The help of every command, as click prints it."""
    import click

    from compress.cli import main

    def shown(command: click.Command, context: click.Context) -> str:
        return f"```text\n{command.get_help(context)}\n```"

    whole = click.Context(main, info_name="compress", terminal_width=100, **main.context_settings)
    parts = [shown(main, whole)]
    for name, command in main.commands.items():
        parts.append(f"## compress {name}\n\n{shown(command, click.Context(command, whole, name))}")
    return "\n\n".join(parts)


def exits() -> str:
    """Every exit code, with the error that Python raises for it."""
    from compress import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.CompressError)]
    rows = [[str(k.exit_code), f"`compress.errors.{k.__name__}`", _line(k.__doc__ or "")] for k in kinds]
    rows.append(["0", "", "The budget is kept, and so is whatever else was asked for."])
    return _table(("code", "class", "when"), sorted(rows, key=lambda row: int(row[0])))


# ---- Python ---------------------------------------------------------------------------------------------------------


def api() -> str:
    """Every public name of `compress`: how it is called, what it says of itself, and the class that it returns."""
    from compress import __all__ as public

    homes = _imported(ROOT / "compress" / "__init__.py")
    parts, shown = [], set()
    for name in public:
        path = _path(homes[name])
        node = _defined(name, path)
        if isinstance(node, ast.ClassDef):
            parts.append(f"## compress.{name}\n\n{_class(node, path)}")
            continue
        parts.append(f"## compress.{name}\n\n{_function(node, path)}")
        result = ast.unparse(node.returns) if node.returns else ""
        home = _imported(path).get(result, homes[name])
        if result.isidentifier() and home.startswith("compress.") and result not in shown:
            shown.add(result)
            parts.append(f"### {result}\n\n`{home}.{result}`\n\n{_class(_defined(result, _path(home)), _path(home))}")
    return "\n\n".join(parts)


def methods() -> str:
    """What every method says of itself, and how it differs from its paper."""
    files = sorted((ROOT / "compress" / "methods").glob("*/method.py"))
    return "\n\n".join(f"## {path.parent.name}\n\n{_prose(ast.get_docstring(_parsed(path)) or '')}" for path in files)


def _path(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _imported(path: Path) -> dict[str, str]:
    """The names that a file imports from modules, each with its module."""
    nodes = [node for node in ast.walk(_parsed(path)) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module or "" for node in nodes for alias in node.names}


def _defined(name: str, path: Path) -> Any:
    """The class or function of this name in a file."""
    return next(n for n in _parsed(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)


def _function(node: ast.FunctionDef, path: Path) -> str:
    """Its signature as it stands in the file, and its docstring."""
    text = "\n".join(_lines(path)[node.lineno - 1 : node.body[0].lineno - 1])
    return f"```python\n{text.removeprefix('def ').removesuffix(':')}\n```\n\n{_prose(ast.get_docstring(node) or '')}"


def _class(node: ast.ClassDef, path: Path) -> str:
    """Its docstring, and a row for every public field, property and method."""
    rows = []
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            comments = [line.partition("# ")[2] for line in _lines(path)[inner.lineno - 1 : inner.end_lineno]]
            rows.append([f"`{inner.target.id}`", f"`{ast.unparse(inner.annotation)}`", _line(" ".join(comments))])
        elif isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            called = "" if "property" in map(ast.unparse, inner.decorator_list) else "()"
            result = ast.unparse(inner.returns) if inner.returns else ""
            meaning = _line((ast.get_docstring(inner) or "").split("\n\n")[0])
            rows.append([f"`{inner.name}{called}`", f"`{result}`", meaning])
    return f"{_prose(ast.get_docstring(node) or '')}\n\n{_table(('name', 'type', 'meaning'), rows)}"


def _prose(docstring: str) -> str:
    """A docstring as Markdown, where a list begins and ends with an empty line."""
    begun = re.sub(r"(?m)^(?!- |  )(.+)\n(?=- )", r"\1\n\n", docstring)
    return re.sub(r"(?m)^((?:- |  ).+)\n(?=[^\s-])", r"\1\n\n", begun)


# ---- README ---------------------------------------------------------------------------------------------------------


def start() -> str:
    """README up to its results."""
    return _readme()[0]


def results() -> str:
    """README's results, which are written there alone."""
    return _readme()[1]


def _readme() -> tuple[str, str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    before, _, rest = text.partition("## Results\n\n")
    return before, rest.partition("## ")[0].strip()


MADE: dict[str, Callable[[], str]] = {
    "api": api,
    "commands": commands,
    "exits": exits,
    "keys": keys,
    "methods": methods,
    "report": report,
    "results": results,
    "start": start,
}
