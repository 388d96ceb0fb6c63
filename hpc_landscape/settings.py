"""Every setting of a run: a group for each room. Imports no torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from .directions.base import HOST, SEED
from .directions.registry import can_be_drawn_again, check_directions, direction_kind
from .errors import UserError, printable
from .grid import NAMES, Axis, Grid
from .options import Option
from .setting_groups import (
    PROBLEM,
    DirectionSettings,
    EvaluationSettings,
    GridSettings,
    OutputSettings,
    ProblemSettings,
    RankSettings,
    SpeedSettings,
)

NOW = ("overwrite", "dry_run", "grace", "retry_failed")  # asked of one run, and not of those that go on with it


@dataclass(frozen=True, init=False)
class Settings:
    """The settings of one run, a group for each room; made, said and stored by the options' names.

    Values of None mean: decided by the problem or the file, as the help text says.
    """

    for_grid: GridSettings
    for_problem: ProblemSettings
    for_directions: DirectionSettings
    for_evaluation: EvaluationSettings
    for_speed: SpeedSettings
    for_ranks: RankSettings
    for_output: OutputSettings

    def __init__(self, **values: Any) -> None:
        for name, group in get_type_hints(Settings).items():
            own = {option.name: values.pop(option.name) for option in fields(group) if option.name in values}
            object.__setattr__(self, name, group(**own))
        if values:
            raise TypeError(f"there is no setting {', '.join(values)}")

    def replaced(self, **changes: Any) -> Settings:
        """These settings but for some."""
        return Settings(**self.by_name() | changes)

    def by_name(self) -> dict[str, Any]:
        """Every value by its option's name, the problem's arguments among them."""
        return {option.name: getattr(group, option.name) for group in vars(self).values() for option in fields(group)}

    def check(self) -> None:
        """Raise UserError where a value makes no sense, by itself or beside another."""
        for name, value in self.by_name().items():
            if isinstance(value, str) and printable(value) != value:
                raise UserError(f"--{name} {value}: holds a control character, or is not UTF-8")
        for group in vars(self).values():
            group.check()
        check_directions(self.for_directions, self.for_grid.given)
        if self.for_speed.directions_memory == SEED and not can_be_drawn_again(self.for_directions):
            raise UserError(
                f"--directions_memory {SEED}: only random directions that are not orthogonalized can be drawn again: "
                f"use --directions_memory {HOST}"
            )
        if self.for_directions.ensemble is not None:
            self._check_ensemble()
        if self.for_ranks.shard:
            self._check_shard()

    def _check_ensemble(self) -> None:
        where = self.for_speed.directions_memory
        others = {"refine": self.for_grid.refine, "extend": self.for_output.extend, "shard": self.for_ranks.shard}
        others[f"directions_memory {where}"] = where in (HOST, SEED)
        if given := next((name for name, value in others.items() if value), None):
            raise UserError(f"--{given} is for one set of directions: leave it out, or --ensemble")

    def _check_shard(self) -> None:
        evaluation, speed = self.for_evaluation, self.for_speed
        others = {name: bool(getattr(speed, name)) for name in ("compile", "block", "tune", "channels_last")}
        others |= {
            "on_error record": evaluation.on_error == "record",
            f"precision {evaluation.precision}": evaluation.precision in ("bf16", "fp64"),
            "device as_built": self.for_ranks.device == "as_built",
            f"directions_memory {speed.directions_memory}": speed.directions_memory in (HOST, SEED),
        }
        if given := next((name for name, value in others.items() if value), None):
            raise UserError(f"--shard fsdp: --{given} is of models that are whole on a rank: leave out one of the two")

    @property
    def dimensions(self) -> int:
        """How many axes there are."""
        asked = self.for_directions
        return direction_kind(asked.directions).dimensions(asked, self.for_grid.dimensions)

    def grid(self, defaults: Sequence[str] = ("-1:1:51",) * len(NAMES)) -> Grid:
        """The grid; defaults: what the axes are where nothing is said."""
        texts = zip(NAMES[: self.dimensions], defaults, strict=False)
        axes = (Axis.parse(getattr(self.for_grid, name) or default, name) for name, default in texts)
        return Grid(*axes, sets=self.for_directions.ensemble)

    def to_yaml(self) -> str:
        """The settings as a file that ``--config`` reads back."""
        import yaml

        values = self.by_name()
        values |= {PROBLEM + key: value for key, value in values.pop("problem_arguments").items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def to_command(self) -> str:
        """The command line of this run: what differs from the defaults."""
        words = ["python", "-m", "hpc_landscape"]
        values = self.by_name()
        for name, option in OPTIONS.items():
            value = values[name]
            if value is True and value != option.default and name not in NOW:
                words.append(f"--{name}")
            elif value != option.default and name not in NOW:
                text = str(value).lower() if isinstance(value, bool) else value
                words.append(f"--{name}={'.inf' if value == math.inf else text}")
        for key, value in values["problem_arguments"].items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words.append(f"--{PROBLEM}{key}={text}")
        return shlex.join(words)


def _options(group: type) -> list[Option]:
    hints = get_type_hints(group)
    return [Option(f.name, hints[f.name], f.default, **f.metadata) for f in fields(group) if f.metadata]


GROUPS = {name.removeprefix("for_"): _options(group) for name, group in get_type_hints(Settings).items()}  # by title
OPTIONS = {option.name: option for options in GROUPS.values() for option in options}
