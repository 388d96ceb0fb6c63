"""Other models than a landscape's own: modules, state dicts, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from ..errors import UserError, warn
from . import state
from .checkpoint import read_parameters
from .choice import Chosen
from .rest import rest
from .wrapper import ModelWrapper, wrap_model

Path: TypeAlias = str | os.PathLike  # without its parameter, to ask isinstance
# A model, its state dict, or a file that holds one.
Point: TypeAlias = nn.Module | ModelWrapper | Mapping[str, Tensor] | Path


def read_other(
    point: Point, model: ModelWrapper, weights: Mapping[str, Tensor], key: str | None
) -> Callable[[], Mapping[str, Tensor]]:
    """A function that gives another model's parameters, of these names. key: of several networks in a file."""
    if isinstance(point, Path):
        return partial(read_parameters, os.fspath(point), model.root, list(weights), True, "checkpoint", key, _tell)
    if isinstance(point, (nn.Module, ModelWrapper)):
        point = dict(wrap_model(point).named_parameters())
    if missing := [name for name, w in weights.items() if name not in point or point[name].shape != w.shape]:
        raise UserError(
            f"the other model has no parameter {', '.join(missing[:3])}, or another shape of it: it must be of the "
            "same architecture"
        )
    return lambda: {name: point[name].detach().cpu() for name in weights}


def read_rest(point: Point, model: ModelWrapper, key: str | None) -> dict[str, Tensor]:
    """The buffers of another model, and what else has no direction, by name."""
    wanted = rest(model)
    if isinstance(point, Path):
        known = model.root.state_dict()
        names = [name for name in wanted if name in known]
        return dict(read_parameters(os.fspath(point), model.root, names, True, "checkpoint", key))
    given = state.state(wrap_model(point).root) if isinstance(point, (nn.Module, ModelWrapper)) else point
    return {name: given[name].detach().cpu() for name in wanted if name in given}


def _tell(path: str, chosen: Chosen) -> None:
    """Warn of what is odd in a file."""
    if chosen.notes:
        warn(f"{path}{chosen}")
