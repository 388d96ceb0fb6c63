"""A placement of parameter space: an origin and directions; coordinates -> parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attachment import Attachment
from .modes import EVAL
from .numbers import REAL, can_move, count, like, numbers_of, reals, wide

ALIGNMENT = 64  # bytes: vector kernels take other paths on unaligned weights


@dataclass
class _Flat:
    """The parameters of one device, dtype and compute dtype, in one buffer each: (numbers,), points (rows, numbers).

    Complex ones are pairs of real numbers in it.
    """

    origin: Tensor
    directions: list[Tensor]
    fill: Callable[[Tensor, Mapping[str, Tensor]], Tensor]  # brings tensors, by name, to their places in a buffer
    points: Tensor
    cast: Tensor  # the points in the dtype that the model computes in; the same tensor where that is no other


class Placement:
    """parameters(c) = origin + sum_k c[k] * direction[k], always computed from the origin: no drift.

    origin: the parameters that move, by name, and with targets also buffers that do. directions: one mapping by name
    each; what is missing does not move. device: where points are computed; None: where each parameter is. dtype: the
    real dtype in which they are computed, and the model then computes; None: its own, but points of a parameter of 16
    bits are computed in float32, and rounded once.
    targets: the mappings are other models that the directions lead to: at coordinate 1 a point is that model, bitwise.
    What has no numbers in between, integers, say, is the origin's up to there, and from there on the other model's.
    compute_dtypes: by name of a parameter or buffer, the dtype that the model computes in: a point is cast to it.
    channels_last: weights of 4 dimensions in that order. rows: how many points are held at a time.
    fixed: other values for buffers, and for parameters that do not move, than the model has.
    The parameters of a point are views of one flat buffer, so that a point is a few fused operations.
    """

    def __init__(
        self,
        origin: Mapping[str, Tensor],
        directions: Sequence[Mapping[str, Tensor]],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        targets: bool = False,
        compute_dtypes: Mapping[str, torch.dtype] | None = None,
        channels_last: bool = False,
        rows: int = 1,
        fixed: Mapping[str, Tensor] | None = None,
    ):
        self.device, self.dtype, self.targets, self.rows = device, dtype, targets, rows
        self.compute_dtypes, self.channels_last = dict(compute_dtypes or {}), channels_last
        self.fixed = dict(fixed or {})
        self.dimensions = len(directions)
        self.stacked: dict[str, Tensor] = {}
        self._attachment: Attachment | None = None  # the model that it is attached to
        groups: dict[tuple[torch.device, torch.dtype, torch.dtype], list[str]] = {}
        for name, tensor in origin.items():
            if can_move(tensor):  # anything else has no directions and stays put
                own = REAL.get(tensor.dtype, tensor.dtype)
                cast = REAL.get(given := self.compute_dtypes.get(name, self.dtype or own), given)
                groups.setdefault((device or tensor.device, self.dtype or wide(own), cast), []).append(name)
        self._flats = [self._flatten(origin, directions, names, *kind) for kind, names in groups.items()]
        self._switches = self._switched(origin, directions) if targets else {}
        self._rows = [{name: stacked[row] for name, stacked in self.stacked.items()} for row in range(rows)]
        self.views = self._rows[0]

    def _flatten(
        self,
        origin: Mapping[str, Tensor],
        directions: Sequence[Mapping[str, Tensor]],
        names: list[str],
        device: torch.device,
        dtype: torch.dtype,
        cast: torch.dtype,
    ) -> _Flat:
        step = max(1, ALIGNMENT // min(dtype.itemsize, cast.itemsize))
        offsets, end = {}, 0
        for name in names:
            offsets[name] = end
            end += -(-count(origin[name]) // step) * step

        def view(flat: Tensor, name: str) -> Tensor:
            like = reals(self._laid_out(origin[name].resolve_conj().to("meta")))
            shape, stride = flat.shape[:-1] + like.shape, flat.stride()[:-1] + like.stride()
            return numbers_of(flat.as_strided(shape, stride, offsets[name]), origin[name])

        def fill(flat: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
            for name in names:
                if name in tensors:
                    view(flat, name).copy_(tensors[name])
            return flat

        with torch.no_grad():
            still = origin if self.targets else {}  # what a direction does not name does not move
            start, *moves = (
                fill(torch.zeros(end, device=device, dtype=dtype), tensors)
                for tensors in (origin, *({**still, **direction} for direction in directions))
            )
            points = start.repeat(self.rows, 1)
            flat = _Flat(start, moves, fill, points, points if cast == dtype else points.to(cast))
        self.stacked.update((name, view(flat.cast, name)) for name in names)
        return flat

    def _switched(
        self, origin: Mapping[str, Tensor], ends: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, tuple[Tensor, list[Tensor]]]:
        """What cannot move but differs in the other models: the origin's, and theirs."""
        found = {}
        for name, tensor in origin.items():
            if name not in self.stacked:
                own = tensor.to(self.device)
                self.stacked[name] = own.repeat(self.rows, *[1] * own.ndim)
                found[name] = own, [end.get(name, tensor).to(own.device, own.dtype) for end in ends]
        return found

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """The tensor as the model is to have it, in its own order or channels last."""
        if self.channels_last and tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.to(memory_format=torch.channels_last)  # says so of one channel, too
        if tensor.is_meta and not tensor.is_contiguous():  # asked first, since empty_like of a meta tensor loads sympy
            return torch.empty_like(tensor)  # dense
        return tensor

    @torch.no_grad()
    def redirect(self, vectors: Sequence[Mapping[str, Tensor]]) -> None:
        """Take other directions, by the names of those that there are, in their place: points lie along these now."""
        for flat in self._flats:
            for direction, vector in zip(flat.directions, vectors, strict=True):
                flat.fill(direction, vector)

    @torch.no_grad()
    def place(self, coordinates: Sequence[float], row: int = 0) -> None:
        """Compute the parameters of the point at these coordinates, one per direction, into the views of a row."""
        if len(coordinates) != self.dimensions:
            raise ValueError(f"{len(coordinates)} coordinates for {self.dimensions} directions")
        for flat in self._flats:
            source, point = flat.origin, flat.points[row]
            for c, direction in zip(coordinates, flat.directions, strict=True):
                if not self.targets:
                    torch.add(source, direction, alpha=c, out=point)
                elif c == 0:
                    continue  # so that on an axis the next line is all there is
                elif c == 1 and source is flat.origin:
                    point.copy_(direction)  # lerp makes -0 a 0
                elif source is flat.origin:
                    torch.lerp(source, direction, c, out=point)  # origin + 1 * (end - origin) is not the end
                else:
                    point.add_(direction, alpha=c).sub_(flat.origin, alpha=c)
                source = point
            if source is flat.origin:
                point.copy_(source)
            if flat.cast is not flat.points:
                flat.cast[row].copy_(point)
        for name, (own, others) in self._switches.items():
            reached = [other for c, other in zip(coordinates, others, strict=True) if c >= 1]
            self._rows[row][name].copy_(reached[0] if reached else own)
        for name in self._buffers if self._attachment is not None else ():
            self._held.give(name, self._rows[row][name], row)

    @contextmanager
    def attached(
        self, model: nn.Module, interleaved: bool = False, guarded: bool = False, mode: str = EVAL
    ) -> Iterator[None]:
        """Let the model compute at the placed point, in eval mode; afterwards, also after an error, it is what it was.

        Its parameters point into the flat buffer and its buffers to copies meanwhile: the originals are not touched.
        interleaved: every row has buffers of its own, and ``select`` puts the model there. guarded: parameters that do
        not move are copies, too, for a metric that writes into them. mode: another than eval mode.
        """
        attachment = Attachment(model, mode)

        def parameter(tensor: Tensor, name: str) -> Tensor:
            return self.views[name] if name in self.views else self._move(tensor, name)

        try:
            still = {name for name, _ in attachment.parameters if name not in self.views} if guarded else set()
            attachment.attach(parameter, self._move, self.rows if interleaved else 1, still)
            self._attachment = attachment
            own = {name for name, _ in attachment.parameters}
            self._buffers = [name for name in self.stacked if name not in own]
            yield
        finally:
            self._attachment = None
            attachment.detach()

    def select(self, row: int) -> None:
        """Put the attached model at the point of this row."""
        views = self._rows[row]
        for name, p in self._held.parameters:
            if name in views:
                p.data = views[name]
        self._held.select(row)

    def restore(self, full: bool) -> None:
        """Undo what was left behind at the point before; full: whatever a metric may have done."""
        self._held.restore(full)

    def left_behind(self) -> bool:
        """Whether more is left behind than is undone without ``full``."""
        return self._held.left_behind()

    @property
    def _held(self) -> Attachment:
        assert self._attachment is not None, "no model is attached"
        return self._attachment

    def _move(self, tensor: Tensor, name: str) -> Tensor:
        tensor = self.fixed.get(name, tensor)
        dtype = self.compute_dtypes.get(name, self.dtype) if can_move(tensor) else None
        return self._laid_out(tensor.to(self.device, dtype and like(dtype, tensor)))
