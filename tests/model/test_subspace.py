"""Points of parameter space, against closed forms in float64 and a model that must stay what it was."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.metrics import Loss
from hpc_landscape.model import state
from hpc_landscape.model.placement import ALIGNMENT, Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.problem import Problem


class Quadratic(nn.Module):
    """f(w) = w' A w / 2 + b' w + e, its w spread over two parameters."""

    def __init__(self, n: int = 7):
        super().__init__()
        draw = np.random.default_rng(0)
        a = draw.standard_normal((n, n))
        self.a, self.b, self.e = (a + a.T) / 2, draw.standard_normal(n), 0.75
        self.first = nn.Parameter(torch.from_numpy(draw.standard_normal((2, 2))))
        self.second = nn.Parameter(torch.from_numpy(draw.standard_normal(n - 4)))
        self.register_buffer("matrix", torch.from_numpy(self.a))
        self.register_buffer("vector", torch.from_numpy(self.b))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.cat([self.first.reshape(-1), self.second])
        return (w @ self.matrix @ w / 2 + self.vector @ w + self.e) * torch.ones(len(x), dtype=w.dtype)


def quadratic(dimensions: int):
    model = Quadratic()
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((dimensions, 7))
    directions = [
        {"first": torch.from_numpy(v[:4].reshape(2, 2).copy()), "second": torch.from_numpy(v[4:].copy())}
        for v in vectors
    ]
    problem = Problem(model, lambda output, target: (output - target).mean(), None)
    loss = Loss(problem.loss, torch.zeros(3, 1), torch.zeros(3))
    evaluate = Evaluator(problem.wrapper, Placement(state.parameters(model), directions), {"loss": loss}, "none")
    origin = torch.cat([model.first.detach().reshape(-1), model.second.detach()]).numpy()

    def closed_form(c):
        w = origin + np.asarray(c) @ vectors
        return w @ model.a @ w / 2 + model.b @ w + model.e

    return evaluate, closed_form


@pytest.mark.parametrize("sizes", [(51,), (11, 9), (5, 4, 3)])
def test_a_quadratic_equals_its_closed_form(sizes):
    evaluate, closed_form = quadratic(len(sizes))
    grid = Grid(*(Axis(-1, 1.5, n) for n in sizes))
    expected = np.array([closed_form(c) for c in itertools.product(*grid.coordinates)])
    with evaluate.attached():
        found = np.array([evaluate(grid.point(i))["loss"] for i in range(grid.size)])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * scale)


def test_a_point_alone_equals_the_point_in_a_sweep_in_any_order():
    grid = Grid(Axis(-1, 1, 7), Axis(-1, 1, 5))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    moves = [{n: torch.randn(p.shape) for n, p in model.named_parameters()} for _ in range(2)]
    problem = Problem(model, nn.CrossEntropyLoss(), None)
    data = problem.on([(torch.randn(10, 3), torch.randint(2, (10,))) for _ in range(2)])

    def made():
        placement = Placement(state.parameters(model), moves)
        return Evaluator(problem.wrapper, placement, {"loss": Loss(problem.loss, data)}, "warmup", data)

    def sweep(order):
        values, evaluate = np.empty(grid.size), made()
        with evaluate.attached():
            for i in order:
                values[i] = evaluate(grid.point(i))["loss"]
        return values

    forwards = sweep(range(grid.size))
    assert len(set(forwards)) == grid.size
    assert sweep(reversed(range(grid.size))).tobytes() == forwards.tobytes()
    assert sweep(np.random.default_rng(0).permutation(grid.size)).tobytes() == forwards.tobytes()
    for i in (0, 17, 34):
        evaluate = made()
        with evaluate.attached():
            assert evaluate(grid.point(i))["loss"] == forwards[i]


# Parameters of every kind


class Odd(nn.Module):
    """Parameters of every kind that a model may have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.bfloat = nn.Parameter(torch.randn(5, 3).to(torch.bfloat16))
        self.long_real = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.transposed = nn.Parameter(torch.randn(4, 6).t())
        self.expanded = nn.Parameter(torch.randn(1, 3).expand(2, 3))
        self.sliced = nn.Parameter(torch.randn(8, 8)[::2, 1:4])
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.whole = nn.Parameter(torch.arange(4), requires_grad=False)  # integers: nothing to move
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight  # tied
        self.register_buffer("counts", torch.arange(3))
        self.register_buffer("nothing", None)


def odd_directions(model: nn.Module, count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters() if p.is_floating_point()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_every_kind_of_parameter_is_moved(dtype):
    model = Odd()
    moves = odd_directions(model)
    origin = {n: p.detach().clone() for n, p in model.named_parameters()}
    strides = {n: p.stride() for n, p in model.named_parameters()}
    placement = Placement(state.parameters(model), moves, None, dtype)
    with placement.attached(model):
        for c in [(0.25, -0.5), (-1.0, 1.0), (0.0, 0.0)]:
            placement.place(c)
            for name, p in model.named_parameters():
                if not p.is_floating_point():
                    assert torch.equal(p, origin[name])
                    continue
                expected = origin[name].double() + sum(a * d[name].double() for a, d in zip(c, moves, strict=True))
                assert p.dtype == (dtype or origin[name].dtype)
                # Two roundings of at most half a unit in the last place, at the size of the largest term
                unit = torch.finfo(p.dtype).eps
                size = origin[name].double().abs() + sum(d[name].double().abs() for d in moves)
                assert bool(((p.double() - expected).abs() <= 1.5 * unit * size).all()), name
                if c == (0.0, 0.0):
                    assert torch.equal(p.double(), origin[name].double())
                assert p.data_ptr() % ALIGNMENT == 0 or not p.numel()
            assert model.head.weight is model.embedding.weight
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert model.transposed.stride() == strides["transposed"]
        assert not model.frozen.requires_grad and model.scalar.requires_grad


def test_parameters_do_not_overlap():
    model = Odd()
    placement = Placement(state.parameters(model), odd_directions(model))
    placement.place((0.5, 0.5))
    before = {n: v.clone() for n, v in placement.views.items()}
    for name, view in placement.views.items():
        view.fill_(3)
        assert all(torch.equal(v, before[n]) for n, v in placement.views.items() if n != name), name
        view.copy_(before[name])


def test_a_name_without_a_direction_does_not_move():
    model = nn.Linear(3, 2)
    placement = Placement(state.parameters(model), [{"weight": torch.ones(2, 3)}])
    with placement.attached(model):
        placement.place([1.0])
        moved = model.weight.detach().clone(), model.bias.detach().clone()
    assert torch.equal(moved[0], model.weight + 1) and torch.equal(moved[1], model.bias)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("last", [False, True])
def test_other_directions_take_the_place_of_those_there_were(dtype, last):
    """As if they had been the first ones, to the bit; also while a model is attached."""
    model = Odd()
    first, second = odd_directions(model, 4)[:2], odd_directions(model, 4)[2:]
    options = {"dtype": dtype, "channels_last": last, "rows": 2}
    expected = Placement(state.parameters(model), second, **options)
    placement = Placement(state.parameters(model), first, **options)
    with placement.attached(model):
        placement.place((1.0, 1.0), 0)
        before = {name: view.clone() for name, view in placement.views.items()}
        placement.redirect(second)
        assert all(torch.equal(view, before[name]) for name, view in placement.views.items())
        for row, c in enumerate([(0.25, -0.5), (-1.0, 1.0)]):
            placement.place(c, row)
            expected.place(c, row)
    for name, stacked in placement.stacked.items():
        assert torch.equal(stacked, expected.stacked[name]), name


def test_no_directions_is_the_origin_itself():
    model = nn.Linear(3, 2)
    placement = Placement(state.parameters(model), [])
    with placement.attached(model):
        placement.place([])
        here = model.weight.detach().clone()
    assert torch.equal(here, model.weight)


def test_coordinates_of_another_number_are_refused():
    placement = Placement({"w": torch.ones(2)}, [{"w": torch.ones(2)}])
    with pytest.raises(ValueError, match="2 coordinates for 1 direction"):
        placement.place((1.0, 2.0))


def test_no_drift():
    """A thousand points later the same point is the same bits: each is computed from the origin."""
    model = nn.Linear(30, 20)
    placement = Placement(state.parameters(model), odd_directions(model))
    placement.place((0.1, 0.2))
    first = {n: v.clone() for n, v in placement.views.items()}
    for i in range(1000):
        placement.place((math.sin(i) * 1e6, math.cos(i)))
    placement.place((0.1, 0.2))
    assert all(v.numpy().tobytes() == first[n].numpy().tobytes() for n, v in placement.views.items())


def test_the_origin_is_a_copy():
    """Changing the model afterwards does not move the placement."""
    model = nn.Linear(3, 2)
    placement = Placement(state.parameters(model), [{}])
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    placement.place([0.0])
    assert torch.equal(placement.views["weight"], weight)


# The model is what it was


def fingerprint(model: nn.Module) -> list:
    tensors = list(model.named_parameters(remove_duplicate=False)) + list(model.named_buffers(remove_duplicate=False))
    found = []
    for name, t in tensors:
        value = t.detach().double().numpy().tobytes()
        found.append((name, id(t), t.data_ptr(), t.stride(), t.dtype, t.requires_grad, id(t.grad), value))
    return found + [m.training for m in model.modules()]


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_model_is_bitwise_what_it_was(dtype, error):
    model = Odd()
    model.train()
    model.conv.eval()
    grad = model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = fingerprint(model)
    placement = Placement(state.parameters(model), odd_directions(model), None, dtype)
    try:
        with placement.attached(model):
            placement.place((3.0, 4.0))
            assert not model.training and model.conv.weight.grad is None
            model.counts.add_(100)
            model.counts = torch.zeros(9)
            with torch.no_grad():
                model.conv.bias.fill_(7)
            (model.scalar * 2).backward()
            if error:
                raise error
    except BaseException as caught:
        assert type(caught) is error
    assert fingerprint(model) == before
    assert model.conv.weight.grad is grad and bool((grad == 1).all()) and model.scalar.grad is None
    assert not model.nothing and model.counts.tolist() == [0, 1, 2]


def test_a_buffer_that_two_modules_share_stays_shared():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].running_mean = model[0].running_mean
    placement = Placement(state.parameters(model), [{}])
    with placement.attached(model):
        assert model[0].running_mean is model[1].running_mean
        model[0].running_mean.fill_(5)
    assert model[0].running_mean is model[1].running_mean and model[0].running_mean.tolist() == [0, 0]


def test_a_metric_may_differentiate_at_a_point():
    """attached() is no inference mode: gradients at a point are those of the moved parameters."""
    evaluate, _ = quadratic(1)
    model = evaluate.model.get_model()
    with evaluate.attached():
        evaluate.placement.place([0.5])
        model(torch.zeros(1, 1)).sum().backward()
        w = torch.cat([model.first.detach().reshape(-1), model.second.detach()]).numpy()
        found = torch.cat([model.first.grad.reshape(-1), model.second.grad]).numpy()
    np.testing.assert_allclose(found, model.a @ w + model.b, rtol=1e-12)
    assert model.first.grad is None


def test_what_a_forward_pass_keeps_is_forgotten():
    """A cache made in inference mode would stop the user's next training step."""

    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.cache = self.kept = None
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.cache is None:
                self.cache, self.new = torch.arange(3.0), torch.ones(1)
            return (x * self.cache * self.weight).sum()

    model = Caches()
    loss = Loss(lambda output, target: output, torch.ones(2, 3), torch.zeros(2))
    evaluate = Evaluator(wrap_model(model), Placement(state.parameters(model), [{}]), {"loss": loss}, "none")
    with evaluate.attached():
        evaluate([0.0])
    assert model.cache is None and not hasattr(model, "new") and model.calls == 1
    model(torch.ones(2, 3)).backward()
    assert model.weight.grad.tolist() == [0, 2, 4]
