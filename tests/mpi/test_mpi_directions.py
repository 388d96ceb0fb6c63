"""Directions on the device, in host memory, once for a node, and drawn again: the same bits, on any number of ranks."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hpc_landscape import Problem
from hpc_landscape.arguments import parse
from hpc_landscape.campaign.directions import Reader, broadcast_directions, moving
from hpc_landscape.directions.base import DEVICE, HOST, SEED, Origin
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.run import run
from hpc_landscape.settings import Settings

pytestmark = pytest.mark.mpi_stack

WIDE = """
import torch
from torch import nn
from hpc_landscape import Problem

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 300), nn.BatchNorm1d(300), nn.Tanh(), nn.Linear(300, 500), nn.Linear(500, 3))
    return Problem(model, nn.CrossEntropyLoss(), (torch.randn(30, 8), torch.randint(3, (30,))))
"""


def test_values_are_the_same_to_the_bit_and_a_run_goes_on_in_another_mode(
    comm: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on nodes of 2 + 1 ranks, too
    problem = os.path.join(folder, "wide.py")
    if comm.is_root:
        with open(problem, "w") as file:
            file.write(WIDE)
    comm.barrier()

    def compute(memory: str, path: str) -> Any:
        words = ["--problem", f"{problem}:make", "--x=-1:1:3", "--y=-1:1:3", "--plot=false", "--batch_size=15"]
        settings, _ = parse([*words, "--directions_memory", memory, "--output", os.path.join(folder, path)], "test")
        assert run(settings, comm) == 0
        if not comm.is_root:
            return None
        with h5py.File(os.path.join(folder, path)) as file:
            return file["loss"][()], file.attrs["sha256_directions"]

    found = {memory: compute(memory, f"{memory}.h5") for memory in (DEVICE, HOST, SEED)}
    for memory, other in ((HOST, SEED), (SEED, DEVICE)):
        if comm.is_root:
            assert np.array_equal(found[memory][0], found[DEVICE][0]) and found[memory][1] == found[DEVICE][1]
            with h5py.File(os.path.join(folder, f"{memory}.h5"), "r+") as file:
                file["done"][1:] = 0
                file["loss"][1:] = np.nan
        comm.barrier()
        again = compute(other, f"{memory}.h5")
        assert not comm.is_root or np.array_equal(again[0], found[DEVICE][0])


def test_in_host_memory_there_is_one_copy_on_a_node(comm: Any, folder: str) -> None:
    torch.manual_seed(0)
    problem = Problem(nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 3)), nn.CrossEntropyLoss())
    settings = Settings()
    reader = Reader(problem, settings.for_problem)
    asked = settings.for_directions
    made = broadcast_directions(asked, 2, problem, reader, [], None, None, HOST, comm).vectors
    expected = make_directions(asked, Origin(moving(problem), 2)).vectors
    for found, wanted in zip(made, expected, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    comm.barrier()
    one = made[0]["0.weight"].view(-1)
    one[comm.local_rank] = comm.rank + 1.0
    comm.barrier()
    if comm.local_size > 1:
        assert one[: comm.local_size].tolist() == [rank + 1.0 for rank in comm.node_allgather(comm.rank)]
