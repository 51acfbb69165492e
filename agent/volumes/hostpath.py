"""hostPath: a path of the host, checked by its type and handed over as it is (volume-semantics 2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.hazard import Hazards
from fusevol.errors import InvalidError, NotFoundError

_KINDS = {
    "Directory": (stat.S_ISDIR, "directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "directory"),
    "File": (stat.S_ISREG, "file"),
    "FileOrCreate": (stat.S_ISREG, "file"),
    "Socket": (stat.S_ISSOCK, "socket file"),
    "CharDevice": (stat.S_ISCHR, "character device"),
    "BlockDevice": (stat.S_ISBLK, "block device"),
}


def prepare(path: str, kind: str) -> None:
    """Check *path* by the hostPath type *kind*, and make it where the type says so. Follows symbolic links.

    Raises :class:`InvalidError` or :class:`NotFoundError` with kubelet's messages (2.3); ``OSError`` when making it
    fails. The path may be on a filesystem that hangs: for a thread that may.
    """
    if ".." in path.split("/"):
        raise InvalidError(f"invalid HostPath {path}: must not contain '..'")
    if not path.startswith("/"):
        raise InvalidError(f"invalid HostPath {path}: must be an absolute path")
    if not kind:
        return
    if kind not in _KINDS:
        raise InvalidError(f"{kind} is an invalid volume type")
    fits, word = _KINDS[kind]
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as e:
        if kind == "DirectoryOrCreate":
            Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
            return
        if kind == "FileOrCreate":
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
            return
        raise NotFoundError(f"hostPath {path} doesn't exist") from e
    except OSError as e:
        raise InvalidError(
            f"hostPath type check failed: {path} is not a {word}, unable to determine its type: {e.strerror}"
        ) from e
    if not fits(found.st_mode):
        raise InvalidError(f"hostPath type check failed: {path} is not a {word}, it's a {_describe(found.st_mode)}")


async def prepared(hazards: Hazards, path: str, kind: str) -> None:
    """:func:`prepare`, in a thread that may hang. Raises what that does, and :class:`UnavailableError` if it hangs."""
    await hazards.of(f"The path {path}").run(lambda: prepare(path, kind))


def _describe(mode: int) -> str:
    for fits, word in _KINDS.values():
        if fits(mode):
            return word
    return "named pipe"
