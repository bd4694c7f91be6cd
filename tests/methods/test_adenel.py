"""AdeNeL grows the layers whose filters are all in use, by amounts that are formulas, and lands within the budget."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compress._plan import methods_of, plan
from compress._run import develop, prepare
from compress.errors import UsageError
from compress.methods.adenel.diiss import DIISS
from compress.methods.adenel.method import AdeNeL, State
from compress.methods.adenel.settings import PUBLISHED, Adenel
from compress.methods.prune.settings import L1
from compress.outcomes import plan_json, plan_lines
from compress.recipe.settings import Recipe
from compress.recipe.step import Tune
from compress.training.bench import Bench
from compress.training.train import lr_at

TINY = {"widths": [12, 16], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8, "classes": 4}
DEEP = TINY | {"widths": [16, 16, 20, 20], "pools": [2, 4]}  # enough layers for a budget to be filled closely
CONV1, CONV2 = "features.conv1", "features.conv2"
Build = Callable[..., tuple[Bench, AdeNeL]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noisy 8x8 images, each with a bright quarter: 128 to train on, 16 to validate."""
    y = np.arange(144) % 4
    x = np.random.default_rng(0).integers(0, 160, (144, 8, 8), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 90
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
    return path


@pytest.fixture
def build(pictures: Path) -> Build:
    """Make a lab with a method in it, ready to start; keywords are keys of `method` and, with an underscore, others."""

    def make(factory: str = "vgg", args: Mapping[str, Any] | None = None, **said: Any) -> tuple[Bench, AdeNeL]:
        others = {key.strip("_"): said.pop(key) for key in list(said) if key.endswith("_")}
        model = {"factory": f"compress.models:{factory}", "args": TINY | dict(args or {}) if args is None else args}
        data = {"source": "npz", "path": str(pictures), "val": 16}
        method = {"name": "adenel", "seed_width": 4, "tune": {"epochs": 1}, **said}
        keys = {"model": model, "data": data, "train": {"batch": 16}, "budget": "10MMACs", "method": method, **others}
        recipe = Recipe.model_validate(keys)
        lab, _ = prepare(recipe, "cpu")
        return lab, cast(AdeNeL, methods_of(recipe)[0])

    return make


def optimizer_of(lab: Bench) -> DIISS:
    assert isinstance(lab.optimizer, DIISS)
    return lab.optimizer


def coupled(lab: Bench) -> bool:
    return any(group["path"] and group["couple"] for group in lab.optimizer.param_groups)


def choose(lab: Bench, rows: Mapping[str, list[int]]) -> None:
    """Set Gamma by hand: by weight, the filters that are in the support."""
    for name, chosen in rows.items():
        weight = lab.model.get_parameter(name)
        gamma = torch.zeros_like(weight)
        gamma[chosen, 0] = 1e-30  # as small as it may be: any entry that is not zero counts
        lab.optimizer.state[weight]["gamma"] = gamma


def weight_of(lab: Bench, space: str) -> Tensor:
    return lab.model.get_parameter(f"{space}.weight")


# ---- the seed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed_width", "align", "convs"), [(4, 1, [3, 4, 4]), (1, 1, [1, 1, 1]), (4, 8, [3, 8, 8]), (9, 8, [3, 12, 16])]
)
def test_the_seed_is_narrow_where_a_convolution_is_judged_and_full_elsewhere(
    build: Build, seed_width: int, align: int, convs: list[int]
) -> None:
    net = TINY | {"widths": [3, 12, 24], "hidden": [20]}
    lab, method = build(args=net, seed_width=seed_width, align_=align)
    method.init(lab)
    assert list(lab.widths.values()) == [*convs, 20]
    smallest = lab.sketch()
    method.smallest(smallest)
    assert list(smallest.graph.widths.values()) == [min(align, convs[0]), align, align, 20]


def test_a_plan_says_which_free_spaces_no_round_grows(build: Build) -> None:
    lab, _ = build(args=TINY | {"hidden": [20]})
    planned = plan(lab.recipe)
    said = {space["name"]: space["remark"] for space in plan_json(planned)["spaces"]}
    assert {name for name, remark in said.items() if remark} == {"classifier.linear1"}
    (row,) = [line for line in plan_lines(planned) if line.startswith("classifier.linear1 ")]
    assert " ".join(row.split()[1:]) == "20 20 20 free; adenel widens it only to fill the budget"
    narrowed = plan(lab.recipe.model_copy(update={"method": L1()}))
    assert not any(space["remark"] for space in plan_json(narrowed)["spaces"])


def test_a_budget_smaller_than_the_seed_starts_landed(build: Build) -> None:
    whole, method = build(args=DEEP, seed_width=16)
    seed = whole.surgeon.graph.price.cost(method.seeds(whole.surgeon.graph))
    lab, method = build(args=DEEP, seed_width=16, budget_=f"{seed.params // 2}params")
    state = method.init(lab)
    assert (state.phase, state.why) == ("tune", "the seed fills the budget")
    assert 0.99 <= lab.budget.utilisation(lab.cost()) <= 1
    assert not coupled(lab)


def test_a_growth_that_would_never_be_trained_is_refused() -> None:
    """Its columns are zero still, so that finalization would cut it away again and leave the budget unfilled."""
    with pytest.raises(ValueError, match="the last growth would never be trained"):
        Adenel(tune=Tune(epochs=0))


def test_a_model_without_convolutions_that_can_grow_is_refused(build: Build, tmp_path: Path) -> None:
    net = "from torch import nn\nmake = lambda: nn.Sequential(nn.Conv2d(1, 6, 1), nn.Flatten(), nn.Linear(384, 4))\n"
    (tmp_path / "net.py").write_text(net)
    keys = {"model": {"factory": "./net.py:make"}, "method": {"name": "adenel"}, "budget": "1MMACs"}
    with pytest.raises(UsageError, match=r"nothing to grow.*include_1x1: true"):
        prepare(Recipe.model_validate(keys).placed(tmp_path), "cpu")
    keys["method"] = {"name": "adenel", "include_1x1": True, "seed_width": 2}
    with pytest.raises(UsageError, match="has 10 classes"):  # now it can grow; the next thing is refused
        prepare(Recipe.model_validate(keys).placed(tmp_path), "cpu")


def test_judged_weights_follow_a_path_and_vectors_have_no_weight_decay(build: Build) -> None:
    lab, method = build(args=TINY | {"hidden": [6], "bias": True}, train_={"batch": 16, "weight_decay": 0.01})
    method.init(lab)
    found = {
        name: (group["path"], group["weight_decay"])
        for group in lab.optimizer.param_groups
        for name, p in lab.model.named_parameters()
        if any(p is member for member in group["params"])
    }
    judged = {f"{CONV1}.weight", f"{CONV2}.weight"}
    matrices = {"classifier.linear1.weight", "classifier.linear2.weight"}
    paths = dict.fromkeys(judged, (True, 0.01)) | dict.fromkeys(matrices, (False, 0.01))
    assert found == dict.fromkeys(found, (False, 0)) | paths
    assert coupled(lab)
    assert sum(len(group["params"]) for group in lab.optimizer.param_groups) == len(list(lab.model.parameters()))


@pytest.mark.parametrize(("asked", "kernels"), [(False, {(3, 3)}), (True, {(1, 1), (3, 3)})])
def test_convolutions_of_one_pixel_are_judged_only_where_that_is_asked_for(
    build: Build, asked: bool, kernels: set[tuple[int, int]]
) -> None:
    args = {"depths": [1, 1], "widths": [8, 16], "in_channels": 1, "classes": 4, "option": "B"}
    lab, method = build("resnet_cifar", args, include_1x1=asked)
    method.init(lab)
    path = next(group["params"] for group in lab.optimizer.param_groups if group["path"])
    assert {tuple(weight.shape[2:]) for weight in path} == kernels


# ---- the path through a round ---------------------------------------------------------------------------------------


def naive_thresholds(weight: Tensor, mode: str, clock: float, settings: Adenel) -> list[float]:
    norms = [float(row.norm()) for row in weight.detach()]
    reference = {"filter": norms, "layer": [sum(norms) / len(norms)] * len(norms)}
    if mode == "absolute":
        return [settings.lambda_value] * len(norms)
    return [settings.theta * clock * norm for norm in reference[mode]]


def test_a_filter_is_selected_when_its_time_average_exceeds_the_threshold(build: Build) -> None:
    """The closed form of `diiss` on the method's own net, with the method's own thresholds and a rate that rises."""
    lab, method = build(round="24 steps", checkpoint_="1 step", warmup="10 steps", theta=0.9, max_rounds=1)
    state = method.init(lab)
    rates = [0.1 * min(1, (step + 1) / 10) for step in range(24)]
    paths = {}
    for space in (CONV1, CONV2):
        weight = weight_of(lab, space)
        lambdas = naive_thresholds(weight, "filter", sum(rates) / 100, method.settings)
        z, chosen = torch.zeros_like(weight, dtype=torch.float64), torch.zeros(len(weight), dtype=torch.bool)
        paths[space] = z, torch.tensor(lambdas), chosen
    entered = 0
    for rate in rates[:-1]:  # the last step judges and grows
        before = {space: weight_of(lab, space).detach().double() for space in paths}
        state = method.step(lab, state)
        for space, (z, goals, chosen) in paths.items():
            z += rate / 100 * before[space]
            share = z.flatten(1).norm(dim=1) / goals
            told = optimizer_of(lab).support(lab.model.get_parameter(f"{space}.weight"))
            clear = ~chosen & ((share - 1).abs() > 1e-5)  # from its entry on a filter's Z is another
            assert torch.equal(told[clear], (share > 1)[clear])
            entered += int((told & ~chosen).sum())
            chosen |= told
    assert entered > 0


@pytest.mark.parametrize("mode", ["filter", "layer", "absolute"])
def test_every_round_begins_at_zero_with_thresholds_from_the_weights_of_then(build: Build, mode: str) -> None:
    lambdas = {"lambda_mode": mode, "lambda_value": 0.5}
    lab, method = build(round="3 steps", checkpoint_="1 step", grow="all", warmup="5 steps", **lambdas)
    state = method.init(lab)
    for _ in range(3):
        state = method.step(lab, state)
    assert (state.round, state.at) == (1, 0)
    before = {space: weight_of(lab, space).detach().clone() for space in (CONV1, CONV2)}
    method.step(lab, state)
    rates = [0.1 * min(1, (step + 1) / 5) for step in (3, 4, 5)]
    for space, weight in before.items():
        now = lab.optimizer.state[weight_of(lab, space)]
        torch.testing.assert_close(now["z"], rates[0] / 100 * weight)  # Z and Gamma were zero before this one step
        expected = naive_thresholds(weight, mode, sum(rates) / 100, method.settings)
        torch.testing.assert_close(now["threshold"], torch.tensor(expected))


# ---- what grows -----------------------------------------------------------------------------------------------------


def test_the_share_of_a_layer_is_that_of_its_filters_with_a_gamma_that_is_not_zero(build: Build) -> None:
    lab, method = build()
    method.init(lab)
    choose(lab, {f"{CONV1}.weight": [0, 2, 3], f"{CONV2}.weight": []})
    assert method.support(lab) == {CONV1: 0.75, CONV2: 0.0}


@pytest.mark.parametrize(("share", "grows"), [(0.8, True), (1.0, True), (0.79, False), (0.0, False)])
def test_a_layer_grows_when_its_share_is_at_least_tau_and_no_other(build: Build, share: float, grows: bool) -> None:
    lab, method = build(amount="fixed", filters=3)
    state = method.judge(lab, replace(method.init(lab), round=1), {CONV1: share, CONV2: 0.5})
    assert lab.widths == {CONV1: 7 if grows else 4, CONV2: 4}
    assert replace(state, full={}) == State(round=1, empty=0 if grows else 1)


def test_a_seed_is_a_number_of_filters_or_a_share_of_the_full_width(build: Build) -> None:
    for seed_width, widths in ((5, [5, 5]), (0.5, [6, 8]), (0.01, [1, 1]), (100, [12, 16])):
        lab, method = build(seed_width=seed_width)
        method.init(lab)
        assert [lab.widths[CONV1], lab.widths[CONV2]] == widths
    for wrong in (0, 1.5, -1, True):
        with pytest.raises(ValidationError):
            Adenel.model_validate({"seed_width": wrong})


def test_a_random_gate_passes_half_of_the_layers_and_the_same_ones_again(build: Build) -> None:
    lab, method = build(grow="random", amount="fixed", filters=1)
    state, passed = method.init(lab), []
    for number in range(1, 41):
        before = lab.widths
        method.judge(lab, replace(state, round=number), {CONV1: 0.0, CONV2: 0.0})
        passed.append([lab.widths[name] > before[name] for name in (CONV1, CONV2)])
        lab.resize(before)
    assert 25 < sum(map(sum, passed)) < 55  # of 80, 3 standard deviations
    assert any(one != other for one, other in passed)
    method.judge(lab, replace(state, round=1), {CONV1: 0.0, CONV2: 0.0})
    assert [lab.widths[name] > 4 for name in (CONV1, CONV2)] == passed[0]


def test_layers_far_wider_than_the_narrowest_for_their_full_widths_are_held_back(build: Build) -> None:
    lab, method = build(grow="all", amount="fixed", filters=1, spread=2.0)
    state = method.init(lab)
    assert state.full == {CONV1: 12, CONV2: 16}
    lab.resize({CONV1: 3, CONV2: 9})  # a quarter, and 9/16
    method.judge(lab, state, {CONV1: 1.0, CONV2: 1.0})
    assert lab.widths == {CONV1: 4, CONV2: 9}


def test_growth_by_score_is_in_proportion_to_its_power_and_smoothed_over_rounds(build: Build) -> None:
    lab, method = build(grow="score", amount="fixed", filters=10, sharpness=2.0)
    state = method.init(lab)
    method.judge(lab, replace(state, scores={CONV1: 0.5, CONV2: 1.0}), {CONV1: 0.0, CONV2: 0.0})
    assert lab.widths == {CONV1: 4 + 4, CONV2: 4 + 16}  # 10 x 0.25 / 0.625 and 10 x 1 / 0.625
    weights = {name: weight_of(lab, name) for name in (CONV1, CONV2)}
    for weight in weights.values():
        lab.optimizer.state[weight]["z"] = 0.3 * weight.detach()
    for group in lab.optimizer.param_groups:
        group["clock"] = 0.5
    first = method.scores(lab, {})
    assert first == pytest.approx({CONV1: 0.6, CONV2: 0.6})
    assert method.scores(lab, {CONV1: 0.8})[CONV1] == pytest.approx(0.7)


def test_a_shape_that_is_rewound_has_weights_drawn_anew(build: Build) -> None:
    for rewind in (False, True):
        lab, method = build(grow="all", rewind=rewind, round="1 step", checkpoint_="1 step", max_rounds=1)
        state = method.init(lab)
        before = weight_of(lab, CONV1).detach().clone()
        state = method.step(lab, state)
        apart = (weight_of(lab, CONV1)[: len(before)] - before).norm() > 0.1 * before.norm()
        assert (state.phase, bool(apart), method.step(lab, state).at) == ("tune", rewind, 1)


def test_all_layers_grow_where_the_control_asks_for_it(build: Build) -> None:
    lab, method = build(amount="fixed", filters=3, grow="all")
    method.judge(lab, replace(method.init(lab), round=1), {CONV1: 0.0, CONV2: 0.5})
    assert lab.widths == {CONV1: 7, CONV2: 7}


def test_published_columns_are_drawn_as_the_rows_are(build: Build) -> None:
    lab, method = build(amount="fixed", filters=64, new_columns="kaiming")
    method.judge(lab, replace(method.init(lab), round=1), {CONV1: 1.0, CONV2: 0.0})
    columns = weight_of(lab, CONV2)[:, 4:]
    assert columns.std().item() == pytest.approx((2 / (68 * 9)) ** 0.5, rel=0.1)


def test_a_residual_stage_has_the_mean_share_of_its_convolutions_and_grows_as_one(build: Build) -> None:
    """Option A: stage 2's convolutions make the channels of stage 1 first, then those that zeros are padded for."""
    args = {"depths": [1, 1], "widths": [8, 16], "in_channels": 1, "classes": 4}
    lab, method = build("resnet_cifar", args, amount="fixed", filters=2)
    method.init(lab)
    graph = lab.surgeon.graph
    makers = {name: [tensor for tensor, _ in graph.spaces[name].producers] for name in graph.free}
    narrow = next(name for name, tensors in makers.items() if "conv1.weight" in tensors)
    shared = next(t for t in makers[narrow] if any(t in tensors for n, tensors in makers.items() if n != narrow))
    behind = next(name for name, tensors in makers.items() if shared in tensors and name != narrow)
    alone = [tensor for tensor in makers[narrow] if tensor != shared]
    rows = {tensor: [0] for tensors in makers.values() for tensor in tensors} | {t: [0, 1, 2, 3] for t in alone}
    choose(lab, rows | {shared: [1, 4, 5, 6, 7]})  # one filter of stage 1's four, all of those behind
    support = method.support(lab)
    assert support[narrow] == pytest.approx((len(alone) * 1.0 + 0.25) / (len(alone) + 1))
    assert support[behind] == 1.0
    before = lab.model.get_parameter(shared).detach().clone()
    method.judge(lab, State(round=1), {name: float(name == narrow) for name in support})
    assert [len(lab.model.get_parameter(t)) for t in alone] == [6] * len(alone)
    after = lab.model.get_parameter(shared)
    assert torch.equal(after[[0, 1, 2, 3, 6, 7, 8, 9], :4], before[:, :4])  # new channels behind stage 1's own
    assert lab.model.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


# ---- the end of growing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", ["200kFLOPs", "7kparams", "60kB", "300kMACs, 9kparams"])
def test_the_round_that_would_cross_the_budget_lands(build: Build, limits: str) -> None:
    lab, method = build(args=DEEP, budget_=limits, amount="fixed", filters=40)
    state = method.init(lab)
    state = method.judge(lab, replace(state, round=1), dict.fromkeys(lab.widths, 0.9))
    assert (state.phase, state.at, state.why) == ("tune", 0, "the budget is filled")
    assert 0.99 <= lab.budget.utilisation(lab.cost()) <= 1
    assert not coupled(lab)


def test_widths_are_multiples_of_what_align_says(build: Build) -> None:
    lab, method = build(budget_="300kMACs", align_=8, amount="fixed", filters=3)
    state = method.init(lab)
    for number in range(1, 30):
        state = method.judge(lab, replace(state, round=number), {CONV1: 1.0, CONV2: 0.9})
        assert all(width % 8 == 0 for width in lab.widths.values())
        if state.phase != "grow":
            break
    assert state.phase == "tune"
    assert 0.85 <= lab.budget.utilisation(lab.cost()) <= 1


def test_alignment_delays_growth_by_less_than_one_unit_and_takes_nothing_away(build: Build) -> None:
    """Rounding each growth up instead would grow cheap and dear layers alike, whatever the amounts say."""
    plain, method = build(args=DEEP, budget_="10MMACs", seed_width=8, amount="fixed", filters=3)
    aligned, rounded = build(args=DEEP, budget_="10MMACs", seed_width=8, align_=8, amount="fixed", filters=3)
    free, held = method.init(plain), rounded.init(aligned)
    for number in range(1, 20):
        support = {name: float((number + place) % 4 > 0) for place, name in enumerate(plain.widths, 1)}
        free = method.judge(plain, replace(free, round=number), support)
        held = rounded.judge(aligned, rounded.load(asdict(replace(held, round=number))), support)
        assert aligned.widths == {name: width // 8 * 8 for name, width in plain.widths.items()}
        assert held.due == {name: width % 8 for name, width in plain.widths.items() if width % 8}
        assert free.due == {}
    assert min(aligned.widths.values()) >= 32


def test_an_aligned_net_that_is_not_to_fill_its_budget_ends_aligned(build: Build) -> None:
    lab, method = build(budget_="10MMACs", align_=8, amount="fixed", filters=11, max_rounds=1, on_saturation="stop")
    state = method.judge(lab, replace(method.init(lab), round=1), {CONV1: 1.0, CONV2: 0.0})
    assert (state.phase, lab.widths) == ("tune", {CONV1: 16, CONV2: 8})


def test_two_empty_rounds_lower_tau_to_the_best_layer_where_the_budget_is_to_be_filled(build: Build) -> None:
    lab, method = build(amount="fixed", filters=3)
    weak = {CONV1: 0.25, CONV2: 0.5}
    state = method.judge(lab, replace(method.init(lab), round=1), weak)
    assert (state.empty, lab.widths) == (1, {CONV1: 4, CONV2: 4})
    state = method.judge(lab, replace(state, round=2), weak)
    assert (state.phase, state.empty, lab.widths) == ("grow", 2, {CONV1: 4, CONV2: 7})
    state = method.judge(lab, replace(state, round=3), {CONV1: 0.9, CONV2: 0.5})
    assert (state.empty, lab.widths) == (0, {CONV1: 7, CONV2: 7})


def test_two_empty_rounds_end_growing_where_it_is_to_stop(build: Build) -> None:
    lab, method = build(on_saturation="stop")
    method.init(lab)
    state = method.judge(lab, State(round=7, empty=1), {CONV1: 0.25, CONV2: 0.5})
    assert (state.phase, state.why) == ("tune", "no layer reached tau in 2 rounds")
    assert lab.widths == {CONV1: 4, CONV2: 4}


@pytest.mark.parametrize("share", [0.9, 0.1])
@pytest.mark.parametrize("saturation", ["fill", "stop"])
def test_the_last_round_fills_the_budget_or_stops_below_it(build: Build, saturation: str, share: float) -> None:
    lab, method = build(
        args=DEEP, budget_="200kFLOPs", max_rounds=2, on_saturation=saturation, amount="fixed", filters=1
    )
    state, weak = method.init(lab), dict.fromkeys(lab.widths, 0.1)
    state = method.judge(lab, replace(state, round=1), weak | {CONV1: 0.9})
    assert (state.phase, list(lab.widths.values())) == ("grow", [5, 4, 4, 4])
    state = method.judge(lab, replace(state, round=2), weak | {CONV1: share})
    assert state.phase == "tune"
    if saturation == "fill":
        assert 0.99 <= lab.budget.utilisation(lab.cost()) <= 1
        assert state.why == "the budget is filled"
    else:
        assert list(lab.widths.values()) == [6 if share >= 0.8 else 5, 4, 4, 4]
        assert state.why == "2 rounds, the most allowed"


@pytest.mark.parametrize(("limit", "saturation"), [("200kMACs", "fill"), ("10MMACs", "stop")])
def test_pruning_removes_exactly_the_unsupported_filters_and_then_the_budget_is_filled(
    build: Build, limit: str, saturation: str
) -> None:
    ends: dict[str, Any] = {"empty_rounds": 1, "max_rounds": 1, "on_saturation": saturation}
    lab, method = build(args=DEEP, budget_=limit, seed_width=6, prune_unsupported=True, **ends)
    state = method.init(lab)
    everything = {f"{space}.weight": list(range(6)) for space in lab.widths}
    choose(lab, everything | {f"{CONV1}.weight": [1, 3, 4], f"{CONV2}.weight": [0, 1, 2, 5]})
    before = {space: weight_of(lab, space).detach().clone() for space in (CONV1, CONV2)}
    state = method.judge(lab, replace(state, round=1), dict.fromkeys(lab.widths, 0.5))
    assert state.phase == "tune"
    assert torch.equal(weight_of(lab, CONV1)[:3], before[CONV1][[1, 3, 4]])
    assert torch.equal(weight_of(lab, CONV2)[:4, :3], before[CONV2][[0, 1, 2, 5]][:, [1, 3, 4]])
    if saturation == "fill":
        assert 0.99 <= lab.budget.utilisation(lab.cost()) <= 1
    else:
        assert list(lab.widths.values()) == [3, 4, 6, 6]


# ---- from end to end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["1 step", "3 steps", "1 epoch"])
def test_the_rate_of_tuning_takes_one_course_however_it_is_cut(build: Build, cut: str) -> None:
    tune = {"epochs": 1.5, "schedule": "cosine", "lr": 0.3, "warmup": 0.25}
    lab, method = build(checkpoint_=cut, round="4 steps", on_saturation="stop", max_rounds=1, tune=tune)
    state, rates = method.init(lab), {}
    while method.done(lab, state) is None:
        state = method.step(lab, state)
        rates[lab.step] = lab.optimizer.param_groups[0]["lr"]
    assert lab.step == 4 + 12
    assert rates == {n: lr_at("cosine", 0.3, (n - 5) / 12, 0.25) if n > 4 else 0.1 for n in rates}


def test_the_default_preset_fills_its_budget_on_digits(tmp_path: Path) -> None:
    net = {"widths": [16, 24, 32], "pools": [2, 3], "last_pool": "global", "in_channels": 1, "size": 8}
    keys = {
        "model": {"factory": "compress.models:vgg", "args": net},
        "method": {"name": "adenel", "seed_width": 4, "round": "20 steps", "theta": 0.97, "tune": {"epochs": 4}},
        "train": {"batch": 50},
        "budget": "120kFLOPs",
    }
    recipe = Recipe.model_validate(keys)
    lab, plan = prepare(recipe, "cpu")
    develop(lab, methods_of(recipe), tmp_path)
    macs = [note.macs for note in lab.history]
    assert [note.event for note in lab.history][:2] == ["seed", "round"]
    assert macs == sorted(macs)
    assert 0.99 <= plan.budget.utilisation(lab.cost()) <= 1
    assert lab.score("test").accuracy > 0.8


def test_the_published_preset_runs_from_end_to_end_as_published(build: Build, tmp_path: Path) -> None:
    changed = {"seed_width": 4, "round": "8 steps", "lambda_value": 0.005}
    lab, method = build(preset="published", tune={"epochs": 1}, budget_="200kMACs", **changed)
    said = method.settings.model_dump(mode="json")
    assert {key: said[key] for key in PUBLISHED} == {**PUBLISHED, **changed}
    assert said["tune"] == {"epochs": 1, "schedule": "steps", "lr": None, "warmup": 0}
    develop(lab, [method], tmp_path)
    rounds = [note.numbers for note in lab.history if note.event == "round"]
    width = dict(rounds[-2]["widths"])
    assert len(rounds) > 1
    assert all(n >= width[space] for space, n in lab.widths.items())
    path = next(group for group in lab.optimizer.param_groups if group["path"])
    assert path["couple"]  # the published code tunes with DI-ISS
    assert path["clock"] == pytest.approx(8 * 0.1 / 100 * (1 + 0.1 + 0.01) / 3, rel=0.2)  # begun anew when tuning began
    assert isinstance(lab.model, nn.Module)


def test_as_published_hidden_linear_layers_follow_a_path_entry_by_entry(build: Build) -> None:
    lab, method = build(preset="published", args=TINY | {"hidden": [6]}, seed_width=4, round="2 steps")
    state = method.step(lab, method.init(lab))
    entries = [group for group in lab.optimizer.param_groups if group["penalty"] == "entry"]
    linear = lab.model.get_parameter("classifier.linear1.weight")
    assert [w is linear for group in entries for w in group["params"]] == [True]
    assert entries[0]["path"]
    assert entries[0]["couple"]
    assert state.round == 1
    assert not any("linear" in name for name in method.support(lab))  # and are never asked whether they should grow
