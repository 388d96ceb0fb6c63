"""Data that the ranks of a node share: one copy, which each of them reads a share of."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from uneven import no_room

from hpc_landscape.campaign.share import ANEW, COPIES, keep_in_memory, one_copy
from hpc_landscape.data.batches import StoredBatches
from hpc_landscape.data.prepare import TensorBatches, prepare
from hpc_landscape.errors import UserError
from hpc_landscape.ranks import shared

pytestmark = pytest.mark.mpi_stack

LARGE = 2**18  # numbers in float32: enough to be shared
needs_shm = pytest.mark.skipif(not os.path.isdir(shared.FOLDER), reason=f"no {shared.FOLDER}")


class Items(Dataset):
    def __init__(self, n: int):
        self.n, self.reads = n, []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        self.reads.append(i)
        return {"x": torch.full((LARGE // 4,), float(i)), "y": i, "name": f"item {i}"}


@needs_shm
def test_every_rank_has_the_tensors_of_all(comm):
    mine = {(comm.rank, k): torch.full((LARGE + k,), 10.0 * comm.rank + k) for k in range(2)}
    mine[comm.rank, 2] = torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    found = shared.pool(mine, comm)
    assert sorted(found) == [(rank, k) for rank in comm.node_allgather(comm.rank) for k in range(3)]
    for (rank, k), tensor in found.items():
        assert tensor.data_ptr() % shared.ALIGNMENT == 0
        if k == 2:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(tensor, torch.arange(48.0).reshape(2, 3, 2, 4))
        else:
            assert tensor.shape == (LARGE + k,) and (tensor == 10 * rank + k).all()


@needs_shm
def test_it_is_one_copy_and_leaves_nothing(comm):
    before = sorted(name for name in os.listdir(shared.FOLDER) if name.startswith("hpc_landscape"))
    comm.barrier()
    found = shared.pool({0: torch.zeros(LARGE)} if comm.local_rank == 0 else {}, comm)[0]
    assert found.is_shared()
    found[comm.local_rank] = comm.rank + 1.0
    comm.barrier()
    assert found[: comm.local_size].tolist() == [rank + 1.0 for rank in comm.node_allgather(comm.rank)]
    after = sorted(name for name in os.listdir(shared.FOLDER) if name.startswith("hpc_landscape"))
    assert set(after) <= set(before)


def test_little_is_not_shared(comm):
    assert shared.pool({comm.rank: torch.zeros(3)}, comm) is None


@needs_shm
@pytest.mark.parametrize("full", [False, True])
def test_each_rank_reads_its_share_of_a_loader(comm, monkeypatch, caplog, full):
    """Where memory cannot be shared each reads all, and says so."""
    caplog.set_level("INFO")
    if full:
        monkeypatch.setattr(shared, "free_memory", lambda: 0)
    data = Items(11)
    batches = prepare(data, 2, None, 0, "data", print)
    batches.check("data")
    data.reads.clear()
    found = keep_in_memory(batches, 2**40, comm)
    assert isinstance(found, StoredBatches)
    assert [b["y"].tolist() for b in found] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9, 10]]
    assert [b["name"][0] for b in found] == [f"item {2 * i}" for i in range(5)]
    assert all((b["x"] == b["y"][:, None]).all() for b in found)
    here = range(comm.local_rank, 5, comm.local_size)
    mine = [i for k in here for i in ((8, 9, 10) if k == 4 else (2 * k, 2 * k + 1))]
    alone = list(range(11)) if full and comm.local_size > 1 else []
    assert (COPIES in caplog.text) == bool(alone)
    assert data.reads == mine + alone
    if not full and comm.local_size > 1:
        assert all(b["x"].is_shared() for b in found)
        assert one_copy(found, comm) is found


@needs_shm
@pytest.mark.parametrize("rank", [0, -1])
def test_what_one_node_has_no_room_for_is_kept_by_none(comm, caplog, rank):
    """Wherever that node is, and whatever the others have; and it is said."""
    caplog.set_level("INFO")
    batches = prepare(Items(11), 2, None, 0, "data", print)
    batches.check("data")
    there = comm.node_allgather(comm.rank == rank % comm.size)
    assert keep_in_memory(batches, 10 if any(there) else 2**40, comm) is batches
    assert f"data: 2.5 MiB, {ANEW}" in caplog.text
    assert set(comm.allgather(isinstance(keep_in_memory(batches, 2**40, comm), StoredBatches))) == {True}


@needs_shm
@pytest.mark.parametrize("rank", [0, -1])
def test_a_node_that_cannot_share_reads_all_itself_where_there_is_room(comm, monkeypatch, rank):
    data = Items(11)
    batches = prepare(data, 2, None, 0, "data", print)
    batches.check("data")
    if any(comm.node_allgather(comm.rank == rank % comm.size)):
        monkeypatch.setattr(os, "posix_fallocate", no_room)
    needed = batches.first_bytes * batches.count()
    narrow = keep_in_memory(
        batches, needed, comm
    )  # a copy for each of that node's ranks may be too much: then for all nodes
    assert len(set(comm.allgather(type(narrow).__name__))) == 1
    found = keep_in_memory(batches, 2 * needed * comm.size, comm)  # the last batch is larger than the first
    assert set(comm.allgather(type(found).__name__)) == {"StoredBatches"}
    assert [b["y"].tolist() for b in found] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9, 10]]


@pytest.mark.parametrize("rank", [0, -1])
def test_what_one_rank_cannot_read_ends_all(comm, rank):
    data = Items(11)
    batches = prepare(data, 2, None, 0, "data", print)
    batches.check("data")
    if comm.rank == rank % comm.size:
        data.reads = None  # no list: what is appended to it raises
    with pytest.raises(UserError, match="reading the problem's data raised"):
        keep_in_memory(batches, 2**40, comm)
    comm.barrier()


@pytest.mark.parametrize("short", [False, True])
def test_it_works_by_a_name_too_and_never_beyond_a_files_end(comm, monkeypatch, short):
    """Where another process's descriptors cannot be opened; and where the file is shorter than it is to be."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    if short:
        monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, start, size: os.ftruncate(descriptor, size - 1))
    found = shared.pool({comm.rank: torch.full((LARGE,), comm.rank)}, comm)
    if short:
        assert found is None
    else:
        assert set(found) == set(comm.node_allgather(comm.rank))
        assert all((values == rank).all() for rank, values in found.items())
    comm.barrier()
    assert not [name for name in os.listdir(shared.FOLDER) if name.startswith(f"hpc_landscape-{os.getpid()}-")]


@needs_shm
def test_tensors_become_those_of_the_first_rank(comm):
    tensors = torch.arange(float(LARGE)).reshape(-1, 4), torch.arange(LARGE // 4)
    batches = TensorBatches(tensors, 100)
    found = one_copy(batches, comm)
    assert (found is batches) == (comm.local_size == 1)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, tensors, strict=True))
    assert found.size == batches.size and found.count() == batches.count()
    if comm.local_size > 1:
        assert all(t.is_shared() for t in found.tensors) and one_copy(found, comm) is found


class Sparse(Items):
    """Gives whole batches, a part of which is no block of memory."""

    def __getitem__(self, i: int):
        self.reads.append(i)
        return torch.full((LARGE // 4,), float(i)), torch.eye(4).to_sparse() * i


@needs_shm
def test_what_cannot_be_shared_is_read_by_each_rank(comm):
    data = Sparse(5)
    batches = prepare(DataLoader(data, batch_size=None), 1, None, 0, "data", print)
    batches.check("data")
    found = keep_in_memory(batches, 2**40, comm)
    assert isinstance(found, StoredBatches) and one_copy(found, comm) is found
    assert all((x == i).all() and torch.equal(s.to_dense(), torch.eye(4) * i) for i, (x, s) in enumerate(found))
    assert len(set(comm.allgather(found.full_hash()))) == 1
