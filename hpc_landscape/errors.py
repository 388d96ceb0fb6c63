"""Exceptions that end a run in a way of their own."""


class UserError(Exception):
    """A user's mistake: its text is one line that says what was wrong, where, and what to do (exit code 2)."""


class Stopped(SystemExit):
    """A signal has asked the program to leave; its code is the exit code."""
