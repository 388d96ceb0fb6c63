"""What people bring, as a table: a situation, and what the program and the library must make of it.

``kind_*.py`` beside this file are problem files, each of one kind of situation, with their ``CASES``.
test_kinds.py runs them through the program and through the library, tests/mpi/test_mpi_kinds.py on several
ranks. Right values are computed by plain PyTorch: the run's directions, added to a copy of the model by hand.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent
AXES = ("--x", "-1:1:3", "--y", "none")


@dataclass(frozen=True)
class Case:
    """One situation.

    factory: the name of a function in the kind's file that returns a Problem. right: the loss at a model, which is a
    copy with the point's parameters, in eval mode; it may do to that copy what it likes (update_bn). others: the same
    of other metrics, by name. refused: what the one line says instead, a regular expression. said: what the program
    also says, or the library warns. options: of the program. prepare: makes files in the current folder. model: what
    directions are added to, where that is not the factory's model. library: the metric to be computed, made of the
    problem; None: Loss on the problem's data; False: the library has no such thing. warm_up: whether the library is to
    re-estimate batch normalization first. kwargs: of the factory, in the library; --problem.KEY in the program.
    """

    factory: str
    right: Callable[[nn.Module], float] | None = None
    others: Mapping[str, Callable[[nn.Module], float]] = field(default_factory=dict)
    refused: str = ""
    said: Sequence[str] = ()
    options: Sequence[str] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None
    model: Callable[[], nn.Module] | None = None
    library: Callable[[Any], Any] | bool | None = None
    library_refused: str | None = None  # where the library's line is another; "" where it has the right value
    library_said: Sequence[str] = ()
    warm_up: bool = True
    rtol: float = 1e-5
    name: str = ""
    file: str = ""

    @property
    def id(self) -> str:
        words = [Path(self.file).stem.removeprefix("kind_"), self.name or "-".join([self.factory, *self.options])]
        return "-".join(words).replace("/", "_")

    def words(self, output: Path) -> list[str]:
        """The program's command line."""
        own = [f"--problem.{key}={value}" for key, value in self.kwargs.items()]
        axes = [] if "--x" in self.options else AXES
        problem = ["--problem", f"{FOLDER / self.file}:{self.factory}", *own]
        return [*problem, *axes, *self.options, "--plot", "false", "--output", str(output)]

    def make(self) -> Any:
        """The problem, anew."""
        return getattr(load(self.file), self.factory)(**self.kwargs)

    def reference(self) -> nn.Module:
        """What directions are added to."""
        if self.model is not None:
            return self.model()
        model = self.make().model
        return model if isinstance(model, nn.Module) else model.root


def load(file: str) -> ModuleType:
    """A kind's file as a module, the same that the program loads."""
    name = Path(file).stem
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def cases() -> Iterator[Case]:
    """All of them."""
    for path in sorted(FOLDER.glob("kind_*.py")):
        for case in load(path.name).CASES:
            yield Case(**{**vars(case), "file": path.name})


@torch.no_grad()
def at(model: nn.Module, directions: Sequence[Mapping[str, Any]], point: Sequence[float]) -> nn.Module:
    """A copy of the model at a point, in eval mode: directions, by parameter name, added by hand in float64."""
    model = copy.deepcopy(model)
    for name, p in model.named_parameters():
        wide = torch.complex128 if p.is_complex() else torch.float64
        moved = p.to(wide)
        for c, direction in zip(point, directions, strict=True):
            if name in direction:
                moved = moved + c * torch.as_tensor(direction[name]).to(wide)
        p.copy_(moved)
    return model.eval()


def stored(path: Path) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A file's (axes, directions by parameter name, values by metric)."""
    with h5py.File(path, "r", locking=False) as file:
        names = [n for n in "xyz" if isinstance(file.get(n), h5py.Dataset)]
        directions: list[dict[str, np.ndarray]] = []
        for name in names:
            found: dict[str, np.ndarray] = {}
            group = file[f"directions/along_{name}"]
            group.visititems(lambda key, o, found=found: found.update({key: o[()]}) if hasattr(o, "shape") else None)
            directions.append(found)
        values = {k: o[()] for k, o in file.items() if isinstance(o, h5py.Dataset) and k not in names}
        return [file[n][()] for n in names], directions, values


def assert_right(
    case: Case, axes: Sequence[np.ndarray], directions: Sequence[Mapping[str, Any]], values: Mapping[str, np.ndarray]
) -> None:
    """The values are the right ones at every point."""
    model = case.reference()
    wanted = {**({"loss": case.right} if case.right else {}), **case.others}
    for name, right in wanted.items():
        if name not in values:
            continue
        for index in np.ndindex(*(len(axis) for axis in axes)):
            here = at(model, directions, [axis[i] for axis, i in zip(axes, index, strict=True)])
            with torch.enable_grad():
                expected = torch.as_tensor(right(here)).item()
            np.testing.assert_allclose(values[name][index], expected, rtol=case.rtol, err_msg=f"{name} at {index}")
