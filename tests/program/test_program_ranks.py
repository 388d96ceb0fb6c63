"""The program on several ranks: the same file from any number, whoever writes it, and nobody waits for rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
from programs import (
    LIMIT,
    PROGRAM,
    TINY,
    WRITERS,
    Finished,
    Job,
    assert_same_landscape,
    log_lines,
    read,
    run_program,
)

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

JOB = ("--problem", TINY, "--x=-1:1:5", "--y=-0.5:1:4", "--plot", "false")
BATCHES = ("--batch_size", "20")  # of 48 samples: an unequal last batch


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one process, without mpirun."""
    folder = tmp_path_factory.mktemp("reference")
    finished = run_program(*JOB, *BATCHES, folder=folder)
    assert finished.code == 0, finished
    return folder / "landscape.h5"


@pytest.fixture(scope="module")
def in_one_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of points that the tiny problem logs."""
    folder = tmp_path_factory.mktemp("in_one_batch")
    finished = run_program(*JOB, folder=folder)
    assert finished.code == 0, finished
    return folder / "landscape.h5"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("writer", WRITERS)
def test_same_file_from_any_number_of_ranks(tmp_path: Path, reference: Path, writer: str, ranks: int) -> None:
    finished = run_program(*JOB, *BATCHES, "--writer", writer, folder=tmp_path, ranks=ranks)
    assert finished.code == 0, finished
    assert f"ranks        {ranks} on 1 node" in finished.out
    assert ("start-up     imports " in finished.out) == (ranks > 1)
    assert f"{writer.capitalize()}Store" in finished.out
    assert finished.out.count("finished ") == 1 and finished.err == ""
    assert_same_landscape(tmp_path / "landscape.h5", reference)
    with xarray.open_dataset(tmp_path / "landscape.h5", engine="h5netcdf") as data:
        assert data["loss"].dims == ("x", "y") and data["loss"].shape == (5, 4)
        assert data["y"].values.tolist() == np.linspace(-0.5, 1, 4).tolist()
        assert data.attrs["ranks"] == ranks
    assert [path.name for path in tmp_path.iterdir()] == ["landscape.h5"]


@pytest.mark.parametrize("writer", WRITERS)
def test_fewer_points_than_ranks(tmp_path: Path, program: Callable[..., Finished], writer: str) -> None:
    job = ("--problem", TINY, "--x=-1:1:2", "--y", "none", "--plot", "false")
    finished = run_program(
        *job, "--writer", writer, "--problem.log", "log", "--output", "many.h5", folder=tmp_path, ranks=4
    )
    assert finished.code == 0, finished
    assert len(log_lines(tmp_path / "log", "point")) == 2
    assert program(*job, "--output", "one.h5").code == 0
    assert_same_landscape(tmp_path / "many.h5", tmp_path / "one.h5")


@pytest.mark.parametrize("writer", WRITERS)
def test_other_ranks_points_reach_the_disk_while_rank_0_computes(
    tmp_path: Path, writer: str, record_property: Callable[[str, object], None]
) -> None:
    """Rank 0's first point lasts until the others' points, all of them, are seen in the file."""
    ranks, size, hold, log, file = 3, 30, tmp_path / "hold", tmp_path / "log", tmp_path / "landscape.h5"
    arguments = ["--problem", TINY, "--x=-1:1:6", "--y=-1:1:5", "--plot", "false", "--writer", writer]
    arguments += ["--problem.log", log, "--problem.hold", hold, "--problem.delay", 0.2, "--schedule", "strided"]
    seen = np.full(size, np.nan)
    theirs = np.arange(size) % ranks != 0

    def look() -> bool:
        if file.exists():
            done = read(file, "done").reshape(-1).astype(bool)
            seen[done & np.isnan(seen)] = time.time()
        return bool((done := ~np.isnan(seen)).sum() == theirs.sum() and (done == theirs).all())

    with Job([*PROGRAM, *arguments], ranks, tmp_path) as job:
        job.until(look)
        assert [line.rank for line in log_lines(log, "holding")] == [0]
        hold.touch()
        finished = job.wait()
    assert finished.code == 0, finished
    assert read(file, "done").all()
    delays = []
    for rank in range(1, ranks):  # a rank computes its points in order
        computed = [line.time for line in log_lines(log, "point") if line.rank == rank]
        delays += list(seen[rank::ranks] - computed)
    record_property("slowest_point_reached_the_disk_after_seconds", float(max(delays)))
    print(f"points reached the disk after {min(delays):.2f} to {max(delays):.2f} s")
    assert max(delays) < 2 + 8  # the promise is 2 s; the rest is for a machine busy with other things


@pytest.mark.parametrize("writer", WRITERS)
def test_a_held_rank_gives_away_what_it_has_not_begun(tmp_path: Path, in_one_batch: Path, writer: str) -> None:
    """Rank 0, then 2: its second point lasts until all others are seen in the file, which is that of one process."""
    for held, ranks in ((0, 2), (2, 3)):
        hold, log, file = tmp_path / f"hold{held}", tmp_path / f"log{held}", tmp_path / f"{held}.h5"
        arguments = [*JOB, "--writer", writer, "--problem.log", log, "--output", file]
        arguments += ["--problem.hold", hold, "--problem.hold_rank", held, "--problem.hold_at", 2]
        with Job([*PROGRAM, *arguments], ranks, tmp_path) as job:
            job.until(lambda file=file: file.exists() and read(file, "done").sum() == 19)
            hold.touch()
            finished = job.wait()
        assert finished.code == 0 and "fp32, stealing" in finished.out, finished
        points = log_lines(log, "point")
        assert len(points) == len({line.what for line in points}) == 20  # each once
        assert sum(line.rank == held for line in points) == 2
        assert_same_landscape(file, in_one_batch)


def test_plain_slices(tmp_path: Path, in_one_batch: Path) -> None:
    """With --schedule strided nobody takes over: a held rank's points are not in the file; it goes on stealing."""
    hold, log, file = tmp_path / "hold", tmp_path / "log", tmp_path / "landscape.h5"
    arguments = [*JOB, "--problem.log", log, "--problem.hold", hold, "--schedule", "strided"]
    with Job([*PROGRAM, *arguments], 2, tmp_path) as job:
        job.until(lambda: file.exists() and read(file, "done").sum() == 10)
        time.sleep(0.5)
        assert {line.rank for line in log_lines(log, "point")} == {1} and read(file, "done").sum() == 10
    finished = run_program(*JOB, folder=tmp_path, ranks=3)
    assert finished.code == 0 and "10 still to do" in finished.out, finished
    assert_same_landscape(file, in_one_batch)


def test_dataloader_with_workers_under_mpirun(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Forkserver workers import the factory's file again, and must not start MPI."""
    job = ("--problem", TINY, "--x=-1:1:3", "--y", "none", "--plot", "false")
    finished = run_program(
        *job, "--problem.loader_batch", 20, "--problem.workers", 2, "--output", "workers.h5", folder=tmp_path, ranks=2
    )
    assert finished.code == 0, finished
    assert "Traceback" not in finished.err
    assert program(*job, "--batch_size", 20, "--output", "tensors.h5").code == 0
    assert_same_landscape(tmp_path / "workers.h5", tmp_path / "tensors.h5")


def test_dry_run_on_two_ranks(tmp_path: Path) -> None:
    finished = run_program(*JOB, "--dry_run", folder=tmp_path, ranks=2)
    assert finished.code == 0, finished
    assert "10 on the busiest of 2 ranks" in finished.out
    assert finished.out.count("dry run: nothing was written") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_and_settings_are_printed_once(tmp_path: Path) -> None:
    for option, words in (("--help", "exit codes:"), ("--print_config", "batch_size:")):
        finished = run_program(option, folder=tmp_path, ranks=2, limit=LIMIT)
        assert finished.code == 0 and finished.out.count(words) == 1, finished
    finished = run_program("--help", "nonsense", folder=tmp_path, ranks=2, limit=LIMIT)
    assert finished.code == 2 and finished.err.count("--help nonsense: there is no kind of this name") == 1, finished
