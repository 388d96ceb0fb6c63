"""A model's own load_state_dict, asked in a way that leaves the model as it was where it refuses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import printable
from .checkpoint_file import MOST_SAID


@dataclass(frozen=True)
class Verdict:
    """What load_state_dict makes of a state dict: the names it lacks, those nobody asks for, and why it raised."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    fault: str = ""


class Snapshot:
    """A model's parameters, buffers and extra state as they are now: the objects, and copies of their values."""

    def __init__(self, model: nn.Module):
        self.modules = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
        tensors = {id(t): t for _, p, b in self.modules for t in (*p.values(), *b.values()) if t is not None}
        self.values = [(t, t.detach().clone()) for t in tensors.values()]
        own = (m for m, _, _ in self.modules if type(m).get_extra_state is not nn.Module.get_extra_state)
        self.extra = [(m, copy.deepcopy(m.get_extra_state())) for m in own]

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model what it was."""
        for module, parameters, buffers in self.modules:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, value in self.values:
            tensor.copy_(value)
        for module, state in self.extra:
            module.set_extra_state(state)


def load(model: nn.Module, tensors: Mapping[str, Any], strict: bool = True) -> Verdict:
    """Load by the model's own load_state_dict; what it says of it."""
    try:
        said = model.load_state_dict(tensors) if strict else model.load_state_dict(tensors, strict=False)
    except Exception as error:  # a user's code, or hooks, given what a file holds
        said = " ".join(str(error).split())
        if len(said) > 2 * MOST_SAID:  # the end has why a tensor could not be read
            said = f"{said[:MOST_SAID]} ... {said[-MOST_SAID:]}"
        return Verdict(fault=printable(f"{type(error).__name__}: {said}"))
    if said is None and not strict:  # an own one, which keeps to itself what is missing
        return load(model, tensors)
    return Verdict(getattr(said, "missing_keys", ()), getattr(said, "unexpected_keys", ()))


def attempt(model: nn.Module, tensors: Mapping[str, Any], strict: bool = True) -> Verdict:
    """What load would say; the model stays as it is."""
    before = Snapshot(model)
    try:
        return load(model, tensors, strict)
    finally:
        before.restore()


def copies_by_name(model: nn.Module) -> bool:
    """Whether load_state_dict does nothing but copy each tensor to that of its name: no part has a way of its own."""
    return not loads_by_itself(model) and not any(map(_loads_otherwise, model.modules()))


def _loads_otherwise(module: nn.Module) -> bool:
    kind = type(module)
    hooks = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
    own = not kind._load_from_state_dict.__module__.startswith("torch.nn.modules.")
    return bool(hooks) or own or kind.get_extra_state is not nn.Module.get_extra_state


def loads_by_itself(model: nn.Module) -> bool:
    """Whether the model has a load_state_dict of its own."""
    return type(model).load_state_dict is not nn.Module.load_state_dict
