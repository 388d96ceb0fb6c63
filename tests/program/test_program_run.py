"""The program in one process: what it goes on with and what it refuses, and what it leaves as it was."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from programs import LIMIT, PROGRAM, TINY, Finished, Job, assert_same_landscape, environment, listing, log_lines, read

from hpc_landscape.problems import digits
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.run import run
from hpc_landscape.settings import Settings

pytestmark = pytest.mark.mpi_stack

JOB = ("--problem", TINY, "--x=-1:1:5", "--y=-1:1:3", "--plot", "false")
TINY_DIGITS = ("--problem.epochs", 1, "--problem.width", 2, "--samples", 64, "--x=-1:1:3", "--y=none")


@pytest.fixture
def stopped(tmp_path: Path, program: Callable[..., Finished]) -> Path:
    """A file in which 3 of 15 points are done."""
    finished = program(*JOB, "--problem.fault", "SIGTERM")
    assert finished.code == 75, finished
    assert read(tmp_path / "landscape.h5", "done").sum() == 3
    return tmp_path / "landscape.h5"


# Going on


def test_goes_on(stopped: Path, program: Callable[..., Finished]) -> None:
    finished = program(*JOB, "--problem.log", "log")
    assert finished.code == 0 and "12 still to do" in finished.out and "going on" in finished.out, finished
    points = [line.what for line in log_lines(stopped.parent / "log", "point")]
    assert len(points) == len({*points}) == 1 + 12, "one finished point is computed again, to be compared"
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(stopped, stopped.parent / "undisturbed.h5")


def test_complete_says_so(stopped: Path, program: Callable[..., Finished]) -> None:
    assert program(*JOB).code == 0
    before = listing(stopped.parent)
    finished = program(*JOB, "--problem.log", "log")
    assert finished.code == 0 and "is complete" in finished.out and "--overwrite" in finished.out, finished
    assert [line.kind for line in log_lines(stopped.parent / "log")] == ["begin"]
    (stopped.parent / "log").unlink()
    assert listing(stopped.parent) == before


OTHERS = {
    "seed": (["--seed", 1], ["seed (0 there, 1 here)"]),
    "data": (["--problem.data_seed", 1], ["data"]),
    "subset": (["--samples", 40], ["data"]),
    "warm-up subset": (["--warmup_samples", 40], ["warmup data"]),
    "metrics": (["--metrics", "loss"], ["metrics (loss,accuracy there, loss here)"]),
    "bn": (["--bn", "running"], ["bn (warmup there, running here)"]),
    "batch_size": (["--batch_size", 24], ["batch size (512 there, 24 here)"]),
    "precision": (["--precision", "fp64"], ["precision (fp32 there, fp64 here)"]),
    "grid": (["--x=-1:1:7"], ["grid (x=-1:1:5 x y=-1:1:3 there, x=-1:1:7 x y=-1:1:3 here)"]),
    "grid, dimensions": (["--y=none"], ["grid"]),
    "weights": (["--problem.weight_seed", 1], ["model"]),
    "architecture": (["--problem.hidden", 6], ["another model"]),
    "normalization": (["--normalization", "layer"], ["direction recipe", "layer"]),
    "distribution": (["--distribution", "uniform"], ["direction recipe", "uniform"]),
    "two things": (["--seed", 1, "--bn", "batch"], ["seed (0 there, 1 here)", "bn (warmup there, batch here)"]),
}


@pytest.mark.parametrize("case", [*OTHERS, "complete"])
def test_refuses_to_go_on_with_another_run(stopped: Path, program: Callable[..., Finished], case: str) -> None:
    """Also where all points are done: that file is no answer to what is asked."""
    if case == "complete":
        assert program(*JOB).code == 0
        case = "seed"
    options, words = OTHERS[case]
    before = listing(stopped.parent)
    finished = program(*JOB, *options)
    assert finished.code == 2, finished
    assert finished.err.startswith("hpc_landscape: error: landscape.h5") and len(finished.err.splitlines()) == 1
    assert [word for word in [*words, "--overwrite"] if word not in finished.err] == [], finished
    named = finished.err.partition("another run: ")[2].partition("; nothing is touched")[0]
    if case in ("seed", "metrics", "bn", "precision"):
        assert named == f"{words[0]} differs", "it is the only thing that differs"
    assert listing(stopped.parent) == before


def test_overwrite_starts_again(stopped: Path, program: Callable[..., Finished]) -> None:
    finished = program(*JOB, "--seed", 1, "--overwrite", "--problem.log", "log")
    assert finished.code == 0, finished
    assert len(log_lines(stopped.parent / "log", "point")) == 15
    with h5py.File(stopped) as file:
        assert file.attrs["seed"] == 1 and file["done"][()].all()


def test_overwrite_keeps_the_old_file_until_the_new_one_is_laid_out(
    stopped: Path, program: Callable[..., Finished]
) -> None:
    before = listing(stopped.parent)
    finished = program(*JOB, "--overwrite", "--problem", TINY.replace(":tiny", ":does_not_fit"))
    assert finished.code == 2, finished
    assert listing(stopped.parent) == before


@pytest.mark.parametrize("name", ["text.h5", "foreign.h5", "notes.txt"])
def test_overwrite_spares_what_is_not_ours(tmp_path: Path, program: Callable[..., Finished], name: str) -> None:
    """A slip of the pen must not cost a user's own file."""
    if name == "foreign.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file["mine"] = 3
    else:
        (tmp_path / name).write_text("mine")
    before = listing(tmp_path)
    finished = program(*JOB, "--output", name, "--overwrite")
    assert finished.code == 2 and name in finished.err, finished
    assert listing(tmp_path) == before


def test_directions_come_from_the_file(stopped: Path, program: Callable[..., Finished]) -> None:
    """They are its own record: a NumPy that draws other numbers must not change a run half way."""
    with h5py.File(stopped, "r+") as file:
        assert sorted(file["directions"]) == ["along_x", "along_y"]
        file["directions/along_x/first.weight"][0, 0] += 1
    finished = program(*JOB)
    assert finished.code == 2 and "directions differs" in finished.err, finished


def test_without_directions_in_the_file(tmp_path: Path, program: Callable[..., Finished]) -> None:
    job = [*JOB, "--save_directions", "false"]
    assert program(*job, "--problem.fault", "SIGTERM").code == 75
    with h5py.File(tmp_path / "landscape.h5") as file:
        assert "directions" not in file
    assert program(*job).code == 0
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


def test_does_not_train_again(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = program(*TINY_DIGITS)
    assert finished.code == 0 and "weights      trained in" in finished.out, finished
    whole = tmp_path / "whole.h5"
    shutil.copy(tmp_path / "landscape.h5", whole)
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        file["done"][1] = 0
        file["loss"][1] = 99

    def trains(*_: Any) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr(digits, "fit", trains)
    finished = program(*TINY_DIGITS)
    assert finished.code == 0 and "weights      as trained before, from landscape.h5" in finished.out, finished
    assert "1 still to do" in finished.out
    assert_same_landscape(tmp_path / "landscape.h5", whole)
    assert program(*TINY_DIGITS, "--problem.epochs", 2).code == 2


# Two at once


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Job]:
    """A run held at its second point."""
    log = tmp_path / "log"
    options = ["--problem.log", log, "--problem.hold", tmp_path / "hold", "--problem.hold_at", 2]
    with Job([*PROGRAM, *JOB, *options], None, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        job.until(lambda: read(tmp_path / "landscape.h5", "done").any())
        yield job


def test_two_runs_on_one_output(tmp_path: Path, program: Callable[..., Finished], running: Job) -> None:
    """The second says so, and harms nothing; who only reads may."""
    before = (tmp_path / "landscape.h5").read_bytes()
    for options in (["--overwrite"], ["--output", tmp_path / "landscape.h5"]):
        finished = program(*JOB, *options)
        assert finished.code == 2 and "is being written by another run" in finished.err, finished
    assert program("info", "landscape.h5").code == 0
    assert program(*JOB, "--dry_run").code == 0
    assert (tmp_path / "landscape.h5").read_bytes() == before
    (tmp_path / "hold").touch()
    assert running.wait().code == 0
    assert program(*JOB).code == 0
    assert not list(tmp_path.glob(".*"))


def test_a_killed_run_leaves_no_lock(tmp_path: Path, program: Callable[..., Finished], running: Job) -> None:
    running.kill()
    assert program(*JOB).code == 0
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


# What stays as it was


def test_dry_run_writes_nothing(tmp_path: Path, program: Callable[..., Finished]) -> None:
    finished = program(*JOB, "--dry_run")
    assert finished.code == 0, finished
    for words in ("points       15 on", "time ", "memory ", "disk ", "dry run: nothing was written"):
        assert words in finished.out
    assert listing(tmp_path) == {}


def test_dry_run_of_what_is_left(stopped: Path, program: Callable[..., Finished]) -> None:
    before = listing(stopped.parent)
    finished = program(*JOB, "--dry_run")
    assert finished.code == 0 and "points       12 on" in finished.out, finished
    assert program(*JOB, "--dry_run", "--seed", 1).code == 2
    assert listing(stopped.parent) == before


@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_users_model_is_untouched(program: Callable[..., Finished], bn: str, precision: str) -> None:
    assert program(*JOB, "--bn", bn, "--precision", precision).code == 0
    _assert_untouched()


@pytest.mark.parametrize("fault", ["error", "exit", "interrupt", "SIGTERM", "mistake"])
def test_the_users_model_is_untouched_by_a_failure(program: Callable[..., Finished], fault: str) -> None:
    assert program(*JOB, "--problem.fault", fault).code != 0
    _assert_untouched()


def _assert_untouched() -> None:
    module = sys.modules["tiny_problem_for_tests"]
    model, before = module.KEPT[-1]
    assert module.fingerprint(model) == before


def test_run_raises_what_the_user_raises(alone: None, tmp_path: Path) -> None:
    """run() is a function too: errors are not turned into exit codes."""
    settings = Settings(
        output=str(tmp_path / "a.h5"), problem=TINY, x="-1:1:5", y="none", problem_arguments={"fault": "error"}
    )
    with pytest.raises(ArithmeticError, match="the user's own fault"):
        run(settings, SerialComm())
    _assert_untouched()
    assert run(settings.replaced(problem_arguments={}), SerialComm()) == 0
    assert read(tmp_path / "a.h5", "done").all()


# Grids, and the file that says how it was made


@pytest.mark.parametrize(("axes", "shape"), [(["--y=none"], (5,)), ([], (5, 3)), (["--z=0:1:2"], (5, 3, 2))])
def test_grids(tmp_path: Path, program: Callable[..., Finished], axes: list[str], shape: tuple[int, ...]) -> None:
    assert program(*JOB, *axes).code == 0
    assert read(tmp_path / "landscape.h5", "loss").shape == shape


def test_the_settings_in_the_file_make_it_again(tmp_path: Path, program: Callable[..., Finished]) -> None:
    options = ["--seed", 3, "--batch_size", 20, "--problem.hidden", 4, "--normalization", "layer", "--samples", 40]
    assert program(*JOB, *options).code == 0
    with h5py.File(tmp_path / "landscape.h5") as file:
        (tmp_path / "again.yaml").write_text(file.attrs["settings"])
    assert program("--config", "again.yaml", "--output", "again.h5").code == 0
    assert_same_landscape(tmp_path / "again.h5", tmp_path / "landscape.h5")


@pytest.mark.slow
def test_other_threads_give_the_same_to_rounding(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Without OMP_NUM_THREADS: begun by a process that takes all cores, gone on with by one that takes one."""
    assert program(*JOB).code == 0
    reference = read(tmp_path / "landscape.h5", "loss")
    options = ["--output", "other.h5", "--problem.fault", "SIGTERM", "--problem.fault_at", 7]
    with Job([*PROGRAM, *JOB, *options], None, tmp_path, environment(OMP_NUM_THREADS=None)) as job:
        finished = job.wait()
    assert finished.code == 75, finished
    assert program(*JOB, "--output", "other.h5").code == 0
    assert read(tmp_path / "other.h5", "loss") == pytest.approx(reference, rel=1e-6)


def test_a_plain_run_does_not_load_the_compiler(tmp_path: Path) -> None:
    """Of three seconds that a small run took, each rank once spent half on what PyTorch loads behind such calls."""
    code = (
        "import sys; from hpc_landscape.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ', '.join({'torch._dynamo', 'torch._inductor', 'sympy'} & {*sys.modules}) or 0)"
    )
    with Job([sys.executable, "-c", code, *JOB], None, tmp_path) as job:
        finished = job.wait(LIMIT)
    assert finished.code == 0, finished
