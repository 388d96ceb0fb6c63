"""A model whose parameters are shared out over the ranks of a team: to be run inside MPI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from problems_for_tests.shard_problem_for_tests import problem
from programs import PROBLEMS, read

from hpc_landscape import UserError
from hpc_landscape.arguments import parse
from hpc_landscape.model.sharded import Sharded
from hpc_landscape.ranks.process_group import process_group
from hpc_landscape.run import run

pytestmark = [
    pytest.mark.mpi_stack,
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]

MODULE = PROBLEMS / "shard_problem_for_tests.py"
JOB = ("--problem", f"{MODULE}:problem", "--x=-1:1:3", "--y=-1:1:2", "--batch_size", "8", "--plot", "false")
SHARD = ("--shard", "fsdp")


@pytest.fixture
def program(comm: Any, folder: str) -> Any:
    """The program on these ranks."""

    def call(*options: str) -> int:
        before = os.getcwd()
        os.chdir(folder)
        try:
            return run(parse([*JOB, *options], "test")[0], comm)
        finally:
            os.chdir(before)
            comm.barrier()

    return call


def _on(comm: Any, *sizes: int) -> None:
    if comm.size not in sizes:
        pytest.skip(f"on {' or '.join(map(str, sizes))} ranks")


@pytest.mark.parametrize(
    "kind",
    ["transformer", "transformer --problem.dtype bfloat16", "convolutions", "convolutions --bn batch", "remembering"],
)
def test_values_are_those_of_one_device(comm: Any, folder: str, program: Any, kind: str) -> None:
    _on(comm, 2, 4)
    options = ["--problem.kind", *kind.split()]
    assert program(*options, "--output", "whole.h5") == 0
    assert program(*options, "--output", "sharded.h5", *SHARD) == 0
    if comm.is_root:
        whole, sharded = (read(Path(folder) / f"{name}.h5", "loss", "accuracy") for name in ("whole", "sharded"))
        for one, other in zip(whole, sharded, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-6)
        with h5py.File(Path(folder) / "whole.h5") as one, h5py.File(Path(folder) / "sharded.h5") as other:
            assert one.attrs["sha256_directions"] == other.attrs["sha256_directions"]


def test_it_goes_on_whole_and_sharded(comm: Any, folder: str, program: Any) -> None:
    """In either order; a finished point is compared."""
    _on(comm, 2)
    options = ["--problem.kind", "convolutions", "--channels_last", "false"]
    assert program(*options, "--output", "right.h5") == 0
    for first, then in (((), SHARD), (SHARD, ())):
        assert program(*options, *first, "--overwrite") == 0
        comm.barrier()
        if comm.is_root:
            with h5py.File(Path(folder) / "landscape.h5", "r+") as file:
                file["done"][1:], file["loss"][1:] = 0, np.nan
        comm.barrier()
        assert program(*options, *then) == 0
        if comm.is_root:
            right, found = (read(Path(folder) / name, "loss") for name in ("right.h5", "landscape.h5"))
            np.testing.assert_allclose(found, right, rtol=1e-6)


def test_each_rank_has_its_rows(comm: Any) -> None:
    """Of each parameter about as many as the others, and together all of them; they are where points are written."""
    _on(comm, 2, 4)
    wrapper = problem().wrapper
    whole = dict(wrapper.named_parameters())
    with process_group(comm, torch.device("cpu")) as mesh:
        sharded = Sharded(wrapper, mesh, torch.device("cpu"))
        held = sum(local.numel() for local in sharded.local.values())
        rows = {name: comm.allgather(local.clone()) for name, local in sharded.local.items()}
        with torch.no_grad():
            before = sharded.wrapper(torch.arange(6)[None])
            sharded.local["last.weight" if "last.weight" in rows else "embed.weight"].mul_(2)
            after = sharded.wrapper(torch.arange(6)[None])
            torch.testing.assert_close(before, wrapper(torch.arange(6)[None]), rtol=0, atol=0)
    assert rows.keys() == whole.keys()
    for name, parts in rows.items():
        assert torch.equal(torch.cat(parts), whole[name])
    total = sum(p.numel() for p in whole.values())
    assert sum(comm.allgather(held)) == total and held < 1.5 * total / comm.size
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--problem.kind", "scaled"], "PyTorch cannot shard this model .*scalar"),
        (["--problem.kind", "hooked"], "holds on to the model that the factory made"),
        (["--metrics", "loss,gradient_norm"], "gradient_norm does not add up over batches"),
        (["--problem.parts", "true"], "the problem fails on its first batch"),
        (["--batch_size", "64"], "a set has 1 batches, and the team"),
    ],
)
def test_what_cannot_be_sharded(comm: Any, folder: str, program: Any, options: list[str], said: str) -> None:
    _on(comm, 2)
    with pytest.raises(UserError, match=said):
        program(*SHARD, *options)
    assert not comm.is_root or not list(Path(folder).glob("*.h5"))


def test_it_takes_several_ranks(comm: Any, program: Any) -> None:
    if comm.size > 1:
        pytest.skip("on one rank")
    with pytest.raises(UserError, match="shared out over several ranks"):
        program(*SHARD)


@pytest.mark.parametrize("other", ["--tune", "--block=2", "--compile", "--on_error=record", "--precision=bf16"])
def test_what_does_not_go_with_it(other: str) -> None:
    with pytest.raises(UserError, match="--shard fsdp"):
        parse([*JOB, *SHARD, other], "test")
