"""Several points in turn on each batch: each value is to the bit what the point gives alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_execution_modes import COMPILER, POINTS, losses, made
from torch import nn

from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.metrics import Accuracy, Data, Loss
from hpc_landscape.model import state

pytestmark = pytest.mark.usefixtures("one_thread")

TOGETHER = 3  # the last turn, of five points, is of two


class Batches:
    """Counts how often it is read."""

    def __init__(self, batches):
        self.batches, self.reads = batches, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.batches)


class Odd(nn.Module):
    """Uses a layer twice, counts its calls in a buffer that its output depends on, and draws noise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.linear, self.bn = nn.Linear(50, 50), nn.BatchNorm1d(50)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        x = self.bn(torch.relu(self.bn(self.linear(x.flatten(1)))))
        self.calls += 1
        return x[:, :3] * self.calls + 0.1 * torch.randn(len(x), 3)


@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
@pytest.mark.parametrize(
    "mode",
    [
        PLAIN,
        ExecutionMode(channels_last=True),
        ExecutionMode(compute_dtype=torch.bfloat16),
        ExecutionMode(autocast=True),
        pytest.param(ExecutionMode(compiled="default"), marks=COMPILER),
    ],
    ids=str,
)
def test_as_alone(mode, bn):
    if mode.compiled and bn != "warmup":
        pytest.skip("compiling takes long: once")
    together = losses(made(replace(mode, interleaved=TOGETHER), bn))
    assert together.tobytes() == losses(made(mode, bn)).tobytes()
    assert len(set(together)) == len(POINTS)


@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
def test_a_model_with_a_memory_and_with_noise(bn):
    together = losses(made(ExecutionMode(interleaved=TOGETHER), bn, model=Odd()))
    assert together.tobytes() == losses(made(PLAIN, bn, model=Odd())).tobytes()


def test_each_batch_is_loaded_once_for_all_of_them():
    evaluator = made(ExecutionMode(interleaved=TOGETHER))
    data = evaluator.normalization.data
    data.batches = batches = Batches(data.batches)
    losses(evaluator)
    assert batches.reads == 2 * 2  # two turns of two passes


def test_several_sets_and_metrics():
    def both(mode):
        evaluator = made(mode)
        x, y = evaluator.normalization.data.batches[0]
        other = Data([(x[:3], y[:3]), (x[3:], y[3:])])
        evaluator.metrics |= {"other_loss": Loss(nn.CrossEntropyLoss(), other), "other_accuracy": Accuracy(other)}
        with evaluator.attached():
            return [
                value for i in range(0, 5, mode.points) for value in evaluator.evaluate(POINTS[i : i + mode.points])
            ]

    assert both(ExecutionMode(interleaved=TOGETHER)) == both(PLAIN)


def test_after_an_error_a_point_alone_is_right():
    evaluator, calls = made(ExecutionMode(interleaved=TOGETHER)), []
    expected = losses(made(PLAIN))[1]

    def fail_once(output, target):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no")
        return nn.functional.cross_entropy(output, target)

    evaluator.metrics = {"loss": Loss(fail_once, evaluator.normalization.data)}
    with evaluator.attached():
        with pytest.raises(ValueError, match="no"):
            evaluator.evaluate(POINTS[:TOGETHER])
        assert evaluator(POINTS[1])["loss"] == expected
        assert evaluator.evaluate(POINTS[1:2])[0]["loss"] == expected


def test_the_model_is_what_it_was():
    model = Odd().train()
    before = {n: (t.data_ptr(), t.clone()) for n, t in state.state(model).items()}
    losses(made(ExecutionMode(interleaved=TOGETHER), model=model))
    assert model.training
    for name, tensor in state.state(model).items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
