"""Whatever people bring, on several ranks."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from case import Case, assert_right, cases, stored

from hpc_landscape import UserError
from hpc_landscape.arguments import parse
from hpc_landscape.run import run

pytestmark = [
    pytest.mark.mpi_stack,
    pytest.mark.filterwarnings("default"),  # what people bring may warn, and goes on
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_on_ranks(case: Case, comm, folder):
    if comm.size != 2:
        pytest.skip("on two ranks; the program alone is in tests/kinds")
    quarter = zlib.crc32(case.id.encode()) % 4
    if quarter == 3 and not case.refused:
        pytest.skip("three quarters of them tell enough")
    before = os.getcwd()
    os.chdir(folder)
    try:
        if comm.is_root and case.prepare:
            case.prepare(Path(folder))
        comm.barrier()
        team = 1 if quarter == 2 else 2  # most of them by the two ranks together
        settings, _ = parse([*case.words(Path(folder) / "landscape.h5"), f"--ranks_per_point={team}"], "test")
        if case.refused:
            with pytest.raises(UserError, match=case.refused):
                run(settings, comm)
        else:
            assert run(settings, comm) == 0
            if comm.is_root:
                assert_right(case, *stored(Path(folder) / "landscape.h5"))
    finally:
        os.chdir(before)
        comm.barrier()


UNLIKE = """
import os, torch
from hpc_landscape import Problem
from hpc_landscape.ranks.comm import launched

def made():
    rank, size, data = launched()[1], launched()[0], (torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
    sets = {"train": data, "test": data}
    if rank == size - 1:
        other = {"sets": {}, "kinds": {"test": torch.utils.data.DataLoader(list(zip(*data)))}}
        sets = {"train": data, **other[CASE]}
    return Problem(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), sets)
"""


@pytest.mark.parametrize("what", ["sets", "kinds"])
def test_factories_that_give_other_sets_on_another_rank(comm, folder, what):
    if comm.size == 1:
        pytest.skip("there is no other rank")
    path = Path(folder) / f"{what}_unlike.py"
    if comm.is_root:
        path.write_text(UNLIKE.replace("CASE", repr(what)))
    comm.barrier()
    words = ["--problem", f"{path}:made", "--output", str(Path(folder) / "landscape.h5"), "--x=-1:1:2"]
    with pytest.raises(UserError, match="the ranks hold different data: the factory must make the same"):
        run(parse(words, "test")[0], comm)
