"""What is computed in float32, against float64: the default, for any number of threads; and every faster mode."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode, compute_dtypes
from hpc_landscape.metrics import Data, Loss
from hpc_landscape.model import state
from hpc_landscape.model.folding import find_pairs
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.digits import SmallResNet

POINTS = [(0.0, 0.0), (0.4, -0.7), (-1.0, 1.0)]
LAST = ExecutionMode(channels_last=True)
MODES = {
    "default": (LAST, 1e-7),
    "plain": (PLAIN, 1e-7),
    "stacked": (ExecutionMode(stacked=3), 1e-6),
    "16 bits": (ExecutionMode(channels_last=True, compute_dtype=torch.bfloat16), 2e-2),
    "autocast": (ExecutionMode(channels_last=True, autocast=True), 2e-2),
    "compiled": (ExecutionMode(channels_last=True, compiled="default"), 1e-6),
}


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def network(small: bool) -> nn.Module:
    torch.manual_seed(0)
    if not small:
        return SmallResNet(8)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(9), nn.Flatten(), nn.Linear(32, 10)
    )


def batches(dtype: torch.dtype, last: bool) -> list[tuple[Tensor, Tensor]]:
    """Of 50,000 numbers by channel, and no small mean."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(100, 1, 28, 28, generator=generator) * 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return list(zip(x.split(64), torch.randint(10, (100,), generator=generator).split(64), strict=True))


def in_double(output: Tensor, target: Tensor) -> Tensor:
    """The loss of what the network says: in float32 the loss itself would be rounded to 1e-7."""
    return nn.functional.cross_entropy(output.double(), target)


def losses(
    mode: ExecutionMode, bn: str = "warmup", dtype: torch.dtype = torch.float32, small: bool = False
) -> list[float]:
    model, data = network(small).to(dtype).eval(), Data(batches(dtype, mode.channels_last))
    if mode.folds and bn != "batch":
        with torch.no_grad():
            mode = ExecutionMode(**{**vars(mode), "folded": find_pairs(model, lambda: model(data.batches[0][0]))})
            assert small or len(mode.folded) > 5
    origin, generator = state.parameters(model), torch.Generator().manual_seed(2)
    moves = [
        {n: 0.2 * p.std().nan_to_num() * torch.randn(p.shape, generator=generator) for n, p in origin.items()}
        for _ in "xy"
    ]
    placed = {"compute_dtypes": compute_dtypes(model, mode.compute_dtype), "channels_last": mode.channels_last}
    placement = Placement(origin, moves, rows=mode.points, **placed)
    metrics = {"loss": Loss(in_double, data)}
    evaluator = Evaluator(wrap_model(model), placement, metrics, bn, data, execution=mode)
    with evaluator.attached():
        return [v["loss"] for i in range(0, 3, mode.points) for v in evaluator.evaluate(POINTS[i : i + mode.points])]


@pytest.mark.parametrize("bn", ["warmup", "batch"])
def test_the_default_is_right_to_1e_7_on_any_number_of_threads(threads, bn):
    exact = losses(PLAIN, bn, torch.float64)
    assert losses(LAST, bn) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_as_near_as_it_should_be(name):
    mode, near = MODES[name]
    if mode.compiled and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    small = bool(mode.compiled)  # that takes long
    exact = losses(PLAIN, dtype=torch.float64, small=small)
    assert losses(mode, small=small) == pytest.approx(exact, rel=near)
