"""Complex parameters, against the same model with its parameters as pairs of reals."""

from __future__ import annotations

import copy
import importlib

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hpc_landscape
from hpc_landscape import LinearLossLandscape, PlanarLossLandscape, UserError
from hpc_landscape.metrics import (
    Data,
    GradientNorm,
    GradientPredictiveness,
    HessianTrace,
    Loss,
    LossGradient,
    LossPerturbations,
    PrincipalCurvatureEvaluator,
)
from hpc_landscape.model.parameters import ModelParameters, orthogonal_to, rand_n_like, rand_u_like
from hpc_landscape.model.wrapper import wrap_model

kind = importlib.import_module("kind_complex")
PROBLEM = f"{kind.__file__}:operator"


class Net(nn.Module):
    """Complex weights, or, pairs=True, the same numbers as pairs of reals; and real ones behind."""

    def __init__(self, pairs: bool = False, seed: int = 0, dtype: torch.dtype = torch.complex128):
        super().__init__()
        torch.manual_seed(seed)
        w, b = torch.randn(3, 4, dtype=dtype) / 2, torch.randn(4, dtype=dtype) / 2
        self.pairs = pairs
        self.w, self.b = (nn.Parameter(torch.view_as_real(t).clone() if pairs else t) for t in (w, b))
        self.v = nn.Parameter(torch.randn(4, 2, dtype=w.real.dtype) / 2)

    def forward(self, x: Tensor) -> Tensor:
        w, b = (torch.view_as_complex(p) if self.pairs else p for p in (self.w, self.b))
        h = torch.tanh(x.to(w.dtype) @ w + b)
        return (h.abs().square() + h.imag) @ self.v


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(10, n, dtype=dtype, generator=generator) for n in (3, 2))


def dense_hessian() -> np.ndarray:
    """Autograd's own, over all real numbers."""
    model, (x, y) = Net(pairs=True), data()
    named = {name: p.detach() for name, p in model.named_parameters()}
    flat, sizes = torch.cat([p.reshape(-1) for p in named.values()]), [p.numel() for p in named.values()]

    def loss(numbers: Tensor) -> Tensor:
        parts = {k: part.view(p.shape) for (k, p), part in zip(named.items(), numbers.split(sizes), strict=True)}
        return F.mse_loss(torch.func.functional_call(model, parts, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat).numpy()


@pytest.mark.parametrize(
    "make",
    [
        lambda *a: LossGradient(F.mse_loss, *a),
        lambda *a: GradientNorm(F.mse_loss, *a),
        lambda *a: GradientPredictiveness(F.mse_loss, *a, step=(0.1, 1.0)),
        lambda *a: LossPerturbations(F.mse_loss, *a, n_directions=4, alpha=0.5),
        lambda *a: HessianTrace(F.mse_loss, *a, n_vectors=5),
        lambda *a: PrincipalCurvatureEvaluator(F.mse_loss, *a, n=2),
    ],
)
def test_metrics_are_those_of_the_pairs(make):
    found, expected = (np.asarray(make(*data())(wrap_model(Net(pairs)))) for pairs in (False, True))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_curvature_is_of_the_dense_hessian():
    values = np.linalg.eigvalsh(dense_hessian())
    found = PrincipalCurvatureEvaluator(F.mse_loss, *data(), n=2)(wrap_model(Net()))
    np.testing.assert_allclose(found, values[[0, 1, -2, -1]], rtol=1e-8, atol=1e-10)
    mean, error = HessianTrace(F.mse_loss, *data(), n_vectors=400)(wrap_model(Net()))
    assert abs(mean - values.sum()) < 4 * error


def test_lanczos_finds_what_the_pairs_have(monkeypatch):
    monkeypatch.setattr("hpc_landscape.metrics.curvature.DENSE", 0)
    values = np.linalg.eigvalsh(dense_hessian())
    found = PrincipalCurvatureEvaluator(F.mse_loss, *data(), n=1)(wrap_model(Net()))
    np.testing.assert_allclose(found, values[[0, -1]], rtol=1e-4, atol=1e-4)


# Vectors


def test_vectors_of_complex_numbers():
    """The arithmetic of the pairs."""
    torch.manual_seed(0)
    a, b = ([torch.randn(3, 2, dtype=torch.cfloat), torch.randn(4)] for _ in range(2))
    flat = [np.concatenate([torch.view_as_real(p[0]).reshape(-1).numpy(), p[1].numpy()]) for p in (a, b)]
    a, b = ModelParameters(a), ModelParameters(b)
    assert a.numel() == 16
    np.testing.assert_array_equal(a.as_numpy(), flat[0])
    wide = [f.astype(float) for f in flat]
    assert a.dot(b) == pytest.approx(wide[0] @ wide[1], rel=1e-12)
    assert a.model_norm() == pytest.approx(np.linalg.norm(wide[0]), rel=1e-12)
    assert a.filter_norm((0, 1)) == pytest.approx(np.linalg.norm(wide[0][4:8]), rel=1e-12)
    assert a.layer_norm(0, 1) == pytest.approx(np.abs(wide[0][:12:2] + 1j * wide[0][1:12:2]).sum(), rel=1e-12)
    other = orthogonal_to(a)
    assert abs(other.dot(a)) < 1e-5 * other.model_norm() * a.model_norm()
    b.filter_normalize_(a)
    for i in range(3):
        assert b.filter_norm((0, i)) == pytest.approx(a.filter_norm((0, i)), rel=1e-5)


def test_drawn_numbers_are_independent():
    torch.manual_seed(0)
    example = ModelParameters([torch.empty(20000, dtype=torch.cfloat), torch.empty(9, dtype=torch.bfloat16)])
    (normal, low), (uniform, _) = rand_n_like(example), rand_u_like(example)
    assert normal.dtype == torch.cfloat and low.dtype == torch.float32
    for part in (normal.real, normal.imag):
        assert part.mean().abs() < 0.03 and (part.std() - 1).abs() < 0.03
    assert abs(np.corrcoef(normal.real, normal.imag)[0, 1]) < 0.03
    for part in (uniform.real, uniform.imag):
        assert part.min() < -0.99 and part.max() > 0.99 and part.mean().abs() < 0.03


# Landscapes


@torch.no_grad()
def moved(model: nn.Module, directions, point) -> nn.Module:
    model = copy.deepcopy(model)
    for name, p in model.named_parameters():
        wide = torch.complex128 if p.is_complex() else torch.float64
        p.copy_(p.to(wide) + sum(c * d[name].to(wide) for c, d in zip(point, directions, strict=True)))
    return model


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", None])
def test_random_planes(normalization):
    model, (x, y) = Net(dtype=torch.cfloat), data(torch.float32)
    plane = PlanarLossLandscape(model, (3, 2)).random_plane(1, normalization, seed=3, ignore="none")
    first, _ = plane.directions
    assert {name: d.dtype for name, d in first.items()} == {"w": torch.cfloat, "b": torch.cfloat, "v": torch.float32}
    assert first["w"].real.any() and first["w"].imag.any()
    found = plane.compute(Loss(F.mse_loss, x, y))
    for where in np.ndindex(3, 2):
        point = [axis[i] for axis, i in zip(plane.coordinates, where, strict=True)]
        expected = F.mse_loss(moved(model, plane.directions, point)(x), y).item()
        np.testing.assert_allclose(found[where], expected, rtol=1e-5)
    if normalization == "filter":
        for row, weights in zip(first["w"], model.w, strict=True):
            ratio = np.linalg.norm(row.detach()) / np.linalg.norm(weights.detach())
            assert ratio == pytest.approx(
                float(np.linalg.norm(first["b"]) / np.linalg.norm(model.b.detach())), rel=1e-5
            )


def test_the_ends_of_an_interpolation_are_bitwise():
    models = [Net(seed=seed, dtype=torch.cfloat) for seed in range(3)]
    models[1].w.data[0, 0] = complex(-0.0, -0.0)
    seen: list[dict[str, Tensor]] = []
    plane = PlanarLossLandscape(models[0], 2).interpolation(*models[1:])
    plane.compute(lambda w: float(bool(seen.append({k: p.clone() for k, p in w.named_parameters()}))))
    for found, model in zip(seen, (models[0], models[2], models[1]), strict=False):
        for name, p in model.named_parameters():
            assert found[name].detach().numpy().tobytes() == p.detach().numpy().tobytes()


def test_principal_directions_and_projection_are_those_of_the_pairs():
    found = []
    for pairs in (False, True):
        points = [Net(pairs, seed).state_dict() for seed in range(1, 6)]
        plane = PlanarLossLandscape(Net(pairs), 3).pca(points)
        flat = [ModelParameters(d.values()).as_numpy() for d in plane.directions]
        found.append((flat, plane.trajectory.coordinates, plane.trajectory.distances, plane.explained_variance_ratio))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_flat_direction_and_one_that_does_not_fit():
    model = Net(dtype=torch.cfloat)
    numbers = np.arange(40, dtype=np.float32)
    line = LinearLossLandscape(model, 3).precomputed(numbers)
    np.testing.assert_array_equal(ModelParameters(line.directions[0].values()).as_numpy(), numbers)
    with pytest.raises(UserError, match="direction's v is complex, and the parameter is not"):
        LinearLossLandscape(model, 3).precomputed({"v": model.v.detach() * 1j})


# Files


def test_files(program, tmp_path):
    """The file holds complex arrays, and opens as it is; a run goes on with it, and another takes its directions."""
    words = ["--problem", PROBLEM, "--plot", "false", "--x", "-1:1:3", "--y", "-1:1:3"]
    assert program(*words, "--output", "a.h5", "--save_model").code == 0
    with h5py.File("a.h5", "r+") as file:
        values, first = file["loss"][()], file["directions/along_x/spectral.0.weight"][()]
        assert first.dtype == np.complex64 and file["model/spectral.0.weight"].dtype == np.complex64
        file["loss"][:2], file["done"][:2] = np.nan, 0
    again = program(*words, "--output", "a.h5", "--save_model")
    assert again.code == 0 and "6 still to do" in again.out, again
    with h5py.File("a.h5") as file:
        assert file["loss"][()].tobytes() == values.tobytes()
    assert program("info", "a.h5").code == 0
    assert program("export", "a.h5", "-o", "a.csv").code == 0
    other = program(*words, "--output", "b.h5", "--directions", "file", "--direction_files", "a.h5")
    assert other.code == 0, other
    with h5py.File("b.h5") as file:
        np.testing.assert_array_equal(file["directions/along_x/spectral.0.weight"][()], first)
        np.testing.assert_array_equal(file["loss"][()], values)
    plane = PlanarLossLandscape(kind.Operator(), 3).load_directions("a.h5")
    np.testing.assert_allclose(plane.compute(Loss(F.mse_loss, *kind.data())), values, rtol=1e-6)
    plane.save("c.h5", loss=values)
    np.testing.assert_array_equal(
        hpc_landscape.LinearLossLandscape(kind.Operator(), 3)
        .load_directions("c.h5")
        .directions[0]["spectral.0.weight"],
        first,
    )


def test_other_programs_read_the_file(program):
    xarray, reader = pytest.importorskip("xarray"), pytest.importorskip("vtk")
    words = ["--problem", PROBLEM, "--plot", "false", "--x", "-1:1:3", "--y", "-1:1:3"]
    assert program(*words, "--output", "a.h5", "--save_model").code == 0
    with h5py.File("a.h5") as file:
        values = file["loss"][()]
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset("a.h5", engine="h5netcdf") as dataset:
        np.testing.assert_array_equal(dataset["loss"].values, values)
    vtk = reader.vtkHDFReader()
    vtk.SetFileName("a.h5")
    vtk.Update()
    assert vtk.GetOutput().GetPointData().GetArray("loss").GetNumberOfTuples() == 9


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_direction_files(program, tmp_path, suffix):
    direction = {"spectral.0.weight": torch.randn(4, 4, 5, dtype=torch.cfloat)}
    if suffix == ".pt":
        torch.save(direction, "d.pt")
    else:
        np.savez("d.npz", **{name: d.numpy() for name, d in direction.items()})
    run = program(
        "--problem",
        PROBLEM,
        "--plot",
        "false",
        "--x",
        "-1:1:3",
        "--y",
        "none",
        "--directions",
        "file",
        "--direction_files",
        f"d{suffix}",
        "--output",
        "a.h5",
    )
    assert run.code == 0, run
    expected = []
    for c in (-1, 0, 1):
        model = kind.Operator()
        model.spectral[0].weight.data += c * direction["spectral.0.weight"]
        expected.append(F.mse_loss(model(kind.data()[0]), kind.data()[1]).item())
    with h5py.File("a.h5") as file:
        np.testing.assert_allclose(file["loss"][()], expected, rtol=1e-5)


def test_directions_of_largest_curvature(program):
    run = program(
        "--problem",
        PROBLEM,
        "--include",
        "spectral.0",
        "--plot",
        "false",
        "--x",
        "-0.1:0.1:3",
        "--y",
        "none",
        "--directions",
        "hessian",
        "--precision",
        "fp64",
        "--output",
        "a.h5",
    )
    assert run.code == 0, run
    model, (x, y) = kind.Operator(), [t.double() for t in kind.data()]
    whole = {
        name: p.detach().to(torch.complex128 if p.is_complex() else torch.float64)
        for name, p in model.named_parameters()
    }
    with h5py.File("a.h5") as file:
        direction, value = file["directions/along_x/spectral.0.weight"][()], file.attrs["hessian_eigenvalues"][0]
    name = "spectral.0.weight"

    def loss(t: Tensor) -> Tensor:
        there = whole | {name: whole[name] + t * torch.as_tensor(direction)}
        return F.mse_loss(torch.func.functional_call(model, there, (x,)), y)

    second = torch.autograd.functional.hessian(loss, torch.zeros((), dtype=torch.float64)).item()
    assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-5)
    assert second == pytest.approx(value, rel=1e-4)


def test_data_is_any_kind_of_batch():
    """A loader of complex batches."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*kind.waves()), batch_size=7)
    found = hpc_landscape.point(kind.Signals(), Loss(kind.power, Data(loader)))
    assert found == pytest.approx(kind.right_signals(kind.Signals().eval()).item(), rel=1e-6)
