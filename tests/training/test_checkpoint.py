"""A run that is killed at any moment and gone on with ends in the same bits, and its file holds no code."""

import json
import os
import pickletools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from compress.errors import UsageError
from compress.methods.adenel.diiss import DIISS
from compress.training import checkpoint
from compress.training.checkpoint import FILE, Saved

# One process that has imported torch and computed nothing yet; every life is a fork of it that ends by SIGKILL, after
# one checkpoint or in the middle of what follows it, until one lives to the end.
NURSERY = """
import json, os, signal, sys, torch
from pathlib import Path
from compress._plan import methods_of
from compress._run import develop, prepare
from compress.recipe.settings import Recipe

def die():
    os.kill(os.getpid(), signal.SIGKILL)

from compress.training.events import Progress

class Mortal:
    def __init__(self, method, checkpoints):
        self.method, self.left = method, checkpoints
    def __getattr__(self, name):
        return getattr(self.method, name)
    def done(self, lab, state):
        why = self.method.done(lab, state)
        self.left -= why is None
        if self.left < 0:
            die()
        return why

def live(said, folder, threads, death):
    stretches = 0
    def listen(event):
        nonlocal stretches
        stretches += isinstance(event, Progress) and event.step == event.steps
        if death == "in a stretch" and stretches == 2:
            die()
    torch.set_num_threads(threads)
    lab, _ = prepare(said, "cpu", listen)
    develop(lab, [Mortal(methods_of(said)[0], 1 if death == "after a checkpoint" else 10**9)], folder)

def end_of(*life):
    child = os.fork()
    if not child:
        try:
            live(*life)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

deaths, stories = {}, json.load(sys.stdin)
torch.set_num_threads(1)  # what runs on one thread starts no others, which a fork would lose
early = Recipe.model_validate(next(iter(stories.values()))[0])
prepare(early, "cpu", lambda *_, **__: None)[0].score()  # imports what is imported late
for name, (said, threads, death) in stories.items():
    said, folder = Recipe.model_validate(said), Path(sys.argv[1], name)
    for kind in ("whole", "killed"):
        (folder / kind).mkdir(parents=True)
    assert end_of(said, folder / "whole", threads, None) == 0
    deaths[name] = 0
    while (status := end_of(said, folder / "killed", threads, death)) != 0:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        deaths[name] += 1
print(json.dumps(deaths))
"""
NETS = {
    "vgg": {"widths": [16, 24], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8},
    "resnet_cifar": {"depths": [1, 1], "widths": [8, 16], "in_channels": 1},
}


def story(factory: str, memory_format: str, precision: str, budget: str = "60kMACs", **method: Any) -> dict[str, Any]:
    """Two rounds of ten steps, and ten steps of tuning; saved every five."""
    return {
        "model": {"factory": f"compress.models:{factory}", "args": NETS[factory]},
        "data": {"source": "digits", "crop": 1},
        "train": {"batch": 100, "precision": precision, "memory_format": memory_format},
        "method": {"name": "adenel", "seed_width": 4, "filters": 9, "theta": 0.5, "grow": "all", "tune": {"epochs": 1}}
        | method,  # with this theta Gamma bears on the weights from the middle of each round on
        "checkpoint": "5 steps",
        "budget": budget,
    }


AFTER, WITHIN = "after a checkpoint", "in a stretch"
PUBLISHED = {"preset": "published", "filters": 4, "round": "10 steps", "on_saturation": "fill"}
STORIES = {
    "contiguous fp32": (story("vgg", "contiguous", "fp32"), 1, AFTER),
    "channels_last fp32": (story("vgg", "channels_last", "fp32"), 1, WITHIN),
    "contiguous bf16": (story("vgg", "contiguous", "bf16"), 1, WITHIN),
    "channels_last bf16": (story("vgg", "channels_last", "bf16"), 1, AFTER),
    "residual, published": (story("resnet_cifar", "auto", "fp32", "200kMACs", **PUBLISHED), 1, AFTER),
    "everything auto, 2 threads": (story("vgg", "auto", "auto", "300kMACs", filters=24), 2, WITHIN),
}
Lives = tuple[Path, dict[str, int]]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    folder = tmp_path_factory.mktemp("lives")
    command = [sys.executable, "-W", "error", "-c", NURSERY, str(folder)]
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # threads that wait do not keep a busy core
    told = subprocess.run(
        command, input=json.dumps(STORIES), text=True, capture_output=True, cwd=root, env=env, check=False, timeout=300
    )
    assert told.returncode == 0, told.stderr
    return folder, json.loads(told.stdout)


def loaded(folder: Path) -> Saved:
    saved = checkpoint.load(folder)
    assert saved is not None
    return saved


@pytest.mark.parametrize("name", STORIES)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(lives: Lives, name: str) -> None:
    folder, deaths = lives
    whole, killed = loaded(folder / name / "whole"), loaded(folder / name / "killed")
    events = [line["event"] for line in whole.state["books"]["history"]]
    assert events.count("round") >= 2
    assert events.count("tune") == 2
    assert deaths[name] >= 2 * events.count("round")  # in every round and after it, and in tuning
    assert whole.state == killed.state
    assert whole.groups == killed.groups
    assert whole.tensors.keys() == killed.tensors.keys()
    assert [n for n, tensor in whole.tensors.items() if not torch.equal(tensor, killed.tensors[n])] == []


def test_the_precision_of_training_follows_the_size_of_the_network(lives: Lives) -> None:
    saved = loaded(lives[0] / "everything auto, 2 threads" / "whole").state
    macs = [line["macs"] for line in saved["books"]["history"]]
    assert macs[0] < 250_000 < macs[-1]
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16") if hasattr(torch.cpu, "get_capabilities") else None
    assert saved["machine"]["precision"] == ("bf16" if bf16 else "fp32")


# ---- the file -------------------------------------------------------------------------------------------------------


def trained() -> tuple[nn.Sequential, DIISS]:
    """A net with tied weights and an optimizer with all its kinds of state."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12))
    net[4].weight = net[3].weight
    first, *others = net.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "path": True}, {"params": others}]
    optimizer = DIISS(groups)
    net(torch.randn(5, 1, 4, 4)).square().mean().backward()
    optimizer.step()
    return net, optimizer


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    net, optimizer = trained()
    checkpoint.save(tmp_path, net, optimizer, {"step": 7, "share": 0.1 + 0.2})
    saved = loaded(tmp_path)
    assert saved.state == {"step": 7, "share": 0.1 + 0.2}
    other, fresh = trained()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    fresh.state.clear()
    checkpoint.restore(saved, other, fresh)
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert other[3].weight is other[4].weight
    for mine, others in zip(net.parameters(), other.parameters(), strict=True):
        state, again = optimizer.state[mine], fresh.state[others]
        assert state.keys() == again.keys()
        assert all(torch.equal(state[key], again[key]) for key in state)
    assert [group["clock"] for group in fresh.param_groups] == [0.1 / 100, 0.0]


def test_a_model_of_other_shapes_is_refused(tmp_path: Path) -> None:
    net, optimizer = trained()
    checkpoint.save(tmp_path, net, optimizer, {})
    other, fresh = trained()
    other[1] = nn.BatchNorm2d(4)
    with pytest.raises(UsageError, match=r"not the one of the interrupted run: 1\.bias is missing or of another shape"):
        checkpoint.restore(loaded(tmp_path), other, fresh)


def test_nothing_saved_is_none_and_an_unfinished_file_is_not_looked_at(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    (tmp_path / f"{FILE}.new").write_bytes(b"half")
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file_is_refused_in_a_sentence(tmp_path: Path, keep: float) -> None:
    checkpoint.save(tmp_path, *trained(), {})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UsageError, match=r"is not what was saved .*; remove .* start afresh"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [None, {"compress": "{}"}, {"checkpoint": "no JSON"}, {"checkpoint": "[]"}, {"checkpoint": '{"format": 0}'}],
)
def test_a_foreign_file_is_refused_in_a_sentence(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"model/weight": torch.zeros(2)}, tmp_path / FILE, metadata)
    with pytest.raises(UsageError, match="is not what was saved"):
        checkpoint.load(tmp_path)


def test_a_failed_save_leaves_what_was_saved_before(tmp_path: Path) -> None:
    net, optimizer = trained()
    checkpoint.save(tmp_path, net, optimizer, {"step": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        checkpoint.save(tmp_path, net, optimizer, {"loss": float("nan")})
    folder = tmp_path / f"{FILE}.new"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        checkpoint.save(tmp_path, net, optimizer, {"step": 2})
    assert loaded(tmp_path).state == {"step": 1}


def test_the_file_holds_numbers_and_text_and_no_pickle(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(), {"why": "text"})
    content = (tmp_path / FILE).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert dtypes == {"F32", "I64"}
    assert json.loads(header["__metadata__"]["checkpoint"])["state"] == {"why": "text"}
    with pytest.raises(ValueError, match=r"opcode|pickle|memory"):
        list(pickletools.genops(content))


def test_no_flipped_bit_is_gone_on_from(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(), {"step": 1})
    content, draw = bytearray((tmp_path / FILE).read_bytes()), random.Random(0)
    for _ in range(60):
        at, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[at] ^= bit
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(UsageError, match="is not what was saved"):
            checkpoint.load(tmp_path)
        content[at] ^= bit
    (tmp_path / FILE).write_bytes(content)
    assert loaded(tmp_path).damaged is None


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "damaged", "lost"])
def test_the_checkpoint_before_the_last_stands_in_for_a_damaged_one(tmp_path: Path, kind: str) -> None:
    net, optimizer = trained()
    for step in (1, 2):
        checkpoint.save(tmp_path, net, optimizer, {"step": step})
    assert loaded(tmp_path).state == {"step": 2}
    path = tmp_path / FILE
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "damaged":
        path.write_bytes(content[:-1])
    saved = loaded(tmp_path)
    assert saved.state == {"step": 1}
    assert (saved.damaged is None) == (kind == "lost")


def test_a_tensor_that_is_missing_renamed_or_of_another_kind_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(), {"step": 1})
    with safe_open(str(tmp_path / FILE), framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    first, second, *_ = sorted(name for name in tensors if tensors[name].dim())
    others = (
        {name: tensor for name, tensor in tensors.items() if name != first},
        {**tensors, first: tensors[second], second: tensors[first]},
        {**tensors, first: tensors[first].double()},
        {**tensors, first: tensors[first].reshape(1, *tensors[first].shape)},
    )
    for other in others:
        save_file({name: tensor.contiguous() for name, tensor in other.items()}, tmp_path / FILE, metadata)
        with pytest.raises(UsageError, match="its digest is another"):
            checkpoint.load(tmp_path)
