"""The client of the agent's socket, against a server that answers what the test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.client import Client, default_socket, path_of
from fusevol.errors import (
    ConflictError,
    FusevolError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
)

Serve = Callable[[bytes], Client]


@pytest.fixture
def serve(workdir: Path) -> Iterator[Serve]:
    """A factory: a client of a server that reads one request, sends these bytes and hangs up (empty: never answers)."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []
    done = threading.Event()

    def make(answer: bytes) -> Client:
        listener = socket.socket(socket.AF_UNIX)
        path = workdir / f"{len(listeners)}.sock"
        listener.bind(str(path))
        listener.listen(1)
        listeners.append(listener)

        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer:
                    connection.sendall(answer)
                else:
                    done.wait(20)

        thread = threading.Thread(target=once)
        thread.start()
        threads.append(thread)
        return Client(path)

    try:
        yield make
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
        for listener in listeners:
            listener.close()


def response(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """An HTTP answer."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (response(b'{"a": 1}'), {"a": 1}),
        (response(b""), None),
        (response(b"ok", kind="text/plain; charset=utf-8"), "ok"),
    ],
)
def test_answers(serve: Serve, answer: bytes, value: object) -> None:
    """JSON is decoded, a plain text is a text, nothing is None."""
    assert serve(answer).request("GET", "/x") == value


@pytest.mark.parametrize(
    ("reason", "kind"), [("NotFound", NotFoundError), ("Conflict", ConflictError), ("Expired", FusevolError)]
)
def test_status_becomes_an_error(serve: Serve, reason: str, kind: type[FusevolError]) -> None:
    """A Status object is raised as the error that the agent raised, with its sentence."""
    status = json.dumps({"kind": "Status", "reason": reason, "message": "So it is."}).encode()

    with pytest.raises(kind, match=r"^So it is\.$"):
        serve(response(status, "404 Not Found")).request("GET", "/x")


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (response(b"<html>", "502 Bad Gateway", "text/html"), FusevolError, "HTTP status 502"),
        (response(b"<html>"), FusevolError, "not JSON"),
        (b"nonsense\r\n\r\n", UnavailableError, "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", UnavailableError, "broke"),
    ],
)
def test_broken_answers(serve: Serve, answer: bytes, kind: type[FusevolError], says: str) -> None:
    """Whatever comes back, it is one of our errors in one line."""
    with pytest.raises(kind, match=says):
        serve(answer).request("GET", "/x")


def test_no_answer_in_time(serve: Serve) -> None:
    """An agent that hangs is a time-out that names the socket."""
    client = serve(b"")

    with pytest.raises(TimeoutExpiredError, match=r"did not answer within 0\.05 s"):
        client.request("GET", "/x", timeout=0.05)


def test_watch(serve: Serve) -> None:
    """A watch yields each line as an event, until the agent hangs up."""
    lines = b'{"type":"ADDED"}\n{"type":"DELETED"}\n'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (lines[:5], lines[5:])) + b"0\r\n\r\n"
    client = serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert [e["type"] for e in client.watch("/x?watch=1")] == ["ADDED", "DELETED"]


def test_watch_that_is_refused(serve: Serve) -> None:
    """A watch that cannot begin is an error, not an empty watch."""
    status = json.dumps({"reason": "NotFound", "message": "There is none."}).encode()
    client = serve(response(status, "404 Not Found"))

    with pytest.raises(NotFoundError, match="There is none"):
        list(client.watch("/x?watch=1"))


def test_socket_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSEVOL_SOCKET goes over FUSEVOL_RUN_DIR, which goes over /run/fusevol."""
    monkeypatch.delenv("FUSEVOL_SOCKET", raising=False)
    monkeypatch.delenv("FUSEVOL_RUN_DIR", raising=False)
    paths = [default_socket()]
    monkeypatch.setenv("FUSEVOL_RUN_DIR", "/r")
    paths.append(default_socket())
    monkeypatch.setenv("FUSEVOL_SOCKET", "/s")
    paths.append(default_socket())

    assert [str(p) for p in paths] == ["/run/fusevol/agent.sock", "/r/agent.sock", "/s"]


def test_names_are_quoted() -> None:
    """What a user types never becomes more than one component of the path."""
    assert path_of("pods", "../x?y", labelSelector="a=b") == "/v1/pods/..%2Fx%3Fy?labelSelector=a%3Db"
