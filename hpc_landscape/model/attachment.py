"""A model attached to points: its tensors replaced for a while, and afterwards bitwise what it was."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .modes import EVAL, set_mode
from .parts import is_plain

Replace = Callable[[Tensor, str], Tensor]  # (tensor, name) -> what stands for it meanwhile
RESTORED = (Tensor, tuple, list, dict, set)  # plain attributes that are put back: a counter may count on


class _Kept:
    """Copies, and what each is put back to: plain tensors all at once, since there may be a hundred, at every point."""

    def __init__(self) -> None:
        self.copies: list[Tensor] = []
        self.values: list[Tensor] = []
        self.others: list[tuple[Tensor, Tensor]] = []

    def add(self, copy: Tensor, value: Tensor) -> None:
        if is_plain(copy):
            self.copies.append(copy)
            self.values.append(value)
        else:
            self.others.append((copy, value))

    def put_back(self) -> None:
        if self.copies:
            torch._foreach_copy_(self.copies, self.values)
        for copy, value in self.others:
            copy.copy_(value)

    def as_before(self) -> bool:
        """Whether nothing has been written into the copies."""
        return all(map(torch.equal, self.copies, self.values)) and all(torch.equal(*pair) for pair in self.others)


@dataclass
class _Copies:
    """Buffers of one of the points that are held: where each belongs, and what it is to be before each point."""

    own: list[tuple[nn.Module, str, Tensor | None]] = field(default_factory=list)
    pristine: _Kept = field(default_factory=_Kept)
    named: dict[str, Tensor] = field(default_factory=dict)


class Attachment:
    """A model in a mode whose parameters have other data, and whose buffers are copies: the originals stay.

    ``restore()`` undoes what was left behind at one point before the next; ``detach()`` all of it. Where several points
    are held, ``select()`` says whose buffers the model has.
    """

    def __init__(self, model: nn.Module, mode: str = EVAL):
        self.model, self.mode = model, mode
        self.parameters = list(model.named_parameters())
        if made := [name for name, p in self.parameters if p.is_inference()]:
            raise UserError(
                f"the model was made inside of torch.inference_mode(), and {made[0]} can take no other values: make it "
                "outside, or give copy.deepcopy(model)"
            )
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
        """guarded: parameters that are copies meanwhile, so that whatever a metric writes into them is undone."""
        self.guarded = _Kept()
        for name, p in self.parameters:
            p.grad = None
            p.data = parameter(p.data, name)
            if name in guarded:
                still = p.data
                p.data = still.clone()
                self.guarded.add(p.data, still)
        self.points = [self._copies(buffer) for _ in range(points)]
        self.select(0)
        self.placed = [p.data for _, p in self.parameters]
        self.attached_contents = dictionaries(self.model)
        set_mode(self.model, self.mode)
        self.evaluated = [(module, module.training) for module, _ in self.modes]  # a part may refuse to change

    def _copies(self, buffer: Replace) -> _Copies:
        copies: dict[int, Tensor] = {}
        made = _Copies()
        for module, key, value, name in self.buffers:
            if value is not None and id(value) not in copies:
                copies[id(value)] = buffer(value, name).clone()
                made.pristine.add(copies[id(value)], copies[id(value)].clone())
                made.named[name] = copies[id(value)]
            made.own.append((module, key, copies.get(id(value))))
        return made

    def select(self, point: int) -> None:
        """Let the model have this point's buffers."""
        self.now = self.points[point]
        for module, key, copy in self.now.own:
            module._buffers[key] = copy

    def give(self, name: str, value: Tensor, point: int) -> None:
        """A buffer as it is to be at this point; where none are held for it, as in a block, the block has it."""
        if point < len(self.points):
            self.points[point].named[name].copy_(value)

    @torch.no_grad()
    def restore(self, full: bool) -> None:
        """Before each point: buffers, batch normalization's too, modes, flags and gradients as they were.

        full: also tensors that were put in place of others, and caches. Mere passes leave no more behind.
        """
        for module, key, copy in self.now.own:
            if module._buffers.get(key) is not copy:
                module._buffers[key] = copy
        self.now.pristine.put_back()
        if full:
            self.guarded.put_back()
        for (_, p), (_, _, requires_grad) in zip(self.parameters, self.data, strict=True):
            if p.grad is not None:
                p.grad = None
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
        if full:
            for (_, p), placed in zip(self.parameters, self.placed, strict=True):
                p.data = placed
            self._clean(self.attached_contents)
        for module, training in self.evaluated:
            if module.training != training:
                module.training = training

    def left_behind(self) -> bool:
        """Whether a pass has left anything but buffers behind, or written into parameters that do not move."""
        flags = [p.requires_grad for _, p in self.parameters] == [flag for _, _, flag in self.data]
        where = [p.data_ptr() for _, p in self.parameters] == [placed.data_ptr() for placed in self.placed]
        clean = flags and where and all(module.training == training for module, training in self.evaluated)
        return not (
            clean
            and all(p.grad is None for _, p in self.parameters)
            and all(now.keys() == then.keys() and not changed(now, then) for now, then in self.attributes)
            and not any(map(other, *zip(*self.attached_contents, strict=True)))
            and self.guarded.as_before()
        )

    def detach(self) -> None:
        for (_, p), (data, grad, requires_grad) in zip(self.parameters, self.data, strict=True):
            p.grad = None
            p.data, p.grad = data, grad
            p.requires_grad_(requires_grad)
        for module, key, value, _ in self.buffers:
            module._buffers[key] = value
        for module, training in self.modes:
            module.training = training
        self._clean(self.contents)

    def _clean(self, contents: list[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
        """Undo what was kept in the modules, or put in place of their parts: a pruned weight, a hook that stayed."""
        for now, before in self.attributes:
            forget(now, before)
        for held, own in contents:
            if other(held, own):
                held.clear()
                held.update(own)


def dictionaries(model: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The modules' dictionaries, and what is in them: submodules, parameters, buffers, hooks, caches of their own."""
    return [(held, dict(held)) for m in model.modules() for held in vars(m).values() if isinstance(held, dict)]


def other(held: Mapping[Any, Any], own: Mapping[Any, Any]) -> bool:
    """Whether a dictionary holds other things than it did."""
    return bool(held or own) and (held.keys() != own.keys() or not all(map(is_, held.values(), own.values())))


def changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The plain attributes that are others than before, and may hold something of a point."""
    others = [name for name, value in now.items() if name not in before or value is not before[name]]
    return [name for name in others if isinstance(now[name], RESTORED) or isinstance(before.get(name), RESTORED)]


def forget(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Undo what a forward pass has kept as a plain attribute: it is of another point, perhaps without gradients."""
    for name in changed(now, before):
        if name not in before:
            del now[name]
        else:
            now[name] = before[name]
