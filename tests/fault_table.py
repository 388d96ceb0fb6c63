"""The table of faults in tests/README.md, made by the tests themselves.

``HPC_LANDSCAPE_FAULT_TABLE=tests/README.md python -m pytest tests/faults ...`` puts the rows of that run in
the table there: one for each fault, MPI and writer. Rows that the run has not made again stay as they are.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "HPC_LANDSCAPE_FAULT_TABLE"
BEGIN, END = "<!-- faults: made by the tests -->", "<!-- end of faults -->"
HEAD = ("fault", "MPI", "writer", "tries", "points finished", "of these lost", "ended after (s)", "then")
_rows: dict[tuple[str, str, str], Row] = {}
_lock = threading.Lock()


@dataclass
class Row:
    """What one kind of fault has done so far: finished: points known to be finished 2 s before; lost: of these."""

    tries: int = 0
    finished: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)
    then: str = ""


@functools.cache
def mpi() -> str:
    """Which MPI this Python's mpi4py is bound to."""
    import subprocess
    import sys

    from programs import environment

    code = "from mpi4py import MPI; name, version = MPI.get_vendor(); print(name, '.'.join(map(str, version)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    return found.stdout.strip() or "none"


def record(
    fault: str,
    writer: str = "any",
    *,
    tries: int = 1,
    finished: int = 0,
    lost: int = 0,
    seconds: float | None = None,
    then: str = "",
) -> None:
    """Add to the row of this fault; a test calls it when all of its assertions have held."""
    with _lock:
        _add((fault, mpi(), writer), Row(tries, finished, lost, [] if seconds is None else [seconds], then))


def _add(key: tuple[str, str, str], more: Row) -> None:
    row = _rows.setdefault(key, Row())
    row.tries, row.finished, row.lost = row.tries + more.tries, row.finished + more.finished, row.lost + more.lost
    row.seconds += more.seconds
    row.then = more.then


def rows() -> list[Any]:
    """What has been recorded in this process, of plain types."""
    return [
        (list(key), [int(row.tries), int(row.finished), int(row.lost), row.seconds, row.then])
        for key, row in _rows.items()
    ]


def add(others: list[Any]) -> None:
    """The rows of another process, as rows() gives them there."""
    for key, row in others:
        _add(tuple(key), Row(*row))


def write() -> None:
    """Bring the rows to the file that the environment names, if it does."""
    if not os.environ.get(VARIABLE) or not _rows:
        return
    path = Path(os.environ[VARIABLE])
    before, _, rest = path.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {tuple(cells[:3]): cells for cells in map(_cells, table.splitlines()[2:]) if len(cells) == len(HEAD)}
    lines.pop(HEAD[:3], None)
    for (fault, name, writer), row in _rows.items():
        ended = f"{max(row.seconds):.1f}" if row.seconds else "-"
        numbers = [str(row.tries), str(row.finished), str(row.lost), ended]
        lines[fault, name, writer] = [fault, name, writer, *numbers, row.then]
    faults = list(dict.fromkeys(key[0] for key in lines))
    ordered = sorted(lines, key=lambda key: (faults.index(key[0]), *key[1:]))
    rows = [list(HEAD), ["---"] * len(HEAD), *(lines[key] for key in ordered)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _cells(line: str) -> list[str]:
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    return [] if set("".join(cells)) <= {"-"} else cells
