"""How a run ends: its exit codes, and the exceptions that mean one of them."""

import unicodedata

# 75 is EX_TEMPFAIL: after it and after 130 the same command goes on.
COMPLETE, FAILED, MISTAKE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130


class UserError(Exception):
    """A user's mistake: its text is one line that says what was wrong, where, and what to do (exit code 2)."""


class Stopped(SystemExit):
    """A signal has asked the program to leave; its code is the exit code."""


def printable(text: str, keep: str = "") -> str:
    """The text with what would break a line, or steer a terminal, escaped; but for the characters in keep."""
    return "".join(c.encode("unicode_escape").decode() if _steers(c) and c not in keep else c for c in text)


def _steers(c: str) -> bool:
    """Whether c is a control character, half of a surrogate pair (a name that is not UTF-8), or ends a line."""
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
