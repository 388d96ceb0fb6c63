"""Whether data that is read anew in each pass is the same each time: it is looked at, and not believed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from ..errors import UserError
from .fingerprint import checksum, glance

ONCE = "give a DataLoader, or a list of its batches (list(...))"
ALIKE = (
    "random augmentation, or a shuffle? A point's value must depend on the point alone: use the transforms, and the "
    "order, that you evaluate with"
)


class OtherData(UserError):
    """Data that is not what it was: neither this point nor another can be evaluated on it."""


class Readings:
    """What each batch looked like when it was first read, by its number, and how many there were.

    what: the data's name in messages. checks: 0 where a batch has not been read.
    """

    def __init__(self, what: str = "data"):
        self.what, self.checks = what, array("Q")
        self.count: int | None = None  # known once an end has been reached

    def see(self, number: int, batch: object) -> None:
        """Compare a batch with what it was; OtherData where it was another one, or was not there."""
        found = glance(batch)
        self.checks.extend([0] * (number + 1 - len(self.checks)))
        if self.checks[number] in (0, found) and (self.count is None or number < self.count):
            self.checks[number] = found
            return
        where = " of its first batch" if number == 0 else f", in batch {number + 1}"
        raise OtherData(f"the problem's {self.what} differs between two readings{where}: {ALIKE}")

    def end(self, count: int) -> None:
        """All batches have been read; OtherData where there were others before."""
        before = len(self.checks) if self.count is None else self.count
        if count == 0 < before:
            raise OtherData(f"the problem's {self.what} can be read only once: {ONCE}")
        if count < before:
            raise OtherData(f"the problem's {self.what} had {before} batches, and has {count} when it is read again")
        self.count = count

    @property
    def whole(self) -> str | None:
        """A checksum of a whole reading; None where there was none."""
        return None if self.count is None or 0 in self.checks else checksum(self.checks.tobytes())

    def take(self, checks: Iterable[int], ended: bool) -> None:
        """What another rank has seen of the same data, from its beginning on."""
        self.checks = array("Q", checks)
        self.count = len(self.checks) if ended else None
