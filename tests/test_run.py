"""A run ends in a whole folder or in none, in the same bytes however often it was stopped, and its books are right."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from compress._plan import methods_of, plan
from compress._run import Result, develop, prepare, run
from compress.budget.units import MEMORY, UNITS, show
from compress.errors import ArtifactError, Infeasible, Interrupted, UsageError
from compress.export.report import report_schema
from compress.models import vgg
from compress.recipe.settings import Recipe
from compress.training import checkpoint
from compress.training.events import Begun, Doing, Ended, Entered, Event, Noted, Progress, Resumed, Warned

ROOT = Path(__file__).resolve().parent.parent
NET: dict[str, Any] = {"widths": [16, 24], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
SMALL: dict[str, Any] = {
    "model": {"factory": "compress.models:vgg", "args": NET},
    "data": {"source": "digits", "crop": 1},
    "train": {"batch": 100, "optimizer": "muon", "ema": 0.8},
    "method": {"name": "adenel", "seed_width": 4, "filters": 5, "grow": "all", "tune": {"epochs": 1}},
    "checkpoint": "5 steps",
    "budget": "60kMACs",
}
# Runs that cannot end well, each a fork of one process: stopped by a signal at the n-th end of a stretch, or with files
# that may not grow beyond some bytes, from the start or from a stage on.
SUFFERING = """
import json, os, resource, signal, sys, torch
from compress._plan import images
from compress._run import run
from compress.recipe.settings import Recipe
from compress.training.events import Doing, Progress, Warned

def suffer(said, out, stop=None, after=0, full=None, from_stage=None):
    stretches = 0
    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))
    def listen(event):
        nonlocal stretches
        stretches += isinstance(event, Progress) and event.step == event.steps
        if stop and stretches > after:
            os.kill(os.getpid(), stop)
        if from_stage and isinstance(event, Doing) and from_stage in event.text:
            fill_the_disk()
        if isinstance(event, Warned):
            said_so.append(event.text)
    if full and not from_stage:
        fill_the_disk()
    run(said, out=out, resume=True, listen=listen)

torch.set_num_threads(1)
ends = {}
for name, (said, how) in json.load(sys.stdin).items():
    (reader, writer), said_so = os.pipe(), []
    child = os.fork()
    if not child:
        try:
            suffer(Recipe.model_validate(said), f"{sys.argv[1]}/{name}", **how)
        except Exception as error:
            os.write(writer, json.dumps([type(error).__name__, str(error), said_so]).encode())
        os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    with open(reader) as told:
        ends[name] = [os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, *json.loads(told.read() or "[]")]
print(json.dumps(ends))
"""
STORIES: dict[str, dict[str, Any]] = {
    "killed": {"stop": signal.SIGKILL, "after": 5},  # amid the last stage, whose weights are averaged
    "terminated": {"stop": signal.SIGTERM, "after": 2},
    "interrupted": {"stop": signal.SIGINT, "after": 0},
    "full": {"full": 1000},
    "full later": {"full": 10_000, "from_stage": "exporting"},
}


class Ends(NamedTuple):
    folder: Path
    told: Mapping[str, list[Any]]  # the signal that ended it, its error, the sentence, and the warnings before it


class Finished(NamedTuple):
    result: Result
    events: list[Event]


def recipe(**said: Any) -> Recipe:
    return Recipe.model_validate({**SMALL, **said})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs here compute as the killed ones do: the bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    folder = tmp_path_factory.mktemp("ends")
    given = json.dumps({name: [SMALL, how] for name, how in STORIES.items()})
    command = [sys.executable, "-W", "error", "-c", SUFFERING, str(folder)]
    told = subprocess.run(command, input=given, text=True, capture_output=True, cwd=ROOT, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    return Ends(folder, json.loads(told.stdout))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    events: list[Event] = []
    out = tmp_path_factory.mktemp("finished") / "out"
    return Finished(run(recipe(), out=out, listen=events.append), events)


# ---- what a run leaves behind ---------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_whose_report_keeps_its_schema(finished: Finished) -> None:
    folder, told = finished.result.folder, finished.result.report.plain()
    models = {"model.onnx", "model.pt2", "model.py", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == models | {
        "recipe.yaml", "report.json", "report.md", "history.svg",
    }  # fmt: skip
    assert "](history.svg)" in (folder / "report.md").read_text()
    assert list(folder.parent.iterdir()) == [folder]
    assert json.loads((folder / "report.json").read_text()) == told
    jsonschema.validate(told, report_schema())
    assert finished.result.code == 0
    assert told["budget"][0]["value"] == told["cost"]["macs"] <= 60_000
    assert told["cost"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert told["drift"] == 0
    assert all(check["top1_equal"] and check["images"] == 256 for check in told["parity"].values())
    assert told["resumed_from"] is None
    assert told["environment"]["threads"] == torch.get_num_threads()
    assert told["command"] == "compress run recipe.yaml --out=out"
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        for space in told["spaces"]:
            assert file.get_slice(f"{space['name']}.weight").get_shape()[0] == space["width"]
    assert [space["full"] for space in told["spaces"]] == [16, 24, 10]


def test_the_training_cost_is_the_sum_over_all_steps_of_the_network_at_that_step(finished: Finished) -> None:
    told = finished.result.report.plain()
    total = images = 0
    for now, then in zip(told["history"], told["history"][1:], strict=False):
        if "widths" in now:
            args = NET | {"widths": list(now["widths"].values())}
            net = vgg(**args)
            with FlopCounterMode(display=False) as counter:
                net.eval()(torch.zeros(1, 1, 8, 8))
        for _ in range(now["step"], then["step"]):
            total += counter.get_total_flops() // 2 * 100
            images += 100
    assert told["train_cost"]["macs_images"] == total > 0
    assert told["train_cost"]["images"] == images
    assert told["train_cost"]["share"] == total / (told["base"]["macs"] * 1000 * 300)


def test_the_events_of_a_run_are_told_in_order(finished: Finished) -> None:
    kinds = list(dict.fromkeys(map(type, finished.events)))
    assert kinds == [Begun, Entered, Noted, Progress, Ended, Doing, Warned]  # that it outgrew the full net
    history = [event.note.row for event in finished.events if isinstance(event, Noted)]
    assert history == finished.result.report.plain()["history"]


def test_no_file_of_a_run_holds_a_pickle(finished: Finished) -> None:
    for path in finished.result.folder.iterdir():
        members = {path.name: path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(io.BytesIO(members.pop(path.name))) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
        for name, content in members.items():
            assert not name.endswith((".pkl", ".pickle"))
            assert not (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.endswith(b".")), name


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_give_equal_weights_and_others_do_not(finished: Finished, tmp_path: Path, seed: int) -> None:
    lab, _ = prepare(recipe(seed=seed), "cpu")
    develop(lab, methods_of(recipe(seed=seed)), tmp_path)
    with safe_open(str(finished.result.folder / "model.safetensors"), framework="pt") as file:
        known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = lab.model.state_dict()
    assert tensors.keys() == known.keys()
    same = [name for name, tensor in tensors.items() if torch.equal(tensor, known[name])]
    assert len(same) == len(known) if seed == 0 else "features.conv1.weight" not in same


# ---- stopped, and gone on with --------------------------------------------------------------------------------------


def test_a_resumed_run_ends_in_the_same_bytes_and_says_where_it_went_on(finished: Finished, ends: Ends) -> None:
    assert ends.told["killed"] == [signal.SIGKILL]
    out, told = ends.folder / "killed", []
    work = ends.folder / "killed.partial"
    saved = (work / checkpoint.FILE).read_bytes()
    for changed in ({"seed": 1}, {"budget": "59kMACs"}, {"train": {**SMALL["train"], "lr": 0.2}}):
        with pytest.raises(UsageError, match="had another recipe, budget or seed; finish it as it began"):
            run(recipe(**changed), out=out, resume=True)
    with pytest.raises(UsageError, match="holds an interrupted run; go on with --resume"):
        run(recipe(), out=out)
    assert (work / checkpoint.FILE).read_bytes() == saved
    result = run(recipe(), out=out, resume=True, listen=told.append)
    assert Resumed(25) in told
    assert result.report.resumed_from == 25
    assert not work.exists()
    for name in ("model.safetensors", "model.onnx", "model.pt2", "model.py", "recipe.yaml", "history.svg"):
        assert (out / name).read_bytes() == (finished.result.folder / name).read_bytes(), name
    for key in ("cost", "accuracy", "train_cost", "history", "spaces", "budget"):
        assert getattr(result.report, key) == getattr(finished.result.report, key)


def test_a_resume_with_nothing_saved_starts_afresh_and_says_so(ends: Ends) -> None:
    _, _, _, warnings = ends.told["full"]
    assert warnings == [f"nothing was saved in {ends.folder}/full.partial: starting afresh"]


def test_signals_end_a_run_with_interrupted_and_leave_what_was_saved(ends: Ends) -> None:
    for name, says in (
        ("terminated", "stopped; --resume goes on from the last checkpoint"),
        ("interrupted", "stopped before anything was saved; the next run begins anew"),
    ):
        assert ends.told[name][:3] == [0, "Interrupted", says]
    assert Interrupted.exit_code == 130
    assert sorted(path.name for path in (ends.folder / "terminated.partial").iterdir()) in (
        [checkpoint.FILE],
        sorted([checkpoint.FILE, checkpoint.PREVIOUS]),
    )
    assert not (ends.folder / "terminated").exists()
    assert not (ends.folder / "interrupted.partial").exists()  # it had saved nothing


def test_a_signal_counts_whatever_the_interrupted_code_makes_of_it(tmp_path: Path) -> None:
    """Exporters and serializers take any exception for their own: swallow it, or raise another in its place."""
    for becomes in (None, ArtifactError("the network cannot be traced: stopped")):

        def listen(event: Event, becomes: Exception | None = becomes) -> None:
            if isinstance(event, Ended):
                try:
                    signal.raise_signal(signal.SIGINT)
                except Interrupted:
                    if becomes is not None:
                        raise becomes from None

        with pytest.raises(Interrupted, match="stopped; --resume"):
            run(recipe(), out=tmp_path / "out", resume=becomes is not None, listen=listen)
        assert not (tmp_path / "out").exists()
    assert run(recipe(), out=tmp_path / "out", resume=True).code == 0


def test_resume_on_a_finished_folder_checks_it_and_returns(finished: Finished, tmp_path: Path) -> None:
    folder, told = finished.result.folder, []
    again = run(recipe(), out=folder, resume=True, listen=told.append)
    assert again.report == finished.result.report
    assert told == [Doing(f"{folder} is finished already and its files agree")]
    with pytest.raises(UsageError, match="is finished, by another recipe, budget or seed; name another folder"):
        run(recipe(seed=1), out=folder, resume=True)
    with pytest.raises(UsageError, match="exists already"):
        run(recipe(), out=folder)
    with pytest.raises(UsageError, match="exists already and is no finished run"):
        run(recipe(), out=tmp_path, resume=True)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").write_bytes(b"\0" + (folder / "model.safetensors").read_bytes()[1:])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not the file that was written"):
        run(recipe(), out=copy, resume=True)
    (copy / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match="copy holds a damaged run"):
        run(recipe(), out=copy, resume=True)


# ---- what ends before it begins, or in the middle -------------------------------------------------------------------


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing_half_written(ends: Ends) -> None:
    assert ends.told["full"][:3] == [0, "UsageError", f"{ends.folder}/full cannot be written: File too large"]
    assert not list(ends.folder.glob("full.*")) + list(ends.folder.glob("full"))
    later = f"{ends.folder}/full later cannot be written: File too large; --resume goes on from the last checkpoint"
    assert ends.told["full later"][:3] == [0, "UsageError", later]
    assert not (ends.folder / "full later").exists()
    assert sorted(path.name for path in (ends.folder / "full later.partial").iterdir()) in (
        [checkpoint.FILE],
        sorted([checkpoint.FILE, checkpoint.PREVIOUS]),
    )
    assert UsageError.exit_code == 2


def test_a_loss_that_is_not_finite_ends_in_one_sentence_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The loss became (nan|inf) in step \d+, at a learning rate of 1e\+06"):
        run(recipe(train={"batch": 100, "lr": 1e6}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_below_the_floor_is_refused_before_any_images_are_needed(tmp_path: Path) -> None:
    net = {"factory": "compress.models:vgg16", "args": {"hidden": [300]}}
    said = recipe(model=net, data={"source": "cifar10", "path": str(tmp_path / "none")}, budget="3kparams, 10MMACs")
    params = (3 + 12) * 9 + 13 * 2 + (300 + 300 + 600) + (3000 + 10)  # 13 filters with norms, and linear layers
    message = rf"3kparams is less than {params / 1000:.3f} kparams, .* keeps its width: classifier\.linear1 \(300\)"
    with pytest.raises(Infeasible, match=message):
        run(said, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert Infeasible.exit_code == 3
    planned = plan(said)
    assert not planned.feasible
    assert planned.floor.params == params
    assert planned.verdict().startswith("infeasible: 3kparams is less than")
    least, whole = 9 * 64 + 9 * 16 + 10, 16 * 9 * 64 + 24 * 16 * 9 * 16 + 240
    share = least / (whole // 2)
    assert plan(recipe(budget="50%MACs")).verdict() == f"feasible: the smallest network takes {share:.1%} of the budget"


@pytest.mark.parametrize("unit", UNITS)
def test_a_budget_below_the_floor_in_any_unit_is_refused_with_the_floor_and_what_holds_it_up(unit: str) -> None:
    half = plan(recipe(budget=f"50% {unit}"))
    floor = half.floor.of(unit)
    assert (half.feasible, half.budget.limits[0].limit) == (True, half.base.of(unit) // 2)
    assert plan(recipe(budget=f"{floor} {unit}")).feasible
    with pytest.raises(Infeasible) as refused:
        plan(recipe(budget=f"{floor - 1} {unit}")).refuse()
    said = f"The budget is below the floor: {floor - 1} {unit} is less than {show(floor, unit)}, the smallest network"
    assert str(refused.value).startswith(said)
    assert str(refused.value).endswith("; what keeps its width: classifier.linear1 (10).")
    assert ("(most activations live at features.conv1)" in str(refused.value)) == (unit == MEMORY)


NARROW_OUTPUT = {"factory": "compress.models:vgg", "args": {**NET, "classes": 9}}
LARGE_INPUT = {"factory": "compress.models:vgg", "args": NET, "input": [1, 9, 9]}
WEIGHTS = {"factory": "compress.models:vgg", "args": NET, "weights": "model.safetensors"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": LARGE_INPUT}, r"is \[1, 9, 9\], but the inputs of digits are \[1, 8, 8\]"),
        ({"model": NARROW_OUTPUT}, r"output is \[1, 9\] for one image, but digits has 10 classes; it must be"),
        ({"model": WEIGHTS}, r"model\.weights: adenel draws all weights anew; leave the key out"),
        ({"data": {"source": "npz", "path": "none.npz"}}, r"none\.npz"),
        ({"method": {"name": "scratch", "epochs": 1, "widths": {"stem": 3}}}, "no free space is called 'stem'"),
        ({"budget": None}, "states no budget"),
    ],
)
def test_what_cannot_be_used_is_told_before_training(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    told: list[Event] = []
    with pytest.raises(UsageError, match=message):
        run(recipe(**said), out=tmp_path / "out", listen=told.append)
    assert not any(isinstance(event, Progress) for event in told)
    assert list(tmp_path.iterdir()) == []


DET = """
import torch
from torch import nn

class Det(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
    def forward(self, x):
        return self.b(self.a(x).relu().mean((2, 3)) + 0.01 * torch.linalg.det(x))
"""


def test_an_operator_of_unknown_cost_is_left_out_where_the_recipe_says_so_or_no_limit_is_on_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(DET)
    scratch = {"train": {}, "method": {"name": "scratch", "epochs": 1}}

    def made(budget: str, *names: str) -> Recipe:
        return recipe(**scratch, model={"factory": f"{tmp_path}/net.py:Det", "uncounted": names}, budget=budget)

    with pytest.raises(UsageError, match=r"no rule for aten._linalg_det .* 50kMACs on it would mean nothing"):
        plan(made("50kMACs"))
    with pytest.raises(UsageError, match=r"model.uncounted: aten.cummax is no operator .* those are aten._linalg_det"):
        plan(made("50kMACs", "aten.cummax"))
    note = "aten._linalg_det (in forward()) has no rule and counts as nothing: MACs and FLOPs leave it out"
    for said, names in ((made("50kMACs", "aten._linalg_det"), ("Det",)), (made("1kparams"), ())):
        for _ in range(2):  # the second time it is finished already, and checked
            report = run(said, out=tmp_path / str(said.budget), resume=True).report
        assert (report.verdict.code, report.uncounted, report.cost.macs) == (0, names, 36 * 72 + 80)
        assert note in report.notes


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device abacus is not a device; write cpu, cuda or cuda:0"):
        run(recipe(), out=tmp_path / "out", device="abacus")


def test_without_a_name_the_newest_unfinished_run_is_resumed_else_the_finished_one_checked(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.result.folder, tmp_path / "runs" / "recipe-7")
    assert run(recipe(), resume=True) == Result(Path("runs/recipe-7"), finished.result.report)
    for number, name in enumerate(["recipe", "recipe-2", "recipe-two", "recipes", "recipe-3"]):
        (tmp_path / "runs" / f"{name}.partial").mkdir(parents=True)
        (tmp_path / "runs" / f"{name}.partial" / checkpoint.FILE).write_bytes(b"")
        os.utime(tmp_path / "runs" / f"{name}.partial", (0, 10 - number))
    with pytest.raises(UsageError, match=r"runs/recipe\.partial/checkpoint\.safetensors is not what was saved"):
        run(recipe(), resume=True)
    os.utime(tmp_path / "runs" / "recipe-3.partial", (0, 2**32))
    with pytest.raises(UsageError, match=r"runs/recipe-3\.partial/checkpoint\.safetensors is not what was saved"):
        run(recipe(), resume=True)


@pytest.mark.parametrize(
    ("stated", "steps", "told"), [(1e6, 4, []), (1e5, 1, ["1e+05 MACs x images are stated and 2.43e+05"])]
)
def test_more_training_than_the_stated_train_cost_pays_for_is_told_with_what_was_spent(
    stated: float, steps: int, told: list[str], tmp_path: Path
) -> None:
    """A step costs 100 x (9 x 2 x 64 + 2 x 64 x 10) = 243,200: one 3x3 convolution of 8 x 8 pixels, and the classes."""
    args = {**NET, "widths": [2], "pools": []}
    said = SMALL | {"model": {"factory": "compress.models:vgg", "args": args}, "budget": "100kMACs"}
    said |= {"train": {"batch": 100, "cost": stated}, "method": {"name": "scratch", "epochs": 1}}
    heard = list[Event]()
    lab, _ = prepare(Recipe.model_validate(said), "cpu", heard.append)
    develop(lab, methods_of(lab.recipe), tmp_path)
    assert lab.step == steps
    texts = [event.text for event in heard if isinstance(event, Warned)]
    assert [text.removeprefix("train.cost: ").split(" were")[0] for text in texts] == told
