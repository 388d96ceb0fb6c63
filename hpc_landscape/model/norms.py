"""Which layers keep running statistics, and which of these are re-estimated at a point."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

STATISTIC = re.compile(r"^(running|moving|population|pop|global|ema)_?(mean|var|variance|std|inv_std|avg|average)$")
SHOWN = 3  # names in a line


@dataclass(frozen=True)
class Norms:
    """The layers with running statistics, by name.

    estimated: re-estimated at each point. kept: of parts that are kept still, and that nothing moving reaches: they
    have the checkpoint's statistics. unlike: layers of the user's own that cannot be re-estimated, and have them too.
    unreached: of those re-estimated, what the first batch does not reach. stale: of those re-estimated, what nothing
    moving reaches, with statistics that differ from the checkpoint's.
    """

    estimated: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        return self.kept + self.unlike

    @property
    def shown(self) -> str:
        """Which layers are re-estimated, where it is not all, to follow what is said of them."""
        total = len(self.estimated) + len(self.others)
        text = f" in {len(self.estimated)} of {total} layers (not: {few(self.others)})" if self.others else ""
        return text + (f" (the first batch does not reach {few(self.unreached)})" if self.unreached else "")

    @property
    def notices(self) -> list[str]:
        """What there is to warn of."""
        found = []
        if self.unlike:
            several = len(self.unlike) > 1
            found.append(
                f"{few(self.unlike)} keep{'s' * (not several)} the checkpoint's statistics: "
                f"{'they are' if several else 'it is'} no torch batch normalization that can be re-estimated"
            )
        if self.stale:
            found.append(
                f"the input of {few(self.stale)} is the same at every point, and its statistics on this data are not "
                "the checkpoint's: they are re-estimated; for a part that is to stay as it is (a teacher, a frozen "
                "backbone) give --exclude, or a GeneralModelWrapper without it"
            )
        return found


def few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def is_norm(module: nn.Module) -> bool:
    """Whether it is one of torch's own with running statistics: batch, synchronized, instance normalization."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is one that normalizes a batch, and computes what torch's own do: nobody has another forward."""
    own = isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward
    return own and module.running_mean is not None and "forward" not in vars(module)


def looks_like_norm(module: nn.Module) -> bool:
    """Whether it is none of torch's own, but keeps a tensor that is called a running mean, say."""
    if isinstance(module, _NormBase):
        return False
    held = {**vars(module), **module._buffers}
    return any(STATISTIC.match(name) and isinstance(value, Tensor) for name, value in held.items())


def keeps_statistics(module: nn.Module) -> bool:
    return is_norm(module) or looks_like_norm(module)
