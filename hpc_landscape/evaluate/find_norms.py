"""Which running statistics are to be re-estimated at each point, found by looking at two points on one batch.

A layer of a part that the user keeps still (none of its parameters moves), and whose input is the same at both points,
has the checkpoint's statistics: a teacher, a frozen backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.data import Data
from ..metrics.base import Metric
from ..model.batchnorm import batchnorm_layers
from ..model.estimation import RunningStatistics
from ..model.norms import Norms, is_norm, looks_like_norm
from ..model.numbers import can_move, double, numbers_of, reals, wide
from ..model.placement import Placement
from ..model.wrapper import ModelWrapper
from .evaluator import Evaluator

NOTICEABLE = 0.25  # standard deviations, for statistics that are not the checkpoint's
CLEAR = 1e-2  # relative, of a sum of squares: by more an input has moved; another order of sums changes less


def find_norms(
    model: ModelWrapper,
    run: Data | Metric,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Norms:
    """What there is to re-estimate, on the first batch of the data. Raises what the model raises on it."""
    named = dict(model.root.named_modules())
    own = {name: module for name, module in named.items() if is_norm(module)}
    like = {name: module for name, module in named.items() if looks_like_norm(module)}
    foreign = {name: module for name, module in named.items() if _has_statistics(module) and name not in {*own, *like}}
    if not (own or like or foreign):
        return Norms()
    evaluator = Evaluator(model, _somewhere(model, device, dtype, seed), {}, "running", seed=seed)
    first = _first_of(run)
    here, there = (_inputs(evaluator, c, first, {**own, **like}) for c in (0.0, 1.0))
    doubtful = any(_close(inputs, there.get(name, [])) for name, inputs in here.items())
    again = _inputs(evaluator, 0.0, first, {**own, **like}) if doubtful else here
    able = {name for name in like if _takes_momentum(evaluator, first, like[name])}
    unlike = {*like} - able | _changed_by_training(evaluator, first, foreign)
    moving = {id(p) for p in model.parameters()}
    unmoved = {name for name in (*own, *like) if not _moved(*(seen.get(name, []) for seen in (here, again, there)))}
    kept = {name for name in unmoved if _kept_still(name, named, moving)}
    estimated = [name for name in named if name in {*own, *able} - kept]
    candidates = [name for name in estimated if name in unmoved and name in here and name in own]
    return Norms(
        tuple(estimated),
        tuple(name for name in named if name in kept),
        tuple(name for name in named if name in unlike - kept),
        tuple(name for name in estimated if name not in here),
        tuple(_stale(evaluator, first, {name: own[name] for name in candidates})),
    )


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module of the user's own holds buffers that training might change."""
    floating = any(b is not None and b.is_floating_point() for b in module._buffers.values())
    return floating and not type(module).__module__.startswith("torch.")


def _somewhere(model: ModelWrapper, device: torch.device | None, dtype: torch.dtype | None, seed: int) -> Placement:
    """The model, and at coordinate 1 one where everything that can move has moved."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    origin, direction = {}, {}
    for name, p in model.named_parameters():
        if can_move(p) and p.numel():
            origin[name] = p.data
            numbers = double(reals(p.data.cpu()))
            size = numbers.square().mean().sqrt().nan_to_num() or 1.0
            moved = torch.randn(numbers.shape, generator=generator, dtype=torch.float64, device="cpu") * size * 0.5
            direction[name] = numbers_of(moved, p).to(wide(p.dtype))
    return Placement(origin, [direction], device, dtype)


def _first_of(run: Data | Metric) -> Callable[[ModelWrapper], Any]:
    """Passes the first batch through the model; or whatever a metric does."""
    if not isinstance(run, Data):
        return run

    def first(model: ModelWrapper) -> Any:
        for batch in run.on(model):
            return run.output(model, batch)

    return first


@contextmanager
def _hooked(layers: Sequence[nn.Module], observe: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(
    evaluator: Evaluator, coordinate: float, first: Callable[[ModelWrapper], Any], layers: dict[str, nn.Module]
) -> dict[str, list[Tensor]]:
    """What tells each layer's inputs from others: a few sums for each use."""
    names = {layer: name for name, layer in layers.items()}
    seen: dict[str, list[Tensor]] = {}

    def observe(layer: nn.Module, args: Any, kwargs: Any) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                x = double(reals(x)).reshape(-1)
                ramp = torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device)
                sums = torch.stack([x.sum(), x.square().sum(), (x * ramp).sum()])
                seen.setdefault(names[layer], []).append(sums.cpu())

    with evaluator.attached_at([coordinate]), torch.no_grad(), _hooked([*names], observe):
        first(evaluator.model)
    return seen


def _close(here: list[Tensor], there: list[Tensor]) -> bool:
    """Whether inputs differ between two points, and by so little that they may be the same."""
    pairs = [(a, b) for a, b in zip(here, there, strict=False) if not torch.equal(a, b)]
    return bool(pairs) and all(bool((a[1] - b[1]).abs() <= CLEAR * a[1]) for a, b in pairs)


def _moved(here: list[Tensor], again: list[Tensor], there: list[Tensor]) -> bool:
    """Whether inputs differ between two points by more than between two passes at one (some kernels add up anyhow)."""
    if not len(here) == len(again) == len(there):
        return True
    noise = (4 * (a - b).abs() for a, b in zip(here, again, strict=True))
    return not all(bool(((a - b).abs() <= n).all()) for a, b, n in zip(here, there, noise, strict=True))


def _kept_still(name: str, named: dict[str, nn.Module], moving: set[int]) -> bool:
    """Whether nothing moves in the smallest part around the layer that has parameters at all."""
    while True:
        parameters = [id(p) for p in named[name].parameters()] if name in named else []
        if parameters or not name:
            return bool(parameters) and moving.isdisjoint(parameters)
        name = name.rpartition(".")[0]


@torch.no_grad()
def _takes_momentum(evaluator: Evaluator, first: Callable[[ModelWrapper], Any], layer: nn.Module) -> bool:
    """Whether a layer of the user's own averages as torch's do: (1 - momentum) * running + momentum * batch."""
    buffers = layer._buffers
    if not isinstance(vars(layer).get("momentum"), float) or not {"running_mean", "running_var"} <= buffers.keys():
        return False
    inputs: list[Any] = []
    with evaluator.attached_at([0.0]):
        with _hooked([layer], lambda _, args, kwargs: inputs.append((args, kwargs))):
            first(evaluator.model)
        if not inputs:
            return False
        before, training = layer.momentum, layer.training
        args, kwargs = inputs[0]

        def after(start: float, momentum: float) -> Tensor:
            for name in ("running_mean", "running_var"):
                buffers[name] = torch.full_like(_buffer(layer, name), start)
            vars(layer)["momentum"], layer.training = momentum, True
            layer.forward(*args, **kwargs)
            return torch.cat([double(_buffer(layer, name)).reshape(-1) for name in ("running_mean", "running_var")])

        try:
            alone, other, part = after(1.0, 1.0), after(3.0, 1.0), after(3.0, 0.25)
        except Exception:
            return False
        finally:
            vars(layer)["momentum"], layer.training = before, training
    scale = float(alone.abs().max()) + 3
    errors = (alone - other, 0.75 * 3 + 0.25 * alone - part)
    return all(bool(error.abs().max() < 1e-4 * scale) for error in errors)


def _changed_by_training(
    evaluator: Evaluator, first: Callable[[ModelWrapper], Any], modules: dict[str, nn.Module]
) -> set[str]:
    """Modules of the user's own whose buffers a pass in train mode changes, whatever they are called."""
    if not modules:
        return set()
    with evaluator.attached_at([0.0]), torch.no_grad():
        before = {name: {k: b.clone() for k, b in m._buffers.items() if b is not None} for name, m in modules.items()}
        try:
            evaluator.model.root.train()
            first(evaluator.model)
        except Exception:  # it cannot be trained on this data, say: nobody has
            return set()
        return {
            name
            for name, held in before.items()
            for key, value in held.items()
            if value.is_floating_point() and not torch.equal(value, _buffer(modules[name], key))
        }


def _stale(evaluator: Evaluator, first: Callable[[ModelWrapper], Any], layers: dict[str, nn.Module]) -> list[str]:
    """Those that a training has given statistics which are not those of this batch."""
    counted = {name: m._buffers.get("num_batches_tracked") for name, m in layers.items()}
    trained = [name for name, count in counted.items() if count is None or count > 0]
    if not trained:
        return []
    counts: dict[nn.Module, int] = {}

    def measure(layer: nn.Module, args: Any, kwargs: Any) -> None:
        counts[layer] = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).numel()

    with evaluator.attached_at([0.0]), torch.no_grad(), _hooked([*layers.values()], measure):
        old = {name: _statistics(m) for name, m in layers.items()}
        with RunningStatistics(batchnorm_layers(evaluator.model)):
            first(evaluator.model)
        found = []
        for name in trained:
            (mean, var), layer = old[name], layers[name]
            (new_mean, new_var), eps = _statistics(layer), vars(layer)["eps"]
            noise = NOTICEABLE + (max(1, counts.get(layer, 1)) / mean.numel()) ** -0.5
            shift = ((new_mean - mean).abs() / (var + eps).sqrt()).mean()
            spread = ((new_var + eps) / (var + eps)).log().abs().mean() / 2
            if shift > noise or spread > noise:
                found.append(name)
    return found


def _buffer(layer: nn.Module, name: str) -> Tensor:
    found = layer._buffers[name]
    assert found is not None  # it is one of those that hold something
    return found


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and variance, in float64."""
    return double(_buffer(layer, "running_mean")), double(_buffer(layer, "running_var"))
