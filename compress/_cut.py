"""Nets of other sizes from one finished run: each fitted to its budget, tuned for some epochs, and written as a run is.

    cut("runs/vgg", to="10M,20M,30MMACs")     a folder for each, and a curve of accuracy against budget
    cut("runs/vgg", max_drop=0.01)            the smallest net that loses no more, found by halving

Each is a run of the method `refit`, so it resumes, verifies and reports as any run does. What decides is the score on
validation images; test images are looked at when a network is delivered, and by nothing here.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress._plan import images, methods_of, plan
from compress._run import develop, prepare, run
from compress.budget.units import parse, threads
from compress.errors import ArtifactError, UsageError
from compress.export.curve import CURVE, Point, draw_curve
from compress.export.report import Report
from compress.export.verify import verify
from compress.methods import another
from compress.recipe.file import read
from compress.recipe.settings import Recipe
from compress.training.events import Doing, Listener, silent
from compress.workplace import claim, default_out, partial

SHARE, USUAL = 4, 5.0  # tuning: a quarter of the run's last stage; epochs where it had none that was known
NEAR = 1.05  # of the smallest net's size: what halving leaves open
PROBES = 10  # bounds the halving: a range of a thousandfold is down to `NEAR` after eight


@dataclass(frozen=True, slots=True)
class Cut:
    """What came of it: the run that it began with, and nets of other sizes."""

    folder: Path  # holds theirs, and the curve
    unit: str  # that sizes are told in
    metric: str
    end: Point  # the run's own network
    points: tuple[Point, ...]  # in the order in which they were made
    reports: Mapping[str, Report]  # of those that were written, by the name of their folder
    spent: float | None  # by them all, tried or written, over what the run itself had; None where nobody knows that

    @property
    def code(self) -> int:
        """The exit code: 0 where every net that was written keeps its budget and has the score that was asked for."""
        return max((report.verdict.code for report in self.reports.values()), default=0)


def cut(
    folder: Path | str,
    *,
    to: str | None = None,
    keep_score: float | None = None,
    max_drop: float | None = None,
    epochs: float | None = None,
    start: str = "end",
    out: Path | str | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    listen: Listener = silent,
) -> Cut:
    """Fit the network of a finished run to other budgets: to each of `to`, or to the smallest that keeps its score.

    `to` is amounts with commas between them, "10M,20M,30MMACs". `keep_score` is a score on validation images that must
    be reached, `max_drop` how much less than the run's own is enough; the smallest net is found by halving, as if more
    were never worse. `epochs` of tuning: a quarter of the run's last stage if None. Smaller nets `start` at the run's
    "end", or at the "nearest" of that and the states that it kept (export: {states: true}). Relative paths of the run's
    recipe start in the current folder, as those of `overrides` do.

    Raises the leaves of `compress.errors`: for what cannot be used, and for a run whose files or images have changed.
    """
    if sum(wish is not None for wish in (to, keep_score, max_drop)) != 1:
        raise UsageError("Say what is to come of it, in one of three ways: to 10M,20MMACs, a score to keep, or a drop.")
    if keep_score is not None and not math.isfinite(keep_score):
        raise UsageError(f"{keep_score} is no score that a net can keep; write a number: 0.97")
    source = Path(folder)
    report = _sound(source)
    recipe = refitting(source, report, overrides or {}, start, epochs)
    target = Path(out) if out is not None else default_out(f"{source.name}-cut")
    if target.exists() and not resume:
        raise UsageError(f"{target} exists already; name another folder with --out, remove it, or go on with --resume")
    work = _Work(recipe, report, target, device, listen)
    if to is not None:
        recipes = [work.planned(budget) for budget in budgets(to)]
        work.refuse_other_images()
        return work.drawn([work.delivered(recipe) for recipe in recipes])
    own, metric = report.accuracy.val, report.accuracy.metric
    if keep_score is not None and keep_score > 1 and metric == "top-1":
        raise UsageError(f"an accuracy is a fraction of 1, and {keep_score:g} is more; write {keep_score / 100:g}")
    sign = recipe.train.sign
    required = keep_score if keep_score is not None else own - sign * (max_drop or 0)
    if sign * own < sign * required:
        raise UsageError(
            f"{source} has a score of {own:.4g} itself on validation images, which is worse than {required:.4g}"
        )
    work.refuse_other_images()
    return work.drawn(work.smallest(required))


def budgets(to: str) -> list[str]:
    """The budgets in a list of amounts, one each: an amount without a unit has that of the next one.

    Raises UsageError for what is no amount, for times, and for one that is there twice.
    """
    parts = [part.strip() for part in to.split(",")]
    for at in reversed(range(len(parts) - 1)):
        share = parts[at].endswith("%") and not parts[at + 1].endswith("%")
        if share or re.fullmatch(r"[0-9.]+(e[0-9]+)?\s*([kKMGT]i?)?", parts[at]):
            parts[at] += parse(parts[at + 1]).unit
    amounts = [parse(part) for part in parts]
    if timed := [amount.text for amount in amounts if threads(amount.unit)]:
        raise UsageError(f"--to: {timed[0]} is a time, measured once a network is finished; write an amount: 10MMACs")
    whole = [(amount.value, amount.share, amount.unit) for amount in amounts]
    if twins := [amount.text for at, amount in enumerate(amounts) if whole[at] in whole[:at]]:
        raise UsageError(f"--to: {twins[0]} is there twice; keep it once")
    return parts


@dataclass(slots=True)
class _Work:
    """What all nets of one call share."""

    recipe: Recipe  # but for its budget
    report: Report  # of the run
    target: Path
    device: str
    listen: Listener
    reports: dict[str, Report] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)  # MACs x images of every net, tried or written

    @property
    def unit(self) -> str:
        """What sizes are told in: the unit of the run's tightest limit."""
        return self.report.landing.unit

    def refuse_other_images(self) -> None:
        """Raise UsageError where images that validate here may have been trained on there."""
        if images(self.recipe, torch.device("cpu")).digest != self.report.data.digest:
            name = self.report.data.name
            raise UsageError(
                f"the images of {name} are not those of the run, which may have trained on what tests here"
            )

    def planned(self, budget: str, required: float | None = None) -> Recipe:
        """The recipe of the net for a budget; raises Infeasible where there is none."""
        key = "val_accuracy" if self.recipe.train.metric is None else "val_score"
        require = None if required is None else {key: required}
        recipe = _changed(self.recipe, {"budget": budget, "require": require})
        plan(recipe).refuse()
        return recipe

    def place(self, recipe: Recipe) -> Path:
        """Its folder."""
        return self.target / re.sub(r"\s|[<=\u2264]", "", str(recipe.budget))

    def delivered(self, recipe: Recipe) -> Point:
        """Make and write a net, or go on with one that was begun."""
        out = self.place(recipe)
        self.listen(Doing(f"{recipe.budget}, into {out}:"))
        begun = out.exists() or partial(out).exists()
        report = run(recipe, out=out, device=self.device, resume=begun, listen=self.listen).report
        self.reports[out.name] = report
        self.costs[out.name] = report.train_cost.macs_images if report.train_cost else 0
        return _point(out.name, report, self.unit)

    def probed(self, recipe: Recipe) -> Point:
        """What a net scores on validation images once it is tuned; `delivered` goes on from what is saved."""
        out = self.place(recipe)
        if out.exists():  # what an earlier call found, which this one resumes
            return _point(out.name, Report.read(out / "report.json"), self.unit)._replace(test=None)
        self.listen(Doing(f"trying {recipe.budget}:"))
        with claim(out, resume=True) as work:
            bench, _ = prepare(recipe, self.device, self.listen)
            develop(bench, methods_of(recipe), work)
            self.costs[out.name] = bench.spent
            return Point(out.name, bench.cost().of(self.unit), bench.score().accuracy, None)

    def smallest(self, required: float) -> list[Point]:
        """Try sizes between the smallest net and the run's own, each halving the ratio; write the smallest that did."""
        high: int = self.report.cost.cost().of(self.unit)
        low: int = plan(self.planned(written(high, self.unit))).floor.of(self.unit)
        tried: dict[int, tuple[Recipe, Point]] = {}
        sign = self.recipe.train.sign
        while len(tried) < PROBES and high > NEAR * low and low < (size := rounded(math.sqrt(low * high))) < high:
            recipe = self.planned(written(size, self.unit), required)
            tried[size] = recipe, self.probed(recipe)
            low, high = (low, size) if sign * tried[size][1].val >= sign * required else (size, high)
        for size, (recipe, _) in tried.items():
            if size != high:
                shutil.rmtree(partial(self.place(recipe)), ignore_errors=True)
        return [self.delivered(recipe) if size == high else point for size, (recipe, point) in tried.items()]

    def drawn(self, points: list[Point]) -> Cut:
        """Draw the curve of what was made."""
        end, metric = _point("the run", self.report, self.unit), self.report.accuracy.metric
        self.target.mkdir(parents=True, exist_ok=True)
        draw_curve([end, *points], self.target / CURVE, unit=self.unit, metric=metric)
        before = self.report.train_cost.macs_images if self.report.train_cost else 0
        spent = sum(self.costs.values()) / before if before else None
        return Cut(self.target, self.unit, metric, end, tuple(points), self.reports, spent)


def rounded(size: float) -> int:
    """A size to three digits, as people say one."""
    scale: int = 10 ** max(0, math.floor(math.log10(size)) - 2)
    return round(size / scale) * scale


def written(size: int, unit: str) -> str:
    """A size as a budget says it, to the last digit: "1.23MFLOPs"."""
    scale, prefix = next(((s, p) for s, p in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if size >= s), (1, ""))
    whole, rest = divmod(size, scale)
    digits = f".{rest:0{len(str(scale)) - 1}d}".rstrip("0").rstrip(".") if rest else ""
    return f"{whole}{digits}{prefix}{unit}"


def _sound(source: Path) -> Report:
    """The report of a finished run whose files agree."""
    verdict = verify(source, "sealed", uncounted=None)  # what it was made with, if anything
    if verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    return Report.read(source / "report.json")


def refitting(source: Path, report: Report, overrides: Mapping[str, str], start: str, epochs: float | None) -> Recipe:
    """The run's recipe, with its methods replaced by refitting."""
    recipe = read(source / "recipe.yaml", overrides, root=Path.cwd())
    stated = recipe.train.cost is not None  # then the last stage was as long as that paid for
    known = report.history[-1].epoch if stated else recipe.methods[-1].last_epochs
    tuning = epochs if epochs is not None else max(1.0, known / SHARE) if known else USUAL
    values: dict[str, Any] = {"method": another(str(source), start, tuning), "steps": None}
    values["export"] = recipe.export.model_dump() | {"states": False}
    values["model"] = recipe.model.model_dump(mode="json") | {"weights": None}
    train: dict[str, Any] = {"cost": None}  # that was the whole run's
    if (teacher := recipe.train.teacher) and teacher.factory is None and teacher.weights is None:  # the full net
        train["teacher"] = teacher.model_copy(update={"weights": recipe.model.weights})
    values["train"] = recipe.train.model_copy(update=train).model_dump(mode="json")
    return _changed(recipe, values)


def _changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(recipe.model_dump(mode="json") | dict(values)).placed(recipe.folder)


def _point(name: str, report: Report, unit: str) -> Point:
    return Point(name, report.cost.cost().of(unit), report.accuracy.val, report.accuracy.test)
