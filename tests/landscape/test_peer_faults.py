"""The faults of the programs that people use today: ours must have none of them. Each test names one, and whose it is.

G: tomgoldstein/loss-landscape. L: loss-landscapes. F: its fork with PlanarLossLandscape.
"""

from __future__ import annotations

import os
import textwrap

import h5py
import numpy as np
import pytest
import torch
from held import held
from programs import TINY, read
from test_landscape import (
    Two,
    along,
    assert_bitwise,
    bits,
    fingerprint,
    images,
    losses_by_hand,
    moved,
    network,
    other,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape import LinearLossLandscape, PlanarLossLandscape, eval_loss, eval_warm_up, point, random_plane
from hpc_landscape.metrics import Loss, LossGradient, PrincipalCurvatureEvaluator

CRITERION = nn.CrossEntropyLoss()
TINY_POINT = (f"--problem={TINY}", "--x=0:0:1", "--y=0:0:1", "--plot=false")


# A problem of two numbers: direction x moves a alone, y moves b alone


TWO = '''
    import math, os, signal
    import torch
    from torch import nn
    from hpc_landscape import Problem

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
            self.b = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))

        def forward(self, x):
            return torch.cat([self.a, self.b], dim=1).expand(len(x), 2)

    def make(formula="a", log="", stop_at=0):
        """Its loss is the formula of a and b. Each point but the model's own is logged; one of them sends SIGTERM."""
        points = []
        def loss(output, target):
            a, b = output[0].tolist()
            if (a, b) != (0, 0) and log and os.path.exists("landscape.h5"):  # else it is only tried
                points.append((a, b))
                with open(log, "a") as file:
                    print(a, b, file=file)
                if len(points) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
            return torch.tensor(eval(formula, {"a": a, "b": b, "nan": math.nan, "inf": math.inf}), dtype=torch.float64)
        return Problem(Two(), loss, (torch.zeros(3, 1), torch.zeros(3)), neutral=("log", "stop_at"))
'''


@pytest.fixture
def two(program, tmp_path):
    """Runs the program on the problem of two numbers, whose coordinates are the numbers themselves."""
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO))
    np.savez(tmp_path / "x.npz", a=np.ones((1, 1)))
    np.savez(tmp_path / "y.npz", b=np.ones((1, 1)))

    def call(*options, formula="a"):
        files = ["--directions=file", "--direction_files=x.npz,y.npz"]
        return program("--problem=two.py:make", f"--problem.formula={formula}", *files, *options)

    return call


def linspace(n: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.linspace(low, high, n)


@pytest.mark.parametrize("formula", ["a", "b", "a + 10 * b"])
@pytest.mark.parametrize("sizes", [(5, 4), (4, 5), (3, 3)])
def test_rows_are_aligned(two, formula, sizes):
    """L: the serpentine walk shifts alternate rows by one cell: a comb in every surface."""
    x, y = linspace(sizes[0]), linspace(sizes[1])
    wanted = eval(formula, {"a": x[:, None] + 0 * y, "b": 0 * x[:, None] + y})
    plane = PlanarLossLandscape(Two(0, 0), sizes).precomputed(along("a"), along("b"), distance=2)
    found = plane.compute(lambda w: eval(formula, {"a": w.get_model().a.item(), "b": w.get_model().b.item()}))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)
    done = two(f"--x=-1:1:{sizes[0]}", f"--y=-1:1:{sizes[1]}", "--plot=false", formula=formula)
    assert done.code == 0, done
    np.testing.assert_allclose(read("landscape.h5", "loss"), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [2, 3, 10, 11, 50, 51])
def test_the_model_is_in_the_middle(steps):
    """L: the trained model is on the grid only for even steps."""
    for axis in PlanarLossLandscape(network(), steps).random_plane(5, seed=0).coordinates:
        np.testing.assert_allclose(axis, -axis[::-1], rtol=0, atol=1e-14)
        assert (axis == 0).sum() == steps % 2
    if steps == 11:
        metric = Loss(CRITERION, *images())
        found = random_plane(network(), metric, distance=5, steps=steps, seed=0)
        assert found[5, 5] == point(network(), metric)


@pytest.mark.parametrize("ignore", ["biasbn", "none"])
@pytest.mark.parametrize("normalization", ["filter", "layer", "model"])
def test_zero_filters(normalization, ignore):
    """L: ZeroDivisionError as soon as one filter or bias is all zero, as in a freshly built ResNet."""
    model = network()
    with torch.no_grad():
        model[0].weight[2] = 0
        for name, p in model.named_parameters():
            if name in ("0.bias", "1.weight", "1.bias", "5.bias"):
                p.zero_()
    plane = PlanarLossLandscape(model, 3).random_plane(5, normalization, seed=0, ignore=ignore)
    assert all(bool(d.isfinite().all()) for direction in plane.directions for d in direction.values())
    assert np.isfinite(plane.compute(Loss(CRITERION, *images()))).all()
    if normalization == "filter":
        assert not any(direction["0.weight"][2].any() for direction in plane.directions)


def test_zero_weights_in_the_program(program, tmp_path):
    """L: the same, in a batch program: a model whose every parameter of one dimension is zero, and one filter."""
    code = """
        import torch
        from torch import nn
        from hpc_landscape import Problem
        def make():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim == 1:
                        p.zero_()
                model[0].weight[1] = 0
            return Problem(model, nn.CrossEntropyLoss(), (torch.randn(8, 4), torch.randint(2, (8,))))
    """
    (tmp_path / "fresh.py").write_text(textwrap.dedent(code))
    done = program("--problem=fresh.py:make", "--x=-1:1:3", "--y=-1:1:3", "--ignore=none", "--plot=false")
    assert done.code == 0, done
    assert np.isfinite(read("landscape.h5", "loss")).all()
    with h5py.File("landscape.h5") as file:
        assert not file["directions/along_x/0.weight"][1].any() and file["directions/along_x/0.weight"][0].any()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_directions_of_both_signs(program, kind):
    """L: directions are U[0,1): only the positive orthant."""
    model = nn.Linear(100, 100)
    for direction in PlanarLossLandscape(model, 3).random_plane(random=kind, seed=0).directions:
        assert 0.48 < float((direction["weight"] < 0).float().mean()) < 0.52
    done = program(*TINY_POINT, "--problem.hidden=300", f"--distribution={kind}")
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        drawn = np.concatenate([d[()].ravel() for d in file["directions/along_x"].values()])
    drawn = drawn[drawn != 0]
    assert drawn.size > 1000 and 0.45 < (drawn < 0).mean() < 0.55


def test_parameters_of_one_dimension_are_no_copies_of_the_weights():
    """L, G: 1-D parameters get the direction sign(d) * |w|, or w itself."""
    model = network(dtype=torch.float64)
    for kind in ("filter", "layer", "model"):
        for direction in PlanarLossLandscape(model, 3).random_plane(1, kind, seed=0, ignore="none").directions:
            for name, p in model.named_parameters():
                if p.ndim == 1:
                    ratio = (direction[name] / p.detach()).abs()
                    assert float(ratio.max() / ratio.min()) > 1.5, (kind, name)
    for direction in PlanarLossLandscape(model, 3).random_plane(1, seed=0).directions:
        assert all(bool(direction[n].any()) == (p.ndim > 1) for n, p in model.named_parameters())


def test_directions_are_not_skewed(program):
    """L: orthogonalized before filter normalization, which undoes it. landscaper: "orthogonal" with |cosine| 0.9997."""
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 5))
    with torch.no_grad():
        model[0].weight[:10] *= 100  # a few filters that outweigh the rest
    plane = PlanarLossLandscape(model, 3).random_plane(seed=0)
    a, b = (torch.cat([d.reshape(-1) for d in direction.values()]).double().numpy() for direction in plane.directions)
    assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) < 0.1, "as independent ones are"
    done = program(*TINY_POINT, "--orthogonalize")
    assert done.code == 2 and "--orthogonalize" in done.err and "filter" in done.err, done
    assert not os.path.exists("landscape.h5")
    done = program(*TINY_POINT, "--orthogonalize", "--normalization=model")
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        a, b = (
            np.concatenate([d[()].ravel() for _, d in sorted(file[f"directions/along_{axis}"].items())]).astype(
                np.float64
            )
            for axis in "xy"
        )
    assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) < 1e-6


def test_a_last_batch_counts_by_its_samples():
    """F: eval_loss reuses the counter variable, so that the last batch weighs 25 to 84% of the average."""
    model, (x, y) = network(), images(9)
    y[8] = (y[8] + 1) % 3
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=0)
    found = eval_loss(plane, DataLoader(TensorDataset(x, y), 4), "cpu", CRITERION)
    np.testing.assert_allclose(found, losses_by_hand(model, plane, (x, y)), rtol=1e-5)
    parts = np.array([losses_by_hand(model, plane, (x[a:b], y[a:b])) for a, b in ((0, 4), (4, 8), (8, 9))])
    assert np.abs(parts.mean(0) / found - 1).max() > 1e-2, "or the test could not tell a mean of means apart"


def test_no_drift():
    """F: it moves along accumulated sums. Each point here is the one that is computed alone, in float32."""
    model, b, c = network(), other(network(), 1), other(network(), 2)
    many = []
    keep = {"0": 0, "last": 25 * 25 - 1, "end of x": 24 * 25, "end of y": 24}
    plane = PlanarLossLandscape(model, 25).random_plane(5, seed=0)
    plane.compute(lambda w: (many.append([p.detach().clone() for p in w.parameters()]), 0.0)[1])
    alone = []
    PlanarLossLandscape(model, 2).random_plane(5, seed=0).compute(
        lambda w: (alone.append([p.detach().clone() for p in w.parameters()]), 0.0)[1]
    )
    for i, j in zip(keep.values(), (0, 3, 2, 1), strict=True):
        assert [bits(p) for p in many[i]] == [bits(p) for p in alone[j]]
    seen = []
    plane = PlanarLossLandscape(model, 25).interpolation(b, c)
    plane.compute(lambda w: (seen.append({n: p.detach().clone() for n, p in w.named_parameters()}), 0.0)[1])
    for i, end in ((0, model), (24 * 25, b), (24, c)):
        assert_bitwise(seen[i], end)


@pytest.mark.parametrize("copied", [False, True])
def test_the_user_s_model_is_left_alone(copied):
    """L: it sets requires_grad=False on the user's model for good, and hands on its tensors; F: moves them."""
    model, (x, y) = network().train(), images()
    CRITERION(model(x), y).backward()
    before = fingerprint(model)
    plane = PlanarLossLandscape(model, 4, deepcopy_model=copied)
    plane.random_plain(distance=5, normalization="filter", random="normal", seed=0)
    plane.stats_initializer()
    plane.warm_up(Loss(CRITERION, x, y))
    plane.compute(Loss(CRITERION, x, y))
    assert fingerprint(model) == before and all(p.requires_grad for p in model.parameters())
    for direction in plane.directions:
        for d in direction.values():
            d.fill_(7)
    assert fingerprint(model) == before
    with torch.no_grad():
        model[5].weight.add_(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.step()
    assert fingerprint(model) != before, "training goes on"


def test_what_a_user_does_to_directions_afterwards_moves_no_point():
    """L: start point and directions share storage with what the user holds."""
    model, metric = network(), Loss(CRITERION, *images())
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=0)
    before = plane.compute(metric)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert plane.compute(metric).tobytes() == before.tobytes()


def test_warm_up_is_no_ten_percent():
    """F: warm_up uses momentum 0.1 in one call: a 10% correction, not a re-estimate."""
    model, (x, y) = network(), images()
    with torch.no_grad():
        model[1].running_mean.fill_(1000)
        model[1].running_var.fill_(1e6)
    line = LinearLossLandscape(model, 3).random_line(2, seed=0)
    seen = []
    line.warm_up(Loss(CRITERION, x, y))
    line.compute(lambda w: (seen.append((w.root[1].running_mean.clone(), w.root[1].running_var.clone())), 0.0)[1])
    for i, (mean, variance) in enumerate(seen):
        inside = moved(model, line, (i,))[0](x.double()).detach().transpose(0, 1).flatten(1).numpy()
        np.testing.assert_allclose(mean, inside.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, inside.var(1, ddof=1), rtol=1e-4)
    assert model[1].momentum == 0.1 and bool((model[1].running_mean == 1000).all())


def test_a_projection_divides_by_the_square(program, tmp_path):
    """G: its trajectory projection divides by ||d||, not ||d||^2."""
    model = network(dtype=torch.float64)
    d = {n: 5 * torch.randn(p.shape, dtype=torch.float64) for n, p in model.named_parameters()}
    there = {n: p.detach() + 0.25 * d[n] for n, p in model.named_parameters()}
    line = LinearLossLandscape(model, 3).precomputed(d)
    np.testing.assert_allclose(line.project([there]), [[0.25]], rtol=1e-10)

    assert program(*TINY_POINT, "--save_model").code == 0
    with h5py.File("landscape.h5") as file:
        state = {n: torch.from_numpy(np.asarray(t[()])) for n, t in file["model"].items()}
        x, y = ({n: torch.from_numpy(t[()]) for n, t in file[f"directions/along_{axis}"].items()} for axis in "xy")
    where = [(0.0, 0.0), (0.5, -0.25), (-2.0, 1.0)]
    for i, (a, b) in enumerate(where):
        torch.save(state | {n: state[n] + a * x[n] + b * y[n] for n in x}, tmp_path / f"epoch{i}.pt")
    done = program(*TINY_POINT, "--trajectory=epoch*.pt", "--output=way.h5", "--checkpoint=epoch0.pt")
    assert done.code == 0, done
    found = np.stack(read("way.h5", "trajectory/x", "trajectory/y"), axis=1)
    np.testing.assert_allclose(found, where, atol=1e-5)


def test_no_copies_of_modules_for_each_point():
    """F: it keeps steps^2 deep copies of every buffer."""
    model, data = network(), images()
    model.register_buffer("large", torch.zeros(100_000))
    plane = PlanarLossLandscape(model, 10).random_plane(1, seed=0)
    plane.compute(Loss(CRITERION, *data))

    modules, size = held()
    plane.stats_initializer()
    plane.warm_up(Loss(CRITERION, *data))
    plane.compute(Loss(CRITERION, *data))
    modules_after, size_after = held()
    assert modules_after == modules and size_after - size < 100 * 2 * 4 * 4 * 2


def test_gradient_and_curvature_metrics_run():
    """L: LossGradient cannot run; curvature metrics are commented out."""
    model, (x, y) = nn.Linear(3, 2).double(), (torch.randn(6, 3).double(), torch.randint(2, (6,)))
    line = LinearLossLandscape(model, 3).random_line(2, seed=0)
    gradients = line.compute(LossGradient(CRITERION, x, y))
    curvature = line.compute(PrincipalCurvatureEvaluator(CRITERION, x, y, 1))
    assert gradients.shape == (3, 8)
    for i in range(3):
        here = moved(model, line, (i,))

        def loss(flat):
            return F.cross_entropy(x @ flat[:6].reshape(2, 3).T + flat[6:], y)  # noqa: B023

        flat = torch.cat([p.detach().reshape(-1) for p in here.parameters()])
        np.testing.assert_allclose(gradients[i], torch.func.grad(loss)(flat), rtol=1e-10, atol=1e-14)
        eigenvalues = np.linalg.eigvalsh(torch.func.hessian(loss)(flat).numpy())
        np.testing.assert_allclose(curvature[i], [eigenvalues[0], eigenvalues[-1]], rtol=1e-3, atol=1e-6)


def test_running_statistics_are_never_moved():
    """G with states, loss-landscape-3d: BN's running variance is perturbed, goes negative, and NaN follows."""
    model, data = network(), images()
    plane = PlanarLossLandscape(model, 5).random_plane(50, seed=0, ignore="none")
    assert set(plane.directions[0]) == set(dict(model.named_parameters()))
    seen = []
    plane.compute(lambda w: (seen.append([b.clone() for b in w.root.buffers()]), 0.0)[1])
    assert all(torch.equal(a, b) for point in seen for a, b in zip(point, model.buffers(), strict=True))
    eval_warm_up(plane, DataLoader(TensorDataset(*data), 6), "cpu")
    assert np.isfinite(plane.compute(Loss(CRITERION, *data))).all(), "however far"


# The batch program's file


EXACT = "nan if a + b > 1 else inf if a + b < -1 else a + b"


def expected(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = x[:, None] + y
    return np.where(total > 1, np.nan, np.where(total < -1, np.inf, total))


def points_of(path) -> list[tuple[float, float]]:
    return [tuple(map(float, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def test_zero_and_nan_are_values_like_others(two, tmp_path):
    """G: NaN counts as done although it was never computed; an exact 0 is computed again for ever."""
    grid = ("--x=0.25:1.25:3", "--y=-1.25:-0.25:3", "--plot=false")
    far = ("--x=-1.25:1.25:6", "--y=-1.25:1.25:6", "--plot=false")  # the model, at (0, 0), is off both grids
    done = two(*far, "--problem.log=first", "--problem.stop_at=16", formula=EXACT)
    assert done.code == 75, done
    flags, loss = read("landscape.h5", "done", "loss")
    x = linspace(6, -1.25, 1.25)
    wanted = expected(x, x)
    assert flags.sum() == 16 and np.isinf(loss[flags == 1]).any() and (loss[flags == 1] == 0).any()
    np.testing.assert_array_equal(loss[flags == 1], wanted[flags == 1])
    assert np.isnan(loss[flags == 0]).all()
    done = two(*far, "--problem.log=second", formula=EXACT)
    assert done.code == 0, done
    first, second = points_of(tmp_path / "first"), points_of(tmp_path / "second")
    assert second.pop(0) in first, "a finished one, to be compared"
    assert len(set(first)) == 16 and len(set(second)) == 20 and not set(first) & set(second), "each point once"
    assert len(second) == 20
    flags, loss = read("landscape.h5", "done", "loss")
    np.testing.assert_array_equal(loss, wanted)
    assert flags.all() and (loss == 0).sum() == 6 and np.isnan(loss).sum() > 0 and np.isinf(loss).sum() > 0
    done = two(*far, "--problem.log=third", formula=EXACT)
    assert done.code == 0 and "is complete" in done.out and not points_of(tmp_path / "third"), done
    assert two(*grid, "--output=zeros.h5", "--problem.log=zeros", formula="0 * a").code == 0
    assert len(points_of(tmp_path / "zeros")) == 9 and not read("zeros.h5", "loss").any()
    assert two(*grid, "--output=zeros.h5", "--problem.log=again", formula="0 * a").code == 0
    assert not points_of(tmp_path / "again")


def test_nan_stays_nan(two):
    """landscaper: NaN is replaced by the mean."""
    done = two("--x=-1:1:3", "--y=-1:1:3", "--plot=false", formula="nan if a > 0 else b")
    assert done.code == 0, done
    loss = read("landscape.h5", "loss")
    assert np.isnan(loss[2]).all() and loss[:2].tolist() == [[-1, 0, 1]] * 2
    line = LinearLossLandscape(Two(0, 0), 3).precomputed(along("a"), 2)
    found = line.compute(lambda w: float("nan") if w.get_model().a > 0 else 1.0)
    assert found[:2].tolist() == [1, 1] and np.isnan(found[2])


@pytest.mark.parametrize("kind", ["contour", "heatmap", "surface"])
def test_plots_of_planes_that_are_not_square(two, program, monkeypatch, kind):
    """G: nx != ny breaks its plots."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    assert two("--x=-1:1:5", "--y=-3:3:4", "--plot=false", formula="a + 10 * b").code == 0
    saved, save = [], figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
    done = program("plot", "landscape.h5", "-o", "picture.png", "--kind", kind)
    assert done.code == 0, done
    with open("picture.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
    panel = saved[0].axes[0]
    if kind == "heatmap":
        mesh = panel.collections[0]
        assert mesh.get_array().shape == (4, 5)
        corners = mesh.get_coordinates()
        x, y = np.moveaxis((corners[:-1, :-1] + corners[1:, 1:]) / 2, -1, 0)
        np.testing.assert_allclose(mesh.get_array(), x + 10 * y, atol=1e-12)
    if kind == "contour":
        assert panel.get_xlim() == (-1, 1) and panel.get_ylim() == (-3, 3)


def test_another_checkpoint_under_the_same_name_is_another_run(two, tmp_path):
    """G: reuse is by file name alone: another checkpoint under the same name mixes surfaces silently."""
    job = ("--x=-1:1:3", "--y=-1:1:3", "--plot=false", "--checkpoint=weights.pt")

    def checkpoint(a):
        torch.save({"a": torch.full((1, 1), a).double(), "b": torch.zeros(1, 1).double()}, tmp_path / "weights.pt")

    checkpoint(0.25)
    done = two(*job, "--problem.log=log", "--problem.stop_at=4")
    assert done.code == 75, done
    before = (tmp_path / "landscape.h5").read_bytes()
    checkpoint(0.5)
    done = two(*job)
    assert done.code == 2 and "model" in done.err and "--overwrite" in done.err, done
    assert (tmp_path / "landscape.h5").read_bytes() == before
    checkpoint(0.25)
    assert two(*job).code == 0
    np.testing.assert_allclose(read("landscape.h5", "loss"), np.repeat([[-0.75], [0.25], [1.25]], 3, axis=1))
    checkpoint(0.5)
    done = two(*job)
    assert done.code == 2 and "model" in done.err, "nor is a complete one an answer"


def test_a_mean_over_samples_in_the_program(program, tmp_path):
    """F: the last batch weighs too much, in the batch program's loss and accuracy as well."""
    code = """
        import torch
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset
        from hpc_landscape import Problem
        def make():
            data = TensorDataset(torch.arange(9.0)[:, None] ** 2, torch.zeros(9, 1))
            model = nn.Linear(1, 1, bias=False)
            nn.init.ones_(model.weight)
            return Problem(model, nn.L1Loss(), DataLoader(data, batch_size=4))
    """
    (tmp_path / "uneven.py").write_text(textwrap.dedent(code))
    done = program("--problem=uneven.py:make", "--x=0:0:1", "--y=none", "--plot=false")
    assert done.code == 0, done
    assert read("landscape.h5", "loss")[0] == pytest.approx(sum(i**2 for i in range(9)) / 9, rel=1e-12)


def test_the_program_leaves_no_point_to_the_order(two, tmp_path):
    """F, L: what was computed before shows in a point's value: here a run in two parts is the run in one, bitwise."""
    formula = "a ** 2 / 3 + b / 7"
    grid = ("--x=-1:1:4", "--y=-1:1:4", "--plot=false")
    assert two(*grid, "--problem.log=log", "--problem.stop_at=5", formula=formula).code == 75
    assert two(*grid, formula=formula).code == 0
    assert two(*grid, "--output=once.h5", formula=formula).code == 0
    assert read("landscape.h5", "loss").tobytes() == read("once.h5", "loss").tobytes()
