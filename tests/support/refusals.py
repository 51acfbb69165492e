"""Runs a volume server to which the system refuses io_uring, in whole or in part.

``python refusals.py WHAT COMMAND…``, WHAT being one of

* ``seccomp``: io_uring_setup(2) is EPERM, as in a container with a strict profile;
* ``memlock=BYTES``, ``nofile=NUMBER``: so much memory for rings, so many descriptors;
* ``entry=QUEUE``: the kernel refuses the entries of one queue (see :func:`short_entries`; COMMAND is not used).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

_PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP = 24
_PR_SET_SECCOMP = 22
_FILTER = 2
_IPC_LOCK = 14
_IO_URING_SETUP = 425
_libc = ctypes.CDLL(None, use_errno=True)


def _forbid_setup() -> None:
    """A filter of four instructions (seccomp(2)): load the number of the system call, compare, refuse or allow."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, _IO_URING_SETUP),
            (0x06, 0, 0, 0x00050000 | errno.EPERM),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    code = ctypes.create_string_buffer(program)
    header = struct.pack("=H6xQ", 4, ctypes.addressof(code))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def short_entries(queue: int) -> None:
    """From now on, the entries of *queue* in this process have one buffer where the kernel wants two."""
    from fusevol.transport.kernel.ring import Ring

    push = Ring.push

    def refused(self: Ring, fd: int, what: int, iovecs: int, commit: int, to: int) -> None:
        push(self, fd, what, 0 if to == queue else iovecs, commit, to)

    Ring.push = refused  # type: ignore[method-assign]


def main(what: str, command: list[str]) -> None:
    """See above; does not return."""
    kind, _, number = what.partition("=")
    if kind == "seccomp":
        _forbid_setup()
    elif kind == "entry":
        short_entries(int(number))
        from fusevol.server.process import main as serve

        sys.exit(serve(command[command.index("--spec") :]))
    else:
        limit = resource.RLIMIT_MEMLOCK if kind == "memlock" else resource.RLIMIT_NOFILE
        resource.setrlimit(limit, (int(number), int(number)))
        if _libc.prctl(_PR_CAPBSET_DROP, _IPC_LOCK, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "CAP_IPC_LOCK was not dropped")
    os.execvp(command[0], command)  # noqa: S606  # the limits are for the server


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
