"""How a run ends: its exit codes, and the exceptions that mean one of them."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Sequence

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # what comes after reads the other way
# 75 is EX_TEMPFAIL: after it and after 130 the same command goes on.
COMPLETE, FAILED, USER_ERROR, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130

OURS = (os.path.dirname(os.path.abspath(__file__)), contextlib.__file__)  # whose lines are not the user's


class UserError(Exception):
    """A user's mistake: its text is one line that says what was wrong, where, and what to do (exit code 2)."""


class Stopped(SystemExit):
    """A signal has asked the program to leave; its code is the exit code."""


class GivenUp(BaseException):
    """What the machine has failed at ends the run; its text is one line that says so (exit code 1).

    No Exception, so that nothing on the way takes it for a fault of the user's code, or of its own.
    """


def given_up(error: BaseException | None) -> GivenUp | None:
    """The GivenUp that it is, or that it was raised after, on the way out: a GPU that is gone takes no model back."""
    while error is not None and not isinstance(error, GivenUp):
        error = error.__context__
    return error


# Why a job whose allocation is over (SIGUSR1, with a --grace) fails instead of asking for another one.
NO_PROGRESS = "the stop came before one point was finished, and would again: give the job more time (or ranks, or GPUs)"


def reason(error: BaseException) -> str:
    """Why a file could not be written or read, in a few words: HDF5 hides the system's in a paragraph of its own."""
    hidden = re.search(r"error message = '([^']*)'", str(error))
    lines = str(error).splitlines() or [type(error).__name__]
    return hidden[1] if hidden else getattr(error, "strerror", None) or lines[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: Python's, NumPy's, PyTorch's on a CPU or on a GPU, that of CUDA's libraries.

    In a data-loading worker too, whose error has become the text of another.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, (RuntimeError, OSError)):
        return False
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOMEM or _OUT_OF_MEMORY.search(text) or is_out_of_shared_memory(error):
        return True
    return bool(_NO_HANDLE.search(text)) and _gpu_is_full()


_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|ErrorOutOfMemory|ErrorMemoryAllocation|(can't|[Cc]annot) allocate memory|not enough memory"
    r"|\bCU[A-Z]+_\w*ALLOC\w*_FAILED|STATUS_MEMORY_ERROR|bad_alloc|\bCaught \w*MemoryError in",
    re.IGNORECASE,
)
_NO_HANDLE = re.compile(r"\bCU[A-Z]+_STATUS_NOT_INITIALIZED")  # memory is out, or it is something else
FULL = 2**29  # bytes: with less free, a library of CUDA's does not start


def _gpu_is_full() -> bool:
    torch = sys.modules.get("torch")
    try:
        return torch is not None and torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < FULL
    except RuntimeError:  # after some errors a GPU tells nothing any more
        return False


def is_out_of_shared_memory(error: BaseException) -> bool:
    """Whether a data-loading worker has found no room for its batches in /dev/shm: it says so, or dies of it."""
    text = str(error)
    died = "DataLoader worker" in text and "Bus error" in text
    return died or ("</torch_" in text and ("No space left" in text or "unable to write" in text))


def user_traceback(error: BaseException) -> str:
    """The traceback from the first frame on that is not ours; the whole of it where all are.

    Raises the error itself where memory is out: that is no fault of the user's code, and is told in another way.
    """
    if is_out_of_memory(error):
        raise error
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((OURS[0], "<frozen importlib")):
        frames = frames.tb_next
    if frames is None and not isinstance(error, SyntaxError):  # which says by itself where it is
        frames = error.__traceback__
    lines = traceback.format_exception(type(error), error, frames, chain=False)
    return f"{type(error).__name__}:\n{''.join(lines).rstrip()}"


def printable(text: str, keep: str = "") -> str:
    """The text with what would break a line, or steer a terminal, escaped; but for the characters in keep."""
    return "".join(c.encode("unicode_escape").decode() if _steers(c) and c not in keep else c for c in text)


def refusal(mistake: UserError) -> str:
    """The line, or lines, that end a run with exit code 2."""
    return f"error: {printable(str(mistake), keep=chr(10))}"


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are, on one line."""
    return printable(", ".join(names[:shown])) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def warn(text: str) -> None:
    """A warning of the first line that is not ours: the user's own."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _steers(c: str) -> bool:
    """Whether c is a control character, half of a surrogate pair (a name that is not UTF-8), ends or turns a line."""
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in TURNS
