"""The whole house, from top to bottom: recipe, data and model in; a folder that keeps its budget out.

prepare:  recipe -> full model, graph, base cost, budget (refused here if no net can keep it), data
develop:  the only loop: method steps, a checkpoint after each
deliver:  finalize, export, read back, report (delivery.py); then the folder appears under its name
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compress._plan import Plan, draw_up, full_model, held, images, known_shape, methods_of
from compress.budget.limits import Cost
from compress.delivery import Story, check_output, deliver
from compress.errors import UNWRITABLE, ArtifactError, Interrupted, UsageError
from compress.export import report
from compress.export.verify import verify
from compress.recipe import file as recipe
from compress.recipe.settings import Recipe
from compress.surgery.widths import Surgeon
from compress.training import checkpoint
from compress.training.lab import Lab, Method
from compress.workplace import RESULT, claim, default_out, publish


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind: its folder, and the report as in report.json."""

    folder: Path
    report: dict[str, Any]

    @property
    def code(self) -> int:
        """The exit code: 0 kept, 1 over a limit or under what the recipe requires."""
        return int(self.report["verdict"]["code"])


def run(
    source: Path | str | Recipe,
    *,
    budget: str | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    tell: Callable[..., None] = lambda kind, /, **said: None,
) -> Result:
    """Run a recipe: from a full network and data to a folder with a compact one that keeps the budget.

    `budget` replaces the recipe's; `overrides` set single keys ("train.lr": "0.05"); `tell` hears of progress.
    Raises the leaves of `compress.errors`; a result over its budget is written all the same, and `Result.code` is 1.
    """
    started = time.monotonic()
    said = source if isinstance(source, Recipe) else recipe.read(source, overrides or {}, budget)
    name = "recipe" if isinstance(source, Recipe) else Path(source).stem
    target = Path(out) if out is not None else _latest(name, said) if resume else default_out(name)
    if resume and target.is_dir():
        return _finished(target, said, tell)
    options = {"--budget": budget, "--out": out, "--device": None if device == "auto" else device}
    command = ["compress", "run", f"{name}.yaml"] + [f"{key}={value}" for key, value in options.items() if value]
    command += [f"--set={key}={value}" for key, value in (overrides or {}).items()] + ["--resume"] * resume
    with _stoppable() as stop, claim(target, resume=resume) as work, _clean(work, target):

        def heard(kind: str, /, **told: Any) -> None:
            stop.check()
            tell(kind, **told)

        lab, planned = prepare(said, device, heard)
        if resume and not (work / checkpoint.FILE).exists():
            tell("warning", text=f"nothing was saved in {work}: starting afresh")
        resumed = develop(lab, methods_of(said), work, heard)
        story = tell_story(lab, planned, resumed, shlex.join(command))
        result = work / RESULT
        result.mkdir()
        told = deliver(lab.model, said, lab.data, lab.whole, result, story, lambda: time.monotonic() - started, heard)
        stop.check()
        publish(work, result, target)
    return Result(target, told)


def prepare(said: Recipe, device: str, tell: Callable[..., None]) -> tuple[Lab, Plan]:
    """Build the full model, look at it, and read the data; raises Infeasible where no network can keep the budget."""
    place = _device(device)
    find = functools.cache(lambda: images(said, place))  # late: a budget that cannot be kept needs no download
    shape = known_shape(said) or find().shape
    torch.manual_seed(said.seed)
    model = full_model(said)
    planned = draw_up(said, model, shape)
    planned.refuse()
    data = find()
    if shape != data.shape:
        raise UsageError(
            f"model.input is {json.dumps(shape)}, but the inputs of {data.name} are {json.dumps(data.shape)}"
        )
    check_output(model, data)
    surgeon = Surgeon(model, planned.graph, hold=held(said, model))
    lab = Lab(model, surgeon, data, said, planned.budget, place, tell)
    lab.place()
    tell("plan", plan=planned, data=data)
    return lab, planned


def develop(lab: Lab, methods: Sequence[Method[Any]], work: Path, tell: Callable[..., None]) -> int | None:
    """Steps of each method until it is done, each followed by a checkpoint; the step it resumed from, if it did."""
    saved = checkpoint.load(work)
    if saved is None:
        resumed = None
        lab.enter(0)
        if methods[0].keeps_weights:
            lab.note("start", val=lab.score().accuracy, widths=lab.widths)
        state = methods[0].init(lab)
    else:
        _refuse_another(saved.state["run"], lab)
        lab.reopen(saved.state["books"])
        lab.tensors = saved.learnt
        state, resumed = methods[lab.at].load(saved.state["method"]), lab.step
        methods[lab.at].ready(lab, state)
        checkpoint.restore(saved, lab.model, lab.optimizer)
        lab.place()
        tell("resumed", step=resumed)
        _compare_machines(saved.state["machine"], lab)
    while True:
        method = methods[lab.at]
        while (why := method.done(lab, state)) is None:
            state = method.step(lab, state)
            books = {"run": _run_of(lab), "machine": _machine(lab), "books": lab.books(), "method": asdict(state)}
            checkpoint.save(work, lab.model, lab.optimizer, books, lab.tensors)
        lab.leave(why)
        lab.tensors = {}
        if lab.at + 1 == len(methods):
            return resumed
        lab.enter(lab.at + 1)
        state = methods[lab.at].init(lab)


def tell_story(lab: Lab, planned: Plan, resumed: int | None, command: str) -> Story:
    """What the report of this run tells beside what `deliver` finds out."""
    said, data = lab.recipe, lab.data
    return Story(
        full=planned.graph,
        base=planned.base,
        widths={name: space.width for name, space in lab.surgeon.graph.spaces.items()},
        command=command,
        planned=lab.cost(),
        train_cost=report.train_cost(
            lab.spent,
            lab.step * data.batch,
            base=planned.base,
            train_images=data.counts["train"],
            epochs=said.baseline.epochs,
            name=said.baseline.name or f"{said.model.factory} for {said.baseline.epochs:g} epochs",
        ),
        history=lab.history,
        steps=lab.steps,
        depths=lab.depths,
        resumed=resumed,
    )


# ---- the parts of the above -----------------------------------------------------------------------------------------


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device; write cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here; write --device cpu")
    return device


def _run_of(lab: Lab) -> dict[str, Any]:
    """What a run is: with another recipe or other images it would be another one."""
    return {"recipe": recipe.dump(lab.recipe), "images": lab.data.digest}


def _machine(lab: Lab) -> dict[str, Any]:
    """What must be equal for a resumed run to end in the same bits."""
    return {
        "torch": str(torch.__version__),
        "device": lab.device.type,
        "number of threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "precision": lab.precision,
        "memory format": lab.layout,
    }


def _refuse_another(saved: Mapping[str, Any], lab: Lab) -> None:
    now = _run_of(lab)
    if saved["recipe"] != now["recipe"]:
        raise UsageError("the interrupted run had another recipe, budget or seed; finish it as it began or begin anew")
    if saved["images"] != now["images"]:
        raise UsageError(f"the images of {lab.data.name} are not those of the interrupted run; start afresh")


def _compare_machines(saved: Mapping[str, Any], lab: Lab) -> None:
    for key, value in _machine(lab).items():
        if saved[key] != value:
            lab.tell("warning", text=f"{key} was {saved[key]} and is {value}: resumed, but not bit for bit the same")


def _latest(name: str, said: Recipe) -> Path:
    """The newest default folder that a recipe left unfinished, else the newest that it finished, else a fresh one."""
    known = re.compile(rf"{re.escape(name)}(-\d+)?(\.partial)?")
    mine = sorted(filter(lambda p: known.fullmatch(p.name), Path("runs").glob("*")), key=lambda p: p.stat().st_mtime)
    begun = [path.with_suffix("") for path in mine if path.suffix == ".partial"]
    done = [path for path in mine if _made_by(said, path)]
    return [default_out(name), *done, *begun][-1]


def _made_by(said: Recipe, folder: Path) -> bool:
    """Whether a finished folder holds this very recipe."""
    path = folder / "recipe.yaml"
    return path.is_file() and path.read_bytes() == report.portable(recipe.dump(said)).encode()


def _finished(target: Path, said: Recipe, tell: Callable[..., None]) -> Result:
    """--resume on a finished folder: check it and say so."""
    if not (target / "report.json").is_file():
        raise UsageError(f"{target} exists already and is no finished run; name another folder with --out")
    try:
        told = json.loads((target / "report.json").read_text())
        base = Cost(**told["base"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{target} holds a damaged run; remove it, or name another folder with --out") from None
    if not _made_by(said, target):
        raise UsageError(f"{target} is finished, by another recipe, budget or seed; name another folder with --out")
    verdict = verify(target, said.limits(base))
    if verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    tell("stage", text=f"{target} is finished already and its files agree")
    return Result(target, told)


@contextmanager
def _clean(work: Path, target: Path) -> Iterator[None]:
    """A full disk is told in a sentence; result files that were not published are removed, the checkpoint stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, *UNWRITABLE):  # numpy tells a full disk without a number
            raise
        later = "; --resume goes on from the last checkpoint" if (work / checkpoint.FILE).exists() else ""
        raise UsageError(f"{error.filename or target} cannot be written: {error.strerror or error}{later}") from None
    finally:
        shutil.rmtree(work / RESULT, ignore_errors=True)


class _Stop:
    """Whether SIGINT or SIGTERM came. What it interrupts may take the exception for its own, so the flag decides."""

    asked = False

    def __call__(self, number: int, frame: Any) -> None:
        self.asked = True
        self.check()

    def check(self) -> None:
        """Raise Interrupted where a signal came."""
        if self.asked:
            raise Interrupted("stopped; --resume goes on from the last checkpoint")


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """SIGINT and SIGTERM end the run with `Interrupted`, whatever becomes of the exception; what was saved stays."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Exception:
        stop.check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
