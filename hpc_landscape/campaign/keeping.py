"""Where directions are kept: where points are computed, in host memory once for a node, or nowhere, drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..directions.base import DEVICE, HOST, SEED
from ..directions.registry import can_be_drawn_again
from ..errors import UserError
from ..evaluate.evaluator import DTYPES
from ..evaluate.execution import compute_dtypes
from ..model.numbers import count as numbers
from ..model.numbers import wide
from ..model.placement import AHEAD, CHUNK, flat_bytes
from ..problems.problem import Problem
from ..progress import size
from ..ranks.base import Comm
from ..ranks.device import shared_gpus
from ..ranks.memory import free_memory
from ..setting_groups import DirectionSettings

AUTO = "auto"
ROOM = 0.8  # of what is free, for what is chosen unasked: batches and activations are to fit beside
DRAWN = 16  # bytes a number while a tensor is drawn and scaled
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Needs:
    """What points and directions take, in bytes.

    flats: on each device of a rank: of the origin and a point, and of a direction. directions: of all of them in host
    memory. count: how many there are. part: of a direction that is brought over at a time; drawing: while the largest
    tensors are drawn. ranks: of the node.
    """

    flats: Mapping[torch.device, tuple[int, int]]
    directions: int
    count: int
    part: int
    drawing: int
    ranks: int

    def where(self, way: str) -> dict[torch.device, int]:
        """What each device is to hold, the CPU for all ranks of the node, where directions are kept this way."""
        found = {
            device: point + (self.count * direction if way == DEVICE else self.part)
            for device, (point, direction) in self.flats.items()
        }
        found[CPU] = self.ranks * (found.get(CPU, 0) + self.drawing * (way == SEED))
        found[CPU] += {DEVICE: self.ranks, HOST: 1, SEED: 0}[way] * self.directions
        return found


def choose_memory(
    asked: str,
    directions: DirectionSettings,
    count: int,
    precision: str,
    problem: Problem,
    devices: Sequence[torch.device],
    comm: Comm,
) -> str:
    """Where directions are kept, the same on every rank: as asked for, or the first way for which there is room.

    count: how many directions. devices: of this rank. UserError, before memory is taken, where there is no room; it
    says what would fit.
    """
    ways = [DEVICE, HOST, *([SEED] if can_be_drawn_again(directions) else [])]
    if directions.ensemble is not None:  # a rank puts one set in another's place
        ways = [DEVICE]
    needs, sharers = _needs(count, precision, problem, devices, comm), shared_gpus(comm, devices)
    free = {device: free_memory(device, 1 if device == CPU else sharers) for device in (CPU, *needs.flats)}
    share = ROOM if asked == AUTO else 1.0
    short = {way: comm.first_text(_short(needs.where(way), free, share)) for way in ways}
    wanted, fitting = ways if asked == AUTO else [asked], [way for way in ways if not short[way]]
    if found := [way for way in wanted if way in fitting]:
        return found[0]
    remedy = f"use {' or '.join(fitting)}" if fitting else "let less move (--include), or take a line (--y none)"
    what = "; ".join(f"{way} takes {short[way]}" for way in wanted)
    raise UserError(f"--directions_memory {asked}: does not fit: {what}; {remedy}")


def check_copies(needed: int, ranks: int) -> None:
    """UserError where the ranks of a node, which cannot share memory, have no room for a copy each."""
    if ranks * needed > free_memory():
        raise UserError(
            f"--directions_memory {HOST}: the ranks of this node cannot share {size(needed)}, and there is no room for "
            f"{ranks} copies: start fewer ranks on a node, or use {SEED}"
        )


def _needs(count: int, precision: str, problem: Problem, devices: Sequence[torch.device], comm: Comm) -> Needs:
    moving = {name: p.data for name, p in problem.wrapper.named_moving()}
    lower = compute_dtypes(problem.root, torch.bfloat16 if precision == "bf16" else None)
    flats = flat_bytes(moving, devices[0] if len(devices) == 1 else None, DTYPES.get(precision), lower)
    one = sum(t.numel() * wide(t.dtype).itemsize for t in moving.values())
    largest = sum(sorted(map(numbers, moving.values()))[-AHEAD:])
    part = min(8 * max(largest, AHEAD * CHUNK), max((direction for _, direction in flats.values()), default=0))
    return Needs(flats, count * one, count, part, DRAWN * largest, comm.local_size)


def _short(needed: Mapping[torch.device, int], free: Mapping[torch.device, int], share: float) -> str:
    """What there is not enough of, in words."""
    for device, wanted in needed.items():
        if wanted > share * free[device]:
            place = "of a node's memory" if device == CPU else f"on {device}"
            return f"{size(wanted)} {place}, of which {size(free[device])} are free"
    return ""
