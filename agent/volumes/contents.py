"""What is done inside a Pod's volume once it is mounted: its files, its group. Synchronous, for worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from agent.volumes import atomicwriter, ownership
from agent.volumes.ownership import Group
from agent.volumes.wanted import Wanted
from fusevol.errors import NotFoundError


def show(wanted: Wanted) -> bool:
    """Have a volume show the files that it should; whether there was anything to write.

    Where it cannot, what it shows already stays. Raises :class:`NotFoundError` if that is nothing, and ``OSError``.
    """
    with _opened(wanted.source) as root:
        atomicwriter.make_places(root, wanted.places)
        if wanted.files is not None:
            gid = wanted.group.gid if wanted.group is not None else None
            return atomicwriter.write(root, wanted.files, gid=gid)
        if not atomicwriter.is_written(root):
            raise NotFoundError(wanted.failure)
    return False


def give(target: str, group: Group) -> None:
    """Give the volume at *target* to *group*; to files there is nothing to give. Raises ``OSError``."""
    if os.path.isdir(target):
        with _opened(target) as root:
            ownership.give(root, group)


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
