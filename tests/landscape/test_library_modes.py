"""The library's ways to compute: as exact as they are in the program, against closed loops of torch's own."""

from __future__ import annotations

import copy
import re
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from hpc_landscape import LinearLossLandscape, PlanarLossLandscape, UserError, metrics
from hpc_landscape.campaign.fallback import Choice

N, STEPS = 24, 3


def images(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    return nn.Sequential(*layers).eval()


def batches(n: int = N, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = images(n)
    return list(zip(x.split(size), y.split(size), strict=True))


def line(model: nn.Module | None = None) -> LinearLossLandscape:
    return LinearLossLandscape(network() if model is None else model, STEPS).random_line(seed=3)


def placed(landscape: LinearLossLandscape, coordinate: float, model: nn.Module) -> nn.Module:
    """The model at a point, in float64."""
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.add_(landscape.directions[0][name].double(), alpha=coordinate)
    return other


@torch.no_grad()
def losses(policy: str) -> np.ndarray:
    """By torch alone, in float64."""
    model, found = network(), []
    landscape = line(model)
    data = [(x.double(), y) for x, y in batches()]
    for c in landscape.coordinates:
        here = placed(landscape, c, model)
        if policy == "warmup":
            update_bn([x for x, _ in data], here)
        here.eval()
        here[1].training = policy == "batch"
        found.append(sum(float(F.cross_entropy(here(x), y)) * len(x) for x, y in data) / N)
    return np.array(found)


@pytest.mark.parametrize("policy", ["running", "batch", "warmup"])
def test_batch_normalization_by_its_word(policy):
    metric = metrics.Loss(nn.CrossEntropyLoss(), batches())
    np.testing.assert_allclose(line().compute(metric, bn=policy), losses(policy), rtol=1e-6)


@pytest.mark.parametrize("policy", ["running", "batch", "warmup"])
@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({}, 1e-6),
        ({"block": 2}, 2e-6),
        ({"channels_last": True}, 1e-5),
        ({"precision": "fp64"}, 1e-12),
        ({"precision": "bf16"}, 3e-2),
        ({"tune": True}, 1e-5),
    ],
    ids=str,
)
def test_fast_ways_are_as_exact_as_they_say(options: dict[str, Any], rtol: float, policy: str):
    if options.get("tune") and policy != "warmup":
        pytest.skip("measuring takes seconds: once")
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metric = metrics.Loss(nn.CrossEntropyLoss(), batches())
    landscape = line(model)
    found = landscape.compute(metric, "cpu", bn=policy, **options)
    np.testing.assert_allclose(found, losses(policy), rtol=rtol)
    if not options.get("tune"):  # the model is there already
        np.testing.assert_array_equal(line(model).compute(metric, bn=policy, **options), found)
    if not options or "bf16" in options.values():
        assert (landscape.execution_error > 0) == bool(options)
    assert abs(found - losses(policy)).max() <= landscape.execution_error + 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_channels_are_last_where_they_are_asked_for(device: str | None):
    model, seen = network(), []
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_pre_hook(lambda m, given: seen.append((m.weight.stride(1), given[0].stride(1))))
    metric = metrics.Loss(nn.CrossEntropyLoss(), batches())
    line(model).compute(metric, device, channels_last=True)
    assert (1, 1) in seen


def test_statistics_that_are_there_already_in_blocks():
    landscape, metric = line(), metrics.Loss(nn.CrossEntropyLoss(), batches())
    landscape.warm_up(metric)
    np.testing.assert_allclose(landscape.compute(metric, "cpu", block=2), losses("warmup"), rtol=2e-6)
    given = {"1.running_mean": torch.zeros(5), "1.running_var": torch.ones(5)}
    landscape.stats_initializer(given)
    plain = landscape.compute(metric)
    np.testing.assert_allclose(landscape.compute(metric, "cpu", block=2), plain, rtol=2e-6)
    assert abs(plain - losses("running")).max() < 1e-6 and abs(plain - losses("warmup")).max() > 1e-3


def test_class_weights_go_along():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    metric = metrics.Loss(nn.CrossEntropyLoss(weight=weights), batches())
    exact = line().compute(metric, "cpu", precision="fp64")
    np.testing.assert_allclose(line().compute(metric), exact, rtol=1e-6)
    assert metric.loss_fn.weight.dtype == torch.float32 and metric.data.batches[0][0].dtype == torch.float32


def test_a_metric_that_does_not_add_up_is_computed_alone():
    metric = metrics.GradientNorm(nn.CrossEntropyLoss(), batches())
    with pytest.warns(UserWarning, match="gradient_norm does not add up over batches"):
        found = line().compute(metric, "cpu", block=2)
    np.testing.assert_array_equal(found, line().compute(metric))


class ByView(nn.Module):
    """Takes its images in one order of memory alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).view(len(x), -1))


def test_what_a_model_cannot_take_falls_back_and_says_so():
    metric = metrics.Loss(nn.CrossEntropyLoss(), batches())
    with pytest.warns(UserWarning, match="computed plain, since this model cannot be evaluated as asked for"):
        found = line(ByView()).compute(metric, "cpu", channels_last=True)
    np.testing.assert_array_equal(found, line(ByView()).compute(metric))


def dense() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.Tanh(), nn.Linear(5, 4))


def test_a_way_that_is_too_far_off_is_given_up_and_says_so(tmp_path, monkeypatch):
    metric, low = metrics.Loss(nn.CrossEntropyLoss(), batches()), {"precision": "bf16", "device": "cpu"}
    plain, landscape, path = line(dense()).compute(metric), line(dense()), tmp_path / "x.h5"
    with pytest.warns(UserWarning, match="computed fp32, plain, instead of weights in bfloat16: loss is off by"):
        found = landscape.compute(metric, **low, max_error=1e-6, file=path)
    np.testing.assert_array_equal(found, plain)
    assert landscape.execution_error == 0
    with h5py.File(path) as file:
        assert (file.attrs["precision"], file.attrs["execution"]) == ("fp32", "plain")
        assert file.attrs["given_up"].startswith("weights in bfloat16: loss is off by")
    near, other = line(dense()), tmp_path / "y.h5"
    taken = near.compute(metric, **low, file=other)
    assert near.execution_error == abs(taken - plain).max() > 0  # all points were computed

    def never(*_: Any) -> None:
        raise AssertionError("it is measured once, for a new file")

    monkeypatch.setattr(Choice, "_measured", never)  # a file that is gone on with says what it is of
    with pytest.warns(UserWarning, match="as the file has it"):
        np.testing.assert_array_equal(line(dense()).compute(metric, **low, file=path), plain)
    again = line(dense())
    np.testing.assert_array_equal(again.compute(metric, **low, max_error=0, file=other), taken)
    assert again.execution_error == near.execution_error


def test_progress(capfd):
    metric = metrics.Loss(nn.CrossEntropyLoss(), batches())
    plane = PlanarLossLandscape(network(), STEPS).random_plane(seed=0)
    quiet = plane.compute(metric)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(plane.compute(metric, progress=True), quiet)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bn": "train"}, "bn='train': expected running, batch or warmup"),
        ({"precision": "fp8"}, "precision='fp8': expected fp32"),
        ({"precision": "tf32"}, "tf32: only NVIDIA GPUs have it"),
        ({"tune": True, "block": 2}, "--tune chooses"),
        ({"block": 0}, "--block 0: must be at least 1"),
        ({"max_error": -1e-3}, "--max_error -0.001: must not be negative"),
        ({"compile": True, "block": 2}, "--compile --block 2: take one of the two"),
    ],
    ids=str,
)
def test_what_makes_no_sense(options: dict[str, Any], what: str):
    with pytest.raises(UserError, match=re.escape(what)):
        line().compute(metrics.Loss(nn.CrossEntropyLoss(), batches()), "cpu", **options)


def counted(calls: list[float]) -> Any:
    """A metric that notes where it is called."""

    class Noted(metrics.Metric):
        shape = ()

        def __call__(self, model: Any) -> float:
            value = float(next(model.parameters()).detach().double().sum())
            calls.append(value)
            return value

    return Noted()


def test_a_file_is_gone_on_with(tmp_path):
    calls: list[float] = []
    plane = PlanarLossLandscape(network(), STEPS).random_plane(seed=0)
    expected = plane.compute(counted(calls))
    path = tmp_path / "x.h5"
    calls.clear()  # what a metric holds is a part of what a run is
    found = plane.compute(counted(calls), file=path, title="mine")
    np.testing.assert_array_equal(found, expected)
    with h5py.File(path, "r+") as file:
        assert file.attrs["title"] == "mine" and file.attrs["seed"] == 0 and file["done"][()].all()
        np.testing.assert_array_equal(file["noted"][()], expected)
        file["done"][1, 1:] = 0
        file["noted"][1, 1:] = np.nan
    calls.clear()
    np.testing.assert_array_equal(plane.compute(counted(calls), file=path), expected)
    assert len(calls) == 1 + 2  # one that is finished is computed again, to see that it is the same
    calls.clear()
    plane.compute(counted(calls), file=path, overwrite=True)
    assert len(calls) == 9


def test_a_file_of_another_run_is_refused(tmp_path):
    path, metric = tmp_path / "x.h5", metrics.Loss(nn.CrossEntropyLoss(), batches())
    line().compute(metric, file=path)
    before = path.read_bytes()
    other = line(network().requires_grad_(False))
    with torch.no_grad():
        next(other.model_wrapper.parameters()).add_(0.5)
    for landscape, one, what in (
        (line(), metrics.Loss(nn.CrossEntropyLoss(label_smoothing=0.1), batches()), "metric loss"),
        (line(), metrics.Loss(nn.CrossEntropyLoss(), batches(size=4)), "data"),
        (LinearLossLandscape(network(), STEPS).random_line(seed=4), metric, "directions"),
        (LinearLossLandscape(network(), 4).random_line(seed=3), metric, "grid"),
        (line(nn.Sequential(*network()[:-1], nn.Linear(80, 4))), metric, "model"),
    ):
        with pytest.raises(UserError, match=what):
            landscape.compute(one, file=path)
    with pytest.raises(UserError, match="bn"):
        line().compute(metric, file=path, bn="batch")
    assert path.read_bytes() == before


class Fails(metrics.Metric):
    """At one point, which one rank has."""

    shape = ()

    def __call__(self, model: Any) -> float:
        value = float(next(model.parameters()).detach().sum())
        if value > 0:
            raise ArithmeticError("too much")
        return value


def test_what_fails_leaves_a_file_that_is_gone_on_with(tmp_path):
    plane = PlanarLossLandscape(network(), STEPS).random_plane(seed=0)
    with pytest.raises(ArithmeticError, match="too much"):
        plane.compute(Fails(), file=tmp_path / "x.h5")
    with pytest.raises(ArithmeticError, match="too much"):
        plane.compute(Fails(), file=tmp_path / "x.h5")
