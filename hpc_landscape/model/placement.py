"""A placement of parameter space: an origin and directions; coordinates -> parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attachment import Attachment
from .modes import EVAL
from .numbers import REAL, can_move, count, like, numbers_of, reals, wide

ALIGNMENT = 64  # bytes: vector kernels take other paths on unaligned weights
CHUNK = 2**24  # numbers of a direction that are brought over at a time; more where one tensor has more
AHEAD = 4  # chunks that are made at a time, each on a thread
Fill = Callable[[Mapping[str, Tensor], Iterable[str], int, int], Tensor]  # (tensors, their names, begin, end) -> a part


def _dtypes(
    name: str, tensor: Tensor, dtype: torch.dtype | None, compute_dtypes: Mapping[str, torch.dtype]
) -> tuple[torch.dtype, torch.dtype]:
    """The real dtypes in which a parameter's points are computed, and the model computes with them."""
    own = REAL.get(tensor.dtype, tensor.dtype)
    cast = REAL.get(given := compute_dtypes.get(name, dtype or own), given)
    return dtype or wide(own), cast


def flat_bytes(
    origin: Mapping[str, Tensor],
    device: torch.device | None,
    dtype: torch.dtype | None,
    compute_dtypes: Mapping[str, torch.dtype],
) -> dict[torch.device, tuple[int, int]]:
    """What a Placement of one row takes on each device, in bytes: (origin and point, each direction that it keeps)."""
    found: dict[torch.device, tuple[int, int]] = {}
    for name, tensor in origin.items():
        if can_move(tensor):
            kind, cast = _dtypes(name, tensor, dtype, compute_dtypes)
            point, direction = found.get(where := device or tensor.device, (0, 0))
            each = count(tensor) * kind.itemsize
            point += 2 * each + (count(tensor) * cast.itemsize if cast != kind else 0)
            found[where] = point, direction + each
    return found


@dataclass
class _Flat:
    """The parameters of one device, dtype and compute dtype, in one buffer each: (numbers,), points (rows, numbers).

    Complex ones are pairs of real numbers in it. directions: in buffers, where they are kept; moves: by name, where
    they are not. chunks: parts of a buffer, where each begins and ends, and the parameters in it; fill: makes a part.
    """

    origin: Tensor
    directions: list[Tensor]
    points: Tensor
    cast: Tensor  # the points in the dtype that the model computes in; the same tensor where that is no other
    moves: list[Mapping[str, Tensor]]
    chunks: list[tuple[int, int, list[str]]]
    fill: Fill

    def along(self, number: int) -> Iterator[tuple[slice, Tensor]]:
        """A direction: parts of the buffers, and its numbers there."""
        if self.directions:
            yield slice(None), self.directions[number]
            return
        threads = min(AHEAD, torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:  # drawing and copying leave the interpreter to others
            coming: deque[tuple[slice, Future[Tensor]]] = deque()
            for start, end, names in self.chunks:
                coming.append((slice(start, end), pool.submit(self.fill, self.moves[number], names, start, end)))
                if len(coming) == threads:
                    part, direction = coming.popleft()
                    yield part, direction.result()
            for part, direction in coming:
                yield part, direction.result()


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
    fixed: other values for buffers, and for parameters that do not move, than the model has. keeps_directions: where
    points are computed; else each tensor of them is brought there at each point, to the same numbers.
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
        keeps_directions: bool = True,
    ):
        self.device, self.dtype, self.targets, self.rows = device, dtype, targets, rows
        self.keeps_directions = keeps_directions
        self.compute_dtypes, self.channels_last = dict(compute_dtypes or {}), channels_last
        self.fixed = dict(fixed or {})
        self.dimensions = len(directions)
        self.stacked: dict[str, Tensor] = {}
        self._attachment: Attachment | None = None  # the model that it is attached to
        groups: dict[tuple[torch.device, torch.dtype, torch.dtype], list[str]] = {}
        for name, tensor in origin.items():
            if can_move(tensor):  # anything else has no directions and stays put
                kinds = _dtypes(name, tensor, self.dtype, self.compute_dtypes)
                groups.setdefault((device or tensor.device, *kinds), []).append(name)
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
        chunks: list[tuple[int, int, list[str]]] = []
        for name in names:
            offsets[name] = end
            end += -(-count(origin[name]) // step) * step
            start, _, others = chunks.pop() if chunks and end - chunks[-1][0] <= CHUNK else (offsets[name], 0, [])
            chunks.append((start, end, [*others, name]))

        def view(flat: Tensor, name: str, start: int = 0) -> Tensor:
            like = reals(self._laid_out(origin[name].resolve_conj().to("meta")))
            shape, stride = flat.shape[:-1] + like.shape, flat.stride()[:-1] + like.stride()
            return numbers_of(flat.as_strided(shape, stride, offsets[name] - start), origin[name])

        def fill(tensors: Mapping[str, Tensor], names: Iterable[str], start: int, end: int) -> Tensor:
            part = torch.zeros(end - start, device=device, dtype=dtype)
            for name in names:
                if name in tensors:
                    view(part, name, start).copy_(tensors[name])
            return part

        with torch.no_grad():
            still = origin if self.targets else {}  # what a direction does not name does not move
            moves: list[Mapping[str, Tensor]] = [{**still, **direction} for direction in directions]
            own, kept = fill(origin, names, 0, end), [fill(m, names, 0, end) for m in moves if self.keeps_directions]
            points = own.repeat(self.rows, 1)
            in_cast = points if cast == dtype else points.to(cast)
            flat = _Flat(own, kept, points, in_cast, [] if self.keeps_directions else moves, chunks, fill)
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
            names = [name for _, _, those in flat.chunks for name in those]
            for direction, vector in zip(flat.directions, vectors, strict=True):
                direction.copy_(flat.fill(vector, names, 0, len(direction)))

    @torch.no_grad()
    def place(self, coordinates: Sequence[float], row: int = 0) -> None:
        """Compute the parameters of the point at these coordinates, one per direction, into the views of a row."""
        if len(coordinates) != self.dimensions:
            raise ValueError(f"{len(coordinates)} coordinates for {self.dimensions} directions")
        for flat in self._flats:
            source, point = flat.origin, flat.points[row]
            for number, c in enumerate(coordinates):
                if self.targets and c == 0:
                    continue  # so that on an axis the next line is all there is
                for part, direction in flat.along(number):
                    self._add(source[part], flat.origin[part], point[part], direction, c, source is flat.origin)
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

    def _add(self, source: Tensor, origin: Tensor, point: Tensor, direction: Tensor, c: float, is_first: bool) -> None:
        """Write what comes of going c along a direction into this part of the point. is_first: from the origin."""
        if not self.targets:
            torch.add(source, direction, alpha=c, out=point)
        elif c == 1 and is_first:
            point.copy_(direction)  # lerp makes -0 a 0
        elif is_first:
            torch.lerp(source, direction, c, out=point)  # origin + 1 * (end - origin) is not the end
        else:
            point.add_(direction, alpha=c).sub_(origin, alpha=c)

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
