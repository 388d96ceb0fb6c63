"""The one network of a file that is the model's; or a line that says which there are, or what they lack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import UserError, printable
from .checkpoint_file import first_few
from .loading import Verdict, attempt, loads_by_itself
from .state_dict import Names, Part, mappings, parts, pure, unwrapped

OWN = ("", "model", "net", "network", "module", "student")  # prefixes of a network among its helpers
AVERAGED = re.compile(r"ema|swa|avg|averag|shadow|polyak", re.IGNORECASE)
TRIALS = 8  # parts that the model's own load_state_dict is asked about
SHOWN = 6  # parts in a line


@dataclass
class Chosen:
    """What is to be loaded. name: of the part of the file; whole: whether it must be all of the model.

    notes: what there is to say of it, beside its name. exact: whether it has the model's names and shapes.
    """

    name: str
    tensors: Any
    whole: bool = True
    notes: list[str] = field(default_factory=list)
    exact: bool = False

    def __str__(self) -> str:
        """What is said behind the file's name."""
        part = [] if self.name == "." else [f", its part {printable(self.name)}"]
        return "; ".join(["".join(part), *self.notes])


def choose(content: object, model: nn.Module, where: str, key: str | None = None) -> Chosen:
    """The part of a file's content that fits the model; UserError where there is none, or more than one.

    where: what the error begins with, an option and a path. key: which part, where there are several.
    """
    names = Names.of(model)
    found = parts(content, names)
    some = found
    for some in _named(found, key, where) if found else []:
        if fitting := _exact(some) or _asked(some, model) or _partial(some):
            part, chosen = _one(fitting, where)
            if odd := part.odd:
                raise UserError(f"{where}: holds tensors that are not dense ones of real numbers: {first_few(odd)}")
            return chosen
    if key is None and loads_by_itself(model):
        for place, mapping in _outermost(content):
            if not attempt(model, mapping).fault:
                return Chosen(place, mapping)
    if not any(part.known for part in found) and not any(pure(mapping) for _, mapping in mappings(content)):
        raise UserError(f"{where}: holds no state dict (found: {_keys(content)})")
    raise UserError(_fault(some, found, model, where, key))


def _named(found: list[Part], key: str | None, where: str) -> list[list[Part]]:
    """The parts that a key means: those of that name, else those that end so, else those inside."""
    if key is None:
        return [found]
    wanted = [key, unwrapped(key)]
    some = [
        [part for part in found if part.name in wanted],
        [part for part in found if any(part.name.endswith(f".{k}") for k in wanted)],
        [part for part in found if any(part.name.startswith(f"{k}.") for k in wanted)],
    ]
    if not any(some):
        raise UserError(f"{where}: --checkpoint_key {key}: there is no such part; there are: {_listed(found)}")
    return [group for group in some if group]


Fitting = list[tuple[Part, Chosen]]


def _exact(some: list[Part]) -> Fitting:
    """Those that are the model, name by name."""
    return [
        (part, Chosen(part.name, part.without(part.unknown), notes=_left(part, part.unknown), exact=True))
        for part in some
        if part.exact
    ]


def _asked(some: list[Part], model: nn.Module) -> Fitting:
    """Those that the model's own load_state_dict takes: its hooks know older names, and what a file may lack."""
    fitting = []
    for part in sorted(some, key=_likeness, reverse=True)[:TRIALS]:
        verdict = attempt(model, part.tensors, strict=False)
        if not verdict.fault and not verdict.missing and set(verdict.unexpected) <= set(part.foreign):
            left = list(verdict.unexpected)
            fitting.append((part, Chosen(part.name, part.without(left), notes=_left(part, left))))
    return fitting


def _partial(some: list[Part]) -> Fitting:
    """Those that are an adapter, or what was trained, of the model."""
    return [
        (part, Chosen(part.name, part.tensors, False, [_share_of(part)]))
        for part in some
        if part.partial and not part.others
    ]


def _share_of(part: Part) -> str:
    total = len(part.names.expected)
    return f"it holds {len(part.known)} of the model's {total} tensors; the others stay as they are"


def _left(part: Part, unknown: Sequence[str]) -> list[str]:
    names = [*unknown, *part.others]
    return [f"left out: {first_few(names)}"] if names else []


def _likeness(part: Part) -> tuple[int, int, int]:
    return len(part.known) - len(part.shapes), len(part.known), -len(part.prefix)


def _one(fitting: Fitting, where: str) -> tuple[Part, Chosen]:
    """The one there is, or the network among its helpers; UserError where one must be chosen by name."""
    distinct: Fitting = []
    for part, chosen in fitting:
        if not any(part.same(other) for other, _ in distinct):
            distinct.append((part, chosen))
    if len(distinct) == 1:
        return distinct[0]
    own = [pair for pair in distinct if ".".join(pair[0].prefix) in OWN]
    together = len({part.where for part, _ in distinct}) == 1
    others = [part for part, _ in distinct if len(own) == 1 and part is not own[0][0]]
    if not together or len(own) != 1 or any(AVERAGED.search(".".join(part.prefix)) for part in others):
        listed = _listed([part for part, _ in distinct])
        raise UserError(
            f"{where}: holds {len(distinct)} networks that fit the model: {listed}; "
            f"say which by --checkpoint_key, such as --checkpoint_key {printable(distinct[0][0].name)}"
        )
    own[0][1].notes.append(f"--checkpoint_key takes another that fits: {_listed(others)}")
    return own[0]


def _listed(some: Sequence[Part]) -> str:
    return first_few(list(dict.fromkeys(part.name for part in some)), SHOWN)


def _outermost(content: object) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """What a model's own load_state_dict may want as it is: the file's content, or what is in it."""
    if isinstance(content, Mapping):
        yield ".", content
        yield from ((str(key), value) for key, value in content.items() if isinstance(value, Mapping))


def _keys(content: object) -> str:
    return first_few(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__


def _fault(some: list[Part], found: list[Part], model: nn.Module, where: str, key: str | None) -> str:
    """What the part that is most like the model lacks, and has."""
    part = max(some, key=_likeness)
    verdict = Verdict() if part.shapes else attempt(model, part.tensors, strict=False)
    missing = part.missing if verdict.fault or part.shapes else verdict.missing
    unknown = part.unknown if verdict.fault or part.shapes else verdict.unexpected
    faults = [f"it lacks {first_few(list(missing))}"] if missing else []
    faults += [f"the model has no {first_few(list(unknown))}"] if unknown else []
    faults += [f"other shapes: {first_few(part.shapes)}"] if part.shapes else []
    faults += [f"its load_state_dict says {verdict.fault}"] if verdict.fault else []
    what = "belongs to another architecture" if part.shapes else "does not fit the model"
    inner = "" if part.name == "." else f"its part {printable(part.name)} "
    several = list(dict.fromkeys(".".join(p.where) or "." for p in found))
    hint = f"; --checkpoint_key takes another part: {first_few(several, SHOWN)}" if len(several) > 1 and not key else ""
    return f"{where}: {inner}{what}: {'; '.join(faults)}{hint}"
