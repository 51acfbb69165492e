"""One request on a volume server's control socket, from the trio loop: a server that hangs takes no thread."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import trio

from fusevol.server import client

Obj = dict[str, Any]


async def call(control: Path, request: Obj, seconds: float = 10.0) -> Obj:
    """As :func:`fusevol.server.client.call`: the answer, or :class:`UnavailableError` if there is none in time."""
    received = bytearray()
    try:
        with trio.fail_after(seconds):
            async with await trio.open_unix_socket(os.fspath(control)) as stream:
                await stream.send_all(json.dumps(request).encode() + b"\n")
                while not received.endswith(b"\n"):
                    chunk = await stream.receive_some()
                    if not chunk:
                        raise client.hung_up(control)
                    received += chunk
    except trio.TooSlowError as e:
        raise client.silent(control, seconds) from e
    except trio.BrokenResourceError as e:
        raise client.hung_up(control) from e
    except OSError as e:
        raise client.absent(control, e) from e
    return client.decoded(control, bytes(received))
