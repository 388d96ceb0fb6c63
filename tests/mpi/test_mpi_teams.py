"""Ranks that evaluate points together: to be run inside MPI. Each value is to the bit that of a rank alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import PROBLEMS, read

from hpc_landscape import evaluation
from hpc_landscape.arguments import parse
from hpc_landscape.campaign.teams import number_of_teams
from hpc_landscape.run import run

pytestmark = pytest.mark.mpi_stack

MODULE = PROBLEMS / "team_problem_for_tests.py"
JOB = ("--problem", f"{MODULE}:problem", "--x=-1:1:3", "--y", "none", "--batch_size", "4", "--plot", "false")
DRAWS = ("--x=-4:0:3", "--problem.draws", "0.7")
NOT_SHARED = ("--problem.draws", "--problem.memory")
WAYS = {
    "batches of unequal size": (),
    "each batch's own statistics": ("--bn", "batch"),
    "a loader": ("--problem.loader", "true", "--resident", "0"),
    "a stream, three points on each batch": ("--problem.stream", "true", "--block", "3"),
    "points in one pass": ("--block", "3"),
    "double precision": ("--precision", "fp64"),
    "half precision": ("--precision", "bf16"),
    "metrics that want all data": ("--metrics", "loss,gradient_norm,accuracy(k=2)"),
    "weights by target": ("--metrics", f"loss,{MODULE}:OnlyOfClass(kind=1)"),
    "fewer batches than ranks": ("--batch_size", "128"),
    "random numbers in the model": ("--problem.draws", "0"),
    "random numbers at one of the points on each batch": ("--problem.stream", "true", "--block", "3", *DRAWS),
    "a model that remembers the batch before": ("--problem.memory", "true"),
}


@pytest.fixture
def value_of(comm: Any, folder: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run's values, of every metric, and what it says, on all ranks."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on nodes of 2 + 1 ranks, too

    def compute(*options: str, name: str = "landscape.h5") -> tuple[list[np.ndarray], str]:
        before = os.getcwd()
        os.chdir(folder)
        try:
            settings, _ = parse([*JOB, *options, "--output", name], "test")
            assert run(settings, comm) == 0
        finally:
            os.chdir(before)
        said = comm.bcast(capfd.readouterr().out)
        names = [metric.split("(")[0].split(":")[-1] for metric in settings.for_evaluation.metric_names]
        known = {"accuracy": "accuracy_top2", "OnlyOfClass": "only_of_class"}
        names = [known.get(metric, metric) for metric in names] or ["loss", "accuracy"]
        return comm.bcast(read(Path(folder) / name, *names) if comm.is_root else None), said

    return compute


@pytest.mark.parametrize("way", WAYS)
def test_values_are_those_of_a_rank_alone(comm: Any, value_of: Any, way: str) -> None:
    if comm.size not in (2, 3):
        pytest.skip("on 2 or 3 ranks")
    alone, _ = value_of("--ranks_per_point", "1", *WAYS[way])
    together, said = value_of("--ranks_per_point", str(comm.size), *WAYS[way], name="together.h5")
    assert np.isfinite(alone[0]).all() and len(np.unique(alone[0])) == 3
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()
    if any(option in NOT_SHARED for option in WAYS[way]):
        assert "batches are not shared" in said
    elif way == "fewer batches than ranks":
        assert "a rank has one at least" in said
    else:
        assert f"teams        1 of {comm.size} ranks" in said


def test_points_are_shared_where_they_are_fewer_than_ranks(comm: Any, value_of: Any) -> None:
    alone, said = value_of("--ranks_per_point", "1", "--x=0:1:2")
    assert "teams" not in said
    together, said = value_of("--x=0:1:2", name="together.h5")
    assert ("teams        2 of" in said) == (comm.size > 2)
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_dry_run_tells_of_teams(comm: Any, folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    if comm.size == 1:
        pytest.skip("a team is of several ranks")
    options = ["--ranks_per_point", "2", "--dry_run", "--output", str(Path(folder) / "landscape.h5")]
    assert run(parse([*JOB, *options], "test")[0], comm) == 0
    said, count = comm.bcast(capfd.readouterr().out), comm.size // 2
    assert f"teams        {count} of" in said and f"on the busiest of {count} team" in said


def test_how_many_teams_there_are() -> None:
    assert number_of_teams("auto", 100, 8) == (8, "")
    assert number_of_teams("auto", 3, 8) == (3, "")
    assert number_of_teams("auto", 1, 8, batches=[4, 2]) == (2, "")
    assert number_of_teams(2, 100, 8) == (4, "")
    assert number_of_teams(1, 3, 8) == (8, "")
    assert number_of_teams(3, 100, 8) == (2, "--ranks_per_point 3: 8 ranks are no multiple of it")
    assert number_of_teams(9, 100, 8) == (1, "--ranks_per_point 9: 8 ranks are no multiple of it")
    assert number_of_teams(8, 100, 8, [3]) == (
        3,
        "--ranks_per_point 8: there are 3 batches, and a rank has one at least",
    )


def test_long_points_that_are_left_in_the_end_are_shared(
    comm: Any, value_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many points as ranks, and one more; the file is that of ranks alone."""
    if comm.size == 1:
        pytest.skip("a team is of several ranks")
    alone, said = value_of(f"--x=0:1:{comm.size + 1}")
    assert "teams" not in said
    monkeypatch.setattr(evaluation, "LONG", 0.0)
    together, said = value_of(f"--x=0:1:{comm.size + 1}", name="together.h5")
    assert f"teams        1 of {comm.size} ranks" in said
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()
