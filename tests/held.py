"""What is alive in this process."""

from __future__ import annotations

import gc

from torch import Tensor, nn


def held() -> tuple[int, int]:
    """(modules that are alive, bytes of tensors that are alive).

    Of tensors proper: what torch.compile has left in this process are fakes, which have no storage.
    """
    gc.collect()
    things = gc.get_objects()
    storages = [t.untyped_storage() for t in things if type(t) in (Tensor, nn.Parameter)]
    return sum(issubclass(type(t), nn.Module) for t in things), sum(
        {s.data_ptr(): s.nbytes() for s in storages}.values()
    )
