"""Work is done side by side, in an order that respects what needs what; what fails holds up what needs it alone."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.queue import SKIPPED, Done, Piece, cores, work_off


def piece(folder: Path, name: str, code: str, *after: str) -> Piece:
    return Piece(name, (sys.executable, "-c", code), folder / "logs" / f"{name}.log", after)


def test_pieces_run_side_by_side_and_after_what_they_need(tmp_path: Path) -> None:
    said = "import time, pathlib; time.sleep({wait}); pathlib.Path({out!r}).write_text(str(time.time()))"
    one = piece(tmp_path, "one", said.format(wait=0.4, out=str(tmp_path / "one")))
    two = piece(tmp_path, "two", said.format(wait=0, out=str(tmp_path / "two")))
    last = piece(tmp_path, "last", said.format(wait=0, out=str(tmp_path / "last")), "one", "two")
    told: list[tuple[str, int]] = []
    begun: list[str] = []
    codes = work_off(
        [last, one, two], 2, lambda done, left: told.append((done.piece.name, left)), lambda p: begun.append(p.name)
    )
    assert codes == {"one": 0, "two": 0, "last": 0}
    times = {name: float((tmp_path / name).read_text()) for name in codes}
    assert times["two"] < times["one"] < times["last"]
    assert begun == ["one", "two", "last"]
    assert [left for _, left in told] == [2, 1, 0]


def test_no_more_run_at_a_time_than_are_allowed_and_each_has_its_threads(tmp_path: Path) -> None:
    code = "import os, time; print(os.environ['OMP_NUM_THREADS'], time.time()); time.sleep(0.3); print(time.time())"
    work_off([piece(tmp_path, str(n), code) for n in range(3)], 1, lambda done, left: None, lambda p: None)
    spans = [(tmp_path / "logs" / f"{n}.log").read_text().split() for n in range(3)]
    assert {span[0] for span in spans} == {str(cores())}
    assert all(float(a[2]) < float(b[1]) for a, b in itertools.pairwise(spans))


def test_what_fails_is_told_with_its_log_and_only_what_needs_it_is_left_out(tmp_path: Path) -> None:
    done: list[Done] = []
    codes = work_off(
        [
            piece(tmp_path, "bad", "raise SystemExit('it broke')"),
            piece(tmp_path, "over", "raise SystemExit(2)"),
            piece(tmp_path, "child", "print('never')", "over"),
            piece(tmp_path, "grandchild", "print('never')", "child"),
            piece(tmp_path, "free", "raise SystemExit(1)"),
            piece(tmp_path, "of a finished one", "print('yes')", "free"),
        ],
        2,
        lambda one, left: done.append(one),
        lambda p: None,
    )
    assert codes == {"bad": 1, "over": 2, "child": SKIPPED, "grandchild": SKIPPED, "free": 1, "of a finished one": 0}
    assert (tmp_path / "logs" / "bad.log").read_text().strip() == "it broke"
    assert not (tmp_path / "logs" / "child.log").exists()
    assert [one.piece.name for one in done if one.code == SKIPPED] == ["child", "grandchild"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_an_interrupt_lets_what_runs_save_its_work(tmp_path: Path) -> None:
    inner = (
        "import signal, time\n"
        "def end(*_):\n    print('saved', flush=True); raise SystemExit(1)\n"
        "signal.signal(signal.SIGTERM, end); print('on', flush=True); time.sleep(60)"
    )
    outer = (  # which a shell may have started with interrupts switched off
        "import signal, sys; from pathlib import Path; from compress.queue import Piece, work_off\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"work_off([Piece('one', (sys.executable, '-c', {inner!r}), Path({str(tmp_path / 'log')!r}))], 1, "
        "lambda done, left: None, lambda piece: None)"
    )
    process = subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.PIPE)
    for _ in range(600):
        if (tmp_path / "log").exists() and "on" in (tmp_path / "log").read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error
    assert (tmp_path / "log").read_text().split() == ["on", "saved"]
