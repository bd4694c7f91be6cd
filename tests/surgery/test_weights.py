"""Weights as people have them are loaded, whatever wrapped them, or refused in a sentence that says what to do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compress.errors import ArtifactError, UsageError
from compress.surgery.weights import fill, read_weights

State = Mapping[str, Tensor]


class Small(nn.Module):
    """Two layers, a batch norm, and a mask that holds no finite numbers where it forbids."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, classes)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))


def small(classes: int = 4) -> Small:
    torch.manual_seed(7)
    return Small(classes)


def before(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


MADE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": dict,
    "DataParallel": lambda s: before("module.", s),
    "compiled, then DistributedDataParallel": lambda s: before("_orig_mod.module.", s),
    "the other way round": lambda s: before("module._orig_mod.", s),
    "one part compiled": lambda s: {k.replace("norm.", "norm._orig_mod."): v for k, v in s.items()},
    "Lightning": lambda s: {
        "state_dict": before("model.", s), "epoch": 3, "optimizer_states": [{"state": {}, "param_groups": [{}]}],
        "hyper_parameters": {"lr": 0.1}
    },
    "Lightning, compiled": lambda s: {"state_dict": before("net._orig_mod.", s)},
    "two levels of a trainer": lambda s: before("trainer.model.", s),
    "within two dictionaries": lambda s: {"model": {"state_dict": s}},
    "beside what is no weight": lambda s: {"net": s, "acc": torch.tensor(93.0), "epoch": 2, "mean": torch.zeros(3)},
    "beside an optimizer": lambda s: {
        "model": s, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last": torch.zeros(2)}, "scaler": {"scale": torch.ones(1)}
    },
    "with an extra state": lambda s: {"state_dict": {**s, "_extra_state": None, "version": 3}},
    "averaged": lambda s: AveragedModel(small()).state_dict(),
    "half, counters too": lambda s: {k: v.half() for k, v in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_checkpoint_is_loaded_whatever_wrapped_it(name: str, tmp_path: Path) -> None:
    state, model = dict(small().state_dict()), Small()
    torch.save(MADE[name](state), tmp_path / "w.pt")
    fill(model, read_weights(tmp_path / "w.pt"), exact=True)
    for key, tensor in model.state_dict().items():
        assert torch.allclose(tensor, state[key], atol=1e-3 if "half" in name else 0.0), key


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.module."])
def test_a_factory_that_wraps_its_model_takes_its_own_weights_and_plain_ones(
    wrapper: str, prefix: str, tmp_path: Path
) -> None:
    model = nn.Module()
    model.add_module(wrapper, Small())
    torch.save(before(prefix, small().state_dict()), tmp_path / "w.pt")
    fill(model, read_weights(tmp_path / "w.pt"))
    assert torch.equal(model.get_parameter(f"{wrapper}.a.weight"), small().a.weight)


def test_numbers_of_eight_bits_are_numbers(tmp_path: Path) -> None:
    state = {
        k: v.to(torch.float8_e4m3fn) if v.dim() > 1 and k != "mask" else v for k, v in small().state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    model = Small()
    fill(model, read_weights(tmp_path / "w.safetensors"))
    assert torch.allclose(model.head.weight, small().head.weight, rtol=0.1, atol=0.01)


@pytest.mark.parametrize(
    ("made", "keys"),
    [
        (
            lambda s: {"state_dict": s, "state_dict_ema": {k: v * 0 for k, v in s.items()}},
            ["state_dict", "state_dict_ema"],
        ),
        (lambda s: {"model": s, "ema": {"module": {k: v * 0 for k, v in s.items()}}}, ["model", "ema.module"]),
        (lambda s: {"model": s, "best": {"acc": torch.tensor(1.0)}}, ["model", "best"]),
    ],
)
def test_of_several_weights_in_a_file_one_is_named(
    made: Callable[[State], Any], keys: list[str], tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in small().state_dict().items() if name != "mask"}
    torch.save(made(state), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=rf"holds weights under '{keys[0]}' .*'{keys[1]}' .*model\.weights_key"):
        read_weights(tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt", keys[0])["a.weight"], state["a.weight"])
    other = read_weights(tmp_path / "w.pt", keys[1])
    assert all(not bool(tensor.any()) for name, tensor in other.items()) or keys[1] == "best"
    with pytest.raises(UsageError, match="holds no weights under 'teacher', but under"):
        read_weights(tmp_path / "w.pt", "teacher")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n", "git lfs pull"),
        ("w.safetensors", b"\n <!doctype html><html>404</html>", "a page of HTML"),
        ("w.pth", b"", r"torch\.load"),
    ],
)
def test_what_is_no_weights_file_says_what_it_is(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=says):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.eye(4).to_sparse(), "is a sparse_coo tensor and not one of plain numbers"),
        (torch.empty(3, 4, device="meta"), "is a meta tensor"),
    ],
)
def test_a_tensor_of_no_plain_numbers_is_refused_by_name(tensor: Tensor, says: str, tmp_path: Path) -> None:
    torch.save({**small().state_dict(), "head.weight": tensor}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=f"head.weight {says}"):
        read_weights(tmp_path / "w.pt")


def test_numbers_that_are_not_finite_are_refused_but_where_the_model_has_them_too() -> None:
    state = dict(small().state_dict())
    fill(Small(), state, exact=True)  # with its mask
    with pytest.raises(UsageError, match=r"numbers in mask that are not finite"):
        fill(Small(), {**state, "mask": -state["mask"]})
    with pytest.raises(UsageError, match=r"numbers in a\.bias that are not finite"):
        fill(Small(), {**state, "a.bias": torch.tensor([1.0, float("nan"), 0.0])})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: {k.replace("norm", "bn"): v for k, v in s.items()},
            "lack norm.weight.* more than it knows: bn.weight",
        ),
        (
            lambda s: {**s, "head.weight": torch.zeros(1000, 3)},
            r"hold head\.weight as \[1000, 3\]; the factory's model has",
        ),
        (lambda s: before("model.", {k: v for k, v in s.items() if k != "head.bias"}), r"they lack head\.bias\."),
        (lambda s: {0: torch.zeros(1)}, "holds no weights by name"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], Any], says: str, tmp_path: Path
) -> None:
    torch.save(change(dict(small().state_dict())), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=says):
        fill(Small(), read_weights(tmp_path / "w.pt"), exact=True)
