"""Tensors that rank 0 sends to all: to be run inside MPI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hpc_landscape import UserError
from hpc_landscape.campaign import share
from hpc_landscape.campaign.share import broadcast_tensors

pytestmark = pytest.mark.mpi_stack


def tensors(rank: int) -> list[Tensor]:
    """Of every kind; other values on each rank."""
    generator = torch.Generator().manual_seed(rank)
    numbers = torch.randn(6, 4, generator=generator)
    found = [numbers, numbers.T, numbers[::2, 1:], numbers > 0, torch.tensor(float(rank)), torch.empty(0, 3)]
    found += [torch.randint(-9, 9, (5,), generator=generator), torch.complex(numbers, numbers + 1), numbers.double()]
    found += [numbers.to(dtype).clone() for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8)]
    return [*found, torch.randn(40, generator=generator), torch.arange(3) + rank]


@pytest.mark.parametrize("together", [2**26, 200, 1])
def test_all_have_rank_0s(comm: Any, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """In a few broadcasts, or one by one."""
    monkeypatch.setattr(share, "TOGETHER", together)
    calls: list[int] = []
    real = comm.bcast_array
    monkeypatch.setattr(comm, "bcast_array", lambda array: (calls.append(array.nbytes), real(array)))
    mine, right = tensors(comm.rank), tensors(0)
    broadcast_tensors(mine, comm)
    for one, other in zip(mine, right, strict=True):
        assert torch.equal(
            one.double() if one.dtype.itemsize == 1 else one, other.double() if other.dtype.itemsize == 1 else other
        )
    assert len(calls) == (0 if comm.size == 1 else {2**26: 1, 1: 14}.get(together, len(calls)))
    assert together != 200 or comm.size == 1 or 1 < len(calls) < 14


def test_ranks_that_differ_are_told_apart(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a checksum: what is sent does not grow with what is compared."""
    sent: list[Any] = []
    real = comm.bcast
    monkeypatch.setattr(comm, "bcast", lambda value: (sent.append(value), real(value))[1])
    comm.check_equal([("layer", (3, 4), "float32")] * 1000, "they differ")
    assert len(sent) == 1 and len(sent[0]) == 32
    if comm.size > 1:
        with pytest.raises(UserError, match=r"^they differ \(rank 1 has another than rank 0\)$"):
            comm.check_equal([("layer", (3, comm.rank == 1), "float32")], "they differ")
