"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake: its text is one line that says what was wrong, where, and what to do (exit code 2)."""
