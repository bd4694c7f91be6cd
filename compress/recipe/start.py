"""`model: {from: runs/first}` is short for what that finished run says of its network; here it is written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import UsageError

FROM = "from"
OURS = ("compress.models:", "torchvision.")  # factories that a folder may name; others only the recipe itself


def written_out(values: dict[str, Any], folder: Path, read: Callable[[Path], dict[str, Any]]) -> None:
    """Replace the key in a recipe's values: by the run's factory, arguments, folder (as weights), mean and std.

    `read` gives the values of a recipe's file. Raises UsageError where no finished run is there, and where its factory
    is code that the recipe does not name itself.
    """
    model = values.get("model")
    if not isinstance(model, dict) or FROM not in model:
        return
    start = model.pop(FROM)
    if not isinstance(start, str) or model.get("weights") is not None:
        raise UsageError(
            f"model.from: expected the folder of a finished run, and no model.weights beside it, got {start!r}"
        )
    place = folder / Path(start).expanduser()
    if not (place / "recipe.yaml").is_file() or not (place / "report.json").is_file():
        raise UsageError(
            f"model.from: {start} is no folder of a finished run (it holds no recipe.yaml and report.json)"
        )
    theirs = read(place / "recipe.yaml")["model"]
    if "factory" not in model and not theirs["factory"].startswith(OURS):
        raise UsageError(
            f"model.from: the network in {start} is made by {theirs['factory']}; if you trust that code, write it as "
            "model.factory, as this recipe finds it"
        )
    model.setdefault("factory", theirs["factory"])
    model.setdefault("args", theirs["args"])
    model["weights"] = start
    data = values.setdefault("data", {})
    if isinstance(data, dict) and "mean" not in data and "std" not in data:
        data |= _pixels(place / "report.json")


def _pixels(path: Path) -> dict[str, list[float]]:
    """What a run's pixels were normalised by."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["preprocessing"]
        return {"mean": list(known["mean"]), "std": list(known["std"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"model.from: {path} is damaged") from None
