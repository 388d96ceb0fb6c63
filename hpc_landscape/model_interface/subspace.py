"""A subspace of parameter space: an origin and directions; coordinates -> parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: vector kernels take other paths on unaligned weights


@dataclass
class _Flat:
    """The parameters of one device and dtype, in one buffer each for origin, directions and point."""

    origin: Tensor
    directions: list[Tensor]
    point: Tensor


class Subspace:
    """parameters(c) = origin + sum_k c[k] * direction[k], always computed from the origin: no drift.

    origin: the parameters that move, by name. directions: one mapping by name each; what is missing does not move.
    device, dtype: where and in what precision points are computed; None: as each parameter is.
    ends: the mappings are other models that the directions lead to: at coordinate 1 a point is that model, bitwise.
    The parameters of a point are views of one flat buffer, so that a point is a few fused operations.
    """

    def __init__(
        self,
        origin: Mapping[str, Tensor],
        directions: Sequence[Mapping[str, Tensor]],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        ends: bool = False,
    ):
        self.device, self.dtype, self.ends = device, dtype, ends
        self.dimensions = len(directions)
        self.views: dict[str, Tensor] = {}
        groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, tensor in origin.items():
            if tensor.is_floating_point():  # anything else has no directions and stays put
                groups.setdefault((device or tensor.device, dtype or tensor.dtype), []).append(name)
        self._flats = [
            self._flatten(origin, directions, names, device, dtype) for (device, dtype), names in groups.items()
        ]

    def _flatten(
        self,
        origin: Mapping[str, Tensor],
        directions: Sequence[Mapping[str, Tensor]],
        names: list[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> _Flat:
        step = max(1, ALIGNMENT // dtype.itemsize)
        offsets, end = {}, 0
        for name in names:
            offsets[name] = end
            end += -(-origin[name].numel() // step) * step

        def view(flat: Tensor, name: str) -> Tensor:
            stride = torch.empty_like(origin[name], device="meta").stride()  # keeps channels-last weights so
            return flat.as_strided(origin[name].shape, stride, offsets[name])

        def fill(tensors: Mapping[str, Tensor]) -> Tensor:
            flat = torch.zeros(end, device=device, dtype=dtype)
            for name in names:
                if name in tensors:
                    view(flat, name).copy_(tensors[name])
            return flat

        with torch.no_grad():
            still = origin if self.ends else {}  # what a direction does not name does not move
            flat = _Flat(fill(origin), [fill({**still, **direction}) for direction in directions], fill(origin))
        self.views.update((name, view(flat.point, name)) for name in names)
        return flat

    @torch.no_grad()
    def place(self, coordinates: Sequence[float]) -> None:
        """Compute the parameters of the point at these coordinates, one per direction, into the views."""
        if len(coordinates) != self.dimensions:
            raise ValueError(f"{len(coordinates)} coordinates for {self.dimensions} directions")
        for flat in self._flats:
            source = flat.origin
            for c, direction in zip(coordinates, flat.directions, strict=True):
                if not self.ends:
                    torch.add(source, direction, alpha=c, out=flat.point)
                elif c == 0:
                    continue  # so that on an axis the next line is all there is
                elif source is flat.origin:
                    torch.lerp(source, direction, c, out=flat.point)  # origin + 1 * (end - origin) is not the end
                else:
                    flat.point.add_(direction, alpha=c).sub_(flat.origin, alpha=c)
                source = flat.point
            if source is flat.origin:
                flat.point.copy_(source)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let the model compute at the placed point, in eval mode; afterwards, also after an error, it is what it was.

        Its parameters point into the flat buffer and its buffers to copies meanwhile: the originals are not touched.
        """
        parameters = {name: parameter for name, parameter in model.named_parameters()}
        data = {name: (p.data, p.grad, p.requires_grad) for name, p in parameters.items()}
        buffers = [(module, key, value) for module in model.modules() for key, value in module._buffers.items()]
        modes = [(module, module.training) for module in model.modules()]
        attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
        try:
            for name, parameter in parameters.items():
                parameter.grad = None
                parameter.data = self.views[name] if name in self.views else self._move(parameter.data)
            copies: dict[int, Tensor] = {}
            for module, key, value in buffers:
                if value is not None:
                    module._buffers[key] = copies.setdefault(id(value), self._move(value).clone())
            self._copies = [(copies[id(value)], value) for _, _, value in buffers if value is not None]
            self._model = model.eval()
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.grad = None
                parameter.data, parameter.grad, requires_grad = data[name]
                parameter.requires_grad_(requires_grad)
            for module, key, value in buffers:
                module._buffers[key] = value
            for module, training in modes:
                module.training = training
            for now, before in attributes:
                _forget_tensors(now, before)

    @torch.no_grad()
    def settle(self) -> None:
        """Undo what was left behind at the point before: gradients, train mode, and what that did to buffers."""
        for copy, value in self._copies:
            copy.copy_(value)
        self._model.zero_grad(set_to_none=True)
        self._model.eval()

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


def _forget_tensors(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Undo what a forward pass has kept as a plain attribute: it is of another point, perhaps without gradients."""
    for name in [name for name, value in now.items() if isinstance(value, Tensor)]:
        if name not in before:
            del now[name]
        elif now[name] is not before[name]:
            now[name] = before[name]
