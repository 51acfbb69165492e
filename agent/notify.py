"""systemd's protocol (sd_notify(3)): one datagram to the socket that ``NOTIFY_SOCKET`` names for each thing to say."""

from __future__ import annotations

import logging
import os
import socket

import trio

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


def watchdog_period() -> float | None:
    """Seconds between two signs of life: half of what the service manager waits for; None if it wants none."""
    asked, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (asked.isascii() and asked.isdigit() and int(asked) > 0) or whose not in {"", str(os.getpid())}:
        return None
    return int(asked) / 2e6


async def live(period: float) -> None:
    """Tell the service manager that the loop comes round, for ever."""
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(period)
