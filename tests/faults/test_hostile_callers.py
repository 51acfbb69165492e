"""Callers of the agent's HTTP sockets that send too much, too slowly, too many at once, or never read."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api.serving import CONNECTIONS, HEAD_LIMIT
from agent.api.status import BODY_LIMIT, BODY_TIME, INTAKE
from agent.client import Client
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.rawhttp import Place, answer, connected, ends, head, post

pytestmark = pytest.mark.root
MIB = 1 << 20


class Doors(Agent):
    """An agent with all its HTTP sockets."""

    def __init__(self, directory: Path, logs: LogCheck) -> None:
        super().__init__(directory, logs)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        (directory / "agent.yaml").write_text(f"metrics: {{listen: '127.0.0.1:{port}'}}\nplugin: true\n")
        self.doors: dict[str, Place] = {
            "api": self.socket, "plugin": self.run_dir / "plugin.sock", "metrics": ("127.0.0.1", port),
        }  # fmt: skip

    def pools(self) -> list[tuple[str, str]]:
        """Name and path of each pool."""
        return [(pool["name"], pool["path"]) for pool in self.client.request("GET", "/v1/pools")["items"]]

    def memory(self) -> int:
        """Bytes that the agent's process has resident."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[Doors]:
    """A running agent with all its HTTP sockets."""
    running = Doors(workdir, logs)
    try:
        running.start()
        yield running
    finally:
        running.close()


def test_sockets_are_roots_alone(agent: Doors) -> None:
    """Whoever is not root can open no socket of the agent's, its keeper's or a volume server's."""
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, "
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}}"
    )
    agent.ok("mount", "c", str(agent.directory / "t"))
    sockets = [p for p in agent.directory.rglob("*") if p.is_socket()]

    assert {p.name for p in sockets} >= {"agent.sock", "plugin.sock", "keeper.sock"}
    assert len(sockets) == 4
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in sockets} == {0}
    assert {(p.stat().st_uid, p.stat().st_gid) for p in sockets} == {(0, 0)}


def test_a_head_that_is_too_large(agent: Doors) -> None:
    """A long path or many headers are refused in a sentence; what is larger than four times that, with a status."""
    answers, huge = [], set()
    for place in agent.doors.values():
        for request in (
            head("GET", "/v1/" + "p" * HEAD_LIMIT),
            head("GET", "/healthz?" + "q" * HEAD_LIMIT),
            head("GET", "/healthz", X="h" * HEAD_LIMIT),
            head("GET", "/healthz", **{f"X{i}": "h" * 100 for i in range(HEAD_LIMIT // 100)}),
        ):
            with connected(place) as peer:
                peer.sendall(request)
                code, said = answer(peer)
                answers.append((code, said["message"]))
        with connected(place) as peer:
            peer.sendall(head("GET", "/healthz", X="h" * 8 * HEAD_LIMIT)[:-4])
            huge.add(answer(peer)[0])

    assert len(answers) == 12
    assert set(answers) == {(431, f"The request's path and headers have more than {HEAD_LIMIT} bytes: send less.")}
    assert huge <= {400, 431}


BODIES = [
    (b" " * (BODY_LIMIT + 1), 413, f"larger than {BODY_LIMIT} bytes"),
    (b"[" * 100_000, 400, "nested too deeply"),
    (b'{"a":' * 100_000, 400, "nested too deeply"),
    (b'{"a": ' + b"9" * 10_000 + b"}", 400, "not JSON"),
    (b'{"a": "\xff"}', 400, "not JSON"),
    (b'{"a": "\\ud800"}', 400, "half a surrogate pair"),
    (b"\0", 400, "not JSON"),
]


def test_a_body_that_cannot_be(agent: Doors) -> None:
    """What is too large, too deep or no JSON is refused in one sentence, by API and plugin alike."""
    for body, code, why in BODIES:
        status, said = post(agent.doors["api"], "/v1/apply", body)
        plugins, its = post(agent.doors["plugin"], "/VolumeDriver.Create", body)

        assert (status, plugins) == (code, code), why
        assert why in said["message"]
        assert why in its["Err"]


WORDS: list[tuple[str, dict[str, object]]] = [
    ("/v1/mounts", {"claim": "c", "target": "/x\0y"}),
    ("/v1/mounts", {"claim": "c", "target": "/" + "x" * 5000}),
    ("/v1/mounts", {"claim": "c", "target": "/tmp/../x"}),
    ("/v1/mounts", {"claim": "c", "target": "x"}),
    ("/v1/mounts", {"claim": "../c", "target": "/tmp/x"}),
    ("/v1/mounts", {"claim": "c" * 300, "target": "/tmp/x"}),
    ("/v1/ephemeral", {"kind": "hostPath", "target": "/tmp/x", "options": {"path": "/a\0b"}}),
    ("/v1/ephemeral", {"kind": "hostPath", "target": "/tmp/x", "options": {"path": "/" + "a" * 5000}}),
    ("/v1/ephemeral", {"kind": "persistent", "target": "/tmp/x", "options": {"claim": "../../c", "size": "1Mi"}}),
    ("/v1/ephemeral", {"kind": "emptyDir", "target": "/tmp/x", "options": {"pool": "../c"}}),
    ("/v1/ephemeral", {"kind": "emptyDir", "target": "/tmp/x", "options": {"medium": "\0"}}),
    ("/v1/pools", {"name": "../x", "path": "/tmp/x"}),
    ("/v1/pools", {"name": "x", "path": "/tmp/\0"}),
    ("/v1/pools", {"name": "x", "path": "/" + "x" * 5000}),
    ("/v1/pools/default/trash/..%2f..%2fx/restore", {"claim": "c"}),
    ("/v1/pools/..%2f..%2fx/check", {}),
]


def test_words_that_cannot_be(agent: Doors) -> None:
    """Names and paths that are none are the caller's mistake, not a bug of ours, and nothing is made of them."""
    pools, answers = agent.pools(), []
    for path, body in WORDS:
        code, said = post(agent.socket, path, json.dumps(body).encode())
        answers.append((path, body, code, said))

    assert [one for one in answers if not 400 <= one[2] < 500] == []
    assert agent.client.request("GET", "/v1/mounts")["items"] == []
    assert agent.pools() == pools
    assert agent.client.request("GET", "/v1/persistentvolumeclaims")["items"] == []


NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/etc",
    "a/../b",
    "a\0b",
    "x" * 256,
    "ü",
    "\u202e",
    "a b",
    "-x",
    ".x",
    "a\n",
    7,
    None,
    {},
]


def test_plugins_names_are_no_paths(agent: Doors) -> None:
    """No call of docker or podman takes a name that a volume cannot have, in whatever it is asked to do."""
    volumes, answers = agent.pool / "volumes", []
    for name in NAMES:
        for call in ("Create", "Mount", "Unmount", "Path", "Get", "Remove"):
            body = json.dumps({"Name": name, "ID": "a", "Opts": {"size": "1Mi"}}).encode()
            code, said = post(agent.doors["plugin"], f"/VolumeDriver.{call}", body)
            answers.append((name, call, code, said["Err"]))

    assert [a for a in answers if a[2] != 422 or "cannot be the name of a volume" not in a[3]] == []
    assert list(volumes.iterdir()) == []


@pytest.mark.slow
def test_slow_callers(agent: Doors) -> None:
    """Who sends half a head, or half a body, is waited for a few seconds only; meanwhile others are answered."""
    with contextlib.ExitStack() as stack:
        silent, half_head, half_body, unread = (
            stack.enter_context(connected(agent.socket, 3 * BODY_TIME)) for _ in range(4)
        )
        half_head.sendall(b"GET /healthz HT")
        half_body.sendall(head("POST", "/v1/apply", Content_Length="100") + b"{")
        unread.sendall(head("GET", "/healthz", Content_Length="100") + b"{")  # which nobody wants to read
        began = time.monotonic()
        agent.client.request("GET", "/healthz", timeout=5)
        took = time.monotonic() - began
        first = ends(silent), ends(half_head)
        code, said = answer(half_body)
        later = time.monotonic() - began
        ends(unread)
        last = time.monotonic() - began

    assert took < 1
    assert sum(first) < BODY_TIME
    assert (code, said["reason"]) == (408, "Timeout")
    assert later < 2 * BODY_TIME
    assert last < 2 * BODY_TIME


@pytest.mark.parametrize("door", ["api", "metrics"])
def test_many_connections(agent: Doors, door: str) -> None:
    """A socket has so many connections; one too many is told so, and served when others have gone."""
    place, others = agent.doors[door], {k: v for k, v in agent.doors.items() if k != door}
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(place)).sendall(b"G")
        with connected(place) as peer:
            peer.sendall(head("GET", "/healthz"))
            code, said = answer(peer)
        elsewhere = []
        for other in others.values():
            with connected(other) as peer:
                peer.sendall(head("GET", "/nothing", Connection="close"))
                elsewhere.append(answer(peer)[0])

    def served() -> bool:
        with connected(place) as peer:
            peer.sendall(head("GET", "/nothing"))
            return answer(peer)[0] == 404

    assert (code, said["message"]) == (503, f"There are {CONNECTIONS} connections already: try again.")
    assert 503 not in elsewhere
    assert eventually(served, what="others are served again")


def test_callers_who_have_gone_do_not_count(agent: Doors) -> None:
    """Connections that come and go, with a request or without one, are forgotten at once."""
    codes = set()
    for number in range(3 * CONNECTIONS):
        with connected(agent.socket) as peer:
            if number % 3 == 0:
                peer.sendall(head("GET", "/nothing"))
                codes.add(answer(peer)[0])
            elif number % 3 == 1:
                peer.sendall(b"G")

    assert codes == {404}


def test_memory_stays_bounded(agent: Doors) -> None:
    """However many callers send bodies that never end, the agent holds no more than it wants to, and says so."""
    before = agent.memory()
    most, held, refused = before, 0, 0
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            peer = stack.enter_context(connected(agent.socket))
            peer.sendall(head("POST", "/v1/apply", Content_Length=str(BODY_LIMIT)))
            try:
                peer.sendall(b" " * (BODY_LIMIT - 1))
            except ConnectionError:
                refused += 1
            else:
                held += 1
            most = max(most, agent.memory())
        answered = agent.client.request("GET", "/healthz", timeout=5)

    assert held + refused == 64
    assert held * BODY_LIMIT >= INTAKE - BODY_LIMIT
    assert most - before < 3 * INTAKE
    assert answered == "ok"


def test_nobody_who_does_not_read_keeps_an_agent_from_ending(agent: Doors) -> None:
    """A caller that asked for megabytes and does not read them is left behind when the agent ends."""
    for number in range(3):
        large = {"metadata": {"name": f"c{number}"}, "data": {"k": "v" * 900_000}}
        Client(agent.socket).request("POST", "/v1/configmaps", large)
    with connected(agent.socket) as peer:
        peer.sendall(head("GET", "/v1/configmaps"))
        assert peer.recv(100)
        began = time.monotonic()
        code = agent.stop()
        took = time.monotonic() - began

    assert code == 0
    assert took < 10
