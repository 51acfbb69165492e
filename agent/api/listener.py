"""The agent's unix socket: made so that one agent listens and nobody but root gets in."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

from fusevol.errors import UnavailableError, UsageError
from fusevol.files import is_dying

_CREDENTIALS = struct.Struct("=iII")
"""pid, uid and gid of who listens (unix(7))."""
LONGEST = 107
"""Bytes that fit into ``sun_path`` beside the final zero (unix(7))."""


def listen(
    path: Path, who: str = "another agent", otherwise: str = "choose another --run-dir and --state-dir"
) -> socket.socket:
    """A listening socket at *path*, mode 0600. A socket file that nobody answers on is replaced.

    Raises :class:`UnavailableError` when *who* answers there (*otherwise*: what to do then), :class:`UsageError` when
    the path cannot be a socket.
    """
    if len(os.fsencode(path)) > LONGEST:
        raise UsageError(
            f"The socket path {path} is longer than {LONGEST} bytes, which unix sockets do not allow: "
            "choose a shorter one."
        )
    remove_stale(path, who, otherwise)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # bound under a name that nobody knows until its mode is right, then put in place
        temporary = path.with_name(f".{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen(128)
        temporary.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_stale(path: Path, who: str, otherwise: str) -> None:
    """Remove the socket at *path* if nobody answers on it. Raises as :func:`listen` does: *who* answers, what to do."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} exists and is not a socket: remove it, or {otherwise}.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass  # full or slow: somebody is there
        else:
            pid, _, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if is_dying(pid):  # killed, and cannot go since something hangs
                path.unlink(missing_ok=True)
                return
    raise UnavailableError(f"{who[:1].upper()}{who[1:]} answers on {path}: stop it, or {otherwise}.")
