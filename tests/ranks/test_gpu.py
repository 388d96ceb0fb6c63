"""On a GPU: the same landscape as on the CPU in float64, and the model back where it was."""

import numpy as np
import pytest
import torch

from hpc_landscape import PlanarLossLandscape
from hpc_landscape.data.prepare import prepare
from hpc_landscape.data.resident import MovedBatches
from hpc_landscape.directions.base import Origin
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.evaluate.build import how_placed
from hpc_landscape.evaluate.evaluator import DTYPES, Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.metrics import Accuracy, Loss
from hpc_landscape.metrics.criterion import loss_on
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.problems.digits import digits
from hpc_landscape.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
POINTS = [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0)]


def landscape(problem, directions, device, precision, mode=PLAIN, policy="warmup"):
    """(points, 2): loss and accuracy."""
    where, dtype = torch.device(device), DTYPES.get(precision)
    how = how_placed(problem.root, mode)
    placement = Placement(state.parameters(problem.model), directions, where, dtype, **how)
    data = problem.on(prepare(problem.data, 512, None, 0, "data", print).to(where, dtype, mode.channels_last))
    loss = loss_on(problem.loss, problem.root, where, dtype)
    metrics = {"loss": Loss(loss, data), "accuracy": Accuracy(data)}
    evaluator = Evaluator(problem.wrapper, placement, metrics, policy, data, precision, execution=mode)
    with evaluator.attached():
        found = [v for i in range(0, 3, mode.points) for v in evaluator.evaluate(POINTS[i : i + mode.points])]
        return np.array([[values["loss"], values["accuracy"]] for values in found])


@pytest.fixture(scope="module")
def problem():
    problem = digits(epochs=2)
    problem.train(problem.model)
    return problem


@pytest.fixture(scope="module")
def directions(problem):
    return make_directions(Settings().for_directions, Origin(state.parameters(problem.model))).vectors


@pytest.mark.parametrize(("precision", "rtol"), [("fp64", 1e-9), ("fp32", 1e-4), ("tf32", 1e-2)])
def test_the_gpu_gives_what_the_cpu_gives_in_float64(problem, directions, precision, rtol):
    expected = landscape(problem, directions, "cpu", "fp64")
    np.testing.assert_allclose(landscape(problem, directions, "cuda", precision), expected, rtol=rtol)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # the compiler's remarks: the program mutes them
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("policy", ["warmup", "batch", "running"])
@pytest.mark.parametrize(
    ("mode", "rtol"),
    [
        (ExecutionMode(channels_last=True), 1e-4),
        (ExecutionMode(stacked=2), 1e-4),
        (ExecutionMode(interleaved=2), 1e-4),
        (ExecutionMode(compiled="default", channels_last=True), 1e-4),
        (ExecutionMode(compiled="reduce-overhead"), 1e-4),
        (ExecutionMode(compute_dtype=torch.bfloat16, channels_last=True), 1e-1),
        (ExecutionMode(autocast=True), 1e-1),
    ],
    ids=str,
)
def test_every_mode_is_near_float64(problem, directions, mode, rtol, policy):
    if mode.compiled and policy != "warmup":
        pytest.skip("compiling takes long: once")
    expected = landscape(problem, directions, "cpu", "fp64", policy=policy)
    found = landscape(problem, directions, "cuda", "bf16" if rtol == 1e-1 else "fp32", mode, policy)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=5e-3)


@pytest.mark.parametrize("options", [{}, {"block": 2}, {"channels_last": True}, {"precision": "bf16"}], ids=str)
def test_the_library(problem, options):
    x, y = problem.data
    metric = Loss(problem.loss, [(x[:512], y[:512]), (x[512:1024], y[512:1024])])
    plane = PlanarLossLandscape(problem.model, 2).random_plane(seed=0)
    expected = plane.compute(metric, "cpu", precision="fp64", bn="warmup")
    rtol = 1e-1 if options.get("precision") else 1e-4
    np.testing.assert_allclose(plane.compute(metric, "cuda", bn="warmup", **options), expected, rtol=rtol)


def test_the_model_comes_back_to_its_device_bitwise(problem, directions):
    before = {name: (t.data_ptr(), t.clone()) for name, t in state.state(problem.model).items()}
    landscape(problem, directions, "cuda", "fp32")
    for name, tensor in state.state(problem.model).items():
        assert tensor.device.type == "cpu"
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_data_that_does_not_fit_is_moved_in_every_pass(problem):
    batches = prepare(problem.data, 512, None, 0, "data", print)
    gpu = torch.device("cuda")
    for batch, other in zip(MovedBatches(batches, gpu, None), batches.to(gpu, None), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_point_is_bitwise_the_same_twice(problem, directions):
    first, second = (landscape(problem, directions, "cuda", "fp32") for _ in range(2))
    np.testing.assert_array_equal(first, second)
