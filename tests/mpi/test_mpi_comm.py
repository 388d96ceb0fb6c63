"""The communicator: to be run inside MPI, ``mpirun -n N python -m pytest tests/mpi``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from uneven import UnevenComm, node_of

from hpc_landscape.campaign.share import broadcast_tensors
from hpc_landscape.errors import UserError
from hpc_landscape.model import state
from hpc_landscape.ranks import comm as comm_module
from hpc_landscape.ranks.device import choose_device, fair_threads, shared_gpus

pytestmark = pytest.mark.mpi_stack


def test_world_is_what_the_launcher_started(comm: Any) -> None:
    size, rank, _ = comm_module.launched()
    assert (comm.size, comm.rank) == (size, rank)
    assert comm.is_root == (rank == 0)


def test_bcast_gives_rank_0s(comm: Any) -> None:
    assert comm.bcast({"rank": comm.rank, "list": [1, None]}) == {"rank": 0, "list": [1, None]}
    assert comm.bcast("only here" if comm.is_root else None) == "only here"


def test_allgather_is_in_rank_order(comm: Any) -> None:
    assert comm.allgather((comm.rank, "x" * comm.rank)) == [(r, "x" * r) for r in range(comm.size)]


def test_what_is_less_than_an_allgather(comm: Any) -> None:
    """Numbers, yes or no, a text of one, and what rank 0 alone receives."""
    last = comm.size - 1
    assert comm.least(10.5 - comm.rank) == 10.5 - last and comm.most(comm.rank) == last
    assert comm.least(2**53 - 1) == 2**53 - 1
    assert comm.first_rank(comm.rank == last) == last and comm.first_rank(True) == 0
    assert comm.first_rank(False) is None
    assert comm.on_all(True) and comm.on_all(comm.rank < last) is False
    assert comm.first_text(f"rank {comm.rank}" * (comm.rank == last)) == f"rank {last}" and comm.first_text("") == ""
    assert comm.bcast(comm.rank, last) == last
    assert comm.to_root("x" * comm.rank) == (["x" * rank for rank in range(comm.size)] if comm.is_root else [])


def test_barrier_holds_until_the_last_has_come(comm: Any, folder: str) -> None:
    mark = Path(folder) / "the last has come"
    if comm.rank == comm.size - 1:
        time.sleep(0.2)
        mark.touch()
    comm.barrier()
    assert mark.exists()


def test_a_waiting_rank_leaves_the_core_to_others(comm: Any) -> None:
    if comm.size == 1:
        pytest.skip("nobody to wait for")
    comm.barrier()
    start, cpu = time.monotonic(), time.thread_time()
    if comm.is_root:
        time.sleep(1)
    comm.bcast(None)
    waited, used = time.monotonic() - start, time.thread_time() - cpu
    assert waited > 0.5
    assert used < 0.5 * waited


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (9,), (3, 5), (4, 4, 2)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
def test_bcast_array_in_chunks(comm: Any, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: str) -> None:
    monkeypatch.setattr(comm_module, "CHUNK", 8)
    wanted = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    array = wanted.copy() if comm.is_root else np.full(shape, 99, dtype)
    comm.bcast_array(array)
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_state_broadcast_keeps_the_bits(comm: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(comm_module, "CHUNK", 64)
    wanted = [torch.arange(15).reshape(3, 5).to(dtype), torch.tensor(1).to(dtype), torch.zeros(0, dtype=dtype)]
    wanted.append(wanted[0].clone().t())  # not contiguous
    tensors = [t.clone() if comm.is_root else torch.zeros_like(t) for t in wanted]
    broadcast_tensors(tensors, comm)
    for mine, theirs in zip(tensors, wanted, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_broadcast_into_a_leaf_that_needs_its_gradient(comm: Any) -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(comm.rank + 5)
    broadcast_tensors(state.state(model).values(), comm)
    assert all((p == 5).all() and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("culprit", [0, 1, -1])
def test_together_a_mistake_on_one_is_one_on_all(comm: Any, culprit: int) -> None:
    if culprit >= comm.size:
        pytest.skip("there is no such rank")
    with pytest.raises(UserError, match=f"^rank {culprit % comm.size} says no$"), comm.raise_on_all_ranks():
        if comm.rank == culprit % comm.size:
            raise UserError(f"rank {comm.rank} says no")


def test_together_the_first_of_several_mistakes(comm: Any) -> None:
    with pytest.raises(UserError, match="^rank 0 says no$"), comm.raise_on_all_ranks():
        raise UserError(f"rank {comm.rank} says no")


def test_together_without_a_mistake(comm: Any) -> None:
    with comm.raise_on_all_ranks():
        mine = comm.rank
    assert mine == comm.rank


@pytest.mark.parametrize("error", [UserError("one says no"), ArithmeticError("one says no")])
def test_all_or_none_a_fault_of_one_is_one_of_all(comm: Any, error: Exception) -> None:
    here = comm.rank == comm.size - 1
    expected = type(error) if here or isinstance(error, UserError) else RuntimeError
    with pytest.raises(expected, match="one says no"), comm.raise_on_all_ranks(any_error=True):
        if here:
            raise error


def test_who_is_about_to_leave_is_not_met_by_those_who_go_on(comm: Any) -> None:
    if comm.size == 1:
        pytest.skip("there is nobody to go on")
    if comm.is_root:
        assert not comm.meet(0.5)  # the others are in a barrier meanwhile
    comm.barrier()
    if not comm.is_root:
        assert comm.meet(60)


def test_messages_arrive_and_nobody_waits(comm: Any) -> None:
    assert comm.received() == []
    comm.barrier()
    if not comm.is_root:
        requests = [comm.isend(("kind", np.arange(comm.rank)), 0), comm.isend("second", 0)]
        _until(lambda: all(request.Test() for request in requests))
    elif comm.size > 1:
        got: list[Any] = []
        _until(lambda: got.extend(comm.received()) or len(got) == 2 * (comm.size - 1))
        for rank in range(1, comm.size):
            first, second = (message for sender, message in got if sender == rank)
            assert first[0] == "kind" and first[1].tolist() == list(range(rank)) and second == "second"
    comm.barrier()
    assert comm.received() == []


def test_serial_has_nobody_to_send_to() -> None:
    with pytest.raises(ValueError, match="no rank 1"):
        comm_module.SerialComm().isend("x", 1)


def test_local_ranks_number_the_ranks_of_each_node(comm: Any) -> None:
    mine = node_of(comm.rank) if isinstance(comm, UnevenComm) else os.uname().nodename
    seen = comm.allgather((mine, comm.local_rank, comm.local_size))
    for node in {name for name, _, _ in seen}:
        here = [(local, size) for name, local, size in seen if name == node]
        assert sorted(local for local, _ in here) == list(range(len(here)))
        assert {size for _, size in here} == {len(here)}
    assert comm.node_allgather(comm.rank) == [rank for rank, (name, _, _) in enumerate(seen) if name == mine]


def test_threads_share_the_cores(comm: Any) -> None:
    threads = comm.node_allgather(fair_threads(comm))
    cores = len(set().union(*comm.node_allgather(sorted(os.sched_getaffinity(0)))))
    assert all(n >= 1 for n in threads)
    assert sum(threads) <= max(cores, comm.local_size)


def test_device_goes_by_local_rank(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    device = choose_device("auto", comm.local_rank)
    assert device == torch.device("cuda", comm.local_rank % 2) and taken == [device]
    assert comm.node_allgather(device.index) == [local % 2 for local in range(comm.local_size)]


def test_ranks_that_share_a_gpu_are_told_by_its_uuid(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "one for all"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert shared_gpus(comm, [torch.device("cuda", 0)]) == comm.local_size
    Properties.uuid = f"one for rank {comm.rank}"
    assert shared_gpus(comm, [torch.device("cuda", 0)]) == 1
    assert shared_gpus(comm, [torch.device("cpu")]) == 1


def _until(condition: Any, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
