"""The file, opened and closed by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..ranks.base import Comm
from ..store import parallel
from ..store.gather import GatherStore
from ..store.parallel import ParallelStore
from ..store.writer import Writer


@contextmanager
def writing(writer: Writer) -> Iterator[Writer]:
    """The writer, open on every rank meanwhile. Without an error, all have written when it ends, and close together."""
    comm, created = writer.comm, None
    with comm.raise_on_all_ranks():
        created = writer.open()
    writer.start(comm.bcast(created))
    try:
        yield writer
    except BaseException:
        writer.stop(failed=True)
        raise
    writer.stop(failed=False)
    writer.control.stop_code = int(comm.most(writer.control.stops))
    with comm.raise_on_all_ranks():
        writer.close()


def fall_back(writer: type[Writer], path: str, comm: Comm, notice: Callable[[str], None]) -> type[Writer]:
    """The writer, or the gathering one where this file system takes no independent writes."""
    if writer is ParallelStore and (fault := _refuses(path, comm)):
        notice(f"{fault}: rank 0 writes instead (--writer gather)")
        return GatherStore
    return writer


def _refuses(path: str, comm: Comm) -> str:
    """Why independent writes cannot be had here; empty where they can. Some nodes may not see the file."""
    created = comm.bcast(parallel.created(path) if comm.is_root else None)
    if not comm.on_all(parallel.sees(path, created)):
        return "not every rank sees the file"
    file = parallel.try_open(path, comm)  # all can, or none
    said = comm.first_text(file if isinstance(file, str) else "")
    if not said and not isinstance(file, str):
        said = comm.first_text(parallel.try_write(file, comm.rank))
    return said and f"this file system refuses independent parallel writes ({said})"
