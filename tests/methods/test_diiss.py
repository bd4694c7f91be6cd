"""DI-ISS takes the steps of its equations, and a filter's entry into the support is known in advance."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import CompressError
from compress.methods.adenel.diiss import DIISS, thresholds


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    for p, grad in zip(params, weights(*[tuple(p.shape) for p in params], seed=seed), strict=True):
        p.grad = grad.detach().to(p.dtype)


def small_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )
    return net.to(dtype)


def groups(net: nn.Module) -> list[dict[str, Any]]:
    path = [p for p in net.parameters() if p.dim() == 4]
    plain = [p for p in net.parameters() if p.dim() != 4]
    return [{"params": path, "path": True, "weight_decay": 5e-4}, {"params": plain}]


def train(net: nn.Module, optimizer: DIISS, first: int, steps: int, dtype: torch.dtype = torch.float32) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        y = torch.randint(4, (16,), generator=generator)
        x = torch.randn(16, 3, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) / 4
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(net(x.to(dtype)), y))
        optimizer.step()


def state_of(optimizer: DIISS) -> list[Tensor]:
    return [value for p in optimizer.state.values() for value in p.values()]


def naive_step(
    w: Tensor, grad: Tensor, state: dict[str, Tensor], lambdas: Tensor, penalty: str, hyper: dict[str, float]
) -> Tensor:
    """One step, filter by filter and entry by entry, on Python floats."""
    lr, nu, kappa = hyper["lr"], hyper["nu"], hyper["kappa"]
    new = torch.empty_like(w)
    for g in range(len(w)):
        flat_w, flat_grad = w[g].flatten().tolist(), grad[g].flatten().tolist()
        m, z, gamma = (state[key][g].flatten().tolist() for key in ("m", "z", "gamma"))
        moved = list(flat_w)
        for i, value in enumerate(flat_w):
            slope = flat_grad[i] + hyper["weight_decay"] * value
            m[i] = hyper["momentum"] * m[i] + slope
            direction = slope + hyper["momentum"] * m[i] if hyper["nesterov"] else m[i]
            moved[i] = value - kappa * lr * (direction + (value - gamma[i]) / nu)
            z[i] += lr / nu * (value - gamma[i])
        size, lam = sum(v * v for v in z) ** 0.5, float(lambdas[g])
        for i, v in enumerate(z):
            entry = (1 if v > 0 else -1) * max(0.0, abs(v) - lam)
            gamma[i] = kappa * (entry if penalty == "entry" else max(0.0, 1 - lam / size) * v if size else 0.0)
        for key, values in (("m", m), ("z", z), ("gamma", gamma)):
            state[key][g] = torch.tensor(values, dtype=w.dtype).view_as(w[g])
        new[g] = torch.tensor(moved, dtype=w.dtype).view_as(w[g])
    return new


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("penalty", ["filter", "entry"])
def test_every_step_is_the_one_of_the_equations(penalty: str, nesterov: bool) -> None:
    hyper = {"lr": 0.3, "nu": 2.0, "kappa": 1.5, "momentum": 0.8, "weight_decay": 0.01, "nesterov": nesterov}
    shapes = ((4, 3, 3, 3), (5, 4, 1, 1)) if penalty == "filter" else ((6, 7), (3, 6))
    params = weights(*shapes, dtype=torch.float64)
    optimizer = DIISS(params, path=True, penalty=penalty, **hyper)  # type: ignore[arg-type]
    lambdas = {p: torch.linspace(0, 20 if penalty == "filter" else 5, len(p), dtype=torch.float64) for p in params}
    optimizer.restart(lambdas)
    expected = [p.detach().clone() for p in params]
    states = [{key: torch.zeros_like(p).detach() for key in ("m", "z", "gamma")} for p in params]
    for step in range(12):
        give_gradients(params, seed=step + 1)
        for i, p in enumerate(params):
            assert p.grad is not None
            expected[i] = naive_step(expected[i], p.grad, states[i], lambdas[p], penalty, hyper)
        optimizer.step()
        for p, w, state in zip(params, expected, states, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=0, atol=1e-12)
            for ours, key in (("momentum_buffer", "m"), ("z", "z"), ("gamma", "gamma")):
                torch.testing.assert_close(optimizer.state[p][ours], state[key], rtol=0, atol=1e-12)
    in_support = torch.cat([optimizer.support(p) for p in params])
    assert in_support.any()
    assert not in_support.all()


@pytest.mark.parametrize("penalty", ["filter", "entry"])
def test_gamma_is_the_proximal_point(penalty: str) -> None:
    """prox(z) minimises lambda * |gamma| + |gamma - z|^2 / 2: no perturbation of any filter gets lower."""
    (w,) = weights((8, 2, 3, 3), dtype=torch.float64)
    sizes = torch.tensor([0, 0.3, 0.9, 1, 1.1, 1.5, 4, 40], dtype=torch.float64)
    w.data *= (sizes / w.data.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    optimizer = DIISS([w], lr=1.0, nu=1.0, kappa=1.0, path=True, penalty=penalty)
    lam = 1.0 if penalty == "filter" else 0.2
    optimizer.restart(lam)
    z = w.detach().clone()  # lr / nu = 1 and Gamma = 0: after one step Z is the weight itself
    w.grad = torch.zeros_like(w)
    optimizer.step()
    gamma = optimizer.state[w]["gamma"]
    torch.testing.assert_close(optimizer.state[w]["z"], z)
    if penalty == "filter":
        shrunk = z.flatten(1) * (1 - lam / sizes.clamp_min(1e-9)).clamp_min(0).view(-1, 1)
        torch.testing.assert_close(gamma, shrunk.view_as(z), rtol=0, atol=1e-14)
    else:
        torch.testing.assert_close(gamma, functional.softshrink(z, lam), rtol=0, atol=1e-14)

    def energy(point: Tensor) -> Tensor:
        norm = point.flatten(2).norm(dim=2) if penalty == "filter" else point.flatten(2).abs().sum(2)
        return lam * norm + (point - z).flatten(2).square().sum(2) / 2

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(10_000, *z.shape, generator=generator, dtype=torch.float64)
    noise *= torch.logspace(-4, 0, 10_000, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    assert (energy(gamma + noise) >= energy(gamma[None]) - 1e-12).all()


@pytest.mark.parametrize(
    "hyper",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 5e-4},
        {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("kind", ["plain", "switched off", "nu huge"])
def test_without_a_path_it_is_torch_sgd(kind: str, hyper: dict[str, Any]) -> None:
    ours, theirs = (weights((8, 3, 3, 3), (16, 8, 1, 1), (4, 16)) for _ in range(2))
    path: dict[str, dict[str, Any]] = {
        "plain": {},
        "switched off": {"path": True, "couple": False},
        "nu huge": {"path": True, "nu": 1e30},
    }
    optimizer, sgd = DIISS(ours, lr=0.1, **hyper, **path[kind]), torch.optim.SGD(theirs, lr=0.1, foreach=True, **hyper)
    for step in range(20):
        give_gradients(ours, seed=step)
        give_gradients(theirs, seed=step)
        optimizer.step()
        sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all("z" in optimizer.state[p] for p in ours) == (kind == "nu huge")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_filter_enters_the_support_when_the_sum_of_its_weights_passes_the_threshold(dtype: torch.dtype) -> None:
    """The closed form: the first t with |sum over steps before t of W_g| > lambda * nu / lr, for every filter."""
    net = small_net(dtype)
    lr, nu, lam = 0.05, 100.0, 0.08
    optimizer = DIISS(groups(net), lr=lr, nu=nu)
    optimizer.restart(lam)
    convs = [p for p in net.parameters() if p.dim() == 4]
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in convs]
    norms: list[list[Tensor]] = [[] for _ in convs]
    entered = [torch.full((len(p),), -1) for p in convs]
    for step in range(400):
        for i, p in enumerate(convs):
            sums[i] += p.detach().double()
            norms[i].append(sums[i].flatten(1).norm(dim=1))
        train(net, optimizer, step, 1, dtype)
        for first, p in zip(entered, convs, strict=True):
            first[(first < 0) & optimizer.support(p)] = step
    slack = 0 if dtype == torch.float64 else 1e-5  # the state's own rounding moves the threshold that much
    for first, series in zip(entered, norms, strict=True):
        path = torch.stack(series)  # [step, O]
        assert ((first > 0) & (first < 399)).all()
        rows = torch.arange(len(first))
        bar = lam * nu / lr
        assert (path[first, rows] > bar * (1 - slack)).all()
        assert (path[first - 1, rows] <= bar * (1 + slack)).all()
    assert len(set(torch.cat(entered).tolist())) > 8  # filters differ, so the claim is not about one step


def test_a_saved_run_continues_bit_for_bit() -> None:
    net = small_net()
    optimizer = DIISS(groups(net), lr=0.05, nu=10.0)
    optimizer.restart(0.05)
    train(net, optimizer, 0, 30)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    other = small_net()
    other.load_state_dict(saved[0])
    resumed = DIISS(groups(other), lr=0.9)
    resumed.load_state_dict(saved[1])
    for model, opt in ((net, optimizer), (other, resumed)):
        train(model, opt, 30, 30)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state_of(resumed), strict=True))
    assert optimizer.param_groups[0]["clock"] == resumed.param_groups[0]["clock"] == pytest.approx(60 * 0.05 / 10)
    assert any(optimizer.support(p).any() for p in net.parameters() if p.dim() == 4)


def test_loading_a_state_keeps_its_precision_and_shares_no_memory() -> None:
    params, others = (weights((4, 3, 3, 3), dtype=torch.bfloat16) for _ in range(2))
    optimizer, other = DIISS(params, path=True), DIISS(others, path=True)
    give_gradients(params, seed=1)
    optimizer.step()
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    for ours, theirs in zip(state_of(optimizer), state_of(other), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_a_restart_clears_the_path_and_keeps_the_momentum() -> None:
    net = small_net()
    optimizer = DIISS(groups(net), lr=0.1, nu=10.0)
    optimizer.restart(0.01)
    train(net, optimizer, 0, 20)
    convs = [p for p in net.parameters() if p.dim() == 4]
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in convs]
    assert all(optimizer.support(p).all() for p in convs)
    assert optimizer.param_groups[0]["clock"] == pytest.approx(20 * 0.1 / 10)
    optimizer.restart({convs[0]: 3.0, convs[1]: torch.arange(16.0)})
    assert [g["clock"] for g in optimizer.param_groups] == [0, 0]
    for p, before in zip(convs, momentum, strict=True):
        state = optimizer.state[p]
        assert not optimizer.support(p).any()
        assert not state["z"].any()
        assert torch.equal(state["momentum_buffer"], before)
    assert torch.equal(optimizer.state[convs[0]]["threshold"], torch.full((8,), 3.0))
    assert torch.equal(optimizer.state[convs[1]]["threshold"], torch.arange(16.0))
    with pytest.raises(CompressError, match=r"no threshold for a weight \[16, 8, 3, 3\]"):
        optimizer.restart({convs[0]: 1.0})


def test_the_support_names_the_filters_whose_gamma_is_not_zero() -> None:
    (w,) = weights((5, 2, 3, 3))
    optimizer = DIISS([w], path=True)
    assert optimizer.support(w).tolist() == [False] * 5
    optimizer.state[w]["gamma"][3, 1, 2, 2] = -1e-30
    assert optimizer.support(w).tolist() == [False, False, False, True, False]


def test_thresholds_say_what_share_of_its_norm_a_filter_must_keep() -> None:
    (w,) = weights((6, 3, 3, 3), dtype=torch.float64)
    norms = torch.tensor([sum(float(v) ** 2 for v in row.flatten()) ** 0.5 for row in w.detach()], dtype=torch.float64)
    torch.testing.assert_close(thresholds(w, "filter", 2.0, 0.9, 7.0), 0.9 * 2.0 * norms)
    torch.testing.assert_close(thresholds(w, "layer", 2.0, 0.9, 7.0), 0.9 * 2.0 * norms.mean().expand(6))
    assert thresholds(w, "absolute", 2.0, 0.9, 7.0).tolist() == [7.0] * 6
    entries = w.detach().abs().flatten(1).mean(1)
    torch.testing.assert_close(thresholds(w, "filter", 2.0, 0.9, 7.0, "entry"), 1.8 * entries)
    with pytest.raises(CompressError, match="'median'"):
        thresholds(w, "median", 2.0, 0.9, 7.0)


def test_a_weight_that_keeps_its_norm_is_selected_at_the_share_theta_of_the_round() -> None:
    (w,) = weights((6, 3, 3, 3), dtype=torch.float64)
    steps, lr, nu, theta = 100, 0.1, 100.0, 0.905
    optimizer = DIISS([w], lr=lr, nu=nu, kappa=1e-9, path=True)  # kappa scales the primal step away: W stands still
    optimizer.restart({w: thresholds(w, "filter", steps * lr / nu, theta, 0.0)})
    selected = []
    for _ in range(steps):
        w.grad = torch.zeros_like(w)
        optimizer.step()
        selected.append(int(optimizer.support(w).sum()))
    assert selected == [0] * 90 + [6] * 10  # from step 91 on: 91 > 0.905 * 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_stays_float32_under_autocast_and_with_bf16_weights(dtype: torch.dtype) -> None:
    net = small_net(dtype)
    optimizer = DIISS(groups(net), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(torch.randn(4, 3, 8, 8, dtype=dtype)).square().mean().backward()
        optimizer.step()
    assert len(state_of(optimizer)) == 2 * 4 + 6  # four tensors for each convolution, the momentum of the other six
    assert {value.dtype for value in state_of(optimizer)} == {torch.float32}
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_a_filter_at_zero_makes_no_nan() -> None:
    (w,) = weights((3, 2, 3, 3))
    w.data[1] = 0
    for lam in (0.0, 1.0):
        optimizer = DIISS([w], path=True, nu=1.0)
        optimizer.restart(lam)
        w.grad = torch.zeros_like(w)
        optimizer.step()
        assert torch.isfinite(w).all()
        assert all(torch.isfinite(value).all() for value in state_of(optimizer))
        assert not optimizer.state[w]["gamma"][1].any()


def test_a_parameter_swapped_with_its_state_keeps_its_path() -> None:
    """What the surgeon does: a new, wider parameter, its state padded with zeros, in the old one's place."""
    (w,) = weights((3, 2, 3, 3))
    optimizer = DIISS([w], path=True, nu=1.0)
    optimizer.restart(0.01)
    give_gradients([w], seed=1)
    optimizer.step()
    wider = nn.Parameter(functional.pad(w.detach(), (0, 0, 0, 0, 0, 1, 0, 2)))
    state = optimizer.state.pop(w)
    optimizer.state[wider] = {
        key: functional.pad(value, (0, 2) if key == "threshold" else (0, 0, 0, 0, 0, 1, 0, 2))
        for key, value in state.items()
    }
    optimizer.param_groups[0]["params"][0] = wider
    for p in (w, wider):
        p.grad = torch.ones_like(p)
    alone = DIISS([w], path=True, nu=1.0)
    alone.state[w] = state
    optimizer.step()
    alone.step()
    assert torch.equal(wider[:3, :2], w)
    assert optimizer.support(wider).tolist() == [True, True, True, False, False]


def test_the_closure_is_called_with_gradients_on_and_groups_can_be_added() -> None:
    first, second = weights((2, 2, 1, 1), (3,))
    optimizer = DIISS([first], lr=0.1, path=True, momentum=0.0)
    optimizer.add_param_group({"params": [second], "path": False, "lr": 0.5})
    first_before, before = first.detach().clone(), second.detach().clone()

    def closure() -> float:
        loss = (first**2).sum() + second.sum()
        torch.autograd.backward(loss)
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(float((first_before**2).sum() + before.sum()))
    torch.testing.assert_close(second.detach(), before - 0.5)
    assert list(optimizer.state[second]) == []


@pytest.mark.parametrize(
    "wrong",
    [{"nu": 0.0}, {"kappa": -1.0}, {"lr": -0.1}, {"momentum": float("nan")}, {"penalty": "l1"}, {"weight_decay": -1.0}],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(CompressError, match=f"{key}="):
        DIISS(weights((2, 2, 1, 1)), **wrong)


def test_a_path_through_a_bias_is_refused() -> None:
    with pytest.raises(CompressError, match=r"\[7\] has none"):
        DIISS(weights((7,)), path=True)
