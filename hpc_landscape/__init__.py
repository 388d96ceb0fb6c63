"""Loss landscapes of PyTorch models, on a laptop or on many ranks of a cluster."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_FROM = {"Problem": "problems.problem", "UserError": "errors"}  # imported when first asked for: torch takes seconds
__all__ = ["Problem", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
