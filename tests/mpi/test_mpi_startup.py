"""What starting up takes of the ranks, counted: neither tensors nor ranks make it more, and nothing is N times N."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from hpc_landscape.arguments import parse
from hpc_landscape.run import run

pytestmark = pytest.mark.mpi_stack

NUMBERS = ("bcast", "least", "to_root", "allgather")
BARE = ("barrier", "bcast_array")
PROBLEM = """
import torch
from hpc_landscape import Problem

def chain(layers: int = 1):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(layers)))
    return Problem(model, torch.nn.CrossEntropyLoss(), (torch.randn(8, 4), torch.randint(4, (8,))))
"""


def counted(comm: Any, folder: str, layers: int) -> tuple[list[str], int]:
    """The collectives of a run, in their order, and the bytes that this rank has received by those of values."""
    calls: list[str] = []
    received: list[int] = []
    before = dict(vars(comm))

    def watch(name: str) -> None:
        real = getattr(comm, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            found = real(*arguments)
            if name in NUMBERS:
                received.append(len(pickle.dumps(found)))
            return found

        setattr(comm, name, call)

    if comm.is_root:
        (Path(folder) / "chain_of_layers.py").write_text(PROBLEM)
    comm.barrier()
    for name in (*NUMBERS, *BARE):
        watch(name)
    try:
        problem, output = f"{folder}/chain_of_layers.py:chain", f"{folder}/{comm.size}-{layers}.h5"
        words = ["--problem", problem, f"--problem.layers={layers}", "--x=-1:1:4", "--y=none", "--output", output]
        settings, _ = parse([*words, "--plot=false", "--writer=gather", "--device=cpu", "--ranks_per_point=1"], "test")
        assert run(settings, comm) == 0
    finally:
        for name in {*vars(comm)} - {*before}:
            delattr(comm, name)
    return calls, sum(received)


def test_a_start_is_no_longer_with_more_tensors_or_ranks(comm: Any, folder: str) -> None:
    few, bytes_of_few = counted(comm, folder, 1)
    many, _ = counted(comm, folder, 50)
    assert many == few and "allgather" not in few and 10 < len(few) < 150
    if comm.size < 3:
        return
    fewer = comm.split(comm.rank < 2)
    if comm.rank < 2:
        found, bytes_of_fewer = counted(fewer, folder, 1)
        assert found == few
        assert comm.is_root or bytes_of_fewer == bytes_of_few
