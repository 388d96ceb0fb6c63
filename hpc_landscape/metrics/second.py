"""Whether a loss has the second derivatives that its curvature is made of.

What has none is either told by autograd itself, or is found by differences: of the loss against its gradient, where a
part is straight through; of the gradient against a product, where a function of the user's own is on the way. Both in
float64, with small steps, so that the kinks of a ReLU do not count; where float64 cannot be had, nothing is said.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.data import Data, move
from ..errors import UserError
from ..model.numbers import double, like
from ..model.parts import is_plain
from ..model.wrapper import ModelWrapper
from .criterion import Criterion, loss_on
from .derivative import LossFunction, check_reached, explained

TOLD = re.compile(
    r"once_differentiable|derivative for .* is not implemented|not (twice )?differentiable|double backward|"
    r"second derivative|higher order",
    re.IGNORECASE,
)
ADVICE = "take the functions of torch that can be differentiated twice, or leave curvature out"
TENSORS = 8  # whose gradients are compared with the loss
STEPS = (1e-3, 1e-4, 1e-5)  # relative to a parameter's norm
BESIDE = 1e-3  # relative, from the parameters to where it is tried: at zero a ReLU has no slope
OFF, FLAT = 0.05, 0.01  # of a slope: less may be a kink; so little is a step of a stair
ROUNDING = 1e-7  # of a loss: some models compute in float32 whatever they are given


def refuse(error: RuntimeError) -> None:
    """UserError where autograd has said that a function cannot be differentiated twice."""
    if TOLD.search(str(error)):
        said = " ".join(str(error).split())[:120]
        raise UserError(f"curvature: the loss goes through a function without a second derivative ({said}): {ADVICE}")


def check_second(
    model: ModelWrapper, parameters: Sequence[nn.Parameter], loss_fn: LossFunction, data: Data, seed: int = 0
) -> None:
    """UserError where products with the Hessian would not be those of the loss, as the first batch tells."""
    if found := _seen(model, parameters, loss_fn, data, seed):
        raise UserError(f"curvature: {found}: {ADVICE}")


def not_the_slope(
    model: ModelWrapper, parameters: Sequence[nn.Parameter], loss_fn: LossFunction, data: Data, seed: int = 0
) -> str:
    """What there is to say where the gradient is not the slope of the loss, as the first batch tells."""
    found = _seen(model, parameters, loss_fn, data, seed, whole=True)
    advice = 'where a derivative in it says create_graph=self.training, give mode="train_without_dropout"'
    return found and f"{found}: what is stored is autograd's gradient; {advice}"


def _seen(
    model: ModelWrapper,
    parameters: Sequence[nn.Parameter],
    loss_fn: LossFunction,
    data: Data,
    seed: int,
    whole: bool = False,
) -> str:
    """What is found on the first batch in float64; nothing where that cannot be had.

    whole: of the whole gradient alone, and not of second derivatives.
    """
    batch = next((b for b in data.on(model) if data.items(b)), None)
    if batch is None:
        return ""
    try:
        with _double(model):
            probe = _Probe(model, parameters, loss_fn, data, move(batch, None, torch.float64), seed)
            found = probe.straight_through(whole)
            if whole:
                return found
            return f"{found}, and its second derivatives are not the loss's" if found else probe.without_second()
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and not whole:
            refuse(error)
        return ""


class _Probe:
    """A loss on one batch, in float64, near the parameters and beside that. Use within ``_double``."""

    def __init__(
        self,
        model: ModelWrapper,
        parameters: Sequence[nn.Parameter],
        loss_fn: LossFunction,
        data: Data,
        batch: Any,
        seed: int,
    ):
        self.model, self.parameters, self.data, self.batch = model, parameters, data, batch
        self.criterion = copy.copy(Criterion.of(loss_fn))
        self.criterion.loss_fn = loss_on(self.criterion.loss_fn, model.root, None, torch.float64)
        self.seed = seed % 2**63
        self.buffers = [(b, b.clone()) for b in model.root.buffers() if is_plain(b)]
        self.start = [p.detach().clone() for p in parameters]
        self.size = _norm(self.start) or 1.0
        with torch.no_grad():
            for p, start, drawn in zip(parameters, self.start, self._random(1), strict=True):
                p.copy_(start.add_(drawn, alpha=BESIDE))
        here = self.loss()
        self.gradient = [g.detach() for g in self.slopes(here)]
        self.here = float(here.detach())
        self.steady = self.value() == self.here  # else it draws what no seed of torch's decides

    def loss(self) -> Tensor:
        for buffer, before in self.buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)  # an observer's, say
        torch.manual_seed(self.seed)
        return self.criterion(self.data.output(self.model, self.batch), self.data.target(self.batch))

    def value(self) -> float:
        with torch.no_grad():
            return float(self.loss())

    def slopes(self, loss: Tensor, create_graph: bool = False) -> list[Tensor]:
        with explained():
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True, create_graph=create_graph)
        check_reached(loss, found)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]

    @contextmanager
    def beside(self, direction: Sequence[Tensor], step: float) -> Iterator[None]:
        try:
            with torch.no_grad():
                for p, start, d in zip(self.parameters, self.start, direction, strict=True):
                    p.copy_(start + step * d)
            yield
        finally:
            with torch.no_grad():
                for p, start in zip(self.parameters, self.start, strict=True):
                    p.copy_(start)

    def straight_through(self, whole: bool = False) -> str:
        """Along each parameter's gradient the loss must grow by that gradient's length.

        whole: along the whole gradient instead, and as the gradient says also in a random direction.
        """
        usable = [i for i, g in enumerate(self.gradient) if self.steady and 0 < _norm([g]) < float("inf")]
        groups = [[i] for i in usable[:: max(1, len(usable) // TENSORS)]]
        directions = (self._along(group) for group in ([usable] * bool(usable) if whole else groups))
        for direction in itertools.chain(directions, [self._random()] * (whole and self.steady)):
            said = float(sum((g * d.conj()).real.sum() for g, d in zip(self.gradient, direction, strict=True)))
            if (slope := self._other_slope(direction, said)) is not None:
                return (
                    f"the loss does not change along its gradient as that says ({slope:.2g} instead of {said:.2g}): "
                    "a part of it is detached, rounded or straight through"
                )
        return ""

    def _along(self, chosen: Sequence[int]) -> list[Tensor]:
        """The gradient by these parameters, of their length."""
        length = _norm([self.gradient[i] for i in chosen])
        size = _norm([self.start[i] for i in chosen]) or 1.0
        return [g / length * size * (i in chosen) for i, g in enumerate(self.gradient)]

    def _random(self, number: int = 0) -> list[Tensor]:
        """A direction, as long as the parameters."""
        generator = torch.Generator().manual_seed((self.seed + number) % 2**63)
        drawn = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in self.start]
        length = _norm(drawn)
        return [d / length * self.size for d in drawn]

    def _other_slope(self, direction: Sequence[Tensor], said: float) -> float | None:
        """The slope along a direction, where it is not what is said with any step, or flat with the smallest."""
        slopes, noise = [self._slope(direction, step) for step in STEPS], [ROUNDING * abs(self.here) / s for s in STEPS]
        off = [abs(s - said) > OFF * max(abs(s), abs(said)) + n for s, n in zip(slopes, noise, strict=True)]
        flat = abs(slopes[-1]) < FLAT * abs(said) and abs(said) > noise[-1]
        return slopes[-1] if all(off) or flat else None

    def _slope(self, direction: Sequence[Tensor], step: float) -> float:
        with self.beside(direction, step):
            above = self.value()
        with self.beside(direction, -step):
            return (above - self.value()) / (2 * step)

    def without_second(self) -> str:
        """Along a random direction the gradient must change as the product with the Hessian says."""
        here = self.loss()
        own = _own_functions(here)
        gradient = self.slopes(here, create_graph=True)
        if not self.steady or not (own or not any(g.requires_grad for g in gradient)):
            return ""
        direction = self._random()
        pairs = [(g, d) for g, d in zip(gradient, direction, strict=True) if g.requires_grad]
        product = [torch.zeros_like(p) for p in self.start]
        if pairs:
            graphs, vectors = zip(*pairs, strict=True)
            found = torch.autograd.grad(graphs, self.parameters, vectors, retain_graph=True, allow_unused=True)
            product = [z if h is None else h for z, h in zip(product, found, strict=True)]
        worst = []
        for step in (1e-5, 1e-6, 1e-7):
            with self.beside(direction, step):
                above = self.slopes(self.loss())
            with self.beside(direction, -step):
                below = self.slopes(self.loss())
            change = [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]
            scale = max(_norm(change), _norm(product)) + 1e-12 * _norm(self.gradient) / step
            worst.append(_norm([c - h for c, h in zip(change, product, strict=True)]) / scale if scale else 0.0)
        if not min(worst) > 0.1:
            return ""
        return (
            "the gradient does not change as products with the Hessian say: the loss goes through a function whose "
            "backward cannot be differentiated (torch.no_grad, .detach, or tensors that were not saved, in it)"
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([double(t).norm() for t in tensors]).norm())


def _own_functions(loss: Tensor) -> bool:
    """Whether a torch.autograd.Function that is written in Python is on the way."""
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        todo += [following for following, _ in node.next_functions]
    return False


@contextmanager
def _double(model: ModelWrapper) -> Iterator[None]:
    """The model in float64 meanwhile; its tensors, and torch's generator, are what they were afterwards."""
    held = (*model.root.parameters(), *model.root.buffers())
    tensors = [t for t in held if t.is_floating_point() or t.is_complex()]
    kept = [(t, t.data) for t in tensors]
    with torch.random.fork_rng(sorted({t.device.index or 0 for t in tensors if t.is_cuda})):
        try:
            for t in tensors:
                t.data = t.data.to(like(torch.float64, t), copy=True)
            yield
        finally:
            for t, data in kept:
                t.data = data
