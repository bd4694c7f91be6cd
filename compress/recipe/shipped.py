"""The recipes that come with the package, found by name wherever it is installed: "quickstart"."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from compress.errors import UsageError

_REMARK = re.compile(r" \(.*?\)|: .*|[:.]$")


@dataclass(frozen=True, slots=True)
class Shipped:
    """One of them: `compress run NAME` reads `path`."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        """What the file says."""
        return self.path.read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """What the recipe does: its first comment line up to a colon, without what stands in brackets."""
        mark, _, line = self.text.partition("\n")[0].partition("# ")
        return _REMARK.sub("", line) if not mark else ""


def shipped() -> dict[str, Shipped]:
    """All of them by name, sorted."""
    from importlib.resources import files  # takes longer than all else that `compress schema` imports of Python's own

    paths = [Path(str(entry)) for entry in files("compress.recipes").iterdir() if entry.name.endswith(".yaml")]
    return {path.stem: Shipped(path.stem, path) for path in sorted(paths, key=lambda path: path.stem)}


def named(name: str) -> Shipped:
    """The one of this name; raises UsageError where there is none."""
    known = shipped()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = f"did you mean '{near[0]}'?" if near else "`compress recipes` lists them."
        raise UsageError(f"no recipe that comes with compress is called {name!r}; {hint}")
    return known[name]


def path_of(source: str | Path) -> str | Path:
    """Where the recipe is that a command names: this path, or the shipped one of this name where no such file is."""
    if os.path.isfile(source) or str(source) not in shipped():
        return source
    return shipped()[str(source)].path
