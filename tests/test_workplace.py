"""Work has one place and one worker, and a result appears whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compress import workplace
from compress.errors import UsageError
from compress.workplace import LOCK, RESULT, claim, default_out, partial, publish

ROOT = Path(__file__).resolve().parent.parent
WORKER = """
import sys, time
from pathlib import Path
from compress.workplace import claim
with claim(Path(sys.argv[1]), resume=True) as work:
    (work / "saved").write_text("something")
    print("working", flush=True)
    time.sleep(60)
"""


@contextmanager
def worker(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on `out`."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(out)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "working\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def work_in_vain(out: Path, *, save: bool, resume: bool = False) -> None:
    with claim(out, resume=resume) as work:
        if save:
            (work / "saved").write_text("something")
        raise ZeroDivisionError


def test_a_result_appears_under_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with claim(out, resume=False) as work:
        assert work == partial(out) == tmp_path / "deep" / "out.partial"
        assert json.loads((work / LOCK).read_text()) == {"pid": os.getpid()}
        (work / "checkpoint").write_text("saved")
        (work / "result").mkdir()
        (work / "result" / "file").write_text("finished")
        assert not out.exists()
        publish(work, work / "result", out)
    assert entries(tmp_path) == ["deep", "deep/out", "deep/out/file"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists already; name another"), claim(tmp_path / "out", resume=resume):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for out in (Path(), Path(".."), Path("/")):
        with pytest.raises(UsageError, match="exists already"), claim(out, resume=resume):
            pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_living_worker_is_named_and_its_work_left_alone(tmp_path: Path, resume: bool) -> None:
    out = tmp_path / "out"
    with worker(out) as process:
        message = f"process {process.pid} is working in .*out.partial right now; wait for it"
        with pytest.raises(UsageError, match=message), claim(out, resume=resume):
            pass
        assert sorted(path.name for path in partial(out).iterdir()) == [LOCK, "saved"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with worker(out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((partial(out) / LOCK).read_text()) == {"pid": process.pid}  # it had no time to tidy up
        with claim(out, resume=True) as work:
            assert json.loads((work / LOCK).read_text()) == {"pid": os.getpid()}
            assert (work / "saved").read_text() == "something"


def test_a_lock_that_names_a_living_process_which_does_not_hold_it_keeps_nobody_out(tmp_path: Path) -> None:
    """After a restart of the machine the number may belong to any process."""
    partial(tmp_path / "out").mkdir()
    (partial(tmp_path / "out") / LOCK).write_text(json.dumps({"pid": os.getppid()}))
    with claim(tmp_path / "out", resume=False) as work:
        assert json.loads((work / LOCK).read_text()) == {"pid": os.getpid()}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_place_of_the_lock_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path, there: bool) -> None:
    victim, lock = tmp_path / "victim", partial(tmp_path / "out") / LOCK
    if there:
        victim.write_text("somebody's")
    lock.parent.mkdir()
    lock.symlink_to(victim)
    refused = pytest.raises(UsageError, match=r"out\.partial/lock is a symbolic link, which no run makes; remove it")
    with refused, claim(tmp_path / "out", resume=True):
        pass
    assert lock.readlink() == victim
    assert (victim.read_text() if victim.exists() else None) == ("somebody's" if there else None)


def test_a_link_that_appears_while_the_lock_is_taken_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the lock and the look whether it still lies there, somebody puts a link in its place."""
    victim, lock = tmp_path / "victim", partial(tmp_path / "out") / LOCK
    victim.write_text("somebody's")
    take = workplace.lock_descriptor

    def replace_and_take(descriptor: int, *, blocking: bool) -> bool:
        lock.unlink()
        lock.symlink_to(victim)
        return take(descriptor, blocking=blocking)

    monkeypatch.setattr(workplace, "lock_descriptor", replace_and_take)
    with pytest.raises(UsageError, match="is a symbolic link"), claim(tmp_path / "out", resume=False):
        pass
    assert victim.read_text() == "somebody's"


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workplace, "lock_descriptor", fail)
    with claim(tmp_path / "out", resume=False) as work:
        assert json.loads((work / LOCK).read_text()) == {"pid": os.getpid()}
    assert entries(tmp_path) == []


def test_another_fault_of_a_lock_is_told_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def fail(descriptor: int, *, blocking: bool) -> bool:
        opened.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(workplace, "lock_descriptor", fail)
    refused = pytest.raises(UsageError, match=r"out\.partial cannot be made \(Input/output error\)")
    with refused, claim(tmp_path / "out", resume=False):
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_one_process_does_not_work_twice_in_one_place(tmp_path: Path) -> None:
    out, refused = tmp_path / "out", pytest.raises(UsageError, match=f"process {os.getpid()} is working")
    with claim(out, resume=False), refused, claim(out, resume=True):
        pass
    with claim(out, resume=False):
        pass


def test_unfinished_work_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claim(out, resume=False) as work:
        (work / "saved").write_text("something")
    assert [path.name for path in work.iterdir()] == ["saved"]
    refused = pytest.raises(UsageError, match=r"out\.partial holds an interrupted run; go on with --resume")
    with refused, claim(out, resume=False):
        pass
    assert [path.name for path in work.iterdir()] == ["saved"]
    with claim(out, resume=True) as work:
        assert (work / "saved").read_text() == "something"


@pytest.mark.parametrize("resume", [False, True])
def test_a_failure_before_anything_is_saved_leaves_no_trace(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(ZeroDivisionError):
        work_in_vain(tmp_path / "out", save=False, resume=resume)
    assert entries(tmp_path) == []


def test_a_failure_after_something_is_saved_keeps_it_and_makes_no_result(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        work_in_vain(tmp_path / "out", save=True)
    assert entries(tmp_path) == ["out.partial", "out.partial/saved"]


def test_half_a_result_of_a_killed_process_is_in_nobodys_way(tmp_path: Path) -> None:
    left = partial(tmp_path / "out") / RESULT
    left.mkdir(parents=True)
    (left / "model.onnx").write_text("half")
    with claim(tmp_path / "out", resume=False) as work:
        assert entries(work) == [LOCK]
    assert entries(tmp_path) == []


def test_a_place_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(UsageError, match=r"out\.partial cannot be made \(Not a directory\)")
    with refused, claim(tmp_path / "file" / "out", resume=False):
        pass


def test_a_result_does_not_replace_what_appeared_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claim(out, resume=False) as work:
        (work / "result").mkdir()
        out.mkdir()
        (out / "file").write_text("another's")
        with pytest.raises(UsageError, match=r"out cannot be written \(Directory not empty\)"):
            publish(work, work / "result", out)
    assert (out / "file").read_text() == "another's"


def test_the_default_folder_is_the_first_free_number(tmp_path: Path) -> None:
    assert default_out("net", tmp_path) == tmp_path / "net"
    (tmp_path / "net").mkdir()
    (tmp_path / "net-2.partial").mkdir()
    assert default_out("net", tmp_path) == tmp_path / "net-3"
