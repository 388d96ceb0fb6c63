"""Models of 16 bits: what is computed in 32, what is rounded, when, and what is said of it."""

from __future__ import annotations

import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import LinearLossLandscape, PlanarLossLandscape
from hpc_landscape.data.precise import full_precision
from hpc_landscape.metrics import Data, Loss
from hpc_landscape.model.wrapper import wrap_model

LOW = torch.bfloat16
PROBLEM = """
import torch
from torch import nn
from hpc_landscape import Problem
from test_16_bits import data, net

def low(dtype: str = "bfloat16"):
    x, y = data()
    return Problem(net(0, getattr(torch, dtype)), nn.CrossEntropyLoss(), (x.to(getattr(torch, dtype)), y))
"""


def net(seed: int = 0, dtype: torch.dtype = LOW) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator).to(LOW), torch.randint(0, 3, (40,), generator=generator)


@pytest.fixture
def low(tmp_path, monkeypatch) -> list[str]:
    """The beginning of a command line."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "low_problem.py").write_text(PROBLEM)
    return ["--problem", "low_problem.py:low", "--plot", "false", "--output", "a.h5", "--y", "none"]


class Seen:
    """Notes the parameters at each point."""

    def __init__(self) -> None:
        self.points: list[dict[str, Tensor]] = []

    def __call__(self, wrapper) -> float:
        self.points.append({name: p.detach().clone() for name, p in wrapper.named_parameters()})
        return 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_are_rounded_once(dtype):
    """A step that 16 bits cannot take: the direction is of 32, the sum too, and the point is the nearest there is."""
    model, seen = net(0, dtype), Seen()
    line = LinearLossLandscape(model, 5).random_line(0.004, seed=1)
    line.compute(seen)
    assert {d.dtype for d in line.directions[0].values()} == {torch.float32}
    for c, point in zip(line.coordinates, seen.points, strict=True):
        for name, p in model.named_parameters():
            exact = p.detach().float() + torch.tensor(float(c)) * line.directions[0][name]
            assert point[name].dtype == dtype and torch.equal(point[name], exact.to(dtype))
    for axis, weight in ((0, model[0].weight), (2, model[2].weight)):
        filters = [
            torch.linalg.vector_norm(t.detach().double(), dim=1) for t in (line.directions[0][f"{axis}.weight"], weight)
        ]
        ratio = filters[0] / filters[1]
        np.testing.assert_allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-6)  # nothing of it was rounded to 16 bits


def test_a_model_of_32_bits_to_go_to():
    """A file of float32: at 1 it is what load_state_dict makes of it, and before that it was not rounded."""
    start, end, seen = net(), net(5, torch.float32), Seen()
    line = LinearLossLandscape(start, 3).interpolation(end.state_dict())
    line.compute(seen)
    loaded = net()
    loaded.load_state_dict(end.state_dict())
    for name, p in loaded.named_parameters():
        assert torch.equal(seen.points[2][name], p) and torch.equal(seen.points[0][name], start.get_parameter(name))
        middle = (start.get_parameter(name).float() + end.get_parameter(name)) / 2
        assert torch.equal(seen.points[1][name], middle.to(LOW))
        difference = end.get_parameter(name).detach().double() - start.get_parameter(name).detach().double()
        np.testing.assert_allclose(line.directions[0][name], difference, rtol=1e-7, atol=1e-7)


def test_principal_directions_are_not_rounded():
    points = [net(seed).state_dict() for seed in range(1, 6)]
    plane = PlanarLossLandscape(net(), 3).pca(points)
    flat = np.stack([np.concatenate([t.double().reshape(-1) for t in p.values()]) for p in points])
    _, _, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for direction, row in zip(plane.directions, rows, strict=False):
        found = np.concatenate([d.double().reshape(-1) for d in direction.values()])
        assert {d.dtype for d in direction.values()} == {torch.float32}
        np.testing.assert_allclose(found * np.sign(found @ row), row, atol=1e-7)


@pytest.mark.parametrize("kind", ["hessian", "random", "file"])
def test_what_the_file_says(low, program, kind):
    options = [] if kind != "file" else ["--direction_files", "d.npz"]
    if kind == "file":
        np.savez("d.npz", **{"0.weight": np.full((16, 6), 1e-3 + 1e-6)})
    run = program(*low, "--x", "-0.01:0.01:3", "--directions", kind, *options)
    assert run.code == 0, run
    assert "thread each, bfloat16, as the model is" in run.out and "fp32" not in run.out
    with h5py.File("a.h5") as file:
        assert file.attrs["compute_dtype"] == "bfloat16" and file["directions/along_x/0.weight"].dtype == np.float32
        if kind == "file":
            np.testing.assert_allclose(file["directions/along_x/0.weight"][()], 1e-3 + 1e-6, rtol=1e-7)
        direction = {name: file[f"directions/along_x/{name}"][()] for name, _ in net().named_parameters()}
        values = file["loss"][()]
    x, y = data()
    for c, value in zip((-0.01, 0, 0.01), values, strict=True):
        model = net()
        for name, p in model.named_parameters():
            p.data.copy_((p.detach().float() + c * torch.as_tensor(direction[name])).to(LOW))
        assert value == pytest.approx(F.cross_entropy(model(x).float(), y).item(), rel=1e-6)
    again = program(*low, "--x", "-0.01:0.01:3", "--directions", kind, *options)
    assert again.code == 0 and "is complete" in again.out, again


@pytest.mark.parametrize(
    ("dtype", "precision", "said", "recorded"),
    [
        ("float32", "fp32", "fp32", "float32"),
        ("float64", "fp32", "float64, as the model is", "float64"),
        ("bfloat16", "fp64", "fp64", "float64"),
        ("float32", "bf16", "bf16", "bfloat16"),
        ("float16", "bf16", "bf16", "bfloat16"),
    ],
)
def test_what_the_model_computed_in(low, program, dtype, precision, said, recorded):
    run = program(*low, "--x", "-1:1:2", f"--problem.dtype={dtype}", "--precision", precision)
    assert run.code == 0 and f"thread each, {said}\n" in run.out, run
    with h5py.File("a.h5") as file:
        assert file.attrs["compute_dtype"] == recorded
        wide = file["directions/along_x/0.weight"].dtype
        assert wide == (np.float64 if dtype == "float64" else np.float32)


def test_the_loss_is_not_rounded():
    """To 16 bits, that is; the gradient's either."""
    x, y = data()
    for forward in (None, lambda model, batch: {"logits": model(batch[0]), "text": "a"}):
        take = (lambda o, b: F.cross_entropy(o["logits"], b[1])) if forward else F.cross_entropy
        loss = Loss(take, Data([(x, y)], forward=forward, count=lambda b: len(b[1])))
        assert loss(wrap_model(net())) == pytest.approx(F.cross_entropy(net()(x).float(), y).item(), rel=1e-7)


def test_what_a_model_says_keeps_its_type():
    class Kept(dict):
        def __init__(self, first):
            super().__init__(first=first)

    wide, low = torch.ones(2), torch.ones(2, dtype=LOW)
    for nest in (wide, (wide, None), {"a": [wide, 3]}, Kept(wide), None, "text", torch.arange(3)):
        assert full_precision(nest) is nest  # nothing is copied where nothing is to be done
    given = Kept([low, wide])
    found = full_precision(given)
    assert type(found) is Kept and found["first"][0].dtype == torch.float32 and found["first"][1] is wide
    assert given["first"][0] is low  # the model may keep it
    assert full_precision(torch.tensor(1.0, dtype=LOW)).dtype == LOW  # a loss that is rounded already is told


def test_what_transformers_say():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    given = outputs.CausalLMOutput(logits=torch.ones(2, 3, dtype=LOW), hidden_states=(torch.ones(2, dtype=LOW),))
    found = full_precision(given)
    assert type(found) is type(given) and found.loss is None
    assert found.logits.dtype == found["logits"].dtype == found[0].dtype == torch.float32
    assert found.hidden_states[0].dtype == torch.float32 and given.logits.dtype == LOW


class Eighths(nn.Module):
    """A table of 8-bit floating-point numbers, and how they are used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(3, 6).to(torch.float8_e4m3fn), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ (self.table.float() * self.scale).T


def test_8_bits_stay_where_they_are():
    model, (x, y) = Eighths(), data()
    before = model.table.detach().float().clone()
    with pytest.warns(UserWarning, match="stays as it is, being of float8_e4m3fn: table"):
        line = LinearLossLandscape(model, 3).random_line(1, seed=0)
    assert set(line.directions[0]) == {"scale"}
    found = line.compute(Loss(F.cross_entropy, x, y))
    expected = []
    for c in line.coordinates:
        moved = copy.deepcopy(model)
        moved.scale.data += c * line.directions[0]["scale"]
        expected.append(F.cross_entropy(moved(x), y).item())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert torch.equal(model.table.detach().float(), before)
