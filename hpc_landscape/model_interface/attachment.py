"""A model lent out: its tensors replaced for a while, and afterwards bitwise what it was."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from .modes import EVAL, set_mode

Replace = Callable[[Tensor, str], Tensor]  # (tensor, name) -> what stands for it meanwhile


@dataclass
class _Copies:
    """Buffers of one of the points that are held: where each belongs, and what it is to be before each point."""

    own: list[tuple[nn.Module, str, Tensor | None]] = field(default_factory=list)
    pristine: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Attachment:
    """A model in a mode whose parameters have other data, and whose buffers are copies: the originals stay.

    ``settle()`` undoes what was left behind at one point before the next; ``detach()`` all of it. Where several points
    are held, ``select()`` says whose buffers the model has.
    """

    def __init__(self, model: nn.Module, mode: str = EVAL):
        self.model, self.mode = model, mode
        self.parameters = list(model.named_parameters())
        self.data = [(p.data, p.grad, p.requires_grad) for _, p in self.parameters]
        self.buffers = [
            (module, key, value, f"{prefix}.{key}" if prefix else key)
            for prefix, module in model.named_modules()
            for key, value in module._buffers.items()
        ]
        self.modes = [(module, module.training) for module in model.modules()]
        self.attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
        self.contents = dictionaries(model)
        self.points: list[_Copies] = []

    def attach(self, parameter: Replace, buffer: Replace, points: int = 1, guarded: Container[str] = ()) -> None:
        """guarded: parameters of which a copy is lent, so that whatever a metric writes into them is undone."""
        self.guarded: list[tuple[Tensor, Tensor]] = []
        for name, p in self.parameters:
            p.grad = None
            p.data = parameter(p.data, name)
            if name in guarded:
                still = p.data
                p.data = still.clone()
                self.guarded.append((p.data, still))
        self.points = [self._copies(buffer) for _ in range(points)]
        self.select(0)
        self.placed = [p.data for _, p in self.parameters]
        self.lent = dictionaries(self.model)
        set_mode(self.model, self.mode)

    def _copies(self, buffer: Replace) -> _Copies:
        copies: dict[int, Tensor] = {}
        made = _Copies()
        for module, key, value, name in self.buffers:
            if value is not None and id(value) not in copies:
                copies[id(value)] = buffer(value, name).clone()
                made.pristine.append((copies[id(value)], copies[id(value)].clone()))
            made.own.append((module, key, copies.get(id(value))))
        return made

    def select(self, point: int) -> None:
        """Let the model have this point's buffers."""
        self.now = self.points[point]
        for module, key, copy in self.now.own:
            module._buffers[key] = copy

    @torch.no_grad()
    def settle(self, thoroughly: bool) -> None:
        """Before each point: buffers as they were, batch normalization's too: a user's forward may be in train mode.

        Thoroughly: also flags, modes, gradients and caches. Passes alone leave only buffers behind.
        """
        for module, key, copy in self.now.own:
            if module._buffers.get(key) is not copy:
                module._buffers[key] = copy
        for copy, value in self.now.pristine + (self.guarded if thoroughly else []):
            copy.copy_(value)
        if not thoroughly:
            return
        for (_, p), (_, _, requires_grad), placed in zip(self.parameters, self.data, self.placed, strict=True):
            p.grad = None
            p.data = placed
            p.requires_grad_(requires_grad)
        self._tidy(self.lent)
        set_mode(self.model, self.mode)

    def detach(self) -> None:
        for (_, p), (data, grad, requires_grad) in zip(self.parameters, self.data, strict=True):
            p.grad = None
            p.data, p.grad = data, grad
            p.requires_grad_(requires_grad)
        for module, key, value, _ in self.buffers:
            module._buffers[key] = value
        for module, training in self.modes:
            module.training = training
        self._tidy(self.contents)

    def _tidy(self, contents: list[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
        """Undo what was kept in the modules, or put in place of their parts: a pruned weight, a hook that stayed."""
        for now, before in self.attributes:
            forget_tensors(now, before)
        for held, own in contents:
            if (held or own) and (held.keys() != own.keys() or not all(map(is_, held.values(), own.values()))):
                held.clear()
                held.update(own)


def dictionaries(model: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The modules' dictionaries, and what is in them: submodules, parameters, buffers, hooks, caches of their own."""
    return [(held, dict(held)) for m in model.modules() for held in vars(m).values() if isinstance(held, dict)]


def forget_tensors(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Undo what a forward pass has kept as a plain attribute: it is of another point, perhaps without gradients."""
    for name in [name for name, value in now.items() if isinstance(value, Tensor)]:
        if name not in before:
            del now[name]
        elif now[name] is not before[name]:
            now[name] = before[name]
