"""Methods side by side: the same data, budgets, train-cost and training for each, over several seeds.

    compare("recipe.yaml", methods="adenel,group,uniform", budgets="10M,20MFLOPs", seeds=3)

Methods that narrow a trained network get one that is trained for a part of the same cost, once for each seed. Runs are
processes (`queue.py`), each with a folder like any run's, so that a comparison can be interrupted and resumed.
"""

from __future__ import annotations

import json
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress._cut import budgets as amounts
from compress._plan import methods_of, plan
from compress._run import run
from compress.budget.units import parse
from compress.errors import CompressError, Interrupted, UsageError
from compress.export.comparison import Comparison, Ran, write_comparison
from compress.export.report import Report
from compress.export.seal import REPORT
from compress.methods import plainly, training
from compress.queue import SKIPPED, WELL, Done, Piece, cores, work_off
from compress.recipe.file import read
from compress.recipe.paths import with_path
from compress.recipe.settings import Recipe
from compress.training.events import Doing, Listener, Warned, silent
from compress.workplace import default_out, partial

PRETRAIN = 0.5  # of the train-cost, that the network costs which is then narrowed
FULL = "full network"
OWN = "recipe"  # the method that the recipe itself says
FILES = (".yaml", ".yml")  # recipes that lend their method


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a comparison, and what it must wait for."""

    method: str
    budget: str
    seed: int
    recipe: Recipe
    out: Path
    after: Path | None = None  # the run that trains the network which is narrowed

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.method}, {self.budget}, seed {self.seed}"


def compare(
    source: Path | str,
    *,
    methods: str,
    seeds: int = 3,
    budgets: str | None = None,
    cost: float | None = None,
    pretrain: float = PRETRAIN,
    out: Path | str | None = None,
    workers: int | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    listen: Listener = silent,
) -> Comparison:
    """Run every method within every budget with every seed, and write a table and a picture of what came of them.

    `methods` are names, files of recipes whose method is meant, or "recipe" for that of `source`, with commas between
    them; the others are compared with the first. `budgets` is a list as "10M,20MFLOPs", else that of the recipe. Each
    run may spend `cost` MACs x images, else the recipe's train.cost. A network that is to be narrowed is trained for
    the part `pretrain` of that, unless the recipe names weights: those are free, and it is said. `workers` run at a
    time, one a core if None (one at all on a GPU).

    Raises UsageError for what cannot be compared, Infeasible where a method has no network within a budget.
    """
    given = read(source, overrides or {}, None)
    stated = cost if cost is not None else given.train.cost
    if stated is None or not math.isfinite(stated) or stated <= 0:
        raise UsageError("--cost: say what each run may spend, in MACs x images (forward): --cost 2e12, or train.cost.")
    if not 0 < pretrain < 1 or seeds < 1:
        raise UsageError("--pretrain is a part of the train-cost between 0 and 1, and --seeds a number from 1.")
    target = Path(out) if out is not None else default_out(f"{Path(source).stem}-compare")
    if target.exists() and not resume:
        raise UsageError(f"{target} exists already; name another folder with --out, remove it, or go on with --resume")
    said = [name.strip() for name in methods.split(",") if name.strip()]
    names = {Path(name).stem if name.endswith(FILES) else name: _method(given, name) for name in said}
    if not names or len(names) < len(said):
        raise UsageError(f"--methods {methods}: name each method once, with commas between them: adenel,group,uniform")
    within = within_of(given, budgets)
    arms = list(_arms(given, names, within, seeds, stated, pretrain, target))
    _refuse_impossible(arms)
    _carry_out(arms, target, workers, device, listen)
    made = gathered(arms, [*names], within, given, stated)
    write_comparison(made, target)
    return made


def within_of(given: Recipe, budgets: str | None) -> list[str]:
    """The budgets of a comparison, the recipe's own where none are listed; amounts without a unit have that of its own.

    Raises UsageError where there is none.
    """
    stated = (given.budget,) if isinstance(given.budget, str) else given.budget or ()
    own = [one if isinstance(one, str) else one.limit for one in stated]
    if budgets is None:
        if not own:
            raise UsageError("--budgets: the recipe states none; list some: --budgets 10M,20MFLOPs.")
        return [", ".join(own)]
    last = budgets.rpartition(",")[2].strip()
    unit = parse(own[0].partition(",")[0]).unit if own else "FLOPs"
    return amounts(budgets + unit if re.fullmatch(r"[0-9.]+(e[0-9]+)?\s*([kKMGT]i?)?", last) else budgets)


def _arms(
    given: Recipe,
    said: Mapping[str, Mapping[str, Any]],
    within: Sequence[str],
    seeds: int,
    cost: float,
    pretrain: float,
    target: Path,
) -> Iterator[Arm]:
    """Every run, the networks that others wait for first."""
    for seed in range(given.seed, given.seed + seeds):
        full = target / FULL.replace(" ", "-") / f"seed-{seed}"
        trained: list[Arm] = []
        arms: list[Arm] = []
        for name, budget in ((name, budget) for budget in within for name in said):
            keys: dict[str, Any] = {"budget": budget, "seed": seed, **said[name]}
            recipe = _changed(given, keys, cost)
            keeps = methods_of(recipe)[0].keeps_weights
            if not keeps:
                recipe = _changed(recipe, {"model": {**recipe.model.model_dump(mode="json"), "weights": None}}, cost)
            waits = keeps and given.model.weights is None
            if waits and not trained:
                first = {"budget": "100%", "seed": seed, "method": training(), "steps": None}
                whole = _changed(given, first, pretrain * cost)
                trained.append(Arm(FULL, "100%", seed, whole, full))
            place = "".join(letter for letter in budget if letter not in " <=\u2264").replace(",", "+")
            out = target / name / place / f"seed-{seed}"
            arms.append(Arm(name, budget, seed, recipe, out, full if waits else None))
        yield from (*trained, *arms)


def _method(given: Recipe, name: str) -> dict[str, Any]:
    """The keys of a recipe that say a method."""
    if name == OWN or (given.method is not None and given.method.name == name):
        return {}
    if name.endswith(FILES):
        lent = read(name, {}, "1MMACs")
        other = lent.model_dump(mode="json")
        for step in [other["method"]] if other["method"] else other["steps"] or []:
            for key, value in step.items():  # a file beside the recipe that lends its method
                if isinstance(value, str):
                    step[key] = with_path(value, ("method", key), lambda path: str((lent.folder / path).resolve()))
        return {"method": other["method"], "steps": other["steps"]}
    try:
        return {"method": plainly(name), "steps": None}
    except UsageError as error:
        raise UsageError(f"--methods: {error}") from None


def _changed(recipe: Recipe, values: Mapping[str, Any], cost: float) -> Recipe:
    """The recipe with other keys and that train-cost, lying where it lies."""
    whole = recipe.model_dump(mode="json") | dict(values)
    whole["train"] = {**whole["train"], "cost": cost}
    return Recipe.model_validate(whole).placed(recipe.folder)


def _refuse_impossible(arms: Sequence[Arm]) -> None:
    """Plan every method within every budget once, before anything is trained."""
    first = min(arm.seed for arm in arms)
    for arm in (arm for arm in arms if arm.seed == first):
        try:
            plan(arm.recipe).refuse()
        except CompressError as error:
            raise type(error)(f"{arm.method} within {arm.budget}: {error}") from None


# ---- the runs -------------------------------------------------------------------------------------------------------


def _carry_out(arms: Sequence[Arm], target: Path, workers: int | None, device: str, listen: Listener) -> None:
    """Work off what is not there yet."""
    (target / "jobs").mkdir(parents=True, exist_ok=True)
    many = workers or (1 if _on_gpu(device) else cores())
    for arm in arms:
        _refuse_another(arm, target)
    left = [arm for arm in arms if not arm.out.exists()]
    pieces = [_piece(arm, target, device) for arm in left]
    by_name = {piece.name: arm for piece, arm in zip(pieces, left, strict=True)}
    spent: list[float] = []
    listen(Doing(f"{len(arms)} runs, {len(left)} of them to do, {min(many, max(1, len(left)))} at a time, in {target}"))

    def tell(done: Done, more: int) -> None:
        arm = by_name[done.piece.name]
        if done.code not in WELL:
            listen(Warned(f"{arm.name}: {_why(done, arm)}; its log is {done.piece.log}"))
            return
        spent.append(done.seconds)
        reached = Report.read(arm.out / REPORT).accuracy
        minutes = sum(spent) / len(spent) * more / many / 60
        rest = f"; {more} more, about {max(1, round(minutes))} min" if more else ""
        listen(Doing(f"{arm.name}: validation {reached.words('val')} in {done.seconds:,.0f} s{rest}"))

    try:
        codes = work_off(pieces, many, tell, lambda piece: listen(Doing(f"{piece.name} begins")))
    except KeyboardInterrupt:
        raise Interrupted("stopped; --resume goes on with what is not done") from None
    if codes and not any(code in WELL for code in codes.values()):
        raise UsageError(f"no run came to its end: {_why(Done(pieces[0], codes[pieces[0].name], 0), left[0])}")


def _on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _job(arm: Arm, target: Path) -> Path:
    """The file that tells the process of a run what to do."""
    return target / "jobs" / f"{'_'.join(arm.out.relative_to(target).parts)}.json"


def _said(arm: Arm) -> dict[str, Any]:
    """What it tells, without the device."""
    folder, after = str(arm.recipe.folder.absolute()), str(arm.after) if arm.after else None
    return {"recipe": arm.recipe.model_dump(mode="json"), "folder": folder, "out": str(arm.out), "after": after}


def _refuse_another(arm: Arm, target: Path) -> None:
    """Raise UsageError where a run of that name was begun with other keys, data or cost: they would be mixed."""
    job = _job(arm, target)
    if job.is_file() and {**json.loads(job.read_text(encoding="utf-8")), "device": None} != {
        **_said(arm),
        "device": None,
    }:
        raise UsageError(
            f"{arm.out} was begun with another recipe or train-cost; name another folder with --out, or remove {target}"
        )


def _piece(arm: Arm, target: Path, device: str) -> Piece:
    """The process of a run."""
    job = _job(arm, target)
    job.write_text(json.dumps({**_said(arm), "device": device}, indent=1) + "\n", encoding="utf-8")
    command = (sys.executable, "-m", "compress._compare", str(job))
    after = (f"{FULL}, 100%, seed {arm.seed}",) if arm.after and not arm.after.exists() else ()
    return Piece(arm.name, command, job.with_suffix(".log"), after)


def _why(done: Done, arm: Arm) -> str:
    """Why a run is not there, in its own last line."""
    if done.code == SKIPPED:
        return "the network that it narrows could not be trained"
    text = done.piece.log.read_text(encoding="utf-8", errors="replace").strip() if done.piece.log.exists() else ""
    return text.splitlines()[-1].removeprefix("error: ") if text else f"it ended with {done.code}"


def work(job: Path) -> int:
    """Do one run of a comparison; its exit code."""
    said = json.loads(job.read_text(encoding="utf-8"))
    recipe, out = Recipe.model_validate(said["recipe"]).placed(Path(said["folder"])), Path(said["out"])
    if said["after"]:
        recipe = going_on(recipe, Path(said["after"]))
    return run(recipe, out=out, device=said["device"], resume=partial(out).exists()).code


def going_on(recipe: Recipe, full: Path) -> Recipe:
    """A recipe that narrows the network of a finished run, for what that has left of the train-cost."""
    report = Report.read(full / REPORT)
    before = report.train_cost.macs_images if report.train_cost else 0
    model = recipe.model.model_dump(mode="json") | {"weights": str((full / "model.safetensors").absolute())}
    assert recipe.train.cost is not None
    return _changed(recipe, {"model": model}, max(1.0, recipe.train.cost - before))


# ---- what came of them ----------------------------------------------------------------------------------------------


def gathered(
    arms: Sequence[Arm], names: Sequence[str], within: Sequence[str], given: Recipe, cost: float
) -> Comparison:
    """What the folders of all runs say."""
    rows, failed = [], []
    for arm in arms:
        if arm.method == FULL:
            continue
        if not (arm.out / REPORT).is_file():
            failed.append((arm.name, "it did not come to its end"))
            continue
        report = Report.read(arm.out / REPORT)
        before = Report.read(arm.after / REPORT).train_cost if arm.after else None
        own = report.train_cost
        rows.append(
            Ran(
                method=arm.method,
                budget=arm.budget,
                seed=arm.seed,
                val=report.accuracy.val,
                test=report.accuracy.test,
                size=report.cost.cost().of(report.landing.unit),
                unit=report.landing.unit,
                used=report.landing.utilisation,
                kept=report.verdict.code == 0,
                cost=(own.macs_images if own else 0) + (before.macs_images if before else 0),
                seconds=report.seconds,
                folder=str(arm.out),
            )
        )
    metric = "top-1" if given.train.metric is None else given.train.metric
    return Comparison(
        tuple(names),
        tuple(within),
        metric,
        cost,
        tuple(_remarks(arms, given)),
        tuple(rows),
        tuple(failed),
        given.train.metric_better,
    )


def _remarks(arms: Sequence[Arm], given: Recipe) -> Iterator[str]:
    waiting = sorted({arm.method for arm in arms if arm.after})
    if waiting:
        yield f"Of {', '.join(waiting)} the training of the full network is in the train-cost, and not in the seconds."
    if given.model.weights is not None:
        free = sorted({arm.method for arm in arms if arm.recipe.model.weights is not None})
        yield f"{', '.join(free)} begin with {given.model.weights}, whose training is not in the train-cost."


if __name__ == "__main__":
    try:
        raise SystemExit(work(Path(sys.argv[1])))
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(CompressError.exit_code) from None
