"""Between two models: at its coordinate a point is the other model whole, whatever its parts are made of."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hpc_landscape
from hpc_landscape import LinearLossLandscape, UserError
from hpc_landscape.metrics import Loss

PROBLEM = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from hpc_landscape import Problem
from test_between_models import Scaled, data

def scaled(kind: str = "scaled", loader: bool = False):
    x, y = data()
    batches = DataLoader(TensorDataset(x, y), batch_size=20) if loader else (x, y)
    return Problem(Scaled(0, kind), nn.CrossEntropyLoss(), batches)
"""


class Scale(nn.Module):
    """What inputs are scaled by, learned from data, not by gradients; and which of them are used."""

    def __init__(self, seed: int):
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.register_buffer("mean", torch.randn(4, generator=drawn))
        self.register_buffer("std", 0.5 + torch.rand(4, generator=drawn, dtype=torch.float64))
        self.register_buffer("turn", torch.exp(1j * torch.rand(1, generator=drawn)))
        self.register_buffer("used", torch.tensor([True, True, seed % 2 == 0, True]))
        self.register_buffer("order", torch.randperm(4, generator=drawn))
        self.register_buffer("none", None)
        self.register_buffer("hidden", torch.tensor(float(seed)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).float()[:, self.order] * self.used
        return (x * self.turn).real


class Scaled(nn.Module):
    def __init__(self, seed: int, kind: str = "scaled"):
        super().__init__()
        torch.manual_seed(seed)
        self.scale, self.linear = Scale(seed), nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if kind == "bn" else nn.Identity()
        if kind == "bn":
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.head = nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randint(-9, 9, (3,), dtype=torch.int8), requires_grad=False)  # quantized

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(self.scale(x))).relu()) + self.table / 10


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


@torch.no_grad()
def between(c: tuple[float, ...], start: nn.Module, *ends: nn.Module, hidden: bool = True) -> nn.Module:
    """By hand, in float64: a copy of the model at these coordinates towards the others, each buffer with them."""
    model = copy.deepcopy(start).eval()
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    others = [{**dict(end.named_parameters()), **dict(end.named_buffers())} for end in ends]
    for name, t in own.items():
        if not hidden and name.endswith("hidden"):
            continue  # no file holds it
        if t.is_floating_point() or t.is_complex():
            wide = torch.complex128 if t.is_complex() else torch.float64
            t.copy_(t.to(wide) + sum(k * (o[name].to(wide) - t.to(wide)) for k, o in zip(c, others, strict=True)))
        elif reached := [o[name] for k, o in zip(c, others, strict=True) if k >= 1]:
            t.copy_(reached[0])
    return model


def loss(model: nn.Module) -> float:
    x, y = data()
    return F.cross_entropy(model(x), y).item()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "between_problem.py").write_text(PROBLEM)
    for kind in ("scaled", "bn"):
        for seed in (1, 3):
            torch.save(Scaled(seed, kind).state_dict(), f"{kind}{seed}.pt")
    return tmp_path


def command(kind: str, *options: str, to: str = "1") -> list[str]:
    files = ",".join(f"{kind}{seed}.pt" for seed in to.split(","))
    problem = ["--problem", "between_problem.py:scaled", f"--problem.kind={kind}", "--plot", "false"]
    return [*problem, "--directions", "interpolation", "--to", files, "--output", "a.h5", "--overwrite", *options]


def stored(name: str = "loss") -> np.ndarray:
    with h5py.File("a.h5") as file:
        return file[name][()]


@pytest.mark.parametrize(
    "options", [(), ("--block", "3"), ("--precision", "fp64"), ("--problem.loader=true", "--resident", "0")]
)
def test_the_program(folder, program, options):
    """Also several points at a time, stacked and in turn, and in double precision."""
    run = program(*command("scaled", "--x", "-0.5:1.5:5", *options))
    assert run.code == 0, run
    assert (
        "as the other models have it, in proportion to the coordinate: scale.mean, scale.std, scale.turn\n" in run.out
    )
    assert "as the other models have it, from 1 on, the origin's before: table, scale.used, scale.order" in run.out
    models = [between((c,), Scaled(0), Scaled(1), hidden=False) for c in np.linspace(-0.5, 1.5, 5)]
    np.testing.assert_allclose(stored(), [loss(model) for model in models], rtol=2e-5)
    with h5py.File("a.h5") as file:
        assert "scale.mean" in file.attrs["interpolated"]


def test_two_others(folder, program):
    run = program(*command("scaled", "--x", "0:1:3", "--y", "0:1:3", to="1,3"))
    assert run.code == 0, run
    models = (Scaled(0), Scaled(1), Scaled(3))
    expected = [[loss(between((a, b), *models, hidden=False)) for b in (0, 0.5, 1)] for a in (0, 0.5, 1)]
    np.testing.assert_allclose(stored(), expected, rtol=1e-5)


@pytest.mark.parametrize("bn", ["warmup", "running"])
def test_batch_normalization_is_of_the_point(folder, program, bn):
    run = program(*command("bn", "--x", "0:1:3", "--bn", bn))
    assert run.code == 0, run
    assert ("statistics of the model at the origin everywhere (--bn running)" in run.out) == (bn == "running")
    expected = []
    for c in (0, 0.5, 1):
        model = between((c,), Scaled(0, "bn"), Scaled(1, "bn"), hidden=False)
        if bn == "warmup":
            torch.optim.swa_utils.update_bn([data()[0]], model)
        else:
            model.norm.load_state_dict({**model.norm.state_dict(), **_statistics(Scaled(0, "bn").norm)})
        expected.append(loss(model.eval()))
    np.testing.assert_allclose(stored(), expected, rtol=1e-5)


def _statistics(layer: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in layer.state_dict().items() if "running" in name}


def test_what_stands_beside_parameters_that_stay(folder, program):
    """Only the head moves: what inputs are scaled by belongs to the rest."""
    run = program(*command("scaled", "--x", "0:1:2", "--include", "head"))
    assert run.code == 0, run
    assert "other models have it otherwise, but it stays, as parameters beside it do: table, scale.mean" in run.out
    model = Scaled(0)
    model.head.load_state_dict(Scaled(1).head.state_dict())
    np.testing.assert_allclose(stored(), [loss(Scaled(0).eval()), loss(model.eval())], rtol=1e-6)


def test_another_scale_is_another_run(folder, program):
    """The buffers of the other model are part of what a file is of."""
    words = [word for word in command("scaled", "--x", "0:1:2") if word != "--overwrite"]
    assert program(*words).code == 0
    changed = Scaled(1)
    changed.scale.mean.add_(1)
    torch.save(changed.state_dict(), "scaled1.pt")
    run = program(*words)
    assert run.code == 2 and "directions" in run.err, run


def test_models_alike_but_for_parameters(folder, program):
    end = Scaled(0)
    nn.init.ones_(end.head.weight)
    torch.save(end.state_dict(), "scaled1.pt")
    run = program(*command("scaled", "--x", "0:1:2"))
    assert run.code == 0 and "as the other models" not in run.out, run


# The library


class Seen:
    """Notes what a model is made of at each point."""

    def __init__(self) -> None:
        self.points: list[dict[str, Tensor]] = []

    def __call__(self, wrapper) -> float:
        root = wrapper.root
        self.points.append({k: t.clone() for k, t in [*root.named_parameters(), *root.named_buffers()]})
        return 0.0


@pytest.mark.parametrize("how", ["module", "state dict", "file"])
def test_the_library(folder, how):
    end = Scaled(1)
    given = {"module": end, "state dict": end.state_dict(), "file": "scaled1.pt"}[how]
    start, seen = Scaled(0), Seen()
    before = {k: t.clone() for k, t in start.state_dict().items()}
    with pytest.warns(UserWarning) as told:
        line = LinearLossLandscape(start, 3).interpolation(given)
    texts = [str(w.message) for w in told]
    assert any("in proportion to the coordinate: scale.mean" in text for text in texts) and len(texts) == 2
    assert all(w.filename == __file__ for w in told)
    line.compute(seen)
    for name, tensor in end.state_dict().items():
        assert torch.equal(seen.points[2][name], tensor), f"{name} is not bitwise the other model's"
        assert torch.equal(seen.points[0][name], before[name])
        assert torch.equal(start.state_dict()[name], before[name])
    x, y = data()
    expected = [loss(between((c,), Scaled(0), end, hidden=how == "module")) for c in (0, 0.5, 1)]
    np.testing.assert_allclose(line.compute(Loss(F.cross_entropy, x, y)), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:as the other models")
def test_the_functions(folder):
    metric, models = Loss(F.cross_entropy, *data()), (Scaled(0), Scaled(1), Scaled(3))
    line = hpc_landscape.linear_interpolation(*models[:2], metric, 3)
    np.testing.assert_allclose(line, [loss(between((c,), *models[:2])) for c in (0, 0.5, 1)], rtol=1e-5)
    plane = hpc_landscape.planar_interpolation(*models, metric, 2)
    np.testing.assert_allclose(plane, [[loss(between((a, b), *models)) for b in (0, 1)] for a in (0, 1)], rtol=1e-5)


def test_other_shapes_are_refused():
    end = Scaled(1)
    end.scale.mean = torch.zeros(1)
    with pytest.raises(UserError, match=r"scale.mean has shape \(1,\) in another model, and \(4,\) here"):
        LinearLossLandscape(Scaled(0), 3).interpolation(end)


def test_a_sparse_buffer_that_differs_is_refused():
    class Graph(nn.Module):
        def __init__(self, weight: float):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("neighbours", (weight * torch.eye(3)).to_sparse())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearLossLandscape(Graph(1), 3).interpolation(Graph(1))  # the same: nothing to tell
    with pytest.raises(UserError, match="neighbours is sparse, and differs in another model"):
        LinearLossLandscape(Graph(1), 3).interpolation(Graph(2))


@pytest.mark.filterwarnings("ignore:as the other models")
def test_half_precision_buffers_are_rounded_once():
    start, end, seen = Scaled(0), Scaled(1), Seen()
    for model in (start, end):
        model.scale.mean = model.scale.mean.bfloat16()
    LinearLossLandscape(start, 4).interpolation(end).compute(seen)
    a, b = (model.scale.mean.double() for model in (start, end))
    for i, c in enumerate(np.linspace(0, 1, 4)):
        assert seen.points[i]["scale.mean"].dtype == torch.bfloat16
        np.testing.assert_allclose(seen.points[i]["scale.mean"].double(), a + c * (b - a), rtol=2**-8)
    assert torch.equal(seen.points[3]["scale.mean"], end.scale.mean)
