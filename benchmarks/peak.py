"""Runs the program with the arguments given, and says how much memory it took at most."""

from __future__ import annotations

import resource
import sys

from hpc_landscape.cli import main

code = main(sys.argv[1:])
print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
raise SystemExit(code)
