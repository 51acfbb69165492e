"""Who uses which way: passthrough where nothing is counted, transport and io_uring as configured; how it is told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport.kernel import parameter
from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = pytest.mark.root

Obj = dict[str, Any]
_REWRITE = """\
import os, sys
f = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
sys.stdin.readline()
os.pwrite(f, b"changed", 0)
print(os.pread(f, 7, 0).decode(), flush=True)
"""
_CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: special}
provisioner: fusevol.io/fusevol
allowVolumeExpansion: true
"""
_CLAIM = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: special
  resources: {requests: {storage: 1Mi}}
"""


class Writer:
    """A program that has *file* open, and rewrites and reads its beginning when told to."""

    def __init__(self, file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _REWRITE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "open\n"

    def begin(self) -> None:
        """Tell it to write."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def waits_for_the_server(self) -> bool:
        """Whether it is inside a request to a FUSE server."""
        return Path(f"/proc/{self._process.pid}/wchan").read_text() == "request_wait_answer"

    def result(self) -> str:
        """What it read."""
        assert self._process.stdout is not None
        return self._process.communicate(timeout=20)[0].strip()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing for a while (SIGSTOP)."""
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: ") T" in Path(f"/proc/{pid}/stat").read_text(), what="the server has stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def empty_dir(agent: Agent, name: str, source: Obj) -> Path:
    """The emptyDir of a new Pod, mounted."""
    container = {"name": "c", "image": "busybox", "volumeMounts": [{"name": "e", "mountPath": "/e"}]}
    spec = {"containers": [container], "volumes": [{"name": "e", "emptyDir": source}]}
    agent.client.request("POST", api.path("pod"), {"metadata": {"name": name}, "spec": spec})
    return eventually(lambda: api.is_ready(agent, name), 20.0, what=f"the volumes of {name}")[0]


def the_server(agent: Agent) -> Obj:
    """What the only volume server says of itself."""
    (found,) = agent.client.request("GET", "/v1/servers")["items"]
    assert agent.client.request("GET", f"/v1/servers/{found['mount_id']}")["pid"] == found["pid"]
    return dict(found)


def special_claim(agent: Agent, more: str) -> str:
    """The claim ``data`` of a class with *more* in it; its volume when it is bound."""
    agent.apply(f"{_CLASS}{more}---\n{_CLAIM}")
    return eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound")


def described(text: str) -> dict[str, str]:
    """The titles and values of a description."""
    return dict(re.findall(r"^([A-Z][A-Za-z ]+): +(.*)$", text, re.MULTILINE))


def test_an_empty_dir_without_a_limit_is_passthrough(agent: Agent) -> None:
    """Its data does not need the server, which stands still meanwhile; df shows what the pool has."""
    place = empty_dir(agent, "free", {})
    (place / "f").write_text("at first")
    server = the_server(agent)
    writer = Writer(place / "f")
    with stopped(server["pid"]):
        writer.begin()
        read = writer.result()
    page = described(agent.ok("describe", "mount", str(place)))
    volume = os.statvfs(place)
    pool = os.statvfs(agent.pool)

    assert read == "changed"
    assert (server["quota"], server["passthrough"]) == ("none", True)
    assert volume.f_blocks * volume.f_frsize == pool.f_blocks * pool.f_frsize
    assert (page["File Data"], page["Limit Kept By"], page["Kind"]) == ("passthrough", "nobody", "emptyDir")
    assert page["Used"] == "not counted: `du` of a mount can tell"


def test_an_empty_dir_with_a_limit_is_not(agent: Agent) -> None:
    """Its writer waits for the server, which has to count."""
    place = empty_dir(agent, "limited", {"sizeLimit": "1Mi"})
    (place / "f").write_text("at first")
    server = the_server(agent)
    writer = Writer(place / "f")
    with stopped(server["pid"]):
        writer.begin()
        waits = eventually(writer.waits_for_the_server, what="a write that waits for the server")
    page = described(agent.ok("describe", "mount", str(place)))

    assert waits
    assert writer.result() == "changed"
    assert (server["quota"], server["passthrough"]) == ("ledger", False)
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 1 << 20
    assert page["File Data"] == "by the server (the ledger counts what files take)"
    assert (page["Limit Kept By"], page["Used"]) == ("the ledger", "8Ki of 1Mi")


def test_a_class_without_a_quota(agent: Agent) -> None:
    """`quota: "none"`: the size is what the claim was promised, and no more; it can grow, and its data passes by."""
    volume = special_claim(agent, 'parameters: {quota: "none"}\n')
    target = agent.directory / "mnt"
    api.mount(agent, "data", target)
    (target / "big").write_bytes(bytes(2 << 20))
    server = the_server(agent)
    agent.apply(f"{_CLASS}parameters: {{quota: none}}\n---\n{_CLAIM.replace('1Mi', '4Mi')}")
    eventually(lambda: api.find(agent, "pv", volume)["spec"]["capacity"]["storage"] == "4Mi", what="a larger volume")
    (record,) = agent.client.request("GET", "/v1/pools/default")["volumes"]
    pages = [described(agent.ok("describe", *words)) for words in (("pvc", "data"), ("pv", volume))]

    assert (server["quota"], server["passthrough"]) == ("none", True)
    assert (record["quota"], record["capacity_bytes"]) == ("none", 4 << 20)
    assert agent.client.request("GET", "/v1/usage") == {}
    for page in pages:
        assert (page["Capacity"], page["Limit Kept By"]) == ("4Mi", "nobody")
        assert page["Used"].startswith("not counted")
    assert " none " in agent.ok("pool", "show", "default").splitlines()[-1]
    assert agent.ok("pool", "check") == "default: no damage found\n"


@pytest.mark.parametrize(
    ("arguments", "options", "transport"),
    [
        ((), "", "kernel"),
        (("--transport", "pyfuse3"), "", "pyfuse3"),
        (("--transport", "pyfuse3"), "mountOptions: [transport=kernel]\n", "kernel"),
        ((), "mountOptions: [transport=pyfuse3]\n", "pyfuse3"),
    ],
)
def test_the_transport_is_what_is_configured(
    workdir: Path, logs: LogCheck, arguments: tuple[str, ...], options: str, transport: str
) -> None:
    """The agent's for all volumes, a class's for its own; a new server after a death has the same."""
    agent = Agent(workdir, logs)
    try:
        agent.start(*arguments)
        special_claim(agent, options)
        api.mount(agent, "data", agent.directory / "mnt")
        server = the_server(agent)
        page = described(agent.ok("describe", "pvc", "data"))
        logs.expect("ended unexpectedly", "mounted again", "had ended")
        os.kill(server["pid"], signal.SIGKILL)
        eventually(lambda: set(api.servers(agent).values()) - {server["pid"]}, what="another server")
        again = the_server(agent)
        listed = agent.ok("get", "servers")
    finally:
        agent.close()

    assert (server["transport"], again["transport"]) == (transport, transport)
    assert page["Transport"].startswith(f"{transport} over ")
    assert re.search(rf"   {transport}(\+io_uring)?   ", listed)


@contextlib.contextmanager
def io_uring_off() -> Iterator[None]:
    """FUSE over io_uring is switched off for the machine at first."""
    if not parameter.PARAMETER.exists():
        pytest.skip("this kernel has no FUSE over io_uring (Linux 6.14)")
    before = parameter.PARAMETER.read_text()
    parameter.PARAMETER.write_text("N")
    try:
        yield
    finally:
        parameter.PARAMETER.write_text(before)


def test_the_agent_switches_io_uring_on(workdir: Path, logs: LogCheck) -> None:
    """`ioUring: on` in the file: the machine has it from the agent's start on, and its mounts use it."""
    agent = Agent(workdir, logs)
    (workdir / "agent.yaml").write_text("ioUring: on\n")
    try:
        with io_uring_off():
            agent.start()
            enabled = parameter.enabled()
            special_claim(agent, "")
            api.mount(agent, "data", agent.directory / "mnt")
        server = the_server(agent)
        page = described(agent.ok("describe", "mount", f"{agent.directory}/mnt"))
    finally:
        agent.close()

    assert enabled
    assert server["io_uring"], server["why_not"]
    assert page["Transport"] == "kernel over io_uring"


def test_the_agent_leaves_io_uring_alone(workdir: Path, logs: LogCheck) -> None:
    """Without being told to, it switches nothing on, and the mount says why it does without."""
    agent = Agent(workdir, logs)
    try:
        with io_uring_off():
            agent.start()
            special_claim(agent, "")
            api.mount(agent, "data", agent.directory / "mnt")
            enabled = parameter.enabled()
        page = described(agent.ok("describe", "mount", f"{agent.directory}/mnt"))
    finally:
        agent.close()

    assert not enabled
    assert page["Transport"] == f"kernel over /dev/fuse (no io_uring: {parameter.PARAMETER} is N)"


def test_io_uring_cannot_be_switched_on(workdir: Path, logs: LogCheck) -> None:
    """In a container whose /sys is read-only: one sentence says what to do, and volumes are served all the same."""

    class Contained(Agent):
        def command(self, *arguments: str) -> list[str]:
            words = super().command(*arguments)
            if arguments[0] != "agent":
                return words
            shell = 'mount -o remount,bind,ro /sys && exec "$@"'
            return ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", *words]

    agent = Contained(workdir, logs)
    logs.expect("FUSE over io_uring cannot be switched on")
    try:
        with io_uring_off():
            agent.start("--io-uring", "on")
            enabled = parameter.enabled()
            special_claim(agent, "")
            api.mount(agent, "data", agent.directory / "mnt")
        server = the_server(agent)
        api.unmount(agent, agent.directory / "mnt")
    finally:
        agent.close()
    said = [line for line in agent.log.read_text().splitlines() if "cannot be switched on" in line]

    assert not enabled
    assert len(said) == 1
    assert "Read-only file system), so requests come over /dev/fuse: run `echo Y` into that file" in said[0]
    assert not server["io_uring"]


def test_use_is_known_without_the_server(agent: Agent) -> None:
    """What a claim uses is shown though its volume server does nothing at all."""
    target = agent.directory / "mnt"
    api.make_claim(agent, "data")
    api.mount(agent, "data", target)
    (target / "file").write_bytes(b"x" * (1 << 20))
    (pid,) = api.servers(agent).values()
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = agent.ok("get", "pvc", "data", timeout=4).splitlines()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert dict(zip(re.split(" {3,}", shown[0]), re.split(" {3,}", shown[1]), strict=True))["USED"] == "1Mi"
