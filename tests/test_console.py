"""What people see: aligned lines that read the same in a log, and one live line where a person watches."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import build

from compress.budget.limits import Budget, Cost, Latency
from compress.console import in_short, percent, say, table, telling
from compress.export.parts import Counted, StepRow
from compress.export.report import Report, train_cost
from compress.methods.adenel.settings import Adenel
from compress.outcomes import result_lines
from compress.recipe.step import Tune
from compress.training.events import Begun, Doing, Ended, Entered, Event, Note, Noted, Progress, Resumed, Warned

DIGITS: Any = SimpleNamespace(
    scale=255,
    name="digits",
    shape=(1, 8, 8),
    image=(1, 8, 8),
    classes="0123456789",
    counts={"train": 1000, "val": 400},
    batch=50,
    steps_per_epoch=20,
)
BEGUN = Begun(
    factory="shop:net",
    data=DIGITS,
    metric=None,
    base=Cost(90, 9000, 9000, 900),
    seed=Cost(8, 800, 800, 80),
    budget=Budget.parse("4000MACs"),
)
ADENEL = Adenel(tune=Tune(epochs=10))
ROUND = Note(
    "round", 45, "adenel", 2000, 20, 0.5, {"round": 3, "loss": 1.25, "val": 0.875, "widths": {"a": 4, "b": 16}}
)


def bare(event: str = "tune", **numbers: Any) -> Noted:
    return Noted(Note(event, 9, "adenel", 1, 2, 0.5, numbers))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(events: Sequence[Event], stream: io.StringIO | None = None) -> str:
    to = stream or io.StringIO()
    with telling(quiet=False, stream=to) as listen:
        for event in events:
            listen(event)
    return to.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


STORY: list[Event] = [
    BEGUN,
    Entered(ADENEL, 1.0),
    Resumed(40),
    Progress(1, 5, loss=2.0, images_per_second=100.0),
    Noted(ROUND),
    Progress(5, 5, loss=2.0, images_per_second=100.0),
    Warned("threads was 2 and is 1"),
    Ended("the budget is filled"),
    Doing("exporting [everything]"),
]


def test_a_log_has_one_line_an_event_and_no_control_characters() -> None:
    text = shown(STORY)
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "digits: images 1 x 8 x 8 in 10 classes, 1,000 train, 400 val"
    assert lines[1] == "shop:net: 9.0 kMACs, 90 params; starts at 800 MACs, 8 params; budget 4000MACs"
    assert lines[2] == "resumed from step 40"
    assert lines[3].split() == ["event", "step", "MACs", "params", "budget", "loss", "val", "size"]
    assert lines[4].split("  ")[0] == "round 3"
    assert lines[4].endswith("50.00 %   1.2500   87.50 %  4 16")
    assert lines[5:] == [
        "warning: threads was 2 and is 1",
        "training ended: the budget is filled",
        "exporting [everything]",
    ]


def test_columns_stand_under_their_names_whatever_is_known() -> None:
    head, full, least = shown([Noted(ROUND), bare()]).splitlines()
    assert (
        head.index("MACs") + len("MACs") == full.index("kMACs") + len("kMACs") == least.index("1 MACs") + len("1 MACs")
    )
    assert least.split() == ["tune", "9", "1", "MACs", "2", "params", "50.00", "%"]


def test_a_network_whose_depth_is_what_changes_is_shown_by_its_depths() -> None:
    text = shown([bare(widths={"a": 4}, depths={"stage1": 3, "stage2": 12})])
    assert text.splitlines()[-1].split()[-1] == "3-12"
    left = bare("left", stage="stage2", why="budget", depths={"stage1": 3, "stage2": 12})
    assert shown([left]).splitlines()[-1].endswith("3-12 (stage2 stops: budget)")


def test_each_of_several_steps_is_announced_with_its_part_of_the_budget() -> None:
    lines = shown([Entered(ADENEL, 0.5), bare(), Entered(ADENEL, 1.0)]).splitlines()
    assert (lines[0], lines[-1]) == ("adenel, within 0.5 of the budget:", "adenel, within 1 of the budget:")


def test_a_terminal_sees_the_same_lines_and_one_that_moves(terminal: Terminal) -> None:
    text = shown(STORY, terminal)
    for line in ("resumed from step 40", "training ended: the budget is filled", "exporting [everything]"):
        assert line in text
    assert "1/5  loss 2.0000  100 images/s  next line in 0:02" in text  # 4 steps of 50 images at 100 a second
    assert "\x1b[?25l" in text  # the cursor is hidden while a line moves
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and is there again afterwards


def test_the_time_left_is_that_of_all_epochs_once_the_last_stage_has_begun(terminal: Terminal) -> None:
    text = shown([*STORY[:2], bare(epoch=7.0), Progress(10, 20, loss=2.0, images_per_second=100.0)], terminal)
    assert "100 images/s  0:25 left" in text  # 3 epochs of 20 steps, less 10, of 50 images


def test_the_cursor_comes_back_when_a_run_breaks_off(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), telling(quiet=False, stream=terminal) as listen:  # noqa: PT012
        listen(Progress(1, 5, loss=2.0, images_per_second=100.0))
        raise KeyboardInterrupt
    text = terminal.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_dumb_terminal_is_a_log(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert all(line.isprintable() for line in shown(STORY, terminal).splitlines())


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with telling(quiet=True) as listen:
        for event in STORY:
            listen(event)
    assert capsys.readouterr() == ("", "")


def test_what_a_name_smuggles_in_is_not_a_control_character() -> None:
    assert shown([Warned("a\x1b[2Jb\nc")]) == "warning: a\\x1b[2Jb\\nc\n"


def test_a_terminal_obeys_us_and_no_name(terminal: Terminal) -> None:
    strange = "a\x1b[2J\x9b\u202eb"
    text = shown([Warned(strange), bare(strange), Progress(1, 5, loss=2.0, images_per_second=9.0)], terminal)
    for smuggled in ("\x1b[2J", "\x9b", "\u202e"):
        assert smuggled not in text
    assert text.count(r"a\x1b[2J\x9b\u202eb") >= 3


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_a_log_that_cannot_be_written_ends_no_run(error: OSError) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    assert shown(STORY, Broken()) == ""


def test_a_reader_that_went_away_is_no_error_but_a_full_disk_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.errors import UsageError

    class Broken(io.StringIO):
        def __init__(self, error: OSError) -> None:
            super().__init__()
            self.error = error

        def write(self, text: str) -> int:
            raise self.error

    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    say("unheard")
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(UsageError, match=r"^The output cannot be written: No space left on device\.$"):
        say("lost")


def test_a_table_is_aligned_on_the_side_that_is_asked_for() -> None:
    assert table(["space", "width", ""], [["a", "8", "free"], ["stage1", "128", ""]], right=(1,)) == [
        "space   width",
        "a           8  free",
        "stage1    128",
    ]


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_a_percentage_is_rounded_down_and_by_less_than_a_hundredth(part: int, whole: int) -> None:
    from fractions import Fraction

    said = Fraction(percent(part / whole).removesuffix("%"))
    exact = Fraction(100 * part, whole)
    assert said <= exact + Fraction(1, 10**6)
    assert exact - said < Fraction(101, 10_000)


def test_few_widths_are_all_named_and_many_are_summed_up() -> None:
    assert in_short({"a": 8, "b": 8, "c": 64}) == "8 8 64"
    assert in_short({str(n): 10 + n for n in range(40)}) == "10 to 49 in 40 spaces"


LIMITS = ["100MACs", {"limit": "9B", "level": "warn"}, "8params"]
COST = Cost(params=4, macs=110, thop=110, bytes=10)


@pytest.fixture
def report() -> Report:
    spent = train_cost(421, 640, base=Cost(1, 1, 1, 1), train_images=100, epochs=100, name="vgg for 300 epochs")
    return build(LIMITS, cost=COST, val=0.5, test=None, required=0.9, train_cost=spent)


def test_a_result_names_counters_accuracy_cost_files_and_the_command_that_guards_it(
    tmp_path: Path, report: Report
) -> None:
    (tmp_path / "model.onnx").touch()
    lines = result_lines(tmp_path, report)
    assert lines[0].startswith("not kept: 110 MACs of 100MACs")
    assert [line.split("  ")[0] for line in lines[2:5]] == ["100MACs", "9B", "8params"]
    assert lines[2].endswith("  MACs, our count")
    assert "110.00 %  OVER" in lines[2]
    assert "111.11 %  over, a warning  bytes of model.onnx" in lines[3]
    assert "50.00 %  kept" in lines[4]
    assert lines[5] == "accuracy: validation 50.00 % (required 90.00 %), no test images"
    assert lines[6] == "training: 4.21 % of vgg for 300 epochs"
    assert lines[7] == f"files: {tmp_path / 'model.onnx'}"
    assert lines[8].endswith("--budget '100MACs, 8params'")  # warnings guard nothing


def test_a_result_says_how_a_latency_was_measured(tmp_path: Path) -> None:
    latency = Latency(6_000_000, 5_100_000, 7_200_000, 1331, "a processor")
    timed = build(["43MFLOPs", "5ms@onnxruntime-cpu/1"], {"ns@onnxruntime-cpu/1": latency})
    line = result_lines(tmp_path, timed)[3]
    assert line.split()[:5] == ["5ms@onnxruntime-cpu/1", "6,000,000", "5,000,000", "120.00", "%"]
    assert line.endswith("  over, a warning  ns, median of 1,331 runs; 80 % took 5.1 ms to 7.2 ms")


def test_a_result_of_several_methods_says_what_each_of_them_left(tmp_path: Path, report: Report) -> None:
    counted = Counted(params=9, macs=42_000, thop=9)
    step = StepRow(method="lwp", share=None, steps=1200, macs_images=5, cost=counted, val=0.5)
    first = step.model_copy(update={"method": "autogrow", "val": None})
    lines = result_lines(tmp_path, report.model_copy(update={"steps": (first, step)}))
    assert lines[5:8] == [
        "method    steps        MACs    params      val",
        "autogrow  1,200  42.0 kMACs  9 params",
        "lwp       1,200  42.0 kMACs  9 params  50.00 %",
    ]
    alone = report.model_copy(update={"steps": (step,)})
    assert result_lines(tmp_path, alone) == result_lines(tmp_path, report)
