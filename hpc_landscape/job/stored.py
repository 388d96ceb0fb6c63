"""What the file that is gone on with holds, as this run has it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError
from ..model_interface import state
from ..store import layout


def fill_from(output: str, group: str, tensors: Mapping[str, Tensor], what: str) -> None:
    """Fill the tensors with the file's of the same names; UserError, which says what it holds, where they differ."""
    try:
        state.fill(tensors, layout.read_arrays(output, group))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{output} holds {what} ({error.args[0]}): give the settings it was made with, choose another --output, "
            "or --overwrite"
        ) from None
