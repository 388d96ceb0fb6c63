"""Passes without gradients, in which user code may switch them on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError

WITHOUT_GRADIENT = re.compile(r"does(n't| not) require grad|that has requires_grad=False")  # as PyTorch says it


@contextmanager
def no_gradients() -> Iterator[None]:
    """Nothing is recorded for gradients, but ``torch.enable_grad()`` works inside: no inference mode, then.

    UserError, which says so, where a loss or a forward differentiates without it.
    """
    try:
        with torch.no_grad():
            yield
    except RuntimeError as error:
        if not WITHOUT_GRADIENT.search(str(error)):
            raise
        raise UserError(
            "the loss or the forward differentiates, and gradients are off while points are evaluated: put "
            f"`with torch.enable_grad():` around what does ({' '.join(str(error).split())[:120]})"
        ) from error
