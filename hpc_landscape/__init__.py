"""Loss landscapes of PyTorch models, on a laptop or on many ranks of a cluster."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Where public names are; imported when first asked for: torch takes seconds.
_MODULES = {
    "problems.problem": ("Problem",),
    "errors": ("UserError",),
    "view.plot": ("plot",),
    "view.dataset": ("open",),
    "view.numbers": ("numbers",),
    "view.compare": ("compare",),
    "model.wrapper": ("ModelWrapper", "SimpleModelWrapper", "GeneralModelWrapper", "wrap_model"),
    "landscape": (
        *("PlanarLossLandscape", "LinearLossLandscape", "eval_warm_up", "eval_loss"),
        *("point", "linear_interpolation", "random_line", "planar_interpolation", "random_plane"),
    ),
}
_FROM = {name: module for module, names in _MODULES.items() for name in names}
_PACKAGES = ("metrics", "model_interface")
__all__ = ["__version__", *(name for name in _FROM if name != "open"), *_PACKAGES]  # no star hides Python's open


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(_imported(_FROM[name]), name)
    if name in _PACKAGES:
        return _imported(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _imported(module: str) -> Any:
    """The module; meanwhile Python's collector of cycles does not go over the 160,000 objects that PyTorch has made."""
    import gc

    enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"{__name__}.{module}")
    finally:
        if enabled:
            gc.enable()
