"""No process of ours outlives us: whatever multiprocessing has started ends when its parent dies, however it dies.

By itself a worker of the fork server lives on: it looks whether the server has died, which ends when its workers have.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from typing import Any

from ..console import survive

SERVER = f"{__package__}.forkserver"  # imported by the fork server
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PAUSE = 1.0  # seconds between two looks, where the system does not tell that a process has ended


class _Heritage:
    """Lies in a process's configuration, which its children get: by forking, or unpickled in a fresh interpreter."""

    def __reduce__(self) -> tuple[Callable[[int, bool], _Heritage], tuple[int, bool]]:
        return _inherit, (os.getpid(), threading.current_thread() is threading.main_thread())


_heritage = _Heritage()
_server: int | None = None  # the fork server's number, in it and in what it forks
_plain_spawn = util.spawnv_passfds
_followed: int | None = None  # this process's number, once it ends with its parent


def end_children_with_us() -> None:
    """From now on processes that multiprocessing starts here, and theirs, are killed when their parent dies."""
    found = getattr(multiprocessing.current_process(), "_config", None)
    if isinstance(found, dict) and found.get(__name__) is not _heritage:
        found[__name__] = _heritage
        util.register_after_fork(_heritage, _forked)
        util.spawnv_passfds = _spawn
    if hasattr(forkserver, "_forkserver") and sys.platform == "linux":
        loaded = list(getattr(forkserver._forkserver, "_preload_modules", None) or [])
        if SERVER not in loaded:
            multiprocessing.set_forkserver_preload([*loaded, SERVER])


def clear_up_after_us() -> None:
    """However this process dies: what its workers need in /dev/shm and in /tmp is taken away.

    Sockets of all that it starts are in one folder. multiprocessing's tracker takes it away, as it does semaphores.
    """
    util.get_temp_dir()
    resource_tracker.ensure_running()


def _spawn(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """As multiprocessing does; but the tracker outlives a launcher that kills a rank's session, to clear up."""
    if "resource_tracker" not in str(args[-1]):
        return _plain_spawn(path, args, passfds)
    code = f"try: {args[-1]}\nfinally: __import__('shutil').rmtree({util.get_temp_dir()!r}, True)"
    command = [*args[:-2], "-Wignore", "-c", code]  # it would warn of what it takes away
    tracker = subprocess.Popen(command, executable=path, pass_fds=passfds, start_new_session=True)
    tracker.returncode = 0  # as far as this object is to know: multiprocessing waits for it
    return tracker.pid


def _inherit(parent: int, by_main: bool) -> _Heritage:
    """In a child that is no copy of its parent. by_main: whether the parent's main thread has started it."""
    end_children_with_us()
    _follow(parent, by_main)
    survive()  # what it prints, to a pipe that is closed say, is no fault of its data
    return _heritage


def _forked(_: object) -> None:
    """In a child that is one, before it does anything."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _follow(parent.pid, threading.main_thread().name == "MainThread")


def _follow(parent: int, by_main: bool) -> None:
    """End with the parent. The system sends its signal when the thread ends that has started this process.

    That is the parent's end where it was its main thread.
    """
    global _followed
    if _followed == os.getpid():
        return
    _followed = os.getpid()
    with suppress(ValueError):  # as in signals.blocked_for_children: of this one multiprocessing itself sees to it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    above = os.getppid()
    direct = above == _server or (above == parent and by_main)
    if not direct or not _signal_at_death_of_parent(signal.SIGKILL):
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()
    elif os.getppid() != above:  # it died before
        _end()


def end_server() -> None:
    """In the fork server: it ends with the process that started it, by whichever thread."""
    global _server
    server, parent = os.getpid(), os.getppid()

    def look(*_: Any) -> None:
        if os.getpid() == server and os.getppid() != parent:
            _end()

    signal.signal(signal.SIGURG, look)
    if _signal_at_death_of_parent(signal.SIGURG):
        _server = server
    look()
    end_children_with_us()


def _signal_at_death_of_parent(number: int) -> bool:
    """Whether the system will send it: Linux."""
    try:
        return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) == 0
    except (OSError, AttributeError, TypeError):
        return False


def _watch(pid: int) -> None:
    """Wait until a process has ended, and end then."""
    above = os.getppid()
    try:
        ended = select.poll()
        ended.register(os.pidfd_open(pid), select.POLLIN)
        ended.poll()
    except ProcessLookupError:
        pass
    except (OSError, AttributeError):  # no such call
        with suppress(ProcessLookupError):
            while os.getppid() == above:
                os.kill(pid, 0)
                time.sleep(PAUSE)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
