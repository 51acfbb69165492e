"""Metrics and probes of a running agent, also while something hangs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.support import api, monitoring
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.metrics import Samples
from tests.support.plugin import Caller, RefusedError
from tests.support.polling import eventually
from tests.support.processes import alive

pytestmark = pytest.mark.root


class Watched(Agent):
    """An agent with metrics on TCP, and a plugin socket to make volumes by."""

    def __init__(self, directory: Path, logs: LogCheck, pools: dict[str, Path]) -> None:
        super().__init__(directory, logs)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        listed = ", ".join(f"{name}: {path}" for name, path in {"default": self.pool, **pools}.items())
        (directory / "agent.yaml").write_text(
            f"metrics: {{listen: '127.0.0.1:{self.port}'}}\nplugin: true\npools: {{{listed}}}\n"
            "hangs: {giveUpAfter: 8s, reportAfter: 2s}\n"
        )
        self.caller = Caller(self.run_dir / "plugin.sock")

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of a GET by TCP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Samples:
        """A scrape."""
        status, text = self.ask("/metrics")
        assert status == 200
        return Samples(text)


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[Watched]:
    """A running agent with metrics."""
    running = Watched(workdir, logs, {})
    try:
        running.start()
        yield running
    finally:
        running.close()


def test_a_volume_in_use(agent: Watched) -> None:
    """A claim's use, limit and takeovers are there under its name, and what its making took."""
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, "
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}}"
    )
    eventually(lambda: api.is_bound(agent, "data"), what="the claim is bound")
    target = agent.directory / "t"
    api.mount(agent, "data", target)
    before = agent.metrics()
    (target / "f").write_bytes(b"x" * (1 << 20))
    middle = agent.metrics()
    (server,) = agent.servers()
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not alive(server) and agent.servers() not in ([], [server]), what="another server goes on")
    eventually(lambda: agent.metrics()("server_takeovers_total", "data") == 1, what="the takeover is counted")
    with pytest.raises(OSError, match="No space left"):
        (target / "large").write_bytes(b"x" * (9 << 20))
    after = agent.metrics()

    assert after("server_refused_total", "data") >= 1
    assert after("server_operations_total", "data") > 10
    assert after("call_seconds_count", "api", "apply", "200") == 1
    assert after("queue_depth", "claim") == 0
    assert after("volume_limit_bytes", "data") == 8 << 20
    assert middle("volume_used_bytes", "data") - before("volume_used_bytes", "data") == 1 << 20
    assert after("provisioning_seconds_count", "default", "ok") == 1
    assert after("pool_provisioned_bytes", "default") == 8 << 20
    assert after("api_requests_total", "POST", "apply", "200") == 1
    assert after("attachments") == 1


def test_alerts_and_dashboard_ask_for_what_there_is(agent: Watched) -> None:
    """Every metric that an alert or a panel asks for is one that an agent with a mounted claim exports."""
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, "
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}}"
    )
    eventually(lambda: api.is_bound(agent, "data"), what="the claim is bound")
    api.mount(agent, "data", agent.directory / "t")
    status, text = agent.ask("/metrics")
    exported = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}
    exported |= {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}  # limits that are not set

    assert status == 200
    assert len(monitoring.metrics()) > 15
    assert monitoring.metrics() - exported == set()


def test_the_same_on_the_socket_of_the_api(agent: Watched) -> None:
    """Metrics are on the API's socket, too; by TCP there is nothing but metrics and probes."""
    own = Caller(agent.socket)
    status, _ = agent.ask("/v1/pools")
    connection = own.connection()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read()
    connection.close()

    assert b"fusevol_ready 1.0" in text
    assert status == 404


def test_probes(agent: Watched) -> None:
    """An agent that has started is healthy and ready, and says of what that consists."""
    assert agent.ask("/healthz") == (200, "ok")
    assert agent.ask("/readyz") == (200, "ok")
    assert agent.ask("/readyz?verbose") == (200, "[+]started ok\n[+]keeper ok\n[+]pool default ok\n")


@pytest.mark.slow
@pytest.mark.expect_log("has not answered for", "cannot be undone yet")
def test_a_hung_pool_holds_up_no_scrape(workdir: Path, logs: LogCheck, volume_server: StartServer) -> None:
    """While a pool hangs a scrape takes a few seconds at most, says which pool, and has the numbers of the others."""
    storage = volume_server(transport="kernel", io_uring=False, deadline=280.0)
    agent = Watched(workdir, logs, {"slow": storage.mountpoint / "pool"})
    try:
        agent.start()
        agent.caller.create("there", size="8Mi", pool="slow")
        before = agent.metrics()
        with storage.stopped():
            took = []
            for _ in range(3):  # nobody has found out yet that it hangs
                began = time.monotonic()
                during = agent.metrics()
                took.append(time.monotonic() - began)
            with pytest.raises(RefusedError, match="has not answered"):
                agent.caller.create("other", size="8Mi", pool="slow")
            began = time.monotonic()
            known = agent.metrics()
            took_then = time.monotonic() - began
            ready = agent.ask("/readyz?verbose")
            agent.caller.create("here", size="8Mi", pool="default")
        eventually(lambda: agent.metrics()("pool_answers", "slow") == 1, what="the pool answers again")

        assert (before("pool_answers", "slow"), during("pool_answers", "slow")) == (1, 0)
        assert before("pool_volumes", "slow") == 1
        assert during.all("pool_volumes", "slow") == known.all("pool_volumes", "slow") == []
        assert len(during.all("pool_volumes", "default")) == 1
        assert known("provisioning_seconds_count", "slow", "error") == 1
        assert max(took) < 6
        assert took_then < 2
        assert ready[0] == 200
        assert "[-]pool slow failed\n" in ready[1]
    finally:
        agent.close()


def test_a_stopped_server_holds_up_no_scrape(agent: Watched) -> None:
    """A volume server that does not answer is told as such, in a few seconds."""
    agent.caller.create("data", size="8Mi")
    agent.caller.mount("data", "a")
    (server,) = agent.servers()
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        during = agent.metrics()
        took = time.monotonic() - began
    finally:
        os.kill(server, signal.SIGCONT)

    assert agent.metrics()("call_seconds_count", "plugin", "Mount", "200") == 1
    assert during("server_answers", "plugin.data") == 0
    assert took < 6
    assert agent.metrics()("server_answers", "plugin.data") == 1


def test_an_address_in_use(workdir: Path, logs: LogCheck) -> None:
    """An agent that cannot have the address of its metrics says so in one sentence, and ends."""
    agent = Watched(workdir, logs, {})
    with socket.create_server(("127.0.0.1", agent.port)):
        process = agent.launch()
        code = process.wait(30)
    agent.close()

    assert code == 2
    assert f"127.0.0.1:{agent.port}, cannot be opened: Address already in use." in agent.log.read_text()
