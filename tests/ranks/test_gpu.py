"""On a GPU: the same landscape as on the CPU in float64, and the model back where it was."""

import numpy as np
import pytest
import torch

from hpc_landscape.data.prepare import prepare
from hpc_landscape.data.resident import MovedBatches
from hpc_landscape.directions.base import Origin
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.evaluate.evaluator import DTYPES, Evaluator
from hpc_landscape.evaluate.execution import PLAIN
from hpc_landscape.metrics import Accuracy, Loss
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.problems.digits import digits
from hpc_landscape.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
POINTS = [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0)]


def landscape(problem, directions, device, precision, mode=PLAIN):
    dtype = DTYPES.get(precision)
    placement = Placement(state.parameters(problem.model), directions, torch.device(device), dtype)
    data = problem.on(prepare(problem.data, 512, None, 0, "data", print).to(torch.device(device), dtype))
    metrics = {"loss": Loss(problem.loss, data), "accuracy": Accuracy(data)}
    evaluator = Evaluator(problem.wrapper, placement, metrics, "warmup", data, precision, execution=mode)
    with evaluator.attached():
        found = [evaluator(point) for point in POINTS]
        return np.array([[values["loss"], values["accuracy"]] for values in found])


@pytest.fixture(scope="module")
def problem():
    problem = digits(epochs=2)
    problem.train(problem.model)
    return problem


@pytest.fixture(scope="module")
def directions(problem):
    return make_directions(Settings().for_directions, Origin(state.parameters(problem.model))).vectors


@pytest.mark.parametrize(("precision", "rtol"), [("fp64", 1e-9), ("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 1e-1)])
def test_the_gpu_gives_what_the_cpu_gives_in_float64(problem, directions, precision, rtol):
    expected = landscape(problem, directions, "cpu", "fp64")
    np.testing.assert_allclose(landscape(problem, directions, "cuda", precision), expected, rtol=rtol)


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
