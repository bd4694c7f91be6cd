"""A run from top to bottom: recipe, data and model in; a folder with a network that keeps the budget out.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress._plan import Plan, draw_up, full_model, held, images, known_shape, methods_of, start_of
from compress.budget.units import show
from compress.delivery import Finished, check_output, deliver, preprocessing_of, signer
from compress.errors import UNWRITABLE, ArtifactError, Interrupted, UsageError
from compress.export.parts import portable
from compress.export.report import Report
from compress.export.seal import state_file
from compress.export.verify import verify
from compress.export.weights import save_weights, tensors_of
from compress.methods.protocol import Method
from compress.recipe.file import dump, read
from compress.recipe.settings import Recipe
from compress.story import tell_story
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.training import checkpoint
from compress.training.average import Average
from compress.training.bench import Bench
from compress.training.data import Data
from compress.training.events import Begun, Doing, Event, Listener, Resumed, Warned, silent
from compress.workplace import RESULT, claim, default_out, publish

ALIKE = 0.02  # of pixels from 0 to 1: means of other samples of the same images differ by less


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind: its folder, and the report; `report.plain()` is what report.json holds."""

    folder: Path
    report: Report

    @property
    def code(self) -> int:
        """The exit code: 0 kept, 1 over a limit or under what the recipe requires."""
        return self.report.verdict.code


def run(
    source: Path | str | Recipe,
    *,
    budget: str | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    listen: Listener = silent,
    sign: Path | str | None = None,
) -> Result:
    """Run a recipe: from a full network and data to a folder with a compact one that keeps the budget.

    `budget` replaces the recipe's; `overrides` set single keys ("train.lr": "0.05"); `listen` hears of what happens.
    `sign` is a file with a private ed25519 key, by which model.onnx and report.json are signed.

    Raises the leaves of `compress.errors`; a result over its budget is written all the same, and `Result.code` is 1.
    """
    started = time.monotonic()
    sign_folder = signer(sign)  # a key that cannot be used is refused now, and not after hours
    recipe = source if isinstance(source, Recipe) else read(source, overrides or {}, budget)
    name = "recipe" if isinstance(source, Recipe) else Path(source).stem
    target = Path(out) if out is not None else _latest(name, recipe) if resume else default_out(name)
    if resume and target.is_dir():
        resumed_result = _finished(target, recipe, listen)
        sign_folder(target)
        return resumed_result
    options = {"--budget": budget, "--out": out, "--device": None if device == "auto" else device}
    command = ["compress", "run", f"{name}.yaml"] + [f"{key}={value}" for key, value in options.items() if value]
    command += [f"--set={key}={value}" for key, value in (overrides or {}).items()] + ["--resume"] * resume
    with _stoppable() as stop, claim(target, resume=resume) as work, _clean(work, target):
        stop.work = work

        def stoppable(event: Event) -> None:
            stop.check()
            listen(event)

        bench, planned = prepare(recipe, device, stoppable)
        if resume and not checkpoint.there(work):
            listen(Warned(f"nothing was saved in {work}: starting afresh"))
        resumed = develop(bench, methods_of(recipe), work)
        story = tell_story(bench, planned, resumed, shlex.join(command))
        result = work / RESULT
        result.mkdir()
        _hand_over(bench.kept, work, result)
        finished = Finished(bench.model, recipe, bench.data, bench.whole, story)
        report = deliver(finished, result, lambda: time.monotonic() - started, stoppable)
        sign_folder(result)
        stop.check()
        publish(work, result, target)
    return Result(target, report)


def prepare(recipe: Recipe, device: str, listen: Listener = silent) -> tuple[Bench, Plan]:
    """Build the full model, look at it, and read the data; raises Infeasible where no network can keep the budget."""
    place = _device(device)
    find = functools.cache(lambda: images(recipe, place))  # late: a budget that cannot be kept needs no download
    shape = known_shape(recipe) or find().shape
    torch.manual_seed(recipe.seed)
    model = full_model(recipe)
    planned = draw_up(recipe, model, shape)
    planned.refuse()
    data = find()
    if shape != data.shape:
        raise UsageError(
            f"model.input is {json.dumps(shape)}, but the inputs of {data.name} are {json.dumps(data.shape)}"
        )
    for note in data.notes:
        listen(Warned(note))
    check_output(model, data)
    planned = _sized(planned, data)
    surgeon = Surgeon(model, planned.graph, hold=held(recipe, model))
    bench = Bench(surgeon, data, recipe, planned.budget, place, listen)
    if start := start_of(recipe):
        bench.depths = {path: tuple(names) for path, names in start.depths.items()}
    bench.place()
    _refuse_other_images(recipe, data)
    teacher = bench.teacher  # what is wrong with it is told before anything else begins
    listen(Begun(recipe.model.factory, data, recipe.train.metric, planned.base, planned.seed, planned.budget))
    if teacher:
        listen(Doing(f"beside it a teacher: {teacher.name}, {show(teacher.macs, 'MACs')} for each image of training"))
    return bench, planned


def develop(bench: Bench, methods: Sequence[Method[Any]], work: Path) -> int | None:
    """Steps of each method until it is done, each followed by a checkpoint; the step it resumed from, if it did."""
    saved = checkpoint.load(work)
    bench.shelve = functools.partial(_shelve, work=work) if bench.recipe.export.states else None
    if saved is None:
        resumed = None
        bench.enter(0)
        if methods[0].keeps_weights:
            if bench.recipe.model.weights is None:  # else what `prepare` had set is among them
                bench.prepare()
            bench.scored("start", widths=bench.widths)
        state = methods[0].init(bench)
    else:
        state, resumed = _go_on(bench, methods, saved)
    while True:
        method = methods[bench.at]
        while (why := method.done(bench, state)) is None:
            state = method.step(bench, state)
            books = {"run": _run_of(bench), "machine": _machine(bench), "books": bench.books(), "method": asdict(state)}
            checkpoint.save(work, bench.model, bench.optimizer, books, bench.learnt, bench.average.tensors)
        bench.leave(why)
        if bench.at + 1 == len(methods):
            _tell_overspent(bench)
            return resumed
        bench.enter(bench.at + 1)
        state = methods[bench.at].init(bench)


def _tell_overspent(bench: Bench) -> None:
    """Warn where more was spent than the recipe states: growing, say, is not cut short."""
    stated = bench.recipe.train.cost
    if stated is not None and bench.spent > stated:
        bench.listen(
            Warned(
                f"train.cost: {stated:.3g} MACs x images are stated and {bench.spent:.3g} were spent, for it shortens "
                "the last stage alone, to one step at least"
            )
        )


def _shelve(bench: Bench, work: Path) -> None:
    """Keep the network as it is, in a file as model.safetensors is one; one that is there already is the same."""
    model = bench.recipe.model
    structure = Structure.read(bench.model, model.factory, model.args, bench.depths)
    path = work / state_file(bench.step)
    path.parent.mkdir(exist_ok=True)
    save_weights(path, structure.to_json(), tensors_of(bench.model))


def _hand_over(kept: Mapping[str, float], work: Path, result: Path) -> None:
    """Copy what was kept on the way into the result; a later --resume would need it again."""
    for name in map(state_file, map(int, kept)):
        (result / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(work / name, result / name)


def _go_on(bench: Bench, methods: Sequence[Method[Any]], saved: checkpoint.Saved) -> tuple[Any, int]:
    """Bring the bench to where an interrupted run was saved: the state of its method, and its optimizer step."""
    _refuse_another(saved.state["run"], bench)
    if saved.damaged:
        bench.listen(Warned(f"{saved.damaged}: the checkpoint before it is used, and what came between is repeated"))
    bench.reopen(saved.state["books"])
    bench.learnt = saved.learnt
    method = methods[bench.at]
    state = method.load(saved.state["method"])
    method.ready(bench, state)
    checkpoint.restore(saved, bench.model, bench.optimizer)
    bench.place()
    bench.average = Average(0.0, {name: tensor.to(bench.device) for name, tensor in saved.average.items()})
    bench.listen(Resumed(bench.step))
    _compare_machines(saved.state["machine"], bench)
    return state, bench.step


def _sized(planned: Plan, data: Data) -> Plan:
    """The plan, with what is known of the file's metadata once the data is."""
    if not planned.budget.limits_file:
        return planned
    from compress.export.size import shorter

    less = shorter(preprocessing_of(data, baked=planned.recipe.export.bake_preprocessing))
    base = replace(planned.base, bytes=planned.base.bytes - less)
    return replace(planned, graph=planned.graph.spared(planned.graph.spare + less), base=base)


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


def _refuse_other_images(recipe: Recipe, data: Data) -> None:
    """Raise UsageError where a teacher from a run's folder learnt other classes, or pixels normalised otherwise."""
    said = recipe.train.teacher
    path = recipe.folder / Path(said.weights).expanduser() / "report.json" if said and said.weights else None
    if path is None or not path.is_file():
        return
    known = Report.read(path).preprocessing
    if [*known.classes] != [*data.classes]:
        raise UsageError(
            f"train.teacher: {path.parent.name} learnt the classes {', '.join(known.classes[:5])}, and {data.name} has "
            f"{', '.join(data.classes[:5])}; both must be the same in the same order"
        )
    pairs = zip([*known.mean, *known.std], [*data.mean, *data.std], strict=True)
    if any(abs(theirs - ours) > ALIKE for theirs, ours in pairs):
        raise UsageError(
            f"train.teacher: {path.parent.name} saw pixels less {_triple(known.mean)} over {_triple(known.std)}, and "
            f"here they are less {_triple(data.mean)} over {_triple(data.std)}; write data.mean and data.std as there"
        )


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _run_of(bench: Bench) -> dict[str, Any]:
    """What a run is: with another recipe, other images or another teacher it would be another one."""
    teacher = bench.teacher.digest if bench.teacher else None
    return {"recipe": dump(bench.recipe), "images": bench.data.digest, "teacher": teacher}


def _machine(bench: Bench) -> dict[str, Any]:
    """What must be equal for a resumed run to end in the same bits."""
    return {
        "torch": str(torch.__version__),
        "device": bench.device.type,
        "number of threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "precision": bench.precision,
        "memory format": bench.layout,
    }


def _refuse_another(saved: Mapping[str, Any], bench: Bench) -> None:
    now = _run_of(bench)
    if saved["recipe"] != now["recipe"]:
        raise UsageError("the interrupted run had another recipe, budget or seed; finish it as it began or begin anew")
    if saved["images"] != now["images"]:
        raise UsageError(f"the images of {bench.data.name} are not those of the interrupted run; start afresh")
    if saved["teacher"] != now["teacher"]:
        raise UsageError("train.teacher: its weights are not those of the interrupted run; start afresh")


def _compare_machines(saved: Mapping[str, Any], bench: Bench) -> None:
    for key, value in _machine(bench).items():
        if saved[key] != value:
            bench.listen(Warned(f"{key} was {saved[key]} and is {value}: resumed, but not bit for bit the same"))


def _latest(name: str, recipe: Recipe) -> Path:
    """The newest default folder that a recipe left unfinished, else the newest that it finished, else a fresh one."""
    known = re.compile(rf"{re.escape(name)}(-\d+)?(\.partial)?")
    mine = sorted(filter(lambda p: known.fullmatch(p.name), Path("runs").glob("*")), key=lambda p: p.stat().st_mtime)
    begun = [path.with_suffix("") for path in mine if path.suffix == ".partial"]
    done = [path for path in mine if _made_by(recipe, path)]
    return [default_out(name), *done, *begun][-1]


def _made_by(recipe: Recipe, folder: Path) -> bool:
    """Whether a finished folder holds this very recipe."""
    path = folder / "recipe.yaml"
    return path.is_file() and path.read_bytes() == portable(dump(recipe)).encode()


def _finished(target: Path, recipe: Recipe, listen: Listener) -> Result:
    """--resume on a finished folder: check it and say so."""
    if not (target / "report.json").is_file():
        raise UsageError(f"{target} exists already and is no finished run; name another folder with --out")
    try:
        report = Report.read(target / "report.json")
    except (OSError, ArtifactError):
        raise ArtifactError(f"{target} holds a damaged run; remove it, or name another folder with --out") from None
    if not _made_by(recipe, target):
        raise UsageError(f"{target} is finished, by another recipe, budget or seed; name another folder with --out")
    verdict = verify(target, recipe.limits(report.base.cost()), uncounted=report.uncounted)
    if verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    listen(Doing(f"{target} is finished already and its files agree"))
    return Result(target, report)


@contextmanager
def _clean(work: Path, target: Path) -> Iterator[None]:
    """A full disk is told in a sentence; result files that were not published are removed, the checkpoint stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, *UNWRITABLE):  # numpy tells a full disk without a number
            raise
        later = "; --resume goes on from the last checkpoint" if checkpoint.there(work) else ""
        raise UsageError(f"{error.filename or target} cannot be written: {error.strerror or error}{later}") from None
    finally:
        shutil.rmtree(work / RESULT, ignore_errors=True)


class _Stop:
    """Whether SIGINT or SIGTERM came. What it interrupts may take the exception for its own, so the flag decides."""

    asked = False
    work: Path | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.asked = True
        self.check()

    def check(self) -> None:
        """Raise Interrupted where a signal came."""
        if self.asked and self.work is not None and checkpoint.there(self.work):
            raise Interrupted("stopped; --resume goes on from the last checkpoint")
        if self.asked:
            raise Interrupted("stopped before anything was saved; the next run begins anew")


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
