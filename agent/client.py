"""A synchronous client of the agent's HTTP API on its unix socket.

It stands on ``http.client`` alone: the command line and the FlexVolume call-outs are started for every single mount,
so what counts is the time to import. (An HTTP library would cost more than the request.)
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from fusevol.errors import FusevolError, TimeoutExpiredError, UnavailableError, by_reason

DEFAULT_RUN_DIR = Path("/run/fusevol")
DEFAULT_TIMEOUT = 60.0

T = TypeVar("T")


def default_socket() -> Path:
    """Where the agent listens: ``FUSEVOL_SOCKET``, else ``agent.sock`` in ``FUSEVOL_RUN_DIR`` or /run/fusevol."""
    named = os.environ.get("FUSEVOL_SOCKET")
    if named:
        return Path(named)
    return Path(os.environ.get("FUSEVOL_RUN_DIR") or DEFAULT_RUN_DIR) / "agent.sock"


def path_of(*parts: str, **query: str | None) -> str:
    """``/v1`` and *parts*, each quoted as one path component, with the *query* values that are not None."""
    path = "/".join(["/v1", *(quote(p, safe="") for p in parts)])
    given = {k: v for k, v in query.items() if v is not None}
    return f"{path}?{urlencode(given)}" if given else path


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose other end is a unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Speaks to one agent. Holds no connection between requests; may be used from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self.socket = path or default_socket()

    def __repr__(self) -> str:
        return f"Client({str(self.socket)!r})"

    def request(self, method: str, path: str, body: object = None, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """The decoded answer to one request: JSON values, or the text of a plain text; None without a body.

        *timeout* is in seconds for each wait on the socket. Raises the child of :class:`FusevolError` that the
        agent's ``Status`` names; :class:`UnavailableError` when no agent answers on the socket;
        :class:`TimeoutExpiredError` when it does not answer in time.
        """
        connection, response = self._send(method, path, body, timeout)
        try:
            content = self._guarded(response.read, timeout)
        finally:
            connection.close()
        answer = _decode(content)
        if response.status >= 400:
            raise _error(answer, response.status, content)
        if not content.strip():
            return None
        if answer is None and response.headers.get_content_maintype() == "text":
            return content.decode(errors="replace")
        if answer is None and content.strip() != b"null":
            raise FusevolError(f"The agent on {self.socket} answered {method} {path} with something that is not JSON.")
        return answer

    def watch(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a watch (*path* contains ``watch=1``), until the agent ends it or the iterator is closed."""
        connection, response = self._send("GET", path, None, None)
        try:
            if response.status >= 400:
                content = self._guarded(response.read, None)
                raise _error(_decode(content), response.status, content)
            while line := self._guarded(response.readline, None):
                event = _decode(line)
                if isinstance(event, dict):
                    yield event
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: object, timeout: float | None
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self.socket, timeout)
        headers = {"Accept": "application/json", "Connection": "close"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"

        def exchange() -> http.client.HTTPResponse:
            connection.request(method, path, content, headers)
            return connection.getresponse()

        try:
            return connection, self._guarded(exchange, timeout)
        except BaseException:
            connection.close()
            raise

    def _guarded(self, action: Callable[[], T], timeout: float | None) -> T:
        """*action*'s result, with what a socket can do wrong told in our words."""
        try:
            return action()
        except TimeoutError as e:
            raise TimeoutExpiredError(
                f"The agent on {self.socket} did not answer within {timeout:g} s: look at its log, or ask again."
            ) from e
        except (FileNotFoundError, ConnectionRefusedError) as e:
            raise UnavailableError(
                f"No agent answers on {self.socket}: start one with `fusevol agent`, or name its socket with --socket."
            ) from e
        except PermissionError as e:
            raise UnavailableError(
                f"The agent's socket {self.socket} may not be used by this user: run the command as root."
            ) from e
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(
                f"The connection to the agent on {self.socket} broke ({e or type(e).__name__}): "
                "see whether it still runs, and ask again."
            ) from e


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _error(answer: Any, status: int, content: bytes) -> FusevolError:
    """The exception that an answer of 400 or above stands for."""
    if isinstance(answer, dict) and isinstance(answer.get("message"), str):
        return by_reason(str(answer.get("reason", "")))(answer["message"])
    shown = content.decode(errors="replace").strip()[:200] or "no explanation"
    return FusevolError(f"The agent answered with HTTP status {status} ({shown}); its log says more.")
