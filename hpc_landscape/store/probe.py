"""Whether a file can be read: found out in a process of its own, since a damaged one can hang or abort HDF5.

A file may also lead elsewhere: by links, by values that are kept in other files, by virtual datasets. Read or written
through those, other files would be, which nobody has named: it is refused.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import h5py

from ..errors import UserError, printable
from ..ranks.launcher import alone

PROBE_SECONDS = 60.0  # that looking at one thing in a file may take before it counts as damaged: they may be many
ELSEWHERE = "leads elsewhere: "
_PROBE = """
import signal, sys

def go_on():
    if hasattr(signal, "setitimer"):  # a POSIX system
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))  # it ends this process, wherever HDF5 is then

if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
go_on()
sys.path = [p for p in sys.path if p]  # not the folder we happen to be in
import h5py

def refuse(where, how):
    sys.exit(f"leads elsewhere: {where} {how}")

def check(group, seen):
    for name in group:
        go_on()
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            refuse(f"{group.name.rstrip('/')}/{name}", "is a link into another file")
        if not isinstance(link, h5py.HardLink):
            continue
        thing = group[name]
        if (address := h5py.h5o.get_info(thing.id).addr) in seen:
            continue
        seen.add(address)
        if isinstance(thing, h5py.Group):
            check(thing, seen)
        elif isinstance(thing, h5py.Dataset):
            made = thing.id.get_create_plist()
            if made.get_layout() == h5py.h5d.VIRTUAL:
                refuse(thing.name, "is a view of other files (a virtual dataset)")
            if made.get_external_count():
                refuse(thing.name, "has its values in another file (external storage)")

def look(name, thing):
    go_on()
    dict(thing.attrs)
    if isinstance(thing, h5py.Dataset) and thing.size:
        thing[() if thing.dtype.hasobject and thing.size < 10**6 else (0,) * thing.ndim]

try:
    with h5py.File(sys.argv[1], "r", locking=False) as file:
        check(file, set())
        dict(file.attrs)
        file.visititems(look)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
"""


def opened(path: str) -> h5py.File:
    """The file, to be read, without HDF5's locks; with them where this process has it open so: HDF5 wants one kind."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")


def damaged(path: str) -> str:
    """The beginning of a line that refuses a damaged file."""
    return f"{path} is damaged or cut short; it is left as it is (restore a copy, or choose another --output)"


def probe(path: str, seconds: float | None = None) -> None:
    """UserError where there is no readable HDF5 file at path, or one that leads into others. Never writes."""
    seconds = seconds or PROBE_SECONDS
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory, not a landscape file")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read it")
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is not an HDF5 file, or its beginning is damaged; it is left as it is")
    command = [sys.executable, "-c", _PROBE, path, str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True, env=alone())
    if found.returncode == -getattr(signal, "SIGALRM", math.inf):
        raise UserError(f"{damaged(path)}: reading it did not end in {seconds:g} s")
    if found.returncode:
        said = (found.stderr.strip().splitlines()[-1:] or [f"the reader died ({found.returncode})"])[0]
        if said.startswith(ELSEWHERE):
            where = printable(said.removeprefix(ELSEWHERE))
            raise UserError(f"{path}: {where}, which is neither read nor written; copy what it leads to into the file")
        raise UserError(f"{damaged(path)}: {said}")
