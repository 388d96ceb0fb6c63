"""Directions to other models, along a trajectory and from files, in the batch program: against NumPy in float64."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
import xarray
from problems_for_tests.small_problem_for_tests import network, samples
from programs import PROBLEMS, read
from torch.nn import functional as F

SMALL = f"{PROBLEMS / 'small_problem_for_tests.py'}:small"
ORIGIN = network(0)


def vector(model) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def loss_at(flat: np.ndarray) -> float:
    model = network(0)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(flat), model.parameters())
    inputs, target = samples(20, 1)
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs), target))


def flat(file: h5py.File, group: str) -> np.ndarray:
    return np.concatenate([file[f"{group}/{name}"][()].reshape(-1) for name, _ in ORIGIN.named_parameters()])


def save(path, seed: int):
    torch.save(network(seed).state_dict(), path)
    return path


def test_the_line_to_another_model(program, tmp_path):
    save(tmp_path / "b.pt", 1)
    done = program("--problem", SMALL, "--directions=interpolation", "--to=b.pt")
    assert done.code == 0, done
    x, loss = read("landscape.h5", "x", "loss")
    a, b = vector(network(0)), vector(network(1))
    np.testing.assert_array_equal(x, np.linspace(-0.5, 1.5, 41))
    np.testing.assert_allclose(loss, [loss_at(a + t * (b - a)) for t in x], rtol=1e-12)
    assert loss[10] == loss_at(a) and loss[30] == loss_at(b)  # the models themselves, bitwise
    with h5py.File("landscape.h5") as file:
        np.testing.assert_array_equal(flat(file, "directions/along_x"), b - a)
    assert (tmp_path / "landscape.png").stat().st_size > 5000


def test_the_plane_through_three_models(program, tmp_path):
    save(tmp_path / "b.pt", 1)
    save(tmp_path / "c.pt", 2)
    done = program("--problem", SMALL, "--directions=interpolation", "--to=b.pt,c.pt", "--x=0:1:3", "--y=0:2:5")
    assert done.code == 0, done
    x, y, loss = read("landscape.h5", "x", "y", "loss")
    a, b, c = (vector(network(seed)) for seed in range(3))
    by_hand = [[loss_at(a + s * (b - a) + t * (c - a)) for t in y] for s in x]
    np.testing.assert_allclose(loss, by_hand, rtol=1e-11)
    assert (loss[0, 0], loss[2, 0], loss[0, 2]) == (loss_at(a), loss_at(b), loss_at(c))


def trajectory(folder, n: int = 12) -> np.ndarray:
    """Checkpoints epoch0 ... on an ellipse in a plane through the origin, ending there; the plane's axes."""
    draw = np.random.default_rng(7)
    a = vector(ORIGIN)
    axes = np.linalg.qr(draw.standard_normal((a.size, 2)))[0].T
    folder.mkdir()
    model = network(0)
    for i in range(n):
        angle = np.pi * (1 - i / (n - 1))
        point = a + 3 * (np.cos(angle) - 1) * axes[0] + np.sin(angle) * axes[1]
        torch.nn.utils.vector_to_parameters(torch.from_numpy(point), model.parameters())
        torch.save({"state_dict": model.state_dict()}, folder / f"epoch{i}.pt")
    return axes


def test_pca_of_a_trajectory_is_its_plane(program, tmp_path):
    axes = trajectory(tmp_path / "run")
    done = program("--problem", SMALL, "--directions=pca", "--trajectory=run")
    assert done.code == 0, done
    assert "epoch11" in done.out  # the last one is the origin
    with h5py.File("landscape.h5") as file:
        found = np.stack([flat(file, "directions/along_x"), flat(file, "directions/along_y")])
        ratios = file.attrs["explained_variance_ratio"]
        way = np.stack([file["trajectory/x"][()], file["trajectory/y"][()]], axis=1)
        labels = [label.decode() for label in file["trajectory/label"][()]]
        distance = file["trajectory/distance"][()]
        x, y, loss = (file[name][()] for name in ("x", "y", "loss"))
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.T @ found, axes.T @ axes, atol=1e-12)  # the same plane
    np.testing.assert_allclose(ratios.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(way[0]), 6, rtol=1e-12)
    np.testing.assert_allclose(way[-1], 0, atol=1e-12)
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    assert labels == [f"epoch{i}" for i in range(12)]
    with xarray.open_dataset("landscape.h5", engine="h5netcdf", group="trajectory") as data:
        assert data["x"].dims == data["y"].dims == data["label"].dims == ("checkpoint",), "not the grid's own x"
        np.testing.assert_array_equal(np.stack([data["x"], data["y"]], axis=1), way)
    assert x[0] < way[:, 0].min() and x[-1] > way[:, 0].max() and y[0] < way[:, 1].min() and y[-1] > way[:, 1].max()
    origin = vector(network(0)) + 0.0
    i, j = 3, 20
    np.testing.assert_allclose(loss[i, j], loss_at(origin + x[i] * found[0] + y[j] * found[1]), rtol=1e-7)


def test_a_trajectory_on_a_random_plane_is_least_squares(program, tmp_path):
    trajectory(tmp_path / "run", 5)
    done = program("--problem", SMALL, "--x=-0.01:0.01:3", "--y=-1:1:3", "--trajectory=run/*.pt")
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        directions = np.stack([flat(file, "directions/along_x"), flat(file, "directions/along_y")], axis=1)
        way = np.stack([file["trajectory/x"][()], file["trajectory/y"][()]], axis=1)
        distance = file["trajectory/distance"][()]
    model = network(0)
    for i in range(5):
        model.load_state_dict(torch.load(tmp_path / f"run/epoch{i}.pt")["state_dict"])
        step = vector(model) - vector(ORIGIN)
        expected = np.linalg.lstsq(directions, step, rcond=None)[0]
        np.testing.assert_allclose(way[i], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(distance[i], np.linalg.norm(step - directions @ expected), rtol=1e-9, atol=1e-9)
    outside = ((np.abs(way[:, 0]) > 0.01) | (np.abs(way[:, 1]) > 1)).sum()
    assert (
        outside and f"5 checkpoints, at most {distance.max():.3g} from the plane; {outside} of them outside" in done.out
    )


def test_directions_from_an_earlier_file(program):
    grid = ("--x=-1:1:3", "--y=-1:1:3")
    assert program("--problem", SMALL, *grid, "--seed=5", "--output=first.h5").code == 0
    done = program("--problem", SMALL, *grid, "--directions=file", "--direction_files=first.h5", "--output=again.h5")
    assert done.code == 0, done
    np.testing.assert_array_equal(read("again.h5", "loss"), read("first.h5", "loss"))


def test_directions_from_arrays(program, tmp_path):
    draw = np.random.default_rng(0)
    moves = {name: draw.standard_normal(p.shape) for name, p in ORIGIN.named_parameters()}
    np.savez(tmp_path / "d.npz", **moves)
    done = program("--problem", SMALL, "--x=-1:1:3", "--y=none", "--directions=file", "--direction_files=d.npz")
    assert done.code == 0, done
    d = np.concatenate([m.reshape(-1) for m in moves.values()])
    np.testing.assert_allclose(read("landscape.h5", "loss"), [loss_at(vector(ORIGIN) + t * d) for t in (-1, 0, 1)])


def test_the_plane_of_largest_curvature(program):
    done = program("--problem", SMALL, "--directions=hessian", "--x=-1:1:3", "--y=-1:1:3")
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        found = np.stack([flat(file, "directions/along_x"), flat(file, "directions/along_y")])
        values, loss, x = file.attrs["hessian_eigenvalues"], file["loss"][()], file["x"][()]
    inputs, target = samples(20, 1)
    model = network(0)
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def of(point):
        parts = point.split([s.numel() for s in shapes])
        parameters = {n: part.reshape(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parameters, (inputs,)), target)

    hessian = torch.autograd.functional.hessian(of, torch.from_numpy(vector(model))).numpy()
    expected, vectors = np.linalg.eigh(hessian)
    np.testing.assert_allclose(values, expected[[-1, -2]], rtol=1e-6)
    np.testing.assert_allclose(np.abs(found @ vectors[:, [-1, -2]]), np.eye(2), atol=1e-5)
    np.testing.assert_allclose(loss[2, 0], loss_at(vector(model) + x[2] * found[0] + x[0] * found[1]), rtol=1e-10)


KINDS = {
    "hessian": ("--directions=hessian", "--x=-1:1:3", "--y=-1:1:3"),
    "interpolation": ("--directions=interpolation", "--to=b.pt,b2.pt", "--x=0:1:5", "--y=0:1:5"),
    "pca": ("--directions=pca", "--trajectory=run"),
    "file": ("--directions=file", "--direction_files=first.h5"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("kept", ["true", "false"])
def test_an_unfinished_file_goes_on(program, tmp_path, kind, kept):
    """Points are taken out of a complete file; the same command fills them in with the same bits."""
    save(tmp_path / "b.pt", 1)
    save(tmp_path / "b2.pt", 2)
    trajectory(tmp_path / "run", 5)
    assert program("--problem", SMALL, "--x=-1:1:3", "--y=-1:1:3", "--output=first.h5").code == 0
    command = ("--problem", SMALL, *KINDS[kind], f"--save_directions={kept}", "--plot=false")
    if kind == "file":
        command += ("--x=-1:1:5", "--y=-1:1:5")
    assert program(*command).code == 0
    whole = read("landscape.h5", "loss")
    with h5py.File("landscape.h5", "r+") as file:
        file["done"][1:, ::2] = 0
        file["loss"][1:, ::2] = np.nan
    done = program(*command)
    assert done.code == 0 and "(going on)" in done.out, done
    np.testing.assert_array_equal(read("landscape.h5", "loss"), whole)


def test_another_end_is_another_run(program, tmp_path):
    save(tmp_path / "b.pt", 1)
    command = ("--problem", SMALL, "--directions=interpolation", "--to=b.pt", "--x=0:1:3")
    assert program(*command).code == 0
    save(tmp_path / "b.pt", 2)  # the same name, another model
    before = (tmp_path / "landscape.h5").read_bytes()
    done = program(*command)
    assert done.code == 2 and "directions" in done.err, done
    assert (tmp_path / "landscape.h5").read_bytes() == before


def test_only_what_is_included_moves(program):
    command = ("--problem", SMALL, "--x=-1:1:3", "--y=none", "--ignore=none")
    assert program(*command, "--include=2", "--output=last.h5").code == 0
    assert program(*command, "--exclude=*.bias,0", "--output=rest.h5").code == 0
    with h5py.File("last.h5") as last, h5py.File("rest.h5") as rest:
        assert set(last["directions/along_x"]) == {"2.weight", "2.bias"}
        assert set(rest["directions/along_x"]) == {"2.weight"}
        moved = network(0)
        with torch.no_grad():
            moved[2].weight += torch.from_numpy(rest["directions/along_x/2.weight"][()])
        np.testing.assert_allclose(rest["loss"][2], loss_at(vector(moved)), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--directions=interpolation",), "needs --to"),
        (("--directions=pca",), "needs --trajectory"),
        (("--directions=file",), "needs --direction_files"),
        (("--to=b.pt",), "goes with --directions interpolation"),
        (("--directions=interpolation", "--to=missing.pt"), "missing.pt"),
        (("--directions=interpolation", "--to=other.pt"), "does not fit the model"),
        (("--directions=interpolation", "--to=b.pt", "--y=0:1:3"), "--y"),
        (("--directions=interpolation", "--to=b.pt", "--normalization=filter"), "no --normalization"),
        (("--directions=interpolation", "--to=same.pt"), "--to same.pt: model 1"),
        (("--directions=pca", "--trajectory=empty"), "--trajectory"),
        (("--directions=pca", "--trajectory=b.pt"), "b.pt"),
        (("--directions=file", "--direction_files=b.npz"), "b.npz"),
        (("--include=nothing",), "--include nothing"),
        (("--exclude=*",), "no parameter is left"),
    ],
)
def test_mistakes_are_one_line(program, tmp_path, options, said):
    save(tmp_path / "b.pt", 1)
    save(tmp_path / "same.pt", 0)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    done = program("--problem", SMALL, *options)
    assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("hpc_landscape: error:"), done
    assert said in done.err, done
    assert not (tmp_path / "landscape.h5").exists()
