"""What travels on the keeper's socket: one JSON object per message each way, descriptors beside it (SCM_RIGHTS).

The socket is a SOCK_SEQPACKET: the kernel keeps the message boundaries, so neither side ever waits for the rest of a
message, and a message comes whole or not at all.

============  ================================================  =============================================
op            takes                                             answers
============  ================================================  =============================================
``hello``     -                                                 protocol, version, pid; a pidfd of the keeper
``start``     mount_id, spec, log (paths); the ready pipe's     pid; a pidfd of the server
              write end
``adopt``     mount_id, spec, log, minor; what holds the        a pidfd of the keeper
              mount (``fusevol.server.held``); of a server
              that lives also pid and, last, its pidfd
``find``      mount_id                                          known; state, pid, restarts, and if the mount
                                                                is held minor; a pidfd of the server if it
                                                                lives, and what holds the mount
``list``      after: the last mount_id of the page before       servers, ended, more
``notes``     after: the last serial that was heard             notes; there is an answer when there is one
``shutdown``  -                                                 nothing; the servers live on
============  ================================================  =============================================

A keeper that takes over from another one (:mod:`fusevol.keeper.taking`) asks on one connection, whose end is the end of
the attempt:

============  ================================================  =============================================
op            takes                                             answers
============  ================================================  =============================================
``take-over`` a pidfd of the new keeper                         nothing
``give``      mount_id                                          when its server has left: spec, log, restarts,
                                                                minor; what holds the mount. Or ``gone``: there
                                                                is nothing to give; ``later``: not now
``took``      mount_id, pid, ms (of its pause), version; a      nothing
              pidfd of the new server, which has passed all
              checks
``back``      mount_id                                          nothing; the old keeper goes on
``commit``    -                                                 notes; what listens on the socket; the old keeper
                                                                ends. Or ``more``: not all mounts are given
============  ================================================  =============================================

A refused request is answered with ``ok`` false and ``error``, one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

PROTOCOL: Final = 2
"""Changes when an older agent or keeper would misunderstand a newer one."""
LIMIT: Final = 1 << 16
"""Longest message in bytes; far below what a socket's buffer takes in one piece."""
DESCRIPTORS: Final = 8
"""Most descriptors that go with one message."""

Message = dict[str, Any]


def socket_path(directory: Path) -> Path:
    """Where the keeper of *directory* listens."""
    return directory / "keeper.sock"


def encode(message: Message) -> bytes:
    """*message* as bytes."""
    return json.dumps(message).encode()


def decode(data: bytes) -> Message:
    """The message in *data*. Raises ``ValueError`` with a sentence for anything else."""
    if len(data) > LIMIT:
        raise ValueError(f"The message is longer than {LIMIT} bytes: send less.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ValueError("The message is not JSON: send one object per message.") from e
    if not isinstance(found, dict):
        raise ValueError("The message is no JSON object: send one object per message.")  # noqa: TRY004  # one error for all
    return found
