"""The commands that read stored files: a file each. No torch, no MPI."""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("plot", "info", "compare", "export")


def command(name: str) -> ModuleType:
    """The command of this name: DESCRIPTION, ``add_options(parser)``, and ``run(options)``, which prints."""
    return importlib.import_module(f"{__name__}.{name}")
