"""Gives many landscape files to the program's commands, in this process: one that a damaged file kills is seen to die.

Reads lines of JSON from stdin: a file's path, and the command lines to run. Answers each with a line of JSON: how each
command ended, what it said, and whether the file is as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path

from hpc_landscape.cli import main
from hpc_landscape.store import probe


def state(path: str) -> list:
    """What writing to the file, or touching it, would change."""
    there = os.stat(path)
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest(), there.st_mtime_ns, there.st_ino, there.st_mode]


def run(words: list[str]) -> dict:
    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except BaseException:
            code = traceback.format_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    probe.PROBE_SECONDS = 20  # damage can make HDF5 read for ever: it is refused then, here sooner than for a user
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        path, commands = json.loads(line)
        before, beside = state(path), sorted(os.listdir(os.path.dirname(path)))
        ends = [run(words) for words in commands]
        same = state(path) == before
        left = sorted(set(os.listdir(os.path.dirname(path))) - set(beside))
        print(json.dumps({"path": path, "ends": ends, "same": same, "left": left}), file=answers, flush=True)
