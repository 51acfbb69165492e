"""Bad input: each mistake is one sentence on stderr with the right exit code, and changes nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusevol.transport import mount
from tests.conftest import LoopFs
from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared() -> Iterator[Agent]:
    """One agent for the whole table: no row may change anything, and each row proves it."""
    with tempfile.TemporaryDirectory(prefix="b") as directory:
        check = LogCheck()
        agent = Agent(Path(directory), check)
        try:
            yield agent.start()
        finally:
            agent.close()
        assert check.unexpected() == []


def claim(name: str = "data", size: Any = "1Gi", **spec: Any) -> dict[str, Any]:
    """A claim; *size* None: without one."""
    resources = {} if size is None else {"requests": {"storage": size}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": resources, **spec},
    }


def pod(volume: dict[str, Any], name: str = "web") -> dict[str, Any]:
    """A Pod with one volume."""
    mounts = [{"name": "v", "mountPath": "/v"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "c", "image": "busybox", "volumeMounts": mounts}],
            "volumes": [{"name": "v", **volume}],
        },
    }


def text(*objects: dict[str, Any]) -> str:
    """YAML of *objects*."""
    return str(yaml.safe_dump_all(objects))


def state(agent: Agent) -> tuple[object, list[str]]:
    """All objects and all of the pool's files."""
    files = sorted(str(p.relative_to(agent.pool)) for p in agent.pool.rglob("*"))
    return [agent.get(kind, "-A")["items"] for kind in ("pvc", "pods")] + [agent.get("pv,sc")["items"]], files


def sentence(done: subprocess.CompletedProcess[str], says: str, code: int = 1) -> None:
    """Assert that a command failed as a user's mistake should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


APPLY = {
    "malformed YAML": ("apiVersion: v1\nkind: [Pod\n", r"<standard input>.*line \d"),
    "tab in YAML": ("apiVersion: v1\n\tkind: Pod\n", r"line 2"),
    "not a mapping": ("- a\n- b\n", "<standard input>"),
    "only text": ("hello\n", "<standard input>"),
    "empty": ("", "no object"),
    "no kind": ("apiVersion: v1\nmetadata: {name: a}\n", "kind"),
    "unknown kind": (text({**claim(), "kind": "Deployment", "apiVersion": "apps/v1"}), "Deployment"),
    "no name": (text({**claim(), "metadata": {}}), "name"),
    "no storage": (
        text(claim(size=None)),
        r'PersistentVolumeClaim "data" is invalid: spec\.resources.*: Required value',
    ),
    "size 0": (text(claim(size="0")), r"spec\.resources"),
    "size -1Gi": (text(claim(size="-1Gi")), r"spec\.resources"),
    "size 10GB": (text(claim(size="10GB")), r"10GB"),
    "absurd size": (text(claim(size="1e300")), r"spec\.resources"),
    "size list": (text(claim(size=["1Gi"])), r"spec\.resources"),
    "seed's name": (text(pod({"emptyDir": {}}, "emptyDir-path")), r"emptyDir-path.*emptydir-path"),
    "name with slash": (text(claim("../etc")), r"metadata\.name"),
    "path with ..": (text(pod({"hostPath": {"path": "/srv/../etc"}})), r"must not contain '\.\.'"),
    "unknown hostPath type": (text(pod({"hostPath": {"path": "/srv", "type": "Dir"}})), "Dir"),
    "volume without source": (text(pod({})), "must specify a volume type"),
    "second document bad": (text(claim("good"), claim("bad", size="10GB")), "10GB"),
    "twice the same": (text(claim(), claim()), "described twice"),
}


@pytest.mark.parametrize("case", APPLY)
def test_apply(shared: Agent, case: str) -> None:
    """``apply`` refuses what is not valid, all documents of it, with one sentence."""
    before = state(shared)
    document, says = APPLY[case]
    done = shared.cli("apply", "-f", "-", text=document)

    sentence(done, says)
    assert state(shared) == before


COMMANDS = {
    "no such file": (["apply", "-f", "missing.yaml"], "missing.yaml cannot be read", 1),
    "no such kind": (["get", "frobs"], "frobs", 1),
    "no such object": (["get", "pvc", "nothing"], "nothing", 1),
    "describe nothing": (["describe", "pvc", "nothing"], "nothing", 1),
    "delete nothing": (["delete", "pvc", "nothing"], "nothing", 1),
    "mount nothing": (["mount", "nothing", "mnt"], "nothing", 1),
    "no such pool": (["pool", "show", "nothing"], "nothing", 1),
    "no Pod to run": (["run", "-f", "claim.yaml"], "0 Pods", 2),
    "other namespace": (["apply", "-n", "b", "-f", "in-a.yaml"], 'is in the namespace "a"', 2),
    "bad namespace": (["apply", "-n", "A_B", "-f", "claim.yaml"], "namespace", 1),
    "bad output": (["get", "pvc", "-o", "xml"], "xml", 2),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(shared: Agent, case: str) -> None:
    """Commands about things that do not exist, or that contradict themselves, say so."""
    (shared.directory / "claim.yaml").write_text(text(claim()))
    (shared.directory / "in-a.yaml").write_text(text({**claim(), "metadata": {"name": "x", "namespace": "a"}}))
    before = state(shared)
    arguments, says, code = COMMANDS[case]
    done = shared.cli(*arguments)

    sentence(done, says, code)
    assert state(shared) == before
    assert not (shared.directory / "mnt").exists()


HOST_PATHS = {
    "Directory": ("missing", "doesn't exist|is not a directory"),
    "File": ("missing", "doesn't exist|is not a file"),
    "Socket": ("missing", "doesn't exist|is not a socket"),
    "CharDevice": ("missing", "doesn't exist|is not a character device"),
    "BlockDevice": ("missing", "doesn't exist|is not a block device"),
    "FileOrCreate": ("missing/parent/file", "missing/parent"),
}


@pytest.mark.parametrize("kind", HOST_PATHS)
def test_missing_host_path(shared: Agent, kind: str) -> None:
    """A hostPath that is not there: running the Pod ends with the reason, and nothing is made at the path."""
    name, says = HOST_PATHS[kind]
    path = shared.directory / name
    name = f"missing-{kind.lower()}"
    file = shared.directory / "pod.yaml"
    file.write_text(text(pod({"hostPath": {"path": str(path), "type": kind}}, name)))
    try:
        done = shared.cli("run", "--prepare", "--timeout", "1s", "-f", str(file))
    finally:
        shared.cli("delete", "--ignore-not-found", "pod", name)

    sentence(done, says)
    assert not (shared.directory / "missing").exists()


NEEDS_AGENT = [
    ["apply", "-f", "claim.yaml"],
    ["get", "pvc"],
    ["get", "pools"],
    ["describe", "pvc", "data"],
    ["delete", "pvc", "data"],
    ["mount", "data", "mnt"],
    ["umount", "mnt"],
    ["pool", "show"],
    ["pool", "check"],
    ["run", "--prepare", "-f", "pod.yaml"],
    ["events"],
]


@pytest.mark.parametrize("arguments", NEEDS_AGENT, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("how", ["no socket", "dead socket"])
def test_agent_not_running(workdir: Path, logs: LogCheck, arguments: list[str], how: str) -> None:
    """Without an agent every command names the socket and how to start one."""
    agent = Agent(workdir, logs)
    agent.run_dir.mkdir()
    if how == "dead socket":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(agent.socket))
    (workdir / "claim.yaml").write_text(text(claim()))
    (workdir / "pod.yaml").write_text(text(pod({"emptyDir": {}})))
    done = agent.cli(*arguments)

    sentence(done, f"No agent answers on {agent.socket}: start one with `fusevol agent`")


def test_socket_in_use(shared: Agent) -> None:
    """A second agent on the same socket says so and leaves the first one alone."""
    done = shared.cli("agent", "--state-dir", str(shared.directory / "s2"), "--run-dir", str(shared.run_dir))

    sentence(done, re.escape(str(shared.socket)))
    assert shared.ok("get", "sc", "-o", "name")


def test_socket_is_a_file(workdir: Path, logs: LogCheck) -> None:
    """What lies at the socket's path and is no socket is not removed."""
    agent = Agent(workdir, logs)
    agent.run_dir.mkdir()
    agent.socket.write_text("precious")
    done = agent.cli("agent", "--state-dir", str(agent.state), "--run-dir", str(agent.run_dir))

    sentence(done, re.escape(str(agent.socket)), 2)
    assert agent.socket.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config", "bad.yaml"], "bad.yaml"),
        (["--pool", "nonsense"], "NAME=DIR"),
        (["--pool", "Bad_Name=/tmp/x"], "Bad_Name"),
        (["--log-level", "loud"], "loud"),
        (["--frob"], "--frob"),
    ],
)
def test_agent_configuration(workdir: Path, logs: LogCheck, arguments: list[str], says: str) -> None:
    """An agent that is told nonsense does not start."""
    (workdir / "bad.yaml").write_text("stateDir: [\n")
    agent = Agent(workdir, logs)
    done = agent.cli("agent", "--state-dir", str(agent.state), "--run-dir", str(agent.run_dir), *arguments)

    assert done.returncode in {1, 2}
    sentence(done, says, done.returncode)
    assert not agent.state.exists()


@pytest.fixture
def pool(loop_fs: LoopFs) -> Path:
    """A small filesystem for a pool."""
    return loop_fs("ext4", 32 << 20)


@pytest.fixture
def pool_agent(workdir: Path, logs: LogCheck, pool: Path) -> Iterator[Agent]:
    """An agent whose default pool is on the small filesystem."""
    agent = Agent(workdir, logs)
    try:
        yield agent.start("--pool", f"default={pool / 'p'}")
    finally:
        agent.close()


def fails_to_provision(agent: Agent, says: str) -> None:
    """Apply a claim and require that a Pod on it does not run, and that the claim's events have the reason."""
    agent.apply(text(claim()))
    file = agent.directory / "pod.yaml"
    file.write_text(text(pod({"persistentVolumeClaim": {"claimName": "data"}})))
    events = eventually(lambda: agent.ok("events", "--for", "pvc/data"), what="an event about the claim")
    done = agent.cli("run", "--prepare", "--timeout", "1s", "-f", str(file))

    sentence(done, r"(?i)claim .*data|data.*claim|bound")
    assert re.search(f"ProvisioningFailed.*{says}", events), events
    assert agent.get("pvc", "data")["status"]["phase"] == "Pending"
    assert agent.get("pv")["items"] == []


@pytest.mark.expect_log("(?i)provision")
def test_pool_full(pool_agent: Agent, pool: Path) -> None:
    """On a pool without a free inode or byte the claim stays Pending and says why."""
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            (pool / f"ballast{number}").touch()
    assert os.statvfs(pool).f_favail == 0

    fails_to_provision(pool_agent, "(?:[Ss]pace|full)")


def test_what_fails_to_mount_is_tried_again_later_and_later(pool_agent: Agent) -> None:
    """A Pod whose volume cannot be mounted keeps nobody busy: the time until the next try doubles."""
    pool_agent.apply(text(claim()))
    volume = eventually(lambda: api.is_bound(pool_agent, "data"), 20.0, what="the claim is bound")
    data = next((pool_agent.directory / "ext40" / "p" / "volumes" / volume).glob("data"))
    data.rename(data.with_name("elsewhere"))
    pool_agent.apply(text(pod({"persistentVolumeClaim": {"claimName": "data"}})))

    def tries() -> list[dt.datetime]:
        lines = [line for line in pool_agent.log.read_text().splitlines() if "controllers.queue: pod" in line]
        return [dt.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in lines]  # noqa: DTZ007 - differences

    eventually(lambda: len(tries()) >= 4, 30.0, what="four tries")
    _, second, third, fourth = tries()[:4]  # the second comes at once: the Pod changed, it has a condition now
    assert (third - second).total_seconds() > 0.4
    assert (fourth - third).total_seconds() > 0.8
    data.with_name("elsewhere").rename(data)


@pytest.mark.expect_log("(?i)provision")
def test_pool_read_only(pool_agent: Agent, pool: Path) -> None:
    """On a pool that became read-only the claim stays Pending and says why."""
    # what ext4 does after an error of the disk
    subprocess.run(["mount", "-o", "remount,abort", str(pool)], check=False, capture_output=True)

    fails_to_provision(pool_agent, "[Rr]ead-only")


@pytest.mark.expect_log(r"volume\.json", "(?i)corrupt")
def test_corrupt_volume_json(agent: Agent) -> None:
    """A damaged volume.json: the mount is refused, `pool check` names the file, and the file stays as it was."""
    agent.apply(text(claim()))
    agent.ok("mount", "data", "mnt")
    agent.ok("umount", "mnt")
    (record,) = agent.pool.glob("volumes/*/volume.json")
    eventually(lambda: not agent.servers(), what="the volume is not served any more")
    record.write_text('{"id": ')
    done = agent.cli("mount", "data", "mnt")
    checked = agent.cli("pool", "check")

    sentence(done, r"volume\.json")
    assert checked.returncode == 1
    assert "volume.json" in checked.stdout
    assert re.fullmatch("Error: 1 finding [^\n]+\n", checked.stderr)
    assert record.read_text() == '{"id": '
    assert not mount.is_mounted(agent.directory / "mnt")


def test_closed_output(shared: Agent) -> None:
    """A reader that goes away early (``| head``) is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "get", "sc"],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=shared.environment,
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")
