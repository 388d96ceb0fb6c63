"""Whatever people bring, on several ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "kinds"))
from case import Case, assert_right, cases, stored  # noqa: E402

from hpc_landscape import UserError  # noqa: E402
from hpc_landscape.arguments import parse  # noqa: E402
from hpc_landscape.run import run  # noqa: E402


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_on_ranks(case: Case, comm, folder):
    if comm.size != 2:
        pytest.skip("on two ranks; the program alone is in tests/test_kinds.py")
    before = os.getcwd()
    os.chdir(folder)
    try:
        if comm.is_root and case.prepare:
            case.prepare(Path(folder))
        comm.barrier()
        settings, _ = parse(case.words(Path(folder) / "landscape.h5"), "test")
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
