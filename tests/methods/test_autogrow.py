"""AutoGrow does what its Algorithm 1 says, keeps and fills a budget, and goes on after an interruption."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compress
from compress._plan import methods_of, plan
from compress._run import develop, prepare, run
from compress.budget.limits import Budget
from compress.errors import Infeasible, UsageError
from compress.methods.autogrow import method as autogrow
from compress.methods.autogrow.method import AutoGrow, State, gained, initialise, useful
from compress.methods.autogrow.settings import Autogrow
from compress.methods.protocol import Lab
from compress.recipe.keys import Duration
from compress.recipe.settings import Recipe
from compress.training.bench import Bench
from compress.training.train import Loop, Score, Trained

NET = {"width": 4, "in_channels": 1}
Event = tuple[str, ...]


def recipe(*, budget: str = "160kMACs", factory: str = "basic3resnet", **method: Any) -> Recipe:
    said = {"name": "autogrow", "interval": "5 steps", "patience": "10 steps", "tune": {"epochs": 1}} | method
    return Recipe.model_validate(
        {
            "model": {"factory": f"compress.models:{factory}", "args": NET},
            "data": {"source": "digits", "train": 100},
            "train": {"batch": 20, "lr": 0.05},
            "method": {**said, "scale_to_data": False},
            "budget": budget,
            "checkpoint": "5 steps",
        }
    )


# ---- the order of Algorithm 1, on scripted accuracies ---------------------------------------------------------------


class Desk:
    """A lab without tensors: accuracies as they were written down, blocks that are only counted."""

    def __init__(self, scores: Sequence[float], stages: int, room: int, metric: str | None, sign: int) -> None:
        self.scores: Iterator[float] = iter(scores)
        self.events: list[Event] = []
        self.depths = dict.fromkeys((f"s{n}" for n in range(stages)), 1)
        self.model = self.original = None
        self.step, self.epoch, self.share, self.images = 0, 1, 1.0, {"val": 1000}
        self.keys = SimpleNamespace(lr=0.1, metric=metric, sign=sign)
        self.budget = SimpleNamespace(holds=lambda _: sum(self.depths.values()) - stages < room)

    def stages(self, names: object) -> list[Any]:
        def stage(name: str) -> Any:
            return SimpleNamespace(name=name, blocks=("0",), depth=lambda _: self.depths[name])

        class Named(SimpleNamespace):
            __hash__ = object.__hash__

        return [Named(**vars(stage(name))) for name in self.depths]

    def train(self, steps: int, lr: Callable[[int], float]) -> Trained:
        self.step += steps
        return Trained(loss=1.0, accuracy=0.5, images=steps, seconds=0.0)

    def score(self) -> Score:
        return Score(accuracy=next(self.scores), loss=1.0, images=1, sign=self.keys.sign)

    def sketch(self) -> None:
        pass

    @property
    def widths(self) -> dict[str, int]:
        return {}

    def note(self, event: str, **told: Any) -> None:
        if event in ("grown", "left"):
            self.events.append((event, told["stage"], *([told["why"]] if event == "left" else [])))


def played(
    scores: Sequence[float], stages: int = 3, room: int = 10**6, metric: str | None = None, sign: int = 1, **said: Any
) -> list[Event]:
    """The events of growing with these scores, one an epoch, until the list of stages is empty."""
    desk = Desk(scores, stages, room, metric, sign)
    method = AutoGrow(Autogrow(**said))
    names = tuple(desk.depths)
    state = State(alive=names, next=names[0])

    def append(self: object, lab: Any, goal: dict[Any, int], widths: object, trained: float) -> None:
        for stage, depth in goal.items():
            desk.depths[stage.name] = depth

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoGrow, "append", append)
        patch.setattr(AutoGrow, "end_growing", lambda self, lab, state: state)
        flat = SimpleNamespace(widths={}, price=SimpleNamespace(cost=lambda _: None))
        patch.setattr(autogrow, "deeper", lambda *_: SimpleNamespace(graph=flat))
        try:
            while state.alive:
                state = method.step(cast(Lab, desk), state)
        except StopIteration:
            pass
    return desk.events


def algorithm_1(scores: Sequence[float], stages: int, room: int, k: int, j: int, policy: str) -> list[Event]:
    """The paper's algorithm, written down as naively as can be: one list, one pointer, epochs one by one."""
    tau, ring = 0.05, [f"s{n}" for n in range(stages)]
    growing, grown = ring[0], None
    best: list[float] = []
    events: list[Event] = []
    blocks, before_growth, judged = 0, 0.0, True
    for epoch, score in enumerate(scores, 1):
        best.append(max([*best, score]))
        if epoch % k:
            continue

        def delta(window: int) -> float:
            return best[-1] - best[-1 - window] if len(best) > window else best[-1]

        if policy == "periodic":
            stop, grow = delta(j) < tau, True
        else:
            grow = delta(k) < tau
            stop = grow and not judged and best[-1] - before_growth <= tau
            judged = judged or grow
        if stop and grown in ring:
            after = ring[(ring.index(grown) + 1) % len(ring)]
            growing = after if growing == grown else growing
            ring.remove(grown)
            events.append(("left", grown, "accuracy"))
        while grow and ring:
            after = ring[(ring.index(growing) + 1) % len(ring)]
            if blocks >= room:
                ring.remove(growing)
                events.append(("left", growing, "budget"))
                growing = after
                continue
            blocks, before_growth, judged = blocks + 1, best[-1], False
            events.append(("grown", growing))
            grown, growing = growing, after
            break
        if not ring:
            return events
    return events


@settings(max_examples=150)
@given(
    scores=st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=60),
    stages=st.integers(1, 4),
    room=st.integers(0, 12),
    k=st.integers(1, 4),
    j=st.integers(1, 9),
    policy=st.sampled_from(["periodic", "convergent"]),
)
def test_stages_grow_and_leave_in_the_order_of_algorithm_1(
    scores: list[float], stages: int, room: int, k: int, j: int, policy: str
) -> None:
    said = {"interval": f"{k} epochs", "patience": f"{j} epochs", "tau": 0.05, "policy": policy}
    wanted = algorithm_1(scores, stages, room, k, j, policy)
    assert played(scores, stages, room, **said) == wanted


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 20), min_size=4, max_size=24), st.sampled_from([1, 2]), st.sampled_from([2, 4]),
    st.sampled_from(["periodic", "convergent"]), st.sampled_from([0.5, 8.0]), st.integers(-900, 900),
)  # fmt: skip
def test_a_metric_of_any_unit_and_direction_decides_as_its_order_does(
    scores: list[int], k: int, j: int, policy: str, times: float, more: int
) -> None:
    # Eighths and halves keep every sum exact, so that nothing hangs on rounding.
    way = {"policy": policy, "interval": f"{k} epochs", "patience": f"{j} epochs", "tau": 0.0625, "metric": "./m.py:m"}
    plain = played([float(score) for score in scores], **way)
    assert played([times * score + more for score in scores], **way) == plain
    assert played([-times * score + more for score in scores], sign=-1, **way) == plain


def test_scores_below_zero_that_rise_do_not_end_the_growing() -> None:
    rising = [-5.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]
    way = {"interval": "1 epoch", "patience": "2 epochs", "metric": "./m.py:m"}
    assert [kind for kind, *_ in played(rising, **way)] == ["grown"] * 8
    falling = [-score for score in rising]  # a loss
    assert [kind for kind, *_ in played(falling, sign=-1, **way)] == ["grown"] * 8
    assert "left" in [kind for kind, *_ in played(falling, **way)]


def test_the_list_of_three_stages_empties_after_the_last_gain() -> None:
    scores = [0.1, 0.2, 0.3, *[0.3] * 20]
    events = played(scores, interval="1 epoch", patience="2 epochs", tau=0.01)
    grown = [("grown", f"s{n % 3}") for n in range(4)]
    assert events == [
        *grown,  # the check of epoch 5 is the first in which nothing was gained for two epochs
        ("left", "s0", "accuracy"),  # the stage that grew last
        ("grown", "s1"),
        ("left", "s1", "accuracy"),
        ("grown", "s2"),
        ("left", "s2", "accuracy"),
    ]


def test_no_stage_can_leave_before_anything_was_grown_or_within_the_patience() -> None:
    flat = [0.0] * 5
    assert played([0.5] * 5, interval="1 epoch", patience="5 epochs", tau=0.01) == [
        ("grown", f"s{n % 3}") for n in range(5)
    ]
    assert played(flat[:1], interval="1 epoch", patience="1 epoch", tau=0.01) == [("grown", "s0")]


def test_convergent_growing_waits_until_accuracy_stands_still_and_judges_a_growth_once() -> None:
    said = {"policy": "convergent", "interval": "1 epoch", "tau": 0.01}
    rising = [0.1, 0.2, 0.3, 0.3]
    assert played(rising, **said) == [("grown", "s0")]
    assert played([*rising, 0.4, 0.4], **said) == [("grown", "s0"), ("grown", "s1")]  # s0 helped
    useless = [("grown", "s0"), ("left", "s0", "accuracy"), ("grown", "s1")]
    assert played([*rising, 0.3], **said) == useless


def test_the_running_maximum_decides_and_not_the_last_accuracy() -> None:
    best = ((1, 0.5), (2, 0.5), (3, 0.7), (4, 0.7))
    assert gained(best, 1) == 0
    assert gained(best, 2) == pytest.approx(0.2)
    assert gained(best, 4) == 0.7  # younger than that: all of it


def test_what_came_after_the_last_gain_is_known() -> None:
    state = State(best=((3, 0.5), (6, 0.8), (9, 0.801), (12, 0.801)), growths=((3, "a"), (6, "b"), (9, "a")))
    assert useful(state, 0.01, {"a": 3, "b": 2}) == {"a": 2, "b": 1}
    assert useful(state, 0.0, {"a": 3, "b": 2}) == {"a": 2, "b": 2}


# ---- initialisers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "low", "high", "mean", "std"),
    [
        ("zero", 0, 0, 0, 0),
        ("gauss", -9, 9, 0, 1),
        ("uniform", 0, 1, 0.5, 12**-0.5),
        ("centred", -(3**0.5), 3**0.5, 0, 1),
        ("adam", 1, 1, 1, 0),
    ],
)
def test_initialisers_have_their_range_mean_and_standard_deviation(
    init: Any, low: float, high: float, mean: float, std: float
) -> None:
    tensor = torch.ones(40_000)
    initialise(tensor, Autogrow(init=init), torch.Generator().manual_seed(0))
    assert low <= tensor.min() <= tensor.max() <= high
    assert float(tensor.mean()) == pytest.approx(mean, abs=0.02)
    assert float(tensor.std()) == pytest.approx(std, abs=0.02)
    again = torch.ones(40_000)
    initialise(again, Autogrow(init=init, init_scale=0.5), torch.Generator().manual_seed(0))
    assert torch.equal(again, tensor if init == "adam" else tensor * 0.5)


def test_growing_with_zeros_does_not_change_the_accuracy_and_adam_trains_the_new_norms_alone() -> None:
    lab, _ = prepare(recipe(init="adam", on_saturation="stop"), "cpu")
    method = cast(AutoGrow, methods_of(lab.recipe)[0])
    method.init(lab)
    before = {name: p.detach().clone() for name, p in lab.model.named_parameters()}
    stage = lab.stages(None)[0]
    method.append(lab, {stage: 2}, {}, trained=0.0)
    now = dict(lab.model.named_parameters())
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    assert (lab.step, set(now) - set(before)) == (5, {n for n in now if n.startswith("stage1.1.")})
    norm = lab.model.get_submodule("stage1.1.bn2")
    assert not torch.equal(norm.get_parameter("weight"), torch.ones(4))
    assert torch.equal(lab.model.get_submodule("stage1.1.bn1").get_parameter("weight"), torch.ones(4))
    zeros = AutoGrow(Autogrow(init="zero"))
    score = lab.score()
    zeros.append(lab, {stage: 3}, {}, trained=0.0)
    assert lab.score() == score


# ---- budgets and whole runs -----------------------------------------------------------------------------------------


def test_a_seed_that_does_not_fit_is_refused_before_any_training() -> None:
    planned = plan(recipe(budget="30kMACs"))
    assert not planned.feasible
    with pytest.raises(Infeasible, match="the smallest network that this recipe can make"):
        planned.refuse()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autogrow") / "out"
    run(recipe(), out=folder)
    return folder


def test_a_run_grows_fills_its_budget_and_loads_again(finished: Path) -> None:
    told = compress.run(recipe(), out=finished, resume=True).report.plain()
    (row,) = told["budget"]
    assert row["pass"]
    assert row["utilisation"] >= 0.97  # one inner filter of these four-filter stages is 2 % of the budget
    events = [line["event"] for line in told["history"]]
    assert events[:3] == ["seed", "round", "grown"]
    assert events[-2:] == ["filled", "tune"]
    assert told["history"][-2]["depths"] != {"stage1": 1, "stage2": 1, "stage3": 1}
    net = compress.load(finished).eval()
    assert compress.measure(net, (1, 8, 8)).macs == row["value"]
    assert compress.verify(finished, "160kMACs").code == 0


def test_a_run_that_was_killed_in_either_step_ends_in_the_same_weights(tmp_path: Path) -> None:
    keys = recipe(init="gauss", patience="1 epoch").model_dump(mode="json")
    grow = {"name": "adenel", "round": "5 steps", "grow": "all", "theta": 0.5, "tune": {"epochs": 1}}
    whole = Recipe.model_validate(keys | {"method": None, "steps": [keys["method"], grow], "budget": "260kMACs"})

    def life(folder: Path, until: int) -> Bench | None:
        lab, _ = prepare(whole, "cpu")
        loop = lab.loop

        def mortal(steps: int, run: Callable[[Loop], Any]) -> Any:
            if lab.step >= until:
                raise KeyboardInterrupt
            return loop(steps, run)

        lab.loop = mortal  # type: ignore[method-assign]
        try:
            develop(lab, methods_of(whole), folder)
        except KeyboardInterrupt:
            return None
        return lab

    def lived(folder: Path, deaths: Sequence[int]) -> Bench:
        folder.mkdir()
        assert [life(folder, death) for death in deaths] == [None] * len(deaths)
        lab = life(folder, 10**9)
        assert lab is not None
        return lab

    one = lived(tmp_path / "whole", [])
    other = lived(tmp_path / "killed", [5, one.steps[0]["steps"] + 5])
    assert one.books() == other.books()
    assert all(torch.equal(t, other.model.state_dict()[name]) for name, t in one.model.state_dict().items())
    assert [step["method"] for step in one.steps] == ["autogrow", "adenel"]
    assert one.steps[0]["cost"]["macs"] <= 130_000
    assert Budget.parse("260kMACs").utilisation(one.cost()) >= 0.97


def test_an_interval_lasts_as_many_steps_as_with_all_the_images_unless_it_is_said_in_steps() -> None:
    lab, _ = prepare(recipe(), "cpu")  # 100 of 1,000 images, in batches of 20
    whole, plain = AutoGrow(Autogrow()), AutoGrow(Autogrow(scale_to_data=False))
    assert whole.span(lab, Duration(3, "epochs")) == 3 * 50
    assert plain.span(lab, Duration(3, "epochs")) == 3 * 5
    assert whole.span(lab, Duration(7, "steps")) == 7


def test_a_cut_of_what_was_appended_in_vain_leaves_the_useful_depth() -> None:
    lab, _ = prepare(recipe(overshoot="cut", on_saturation="stop"), "cpu")
    method = cast(AutoGrow, methods_of(lab.recipe)[0])
    method.init(lab)
    stages = lab.stages(None)
    method.append(lab, {stages[0]: 3, stages[1]: 2}, {}, trained=0.0)
    state = State(best=((5, 0.5), (10, 0.5)), growths=((2, "stage1"), (5, "stage2"), (5, "stage1")))
    method.end_growing(lab, state)
    assert autogrow.depths(lab, stages) == {"stage1": 2, "stage2": 1, "stage3": 1}


def test_torchvisions_networks_and_a_users_own_grow_by_copies(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from torchvision.models import ResNet\n"
        "from torchvision.models.resnet import BasicBlock\n"
        "def net():\n"
        "    made = ResNet(BasicBlock, [2, 2, 1, 1], num_classes=10)\n"
        "    made.conv1 = nn.Conv2d(1, 64, 3, padding=1)\n"
        "    return made\n"
    )
    said = recipe(init="zero").model_dump(mode="json")
    said |= {"model": {"factory": "./net.py:net"}, "budget": "8MMACs"}
    lab, _ = prepare(Recipe.model_validate(said).placed(tmp_path), "cpu")
    method = cast(AutoGrow, methods_of(lab.recipe)[0])
    method.init(lab)
    stages = lab.stages(None)
    assert autogrow.depths(lab, stages) == {"layer1": 1, "layer2": 1}  # the others have no second block to copy
    before = lab.score()
    method.append(lab, {stages[1]: 3}, {}, trained=0.0)
    assert autogrow.depths(lab, stages) == {"layer1": 1, "layer2": 3}
    assert lab.score() == before
    lab.train(1, lambda _: 0.01)


def test_what_is_excluded_stays_excluded_in_new_blocks() -> None:
    said = recipe().model_dump(mode="json")
    said["model"]["exclude"] = ["stage1.*.conv1"]
    lab, _ = prepare(Recipe.model_validate(said), "cpu")
    method = cast(AutoGrow, methods_of(lab.recipe)[0])
    method.init(lab)
    method.append(lab, dict.fromkeys(lab.stages(None), 2), {}, trained=0.0)
    spaces = lab.graph.spaces
    assert spaces["stage1.1.conv1"].frozen == "model.exclude: stage1.*.conv1"
    assert spaces["stage2.1.conv1"].frozen is None


FIXED = """\
from torch import nn
from torchvision.models.resnet import BasicBlock
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))
class Wrong(Net):
    def new_block(self, stage):
        return BasicBlock(16, 16)
"""


@pytest.mark.parametrize(("net", "steps", "told"), [
    ("Wrong", "[autogrow]", r"what new_block\('body'\) makes does not fit body .*stage's last block returns"),
    ("Net", "[adenel, {name: autogrow, begin: seed}]", "a block like the full network's does not fit body .*present"),
])  # fmt: skip
def test_blocks_that_do_not_fit_are_refused_before_any_training(
    net: str, steps: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(FIXED)
    recipe_file = tmp_path / "r.yaml"
    recipe_file.write_text(f'model: {{factory: "./net.py:{net}"}}\nsteps: {steps}\nbudget: 90%\n')
    with pytest.raises(UsageError, match=told):
        plan(recipe_file)
