"""Faults of the disk and of those who keep house on it: full, refusing, read-only, removed, renamed, shared."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_table
import pytest
from programs import (
    PROBLEMS,
    PROGRAM,
    TINY,
    WRITERS,
    Finished,
    Job,
    assert_same_landscape,
    each_writer,
    listing,
    log_lines,
    parallel_h5py,
    read,
    run_program,
)

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

JOB = ("--problem", TINY, "--x=-1:1:12", "--y=-1:1:10", "--plot", "false")
MODULE = TINY.removesuffix(":tiny")
OURS = "hpc_landscape: error: "
END = 30.0  # seconds within which a run ends after a fault
LOSS = 2.0  # seconds of finished points that a fault may cost


@pytest.fixture
def check(tmp_path: Path, program: Callable[..., Finished]) -> Callable[..., None]:
    """Goes on with a file to its end where it is unfinished, and compares it with an undisturbed run."""

    def same(file: Path, *more: object) -> None:
        finished = program(*JOB, "--output", file, *more)
        assert finished.code == 0, finished
        assert program(*JOB, "--output", tmp_path / "undisturbed.h5").code == 0
        assert_same_landscape(file, tmp_path / "undisturbed.h5")

    return same


def _mount(*arguments: object) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, and mount")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a small disk of that size."""
    made: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", folder], check=True)


def _one_line(finished: Finished, *words: str) -> None:
    """A mistake to mend: said once, and nothing else but what the launcher adds."""
    assert finished.code == 2, finished
    assert finished.err.count(OURS) == 1 and "Traceback" not in finished.err, finished
    assert [word for word in words if word not in finished.err] == [], finished


def _safe(log: Path, when: float) -> set[str]:
    """Points that had been finished 2 s before."""
    return {line.what for line in log_lines(log, "point") if line.time < when - LOSS}


def _lost(file: Path, log: Path, when: float, *more: object) -> tuple[int, int]:
    """(points finished 2 s before the fault, how many of them are computed again by a run that goes on with file)."""
    before, safe = len(log_lines(log)), _safe(log, when)
    finished = run_program(*JOB, "--output", file, "--problem.log", log, *more, folder=file.parent)
    assert finished.code == 0, finished
    points = [line.what for line in log_lines(log)[before:] if line.kind == "point"]
    again = {*points[1:]}  # the first one is finished, and computed once more to be compared
    assert not safe & again
    return len(safe), len(safe & again)


# Full


@pytest.mark.parametrize("ranks", [None, 2])
def test_full_while_laying_out(disk: Callable[[str], Path], ranks: int | None) -> None:
    """No room for the points; for what is kept with them; for HDF5's own, of which the system tells."""
    whole = disk("10m")
    finished = run_program(*JOB, "--x=-1:1:100", "--save_model", "--dry_run", folder=whole)
    assert finished.code == 0, finished
    sizes = {"4k": "4.0 KiB are free there", "24k": "24.0 KiB are free there", "40k": "No space left on device"}
    for size, why in sizes.items() if ranks is None else [("40k", sizes["40k"])]:
        small = disk(size)
        start = time.monotonic()
        finished = run_program(*JOB, "--x=-1:1:100", "--save_model", folder=small, ranks=ranks)
        _one_line(finished, why)
        assert listing(small) == {}
        fault_table.record(
            "disk full while the file is laid out",
            seconds=time.monotonic() - start,
            then="exit 2, one line, no file left",
        )


@pytest.mark.parametrize("writer", WRITERS)
def test_full_while_writing(disk: Callable[[str], Path], check: Callable[..., None], writer: str) -> None:
    """The file has all its space from the beginning: a disk that fills up changes nothing."""
    folder = disk("2m")
    log = folder.parent / "log"
    options = ["--problem.log", log, "--problem.delay", 0.1, "--writer", writer]
    with Job([*PROGRAM, *JOB, *options], 2, folder) as job:
        job.until(lambda: (folder / "landscape.h5").exists() and read(folder / "landscape.h5", "done").sum() > 4)
        time.sleep(LOSS)
        with pytest.raises(OSError, match="No space left"), open(folder / "fills", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        when = time.time()
        finished = job.wait()
    assert finished.code == 0 and finished.err == "", finished
    safe = len(_safe(log, when))
    check(folder / "landscape.h5")
    then = "runs on to its end, exit 0: the same bits"
    fault_table.record("disk full while points are written", writer, finished=safe, then=then)


@pytest.mark.parametrize("writer", WRITERS)
def test_writes_are_refused(tmp_path: Path, check: Callable[..., None], writer: str) -> None:
    """A quota, a broken disk, a server gone: from now on every write fails. Rank 0 is in the middle of a long point."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    options = ["--problem.log", log, "--problem.hold", tmp_path / "never", "--problem.hold_at", 4, "--writer", writer]
    with Job([*PROGRAM, *JOB, *options, "--problem.delay", 0.2], 2, folder) as job:
        job.until(lambda: log_lines(log, "holding"))
        time.sleep(LOSS + 1)  # what was finished before is safe
        when, start = time.time(), time.monotonic()
        for pid in {line.pid for line in log_lines(log, "begin")}:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, 1))
        finished = job.wait(END)
        seconds = time.monotonic() - start
    _one_line(finished, "landscape.h5", "cannot be written", "the same command goes on")
    done = read(folder / "landscape.h5", "done").sum()
    assert 4 < done < 120
    safe, lost = _lost(folder / "landscape.h5", log, when, "--writer", "gather")
    check(folder / "landscape.h5")
    then = "exit 2, one line; resumed: the same bits"
    fault_table.record("every write refused", writer, finished=safe, lost=lost, seconds=seconds, then=then)


# Removed, renamed, replaced, read-only

BY_HAND = {
    "output directory removed": lambda folder: shutil.rmtree(folder),
    "output file renamed": lambda folder: (folder / "landscape.h5").rename(folder / "other.h5"),
    "output file replaced by another": lambda folder: (
        (folder / "landscape.h5").rename(folder / "other.h5"),
        (folder / "landscape.h5").write_bytes(b"another"),
    ),
}


@pytest.mark.parametrize(("writer", "what"), each_writer(list(BY_HAND), ["output file renamed"]))
def test_moved_by_hand(tmp_path: Path, check: Callable[..., None], writer: str, what: str) -> None:
    """Noticed within seconds, while rank 0 is in the middle of a long point: it does not write on for nobody."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    options = ["--problem.log", log, "--problem.hold", tmp_path / "never", "--problem.hold_at", 4, "--writer", writer]
    options += ["--output", folder / "landscape.h5", "--problem.delay", 0.2]
    with Job([*PROGRAM, *JOB, *options], 2, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        time.sleep(LOSS + 1)
        when, start = time.time(), time.monotonic()
        BY_HAND[what](folder)
        finished = job.wait(END)
        seconds = time.monotonic() - start
    _one_line(finished, "landscape.h5", "was removed, renamed or replaced while it was being written")
    if what == "output directory removed":
        assert not folder.exists()
        then = "exit 2, one line; the file is gone, as asked for"
        fault_table.record(what, writer, seconds=seconds, then=then)
        return
    if "replaced" in what:
        assert (folder / "landscape.h5").read_bytes() == b"another"
    (folder / "other.h5").rename(folder / "landscape.h5")
    safe, lost = _lost(folder / "landscape.h5", log, when)
    check(folder / "landscape.h5")
    then = "exit 2, one line; moved back and resumed: the same bits"
    fault_table.record(what, writer, finished=safe, lost=lost, seconds=seconds, then=then)


@pytest.mark.parametrize("writer", WRITERS)
def test_directory_made_read_only(tmp_path: Path, check: Callable[..., None], writer: str) -> None:
    """Mounted read-only, which binds root too. The file is open: the run ends as it would have."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    options = ["--problem.log", log, "--problem.delay", 0.1, "--writer", writer, "--output", folder / "landscape.h5"]
    with Job([*PROGRAM, *JOB, *options, "--plot", "true"], 2, tmp_path) as job:
        job.until(lambda: (folder / "landscape.h5").exists() and read(folder / "landscape.h5", "done").sum() > 4)
        time.sleep(LOSS)
        when = time.time()
        _mount("--bind", folder, folder)
        try:
            _mount("-o", "remount,bind,ro", folder)
            with pytest.raises(OSError, match="Read-only"):
                (folder / "new").touch()
            finished = job.wait()
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    assert finished.code == 0 and finished.err == "", finished
    assert "no picture" in finished.out
    safe = len(_safe(log, when))
    check(folder / "landscape.h5")
    then = "runs on to its end, exit 0: the same bits"
    fault_table.record("output directory made read-only", writer, finished=safe, then=then)


# Two jobs, one output


@pytest.mark.parametrize("writer", WRITERS)
def test_two_jobs_on_one_output(tmp_path: Path, check: Callable[..., None], writer: str) -> None:
    """The second says so and leaves, with --overwrite too; the first does not notice."""
    log, hold = tmp_path / "log", tmp_path / "hold"
    options = ["--writer", writer, "--problem.log", log, "--problem.hold", hold, "--problem.hold_at", 3]
    with Job([*PROGRAM, *JOB, *options], 2, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        time.sleep(1.5)  # for what is finished to be written
        before = (tmp_path / "landscape.h5").read_bytes()
        for more, ranks in (([], 2), (["--overwrite"], None)):
            start = time.monotonic()
            second = run_program(*JOB, *more, folder=tmp_path, ranks=ranks)
            _one_line(second, "landscape.h5 is being written by another run")
            assert (tmp_path / "landscape.h5").read_bytes()[:1000] == before[:1000]
            seconds = time.monotonic() - start
            then = "exit 2, one line; the first runs on: the same bits"
            fault_table.record("a second job on the same output", writer, seconds=seconds, then=then)
        hold.touch()
        finished = job.wait()
    assert finished.code == 0 and len(log_lines(log, "point")) == 120, finished
    check(tmp_path / "landscape.h5")


def test_two_jobs_at_the_same_moment(tmp_path: Path, check: Callable[..., None]) -> None:
    """One of them computes, whichever it is."""
    log = tmp_path / "log"
    command = [*PROGRAM, *JOB, "--problem.log", log, "--problem.delay", 0.05]
    with Job(command, None, tmp_path) as one, Job(command, None, tmp_path) as other:
        ends = [one.wait(), other.wait()]
    assert sorted(finished.code for finished in ends) == [0, 2], ends
    _one_line(next(finished for finished in ends if finished.code), "is being written by another run")
    assert len(log_lines(log, "point")) == 120
    check(tmp_path / "landscape.h5")
    fault_table.record("two jobs at the same moment", tries=1, then="one exits 2 with one line: the same bits")


# Time


def test_a_stopped_root(tmp_path: Path, check: Callable[..., None]) -> None:
    """Rank 0 is stopped for 30 s (SIGSTOP), with both writers at once: the others compute on, and all ends well."""
    writers = ["gather", "parallel"] if parallel_h5py() else ["gather"]
    jobs = {}
    try:
        for writer in writers:
            (tmp_path / writer).mkdir()
            options = ["--problem.log", tmp_path / writer / "log", "--problem.delay", 0.2, "--writer", writer]
            jobs[writer] = Job([*PROGRAM, *JOB, *options], 2, tmp_path / writer)
        pids = {}
        for writer, job in jobs.items():
            log = tmp_path / writer / "log"
            job.until(lambda log=log: len(log_lines(log, "point")) > 4)
            pids[writer] = {line.rank: line.pid for line in log_lines(log, "begin")}[0]
            os.kill(pids[writer], 19)
        time.sleep(30)
        for writer, job in jobs.items():  # rank 1 does all of its points, however slow the machine: rank 0 is stopped
            log = tmp_path / writer / "log"
            job.until(lambda log=log: sum(line.rank == 1 for line in log_lines(log, "point")) == 60)
            start = time.monotonic()
            os.kill(pids[writer], 18)
            finished = job.wait()
            assert finished.code == 0 and finished.err == "", finished
            seconds = time.monotonic() - start
            assert len(log_lines(tmp_path / writer / "log", "point")) == 120
            then = "runs on to its end, exit 0: the same bits"
            fault_table.record("rank 0 stopped for 30 s", writer, seconds=seconds, then=then)
    finally:
        for job in jobs.values():
            job.__exit__()
    for writer in writers:
        check(tmp_path / writer / "landscape.h5")


@pytest.mark.parametrize("writer", WRITERS)
def test_fsync(tmp_path: Path, writer: str) -> None:
    """What a node that loses power may lose: counted at an interval of 1 s instead of 30, as long as points arrive."""
    counting = f"{PROBLEMS / 'counting_problem_for_tests.py'}:counting"
    log = tmp_path / "log"
    job = ["--problem", counting, "--x=-1:1:40", "--y=none", "--plot", "false", "--writer", writer]
    finished = run_program(*job, "--problem.log", log, "--problem.every", 1.0, folder=tmp_path, ranks=2)
    assert finished.code == 0, finished
    begin = min(line.time for line in log_lines(log, "point"))
    end = max(line.time for line in log_lines(log, "point"))
    assert end - begin > 4
    synced = [line for line in log_lines(log, "fsync") if line.what.endswith("landscape.h5")]
    times = [begin, *(line.time for line in synced if line.time > begin)]
    assert times[-1] >= end  # and once more when all is written
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert len(gaps) > 2 and max(gaps) < 10, gaps
    assert {line.rank for line in synced} == {0}  # one rank of each node


def test_the_interval_of_fsync_is_what_is_promised() -> None:
    from hpc_landscape.store import writer

    assert writer.SYNC_EVERY + writer.WRITE_EVERY <= 31 and 2 * writer.WRITE_EVERY < LOSS


def test_a_damaged_file_is_not_gone_on_with(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """The whole program on what test_layout.py has the reader try 50 times: one line, and the file is as it was."""
    assert program(*JOB, "--output", tmp_path / "whole.h5").code == 0
    content, file = (tmp_path / "whole.h5").read_bytes(), tmp_path / "landscape.h5"
    draw = random.Random(0)
    for length in [draw.randrange(1, len(content) - 1) for _ in range(8)]:
        file.write_bytes(content[:length])
        for more in ([], ["--overwrite"]):
            finished = program(*JOB, *more)
            _one_line(finished, "landscape.h5", "left as it is")
            assert file.read_bytes() == content[:length]
        then = "exit 2, one line, the file is as it was, with --overwrite too"
        fault_table.record("going on with a file cut short", tries=2, then=then)
    for _ in range(8):
        damaged = bytearray(content)
        for place in (draw.randrange(0, 48), draw.randrange(48, 2000)):  # superblock, then objects' headers
            damaged[place] ^= draw.randrange(1, 256)
        file.write_bytes(damaged)
        finished = program(*JOB)
        assert finished.code in (0, 2) and "Traceback" not in finished.err, finished
        if finished.code == 2:
            _one_line(finished, "landscape.h5")
        assert file.read_bytes() == damaged
        then = "exit 2, one line; or complete, as it was: never written to"
        fault_table.record("going on with a file whose headers are damaged", then=then)
