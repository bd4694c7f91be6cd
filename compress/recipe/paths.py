"""Which keys of a recipe hold paths, how each is said from another folder, and which files of the user's they name."""

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from compress.recipe.settings import Recipe

KeyPath = tuple[str, ...]
# Keys that hold a path, and those of an import path, which may name a file; "method" stands for each of "steps".
WEIGHTS: set[KeyPath] = {("model", "weights"), ("train", "teacher", "weights")}
PATHS: set[KeyPath] = {*WEIGHTS, ("data", "path"), ("method", "like"), ("method", "of"), ("model", "from")}
CODE: set[KeyPath] = {("model", "factory"), ("train", "teacher", "factory"), ("method", "name"), ("data", "dataset")}
CODE |= {("train", key) for key in ("loss", "metric", "step")}


def own_files(recipe: Recipe) -> dict[str, Path]:
    """Return the user's own files of code and weights that a recipe names, as it says them: "./net.py:make", "w.pt"."""
    sections: list[tuple[KeyPath, BaseModel | None]] = [
        (("model",), recipe.model),
        (("train",), recipe.train),
        (("data",), recipe.data),
    ]
    sections += [(("train", "teacher"), recipe.train.teacher), *((("method",), step) for step in recipe.methods)]
    said = [
        ((*name, key), getattr(table, key)) for name, table in sections if table for key in type(table).model_fields
    ]
    texts = [(keys, text) for keys, text in said if text is not None and keys in CODE | WEIGHTS]
    files = {text: text if keys in WEIGHTS else text.rpartition(":")[0] for keys, text in texts}
    own = {text: file for text, file in files.items() if file == text or file.endswith(".py")}
    return {text: recipe.folder / Path(file).expanduser() for text, file in own.items()}


def with_path(text: str, keys: KeyPath, change: Callable[[str], str]) -> str:
    """Change the path in a value, if there is one: all of it, or of an import path the file, as in "./net.py:make"."""
    if keys in PATHS:
        return change(text)
    file, _, name = text.rpartition(":")
    return f"{change(file)}:{name}" if keys in CODE and file.endswith(".py") else text


def from_here(text: str, folder: Path) -> str:
    """Say a path that was typed where the process runs as the recipe in `folder` would say it."""
    path = Path(os.path.abspath(Path(text).expanduser()))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def portable_path(text: str, folder: Path) -> str:
    """Say an absolute path without its machine: relative to `folder` where it lies in it, else by its name alone."""
    path = Path(text)
    if not path.is_absolute():
        return text
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
