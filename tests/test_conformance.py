"""The conformance suite: every built-in kind passes it, and what breaks a rule is said."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape import Problem, testing
from hpc_landscape.directions.base import DirectionKind, Directions, Origin
from hpc_landscape.kinds import DIRECTIONS, KINDS, METRICS, PROBLEMS
from hpc_landscape.metrics import BatchMetric, Criterion, Data, Metric, MetricPipeline
from hpc_landscape.metrics.registry import MetricRegistry
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.registry import KindOption


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()


def samples(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=draw).double(), torch.randint(3, (n,), generator=draw)


# Every built-in kind


@pytest.mark.parametrize("name", [name for name in METRICS.names() if name != "expected_return"])
def test_built_in_metrics(name):
    problem = Problem(network(), nn.CrossEntropyLoss(), samples())
    made = MetricRegistry(problem, {"": Data(*samples())}, problem.loss).make(name)
    assert list(made) == [name]
    testing.check_metric(made[name], problem.model, rtol=0 if name in ("loss", "accuracy") else 1e-9)


def test_the_return_of_an_agent():
    pytest.importorskip("gymnasium")
    metric = METRICS.load("expected_return")("CartPole-v1", n_samples=2, max_steps=5)
    testing.check_metric(metric, nn.Linear(4, 2))


@pytest.mark.parametrize("name", PROBLEMS.names())
def test_built_in_problems(name):
    testing.check_problem(PROBLEMS.load(name), width=2)


AXES = {1: {"y": "none"}, 2: {}, 3: {"z": "-1:1:3"}}


def given_to(kind: str, dimensions: int, folder) -> tuple[Origin, dict]:
    """The model, what the kind asks for, and its settings."""
    model = network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    others = []
    for i in range(5):
        draw = torch.Generator().manual_seed(i)
        others.append({n: w + torch.randn(w.shape, generator=draw, dtype=w.dtype) for n, w in weights.items()})
    torch.save(others[0], folder / "d.pt")
    loss = contextlib.nullcontext((wrap_model(model), Criterion(F.cross_entropy), Data(*samples())))
    origin = Origin(weights, 2, lambda path, option: others[int(path)], ["0", "1", "2", "3", "4"], lambda: loss)
    settings = {
        "interpolation": {"to": ",".join("123"[:dimensions])},
        "pca": {"trajectory": "0,1,2,3,4"} | AXES[dimensions],
        "file": {"direction_files": ",".join([str(folder / "d.pt")] * dimensions)} | AXES[dimensions],
    }
    return origin, settings.get(kind, AXES[dimensions])


@pytest.mark.parametrize("dimensions", AXES)
@pytest.mark.parametrize("name", DIRECTIONS.names())
def test_built_in_directions(name, dimensions, tmp_path):
    origin, settings = given_to(name, dimensions, tmp_path)
    testing.check_direction(DIRECTIONS.load(name)(), origin, **settings)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_random_directions_of_a_model(distribution):
    testing.check_direction(DIRECTIONS.load("random")(), network(), distribution=distribution, seed=3)


@pytest.mark.parametrize("registry", KINDS)
def test_names_are_those_of_the_kinds_and_each_has_a_help_text(registry):
    assert registry.names()[: len(registry.built_in)] == list(registry.built_in)
    for name in registry.names():
        assert getattr(registry.load(name), "name", name) == name
        text, options = registry.describe(name)
        assert text.endswith((".", "):")) or len(text) > 20, name
        assert all(isinstance(option, KindOption) and option.name.isidentifier() for option in options)


def test_options_are_the_arguments_that_a_user_gives():
    options = {option.name: option for option in METRICS.describe("accuracy")[1]}
    assert set(options) == {"k"} and (options["k"].type, options["k"].default) == ("int", "1")
    known = {"to": KindOption("to", "text", "none", "the models")}
    assert known["to"] in DIRECTIONS.describe("interpolation", known)[1]
    assert [option.name for option in PROBLEMS.describe("digits")[1]] == ["width", "epochs", "training_seed"]


# What breaks a rule


class Fine(Metric):
    """The sum of all weights."""

    shape = ()

    def __call__(self, model_wrapper):
        return sum(float(p.detach().sum()) for p in model_wrapper.parameters())


def test_a_metric_may_be_simple():
    testing.check_metric(Fine(), network())
    testing.check_metric(MetricPipeline([Fine(), Fine()]), network())


class Counting(Fine):
    calls = 0

    def __call__(self, model_wrapper):
        self.calls += 1
        return super().__call__(model_wrapper) + self.calls


class Remembering(Fine):
    """Means over the points so far: the same at the same point, until another has been visited."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __call__(self, model_wrapper):
        self.seen.add(super().__call__(model_wrapper))
        return np.mean(sorted(self.seen))


class Writing(Fine):
    def __call__(self, model_wrapper):
        with torch.no_grad():
            next(iter(model_wrapper.parameters())).add_(1)
        return 0.0


class LeavingGradients(Fine):
    def __call__(self, model_wrapper):
        sum(p.sum() for p in model_wrapper.parameters()).backward()
        return 0.0


class Training(Fine):
    def __call__(self, model_wrapper):
        model_wrapper.root.train()
        return 0.0


class OtherShape(Fine):
    shape = (2,)


class WrongDims(Fine):
    shape = None
    dims = ("a", "b")


class Words(Fine):
    shape = None

    def __call__(self, model_wrapper):
        return "many"


class Misnamed(Fine):
    name = "my metric"


class MeanOfSquares(BatchMetric):
    """A batch's variance, which is no mean over its samples."""

    def batch_mean(self, output, target):
        return output.var()


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (lambda *_: 1.0, "is no hpc_landscape.metrics.Metric"),
        (Counting(), "another value when it is called again"),
        (Remembering(), "another value after another point was visited"),
        (Writing(), "leaves the model with another 0.weight"),
        (LeavingGradients(), "another gradient of 0.weight"),
        (Training(), "in another mode"),
        (OtherShape(), "says shape"),
        (WrongDims(), "names 2 dims"),
        (Words(), "no number, array or tuple"),
        (Misnamed(), "its name is 'my metric'"),
        (MeanOfSquares(*samples()), "it does not add up"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_metric_that_breaks_a_rule(metric, text):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AssertionError, match=text):
        testing.check_metric(metric, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_batches_that_a_loader_makes_add_up_too():
    loss = METRICS.load("loss")(Criterion(F.cross_entropy), DataLoader(TensorDataset(*samples()), 5))
    testing.check_metric(loss, network())


CALLS: list[int] = []


def wider_each_time() -> Problem:
    CALLS.append(1)
    return Problem(nn.Linear(3, 3 + len(CALLS)), nn.CrossEntropyLoss(), (torch.zeros(4, 3), torch.zeros(4).long()))


def other_data() -> Problem:
    CALLS.append(1)
    return Problem(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.full((4, 3), len(CALLS)), torch.zeros(4).long()))


class Drawing(TensorDataset):
    calls = 0

    def __getitem__(self, index):
        Drawing.calls += 1
        x, y = super().__getitem__(index)
        return x + Drawing.calls, y


def other_each_reading() -> Problem:
    return Problem(network(), nn.CrossEntropyLoss(), DataLoader(Drawing(*samples()), 4))


def loss_of_samples() -> Problem:
    return Problem(network(), lambda output, target: F.cross_entropy(output, target, reduction="none"), samples())


class Held(TensorDataset):
    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.function = lambda: None


def not_picklable() -> Problem:
    return Problem(network(), nn.CrossEntropyLoss(), DataLoader(Held(*samples()), 4, num_workers=1))


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (dict, "returned a dict"),
        (lambda: Problem(nn.ReLU(), nn.CrossEntropyLoss(), samples()), "nothing to move"),
        (wider_each_time, "another model the second time"),
        (other_data, "other when the factory is called again"),
        (other_each_reading, "other when it is read again"),
        (loss_of_samples, "no number"),
        (not_picklable, "cannot be sent its data set"),
    ],
)
def test_a_problem_that_breaks_a_rule(factory, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_problem(factory)


class Ones(DirectionKind):
    """All ones, half as long along each further axis."""

    def make(self, settings, origin):
        return Directions(
            [
                {name: torch.full_like(w, 2.0**-axis) for name, w in origin.weights.items()}
                for axis in range(origin.count)
            ]
        )


def test_a_direction_may_be_simple():
    for axes in AXES.values():
        testing.check_direction(Ones(), network(), **axes)


class Drawn(Ones):
    def make(self, settings, origin):
        return Directions([{n: torch.rand_like(w) for n, w in origin.weights.items()}] * origin.count)


class TooFew(Ones):
    def make(self, settings, origin):
        return Directions(super().make(settings, origin).vectors[:1])


class OtherDtype(Ones):
    def make(self, settings, origin):
        return Directions([{n: torch.ones(w.shape) for n, w in origin.weights.items()}] * origin.count)


class Nowhere(Ones):
    def make(self, settings, origin):
        return Directions([{n: torch.zeros_like(w) for n, w in origin.weights.items()}] * origin.count)


class Moving(Ones):
    def make(self, settings, origin):
        next(iter(origin.weights.values())).add_(1)
        return super().make(settings, origin)


class Uses(Ones):
    options = ("lenght",)


class OneLabel(Ones):
    axis_label = "somewhere"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (dict, "is no hpc_landscape"),
        (Drawn, "other directions when it is called again"),
        (TooFew, "with 2 axes: gives 1 directions"),
        (OtherDtype, "dtypes or devices"),
        (Nowhere, "zero everywhere"),
        (Moving, "changes the weights"),
        (Uses, "there is no such setting"),
        (OneLabel, "the same for every axis"),
    ],
)
def test_a_direction_that_breaks_a_rule(kind, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_direction(kind(), network())
