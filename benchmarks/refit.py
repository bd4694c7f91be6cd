"""What nets of smaller budgets should begin with: the end of a run, narrowed, or a state that it grew through, widened.

    python benchmarks/refit.py > benchmarks/results/refit.md     (fifteen minutes on one core of a busy machine)

Two runs on digits that keep their states are fitted to smaller budgets from either, tuned alike, three seeds of tuning
each. Validation accuracy decides, test accuracy stands beside it. What was tried on the way and left: tuning at 0.03.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

from compress._plan import methods_of
from compress._run import develop, prepare, run
from compress.recipe.file import read

RUNS = {  # by recipe: what it is run with, the budgets that its nets are fitted to, and for how many epochs
    "quickstart": ({}, ("20kFLOPs", "40kFLOPs", "80kFLOPs"), (10, 40)),
    "autogrow-digits": ({"budget": "400kFLOPs", "method.tune.epochs": "20"}, ("220kFLOPs", "290kFLOPs"), (10,)),
}
SEEDS = (0, 1, 2)
HEAD = """\
# Where a smaller net should begin

`python benchmarks/refit.py`. Two shipped recipes on digits were run with `export: {{states: true}}`, and their nets
fitted to smaller budgets by `refit`: from the run's end, whose filters of largest l1 norm stay, or with `start:
nearest`, from a state that it grew through, widened to fill, where one is nearer (the optimizer step of that state is
in brackets). Means and standard deviations of three seeds of tuning, one run each; validation decides.

| run | budget | epochs | from the end: val | test | from a state: val | test | end ahead, val |
|---|---|---|---|---|---|---|---|"""
FOOT = """
A state is what growing had trained for a few epochs at a high rate; the end has had all of the training, and its
largest filters keep much of it. Where tuning is long, or the run's own growing was (autogrow), the difference is within
the spread. So `compress cut`, which tunes for few epochs, begins with the end, and states are kept only where
`export.states` asks for them. The run of `autogrow-digits` was within 400 kFLOPs, tuned for 20 epochs. Other data than
digits were not tried."""


def scores(source: Path, start: str, budget: str, epochs: int) -> Iterator[tuple[float, float, str]]:
    """Validation and test accuracy of every seed, and what it began with."""
    for seed in SEEDS:
        method = f"{{name: refit, of: {source.name}, start: {start}, tune: {{epochs: {epochs}}}}}"
        overrides = {"method": method, "seed": str(seed), "export.states": "false"}
        recipe = read(source / "recipe.yaml", overrides, budget).placed(source.parent)
        lab, _ = prepare(recipe, "cpu")
        with TemporaryDirectory() as work:
            develop(lab, methods_of(recipe), Path(work))
        taken = next(note.numbers["source"] for note in lab.history if note.event == "taken")
        yield lab.score().accuracy, lab.score("test").accuracy, taken


def row(source: Path, budget: str, epochs: int) -> str:
    """A line of the table."""
    cells, means = [], []
    for start in ("end", "nearest"):
        vals, tests, taken = zip(*scores(source, start, budget, epochs), strict=True)
        means.append(fmean(vals))
        which = "" if start == "end" else f" ({Path(taken[0]).stem if taken[0].startswith('states') else 'the end'})"
        cells += [f"{100 * fmean(vals):.2f} % ± {100 * stdev(vals):.2f}{which}", f"{100 * fmean(tests):.2f} %"]
    name = source.name
    return f"| {name} | {budget} | {epochs} | {' | '.join(cells)} | {100 * (means[0] - means[1]):+.2f} |"


def main() -> None:
    """Print the page."""
    print(HEAD.format())
    with TemporaryDirectory() as folder:
        for name, (overrides, budgets, tuned) in RUNS.items():
            given = {**overrides, "export.states": "true"}
            limits = given.pop("budget", None)
            source = run(name, budget=limits, out=Path(folder, name), overrides=given).folder
            for epochs in tuned:
                for budget in budgets:
                    print(row(source, budget, epochs), flush=True)
                    print(name, budget, epochs, file=sys.stderr)
    print(FOOT)


if __name__ == "__main__":
    main()
