"""How a run ends: its exit codes, and the exceptions that mean one of them."""

# 75 is EX_TEMPFAIL: after it and after 130 the same command goes on.
COMPLETE, FAILED, MISTAKE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130


class UserError(Exception):
    """A user's mistake: its text is one line that says what was wrong, where, and what to do (exit code 2)."""


class Stopped(SystemExit):
    """A signal has asked the program to leave; its code is the exit code."""


# Why a job whose allocation is over (SIGUSR1, with a --grace) fails instead of asking for another one.
IN_VAIN = "the stop came before one point was finished, and would again: give the job more time (or ranks, or GPUs)"
