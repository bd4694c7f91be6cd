"""What the command line says, as a recipe says it: factories, images, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from compress.errors import UsageError
from compress.recipe import settings
from compress.recipe.settings import Recipe

SETS = tuple(
    name for name in get_args(settings.Data.model_fields["source"].annotation) if name not in ("folder", "npz", "own")
)


def source_of(data: str, size: int | None = None) -> dict[str, Any]:
    """Return what a recipe's `data` says for images named on the command line, with an absolute path.

    A known set ("digits", "cifar10"), an .npz file, a folder with train/CLASS/NAME.png, whose images are resized to
    `size` pixels a side, or what builds data sets of one's own. Raises UsageError for anything else.
    """
    path = Path(data).expanduser()
    if data in SETS:
        return {"source": data}
    if data and path.is_dir():
        return {"source": "folder", "path": str(path.absolute()), "size": size}
    if path.suffix == ".npz" and path.is_file():
        return {"source": "npz", "path": str(path.absolute())}
    file, colon, name = data.rpartition(":")
    if colon and name.isidentifier():
        code = Path(file).expanduser()
        if code.suffix == ".py" and code.is_file():
            return {"source": "own", "dataset": f"{code.absolute()}:{name}"}
        if all(part.isidentifier() for part in file.split(".")):
            return {"source": "own", "dataset": data}
    raise UsageError(
        f"{data!r} names no images; give {', '.join(SETS)}, an .npz file, a folder of images, or ./file.py:callable "
        "that returns data sets."
    )


def beside(factory: str) -> tuple[str, Path]:
    """Split "a/net.py:make" into "./net.py:make" and the folder a, so that no file names a path."""
    file, colon, name = factory.rpartition(":")
    if not colon or not file.endswith(".py"):
        return factory, Path().absolute()
    path = Path(file).expanduser().absolute()
    return f"./{path.name}:{name}", path.parent


def stated(**sections: Any) -> Recipe:
    """Make a recipe of plain values; raises UsageError naming the first key that is wrong."""
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}.") from None
