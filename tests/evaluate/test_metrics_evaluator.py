"""Metrics and the pass over the data, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from still import still
from torch import nn
from torch.nn import functional as F

from hpc_landscape.data.data import samples
from hpc_landscape.errors import UserError
from hpc_landscape.evaluate.evaluator import Evaluator, as_array
from hpc_landscape.evaluate.execution import ExecutionMode, compute_dtypes
from hpc_landscape.evaluate.passes import measure_all, warm_up
from hpc_landscape.metrics import Accuracy, BatchMetric, Data, Loss, Metric
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.problem import Problem
from hpc_landscape.ranks.device import check_precision

SIZES = [7, 4, 1, 9]


def classifier(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 4).to(dtype)


def batches(sizes=SIZES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=generator).to(dtype), torch.randint(4, (n,), generator=generator)) for n in sizes
    ]


def numpy_scores(model: nn.Linear, inputs) -> np.ndarray:
    return inputs.double().numpy() @ model.weight.detach().double().numpy().T + model.bias.detach().double().numpy()


def numpy_losses(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cross entropy of each sample."""
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), target]


def everything(model, data) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([numpy_scores(model, x) for x, _ in data])
    return scores, np.concatenate([y.numpy() for _, y in data])


def measured(problem, data) -> dict[str, float]:
    """Loss and accuracy of the problem's model on these batches; accuracy where it applies."""
    on = problem.on(data)
    metrics = {"loss": Loss(problem.loss, on)}
    batch = next(iter(data))
    if Accuracy.applies(on.output(problem.wrapper, batch), on.target(batch)):
        metrics["accuracy"] = Accuracy(on)
    return measure_all(still(problem.wrapper), problem.wrapper, metrics)[0]


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def test_means_over_samples_not_over_batches():
    model, data = classifier(), batches()
    problem = Problem(model, nn.CrossEntropyLoss(), None)
    found = measured(problem, data)
    scores, target = everything(model, data)
    losses = numpy_losses(scores, target)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-14)
    np.testing.assert_allclose(found["accuracy"], (scores.argmax(1) == target).mean(), rtol=1e-14)
    of_batches = np.mean([part.mean() for part in np.split(losses, np.cumsum(SIZES)[:-1])])
    assert abs(found["loss"] - of_batches) > 1e-3  # the test can tell them apart


def test_batching_makes_no_difference():
    model = classifier()
    problem = Problem(model, nn.CrossEntropyLoss(), None)
    inputs, target = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    found = [measured(problem, list(zip(inputs.split(b), target.split(b), strict=True)))["loss"] for b in (1, 2, 5, 21)]
    np.testing.assert_allclose(found, found[0], rtol=1e-14)


def test_float32_batches_are_added_up_in_float64():
    """10,000 equal batch losses of a float32: a float32 sum would be off by far more."""
    value = np.float32(0.1)
    problem = Problem(Same(), lambda output, target: torch.tensor(value), None)
    found = measured(problem, [(torch.zeros(3, 1), 0)] * 10_000)
    np.testing.assert_allclose(found["loss"], np.float64(value), rtol=1e-12)


def test_count_weighs_batches():
    """A mean over tokens: batches weigh by their tokens, not by their rows."""
    model, data = classifier(), batches()
    tokens = {7: 100, 4: 1, 1: 30, 9: 12}
    problem = Problem(model, nn.CrossEntropyLoss(), None, count=lambda batch: tokens[len(batch[0])])
    found = measured(problem, data)
    means = [numpy_losses(numpy_scores(model, x), y.numpy()).mean() for x, y in data]
    np.testing.assert_allclose(found["loss"], np.average(means, weights=[tokens[n] for n in SIZES]), rtol=1e-14)
    as_tensor = Problem(model, nn.CrossEntropyLoss(), None, count=lambda batch: torch.tensor(tokens[len(batch[0])]))
    np.testing.assert_allclose(measured(as_tensor, data)["loss"], found["loss"], rtol=1e-14)


def test_ignored_targets_with_a_count():
    """cross_entropy's ignore_index takes the mean over the others; count says how many those are."""
    model = classifier()
    data = [(x, torch.where(torch.arange(len(y)) % 3 == 1, -100, y)) for x, y in batches([7, 5, 9])]
    problem = Problem(model, nn.CrossEntropyLoss(), None, count=lambda batch: int((batch[1] != -100).sum()))
    scores, target = everything(model, data)
    kept = target != -100
    found = measured(problem, data)
    np.testing.assert_allclose(found["loss"], numpy_losses(scores[kept], target[kept]).mean(), rtol=1e-14)


def test_dict_batches_with_forward():
    model, data = classifier(), batches()
    problem = Problem(
        model,
        lambda output, batch: F.cross_entropy(output, batch["labels"]),
        None,
        forward=lambda model, batch: model(batch["inputs"]),
    )
    dicts = [{"inputs": x, "labels": y} for x, y in data]
    scores, target = everything(model, data)
    found = measured(problem, dicts)
    np.testing.assert_allclose(found["loss"], numpy_losses(scores, target).mean(), rtol=1e-14)


@pytest.mark.parametrize("batch", [{"inputs": torch.ones(2, 3), "labels": torch.ones(2)}, torch.ones(2, 3)])
def test_batches_that_are_no_pairs_need_a_forward(batch):
    with pytest.raises(UserError, match=f"a {type(batch).__name__}, not .input, target.: .* forward=lambda"):
        Loss(F.cross_entropy, [batch])(wrap_model(classifier()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays(value):
    losses = iter([1.0, value, 2.0])
    problem = Problem(Same(), lambda output, target: torch.tensor(next(losses)), None)
    found = measured(problem, [(torch.zeros(2, 1), 0)] * 3)["loss"]
    assert math.isnan(found) if math.isnan(value) else found == value


def test_overflow_at_a_far_point_is_a_value():
    model = classifier(torch.float32)
    problem = Problem(model, nn.MSELoss(), None)
    data = [(torch.ones(3, 5), torch.zeros(3, 4))]
    placement = Placement(state.parameters(model), [{"weight": torch.ones(4, 5)}])
    evaluate = Evaluator(problem.wrapper, placement, {"loss": Loss(problem.loss, problem.on(data))}, "none")
    with evaluate.attached():
        assert evaluate([1e30])["loss"] == math.inf
        assert math.isnan(evaluate([math.nan])["loss"])
        assert math.isfinite(evaluate([0.0])["loss"])


# The loss


@pytest.mark.parametrize("output", [torch.zeros(3), torch.zeros(2, 2), torch.zeros(0)])
def test_a_loss_that_is_no_number(output):
    with pytest.raises(UserError, match="must be one number") as error:
        Loss(lambda *_: output, ()).batch_mean(None, None)
    assert str(tuple(output.shape)) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "output", [2.5, torch.tensor(2.5), torch.ones(1) * 2.5, torch.ones(1, 1) * 2.5, np.float64(2.5)]
)
def test_a_loss_that_is_a_number(output):
    mean = Loss(lambda *_: output, ()).batch_mean(None, None)
    assert mean.shape == () and float(mean) == 2.5


# Accuracy


def shaped(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("output", "target", "applies"),
    [
        (shaped(6, 3), torch.zeros(6, dtype=torch.long), True),
        (shaped(6, 3), torch.zeros(6, dtype=torch.uint8), True),
        (shaped(6, 3, 4, 4), torch.zeros(6, 4, 4, dtype=torch.long), True),  # segmentation
        (shaped(6, 2), torch.zeros(6, dtype=torch.bool), True),
        (shaped(6, 3), torch.zeros(6), False),  # regression
        (shaped(6, 3), torch.zeros(6, 3), False),
        (shaped(6, 3), torch.zeros(6, 3, dtype=torch.long), False),  # one-hot, or several labels
        (shaped(6, 3), torch.zeros(5, dtype=torch.long), False),
        (shaped(6), torch.zeros(6, dtype=torch.long), False),
        (shaped(6, 1), torch.zeros(6, dtype=torch.long), False),  # one score: the largest is always the first
        (shaped(6, 4, 4, 3), torch.zeros(6, 4, 4, dtype=torch.long), False),
        (shaped(6, 3), torch.zeros(6, dtype=torch.complex64), False),
        ({"logits": shaped(6, 3)}, torch.zeros(6, dtype=torch.long), False),
        (shaped(6, 3), {"labels": torch.zeros(6, dtype=torch.long)}, False),
        (shaped(6, 3), [0, 1, 2, 0, 1, 2], False),
        (None, None, False),
    ],
)
def test_when_accuracy_applies(output, target, applies):
    assert bool(Accuracy.applies(output, target)) is applies


def test_accuracy_of_pixels():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, 3, 5, 6, generator=generator)
    target = torch.randint(3, (4, 5, 6), generator=generator)
    right = (output.numpy().argmax(1) == target.numpy()).mean()
    np.testing.assert_allclose(float(Accuracy(()).batch_mean(output, target)), right, rtol=1e-15)


# Metrics of other kinds, called with the wrapper at a placed point


class Weights(Metric):
    name, shape, dims = "weights", (2,), ("which",)

    def __call__(self, wrapper):
        return torch.stack([p.detach().sum() for p in wrapper.parameters()])


class Gradient(Metric):
    name = "gradient"

    def __call__(self, wrapper):
        wrapper.zero_grad()
        (wrapper(torch.ones(1, 5, dtype=torch.float64)) ** 2).sum().backward()
        return sum(float((p.grad**2).sum()) for p in wrapper.parameters()) ** 0.5


def test_metrics_of_every_kind_together():
    model, data = classifier(), batches()
    moves, on = [{"weight": torch.ones(4, 5, dtype=torch.float64)}], Data(data)
    metrics = [Weights(), Loss(nn.CrossEntropyLoss(), on), Gradient(), Accuracy(on)]
    placement = Placement(state.parameters(model), moves)
    evaluate = Evaluator(wrap_model(model), placement, {m.name: m for m in metrics}, "none")
    with evaluate.attached():
        found = {name: as_array(value) for name, value in evaluate([0.25]).items()}
    assert {n: (v.dtype, v.shape) for n, v in found.items()} == {
        "weights": (np.float64, (2,)),
        "loss": (np.float64, ()),
        "gradient": (np.float64, ()),
        "accuracy": (np.float64, ()),
    }
    w, b = model.weight.detach().numpy() + 0.25, model.bias.detach().numpy()
    np.testing.assert_allclose(found["weights"], [w.sum(), b.sum()], rtol=1e-14)
    output = w.sum(1) + b
    np.testing.assert_allclose(found["gradient"], np.sqrt((4 * output**2).sum() * 6), rtol=1e-13)
    assert all(p.grad is None for p in model.parameters())


def test_called_as_a_metric_of_loss_landscapes():
    model, (batch, *_) = classifier(), batches()
    scores = numpy_scores(model, batch[0])
    wrapper = wrap_model(model)
    expected = numpy_losses(scores, batch[1].numpy()).mean()
    np.testing.assert_allclose(Loss(nn.CrossEntropyLoss(), *batch)(wrapper), expected, rtol=1e-14)
    assert Accuracy(*batch)(wrapper) == pytest.approx((scores.argmax(1) == batch[1].numpy()).mean(), rel=1e-14)


# The first batch, precision, samples


def test_at_the_origin_the_model_is_what_it_is_and_afterwards_too():
    model, data = classifier(), batches()
    evaluate = Evaluator(wrap_model(model), Placement(state.parameters(model), [{}]), {}, "none")
    with evaluate.at_origin():
        assert not model.training
        output = model(data[0][0]).detach()
    np.testing.assert_allclose(output.numpy(), numpy_scores(model, data[0][0]), rtol=1e-13)
    assert model.training


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_computes_in_bf16_and_keeps_the_parameters(how):
    model, data = classifier(torch.float32), batches([64], torch.float32)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    metrics = {"loss": Loss(nn.CrossEntropyLoss(), data)}
    mode = ExecutionMode(autocast=True) if how == "autocast" else ExecutionMode(compute_dtype=torch.bfloat16)
    placement = Placement(state.parameters(model), [{}], compute_dtypes=compute_dtypes(model, mode.compute_dtype))
    evaluate = Evaluator(wrap_model(model), placement, metrics, "none", precision="bf16", execution=mode)
    with evaluate.attached():
        found = float(evaluate([0.0])["loss"])
    losses = numpy_losses(*everything(model, data))
    assert seen == [torch.bfloat16] and found == pytest.approx(losses.mean(), rel=2e-2)
    assert model.weight.dtype == torch.float32


def test_precisions_that_a_device_has_not():
    check_precision("fp64", torch.device("cpu"))
    check_precision("tf32", torch.device("cuda"))
    with pytest.raises(UserError, match="--precision fp64.*mps"):
        check_precision("fp64", torch.device("mps"))
    with pytest.raises(UserError, match="--precision tf32.*cpu"):
        check_precision("tf32", torch.device("cpu"))


def test_tf32_switches_are_as_they_were():
    model = classifier()
    evaluate = Evaluator(wrap_model(model), Placement(state.parameters(model), [{}]), {}, "none")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with evaluate.attached():
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ([torch.zeros(4), 1], 4),
        ({"ids": torch.zeros(3, 7), "labels": torch.zeros(3)}, 3),
        (({"a": "text", "b": torch.zeros(6)}, torch.zeros(6)), 6),
        (torch.zeros(9, 1), 9),
    ],
)
def test_samples_in_a_batch(batch, n):
    assert samples(batch) == n


@pytest.mark.parametrize(
    "batch", [torch.tensor(1.0), ("text", 3), {}, None, 5, ({"b": torch.zeros(6)}, torch.zeros(2))]
)
def test_samples_that_cannot_be_told(batch):
    with pytest.raises(UserError, match="count=lambda batch"):
        samples(batch)


def test_a_batch_that_counts_for_nothing_adds_nothing():
    model = classifier()
    data = batches((4, 3))
    problem = Problem(model, F.cross_entropy, data, count=lambda batch: 0 if len(batch[0]) == 3 else 4)
    empty_mean = Loss(
        lambda output, target: F.cross_entropy(output, target) if len(target) == 4 else output.sum() * math.nan,
        problem.on(data),
    )
    expected = numpy_losses(numpy_scores(model, data[0][0]), data[0][1].numpy()).mean()
    assert empty_mean(problem.wrapper) == pytest.approx(expected, rel=1e-12)


def test_a_batch_of_one_sample_cannot_warm_up():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(UserError, match="batch of one sample"):
        warm_up(still(wrap_model(model)), Data([(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))]))


def test_a_mean_of_one_dimension_is_a_number_too():
    class Mean(BatchMetric):
        def batch_mean(self, output, target):
            return output.mean().reshape(1)

        def batch_weight(self, output, target, items):
            return torch.tensor(items)

    x = torch.arange(6.0).reshape(3, 2)
    batches = [(x, torch.zeros(3)), (10 * x[:1], torch.zeros(1))]
    assert Mean(batches)(wrap_model(nn.Identity())) == pytest.approx((3 * 2.5 + 5.0) / 4)
