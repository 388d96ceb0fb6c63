"""What the tests of what a file shows have in common."""

from __future__ import annotations

from typing import Any

import pytest
from test_view_files import read_at_once

from hpc_landscape.store import layout


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read without a process of its own for each."""
    monkeypatch.setattr(layout, "read", read_at_once)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that plot saves."""
    from matplotlib.figure import Figure

    saved: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), save(self, *args, **kw))[1])
    return saved
