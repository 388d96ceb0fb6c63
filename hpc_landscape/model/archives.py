"""Whether what is packed in a file finds room in memory: by the sizes that it declares, before it is unpacked."""

from __future__ import annotations

import zipfile
from contextlib import suppress

from ..errors import UserError
from ..progress import size
from ..ranks.memory import free_memory


def check_archive(path: str, where: str) -> None:
    """UserError where a zip archive, which .npz and .pt are, unpacks to more than there is memory."""
    with suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError):  # whoever reads it says so
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            check_room(unpacked, where)


def check_room(needed: int, where: str) -> None:
    """UserError where so many bytes are more than there is memory."""
    if needed > (there := free_memory()):
        raise UserError(
            f"{where}: unpacks to {size(needed)}, and {size(there)} of memory are available: it is not read; take a "
            "machine with more memory, or a smaller file"
        )
