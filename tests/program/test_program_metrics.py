"""Metrics of every kind in the batch program: by name, on several sets, one's own, of parts of models and of agents."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from problems_for_tests.small_problem_for_tests import Agent, network, samples
from programs import PROBLEMS, assert_same_landscape, read, run_program
from torch.nn import functional as F

FILE = PROBLEMS / "small_problem_for_tests.py"
GRID = ("--x=-1:1:3", "--y=-0.5:0.5:2", "--ignore=none")


def moved(file: h5py.File, i: int, j: int, model=None) -> torch.nn.Module:
    """The network at that point of the file's grid."""
    model = network(0) if model is None else model
    with torch.no_grad():
        for name, p in model.named_parameters():
            for axis, at in (("x", i), ("y", j)):
                if name in file[f"directions/along_{axis}"]:
                    p += file[axis][at] * torch.from_numpy(np.asarray(file[f"directions/along_{axis}/{name}"][()]))
    return model


def dense_hessian(model, inputs, target) -> np.ndarray:
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        parameters = {n: part.reshape(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parameters, (inputs,)), target)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat).numpy()


def test_curvature_and_gradients_by_name(program):
    names = "loss,accuracy(k=2),loss_gradient,gradient_norm,gradient_predictiveness(step=0.5),curvature(n=2)"
    names += ",hessian_trace(n_vectors=16),loss_perturbations(n_directions=3,alpha=0.2)"
    done = program("--problem", f"{FILE}:small", *GRID, f"--metrics={names}")
    assert done.code == 0, done
    inputs, target = samples(20, 1)
    with h5py.File("landscape.h5") as file:
        dims = {name: tuple(dim.label for dim in file[name].dims)[2:] for name in file if "gradient" in name}
        assert dims["loss_gradient"] == ("parameter",) and dims["gradient_norm"] == ()
        assert file["loss_perturbations"].shape == (3, 2, 3)
        for i, j in ((0, 0), (2, 1)):
            model = moved(file, i, j)
            output = model(inputs)
            gradients = torch.autograd.grad(F.cross_entropy(output, target), list(model.parameters()))
            gradient = torch.cat([g.reshape(-1) for g in gradients]).numpy()
            best = output.topk(2, dim=1).indices
            assert file["accuracy_top2"][i, j] == pytest.approx(float((best == target[:, None]).any(1).double().mean()))
            np.testing.assert_allclose(file["loss_gradient"][i, j], gradient, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(file["gradient_norm"][i, j], np.linalg.norm(gradient), rtol=1e-10)
            hessian = dense_hessian(model, inputs, target)
            values = np.linalg.eigvalsh(hessian)
            np.testing.assert_allclose(file["curvature"][i, j], values[[0, 1, -2, -1]], rtol=1e-4)
            estimate, error = file["hessian_trace"][i, j]
            assert abs(estimate - np.trace(hessian)) < 5 * error + 1e-9


def test_the_file_with_trailing_axes_opens_in_xarray(program):
    xarray = pytest.importorskip("xarray")
    assert program("--problem", f"{FILE}:small", *GRID, "--metrics=loss,loss_gradient").code == 0
    try:
        with xarray.open_dataset("landscape.h5", engine="h5netcdf") as opened:
            assert opened["loss_gradient"].dims == ("x", "y", "parameter") and opened["loss"].dims == ("x", "y")
    except ValueError as error:
        pytest.skip(f"this h5netcdf cannot: {error}")


def test_two_sets_from_one_placement(program):
    done = program("--problem", f"{FILE}:two_sets", *GRID)
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} < set(file)
        assert file.attrs["sha256_data_train"] != file.attrs["sha256_data_test"]
        model = moved(file, 2, 0)
        for name, (inputs, target) in {"train": samples(20, 1), "test": samples(9, 2)}.items():
            with torch.no_grad():
                output = model(inputs)
            assert file[f"{name}_loss"][2, 0] == pytest.approx(float(F.cross_entropy(output, target)), rel=1e-12)
            right = float((output.argmax(1) == target).double().mean())
            assert file[f"{name}_accuracy"][2, 0] == pytest.approx(right, rel=1e-12)


def test_one_metric_on_one_set(program):
    done = program("--problem", f"{FILE}:two_sets", *GRID, "--metrics=loss,test_gradient_norm")
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        assert {"train_loss", "test_loss", "test_gradient_norm"} < set(file) and "train_gradient_norm" not in file


def test_metrics_of_ones_own(program):
    names = f"loss,{FILE}:Norms(order=1),{FILE}:Margin"
    done = program("--problem", f"{FILE}:small", *GRID, f"--metrics={names}")
    assert done.code == 0, done
    inputs, target = samples(20, 1)
    with h5py.File("landscape.h5") as file:
        assert file["norms"].shape == (3, 2, 4)
        model = moved(file, 0, 1)
        norms = [np.abs(p.detach().numpy()).sum() for p in model.parameters()]
        np.testing.assert_allclose(file["norms"][0, 1], norms, rtol=1e-12)
        scores = model(inputs).detach().numpy()
        margin = (scores[np.arange(20), target.numpy()] - scores.mean(1)).mean()
        assert file["margin"][0, 1] == pytest.approx(margin, rel=1e-10)
    assert program("plot", "landscape.h5", "--metric=norms[2]").code == 0
    info = program("info", "landscape.h5")
    assert "norms[3]" in info.out and "margin" in info.out


@pytest.mark.parametrize("others", ["", "loss,"])
def test_what_a_metric_writes_is_undone_before_the_next_point(program, others):
    """Into a parameter that does not move, too, and whatever was computed before the metrics were chosen."""
    done = program("--problem", f"{FILE}:small", *GRID, "--exclude=2.bias", f"--metrics={others}{FILE}:Writes")
    assert done.code == 0, done
    *_, last = network(0).parameters()
    np.testing.assert_array_equal(read("landscape.h5", "writes"), np.full((3, 2), last.sum().item()))
    if others:
        inputs, target = samples(20, 1)
        with h5py.File("landscape.h5") as file:
            for i, j in ((0, 0), (2, 1)):
                expected = F.cross_entropy(moved(file, i, j)(inputs), target).item()
                assert file["loss"][i, j] == pytest.approx(expected, rel=1e-12)


def test_a_part_of_a_model_with_its_own_call(program):
    done = program("--problem", f"{FILE}:last_layer", *GRID)
    assert done.code == 0 and "31 in 4 tensors, of which 15 can move" in done.out, done
    inputs, target = samples(20, 1)
    with h5py.File("landscape.h5") as file:
        assert set(file["directions/along_x"]) == {"2.weight", "2.bias"}
        output = 2 * moved(file, 0, 0)(inputs).detach()
        assert file["loss"][0, 0] == pytest.approx(float(F.cross_entropy(output, target)), rel=1e-12)


def test_an_agent_with_a_metric_of_its_own(program):
    done = program("--problem", f"{FILE}:agent", *GRID)
    assert done.code == 0 and "no data" in done.out, done
    with h5py.File("landscape.h5") as file:
        assert all(name.startswith("policy.") for name in file["directions/along_x"])
        policy = Agent().policy
        with torch.no_grad():
            for name, p in policy.named_parameters():
                for axis, at in (("x", 2), ("y", 1)):
                    p += file[axis][at] * torch.from_numpy(file[f"directions/along_{axis}/policy.{name}"][()])
        norms = [np.linalg.norm(p.detach().numpy()) for p in policy.parameters()]
        np.testing.assert_allclose(file["norms"][2, 1], norms, rtol=1e-12)


def test_an_agent_s_checkpoint(program, tmp_path):
    weights = {f"policy.{k}": v for k, v in network(8).state_dict().items()}
    weights |= {f"critic.{k}": v for k, v in network(9).state_dict().items()}
    torch.save(weights, tmp_path / "agent.pt")
    done = program("--problem", f"{FILE}:agent", "--x=-1:1:3", "--y=none", "--checkpoint=agent.pt")
    assert done.code == 0, done
    norms = [np.linalg.norm(p.detach().numpy()) for p in network(8).parameters()]
    np.testing.assert_allclose(read("landscape.h5", "norms")[1], norms, rtol=1e-12)


def test_returns_of_a_gymnasium_agent(program):
    gymnasium = pytest.importorskip("gymnasium")
    grid = ("--x=-1:1:3", "--y=none", "--ignore=none")
    done = program("--problem", f"{FILE}:player", *grid, "--metrics=expected_return(n_samples=3)")
    assert done.code == 0, done
    found = read("landscape.h5", "expected_return")
    assert found.shape == (3, 2)
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode in range(3):
        observation, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            action = int(-observation[2] - 0.5 * observation[3] < observation[2] + 0.5 * observation[3])
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    np.testing.assert_allclose(found[1], [np.mean(returns), np.std(returns, ddof=1) / np.sqrt(3)], rtol=1e-12)


@pytest.mark.mpi_stack
def test_ranks_give_the_same(tmp_path):
    """Metrics with trailing axes travel between ranks as well."""
    names = f"loss,loss_gradient,{FILE}:Norms"
    for output, ranks in (("one.h5", None), ("three.h5", 3)):
        options = ("--problem", f"{FILE}:two_sets", *GRID, f"--metrics={names}", f"--output={output}", "--plot=false")
        done = run_program(*options, folder=tmp_path, ranks=ranks)
        assert done.code == 0, done
    assert_same_landscape(
        tmp_path / "three.h5", tmp_path / "one.h5", ("train_loss", "test_loss_gradient", "train_loss_gradient", "norms")
    )


@pytest.mark.parametrize(
    ("problem", "metrics", "said"),
    [
        ("small", "los", "there is no such metric"),
        ("small", "loss(k=5)", "k"),
        ("small", "accuracy(k=0)", "at least 1"),
        ("small", "accuracy(k=5", "expected name(key=value"),
        ("small", "accuracy(5)", "expected name(key=value"),
        ("small", "accuracy(k=__import__('os'))", "expected name(key=value"),
        ("small", "test_loss", "there is no such metric"),
        ("small", "loss,loss", "named twice"),
        ("small", "accuracy,accuracy(k=1)", "two metrics are called accuracy"),
        ("small", "expected_return", "no env"),
        ("small", "nothing.py:Mine", "there is no file nothing.py"),
        ("small", f"{FILE}:Nothing", "has no function 'Nothing'; it has "),
        ("small", f"{FILE}:Nothing", "Fails"),
        ("small", f"{FILE}:Agent", "not a hpc_landscape.metrics.Metric"),
        ("agent", "loss", "the problem has no data"),
        ("two_sets", "train_los", "there is no such metric"),
    ],
)
def test_mistakes_are_one_line(program, tmp_path, problem, metrics, said):
    done = program("--problem", f"{FILE}:{problem}", *GRID, f"--metrics={metrics}")
    assert done.code == 2 and done.err.count("\n") == 1, done
    assert said in done.err, done
    assert not (tmp_path / "landscape.h5").exists()


def test_a_metric_that_fails_says_where(program, tmp_path):
    done = program("--problem", f"{FILE}:small", *GRID, f"--metrics={FILE}:Fails")
    assert done.code == 2 and "this metric fails" in done.err and not (tmp_path / "landscape.h5").exists(), done


def test_a_metric_whose_shape_changes(program):
    done = program("--problem", f"{FILE}:small", *GRID, f"--metrics={FILE}:Shapeless")
    assert done.code == 2 and "expected shape (1,)" in done.err, done


def test_other_arguments_are_another_run(program, tmp_path):
    command = ("--problem", f"{FILE}:small", *GRID)
    assert program(*command, "--metrics=loss_perturbations(n_directions=2,alpha=0.1)").code == 0
    before = (tmp_path / "landscape.h5").read_bytes()
    done = program(*command, "--metrics=loss_perturbations(n_directions=2,alpha=0.2)")
    assert done.code == 2 and "metric arguments" in done.err, done
    assert (tmp_path / "landscape.h5").read_bytes() == before
