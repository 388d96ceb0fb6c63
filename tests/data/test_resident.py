"""Data that is kept in memory: the batches that the loader reads, where there is room for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import PROBLEMS, assert_same_landscape, read, run_program
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hpc_landscape.campaign.share import keep_in_memory
from hpc_landscape.data.prepare import LoaderBatches, prepare
from hpc_landscape.data.resident import MovedBatches, StoredBatches, beginning
from hpc_landscape.errors import UserError
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.ranks.memory import _left_in_groups, free_memory

STREAMED = f"{PROBLEMS / 'small_problem_for_tests.py'}:streamed"
JOB = ("--problem", STREAMED, "--x=-1:1:3", "--y=-1:1:3", "--plot=false")
ITEM = 4 * 4 + 8  # bytes


class Items(Dataset):
    def __init__(self, n: int = 22, bad: int | None = None):
        self.n, self.bad, self.reads = n, bad, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        self.reads += 1
        if i == self.bad:
            raise OSError("unreadable")
        return {"x": torch.arange(4.0) + i, "y": i, "name": f"item {i}"}


class Ready(Items):
    """Gives whole batches."""

    def __getitem__(self, i: int):
        return torch.full((3, 2), float(i)), torch.full((3,), i)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(5.0))


def batches_of(data) -> LoaderBatches:
    batches = prepare(data, 8, None, 0, "data", print)
    batches.check("data")
    return batches


def same(a, b) -> bool:
    return {k: v if isinstance(v, list) else v.tolist() for k, v in a.items()} == {
        k: v if isinstance(v, list) else v.tolist() for k, v in b.items()
    }


def test_what_is_kept_is_what_the_loader_reads():
    batches = batches_of(Items())
    found = keep_in_memory(batches, 10**6, SerialComm())
    assert isinstance(found, StoredBatches) and not found.streamed
    assert (found.size, found.batch_size, found.bytes, found.count()) == (22, 8, 22 * ITEM, 3)
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(found, batches, strict=True))
    batches.loader.dataset.reads = 0
    list(found)
    assert batches.loader.dataset.reads == 0


def test_batches_that_a_data_set_gives_itself():
    batches = batches_of(DataLoader(Ready(), batch_size=None))
    assert [int(y[0]) for _, y in keep_in_memory(batches, 10**6, SerialComm())] == list(range(22))


def test_where_there_is_no_room_they_are_read_in_every_pass():
    batches = batches_of(Items())
    assert (
        keep_in_memory(batches, 24 * ITEM - 1, SerialComm()) is batches and batches.streamed
    )  # by three batches of eight
    assert keep_in_memory(batches, 24 * ITEM, SerialComm()) is not batches
    stream = batches_of(DataLoader(Stream()))
    assert keep_in_memory(stream, 10**6, SerialComm()) is stream


def test_batches_that_are_larger_than_the_first():
    class Growing(Ready):
        def __getitem__(self, i: int):
            return torch.zeros(1 + i, 100), torch.zeros(1 + i)

    batches = batches_of(DataLoader(Growing(), batch_size=None))
    assert keep_in_memory(batches, 22 * 404 + 1000, SerialComm()) is batches
    assert keep_in_memory(batches, 404 * 22 * 23 // 2, SerialComm()).count() == 22


def test_an_item_that_cannot_be_read():
    with pytest.raises(UserError, match="unreadable"):
        keep_in_memory(batches_of(Items(bad=20)), 10**6, SerialComm())


def test_to_and_beginning():
    found = keep_in_memory(batches_of(Items()), 10**6, SerialComm())
    doubles = found.to(torch.device("cpu"), torch.float64)
    assert [b["x"].dtype for b in doubles] == [torch.float64] * 3 and doubles.bytes == 22 * (8 * 4 + 8)
    moved = MovedBatches(found, torch.device("cpu"), torch.float64)
    assert moved.streamed and moved.count() == 3 and all(same(a, b) for a, b in zip(moved, doubles, strict=True))
    assert [b["y"].tolist() for b in beginning(found, 2)] == [list(range(8)), list(range(8, 16))]


def test_the_program_gives_the_same_either_way(program, tmp_path):
    kept_one = program(*JOB, "--output=kept.h5", "--problem.log=kept.txt")
    assert kept_one.code == 0 and "(streamed" not in kept_one.out, kept_one
    streamed = program(*JOB, "--output=streamed.h5", "--resident=0", "--problem.log=streamed.txt")
    assert streamed.code == 0 and "(streamed, 8 points on each batch)" in streamed.out, streamed
    alone = program(*JOB, "--output=alone.h5", "--resident=0", "--block=1", "--problem.log=alone.txt")
    assert alone.code == 0 and "(streamed)" in alone.out, alone
    for name in ("streamed.h5", "alone.h5"):
        assert_same_landscape(tmp_path / name, tmp_path / "kept.h5")
    assert np.unique(read(tmp_path / "kept.h5", "loss")).size == 9
    # Two passes a turn: with eight points a turn two turns, with one nine
    reads = {name: (tmp_path / f"{name}.txt").stat().st_size for name in ("kept", "streamed", "alone")}
    assert reads["alone"] - reads["streamed"] == 2 * (9 - 2) * 22
    assert reads["kept"] < 3 * 22 < 2 * 2 * 22 < reads["streamed"]


def test_a_run_goes_on_in_the_other_way(program, tmp_path):
    import h5py

    assert program(*JOB).code == 0
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        loss = file["loss"][()]
        file["done"][1:] = 0
    finished = program(*JOB, "--resident=0")
    assert finished.code == 0 and "6 still to do" in finished.out, finished
    assert read(tmp_path / "landscape.h5", "loss").tobytes() == loss.tobytes()


@pytest.mark.mpi_stack
def test_workers_and_ranks(tmp_path):
    job = [*JOB, "--problem.workers=1", "--output"]
    for name, ranks, options in (("one", None, ()), ("two", 2, ()), ("streamed", 2, ("--resident=0",))):
        finished = run_program(*job, f"{name}.h5", *options, folder=tmp_path, ranks=ranks)
        assert finished.code == 0, finished
        assert_same_landscape(tmp_path / f"{name}.h5", tmp_path / "one.h5")


# How much memory is free


def group(folder, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_limits_of_control_groups(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("0::/slurm/job\n")
    group(root / "slurm", {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\nfile 100\n"})
    group(root / "slurm/job", {"memory.max": "max", "memory.current": "600", "memory.stat": "file 0\n"})
    assert list(_left_in_groups(proc, root)) == [400]
    proc.write_text("5:devices:/\n4:cpu,memory:/job\n")
    group(
        root / "memory/job",
        {"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "600", "memory.stat": "total_cache 50\n"},
    )
    assert list(_left_in_groups(proc, root)) == [0]
    assert list(_left_in_groups(tmp_path / "none", root)) == []


def test_free_memory_is_that_of_the_machine():
    assert 2**26 < free_memory() <= 2**50
