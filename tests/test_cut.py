"""One finished run gives nets of other sizes, proved like a run's; the smallest that will do is found by halving."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import TINY, Finished
from reports import COUNTED, build

from compress._cut import NEAR, PROBES, Cut, budgets, cut, refitting, rounded, written
from compress._plan import methods_of
from compress._run import develop, prepare, run
from compress.budget.units import parse
from compress.cli import main
from compress.errors import ArtifactError, CompressError, Infeasible, Interrupted, UsageError
from compress.export.report import Report
from compress.export.verify import verify
from compress.methods.refit.method import Refitting
from compress.recipe.file import read
from compress.surgery.structure import Structure
from compress.training.data import Data
from compress.training.events import Doing, Event, Progress


@pytest.fixture(autouse=True)
def shop(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with a finished run in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.out, "old")
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept its states."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.yaml").write_text(TINY)
    return run(folder / "tiny.yaml", out=folder / "out", overrides={"export.states": "true"}).folder


@pytest.fixture(scope="module")
def made(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        shutil.copytree(finished.out, "old")
        yield cut("old", to="20k,90kMACs", epochs=1, out=folder / "out")


# ---- to other budgets -----------------------------------------------------------------------------------------------


def test_every_budget_has_a_folder_like_a_runs_that_keeps_it_and_a_place_on_the_curve(made: Cut) -> None:
    assert sorted(path.name for path in made.folder.iterdir()) == ["20kMACs", "90kMACs", "curve.svg"]
    for point, most in zip(made.points, (20_000, 90_000), strict=True):
        report = Report.read(made.folder / point.name / "report.json")
        assert verify(made.folder / point.name, point.name).code == 0
        assert 0.95 * most < point.size == report.cost.macs <= most
        assert (point.val, point.test) == (report.accuracy.val, report.accuracy.test)
        assert (made.folder / point.name / "recipe.yaml").read_text().count("of: old\n") == 1
    assert made.points[0].val < made.points[1].val
    drawn = (made.folder / "curve.svg").read_text()
    assert "val" in drawn
    assert "test" in drawn
    assert made.code == 0


def test_what_the_nets_cost_is_told_as_a_share_of_what_the_run_cost(made: Cut, finished: Finished) -> None:
    steps, batch = 10, 100  # one epoch of a thousand images
    own = sum(report.cost.macs for report in made.reports.values()) * steps * batch
    assert made.spent == own / finished.report["train_cost"]["macs_images"]
    assert made.end.size == finished.report["cost"]["macs"]
    assert made.end.test == finished.report["accuracy"]["test"]


def test_the_recipe_of_such_a_net_makes_it_again_bit_for_bit(made: Cut, shop: Path) -> None:
    shutil.copyfile(made.folder / "20kMACs/recipe.yaml", "again.yaml")
    (shop / "work").mkdir()
    lab, _ = prepare(read("again.yaml"), "cpu")
    develop(lab, methods_of(lab.recipe), shop / "work")
    tensors = safetensors.torch.load_file(made.folder / "20kMACs/model.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in lab.model.state_dict().items())


def test_an_amount_without_a_unit_has_the_next_ones() -> None:
    assert budgets("10M,20M, 30MMACs") == ["10MMACs", "20MMACs", "30MMACs"]
    assert budgets("2e3,1.5k,0.3Mparams,20%,50%") == ["2e3params", "1.5kparams", "0.3Mparams", "20%", "50%"]
    assert budgets("20%,50%MACs") == ["20%MACs", "50%MACs"]
    assert budgets("64Ki,1MiB") == ["64KiB", "1MiB"]
    with pytest.raises(UsageError, match="has no unit; write '30MMACs'"):
        budgets("10MMACs,30M")


def test_an_amount_that_is_there_twice_is_refused_however_it_is_written() -> None:
    for to, twin in (("10M,10MMACs", "10MMACs"), ("1MMACs,1000kMACs", "1000kMACs"), ("30kMACs,30 kMACs", "30 kMACs")):
        with pytest.raises(UsageError, match=f"--to: {twin} is there twice"):
            budgets(to)


def test_tuning_lasts_a_quarter_of_the_last_stage_also_where_a_train_cost_said_how_long_that_was() -> None:
    report = build(history=[{"event": "tune", "step": 9, **COUNTED, "epoch": 48.0}])
    assert refitting(Path("old"), report, {"train.cost": "1e9"}, "end", None).methods[0].last_epochs == 12
    assert refitting(Path("old"), report, {"method.tune.epochs": "20"}, "end", None).methods[0].last_epochs == 5


@pytest.mark.parametrize("size", [1, 999, 1000, 1230, 149_660, 10**6, 43_000_000, 1_234_567_890])
def test_a_size_is_written_to_the_last_digit(size: int) -> None:
    amount = parse(written(size, "FLOPs"))
    assert (amount.value, amount.unit) == (size, "FLOPs")
    assert abs(rounded(size) - size) <= size / 200
    assert len(str(rounded(size)).rstrip("0")) <= 3


# ---- the smallest that will do --------------------------------------------------------------------------------------


def test_the_smallest_net_with_a_score_is_found_by_halving_on_validation_images_and_proved(
    shop: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, seen, split = 0.08, list[str](), Data.split

    def recorded(self: Data, name: str, **how: Any) -> Any:
        seen.append(name)
        return split(self, name, **how)

    def listen(event: Event) -> None:
        seen.extend([event.text] if isinstance(event, Doing) else [])

    monkeypatch.setattr(Data, "split", recorded)
    found = cut("old", max_drop=drop, epochs=1, out="out", listen=listen)
    written = next(at for at, text in enumerate(seen) if ", into out/" in text)
    assert "test" not in seen[:written]
    assert "test" in seen[written:]
    assert sum(text.startswith("trying ") for text in seen[:written]) == len(found.points)
    required = finished.report["accuracy"]["val"] - drop
    good = [point for point in found.points if point.val >= required]
    best = min(good, key=lambda point: point.size)
    bad = [point.size for point in found.points if point.val < required]
    assert found.reports.keys() == {best.name}
    assert found.reports[best.name].accuracy.required == pytest.approx(required)
    assert best.test is not None
    assert all(point.test is None for point in found.points if point is not best)
    assert len(found.points) == PROBES or best.size <= 1.02 * NEAR * max(bad)  # 1.02: a landing is not quite full
    assert sorted(path.name for path in Path("out").iterdir()) == sorted([best.name, "curve.svg"])
    assert found.spent is not None
    tuned = sum(point.size for point in found.points) * 1000
    assert found.spent == pytest.approx(tuned / finished.report["train_cost"]["macs_images"], rel=0.05)
    again = cut("old", max_drop=drop, epochs=1, out="out", resume=True)
    assert again.reports == found.reports


# ---- states that a run kept -----------------------------------------------------------------------------------------


def test_a_run_keeps_the_nets_that_it_grew_through_and_its_folder_vouches_for_them(kept: Path, shop: Path) -> None:
    report = Report.read(kept / "report.json")
    states = sorted(name for name in report.files if name.startswith("states/"))
    assert states == sorted(f"states/{path.name}" for path in (kept / "states").iterdir())
    steps = {row.step: row for row in report.history if row.event == "round"}
    used = []
    for name in states:
        step = int(Path(name).stem)
        shapes = Structure.from_file(kept / name).shapes
        widths = {space: shapes[f"{space}.weight"][0] for space in steps[step].widths}
        before = [row.widths for row in report.history if row.widths and row.step < step][-1]
        assert widths == before  # as it was trained, before this round grew it
        used.append(steps[step].macs)
    assert len(states) >= 2
    assert verify(kept, "60kMACs").lines[-1].startswith("activations")  # nothing lies beside the run's files
    for change, says in (
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b"x"), "is not the file that was"),
    ):
        copy = shop / says
        shutil.copytree(kept, copy)
        change(copy / states[0])
        assert says in verify(copy, "60kMACs").lines[0]
        assert verify(copy, "60kMACs").code == 4
    shutil.copytree(kept, shop / "more")
    (shop / "more/states/notes.txt").write_text("")
    assert "not checked: states/notes.txt" in verify(shop / "more", "60kMACs").lines[-1]


def test_a_run_that_is_stopped_keeps_the_same_states(kept: Path, shop: Path) -> None:
    (shop / "tiny.yaml").write_text(TINY)
    said, stretches = read("tiny.yaml", {"export.states": "true"}), 0

    def stop(event: Event) -> None:
        nonlocal stretches
        stretches += isinstance(event, Progress) and event.step == event.steps
        if stretches == 3:
            raise Interrupted("stopped")

    (shop / "work").mkdir()
    for listen in (stop, stop, stop, lambda event: None):
        stretches = 0
        lab, _ = prepare(said, "cpu", listen)
        try:
            develop(lab, methods_of(said), shop / "work")
        except Interrupted:
            continue
    names = {path.name for path in (kept / "states").iterdir()}
    assert {f"{step}.safetensors" for step in lab.kept} == names
    for name in names:
        assert (shop / "work/states" / name).read_bytes() == (kept / "states" / name).read_bytes()


@pytest.mark.parametrize("budget", ["10kMACs", "30kMACs", "45kMACs", "90kMACs"])
def test_the_nearest_of_what_was_kept_is_nearest_by_ratio(kept: Path, budget: str) -> None:
    most = parse(budget).value or 0
    report = Report.read(kept / "report.json")

    def macs(name: str) -> int:
        shapes = Structure.from_file(kept / name).shapes
        a, b = (shapes[f"features.conv{n}.weight"][0] for n in (1, 2))
        return 9 * 64 * a + 9 * 16 * a * b + 10 * b

    sizes = {name: macs(name) for name in report.files if name.startswith("states/")}
    below = {name: size for name, size in sizes.items() if size <= most}
    end = report.cost.macs
    best = max(below, key=lambda name: below[name], default="model.safetensors")
    if end <= most or most / below.get(best, 0.001) > end / most:
        best = "model.safetensors"
    for start in ("nearest", "end"):
        said = read(kept / "recipe.yaml", {"method": f"{{name: refit, of: out, start: {start}}}"}, budget)
        lab, _ = prepare(said.placed(kept.parent), "cpu")
        method = methods_of(lab.recipe)[0]
        assert isinstance(method, Refitting)
        source = method.source(lab).path.relative_to(kept).as_posix()
        assert source == (best if start == "nearest" else "model.safetensors")


# ---- what cannot be done, and the command ---------------------------------------------------------------------------


WRONG: list[tuple[dict[str, Any], type[CompressError], str]] = [
    ({}, UsageError, "in one of three ways"),
    ({"to": "1kMACs", "max_drop": 0.1}, UsageError, "in one of three ways"),
    ({"to": "5ms@onnxruntime-cpu/1"}, UsageError, "is a time, measured once a network is finished"),
    ({"to": "30kMACs,30kMACs"}, UsageError, "30kMACs is there twice"),
    ({"to": "30kMACs,100MACs"}, Infeasible, "100MACs is less than"),
    ({"keep_score": float("nan")}, UsageError, "nan is no score that a net can keep"),
    ({"keep_score": 97}, UsageError, "is a fraction of 1, and 97 is more; write 0.97"),
    ({"keep_score": 0.9999}, UsageError, r"old has a score of .* itself .* worse than 0\.9999"),
    ({"to": "30kMACs", "out": "old"}, UsageError, "old exists already; name another folder with --out"),
    ({"to": "30kMACs", "overrides": {"data.train": "500"}}, UsageError, "images of digits are not those of the run"),
]


@pytest.mark.parametrize(("said", "kind", "says"), WRONG)
def test_what_cannot_be_done_is_told_before_anything_is_trained(
    shop: Path, said: dict[str, Any], kind: type[CompressError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        cut("old", **said)
    assert [path.name for path in shop.iterdir()] == ["old"]


def test_a_run_that_was_edited_is_not_gone_on_from(shop: Path) -> None:
    (shop / "old/model.safetensors").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not the file"):
        cut("old", to="30kMACs")
    with pytest.raises(UsageError, match=r"none: there is no such file"):
        cut("none", to="30kMACs")


def test_the_command_prints_a_table_or_json(shop: Path) -> None:
    line = ["cut", "old", "--to", "30kMACs", "--epochs", "0", "--out", "out", "--set", "train.teacher.weights=old"]
    shown = CliRunner().invoke(main, line)
    assert shown.exit_code == 0, shown.stderr
    head, *rows = shown.stdout.splitlines()
    assert head == "1 written into out, for 0.00 % of what the run itself cost"
    assert rows[0].split() == ["network", "MACs", "val", "test"]
    assert rows[1].startswith("the run ")
    assert rows[2].split()[0] == "30kMACs"
    assert rows[2].endswith("out/30kMACs")
    with_teacher = read("out/30kMACs/recipe.yaml")  # whose paths start where the command ran, as those of --set do
    assert with_teacher.train.teacher is not None
    assert (with_teacher.train.teacher.weights, with_teacher.methods[0].model_dump()["of"]) == ("old", "old")
    again = CliRunner().invoke(main, [*line, "--json", "--resume"])
    told = json.loads(again.stdout)
    assert [point["name"] for point in told["points"]] == ["the run", "30kMACs"]
    assert told["folders"] == {"30kMACs": "out/30kMACs"}
    assert again.stderr == ""
    for text, says in (("few", "is no amount of a score; write 1% or 0.01"), ("-1%", "is no amount of a score")):
        done = CliRunner().invoke(main, ["cut", "old", "--max-drop", text])
        assert done.exit_code == 2
        assert says in done.stderr
