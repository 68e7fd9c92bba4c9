"""Replacing a file so that neither a kill nor a power cut leaves half of one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replaced(path: Path, draft: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write, which takes the place of `path` when the block ends without an error.

    It is written at `draft`, in the same folder, with the rights that the umask leaves; what stood
    there is removed. The file is synced before it is renamed, and its folder after that, because
    only then does the new name survive a power cut. After an error `path` is what it was before,
    and the draft is gone.

    Raises:
        OSError: the folder or the file cannot be written.

    """
    draft.unlink(missing_ok=True)
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
