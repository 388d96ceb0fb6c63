"""What a kind of direction is. Imports no torch: settings and pictures ask kinds, too."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.data import Data
    from ..metrics.criterion import Criterion
    from ..model.wrapper import ModelWrapper

Read = Callable[[str, str], Mapping[str, "Tensor"]]  # (path of a checkpoint, the option that named it) -> by name
DEVICE, HOST, SEED = "device", "host", "seed"  # where directions are kept: the words of --directions_memory
OTHERS = ("second", "third", "fourth")


def no_checkpoint(path: str, option: str) -> Mapping[str, Tensor]:
    """Where nothing was given to read checkpoints with."""
    raise UserError(f"{option} {path}: no checkpoints can be read here")


@dataclass(frozen=True)
class Origin:
    """The model that directions lead from, and what a kind may ask for.

    Attributes:
        weights: the parameters that move, by name, on the CPU; those of 16 bits in float32.
        count: how many directions are wanted, one for each axis.
        read: reads these parameters from a checkpoint, and, where the kind leads to models, what else goes along.
        trajectory: the paths of its checkpoints, in their order.
        loss: opens (the model at the origin, its loss, the first evaluation set), for gradients and curvature.
        first: the number of the first direction: others than 0 are of a later set of an ensemble.
    """

    weights: Mapping[str, Tensor]
    count: int = 2
    read: Read = no_checkpoint
    trajectory: Sequence[str] = ()
    loss: Callable[[], AbstractContextManager[tuple[ModelWrapper, Criterion, Data]]] | None = None
    first: int = 0


@dataclass
class Directions:
    """What coordinates mean. vectors: a mapping by parameter name for each axis, on the CPU.

    targets: the models that the vectors lead to, where they do. rest: what else they have otherwise, and what of it
    goes along, by name, for each. stays: names of what does not. axes: a MIN:MAX:N for each axis, where the kind of
    direction knows better than the problem. notes: what else the file is to say. memory: where they are kept.
    """

    vectors: list[dict[str, Tensor]]
    targets: list[dict[str, Tensor]] | None = None
    axes: list[str] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    rest: list[dict[str, Tensor]] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    memory: str = DEVICE

    @property
    def placed(self) -> list[dict[str, Tensor]]:
        """What a Placement takes: the targets where there are some."""
        if self.targets is None:
            return self.vectors
        others = self.rest or [{}] * len(self.targets)
        return [{**target, **rest} for target, rest in zip(self.targets, others, strict=True)]


class DirectionKind(abc.ABC):
    """A kind of direction: made without arguments, or with those of ``--directions name(key=value)``.

    A kind has ``make``, and says of itself what is not as here; the docstring's first paragraph, or ``help``, is its
    help text. ``settings`` is the program's, or whatever has attributes of these names.

    Attributes:
        name: what it is called in a file.
        options: the settings that it uses, for its help; with "seed", that is told of it.
        needs: settings that it cannot do without, and what each is.
        only: settings that go with no other kind.
        axis: the default axis, MIN:MAX:N; None: the problem's, or what is made with the directions.
        fits_axes: whether the default axes are made with the directions: a run that goes on takes the file's.
        normalization: the default one.
        leads_to_models: whether a coordinate of 1 is a model, whose other buffers go along: bitwise, and made again
            from it by a run that goes on.
        from_last_checkpoint: whether, without a --checkpoint, the model is the last of the trajectory.
        drawn_again: whether each part can be drawn again from the seed, as ``random.drawn_directions`` does it.
        title: what pictures call it: "... directions".
        axis_label: of an axis; {number} counts from 1, {other} is "second" for the first axis, and so on.
        models: what pictures call the model at the origin, and, where there are, those at 1 along each axis.
    """

    name: str
    help: str = ""
    options: Sequence[str] = ()
    needs: Mapping[str, str] = {}
    only: Sequence[str] = ()
    axis: str | None = None
    fits_axes: bool = False
    normalization: str = "none"
    leads_to_models: bool = False
    from_last_checkpoint: bool = False
    drawn_again: bool = False
    title: str
    axis_label: str = "direction {number}"
    models: Sequence[str] = ("trained model",)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        if "title" not in cls.__dict__:
            cls.title = cls.name

    @abc.abstractmethod
    def make(self, settings: Any, origin: Origin) -> Directions:
        """The directions, ``origin.count`` of them, on the CPU; on rank 0, with one thread.

        Raises:
            UserError: where there are none.
        """

    def check(self, settings: Any, axes: Mapping[str, str]) -> None:
        """Raise UserError where settings do not go together with this kind; nothing has been read yet.

        axes: those that are given, MIN:MAX:N by name.
        """
        if settings.orthogonalize:
            raise UserError(f"--orthogonalize is for random directions, not for --directions {settings.directions}")

    def dimensions(self, settings: Any, asked: int) -> int:
        """How many axes there are, where so many are asked for."""
        return asked

    # What follows from the attributes

    @property
    def seeded(self) -> bool:
        """Whether they depend on the seed."""
        return "seed" in self.options

    def recipe(self, settings: Any) -> str:
        """How the directions were made, but for the seed: compared before a run goes on with a file."""
        words = [settings.directions]
        if "distribution" in self.options:
            words.append(settings.distribution)
        if self.normalization != "none" or settings.normalized != "none":
            words += [settings.normalized, "ignore", settings.ignore]
        for option in ("to", "direction_files", "include", "exclude", "ensemble"):
            if (value := getattr(settings, option)) is not None:
                words += [option, str(value)]
        return " ".join(words) + " trainable" * settings.trainable + " orthogonalized" * settings.orthogonalize

    def label(self, axis: int) -> str:
        """What a coordinate of this axis, 0 to 2, means."""
        return self.axis_label.format(number=axis + 1, other=OTHERS[axis])


class Unknown(DirectionKind):
    """A kind that a file names, and that is not installed."""

    def __init__(self, name: str):
        self.name = self.title = name

    def make(self, settings: Any, origin: Origin) -> Directions:
        """There is nothing to make them with."""
        raise UserError(f"--directions {self.name}: there is no such direction")


@contextmanager
def naming_option(option: str) -> Iterator[None]:
    """A mistake that names no option yet is this one's."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith("--") else UserError(f"{option}: {error}") from None
