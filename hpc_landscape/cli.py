"""The command line: run (the default), and the commands that read stored files. Parses first, then starts MPI."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from . import commands
from .arguments import HELP, asks_help, parse
from .console import hurry, lost_result, notice, sturdy, survive
from .errors import (
    FAILED,
    INTERRUPTED,
    NO_PROGRESS,
    USER_ERROR,
    Stopped,
    UserError,
    given_up,
    is_out_of_memory,
    printable,
    reason,
    refusal,
)
from .kinds import KINDS, VIEWS
from .progress import age, stage, stages_taken
from .ranks.base import Comm
from .ranks.comm import launched, world
from .ranks.signals import ignore_stops
from .registry import Registry, broken_lines
from .settings import Settings

PROG = "python -m hpc_landscape"
EPILOG = """exit codes:
  0 complete   1 failed   2 a mistake to mend, said in one line
  75 stopped by SIGTERM, SIGUSR1, SIGHUP or SIGXCPU, 130 by Ctrl-C: the same command goes on
"""
VIEW_EPILOG = "exit codes: 0 done, 2 a mistake to mend, said in one line"
MEET = 5.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        survive()  # to the very end: what is flushed last, and cannot be, would make the exit code 120
    if len(words) == 2 and words[0] in HELP and words[1] in commands.NAMES:
        words.reverse()  # --help plot: plot --help
    with sturdy():
        if words and words[0] in commands.NAMES:
            return _view(words[0], words[1:])
        code = _run(words[1:] if words[:1] == ["run"] else words, own=arguments is None)
        if arguments is None:
            ignore_stops()
        return code


def _run(words: list[str], own: bool) -> int:
    """Parse; start MPI; run. What goes wrong on any rank ends all of them, and is said once.

    own: whether the process is the program's alone.
    """
    settings: Settings | None = None
    mistake = None
    stages_taken()  # of another run in this process
    with stage("imports", before=age() if own else 0.0):
        _limit_spinning()
    try:
        if asks_help(words) and launched()[1] > 0:
            return 0
        settings, instead = parse(words, PROG, _epilog(EPILOG, KINDS, words), KINDS)
        if instead:
            if launched()[1] == 0:
                print(settings.to_yaml() if instead == "print_config" else _cited(settings), end="")
            return _shown()
    except UserError as error:
        if asks_help(words):  # which the other processes have left to this one
            return _speak(error, 0)
        mistake = error
    except SystemExit:  # after --help
        return _shown()
    hurry()
    try:
        with stage("MPI"):
            parallel = settings is not None and settings.for_output.writer == "parallel" and _parallel_h5py()
            comm = world(need_mpi=parallel)
    except UserError as error:  # every process is alone: the launcher's numbers are all there is
        return _speak(mistake or error, launched()[1])
    if mistake is not None or settings is None:
        return _refuse(mistake or UserError("no settings"), comm)
    return _guarded(settings, comm, own)


def _cited(settings: Settings) -> str:
    """What a run with these settings is to cite, as BibTeX."""
    from .cite import citations

    return citations(settings.by_name(), launched()[0])


def _epilog(text: str, registries: Sequence[Registry], words: list[str]) -> str:
    """What help ends with: kinds that cannot be loaded, too, for which all that packages bring is imported."""
    return "\n".join([text, *(broken_lines(registries) if HELP & set(words) else ())])


def _shown() -> int:
    """The exit code where what is printed is what was asked for."""
    if (fault := lost_result()) is None:
        return 0
    notice(refusal(UserError(f"standard output cannot be written: {reason(fault)}")))
    return USER_ERROR


def _guarded(settings: Settings, comm: Comm, own: bool) -> int:
    try:
        with stage("imports"), _uncollected() if own else nullcontext():
            from .run import run
        return run(settings, comm)
    except UserError as error:
        return _refuse(error, comm)
    except BaseException as error:
        return _fail(error, settings, comm)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector of cycles from all that is imported meanwhile, for good.

    PyTorch makes some 160,000 objects, which it would go over twice on the way, and several times at the end of the
    process: in all a third of what a run of a moment takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _limit_spinning() -> None:
    """Before PyTorch starts its threads, which a user's kind of direction may import: let one that waits sleep after
    some 10 us.

    By default it spins for milliseconds, at the cost of whatever else runs on its core: beside other work on 2 cores,
    a run with 2 threads was 1.5 to 10 times slower so (benchmarks/RESULTS.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _refuse(mistake: UserError, comm: Comm) -> int:
    """Say the mistake on rank 0. No rank leaves before it is said: mpirun kills the others when one fails.

    Ranks meet here together, but for a mistake that shows in the middle of one rank's points: that one ends the job.
    """
    if comm.is_root:
        notice(refusal(mistake))
    if not comm.meet(MEET):
        if not comm.is_root:
            notice(refusal(mistake))
        comm.abort(USER_ERROR)
    return USER_ERROR


def _speak(mistake: UserError, rank: int) -> int:
    if rank == 0:
        notice(refusal(mistake))
    else:
        time.sleep(1)  # for process 0 to have spoken before the launcher ends it
    return USER_ERROR


def _fail(error: BaseException, settings: Settings, comm: Comm) -> int:
    """End every rank with this error's exit code; its traceback is printed once, with its rank."""
    code = FAILED
    try:
        code = _explain(error, settings, comm)
    finally:
        if comm.size > 1:
            comm.abort(code)
    return code


def _explain(error: BaseException, settings: Settings, comm: Comm) -> int:
    """Say why; returns the exit code. Where many ranks fail at once, the first to speak ends the others."""
    where = f" on rank {comm.rank} of {comm.size}" if comm.size > 1 else ""
    if isinstance(error, Stopped):
        if error.code == FAILED:
            comm.leave_if_told(min(0.3 * comm.rank, 3))
            notice(f"failed: {NO_PROGRESS}")
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, SystemExit):
        notice(f"failed{where}: the problem called exit({error.code!r})")
        return error.code if isinstance(error.code, int) and error.code else FAILED  # exit(0) is no success either
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    comm.leave_if_told(min(0.1 + 0.3 * comm.rank, 3))
    with suppress(Exception):  # an error of the user's may not even have a text
        if is_out_of_memory(error):
            from .ranks.out_of_memory import explain

            sizes = settings.for_speed.block, settings.for_evaluation.batch_size
            notice(refusal(UserError(explain(error, *sizes, comm.rank, comm.size))))
            return USER_ERROR
        if (given := given_up(error)) is not None:
            notice(f"failed{where}: {given}")
            return FAILED
    notice(f"failed{where}:\n{''.join(traceback.format_exception(error)).rstrip()}")
    return FAILED


def _parallel_h5py() -> bool:
    import h5py

    return bool(h5py.get_config().mpi)


def _view(name: str, words: list[str]) -> int:
    """A command that reads a stored file: no MPI. Started several times, by a task farm say, each does its own."""
    if asks_help(words) and launched()[1] > 0:
        return 0
    try:
        epilog = _epilog(VIEW_EPILOG, [VIEWS] if name == "plot" else [], words)
        command = commands.command(name)
        parser = _Parser(prog=f"{PROG} {name}", description=command.DESCRIPTION, epilog=epilog)
        command.add_options(parser)
        command.run(parser.parse_args(words))
    except UserError as error:
        notice(refusal(UserError(printable(str(error)))))
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit:  # after --help
        return _shown()
    return _shown() if name in ("info", "compare") else 0


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are ours: one line, exit code 2."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help")
