"""--extend: a larger extent or a finer grid takes the points that an earlier file has, and that file stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from programs import TINY, Finished, assert_same_landscape, listing, log_lines, read, run_program

from hpc_landscape.problems import digits
from hpc_landscape.store.earlier import Taken

OPTIONS = ("--problem", TINY, "--plot", "false")
OLD = (*OPTIONS, "--x=-1:1:5", "--y=-1:1:3", "--output", "old.h5")
FINER = (*OPTIONS, "--x=-1:1:9", "--y=-1:1:5")
EXTENDED = (*FINER, "--extend", "old.h5", "--output", "new.h5")
MADE: list[bytes] = []
DIGITS = ("--problem.epochs", 1, "--problem.width", 2, "--samples", 64, "--y=none", "--plot", "false")


@pytest.fixture
def old(tmp_path: Path, program: Callable[..., Finished]) -> Path:
    """A complete file of 15 points, computed once."""
    if not MADE:
        finished = program(*OLD)
        assert finished.code == 0, finished
        MADE.append((tmp_path / "old.h5").read_bytes())
    (tmp_path / "old.h5").write_bytes(MADE[0])
    return tmp_path / "old.h5"


def as_it_is(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), os.stat(path).st_mtime_ns


def test_a_finer_grid(old: Path, tmp_path: Path, program: Callable[..., Finished]) -> None:
    before = as_it_is(old)
    finished = program(*EXTENDED, "--dry_run")
    assert finished.code == 0 and "points       30 on" in finished.out and sorted(listing(tmp_path)) == ["old.h5"]
    finished = program(*EXTENDED, "--problem.log", "log")
    assert finished.code == 0 and "45 points, 15 taken from old.h5, 30 still to do" in finished.out, finished
    assert len({line.what for line in log_lines("log", "point")}) == 31, "one that is taken is computed again"
    assert as_it_is(old) == before
    for name in ("loss", "accuracy", "wall_time"):
        assert read("new.h5", name)[::2, ::2].tobytes() == read(old, name).tobytes()
    assert program(*FINER, "--output", "fresh.h5").code == 0
    assert_same_landscape("new.h5", "fresh.h5")
    assert not read("new.h5", "runs/mixed").any()
    with h5py.File(old) as file:
        created = file.attrs["created"]
    assert f"all done, of which 15 are from old.h5 of {created} (--extend)" in program("info", "new.h5").out
    finished = program(*OPTIONS, "--x=-1:1:3", "--y=-1:1:3", "--extend", "new.h5", "--output", "coarser.h5")
    assert finished.code == 0 and "0 still to do" in finished.out and "finished     9 points" in finished.out, finished
    assert read("coarser.h5", "loss").tobytes() == read(old, "loss")[::2].tobytes()


def test_a_larger_extent(old: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an unfinished file, whose point that failed is not taken; and gone on with, when the old one is no more."""
    with h5py.File(old, "r+") as file:
        file["done"][0, :2] = 0
        file["failed"][4, 2] = 1
        file["loss"][4, 2] = file["loss"][0, 0] = np.nan
    before = as_it_is(old)
    larger = (*OPTIONS, "--x=-2:1:7", "--y=-1:2:4")
    extended = (*larger, "--extend", "old.h5", "--output", "new.h5")

    def breaks_off(self: Taken, file: h5py.File, names: Any) -> None:
        real(self, file, names)
        raise KeyboardInterrupt

    real = Taken.fill
    with monkeypatch.context() as patched:
        patched.setattr(Taken, "fill", breaks_off)
        assert program(*extended).code != 0
    assert sorted(listing(old.parent)) == ["old.h5"], "a file that has taken only some is never there"

    finished = program(*extended, "--problem.fault", "SIGTERM")
    assert finished.code == 75 and "28 points, 12 taken from old.h5, 16 still to do" in finished.out, finished
    assert as_it_is(old) == before
    with h5py.File("new.h5", "r+") as file:
        file["done"][:, 0] = 0
        file["loss"][:, 0] = 99
    old.unlink()
    finished = program(*extended)
    assert finished.code == 0 and "going on" in finished.out and "note" not in finished.out, finished
    assert program(*larger, "--output", "fresh.h5").code == 0
    assert_same_landscape("new.h5", "fresh.h5")
    finished = program(*larger, "--extend", "fresh.h5", "--output", "new.h5")
    assert finished.code == 0 and "takes nothing: new.h5 is there already" in finished.out, finished


@pytest.mark.parametrize("case", ["coordinates", "environment"])
def test_what_is_the_same_but_for_rounding(tmp_path: Path, program: Callable[..., Finished], case: str) -> None:
    """Coordinates, or where values were computed: then a run that goes on compares them as such."""
    assert program(*OPTIONS, "--x=0:0.3:4", "--y=none", "--output", "old.h5").code == 0
    if case == "environment":
        with h5py.File("old.h5", "r+") as file:
            file.attrs["processor"] = "another"
    end, n = ("0.5", 6) if case == "coordinates" else ("0.3", 7)
    extended = (*OPTIONS, f"--x=0:{end}:{n}", "--y=none", "--extend", "old.h5", "--output", "new.h5")
    finished = program(*extended)
    assert finished.code == 0 and "4 taken from old.h5" in finished.out, finished
    apart = not set(read("old.h5", "x")) <= set(read("new.h5", "x"))
    assert apart == (case == "coordinates") and read("new.h5", "runs/mixed").all()
    with h5py.File("new.h5", "r+") as file:
        file["done"][-1] = 0
        file["loss"][0] = np.nextafter(file["loss"][0], 9)
    assert program(*extended).code == 0


def test_the_model_is_not_trained_again(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(*DIGITS, "--x=-1:1:3", "--output", "old.h5").code == 0
    monkeypatch.setattr(digits, "fit", lambda *_: pytest.fail("it trains again"))
    finished = program(*DIGITS, "--x=-1:1:5", "--output", "new.h5", "--extend", "old.h5")
    assert finished.code == 0 and "as trained before, from old.h5" in finished.out, finished
    assert read("new.h5", "loss")[::2].tobytes() == read("old.h5", "loss").tobytes()
    finished = program(*DIGITS, "--x=-1:1:9", "--output", "third.h5", "--extend", "new.h5")
    assert finished.code == 0, finished


@pytest.mark.parametrize("mode", [["--tune"], ["--precision", "bf16", "--max_error", 1e-9]], ids=["tune", "given up"])
def test_the_mode_is_the_old_files(tmp_path: Path, program: Callable[..., Finished], mode: list[Any]) -> None:
    """What was measured, or given up, for that one, holds for the new one; of a dry run, too."""
    job = (*OPTIONS, *mode, "--y=none")
    assert program(*job, "--x=-1:1:5", "--output", "old.h5").code == 0
    extended = (*job, "--x=-1:1:9", "--extend", "old.h5", "--output", "new.h5")
    for options in (["--dry_run"], []):
        finished = program(*extended, *options)
        assert finished.code == 0 and "5 taken from old.h5" in finished.out, finished
        assert "tuned" not in finished.out and ("as the file has it" in finished.out) == ("bf16" in mode)
    for name in ("execution", "tuned", "given_up"):
        with h5py.File("old.h5") as old, h5py.File("new.h5") as new:
            assert old.attrs.get(name) == new.attrs.get(name)
    assert program(*extended).code == 0


@pytest.mark.slow
@pytest.mark.mpi_stack
def test_on_ranks(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Two; the directions are drawn again."""
    assert program(*OLD, "--save_directions", "false").code == 0
    finished = run_program(*EXTENDED, folder=tmp_path, ranks=2)
    assert finished.code == 0 and "15 taken from old.h5, 30 still to do" in finished.out, finished
    finished = run_program(*EXTENDED[:-1], "all.h5", "--x=-1:1:5", "--y=-1:1:3", folder=tmp_path, ranks=2)
    assert finished.code == 0 and "0 still to do" in finished.out, finished
    assert read("all.h5", "loss").tobytes() == read("old.h5", "loss").tobytes()
    assert program(*FINER, "--output", "fresh.h5").code == 0
    assert_same_landscape("new.h5", "fresh.h5")


def test_a_stop_counts_what_was_taken(old: Path, program: Callable[..., Finished]) -> None:
    """Two points were computed, of which one was in the old file: to compare."""
    stop = ("--problem.fault", "SIGUSR1", "--problem.fault_at", 2)
    finished = program(*EXTENDED, *stop)
    assert finished.code == 75 and "stopped      16 of 45 points are in new.h5" in finished.out, finished
    stop = ("--problem.fault", "SIGUSR1", "--problem.fault_at", 1)  # before any that is not compared
    finished = program(*EXTENDED, *stop, "--overwrite", "--grace", 60)
    assert finished.code == 1 and "the stop came before one point was finished" in finished.err, finished


def test_refined_and_extended(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """A dry run has the points of the first round from the old file: there is no new one."""
    axes = (*OPTIONS, "--refine", 0.05, "--x=-1:1:17", "--y=-1:1:17")
    assert program(*axes, "--output", "old.h5").code == 0
    there = int(read("old.h5", "done").sum())
    finer = (*OPTIONS, "--refine", 0.05, "--x=-1:1:33", "--y=-1:1:33", "--extend", "old.h5", "--output", "new.h5")
    dry = program(*finer, "--dry_run")
    assert dry.code == 0 and f"{there} taken from old.h5, at most {33**2 - there} still to do" in dry.out, dry
    assert sorted(listing(tmp_path)) == ["old.h5"]
    finished = program(*finer)
    assert finished.code == 0, finished
    now = [line for line in finished.out.splitlines() if line.startswith("refinement   loss to")]
    assert now and now[0] in dry.out
    taken = read("old.h5", "done").astype(bool)
    assert read("new.h5", "loss")[::2, ::2][taken].tobytes() == read("old.h5", "loss")[taken].tobytes()


REFUSED: dict[str, tuple[list[Any], str]] = {
    "itself": (["--output", "old.h5"], "--extend old.h5: is the --output itself"),
    "itself, to be overwritten": (["--output", "link.h5", "--overwrite"], "--extend old.h5: is the --output itself"),
    "missing": (["--extend", "none.h5"], "--extend none.h5: no such file"),
    "a folder": (["--extend", "."], "--extend . is a directory"),
    "text": (["--extend", "text.h5"], "--extend text.h5 is not an HDF5 file"),
    "cut short": (["--extend", "cut.h5"], "--extend cut.h5 is damaged or cut short"),
    "not ours": (["--extend", "foreign.h5"], "--extend foreign.h5 is an HDF5 file but not one of this program's"),
    "nothing done": (["--extend", "begun.h5"], "--extend begun.h5: none of the points that are done there"),
    "nothing shared": (["--x=-0.9:0.9:4"], "--extend old.h5: none of the points that are done there"),
    "axes": (["--y=none"], "--extend old.h5: it is of 2 axes, and this run of 1"),
    "seed": (["--seed", 1], "old.h5 is of another run: seed (0 there, 1 here)"),
    "metrics": (["--metrics", "loss"], "old.h5 is of another run: metrics (loss,accuracy there, loss here)"),
    "architecture": (["--problem.hidden", 6], "old.h5 holds directions of another model"),
    "values": (["--extend", "values.h5"], "values.h5 is of another run: at (-1, -1) loss is 99 there, and "),
    "shape": (["--extend", "shape.h5"], "--extend shape.h5: 'loss' is missing or of another shape there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(old: Path, tmp_path: Path, program: Callable[..., Finished], case: str) -> None:
    """In one line, and nothing is written."""
    options, words = REFUSED[case]
    (tmp_path / "text.h5").write_text("mine")
    (tmp_path / "cut.h5").write_bytes(old.read_bytes()[:3000])
    (tmp_path / "link.h5").symlink_to(old)
    with h5py.File("foreign.h5", "w") as file:
        file["mine"] = 3
    for name in ("begun.h5", "values.h5", "shape.h5"):
        shutil.copy(old, name)
        with h5py.File(name, "r+") as file:
            if name == "begun.h5":
                file["done"][...] = 0
            elif name == "values.h5":
                file["loss"][0, 0] = 99
            else:
                del file["loss"]
                file["loss"] = np.zeros((5, 3, 2))
    before, stamp = listing(tmp_path), as_it_is(old)
    finished = program(*EXTENDED, *options)
    assert finished.code == 2 and f"hpc_landscape: error: {words}" in finished.err, finished
    assert len(finished.err.splitlines()) == 1
    assert listing(tmp_path) == before and as_it_is(old) == stamp
