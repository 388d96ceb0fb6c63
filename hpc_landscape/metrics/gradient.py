"""The gradient of the loss with respect to the perturbed parameters, and how well it predicts itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data import Data, fresh
from ..data.nest import each_tensor
from ..errors import UserError, warn
from ..model.numbers import can_move, count, double, numbers_of
from ..model.parameters import ModelParameters
from ..model.wrapper import ModelWrapper
from .base import DataMetric
from .criterion import Criterion, data_of
from .derivative import REENTRANT, LossFunction, Parts, check_reached, explained
from .second import not_the_slope


def floating(model: ModelWrapper) -> list[nn.Parameter]:
    """The perturbed parameters that a gradient is of, in the order that they have in every vector."""
    return [parameter for parameter in model.parameters() if can_move(parameter)]


def unflatten(vector: np.ndarray, parameters: Sequence[Tensor]) -> ModelParameters:
    """A vector of all their real numbers as tensors of the parameters' shapes, on the CPU."""
    parts = torch.from_numpy(vector).split([count(p) for p in parameters])
    return ModelParameters(_shaped(part, p) for part, p in zip(parts, parameters, strict=True))


def _shaped(part: Tensor, parameter: Tensor) -> Tensor:
    if not parameter.is_complex():
        return part.reshape(parameter.shape)
    part = part if part.is_floating_point() else part.float()  # signs
    pairs = part.reshape(*parameter.shape, 2)
    return numbers_of(pairs.clone(), parameter)  # of its own: a pair may begin anywhere in the vector


@contextmanager
def differentiable(model: ModelWrapper) -> Iterator[list[nn.Parameter]]:
    """The floating-point parameters, those that were frozen too, recording what is computed with them."""
    parameters = floating(model)
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    # In eval mode cuDNN's recurrent layers have no backward, and never a second one.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.root.modules())
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        torch.clear_autocast_cache()  # it may hold casts that were made without a gradient
        without_cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), without_cudnn:
            yield parameters
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        torch.clear_autocast_cache()


def batch_gradients(
    model: ModelWrapper,
    parameters: Sequence[Tensor],
    loss_fn: LossFunction,
    data: Data,
    create_graph: bool = False,
    copied: bool = False,
) -> Iterator[tuple[Parts, float]]:
    """(gradient of the batch's loss, by how much it weighs) of each batch. ``.grad`` stays as it is.

    copied: whether a graph is of a copy of its batch, so that it may outlive that.
    """
    criterion = Criterion.of(loss_fn)
    for _, batch, items in data.counted(model):
        batch = fresh(each_tensor(batch, torch.clone) if copied else batch)
        output, target = data.output(model, batch), data.target(batch)
        loss = criterion(output, target)
        weight = criterion.weight(output, target, items, data.count is not None)
        weight = data.unknown(batch) if weight is None else float(weight)
        if not weight:
            continue  # a mean over nothing is NaN
        if not loss.requires_grad:
            raise UserError(
                "the loss has no gradient with respect to the perturbed parameters: it does not depend on them, or is "
                "not computed by torch alone (no .item(), no .detach(), no torch.no_grad(), no torch.utils.checkpoint "
                f"with {REENTRANT})"
            )
        with explained():
            parts = torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=create_graph)
        check_reached(loss, parts)
        yield parts, weight


def weighted_mean(
    parameters: Sequence[Tensor], batches: Iterable[tuple[Parts, float]], loss_fn: LossFunction
) -> ModelParameters:
    """The mean of the batches' vectors in float64, or of a loss that is a sum their sum.

    What is None counts as zero, and no batches at all give NaN.
    """
    totals = [torch.zeros_like(double(parameter)) for parameter in parameters]
    items = 0.0
    for parts, weight in batches:
        for total, part in zip(totals, parts, strict=True):
            if part is not None:
                total.add_(double(part), alpha=weight)
        items += weight
    if Criterion.of(loss_fn).sum and items:
        items = 1.0
    return ModelParameters(total / items for total in totals)


def gradient(model: ModelWrapper, loss_fn: LossFunction, data: Data) -> ModelParameters:
    """The gradient of the mean loss over the data, in float64, one tensor per floating-point parameter.

    Of a complex one it has the derivatives by the real and by the imaginary parts as a complex number. UserError where
    the loss has none.
    """
    with differentiable(model) as parameters:
        return weighted_mean(parameters, batch_gradients(model, parameters, loss_fn, data), loss_fn)


@contextmanager
def movable(model: ModelWrapper) -> Iterator[Callable[[ModelParameters, float], None]]:
    """``move(direction, scale)``: to where the parameters were plus scale * direction, computed in float64.

    Afterwards, also after an error, they are bitwise what they were. They stay the same tensors throughout.
    """
    parameters = floating(model)
    saved = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def move(direction: ModelParameters | None, scale: float = 1.0) -> None:
        for i, (parameter, start) in enumerate(zip(parameters, saved, strict=True)):
            if direction is not None:
                start = double(start)
                start = start + scale * double(direction[i]).to(start.device)
            parameter.copy_(start)
        torch.clear_autocast_cache()  # of the parameters that it holds in lower precision

    try:
        yield move
    finally:
        move(None)


class GradientMetric(DataMetric):
    """What is made of gradients: whether they are the loss's slopes is seen once, on the first batch."""

    checked = False
    loss_fn: Criterion

    def check(self, model_wrapper: ModelWrapper) -> str:
        """What there is to say where they are not; nothing the next time."""
        if self.checked:
            return ""
        self.checked = True
        with differentiable(model_wrapper) as parameters:
            found = not_the_slope(model_wrapper, parameters, self.loss_fn, self.data)
        return found and f"{self.name}: {found}"

    def gradient(self, model_wrapper: ModelWrapper) -> ModelParameters:
        """The gradient at the point; a warning the first time, where there is something to say."""
        here = gradient(model_wrapper, self.loss_fn, self.data)
        if found := self.check(model_wrapper):
            warn(found)
        return here


class LossGradient(GradientMetric):
    """The gradient of the mean loss: float64, shape (P,), the floating-point parameters as one vector, in order.

    Complex ones are pairs of real numbers. A parameter that the loss does not use has zeros; UserError where that is
    all of them.
    """

    dims = ("parameter",)

    def __init__(self, loss_fn: LossFunction, inputs: Any = None, target: Any = None):
        super().__init__(data_of(loss_fn, inputs), target)
        self.loss_fn = Criterion.of(loss_fn)

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        return self.gradient(model_wrapper).as_numpy()


class GradientNorm(GradientMetric):
    """The Euclidean norm of the gradient of the mean loss."""

    shape = ()

    def __init__(self, loss_fn: LossFunction, inputs: Any = None, target: Any = None):
        super().__init__(data_of(loss_fn, inputs), target)
        self.loss_fn = Criterion.of(loss_fn)

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        return self.gradient(model_wrapper).model_norm()


class GradientPredictiveness(GradientMetric):
    """How far the gradient g changes in a step against it: ||g(w) - g(w - step * g(w))||; the less, the smoother.

    Santurkar et al. 2018 (arXiv 1805.11604), section 3.1 and figure 4. step: a length in units of the gradient, or
    several: then the shape is (steps,).
    """

    def __init__(
        self, loss_fn: LossFunction, inputs: Any = None, target: Any = None, step: float | Sequence[float] = 0.1
    ):
        super().__init__(data_of(loss_fn, inputs), target)
        self.loss_fn, self.step = Criterion.of(loss_fn), step
        self.shape, self.dims = (), ()
        if isinstance(step, Sequence):
            self.shape, self.dims = (len(step),), ("step",)

    def __call__(self, model_wrapper: ModelWrapper) -> float | np.ndarray:
        here = self.gradient(model_wrapper)
        distances = []
        with movable(model_wrapper) as move:
            for step in self.step if isinstance(self.step, Sequence) else [self.step]:
                move(here, -step)
                distances.append((gradient(model_wrapper, self.loss_fn, self.data) - here).model_norm())
        return np.array(distances) if isinstance(self.step, Sequence) else distances[0]
