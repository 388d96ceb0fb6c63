"""A loss as metrics use it: one number, or terms that add up to it, and what the batches' numbers are weighed by."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..data.data import Data
from ..data.precise import precise
from ..errors import UserError
from ..model.numbers import can_move, like
from .counts import as_module, count_of, ignored

TOTAL = "loss"  # a term of this name is the loss itself, as Lightning and Hugging Face have it
REDUCTIONS = (None, "mean", "sum")


class Criterion:
    """``loss_fn(output, target)``, called once for a batch, however many of its terms are wanted.

    reduction: ``mean``: the mean over a batch's items, and of the batches the mean weighted by their items; ``sum``: a
    sum over the batch, and over the batches. None: as the loss says itself (``reduction`` of a torch.nn loss), else a
    mean. What a torch.nn loss takes its mean over (class weights, ignored targets, elements) is counted as it does.

    A loss may return several numbers: a dict, a tuple or a named tuple. Their sum is the loss; where one of them is
    called ``loss``, it is that.

    A loss without data, ``loss()`` or ``loss(model)``, is what it returns at the point.
    """

    def __init__(self, loss_fn: Callable[..., Any], reduction: str | None = None):
        if reduction not in REDUCTIONS:
            raise UserError(f"reduction={reduction!r}: expected mean or sum")
        self.loss_fn, self.given, self.takes_data = loss_fn, reduction, not takes_no_data(loss_fn)
        known = self._known = as_module(loss_fn)
        own = getattr(known, "reduction", None) if isinstance(known, nn.Module) else None
        if own == "none" and reduction is None:
            raise UserError("the loss has reduction='none': it must be one number, reduction='mean' or 'sum'")
        self.sum = reduction == "sum" or (reduction is None and own == "sum")
        self._count = None if self.sum else count_of(known)
        self.tried = False  # whether its batches have been compared with their parts

    @classmethod
    def of(cls, loss_fn: Any) -> Criterion:
        """The loss itself where it is one already."""
        return loss_fn if isinstance(loss_fn, Criterion) else cls(loss_fn)

    @property
    def ignore_index(self) -> int | None:
        return ignored(self._known)

    @property
    def derived(self) -> bool:
        """Whether it is known from the loss itself what its mean is over."""
        return self._count is not None

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss of a batch, a 0-d tensor."""
        return self.total(self.terms(output, target))

    def terms(self, output: Any, target: Any) -> dict[str, Tensor]:
        """Its terms by name, 0-d tensors; a single number is called ``loss``."""
        value = self.loss_fn(output, target) if self.takes_data else output
        if isinstance(value, Mapping):
            named = {str(key): term for key, term in value.items()}
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            named = dict(zip(value._fields, value, strict=True))
        elif isinstance(value, (tuple, list)):
            named = {f"{TOTAL}_{i}": term for i, term in enumerate(value)}
        else:
            return {TOTAL: number(value)}
        if not named:
            raise UserError(f"the loss returned an empty {type(value).__name__}: it must be a number, or some")
        if TOTAL in named:  # the others may be of any kind: logits, say
            return {name: number(term, name) for name, term in named.items() if name == TOTAL or _is_number(term)}
        return {name: number(term, name) for name, term in named.items()}

    @staticmethod
    def total(terms: Mapping[str, Tensor]) -> Tensor:
        """The loss that the terms make."""
        if TOTAL in terms:
            return terms[TOTAL]
        first, *others = terms.values()
        for term in others:
            first = first + term.to(first.device)
        return first

    def weight(self, output: Any, target: Any, items: Any, counted: bool) -> Any:
        """By how much the batch weighs. items: of the batch; counted: by the user, who knows best."""
        if self.sum:
            return 1.0
        return items if self._count is None or counted else self._count(output, target)


def number(value: Any, name: str = "") -> Tensor:
    """A number as a 0-d tensor; UserError where it is not one."""
    what = f"the loss's term '{name}'" if name else "the loss"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(
                f"{what} returned a tensor of shape {tuple(value.shape)}: it must be one number, the mean over the "
                "batch (reduction='mean')"
                if not name
                else f"{what} is a tensor of shape {tuple(value.shape)}: each term must be one number"
            )
        return precise(value.reshape(()) if value.ndim else value)
    try:
        return torch.as_tensor(float(value), dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):
        raise UserError(
            f"{what} is a {type(value).__name__}: a loss returns a number, or a dict or tuple of numbers"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def loss_on(loss: Any, model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Any:
    """A loss that is a module, with its own parameters and buffers (class weights, say) there and in that dtype.

    What it has of the model, for a penalty or a second pass, is the model's still, and goes to each point. A loss that
    has nothing to be moved stays as it is, and need not be one that can be copied.
    """
    if not isinstance(loss, nn.Module):
        return loss
    own = {id(thing): thing for thing in (*model.modules(), *model.parameters(), *model.buffers())}
    kept = {*own, *(id(p.grad) for p in model.parameters())}

    def there(tensor: Tensor) -> Tensor:
        if id(tensor) in kept:
            return tensor
        return tensor.to(device, like(dtype, tensor) if dtype is not None and can_move(tensor) else None)

    if all(there(tensor) is tensor for tensor in (*loss.parameters(), *loss.buffers())):
        return loss
    with suppress(Exception):  # one that holds a lock, an open file, or a computed weight is moved itself
        loss = copy.deepcopy(loss, dict(own))
    for module in loss.modules():
        if id(module) not in own:
            module._apply(there, recurse=False)
    return loss


def takes_no_data(loss_fn: Any) -> bool:
    """Whether it is called as ``loss()`` or ``loss(model)``: not with (output, target)."""
    function = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return _required(function) is not None
    except ValueError:  # built in, without a signature
        return False
    return False


def _required(function: Any) -> int | None:
    """Of how many arguments it can be called, none or one; None where it takes more."""
    signature = inspect.signature(function)
    for count in (0, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    return None


def without_data(loss_fn: Any) -> Callable[[Any, Any], Any]:
    """The ``forward`` of a loss that takes no data: what it is at the point, with the model where it takes that."""
    function = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    with_model = _required(function) == 1
    return lambda model, batch: loss_fn(model) if with_model else loss_fn()


def data_of(loss_fn: object, inputs: object, target: object = None) -> Any:
    """What a metric of this loss is computed on: what is given, or the one batch of a loss that takes none."""
    if isinstance(loss_fn, Criterion):
        loss_fn = loss_fn.loss_fn
    needs = not takes_no_data(loss_fn)
    if inputs is None and needs:
        raise UserError("the loss takes (output, target): give the metric inputs and a target, a loader, or Data")
    if inputs is None:
        return Data([()], forward=without_data(loss_fn))
    if not needs and not isinstance(inputs, Data):
        raise UserError("the loss takes no (output, target): leave out the data, or let it take them")
    return inputs
