"""What a method may do to a network keeps the network, its optimizer and the books in step."""

import pytest
import torch
from torch import nn

from compress._plan import methods_of
from compress._run import prepare
from compress.errors import UsageError
from compress.recipe.settings import Recipe
from compress.recipe.step import Course
from compress.training.bench import Bench
from compress.training.optim import decayed

NET = {"widths": [12, 16], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
CONV1, CONV2 = "features.conv1", "features.conv2"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lab_of(layout: str = "auto", seed: int = 0, **train: object) -> Bench:
    """A lab that stands before the first step of AdeNeL, with layers 4 filters wide."""
    keys = {
        "model": {"factory": "compress.models:vgg", "args": NET},
        "train": {"batch": 50, "memory_format": layout, **train},
        "method": {"name": "adenel", "seed_width": 4},
        "budget": "10MMACs",
        "seed": seed,
    }
    recipe = Recipe.model_validate(keys)
    lab, _ = prepare(recipe, "cpu")
    methods_of(recipe)[0].init(lab)
    return lab


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_widening_keeps_the_function_and_the_momentum_and_gives_new_slots_zeros(layout: str) -> None:
    lab = lab_of(layout)
    lab.train(4, lambda step: 0.1)
    x, _ = next(iter(lab.data.split("val")))
    logits = lab.model.eval()(x)
    momenta = {p: state["momentum_buffer"] for p, state in lab.optimizer.state.items()}
    before = {n: (p.detach().clone(), momenta[p].clone()) for n, p in lab.model.named_parameters()}
    lab.resize({CONV1: 6, CONV2: 7})
    torch.testing.assert_close(lab.model.eval()(x), logits, rtol=0, atol=1e-5)
    for name, now in lab.model.named_parameters():
        weight, momentum = before[name]
        old = tuple(slice(0, size) for size in weight.shape)
        carried = lab.optimizer.state[now]["momentum_buffer"].clone()
        assert torch.equal(now[old], weight)
        assert torch.equal(carried[old], momentum)
        carried[old] = 0
        assert not carried.any()
    rows = lab.model.get_parameter(f"{CONV2}.weight").detach()
    assert rows.shape == (7, 6, 3, 3)
    assert not rows[:4, 4:].any()
    assert rows[4:].flatten(1).norm(dim=1).min() > 0


def test_resizing_keeps_the_first_channels_and_the_others_are_gone() -> None:
    lab = lab_of()
    before = lab.model.get_parameter(f"{CONV2}.weight").detach().clone()
    lab.resize({CONV1: 3, CONV2: 2})
    assert lab.widths == {CONV1: 3, CONV2: 2}
    assert torch.equal(lab.model.get_parameter(f"{CONV2}.weight"), before[:2, :3])
    lab.narrow({CONV2: [1]})
    assert torch.equal(lab.model.get_parameter(f"{CONV2}.weight"), before[1:2, :3])


def test_all_of_the_optimizers_state_lies_in_memory_as_its_weights_do(layout: str) -> None:
    lab = lab_of(layout)
    lab.train(1, lambda step: 0.1)
    lab.resize({CONV1: 6, CONV2: 7})
    lab.train(1, lambda step: 0.1)
    assert lab.layout == layout
    assert lab.model.get_parameter(f"{CONV2}.weight").is_contiguous(memory_format=LAYOUTS[layout])
    for parameter, state in lab.optimizer.state.items():
        whole = {key: value for key, value in state.items() if value.shape == parameter.shape}
        assert "momentum_buffer" in whole
        assert {key: value.stride() for key, value in whole.items()} == dict.fromkeys(whole, parameter.stride())


def test_one_seed_draws_one_network_in_whatever_layout() -> None:
    one, other, third = (
        [tensor.contiguous() for tensor in lab_of(layout, seed).model.state_dict().values()]
        for layout, seed in (("contiguous", 0), ("channels_last", 0), ("contiguous", 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], third[0])


def test_new_filters_are_drawn_by_seed_step_and_space_and_not_by_the_order_of_growth() -> None:
    drawn = []
    for order, step in (([CONV1, CONV2], 0), ([CONV2, CONV1], 0), ([CONV1, CONV2], 1)):
        lab = lab_of()
        lab.step = step
        lab.resize(dict.fromkeys(order, 6))
        drawn.append(lab.model.get_parameter(f"{CONV1}.weight")[4:])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_weights_are_drawn_kaiming_normal_with_fan_in_and_norms_begin_anew() -> None:
    lab = lab_of()
    lab.resize({CONV1: 64, CONV2: 200})
    lab.score()
    lab.refill()
    weight = lab.model.get_parameter(f"{CONV2}.weight")
    assert weight.flatten(1).norm(dim=1).mean().item() == pytest.approx(2**0.5, rel=0.01)
    norm = lab.model.get_submodule("features.norm2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert not norm.running_mean.any()
    assert (norm.running_var == 1).all()


def test_the_books_tell_steps_and_what_they_cost_and_can_be_opened_again() -> None:
    lab = lab_of()
    lab.train(3, lambda step: 0.1)
    small = lab.cost().macs
    lab.resize({CONV1: 9})
    lab.train(2, lambda step: 0.1)
    lab.note("grown", widths=lab.widths)
    assert (lab.step, lab.spent) == (5, 50 * (3 * small + 2 * lab.cost().macs))
    counted = {"macs": lab.cost().macs, "params": lab.cost().params, "used": lab.budget.utilisation(lab.cost())}
    where = {"event": "grown", "step": 5, "method": "adenel"}
    assert lab.history[-1].row == {**where, **counted, "widths": {CONV1: 9, CONV2: 4}}
    again, _ = prepare(lab.recipe, "cpu")
    again.reopen(lab.books())
    assert again.books() == lab.books()
    assert again.cost() == lab.cost()
    fresh, _ = prepare(lab.recipe, "cpu")
    with pytest.raises(UsageError, match=r"not the one of the interrupted run: features\.conv2 is free in only one"):
        fresh.reopen({**lab.books(), "widths": {CONV1: 9}})


def test_the_cost_by_formula_is_the_count_of_the_network() -> None:
    lab = lab_of()
    lab.resize({CONV1: 7, CONV2: 5})
    assert lab.cost().params == sum(p.numel() for p in lab.model.parameters())
    assert lab.cost().macs == 7 * 9 * 64 + 5 * 7 * 9 * 16 + 5 * 10


def test_weight_decay_is_for_weights_of_two_dimensions_or_more() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    names = {id(p): name for name, p in net.named_parameters()}
    decay, plain = decayed(net, [net.get_parameter("0.weight")])
    assert [names[id(p)] for p in decay] == ["3.weight"]
    assert [names[id(p)] for p in plain] == ["0.bias", "1.weight", "1.bias", "3.bias"]


def test_a_stated_train_cost_is_spent_to_the_last_step_that_it_pays_for_by_the_last_method_alone() -> None:
    methods = [{"name": "scratch", "epochs": 1}, {"name": "l1", "tune": {"epochs": 3}}]
    said = {"model": {"factory": "compress.models:vgg", "args": NET}, "budget": "20kMACs", "steps": methods}
    recipe = Recipe.model_validate({**said, "train": {"batch": 50, "cost": 9e8}, "checkpoint": "7 steps"})
    lab, _ = prepare(recipe, "cpu")
    for at, method in enumerate(methods_of(recipe)):
        lab.enter(at)
        state = method.init(lab)
        while method.done(lab, state) is None:
            state = method.step(lab, state)
        lab.leave("")
    assert lab.steps[0]["steps"] == 1000 // 50
    left = 9e8 - lab.steps[0]["macs_images"]
    assert lab.steps[1]["steps"] == left // (lab.cost().macs * 50)
    assert 9e8 - lab.cost().macs * 50 < lab.spent <= 9e8


def test_a_stage_is_scored_by_its_averaged_weights_and_ends_with_them() -> None:
    lab = lab_of(ema=0.9)
    course = Course(schedule="constant")
    assert lab.stretch("tune", course, 0, 10**6) == lab.pace
    live = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in lab.average.tensors.items()}
    with lab.average.in_place(lab.model):
        assert lab.history[-1].numbers["val"] == lab.score().accuracy
    assert not torch.equal(live[f"{CONV1}.weight"], mean[f"{CONV1}.weight"])
    assert lab.stretch("tune", course, lab.pace, lab.pace + 1) == lab.pace + 1  # the last step of the stage
    weight = lab.model.get_parameter(f"{CONV1}.weight").detach()
    far = (weight - live[f"{CONV1}.weight"]).norm()
    assert (weight - mean[f"{CONV1}.weight"]).norm() < far / 2  # one step on, the average is still near what it was
    assert lab.history[-1].numbers["val"] == lab.score().accuracy
    assert not lab.average.tensors
