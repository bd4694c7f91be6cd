"""A recipe: YAML in, frozen settings out; what is wrong with it is told with file, line, key and what to write.

YAML here is the plain part of it: no tags, no anchors, no repeated keys, and numbers as in YAML 1.2, so that `1e-3` is
a number, `010` is ten and `12:30` and `2026-01-31` are text. `yes` and `no` still are true and false.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, core_schema

from compress.errors import UsageError
from compress.methods import METHODS
from compress.recipe import shipped
from compress.recipe.keys import Duration
from compress.recipe.paths import CODE, PATHS, KeyPath, from_here, portable_path, with_path
from compress.recipe.settings import OWN, Recipe
from compress.recipe.start import written_out

_SHORT = {("data", "npz"): "npz", ("data", "folder"): "folder"}  # --set data.npz=FILE: the source and its path in one
_NOTHING = ("", "~", "null")
_MOST = 20  # mistakes that are told at a time
_LARGEST = 2**16  # bytes; a recipe is a page, so anything longer is another file


def read(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    budget: str | None = None,
    root: Path | None = None,
) -> Recipe:
    """Read the recipe at `path`, then `overrides` (dotted key -> YAML text), then a `budget` that replaces its own.

    Where no file is at `path`, it may be the name of a recipe that comes with the package: "quickstart".
    Paths in the file start at its folder, or at `root`, which the recipe keeps; those in `overrides` start where the
    process runs.
    Raises UsageError with a line for each mistake: where, key, what is wrong, the value, what to write.
    """
    path = shipped.path_of(path)
    values, places = _load(str(path))
    folder = Path(os.path.abspath(path)).parent if root is None else root
    for key, text in (overrides or {}).items():
        _override(values, places, key, text, folder)
    written_out(values, folder, lambda run: _load(str(run))[0])
    if budget is not None:
        values["budget"] = budget
        _place(places, ("budget",), "--budget")
    for key in [key for key, value in values.items() if value is None]:  # "train:" with nothing below it
        del values[key]
    try:
        return Recipe.model_validate(values).placed(folder)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    told = list(dict.fromkeys(_sentence(error, values, places) for error in errors[:_MOST]))
    more = [f"and {len(errors) - _MOST:,} more mistakes."] if len(errors) > _MOST else []
    raise UsageError("\n".join(told + more))


def dump(recipe: Recipe) -> str:
    """Write the recipe with all its defaults as YAML that `read` reads back as an equal recipe.

    It names no path of the machine: paths inside the recipe's folder become relative, of others the name is kept.
    """
    values = recipe.model_dump(mode="json")
    sections: list[tuple[KeyPath, Any]] = [((name,), values[name]) for name in ("model", "data", "train", "method")]
    sections += [(("train", "teacher"), values["train"]["teacher"])]
    for name, table in [*sections, *((("method",), step) for step in values["steps"] or ())]:
        for key in table or ():
            if isinstance(table[key], str):
                table[key] = with_path(table[key], (*name, key), lambda path: portable_path(path, recipe.folder))
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors and for other people's tools."""
    whole = _known()
    for option in whole["properties"]["steps"]["anyOf"]:
        if "items" in option:
            kinds = {name: ref.rpartition("/")[2] for name, ref in _mapping(option["items"]).items()}
            bare = [name for name, kind in kinds.items() if "required" not in whole["$defs"][kind]]
            option["items"]["anyOf"][:0] = [{"enum": bare}, {"type": "string", "pattern": ".:."}]
    return whole


def _known() -> dict[str, Any]:
    """The same without steps that are said by their names alone."""
    known = Recipe.model_json_schema(schema_generator=_Schema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **known, "title": "Recipe of compress"}


class _Schema(GenerateJsonSchema):
    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        """A method of ours is told by its name, one of the user's own by the colon in it."""
        union = super().tagged_union_schema(schema)
        if OWN in schema["choices"] and "discriminator" not in union:
            ours = {str(tag): self.generate_inner(choice)["$ref"] for tag, choice in schema["choices"].items()}
            own = ours.pop(OWN)
            named = {"discriminator": {"mapping": ours, "propertyName": "name"}}
            union = {"anyOf": [{**named, "oneOf": [{"$ref": ref} for ref in ours.values()]}, {"$ref": own}]}
        return union

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)


class _Refused(yaml.MarkedYAMLError):
    """YAML that a recipe has no use for."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (yaml's own name)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _Refused("aliases such as *name are not read; write the value again", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # what would be read as a number is written in quotes

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _truth(text: str) -> bool:
    return text.lower() in ("yes", "true", "on")


def _finite(text: str) -> float:
    if isfinite(number := float(text)):
        return number
    raise ValueError("out of range")


_SCALARS: dict[str, tuple[Callable[[str], Any], str | None]] = {  # tag: (reader, how it looks without quotes)
    "tag:yaml.org,2002:null": (lambda _: None, r"~|null|Null|NULL|"),
    "tag:yaml.org,2002:bool": (_truth, r"(?i:yes|no|true|false|on|off)"),
    "tag:yaml.org,2002:int": (int, r"[-+]?[0-9]+(?:_[0-9]+)*"),
    "tag:yaml.org,2002:float": (_finite, r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
    "tag:yaml.org,2002:str": (str, None),
}
for _tag, (_, _looks) in _SCALARS.items():
    if _looks is not None:
        _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_looks})\Z"), None)


def _load(file: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Read the file's keys, and for each of them the place ("file:line") where it stands."""
    try:
        if os.path.exists(file) and stat.S_ISFIFO(os.stat(file).st_mode) and not file.startswith(("/dev/", "/proc/")):
            raise UsageError(f"{file}: a pipe, which may never end; write the path of a .yaml file.")
        with open(file, "rb") as stream:
            raw = stream.read(_LARGEST + 1)
    except FileNotFoundError:
        near = _nearest(Path(file).name, [*_recipes_beside(Path(file)), *shipped.shipped()], 0.75)
        hint = near or "write the path of a .yaml file, or a name that `compress recipes` lists."
        raise UsageError(f"{file}: no such file; {hint}") from None
    except IsADirectoryError:
        raise UsageError(f"{file}: a folder; write the path of a .yaml file in it.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(raw) > _LARGEST:
        raise UsageError(f"{file}: not a recipe; a recipe is YAML, a text file in UTF-8 of at most 64 KiB.")
    places: dict[KeyPath, str] = {(): f"{file}:1"}
    values = _parse(text, file, places)
    if values is None:
        raise UsageError(f"{file}:1: the recipe is empty; it needs at least model and method.")
    if not isinstance(values, dict):
        raise UsageError(f"{file}:1: expected keys and values such as 'seed: 0', got {_short(values)}.")
    return values, places


def _recipes_beside(file: Path) -> list[str]:
    return [path.name for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []


def _parse(text: str, source: str, places: dict[KeyPath, str] | None) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _plain(node, (), source, {} if places is None else places)
    except yaml.MarkedYAMLError as error:
        problem = error.problem if isinstance(error, _Refused) else _not_yaml(error)
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and places is not None else ""
        raise UsageError(f"{source}{line}: {problem}.") from None
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}" if places is not None else ""
        raise UsageError(
            f"{source}{line}: not text: the character {chr(error.character)!r} has no place here."
        ) from None
    except RecursionError:
        raise UsageError(f"{source}: nested too deeply to be a recipe.") from None


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    return f"not YAML: {', '.join(part for part in (error.context, error.problem) if part)}"


def _plain(node: yaml.Node, keys: KeyPath, source: str, places: dict[KeyPath, str]) -> Any:
    """Turn a node into plain values and note where each stands; `keys` lead to it."""
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        for index, item in enumerate(node.value):
            places[*keys, str(index)] = f"{source}:{item.start_mark.line + 1}"
        return [_plain(item, (*keys, str(index)), source, places) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        values: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _Refused("a key is a word, not a list or a mapping", name.start_mark)
            below = (*keys, name.value)
            if name.value in values:
                first = places[below].rpartition(":")[2]
                problem = f"the key '{'.'.join(below)}' stands twice, first in line {first}; keep one"
                raise _Refused(problem, name.start_mark)
            places[below] = f"{source}:{name.start_mark.line + 1}"
            values[name.value] = _plain(value, below, source, places)
        return values
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return _SCALARS[node.tag][0](node.value)
        except ValueError:
            raise _Refused(f"no number reads {_short(node.value)}", node.start_mark) from None
    raise _Refused(f"the tag {node.tag} is not read; write plain values", node.start_mark)


def _override(values: dict[str, Any], places: dict[KeyPath, str], key: str, text: str, folder: Path) -> None:
    keys = tuple(key.strip().split("."))
    if not all(keys):
        raise UsageError(f"--set: {_short(key)} is not a key; write --set train.lr=0.05.")
    if keys in _SHORT:
        _override(values, places, "data.source", _SHORT[keys], folder)
        keys = ("data", "path")
    value: Any = text
    key_of = ("method", *keys[2:]) if keys[0] == "steps" else keys
    if key_of in PATHS | CODE:
        value = with_path(text, key_of, lambda path: from_here(path, folder)) if text not in _NOTHING else None
    else:
        value = _parse(text, f"--set {key}", None)
    here: Any = values
    for depth, name in enumerate(keys[:-1], start=1):
        at = _entry(here, name, key)
        if isinstance(here, dict) and here.get(at) is None:
            here[at] = {}
            _place(places, keys[:depth], "--set")
        if depth == 2 and keys[0] == "steps" and isinstance(here[at], str):
            here[at] = {"name": here[at]}
        if not isinstance(here[at], dict | list):
            raise UsageError(f"--set: {key}: '{'.'.join(keys[:depth])}' is {_short(here[at])} and has no keys below.")
        here = here[at]
    here[_entry(here, keys[-1], key)] = value
    _place(places, keys, "--set")


def _entry(table: Any, name: str, key: str) -> str | int:
    """A name in a table, or the number of an entry in a list."""
    if not isinstance(table, list):
        return name
    if not name.isdecimal() or int(name) >= len(table):
        raise UsageError(f"--set: {key}: {name!r} is no entry of a list of {len(table)}; they are numbered from 0.")
    return int(name)


def _place(places: dict[KeyPath, str], keys: KeyPath, place: str) -> None:
    for below in [known for known in places if known[: len(keys)] == keys]:
        del places[below]  # what stood there before is replaced
    places[keys] = place


def _sentence(error: ErrorDetails, values: Any, places: dict[KeyPath, str]) -> str:
    loc = [str(part) for part in error["loc"]]
    named = {"method": 1, "steps": 2}.get(loc[0] if loc else "", 0)
    if named and len(loc) > named:  # pydantic names the method between the two keys
        del loc[named]
    if error["type"].startswith("union_tag"):
        loc.append("name")
    keys = tuple(loc)
    near = keys
    while near not in places:
        near = near[:-1]
    dotted = "" if places[near] == "--budget" else f"{'.'.join(keys)}: " if keys else ""
    return f"{places[near]}: {dotted}{_problem(error, keys)}"


_EXPECTED = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "dict_type": "expected keys and values",
    "finite_number": "expected a finite number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "expected a number above {gt}",
    "greater_than_equal": "expected a number of at least {ge}",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "less_than": "expected a number below {lt}",
    "less_than_equal": "expected a number of at most {le}",
    "model_attributes_type": "expected keys and values",
    "model_type": "expected keys and values",
    "string_type": "expected text (in quotes, if it looks like something else)",
    "tuple_type": "expected a list",
}


def _problem(error: ErrorDetails, keys: KeyPath) -> str:
    """Say what is wrong and what to write; `keys` lead to where."""
    kind, context, got = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        known = list(_schema_of(error["loc"][:-1])["properties"])
        return f"unknown key; {_nearest(keys[-1], known) or 'the keys here are ' + ', '.join(known) + '.'}"
    if kind == "value_error":
        return str(context["error"]).rstrip(".") + "."
    if kind == "missing":
        return f"missing. {' '.join(_schema_of(error['loc'])['description'].split())}"
    if kind == "union_tag_not_found":
        return f"missing; write one of {', '.join(METHODS)}."
    if kind == "union_tag_invalid":
        got, context = context["tag"], {"expected": ", ".join(map(repr, METHODS))}
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context["expected"]
        hint = _nearest(str(got), re.findall(r"'([^']+)'", expected))
        return f"expected {expected}, got {_short(got)}{f'; {hint}' if hint else '.'}"
    bounds = {name: str(value).removesuffix(".0") for name, value in context.items()}
    return f"{_EXPECTED.get(kind, error['msg']).format(**bounds)}, got {_short(got)}."


def _schema_of(loc: tuple[int | str, ...]) -> dict[str, Any]:
    """The JSON Schema of what stands at `loc`, where a method's name stands between its key and what is below."""
    whole = _known()
    here = whole
    for part in loc:
        if isinstance(part, int):
            here = here["items"]
            continue
        kinds = _mapping(here)
        here = {"$ref": kinds.get(part, "/Own")} if kinds else here["properties"][part]
        for option in here.get("anyOf", [here]):
            if "$ref" in option:
                here = {**whole["$defs"][option["$ref"].rpartition("/")[2]], **here}
            elif "items" in option:
                here = {**option, **here}
    return here


def _mapping(schema: Mapping[str, Any]) -> Mapping[str, str]:
    """By the name of each method of ours where its keys are described; nothing where no method stands."""
    options = [each for option in (schema, *schema.get("anyOf", ())) for each in (option, *option.get("anyOf", ()))]
    return next((option["discriminator"]["mapping"] for option in options if "discriminator" in option), {})


def _nearest(word: str, known: list[str], cutoff: float = 0.5) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean '{close[0]}'?" if close else ""


def _short(value: object) -> str:
    words = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return words if len(words) <= 60 else words[:57] + "..."
