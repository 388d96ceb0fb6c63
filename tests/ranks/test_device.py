"""Threads and devices of a rank, with neighbours that a test makes up."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from programs import ROOT

from hpc_landscape.errors import UserError
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.ranks.device import choose_device, describe, fair_threads, set_threads, shared_gpus


class Node(SerialComm):
    """A rank among others on its node: what they say in an allgather is given."""

    def __init__(self, everyone: list, local_rank: int = 0):
        self.everyone, self.local_rank, self.local_size = everyone, local_rank, len(everyone)

    def node_allgather(self, value):
        assert value == self.everyone[self.local_rank]
        return self.everyone


def shares(monkeypatch, everyone: list[list[int]]) -> list[int]:
    found = []
    for rank, mine in enumerate(everyone):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, mine=mine: set(mine), raising=False)
        found.append(fair_threads(Node(everyone, rank)))
    return found


@pytest.mark.parametrize(
    ("everyone", "expected"),
    [
        ([range(8)], [8]),  # alone
        ([range(8)] * 2, [4, 4]),  # unbound: they share
        ([range(8)] * 3, [2, 2, 2]),
        ([range(8)] * 8, [1] * 8),
        ([range(2)] * 8, [1] * 8),  # more ranks than cores
        ([[0], [1]], [1, 1]),  # bound to a core each
        ([range(4), range(4, 8)], [4, 4]),  # bound to a socket each
        ([range(6), range(3, 6)], [4, 1]),  # 3 + 3/2, 3/2
        ([range(0, 8), range(0, 2)], [7, 1]),  # 6 + 2/2, 2/2
        ([range(3)] * 3, [1] * 3),  # thirds add up to 1, not to 0.999...
        ([range(7)] * 7 + [range(7, 9)], [1] * 7 + [2]),
        ([range(6)] * 3, [2, 2, 2]),  # 6/3 adds up to less than 2 in floating point
        ([range(19 * 5)] * 19, [5] * 19),
        ([range(64)] * 6, [10] * 6),
    ],
)
def test_fair_threads(monkeypatch, everyone, expected):
    assert shares(monkeypatch, [list(cores) for cores in everyone]) == expected


def test_the_shares_fit_into_the_cores(monkeypatch):
    """However ranks are bound: where every rank has a core's worth, no core is promised twice."""
    import random

    draw = random.Random(0)
    for _ in range(50):
        everyone = [sorted(draw.sample(range(16), draw.randint(1, 16))) for _ in range(draw.randint(1, 6))]
        found = shares(monkeypatch, everyone)
        assert all(1 <= threads <= len(mine) for threads, mine in zip(found, everyone, strict=True))
        used = set().union(*everyone)
        assert sum(found) <= max(len(used), 0) + found.count(1)


def test_without_affinity(monkeypatch):
    """macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert [fair_threads(Node([None] * n)) for n in (1, 3, 10, 20)] == [10, 3, 1, 1]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert fair_threads(Node([None])) == 1


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("variable", "expected"), [("3", 3), ("2,4", 2), ("", 5), ("0", 5), ("x", 5), (None, 5)])
def test_omp_num_threads_wins(monkeypatch, threads, variable, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10)), raising=False)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    comm = Node([list(range(10))] * 2)
    assert set_threads(comm) == expected == torch.get_num_threads()


# Devices


class Cuda:
    """As many GPUs as a test wants."""

    def __init__(self, monkeypatch, count: int, uuids: list[str] = ()):
        self.set = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", self.set.append)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        properties = type("Properties", (), {})
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda d: (p := properties(), setattr(p, "uuid", uuids[d.index]))[0]
        )


def test_one_gpu_for_each_local_rank(monkeypatch):
    cuda = Cuda(monkeypatch, 4)
    found = [choose_device("auto", local_rank) for local_rank in range(6)]
    assert [d.index for d in found] == [0, 1, 2, 3, 0, 1] and {d.type for d in found} == {"cuda"}
    assert cuda.set == found
    assert choose_device("cpu", 0) == torch.device("cpu")


def test_one_visible_gpu_per_rank(monkeypatch):
    Cuda(monkeypatch, 1)
    assert [choose_device("cuda", local_rank).index for local_rank in range(4)] == [0] * 4


def test_no_gpu(monkeypatch):
    Cuda(monkeypatch, 0)
    assert choose_device("auto", 3) == torch.device("cpu")
    for wanted in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--device {wanted}: .*use --device cpu") as error:
            choose_device(wanted, 0)
        assert "\n" not in str(error.value)


def test_ranks_that_share_a_gpu_are_told_by_uuid(monkeypatch):
    """Each rank sees one GPU, number 0: only the UUIDs tell whether it is the same."""
    device = torch.device("cuda", 0)
    Cuda(monkeypatch, 1, ["A"])
    assert shared_gpus(Node([["A"], ["B"], ["C"]]), [device]) == 1
    assert shared_gpus(Node([["A"], ["B"], ["A"], ["A"]]), [device]) == 3
    assert shared_gpus(Node([["A"], ["B", "A"]]), [device]) == 2  # a rank with two of them
    assert shared_gpus(Node([["A"], []]), [device]) == 1
    assert shared_gpus(Node([[], []]), [torch.device("cpu")]) == 1


def test_describe():
    assert describe(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """Large tensors made one after the other share their pages: the system need not clear them again."""
    program = (
        "import resource, torch\n"
        "from hpc_landscape.ranks.device import keep_memory\n"
        "{}\n"
        "for _ in range(12): torch.ones(2**25)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(4): torch.ones(2**25)\n"  # 128 MiB each: 32,768 pages
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(call):
        command = [sys.executable, "-c", program.format(call)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    assert faults("keep_memory()") < 1000
