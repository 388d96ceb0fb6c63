"""What a metric, a problem or a kind of direction has to keep to, as checks that your own tests can call.

    from hpc_landscape import testing

    def test_my_metric():
        testing.check_metric(MyMetric(inputs, target), model)

Each check raises an AssertionError with a sentence that says what is broken, and returns nothing.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .data.fingerprint import checksum
from .data.prepare import as_batches
from .data.sizes import batch_size
from .directions.base import DirectionKind, Directions, Origin
from .errors import UserError
from .grid import Axis
from .metrics.base import BatchMetric, Metric, Sums, weighed
from .metrics.without import no_gradients
from .model import state
from .model.numbers import can_move, wide
from .model.wrapper import ModelWrapper, wrap_model
from .problems.problem import Problem
from .ranks.generators import Generators
from .settings import OPTIONS, Settings

ROUNDING = 1e-5  # relative, between two ways to add up the same numbers
STEP = 0.01  # of the weights: how far off the other point is


class LikeSettings:
    """Settings of which a kind of direction reads what it likes, without being registered."""

    def __init__(self, kind: DirectionKind, **changes: Any):
        settings = Settings(**changes)
        vars(self).update(settings.by_name(), directions=kind.name)
        self.normalized = self.normalization or kind.normalization
        self.axes = settings.for_grid.given
        self.count = kind.dimensions(self, settings.for_grid.dimensions)

    def __getattr__(self, name: str) -> Any:  # tells type checkers that there are others
        raise AttributeError(f"there is no setting {name}")


def check_metric(metric: Metric, model: nn.Module | ModelWrapper, rtol: float = 0.0) -> None:
    """Check that a metric's value depends on the point alone, and is of the shape that it says.

    Args:
        metric: as the program would make it.
        model: at any weights; it is left as it is.
        rtol: how far apart two values of one point may be, relative. 0: they are equal to the bit.

    Raises:
        AssertionError: where it is no Metric, has no name that a file can hold; gives no number, array or tuple of
            them, another shape than ``shape``, or as many dims as that has not; leaves the model, its gradients or
            modes other than they were; gives another value at the same point, or after another point was visited;
            or where it is a BatchMetric, and its sums over batches are not the whole's.
    """
    _say(isinstance(metric, Metric), f"a {type(metric).__name__} is no hpc_landscape.metrics.Metric")
    name = metric.name
    _say(isinstance(name, str) and name.isidentifier(), f"its name is {name!r}: a file needs letters, digits and _")
    wrapper = wrap_model(copy.deepcopy(model))
    wrapper.root.eval()
    with Generators().preserved():
        before = _state_of(wrapper)
        first = _value(metric, wrapper)
        _check_shape(metric, first)
        _unchanged(before, _state_of(wrapper), f"{name} leaves the model")
        _same(first, _value(metric, wrapper), rtol, f"{name} gives another value when it is called again at the point")
        with _elsewhere(wrapper):
            _value(metric, wrapper)
        _same(first, _value(metric, wrapper), rtol, f"{name} gives another value after another point was visited")
        if isinstance(metric, BatchMetric):
            _check_sums(metric, wrapper)


def check_problem(factory: Callable[..., Problem], **arguments: Any) -> None:
    """Check that a factory makes the same problem each time, and that its data can be read again and again.

    Args:
        factory: what --problem names.
        arguments: what it is called with.

    Raises:
        AssertionError: where it gives no Problem, or one that is refused; makes another model or other data the second
            time; has data that are empty, other at the second reading, or that workers cannot be sent; or a loss that
            is no number.
    """
    problem, again = (_make(factory, arguments) for _ in range(2))
    shapes = [state.shapes(p.root) for p in (problem, again)]
    _say(shapes[0] == shapes[1], "the factory makes another model the second time: every rank calls it")
    _say([*problem.sets] == [*again.sets], "the factory names other sets of data the second time")
    for name, data in problem.sets.items():
        what = f"the data{f' {name!r}' if name else ''}"
        if isinstance(data, DataLoader) and data.num_workers:
            _picklable(data.dataset, f"{what} has workers, which cannot be sent its data set")
        first = _digest(data, what)
        _say(_digest(data, what) == first, f"{what} is other when it is read again: each point reads it anew")
        _say(
            _digest(again.sets[name], what) == first, f"{what} is other when the factory is called again, on a rank say"
        )
        _check_loss(problem, data, what)


def check_direction(kind: DirectionKind, origin: Origin | nn.Module, **settings: Any) -> None:
    """Check that a kind of direction makes what the program can use, and the same each time.

    Args:
        kind: made as ``--directions`` would.
        origin: a model; or what the kind is to be given, where it asks for more than weights.
        settings: others than the defaults, by their names (``seed=1``); of a line ``y="none"``.

    Raises:
        AssertionError: where its attributes say what is not so; or ``make`` gives other numbers of directions, names,
            shapes or dtypes than the weights', values that are not finite or all zero, others the second time, or
            changes the weights.
    """
    _say(isinstance(kind, DirectionKind), f"a {type(kind).__name__} is no hpc_landscape.directions.base.DirectionKind")
    _check_attributes(kind)
    if isinstance(origin, nn.Module):
        moving = {name: p.detach() for name, p in origin.named_parameters() if can_move(p)}
        origin = Origin({name: p.cpu().to(wide(p.dtype), copy=True) for name, p in moving.items()})
    given = LikeSettings(kind, **settings)
    origin = replace(origin, count=given.count)
    kind.check(given, given.axes)
    _say(isinstance(kind.recipe(given), str), f"{kind.name}: its recipe is no text")
    before = checksum(dict(origin.weights))
    with Generators().preserved():
        made = kind.make(given, origin)
        torch.manual_seed(1)
        np.random.seed(1)
        again = kind.make(given, origin)
    _say(checksum(dict(origin.weights)) == before, f"{kind.name} changes the weights that it is given")
    _check_directions(kind, made, origin.weights, given.count)
    same = checksum([made.vectors, made.targets, made.rest]) == checksum([again.vectors, again.targets, again.rest])
    _say(same, f"{kind.name} makes other directions when it is called again: draw from settings.seed alone")


def _say(right: bool, text: str) -> None:
    if not right:
        raise AssertionError(text)


# Metrics


def _value(metric: Metric, wrapper: ModelWrapper) -> list[np.ndarray]:
    """The parts of the metric's value, as arrays: of a tuple several, else one."""
    Generators().seed(0)
    found = metric(wrapper)
    try:
        return [
            np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part, dtype=np.float64)
            for part in (found if isinstance(found, tuple) else (found,))
        ]
    except (TypeError, ValueError):
        raise AssertionError(
            f"{metric.name} gives a {type(found).__name__}: no number, array or tuple of them"
        ) from None


def _check_shape(metric: Metric, parts: list[np.ndarray]) -> None:
    if metric.shape is not None:
        shapes = [part.shape for part in parts]
        _say(shapes == [tuple(metric.shape)], f"{metric.name} says shape {metric.shape}, and gives {shapes}")
    if metric.dims and len(parts) == 1:
        named = f"{metric.name} names {len(metric.dims)} dims of an array of {parts[0].ndim}"
        _say(len(metric.dims) == parts[0].ndim, named)


def _same(first: list[np.ndarray], second: list[np.ndarray], rtol: float, text: str) -> None:
    pairs = zip(first, second, strict=False)
    alike = len(first) == len(second) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=rtol, atol=0, equal_nan=True) for a, b in pairs
    )
    _say(alike, f"{text}: {first} and {second}")


def _state_of(wrapper: ModelWrapper) -> dict[str, str]:
    """What of a model a point could change, as words and checksums."""
    named = [*wrapper.root.named_parameters(), *wrapper.root.named_buffers()]
    found = {f"with another {name}": checksum(tensor) for name, tensor in named}
    found |= {f"with another gradient of {n}": "none" if t.grad is None else checksum(t.grad) for n, t in named}
    found |= {f"with another requires_grad of {name}": str(t.requires_grad) for name, t in named}
    found |= {f"with {n or 'itself'} in another mode": str(m.training) for n, m in wrapper.root.named_modules()}
    return found | {"with gradients switched": str(torch.is_grad_enabled())}


def _unchanged(before: Mapping[str, str], after: Mapping[str, str], text: str) -> None:
    for what in {**before, **after}:
        _say(before.get(what) == after.get(what), f"{text} {what}")


@contextmanager
def _elsewhere(wrapper: ModelWrapper) -> Iterator[None]:
    """Another point meanwhile: each weight farther out by a hundredth."""
    moving = [parameter for _, parameter in wrapper.named_moving()]
    before = [parameter.detach().clone() for parameter in moving]
    with torch.no_grad():
        for parameter in moving:
            parameter.mul_(1 + STEP).add_(STEP)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(moving, before, strict=True):
                parameter.copy_(old)


def _check_sums(metric: BatchMetric, wrapper: ModelWrapper) -> None:
    """Its weighted sum over batches of uneven sizes is that of the whole."""
    batches = [batch for batch in metric.data.batches if _is_tensors(batch)]
    if not batches or len({len(batch) for batch in batches}) != 1 or metric.data.count is not None:
        return  # nobody knows how to take these apart
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    size = batch_size(whole)
    if size is None or size < 2:
        return
    cuts = sorted({1, size // 3, size - 1} - {0})
    pieces = [tuple(part) for part in zip(*(t.tensor_split(cuts) for t in whole), strict=True)]
    values = [_over(metric, wrapper, batches) for batches in ([whole], [p for p in pieces if len(p[0])])]
    alike = np.allclose(values[0], values[1], rtol=ROUNDING, atol=ROUNDING**2, equal_nan=True)
    _say(alike, f"{metric.name} is {values[0]:.9g} over one batch and {values[1]:.9g} over several: it does not add up")


def _over(metric: BatchMetric, wrapper: ModelWrapper, batches: list[tuple[Tensor, ...]]) -> float:
    sums = Sums([metric])
    with no_gradients():
        for batch in batches:
            Generators().seed(0)
            sums.add(weighed([metric], wrapper, metric.data, batch, batch_size(batch)))
        return sums.values()[0][0]


def _is_tensors(batch: Any) -> bool:
    return type(batch) in (tuple, list) and all(isinstance(part, Tensor) and part.ndim for part in batch)


# Problems


def _make(factory: Callable[..., Problem], arguments: Mapping[str, Any]) -> Problem:
    problem = factory(**arguments)
    _say(isinstance(problem, Problem), f"the factory returned a {type(problem).__name__}, not hpc_landscape.Problem")
    try:
        problem.check()
    except UserError as error:
        raise AssertionError(str(error)) from None
    return problem


def _digest(data: Any, what: str) -> str:
    """A checksum of one pass over the data, drawn with the same seed."""
    with Generators().preserved():
        Generators().seed(0)
        try:
            found = [checksum(batch) for batch in as_batches(data)]
        except UserError as error:
            raise AssertionError(str(error)) from None
    _say(bool(found), f"{what} is empty")
    return checksum(found)


def _check_loss(problem: Problem, data: Any, what: str) -> None:
    """The loss of the first batch is one number, or several by name or in order."""
    read = problem.on(as_batches(data))
    root = problem.root
    modes = [module.training for module in root.modules()]
    root.eval()
    try:
        with torch.no_grad(), Generators().preserved():
            batch = next(read.on(problem.wrapper))
            assert problem.loss is not None  # or the problem had been refused
            found = problem.loss(read.output(problem.wrapper, batch), read.target(batch))
    finally:
        for module, mode in zip(root.modules(), modes, strict=True):
            module.training = mode
    terms = [*found.values()] if isinstance(found, Mapping) else found if isinstance(found, (tuple, list)) else [found]
    numbers = all(torch.as_tensor(term).numel() == 1 for term in terms)
    _say(numbers, f"the loss on {what} is no number: it must be a mean over the batch")


def _picklable(thing: Any, text: str) -> None:
    try:
        pickle.dumps(thing)
    except Exception as error:  # pickling calls the user's code
        raise AssertionError(f"{text}: {type(error).__name__}: {error}") from None


# Directions


def _check_attributes(kind: DirectionKind) -> None:
    for option in (*kind.options, *kind.needs, *kind.only):
        _say(option in OPTIONS, f"{kind.name} says that it uses {option}, and there is no such setting")
    _say(set(kind.only) <= {*kind.options, *kind.needs}, f"{kind.name}: what is its alone is to be in its options, too")
    choices = ("filter", "layer", "model", "none")
    _say(kind.normalization in choices, f"{kind.name}: normalization is {kind.normalization!r}")
    labels = [kind.label(axis) for axis in range(3)]
    _say(len(set(labels)) == 3, f"{kind.name}: axis_label is the same for every axis: {labels[0]}")
    _say(len(kind.models) >= 1, f"{kind.name}: models names none")
    if kind.axis is not None:
        Axis.parse(kind.axis)


def _check_directions(kind: DirectionKind, made: Directions, weights: Mapping[str, Tensor], count: int) -> None:
    what = f"{kind.name} with {count} axes"
    wanted = {name: (w.shape, w.dtype, w.device.type) for name, w in weights.items()}
    for vectors in (made.vectors, made.targets) if made.targets is not None else (made.vectors,):
        _say(len(vectors) == count, f"{what}: gives {len(vectors)} directions")
        for vector in vectors:
            found = {name: (d.shape, d.dtype, d.device.type) for name, d in vector.items()}
            _say(found == wanted, f"{what}: names, shapes, dtypes or devices are not the weights': {found}")
            _say(all(bool(d.isfinite().all()) for d in vector.values()), f"{what}: values are not finite")
    moves = [any(bool(d.any()) for d in vector.values()) for vector in made.vectors]
    _say(all(moves), f"{what}: a direction is zero everywhere")
    _say(
        (made.targets is not None) == kind.leads_to_models, f"{what}: targets are for kinds with leads_to_models alone"
    )
    for number, axis in enumerate(made.axes or ()):
        Axis.parse(axis, "xyz"[number])
