"""systemd's readiness protocol (sd_notify(3)): one datagram to the socket that ``NOTIFY_SOCKET`` names."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Tell the service manager *state* (``READY=1``, ``STOPPING=1``); nothing to do without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.sendto(state.encode(), address)
    except OSError as e:
        log.info("The service manager could not be told %s: %s", state, e)
