"""On a GPU: the same landscape as on the CPU in float64, in every way to compute it, and the model back where it was.

The same is run on the CPU, as far as there is nothing of a GPU in it: so it is known to work before it meets one.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpc_landscape import PlanarLossLandscape, Problem
from hpc_landscape.data.prepare import prepare
from hpc_landscape.data.resident import MovedBatches
from hpc_landscape.directions.base import Origin
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.evaluate.build import how_placed
from hpc_landscape.evaluate.evaluator import DTYPES, Evaluator, as_array
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.metrics import (
    Accuracy,
    Data,
    GradientNorm,
    GradientPredictiveness,
    HessianTrace,
    Loss,
    LossGradient,
    Metric,
    PrincipalCurvatureEvaluator,
)
from hpc_landscape.metrics.criterion import loss_on
from hpc_landscape.model import state
from hpc_landscape.model.folding import find_pairs
from hpc_landscape.model.placement import Placement
from hpc_landscape.problems.digits import digits, load_digits
from hpc_landscape.settings import Settings
from hpc_landscape.store.layout import read_values

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
GPU = pytest.param("cuda", marks=NO_GPU)
everywhere = pytest.mark.parametrize("device", ["cpu", GPU])
on_a_gpu = pytest.mark.parametrize("device", [GPU])
policies = pytest.mark.parametrize("policy", ["warmup", "batch", "running"])

POINTS = [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0)]
BFLOAT16 = torch.bfloat16
# On the CPU float32 is off by 2e-6, and bfloat16 by 4e-3.
NEAR = {"fp64": 1e-9, "fp32": 3e-5, "tf32": 5e-3, "bf16": 2e-2}  # relative, of a loss
SIDES = {"fp64": 0.0, "fp32": 2e-3, "tf32": 5e-3, "bf16": 1e-2}  # of an accuracy: some scores are nearly equal
LAST = ExecutionMode(channels_last=True)
LOW = ExecutionMode(compute_dtype=BFLOAT16, channels_last=True)
EAGER = [
    LAST,
    LOW,
    ExecutionMode(compute_dtype=BFLOAT16),
    ExecutionMode(autocast=True),
    ExecutionMode(autocast=True, channels_last=True),
    ExecutionMode(stacked=2),
    ExecutionMode(stacked=3, channels_last=True),
    ExecutionMode(stacked=2, autocast=True),
    ExecutionMode(interleaved=2),
    ExecutionMode(interleaved=3, channels_last=True),
    ExecutionMode(interleaved=2, channels_last=True, compute_dtype=BFLOAT16),
]
ONE_BY_ONE = [mode for mode in EAGER if mode.stacked == 1]
COMPILED = [
    ExecutionMode(channels_last=True, compiled="default"),
    ExecutionMode(channels_last=True, compiled="default", compute_dtype=BFLOAT16),
    ExecutionMode(compiled="reduce-overhead"),
    ExecutionMode(channels_last=True, compiled="reduce-overhead", compute_dtype=BFLOAT16),
    ExecutionMode(channels_last=True, compiled="default", autocast=True),
]


def name_of(mode: Any) -> str:
    turns = f", {mode.interleaved} by turns" if isinstance(mode, ExecutionMode) and mode.interleaved > 1 else ""
    return f"{mode}{turns}"


def precision_of(mode: ExecutionMode) -> str:
    return "bf16" if mode.autocast or mode.compute_dtype else "fp32"


# What is evaluated


class Pairs(nn.Module):
    """Batch normalization as it follows other layers: with a bias before it, in groups, without scale and shift, after
    a transposed and a dilated convolution, twice after the same one, after an activation, and after a linear layer.
    """

    def __init__(self):
        super().__init__()
        self.biased, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8, affine=False)
        self.strided, self.bn3 = nn.Conv2d(8, 16, 3, 2, 2, dilation=2), nn.BatchNorm2d(16, eps=1e-2)
        self.transposed, self.bn4 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.shared, self.bn5, self.bn6 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.hidden, self.bn7, self.linear = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.biased(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = self.bn3(torch.relu(self.strided(x)))
        x = self.shared(torch.relu(self.bn4(self.transposed(x))))
        x = torch.relu(self.bn5(x)) + self.bn6(x)
        return self.linear(torch.tanh(self.bn7(self.hidden(x.mean(dim=(2, 3))))))


def pairs() -> Problem:
    return _untrained(Pairs())


def mlp() -> Problem:
    return _untrained(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Linear(12, 10)))


def lenet() -> Problem:
    """Without batch normalization."""
    first = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return _untrained(nn.Sequential(*first, nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)))


def _untrained(model: nn.Module) -> Problem:
    """The model with statistics, scales and shifts as training may leave them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in state.state(model).items():
            if tensor.is_floating_point():
                fan = max(1, tensor[0].numel()) if tensor.ndim else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan**-0.5)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    x, y = load_digits()[0]
    return Problem(model, nn.CrossEntropyLoss(), (x[:600], y[:600]))


def resnet() -> Problem:
    problem = digits(epochs=2)
    problem.train(problem.model)
    return problem


@functools.cache
def made(make: Callable[[], Problem]) -> tuple[Problem, Any]:
    """(a problem, two directions)."""
    problem = make()
    return problem, make_directions(Settings().for_directions, Origin(state.parameters(problem.model))).vectors


def loss_and_accuracy(loss: Any, data: Data) -> dict[str, Metric]:
    return {"loss": Loss(loss, data), "accuracy": Accuracy(data)}


def evaluator_of(
    make: Callable[[], Problem],
    device: str,
    precision: str,
    mode: ExecutionMode = PLAIN,
    policy: str = "warmup",
    metrics: Callable[[Any, Data], dict[str, Metric]] = loss_and_accuracy,
) -> Evaluator:
    problem, directions = made(make)
    where, dtype = torch.device(device), DTYPES.get(precision)
    placement = Placement(state.parameters(problem.model), directions, where, dtype, **how_placed(problem.root, mode))
    data = problem.on(prepare(problem.data, 512, None, 0, "data", print).to(where, dtype, mode.channels_last))
    loss = loss_on(problem.loss, problem.root, where, dtype)
    return Evaluator(problem.wrapper, placement, metrics(loss, data), policy, data, precision, execution=mode)


def foldable(make: Callable[[], Problem], mode: ExecutionMode) -> ExecutionMode:
    """The mode with batch normalization folded into the layers before it."""
    problem, _ = made(make)
    model, x = problem.model.eval(), problem.data[0][:4]
    with torch.no_grad():
        return replace(mode, folded=find_pairs(model, lambda: model(x), least=0))


def landscape(*arguments: Any, points: Any = POINTS, **named: Any) -> dict[str, np.ndarray]:
    """Each metric's values at the points, as ``evaluator_of`` is asked for."""
    evaluator = evaluator_of(*arguments, **named)
    size = evaluator.execution.points
    with evaluator.attached():
        found = [v for i in range(0, len(points), size) for v in evaluator.evaluate(points[i : i + size])]
    return {name: np.stack([as_array(values[name]) for values in found]) for name in evaluator.metrics}


@functools.cache
def exact(make: Callable[[], Problem], policy: str) -> dict[str, np.ndarray]:
    """On the CPU in float64."""
    return landscape(make, "cpu", "fp64", policy=policy)


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], precision: str) -> None:
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=NEAR[precision])
    np.testing.assert_allclose(found["accuracy"], expected["accuracy"], rtol=0, atol=SIDES[precision] + 1e-12)


# The landscape in every precision and form


@everywhere
@policies
@pytest.mark.parametrize("make", [resnet, pairs])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32"])
def test_the_landscape_is_what_the_cpu_gives_in_float64(device, precision, make, policy):
    assert_near(landscape(make, device, precision, PLAIN, policy), exact(make, policy), precision)


@everywhere
@policies
@pytest.mark.parametrize("make", [resnet, pairs, mlp])
@pytest.mark.parametrize("mode", EAGER, ids=name_of)
def test_every_form_is_near_float64(device, mode, make, policy):
    precision = precision_of(mode)
    assert_near(landscape(make, device, precision, mode, policy), exact(make, policy), precision)


@everywhere
@pytest.mark.parametrize("policy", ["warmup", "running"])
@pytest.mark.parametrize(("make", "count"), [(resnet, 9), (pairs, 3)])
@pytest.mark.parametrize("mode", [PLAIN, *ONE_BY_ONE], ids=name_of)
def test_batch_normalization_in_the_layer_before(device, mode, make, count, policy):
    precision, mode = precision_of(mode), foldable(make, mode)
    assert len(mode.folded) == count
    assert_near(landscape(make, device, precision, mode, policy), exact(make, policy), precision)


@everywhere
@pytest.mark.parametrize("mode", [PLAIN, *EAGER], ids=name_of)
def test_without_batch_normalization(device, mode):
    precision = precision_of(mode)
    assert_near(landscape(lenet, device, precision, mode, "none"), exact(lenet, "none"), precision)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # the compiler's remarks: the program mutes them
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=NO_COMPILER), GPU])
@pytest.mark.parametrize("mode", COMPILED, ids=name_of)
def test_every_compiled_form_is_near_float64(device, mode):
    """With warm-up, which has a graph in train mode and one in eval mode. On the CPU one form, and a smaller model."""
    if device == "cpu" and mode != COMPILED[1]:
        pytest.skip("compiling takes long: once")
    make, precision = mlp if device == "cpu" else resnet, precision_of(mode)
    torch._dynamo.reset()
    assert_near(landscape(make, device, precision, mode), exact(make, "warmup"), precision)


# Metrics that are no passes


def derivatives(loss: Any, data: Data) -> dict[str, Metric]:
    return {
        "gradient": LossGradient(loss, data),
        "norm": GradientNorm(loss, data),
        "predictiveness": GradientPredictiveness(loss, data, step=[0.1, 0.5]),
    }


def curvature(loss: Any, data: Data) -> dict[str, Metric]:
    return {
        "eigenvalues": PrincipalCurvatureEvaluator(loss, data, n=2),
        "trace": HessianTrace(loss, data, n_vectors=4),
    }


@functools.cache
def exact_metrics(metrics: Callable[..., dict[str, Metric]]) -> dict[str, np.ndarray]:
    return landscape(mlp, "cpu", "fp64", metrics=metrics)


def assert_vectors_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], near: float) -> None:
    """Relative to the largest number of each at a point."""
    for name, exactly in expected.items():
        axes = tuple(range(1, exactly.ndim))
        size = np.abs(exactly).max(axis=axes, keepdims=True) if axes else np.abs(exactly)
        assert (np.abs(found[name] - exactly) <= near * size).all(), (name, found[name], exactly)


@everywhere
@pytest.mark.parametrize(("precision", "near"), [("fp64", 1e-9), ("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2)])
def test_gradients(device, precision, near):
    mode = LOW if precision == "bf16" else PLAIN
    found = landscape(mlp, device, precision, mode, metrics=derivatives)
    assert_vectors_near(found, exact_metrics(derivatives), near)


@everywhere
@pytest.mark.parametrize(("precision", "near"), [("fp64", 2e-5), ("fp32", 1e-4)])
def test_curvature(device, precision, near):
    """Eigenvalues are found to a tolerance of 1e-5."""
    found = landscape(mlp, device, precision, metrics=curvature)
    assert_vectors_near(found, exact_metrics(curvature), near)


# The library


@everywhere
@pytest.mark.parametrize(
    "options",
    [{}, {"block": 2}, {"channels_last": True}, {"precision": "tf32"}, {"precision": "bf16"}, {"bn": "batch"}],
    ids=str,
)
def test_the_library(device, options):
    if device == "cpu" and options.get("precision") == "tf32":
        pytest.skip("only NVIDIA GPUs have it")
    problem, _ = made(resnet)
    x, y = problem.data
    metric = Loss(problem.loss, [(x[:512], y[:512]), (x[512:1024], y[512:1024])])
    plane = PlanarLossLandscape(problem.model, 2).random_plane(seed=0)
    how = {"bn": "warmup", **options}
    expected = plane.compute(metric, "cpu", precision="fp64", bn=how["bn"])
    np.testing.assert_allclose(plane.compute(metric, device, **how), expected, rtol=NEAR[how.get("precision", "fp32")])


# What is left as it was, and what is waited for


@everywhere
@pytest.mark.parametrize("mode", [PLAIN, LOW, ExecutionMode(stacked=2), ExecutionMode(interleaved=2)], ids=name_of)
def test_the_model_comes_back_to_its_device_bitwise(device, mode):
    model = made(resnet)[0].model
    before = {name: (t.data_ptr(), t.clone()) for name, t in state.state(model).items()}
    landscape(resnet, device, precision_of(mode), mode)
    for name, tensor in state.state(model).items():
        assert tensor.device.type == "cpu"
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


@everywhere
def test_directions_that_are_brought_over_give_the_same_bits(device):
    shapes = {"conv": (8, 3, 3, 3), "bias": (7,), "large": (65, 33)}
    generator = torch.Generator().manual_seed(0)
    origin, *directions = ({k: torch.randn(s, generator=generator) for k, s in shapes.items()} for _ in range(3))
    made = [
        Placement(origin, directions, torch.device(device), channels_last=True, keeps_directions=keeps)
        for keeps in (True, False)
    ]
    for coordinates in POINTS:
        for one in made:
            one.place(coordinates)
        assert all(torch.equal(view, made[1].views[name]) for name, view in made[0].views.items())


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
STAGES = """
import torch
from torch import nn
from hpc_landscape import Problem

class Stages(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh()).to(first)
        self.second = nn.Linear(8, 3).to(second)

    def forward(self, x):
        return self.second(self.first(x).to(self.second.weight.device))

def make(first="cpu", second="cpu"):
    torch.manual_seed(1)
    data = torch.randn(40, 3), torch.randint(3, (40,))
    return Problem(Stages(first, second), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), data)
"""


@pytest.mark.parametrize(
    "devices",
    [
        ("cpu", "cpu"),
        pytest.param(("cuda:0", "cpu"), marks=NO_GPU),
        pytest.param(("cpu", "cuda:0"), marks=NO_GPU),
        pytest.param(("cuda:0", "cuda:1"), marks=TWO_GPUS),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("metrics", ["loss,accuracy", "gradient_norm"])
def test_a_model_whose_stages_are_on_several_devices(devices, metrics, program, tmp_path):
    """A loss with weights, too, which are where the targets are."""
    (tmp_path / "stages.py").write_text(STAGES)
    job = ("--problem", "stages.py:make", "--x=-1:1:3", "--y=-1:1:3", "--plot", "false", "--metrics", metrics)
    places = ("--problem.first", devices[0], "--problem.second", devices[1])
    assert program(*job, "--device", "cpu", "--output", "cpu.h5").code == 0
    done = program(*job, *places, "--device", "as_built", "--output", "as_built.h5")
    assert done.code == 0 and all(device in done.out for device in devices), done.err
    name = metrics.split(",")[0]
    found, expected = (read_values(str(tmp_path / path), name) for path in ("as_built.h5", "cpu.h5"))
    assert found == pytest.approx(expected, rel=NEAR["fp32"])


@everywhere
def test_data_that_does_not_fit_is_moved_in_every_pass(device):
    batches = prepare(made(resnet)[0].data, 512, None, 0, "data", print)
    there = torch.device(device)
    for batch, other in zip(MovedBatches(batches, there, None), batches.to(there, None), strict=True):
        assert all(torch.equal(a, b) and a.device.type == device for a, b in zip(batch, other, strict=True))


@everywhere
@pytest.mark.parametrize("mode", [PLAIN, LAST, LOW, ExecutionMode(stacked=2)], ids=name_of)
def test_a_point_is_bitwise_the_same_twice(device, mode):
    first, second = (landscape(resnet, device, precision_of(mode), mode) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


@on_a_gpu
@policies
@pytest.mark.parametrize("mode", [PLAIN, *EAGER, "folded"], ids=name_of)
def test_the_host_waits_for_the_device_once(device, mode, policy):
    """As PyTorch counts: what is found of a point is read at the end of its pass, and nothing before."""
    mode = foldable(resnet, LOW) if mode == "folded" else mode
    evaluator = evaluator_of(resnet, device, precision_of(mode), mode, policy)
    with evaluator.attached(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        evaluator.evaluate(POINTS[: mode.points])
        torch.cuda.set_sync_debug_mode("warn")
        try:
            seen.clear()
            evaluator.evaluate(POINTS[: mode.points])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in seen if "synchronizing" in str(warning.message)]
    assert len(waits) == mode.interleaved, waits
