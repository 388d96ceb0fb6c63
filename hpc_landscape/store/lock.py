"""Keeps a second writer out. HDF5's own locks are not used: they would keep readers out of a file in use.

Two locks, which die with the process: flock's, on a lock file beside the output, which can be had before there is an
output; and one on the output itself, whatever its names, also where somebody has removed the lock file. A new output
has the latter from before it has its name.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import UserError, reason
from . import byte_lock
from .temporary import clear

PATIENCE = 2.0  # seconds: a run that was killed a moment ago may still be dying
NO_GUARD = "nothing keeps a second run from writing to it meanwhile"


def lock_of(path: str) -> str:
    """The file whose lock stands for path; it is there while a run holds it, and after one was killed."""
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.lock")


def holder(path: str) -> int | None:
    """The process of this machine that holds path for writing; None where none is seen.

    It only looks: taking the lock, be it for a moment or shared, could turn away a run that starts just then.
    """
    try:
        with open("/proc/locks", encoding="ascii") as file:
            locks = [line.split() for line in file if " -> " not in line]
    except OSError:  # a system that does not tell
        return None
    return _holder(locks, "FLOCK", lock_of(path)) or _holder(locks, "OFDLCK", os.path.realpath(path))


def _holder(locks: list[list[str]], kind: str, path: str) -> int | None:
    """Whose lock is the one on path, of those that the system lists: it names the process, or says -1."""
    with suppress(OSError):
        inode = f":{os.stat(path).st_ino}"
        for pid in (line[4] for line in locks if line[1] == kind and line[5].endswith(inode)):
            for one in [pid] if pid != "-1" else filter(str.isdigit, os.listdir("/proc")):
                if _has(one, path, pid == "-1"):
                    return int(one)
    return None


def _has(pid: str, path: str, locked: bool) -> bool:
    """Whether the process has the file open, by any name, and locked where that is asked for.

    One may not see another user's: then it is believed to have what the system says that it has.
    """
    try:
        for n in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{n}"), os.stat(path)) and (not locked or _locks(pid, n)):
                    return True
    except PermissionError:
        return not locked
    except OSError:
        pass
    return False


def _locks(pid: str, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
        return any(" OFDLCK " in line and str(byte_lock.PLACE) in line for line in file)


@contextmanager
def exclusive(path: str, notice: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold path for writing meanwhile, and clear it of what killed runs have left; the locks die with the process.

    UserError where another run holds it, or where it cannot be held. notice is called where the system has no locks.
    """
    try:
        hold = _Hold(path)
    except ImportError:  # not a POSIX system
        notice(f"{path}: {NO_GUARD} (this system has no locks)")
        yield
        return
    _held[hold.path] = hold
    try:
        if hold.missing:
            notice(f"{path}: {NO_GUARD} (its file system has no locks: {hold.missing})")
        else:
            clear(path, held=True)
        yield
    finally:
        _held.pop(hold.path, None)
        hold.release()


def settle(path: str, descriptor: int) -> None:
    """Hold what is about to become path, where this process holds path; UserError where another run does now."""
    if (hold := _held.get(os.path.realpath(path))) is not None and not hold.missing:
        hold.settle(descriptor)


class _Hold:
    """The lock file's descriptor, and those of all that has been the output since. missing: why there are no locks."""

    def __init__(self, path: str):
        self.said, self.path, self.lock = path, os.path.realpath(path), lock_of(path)
        self.files: list[int] = []
        self.missing = ""
        self._until_free(self._take_lock)
        self._apart = not self.missing and byte_lock.apart(self.descriptor)
        try:
            self._until_free(self._take_file)
        except BaseException:
            self.release()
            raise

    def settle(self, descriptor: int) -> None:
        if not self._is_current(self.descriptor, self.lock):  # somebody has removed it
            lost = self.descriptor
            self._until_free(self._take_lock)
            os.close(lost)
        self._until_free(self._take_file)
        self.files.append(os.dup(descriptor))  # it has been locked since it was made

    def release(self) -> None:
        for file in self.files:
            with suppress(OSError):
                byte_lock.give(file)
            os.close(file)
        with suppress(OSError):
            if self._is_current(self.descriptor, self.lock):
                os.unlink(self.lock)
        os.close(self.descriptor)

    def _until_free(self, take: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not take():
            if time.monotonic() > end:
                raise UserError(f"{self.said} is being written by another run; wait for it, or choose another --output")
            time.sleep(0.05)

    def _take_lock(self) -> bool:
        import fcntl

        try:
            descriptor = self._open_lock()
        except FileExistsError:  # made meanwhile
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EACCES):  # a file system that wants to write for this
                os.close(descriptor)
                raise self._refused(error) from None
            self.missing = reason(error)
        if not self.missing and not self._is_current(descriptor, self.lock):  # its holder removed it meanwhile
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        return True

    def _open_lock(self) -> int:
        """Made where there is none; never through a link, and never something that is no lock."""
        safe = os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            try:
                descriptor = os.open(self.lock, os.O_RDWR | safe)
            except FileNotFoundError:  # O_CREAT alone may be refused for one of another user's, in a folder for all
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | safe, 0o666)
            except PermissionError:
                descriptor = os.open(self.lock, os.O_RDONLY | safe)
        except FileExistsError:
            raise
        except OSError as error:  # whatever the permissions say: a full or read-only disk, a remote root
            raise self._refused(error) from None
        found = os.fstat(descriptor)
        if found.st_size or not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise self._refused(None)
        return descriptor

    def _refused(self, error: OSError | None) -> UserError:
        """Why there can be no lock."""
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a directory", stat.S_IFREG: "a file with content"}
        try:
            found = os.lstat(self.lock)
        except OSError:
            return UserError(f"{self.said}: cannot be written: {error.strerror if error else 'its lock vanished'}")
        what = kinds.get(stat.S_IFMT(found.st_mode), "no file")
        if stat.S_ISREG(found.st_mode) and error is not None:
            return UserError(f"{self.said}: its lock, {self.lock}, cannot be taken: {error.strerror}")
        return UserError(f"{self.said}: where its lock has to be, {self.lock}, is {what}; move that away")

    def _take_file(self) -> bool:
        """Whether the output that there is now, if any, is held."""
        if not self._apart:
            return True
        try:
            file = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # none, or none that could be written
            return True
        if any(os.path.samestat(os.fstat(file), os.fstat(one)) for one in self.files):
            os.close(file)
            return True
        taken = byte_lock.take(file)
        if taken and self._is_current(file, self.path):
            self.files.append(file)
            return True
        os.close(file)
        return taken is None

    def _is_current(self, descriptor: int, name: str) -> bool:
        """Whether what is open still has its name."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), os.lstat(name))
        return False


_held: dict[str, _Hold] = {}  # by real path
