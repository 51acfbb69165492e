"""A caller of the volume plugin: what docker and podman send, by hand."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from fusevol.errors import UnavailableError


class RefusedError(UnavailableError):
    """The plugin's ``Err``."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Caller:
    """Calls on the socket at *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def connection(self) -> http.client.HTTPConnection:
        """A connection to the socket."""
        return _Connection(self.path)

    def raw(self, call: str, body: bytes, method: str = "POST") -> tuple[int, dict[str, Any]]:
        """Status and answer of one call."""
        connection = self.connection()
        try:
            connection.request(method, f"/{call}", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(f"The plugin does not answer: {e}.") from e
        finally:
            connection.close()

    def call(self, call: str, **fields: Any) -> dict[str, Any]:
        """The answer of ``VolumeDriver.<call>``. Raises :class:`RefusedError` with its ``Err``."""
        status, answer = self.raw(f"VolumeDriver.{call}", json.dumps(fields).encode())
        assert (status == 200) == (answer["Err"] == ""), (status, answer)
        if answer["Err"]:
            raise RefusedError(answer["Err"])
        return answer

    def create(self, name: str, **options: str) -> None:
        """Make a volume."""
        self.call("Create", Name=name, Opts=options)

    def mount(self, name: str, caller: str) -> Path:
        """Mount it."""
        return Path(self.call("Mount", Name=name, ID=caller)["Mountpoint"])

    def unmount(self, name: str, caller: str) -> None:
        """Unmount it."""
        self.call("Unmount", Name=name, ID=caller)

    def names(self) -> list[str]:
        """All volumes."""
        return sorted(v["Name"] for v in self.call("List")["Volumes"])
