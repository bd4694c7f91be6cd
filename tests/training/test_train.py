"""Training is a function of the seed, however it is cut into calls; scores and statistics are what they claim."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import UsageError
from compress.recipe import settings
from compress.training import data, train
from compress.training.task import classification

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load(settings.Data(crop=1), batch=64, seed=0, device=CPU)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tiny(classes: int = 10, width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def run(model: Any, of: data.Data, *stretches: tuple[int, int], **other: Any) -> train.Trained:
    optimizer = sgd(model)
    lr, chosen = other.pop("lr", lambda step: 0.1), {"seed": 0, **other}
    for start, steps in stretches:
        trained = train.train(model, train.Loop(of, optimizer, start, steps, **chosen), lr)
    return trained


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


SCHEDULES: list[tuple[str, float, float, float]] = [  # schedule, progress, warm-up, share of the peak
    ("constant", 0.0, 0.0, 1.0),
    ("constant", 0.9, 0.0, 1.0),
    ("constant", 0.1, 0.2, 0.5),
    ("cosine", 0.0, 0.0, 1.0),
    ("cosine", 0.3, 0.0, (1 + math.cos(0.3 * math.pi)) / 2),
    ("cosine", 1.0, 0.0, 0.0),
    ("cosine", 0.05, 0.2, 0.25),
    ("cosine", 0.2, 0.2, 1.0),
    ("cosine", 0.6, 0.2, 0.5),  # half of the rest
    ("onecycle", 0.0, 0.3, 0.0),
    ("onecycle", 0.15, 0.3, 0.5),
    ("onecycle", 0.65, 0.3, 0.5),
    ("onecycle", 1.0, 0.3, 0.0),
    ("linear", 0.1, 0.2, 0.5),
    ("linear", 0.2, 0.2, 1.0),
    ("linear", 0.4, 0.2, 0.75),
    ("linear", 1.0, 0.2, 0.0),
    ("steps", 0.0, 0.0, 1.0),
    ("steps", 0.33, 0.0, 1.0),
    ("steps", 1 / 3, 0.0, 0.1),
    ("steps", 0.66, 0.0, 0.1),
    ("steps", 2 / 3, 0.0, 0.01),
    ("steps", 1.0, 0.0, 0.01),
    ("steps", 0.05, 0.1, 0.5),
    ("steps", 0.1, 0.1, 1.0),
    ("staircase", 0.499, 0, 1.0),
    ("staircase", 0.5, 0, 0.1),
    ("staircase", 0.75, 0, 0.01),
]


@pytest.mark.parametrize(("schedule", "progress", "warmup", "share"), SCHEDULES)
def test_the_learning_rate_follows_its_formula(schedule: str, progress: float, warmup: float, share: float) -> None:
    assert train.lr_at(schedule, 0.2, progress, warmup) == pytest.approx(0.2 * share, abs=1e-12)


def test_a_stage_of_any_length_takes_a_third_of_its_steps_at_each_rate() -> None:
    for third in range(1, 400):
        rates = [train.lr_at("steps", 1.0, step / (3 * third)) for step in range(3 * third)]
        assert rates == [1.0] * third + [0.1] * third + [0.01] * third


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="no schedule 'square'; choose constant, cosine, linear, onecycle"):
        train.lr_at("square", 0.1, 0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_identical_weights_whatever_happened_before(
    precision: str, threads: int, digits: data.Data
) -> None:
    one, same, other = tiny(), tiny(), tiny()
    run(one, digits, (0, 5), precision=precision)
    torch.rand(threads)
    run(same, digits, (0, 5), precision=precision)
    assert equal(one, same)
    run(other, digits, (0, 5), precision=precision, seed=1)  # another dropout, the same batches
    assert not equal(one, other)


def test_two_short_stretches_equal_a_long_one(threads: int, digits: data.Data) -> None:
    whole, cut = tiny(), tiny()
    run(whole, digits, (3, 8))
    run(cut, digits, (3, 3), (6, 5))
    assert equal(whole, cut)


def test_training_equals_the_loop_written_out(digits: data.Data) -> None:
    model, naive = tiny(), tiny()
    naive[6] = model[6] = nn.Identity()
    model.eval()  # training turns the modes back on
    trained = run(model, digits, (2, 5), lr=lambda step: 0.01 * step, task=classification(digits, 0.1))
    momenta = [torch.zeros_like(p) for p in naive.parameters()]
    losses, right = [], 0
    for step, (x, y) in zip(range(2, 7), digits.stream(2, 5), strict=True):
        logits = naive(x)
        chosen = functional.log_softmax(logits, 1)
        loss = -(0.9 * chosen[range(64), y] + 0.1 * chosen.mean(1)).mean()
        gradients = torch.autograd.grad(loss, list(naive.parameters()))
        with torch.no_grad():
            for p, gradient, momentum in zip(naive.parameters(), gradients, momenta, strict=True):
                momentum.mul_(0.9).add_(gradient + 5e-4 * p)
                p.sub_(0.01 * step * momentum)
        losses.append(loss.item())
        right += int((logits.argmax(1) == y).sum())
    for p, q in zip(model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert trained.loss == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert trained.accuracy == right / (5 * 64)
    assert trained.images == 5 * 64


def test_a_small_net_learns_digits(digits: data.Data) -> None:
    model = tiny(width=16)
    steps = 12 * digits.steps_per_epoch
    trained = [copy.deepcopy(model) for _ in range(2)]
    for precision, fresh in zip(("fp32", "bf16"), trained, strict=True):
        run(fresh, digits, (0, steps), lr=lambda step: train.lr_at("cosine", 0.1, step / steps), precision=precision)
        assert train.score(fresh, digits, "test").accuracy > 0.93
    assert all(p.dtype == torch.float32 for p in trained[1].parameters())
    assert not equal(*trained)  # bf16 rounds
    assert train.score(trained[0], digits, "val", "bf16").loss != train.score(trained[0], digits, "val").loss


def test_a_groups_scale_multiplies_its_rate(digits: data.Data) -> None:
    model = tiny()
    first = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight], "lr_scale": 0.0}, {"params": model[8].parameters()}], lr=1
    )
    asked: list[int] = []

    def lr(step: int) -> float:
        asked.append(step)
        return 0.1

    train.train(model, train.Loop(digits, optimizer, start=5, steps=3, seed=0), lr)
    assert asked == [5, 6, 7]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[8].weight, tiny()[8].weight)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.other = tiny(), tiny()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(x), self.other(x)


def test_a_loss_of_ones_own_sees_all_outputs_and_the_first_is_scored(digits: data.Data) -> None:
    model = TwoHeads()

    def both(output: Any, y: Tensor) -> Tensor:
        return functional.cross_entropy(output[0], y) + functional.cross_entropy(output[1], y)

    trained = run(model, digits, (0, 30), task=dataclasses.replace(classification(digits), loss=both))
    assert equal(model.main, model.other) is False  # their dropout differs
    assert trained.loss < 2 * math.log(10)
    assert train.score(model, digits, "val") == train.score(model.main, digits, "val")


@pytest.mark.parametrize("explode", [lambda step: math.inf if step == 7 else 0.1, lambda step: 1e30])
def test_a_loss_that_is_not_finite_is_told_before_it_spoils_the_weights(
    explode: Callable[[int], float], digits: data.Data
) -> None:
    model = tiny()
    with pytest.raises(UsageError, match=r"The loss became (nan|inf) in step \d+, at a learning rate of .*warm-up"):
        run(model, digits, (5, 40), lr=explode)
    broken: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(broken[1].bias, math.nan)
    weight = broken[1].weight.detach().clone()
    with pytest.raises(UsageError, match=r"The loss became nan in step 5, at a learning rate of 0\.1"):
        run(broken, digits, (5, 3))
    assert torch.equal(broken[1].weight, weight)


def test_progress_is_told_twice_a_second_and_at_the_end(digits: data.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 0.125)  # between two looks at the clock an eighth of a second goes by
    monkeypatch.setattr(train, "perf_counter", lambda: next(clock))
    told: list[Any] = []
    trained = run(tiny(), digits, (3, 150), listen=told.append)
    assert [t.step for t in told] == [*range(4, 150, 4), 150]  # one look a step: half a second is four of them
    assert {t.steps for t in told} == {150}
    *others, last = (t.images_per_second for t in told)
    assert set(others) == {4 * 64 / (5 * 0.125)}  # and one look when the four are through
    assert last == 2 * 64 / (2 * 0.125)  # the last step is told without a look before it
    parts = [t.step - before for t, before in zip(told, [0, *(t.step for t in told)], strict=False)]
    assert sum(t.loss * n for t, n in zip(told, parts, strict=True)) / 150 == pytest.approx(trained.loss)
    looks = 1 + 149 + len(told) + 1
    assert trained.seconds == looks * 0.125  # from the first look to one after the last step


def test_an_interrupt_passes_through(digits: data.Data) -> None:
    def lr(step: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return 0.1

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), digits, (0, 9), lr=lr)


def test_a_model_for_fewer_classes_is_refused_with_both_numbers(digits: data.Data) -> None:
    for use in (lambda model: run(model, digits, (0, 1)), lambda model: train.score(model, digits, "val")):
        with pytest.raises(UsageError, match=r"returns \[\d+, 9\] for \d+ images of digits, which has 10 classes"):
            use(tiny(classes=9))


def test_a_score_is_what_one_pass_over_the_split_gives_and_leaves_the_model_alone(digits: data.Data) -> None:
    model = tiny()
    run(model, digits, (0, 14))
    model[1].eval()  # a mode of its own is kept
    before = copy.deepcopy(model)
    scored = train.score(model, digits, "test")
    x, y = next(digits.split("test", batch=397))
    logits = before.eval()(x)
    assert scored.accuracy == (logits.argmax(1) == y).sum().item() / 397
    assert scored.loss == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert scored.images == 397
    assert scored == train.score(model, digits, "test")
    assert equal(model, before)
    assert [m.training for m in model.children()] == [True, False] + [True] * 7


def test_a_split_without_images_has_no_score(digits: data.Data) -> None:
    without = dataclasses.replace(digits, counts={"train": 1000, "val": 400, "test": 0})
    with pytest.raises(UsageError, match="has no test images"):
        train.score(tiny(), without, "test")


def test_recalibrating_takes_the_mean_over_batches_and_changes_nothing_else(digits: data.Data) -> None:
    model = tiny()
    run(model, digits, (0, 14))
    model.eval()
    model[1].momentum = 0.3
    before = copy.deepcopy(model)
    train.recalibrate(model, digits, 5)
    seen = [before[0](x) for x, _ in digits.stream(0, 5, varied=False)]
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    again = copy.deepcopy(before)
    train.recalibrate(again, digits, 5)
    assert equal(again, model)


def test_recalibrating_leaves_a_model_without_batch_norm_alone(digits: data.Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.BatchNorm1d(64, track_running_stats=False))
    before = copy.deepcopy(model)
    train.recalibrate(model, digits, 3)
    assert equal(model, before)


def test_auto_precision_is_bf16_only_where_the_processor_has_it_and_the_net_is_not_tiny() -> None:
    assert train.precision_of("fp32", CPU, 10**9) == "fp32"
    assert train.precision_of("bf16", CPU, 1) == "bf16"
    assert train.precision_of("auto", CPU, train.BF16_MACS - 1) == "fp32"
    has = torch.cpu._is_avx512_bf16_supported()
    assert train.precision_of("auto", CPU, train.BF16_MACS) == ("bf16" if has else "fp32")
    assert train.precision_of("auto", torch.device("meta"), 10**9) == "fp32"


def test_auto_layout_is_channels_last_unless_threads_would_share_the_cache_lines_of_most_layers(threads: int) -> None:
    even, odd, wide = tiny(width=16), tiny(width=24), tiny(width=40)
    one_of_two = nn.Sequential(nn.BatchNorm2d(24), nn.BatchNorm2d(40))
    assert train.memory_format_of("auto", CPU, even) == "channels_last"
    assert train.memory_format_of("auto", CPU, wide) == "channels_last"
    assert train.memory_format_of("auto", CPU, one_of_two) == "channels_last"
    assert train.memory_format_of("auto", CPU, odd) == ("channels_last" if threads == 1 else "contiguous")
    assert train.memory_format_of("contiguous", CPU, even) == "contiguous"
    assert train.memory_format_of("auto", torch.device("cuda"), odd) == "channels_last"


class Viewed(nn.Module):
    """Flattens as most people do, which works in one layout only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(x.shape[0], -1))  # type: ignore[no-any-return]


def test_a_model_that_channels_last_would_break_trains_in_the_other_layout() -> None:
    """Some break with an error in forward(), and strided 1x1 convolutions with corrupted memory in torch itself."""
    strided = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.Flatten(), nn.Linear(36, 10))
    assert train.runs_in_channels_last(tiny(), (1, 8, 8), CPU)
    assert not train.runs_in_channels_last(Viewed(), (1, 8, 8), CPU)
    assert not train.runs_in_channels_last(strided, (1, 8, 8), CPU)
    with pytest.raises(UsageError, match=r"can corrupt memory in the backward pass of 1, .* write auto or contiguous"):
        train.memory_format_of("channels_last", CPU, strided)
    assert train.memory_format_of("channels_last", torch.device("cuda"), strided) == "channels_last"


def test_trying_a_layout_changes_nothing() -> None:
    model, twin = tiny(), tiny()
    before = torch.get_rng_state()
    train.runs_in_channels_last(model, (1, 8, 8), CPU)
    assert equal(model, twin)
    assert model[0].weight.is_contiguous()
    assert model[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layout_changes_strides_and_not_the_function(digits: data.Data) -> None:
    model = tiny().eval()
    x, _ = next(digits.split("val"))
    expected = model(x)
    optimizer = sgd(model)
    train.place(model, CPU, "channels_last")
    assert all(p is q for p, q in zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True))
    assert model[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[4].weight.is_contiguous()
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)  # the layout spreads from the weights
    torch.testing.assert_close(model(x), expected)
    train.place(model, CPU, "contiguous")
    assert model[4].weight.is_contiguous()
    assert torch.equal(model(x), expected)
