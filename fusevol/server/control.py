"""The control socket: one JSON object per line each way, on threads of its own.

It answers although requests hang: nothing here but ``drain``, and changing limits that the
kernel keeps, waits for the backing store. Mode 0600: whoever can
connect may unmount.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fusevol.errors import FusevolError

log = logging.getLogger(__name__)

_LINE: Final = 1 << 16
"""Longest request in bytes."""
_PATIENCE: Final = 60.0
"""Seconds that a connection may stay silent."""
_CONNECTIONS: Final = 32
"""At the same time; more wait in the socket's queue."""
_FAREWELL: Final = 2.0
"""Seconds that an answer may take when the server ends."""

Answer = dict[str, Any]
Operations = Mapping[str, Callable[[Mapping[str, Any]], Answer]]


class RequestError(Exception):
    """A request that cannot be carried out: one sentence, and the errno if there is one."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code


class ControlSocket:
    """Listens on *path* from construction on; :meth:`start` begins to answer by *operations*."""

    def __init__(self, path: Path, operations: Operations) -> None:
        """Raises ``OSError``: EADDRINUSE if a living server has the socket. A dead one's is replaced."""
        self._path = path
        self._operations = operations
        self._answering = 0
        self._idle = threading.Condition()
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._bind()
        except OSError:
            self._socket.close()
            raise

    def _bind(self) -> None:
        if self._path.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as other:
                other.settimeout(1.0)
                try:
                    other.connect(os.fspath(self._path))
                except ConnectionRefusedError:
                    self._path.unlink()
                else:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), os.fspath(self._path))
        before = os.umask(0o177)
        try:
            self._socket.bind(os.fspath(self._path))
        finally:
            os.umask(before)
        self._socket.listen(_CONNECTIONS)

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the socket, when those who were asking have their answer."""
        self._path.unlink(missing_ok=True)
        with self._idle:
            self._idle.wait_for(lambda: not self._answering, _FAREWELL)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept(2) is not woken by close(2)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                connection.settimeout(_PATIENCE)
                while line := lines.readline(_LINE):
                    with self._counted():
                        connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError as e:
            log.debug("control connection: %s", e)
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            self._answering += 1
        try:
            yield
        finally:
            with self._idle:
                self._answering -= 1
                self._idle.notify_all()

    def _answer(self, line: bytes) -> Answer:
        try:
            request = json.loads(line)
            op = request["op"]
            operation = self._operations[op]
        except (ValueError, TypeError, KeyError):
            known = ", ".join(self._operations)
            return _failure(f"The request was not understood: send one JSON object per line with an op out of {known}.")
        try:
            return {"ok": True, **operation(request)}
        except RequestError as e:
            return _failure(str(e), e.code)
        except FusevolError as e:
            return _failure(e.message)
        except OSError as e:
            return _failure(f"The operation {op} failed: {e.strerror or e}.", e.errno)
        except Exception:
            log.exception("control operation %s failed unexpectedly", op)
            return _failure(f"The operation {op} failed because of a bug: see the server's log file.")


def _failure(sentence: str, code: int | None = None) -> Answer:
    return {"ok": False, "error": sentence, "errno": code}
