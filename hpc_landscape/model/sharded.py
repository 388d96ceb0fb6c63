"""A model whose parameters are shared out over the ranks of a team (FSDP2), and its placement.

The factory's model stays as it is, in host memory; what computes is a copy, of which each rank holds its rows of every
parameter, and all of a layer's only while that is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from .lazy import Lazy, made
from .modes import EVAL, set_mode
from .placement import Placement
from .wrapper import ModelWrapper


class Sharded:
    """The copy of a model. wrapper: calls it. mesh: of the ranks' devices. local: this rank's rows, by name.

    buffers: and what each is before a point.
    """

    def __init__(self, model: ModelWrapper, mesh: Any, device: torch.device):
        if not isinstance(model.model, nn.Module) or model.get_modules() != [model.model]:
            raise UserError("--shard fsdp: the problem's model must be one torch.nn.Module, all of which is perturbed")
        self.device, self.rank, self.size = device, mesh.get_local_rank(), mesh.size()
        self.original, root = model.root, _on_meta(model.root)
        places = [(name, *_owner(root, name)) for name, _ in model.root.named_parameters()]
        try:
            _shard(root, mesh)
        except (ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"--shard fsdp: PyTorch cannot shard this model ({said})") from None
        root.to_empty(device=device)
        with torch.no_grad():
            held: list[tuple[str, Any]] = [(name, owner._parameters[key]) for name, owner, key in places]
            self.local: dict[str, Tensor] = {name: p.to_local().detach() for name, p in held}
            for name, parameter in model.root.named_parameters():
                self.local[name].copy_(self.rows(parameter))
            for mine, buffer in zip(root.buffers(), model.root.buffers(), strict=True):
                mine.copy_(buffer)
        held_buffers = ((m, key, b) for m in root.modules() for key, b in m._buffers.items() if b is not None)
        self.buffers = [(m, key, b, b.clone()) for m, key, b in held_buffers]
        self.wrapper = copy.copy(model)
        self.wrapper.model = self.wrapper.root = root
        self.wrapper.modules = [root]

    def rows(self, tensor: Tensor | Lazy) -> Tensor:
        """A copy of this rank's rows of a parameter, or of a direction of it: of the rest nothing is kept."""
        whole = made(tensor).detach()
        parts = whole.chunk(self.size)
        return parts[self.rank].clone() if self.rank < len(parts) else whole[:0]


def _on_meta(root: nn.Module) -> nn.Module:
    """The same model without any numbers: tensors that are shared are shared in it, too."""
    tensors: dict[int, Any] = {}
    for p in root.parameters():
        tensors[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in root.buffers():
        tensors[id(b)] = torch.empty_like(b, device="meta")
    for held in map(vars, root.modules()):  # a weight that a hook makes of others, as pruning does: nobody can copy it
        tensors.update((id(t), t.detach()) for t in held.values() if isinstance(t, Tensor) and not t.is_leaf)
    return copy.deepcopy(root, tensors)


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has this parameter, and its name there."""
    path, _, key = name.rpartition(".")
    return root.get_submodule(path), key


def _shard(root: nn.Module, mesh: Any) -> None:
    """A group for each block of a list of blocks, the layers of a transformer, say; and one for all the rest."""
    from torch.distributed.fsdp import fully_shard

    if len(kinds := {p.dtype for p in root.parameters() if p.requires_grad}) > 1:
        raise ValueError(f"parameters are {' and '.join(sorted(map(str, kinds)))}: one dtype is wanted")
    for module in reversed(list(root.modules())):  # what is within first
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                if type(block).forward is not nn.Module.forward and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(root, mesh=mesh, reshard_after_forward=True)


class _Untouched(TorchFunctionMode):
    """UserError where the parameters of the model that the factory made are computed with: they stay at the origin."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.own = {id(p) for p in model.parameters()}

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        if isinstance(found, Tensor) and any(id(value) in self.own for value in (*given, *(named or {}).values())):
            raise UserError(
                "--shard fsdp: a forward, a hook or the loss holds on to the model that the factory made, or to its "
                "parameters, and they are not at the point: let it use the model, or the module, that it is given"
            )
        return found


class ShardedPlacement:
    """As ``Placement``, for one point at a time: each rank computes its own rows of it.

    origin: the model as the factory made it.
    """

    rows = 1

    def __init__(self, sharded: Sharded, origin: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]):
        def mine(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: sharded.rows(tensor) for name, tensor in tensors.items()}

        self.sharded, self.stacked = sharded, dict[str, Tensor]()
        self._rows = Placement(mine(origin), [mine(direction) for direction in directions], sharded.device)
        self.dimensions, self.views = self._rows.dimensions, self._rows.views
        self._moved = [sharded.local[name] for name in self.views]

    @torch.no_grad()
    def place(self, coordinates: Sequence[float], row: int = 0) -> None:
        """Compute this rank's rows of the parameters of a point."""
        self._rows.place(coordinates)
        for local, rows in zip(self._moved, self.views.values(), strict=True):
            local.copy_(rows)

    @contextmanager
    def attached(
        self, model: nn.Module, interleaved: bool = False, guarded: bool = False, mode: str = EVAL
    ) -> Iterator[None]:
        """The model is a copy: nothing of the user's is touched. guarded: nor computed with, which is looked for."""
        set_mode(model, mode)
        with _Untouched(self.sharded.original) if guarded else nullcontext():
            yield

    def select(self, row: int) -> None:
        """There is one point."""

    @torch.no_grad()
    def restore(self, full: bool) -> None:
        """Undo what a pass has left in buffers."""
        for module, key, buffer, before in self.sharded.buffers:
            module._buffers[key] = buffer
            buffer.copy_(before)

    def left_behind(self) -> bool:
        """What else a pass leaves is not looked for."""
        return False


AnyPlacement = Placement | ShardedPlacement
