"""How the derivative of a loss is taken, and what is said where the user's code does not allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..errors import UserError

LossFunction = Callable[..., Any]  # or a Criterion
Parts = Sequence["Tensor | None"]  # one for each parameter; None where the loss does not depend on it
REENTRANT = "use_reentrant=True"
UNDIFFERENTIABLE = "the loss cannot be differentiated by the parameters"
UNWILLING = {  # what PyTorch says of a forward or loss whose derivatives cannot be taken, and what helps
    "backward through the graph a second time": "a derivative that the forward or the loss takes for itself frees the "
    "graph: give that torch.autograd.grad create_graph=True; where it says create_graph=self.training, give Problem, "
    'or the landscape, mode="train_without_dropout"',
    REENTRANT: "give torch.utils.checkpoint use_reentrant=False",
    "modified by an inplace operation": "the forward or the loss overwrites what its derivative needs",
}


def check_reached(loss: Tensor, parts: Parts) -> None:
    """UserError where a gradient has no part of what it has, since PyTorch does not look into checkpoints."""
    if any(part is None for part in parts) and "CheckpointFunctionBackward" in _names(loss):
        raise UserError(f"{UNDIFFERENTIABLE}: {UNWILLING[REENTRANT]}")


def _names(loss: Tensor) -> set[str]:
    """Of the functions that it is made by, as autograd calls them."""
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


@contextmanager
def explained() -> Iterator[None]:
    """UserError that names what helps where the user's code is not made to be differentiated."""
    try:
        yield
    except RuntimeError as error:
        for said, advice in UNWILLING.items():
            if said in str(error):
                raise UserError(f"{UNDIFFERENTIABLE}: {advice}") from error
        raise
