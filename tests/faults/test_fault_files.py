"""Faults of names and locks: what lies where the program makes a file of its own, and who else is at the output."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fault_table
import h5py
import pytest
from programs import PROGRAM, TINY, WRITERS, Finished, Job, assert_same_landscape, listing, log_lines, read

from hpc_landscape import UserError
from hpc_landscape.store.lock import exclusive, lock_of
from hpc_landscape.view.output import write_whole

pytestmark = pytest.mark.mpi_stack

JOB = ("--problem", TINY, "--x=-1:1:3", "--y=none", "--plot", "false")
OURS = "hpc_landscape: error: "
HDF5 = b"\x89HDF\r\n\x1a\n"
NOBODY = 65534
apart = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the output itself is locked on Linux alone")


def _refused(finished: Finished, *words: str) -> None:
    assert finished.code == 2 and finished.out == "", finished
    assert finished.err.startswith(OURS) and finished.err.count("\n") == 1, finished
    assert [word for word in words if word not in finished.err] == [], finished


def _forked(act: Callable[[], object], user: int = 0) -> int:
    """Starts a process that acts, as another user where one is given; its exit code is 2 for a UserError."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if user:
                os.setgid(user)
                os.setuid(user)
            act()
            code = 0
        except UserError as error:
            os.write(2, f"{error}\n".encode())
            code = 2
        finally:
            os._exit(code)
    return pid


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# Names


def _plant(folder: Path, name: str) -> dict[str, Callable[[], object]]:
    """What may lie at a name: what kind -> puts it there; links lead to folder/theirs, or to absent."""
    at = folder / name
    return {
        "a link": lambda: at.symlink_to("theirs"),
        "a dangling link": lambda: at.symlink_to("absent"),
        "a hard link": lambda: at.hardlink_to(folder / "theirs"),
        "a file": lambda: at.write_bytes(b"of somebody"),
        "a directory": at.mkdir,
        "a fifo": lambda: os.mkfifo(at),
    }


def _there(path: Path) -> tuple[int, bytes]:
    """What is at the name itself, and the content of a file."""
    mode = path.lstat().st_mode
    return mode, path.read_bytes() if stat.S_ISREG(mode) else b""


def test_what_lies_at_temporary_names(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """It is nobody's business: a run beside it leaves it as it is, and removes what a killed run of ours has left."""
    theirs, names = tmp_path / "theirs", ["landscape.h5.tmp"]
    theirs.write_bytes(HDF5)  # what would be taken for ours
    _plant(tmp_path, names[0])["a link"]()
    for i, put in enumerate(_plant(tmp_path, "landscape.h5.0123abcd.tmp").values()):
        put()
        names.append(f"landscape.h5.0123abc{i}.tmp")
        (tmp_path / "landscape.h5.0123abcd.tmp").rename(tmp_path / names[-1])
    if os.geteuid() == 0:
        names.append("landscape.h5.abcdabcd.tmp")
        (tmp_path / names[-1]).touch()
        os.chown(tmp_path / names[-1], NOBODY, NOBODY)
    before = [_there(tmp_path / name) for name in names]
    for i, content in enumerate((b"", bytes(100), HDF5 + b"rest")):
        (tmp_path / f"landscape.h5.fedcba9{i}.tmp").write_bytes(content)
    assert program(*JOB).code == 0
    assert [_there(tmp_path / name) for name in names] == before and theirs.read_bytes() == HDF5
    assert {path.name for path in tmp_path.iterdir()} == {"landscape.h5", "theirs", *names}
    fault_table.record("something of others at a temporary name", tries=len(names), then="left as it is; exit 0")


def test_pictures_leave_one_leftover_at_most(tmp_path: Path) -> None:
    """Killed while a picture is written; the next one removes that, but not what another process writes just now."""
    picture, go_on, writing = tmp_path / "picture.png", tmp_path / "go_on", tmp_path / "writing"

    def wait() -> None:
        writing.touch()
        _until(go_on.exists)

    def write(name: str, then: Callable[[], object]) -> None:
        with open(name, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + bytes(10))
        then()

    for _ in range(3):
        pid = _forked(
            lambda: write_whole(str(picture), lambda name: write(name, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        )
        assert _code(pid) == -signal.SIGKILL
        assert len(listing(tmp_path)) == 1
    busy = _forked(lambda: write_whole(str(picture), lambda name: write(name, wait)))
    _until(writing.exists)
    write_whole(str(picture), lambda name: write(name, lambda: None))
    assert len(listing(tmp_path)) == 3
    go_on.touch()
    assert _code(busy) == 0 and set(listing(tmp_path)) == {"picture.png", "go_on", "writing"}
    fault_table.record("SIGKILL while a picture is written", tries=3, then="the next one removes what was left")


def test_a_picture_never_replaces_what_is_no_file(tmp_path: Path, program: Callable[..., Finished]) -> None:
    assert program(*JOB).code == 0
    os.mkfifo(tmp_path / "picture.png")
    _refused(program("plot", "landscape.h5", "-o", "picture.png"), "picture.png: it is no regular file")
    assert (tmp_path / "picture.png").is_fifo()
    os.mkfifo(tmp_path / "fifo.h5")
    _refused(program(*JOB, "--output", "fifo.h5"), "--output fifo.h5: is no regular file")


def test_what_lies_at_the_locks_name(tmp_path: Path, program: Callable[..., Finished]) -> None:
    name = ".landscape.h5.lock"
    for kind, put in _plant(tmp_path, name).items():
        (tmp_path / "theirs").write_bytes(b"of somebody")
        put()
        before = _there(tmp_path / name)
        _refused(program(*JOB), str(tmp_path / name), "move that away")
        assert _there(tmp_path / name) == before and (tmp_path / "theirs").read_bytes() == b"of somebody"
        assert {path.name for path in tmp_path.iterdir()} == {"theirs", name}
        fault_table.record("something of others at the lock's name", then="exit 2, one line that names it")
        if kind == "a directory":
            (tmp_path / name).rmdir()
        else:
            (tmp_path / name).unlink()


# Locks


def _dies_holding(file: Path) -> None:
    """As a run that is killed: its lock file stays."""

    def act() -> None:
        os.umask(0o002)
        with exclusive(str(file)):
            os.kill(os.getpid(), signal.SIGKILL)

    assert _code(_forked(act)) == -signal.SIGKILL


def _holds(file: Path) -> None:
    with exclusive(str(file)):
        pass


def test_a_lock_that_another_user_has_left() -> None:
    """A group may write it; one that may only be read does for a lock; one that may not be read is named."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # which others can reach: TMPDIR may be root's alone
        folder = Path(name)
        folder.chmod(0o1777)
        file, lock = folder / "landscape.h5", folder / ".landscape.h5.lock"
        _dies_holding(file)
        assert stat.S_IMODE(lock.stat().st_mode) == 0o664
        for mode, code in ((0o664, 0), (0o644, 0), (0o600, 2)):
            lock.chmod(mode)
            assert _code(_forked(lambda: _holds(file), NOBODY)) == code
            assert lock.exists()  # in such a folder it is its owner's to remove
            then = "taken where it may be read; else exit 2, one line that names it"
            fault_table.record("a lock file of another user's killed run", then=then)
        with exclusive(str(file)):
            lock.chmod(0o644)
            assert _code(_forked(lambda: _holds(file), NOBODY)) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_no_locks(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    finished = program(*JOB)
    assert finished.code == 0 and finished.err == "", finished
    assert finished.out.count("nothing keeps a second run from writing to it meanwhile") == 1, finished
    assert set(listing(tmp_path)) == {"landscape.h5"}
    fault_table.record("a file system without locks", then="exit 0, one line says that nothing keeps others out")


@apart
@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_hard_links_and_a_deleted_lock(tmp_path: Path, program: Callable[..., Finished], writer: str) -> None:
    """Another name of the file, or a lock file that somebody has removed, let no second run in; readers come in."""
    file, other, log, hold = (tmp_path / name for name in ("landscape.h5", "other.h5", "log", "hold"))
    options = ["--x=-1:1:6", "--problem.log", log, "--problem.hold", hold, "--problem.hold_at", 2, "--writer", writer]
    with Job([*PROGRAM, *JOB, *options], 2 if writer == "parallel" else None, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding") and read(file, "done").sum())
        root = next(line.pid for line in log_lines(log, "begin") if line.rank == 0)
        other.hardlink_to(file)
        for name in (other, file):
            Path(lock_of(str(file))).unlink(missing_ok=True)  # for file
            start = time.monotonic()
            more = ["--overwrite"] if name == file else []
            _refused(program(*JOB, "--x=-1:1:6", *more, "--output", name), "is being written by another run")
            seconds = time.monotonic() - start
            assert f"process {root} of this machine is at it" in program("info", name).out
            assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".h5", ".h5"]
            what = "its lock file removed" if name == file else "by another hard link"
            then = "exit 2, one line; the first runs on: the same bits"
            fault_table.record(f"a second job on the same output, {what}", writer, seconds=seconds, then=then)
        with h5py.File(file, "r") as reading:  # with HDF5's own lock
            assert reading["done"].size == 6
            hold.touch()
            finished = job.wait()
    assert finished.code == 0 and finished.err == "", finished
    assert program(*JOB, "--x=-1:1:6", "--output", "undisturbed.h5").code == 0
    assert_same_landscape(file, tmp_path / "undisturbed.h5")


@apart
def test_a_lock_deleted_before_there_is_a_file(tmp_path: Path) -> None:
    """The one that comes then has the output; the first notices before it gives its file the name."""
    from hpc_landscape.grid import Axis, Grid
    from hpc_landscape.store import layout

    file, go_on, held = tmp_path / "landscape.h5", tmp_path / "go_on", tmp_path / "held"

    def first() -> None:
        with exclusive(str(file)):
            held.touch()
            _until(go_on.exists)
            layout.create(str(file), Grid(Axis(-1, 1, 3)), [], {})

    pid = _forked(first)
    _until(held.exists)
    Path(lock_of(str(file))).unlink()
    with exclusive(str(file)):
        go_on.touch()
        assert _code(pid) == 2 and not file.exists()
        layout.create(str(file), Grid(Axis(-1, 1, 3)), [], {})
        assert _code(_forked(lambda: _holds(file))) == 2
        Path(lock_of(str(file))).unlink()
        assert _code(_forked(lambda: _holds(file))) == 2  # held by the file itself, from the beginning
    _holds(file)
    assert set(listing(tmp_path)) == {"landscape.h5", "go_on", "held"}


def test_what_stays_of_a_lock(tmp_path: Path) -> None:
    """Nothing after a run; another's, that has come in its place, is not removed; a forked process does not keep it."""
    file, go_on = tmp_path / "landscape.h5", tmp_path / "go_on"
    file.touch()
    with exclusive(str(file)):
        child = _forked(lambda: _until(go_on.exists))  # like a data-loading worker that lives on
        lock = Path(lock_of(str(file)))
        lock.unlink()
        lock.touch()
    assert lock.exists()
    _holds(file)
    assert set(listing(tmp_path)) == {"landscape.h5"}
    go_on.touch()
    assert _code(child) == 0


@apart
def test_without_locks_of_the_file_itself(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old system: the lock file guards alone, leftovers go under it, and nothing is said."""
    monkeypatch.setattr(fcntl, "F_OFD_SETLK", 9999)
    (tmp_path / "landscape.h5.fedcba98.tmp").touch()
    finished = program(*JOB)
    assert finished.code == 0 and "nothing keeps" not in finished.out, finished
    assert set(listing(tmp_path)) == {"landscape.h5"}
    with exclusive(str(tmp_path / "landscape.h5")):
        _refused(program(*JOB), "is being written by another run")
