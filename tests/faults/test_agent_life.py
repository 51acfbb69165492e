"""Agents, volume servers and mounts that die, and what the next agent makes of a state that somebody damaged."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusevol.errors import UnavailableError
from fusevol.transport import mount
from tests.support import api
from tests.support.mortal import MortalAgent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

_WRITER = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
count = 0
while not select.select([0], [], [], 0.001)[0]:
    count += 1
    os.write(fd, b"%d\\n" % count)
    os.fsync(fd)
os.close(fd)
print(count)
"""


class Attached:
    """One of everything that can be attached, each with a file: a claim at two targets, by hand an emptyDir and a
    hostPath, and a Pod."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent
        base = agent.directory
        self.writable, self.readable, self.empty, self.host = (base / n for n in ("rw", "ro", "empty", "host"))
        api.bound_claim(agent, "data")
        api.bound_claim(agent, "more")
        api.mount(agent, "data", self.writable)
        api.mount(agent, "data", self.readable, read_only=True)
        api.call_out(agent, "emptyDir", self.empty, size="8Mi")
        api.call_out(agent, "hostPath", self.host, path=str(base / "srv"), type="DirectoryOrCreate")
        api.make_pod(agent, "pod", "more")
        self.scratch, self.part = eventually(lambda: api.is_ready(agent, "pod"), 20.0, what="the Pod is ready")
        self.places = [self.writable, self.empty, self.host, self.scratch, self.part]
        for place in self.places:
            (place / "file").write_text(place.name)

    def points(self) -> list[str]:
        """Everything that is mounted here."""
        return sorted(m.mountpoint for m in mount.below(self.agent.directory))

    def whole(self) -> bool:
        """Whether each target shows its file, the read-only one refuses to write, and there is one server a volume."""
        assert [(p / "file").read_text() for p in self.places] == [p.name for p in self.places]
        assert (self.readable / "file").read_text() == "rw"
        assert all(os.access(p, os.W_OK) for p in self.places)
        assert not os.access(self.readable, os.W_OK)
        return self.agent.processes() == sorted(api.servers(self.agent).values())


@pytest.fixture
def attached(agent: MortalAgent) -> Attached:
    """An agent with one of everything."""
    return Attached(agent)


def refused(agent: MortalAgent) -> str:
    """What an agent says that must not start; one line."""
    done = agent.cli("agent", "--state-dir", str(agent.state), "--run-dir", str(agent.run_dir))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    return done.stderr


def test_a_writer_notices_nothing(agent: MortalAgent) -> None:
    """A program that writes while the agent is killed loses nothing; the next agent has the same server and ends it."""
    target = agent.directory / "mnt"
    volume = api.bound_claim(agent, "data")
    api.mount(agent, "data", target)
    before = api.servers(agent)
    command = [sys.executable, "-ISc", _WRITER, str(target / "log")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    file = agent.pool / "volumes" / volume / "data" / "log"

    def goes_on() -> None:
        size = file.stat().st_size if file.exists() else 0
        eventually(lambda: file.stat().st_size > size + 100, what="writing goes on")

    goes_on()
    agent.kill()
    goes_on()
    agent.start()
    goes_on()
    running = writer.poll() is None
    after = api.servers(agent)
    count = int(writer.communicate(timeout=20)[0])
    api.unmount(agent, target)

    assert running
    assert after == before
    assert file.read_text().split() == [str(i + 1) for i in range(count)]
    assert not mount.below(agent.directory)
    assert not agent.processes()


def test_everything_outlives_the_agent(attached: Attached) -> None:
    """After kill -9 and a start all mounts and servers are the same ones, and all can be undone."""
    agent = attached.agent
    before = attached.points(), api.servers(agent)
    agent.kill()
    agent.start()
    after = attached.points(), api.servers(agent)
    whole = attached.whole()
    for target in (attached.writable, attached.readable, attached.empty, attached.host):
        api.unmount(agent, target)
    api.delete(agent, "pod", "pod")
    eventually(lambda: api.find(agent, "pod", "pod") is None, 20.0, what="the Pod is gone")

    assert after == before
    assert whole
    assert attached.points() == agent.processes() == []
    assert (agent.directory / "srv" / "file").read_text() == "host"


@pytest.mark.parametrize("agent_too", [False, True])
def test_killed_servers_are_followed(attached: Attached, agent_too: bool) -> None:
    """When all servers die, with the agent or without it, others go on: open files and mounts notice nothing."""
    agent = attached.agent
    before, pids = attached.points(), agent.processes()
    mounts = [mount.find(place) for place in attached.places]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context((place / "file").open("ab", buffering=0)) for place in attached.places]
        if agent_too:
            agent.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for file in held:
            file.write(b" and more")
        if agent_too:
            agent.start()
    eventually(lambda: agent.processes() == sorted(api.servers(agent).values()), 20.0, what="the agent knows the next")
    texts = [(place / "file").read_text() for place in attached.places]

    assert texts == [f"{place.name} and more" for place in attached.places]
    assert not set(pids) & set(agent.processes())
    assert attached.points() == before
    assert [mount.find(place) for place in attached.places] == mounts
    assert len(agent.processes()) == len(pids) == 4


def test_a_machine_that_starts_again(attached: Attached) -> None:
    """After the end of all processes and mounts everything is attached again, also if an agent dies while doing it."""
    agent = attached.agent
    before = attached.points()
    for step in ("server started", "server ready", "target bound"):
        attached.agent.power_off()
        assert attached.points() == []
        agent.doom(step, 2)
        agent.launch()
        agent.died()
        agent.start()
        eventually(attached.whole, 20.0, what=f"everything is mounted again after a kill at: {step}")

        assert attached.points() == before, step


@pytest.mark.expect_log("cannot be mounted")
def test_a_volume_that_comes_back_in_parts(agent: MortalAgent) -> None:
    """Who attaches a volume again that could not be mounted at the start has all its targets mounted, but for those
    that ended with the machine's last boot."""
    volume = agent.pool / "volumes" / api.bound_claim(agent, "data")
    first, second, other = (agent.directory / name for name in ("first", "second", "other"))
    for target in (first, second, other):
        api.mount(agent, "data", target)
    agent.power_off()
    with contextlib.closing(sqlite3.connect(agent.state / "agent.db")) as database, database:
        change = "UPDATE attachments SET body = json_set(body, '$.boot', 'the one before') WHERE target = ?"
        database.execute(change, (str(other),))
    hidden = volume.rename(agent.directory / "hidden")
    agent.start()
    nothing = mount.is_mounted(first) or mount.is_mounted(second)
    hidden.rename(volume)
    api.mount(agent, "data", first)
    eventually(lambda: mount.is_mounted(second), 20.0, what="the other one is back")

    assert not nothing
    assert not mount.is_mounted(other)


@pytest.mark.slow
@pytest.mark.expect_log("did not answer; it has been ended")
def test_a_server_that_was_only_starting(agent: MortalAgent) -> None:
    """A server that a killed agent had just started, and that hangs, is not left beside the one in its place."""
    target = agent.directory / "mnt"
    api.bound_claim(agent, "data")
    agent.doom("server started")
    with pytest.raises(UnavailableError, match="broke"):
        api.mount(agent, "data", target)
    agent.died()
    (stopped,) = eventually(agent.processes, what="the server is there")
    os.kill(stopped, signal.SIGSTOP)
    agent.start()
    living = agent.processes()

    assert stopped not in living
    assert sorted(api.servers(agent).values()) == living
    assert len(living) == len([m for m in mount.mounts() if m.mountpoint == str(target)]) == 1


def test_killed_before_it_was_read_only(attached: Attached) -> None:
    """A mount that was to be read-only, and whose agent died before it was, is made so by the next one."""
    agent = attached.agent
    before = attached.points()
    agent.kill()
    command = ["mount", "-o", "remount,bind,rw", str(attached.readable)]
    subprocess.run(command, check=True, timeout=20)  # a bind is writable until the second system call
    writable = os.access(attached.readable, os.W_OK)
    agent.start()

    assert writable
    assert attached.whole()
    assert attached.points() == before


def test_sigterm_ends_a_starting_agent(agent: MortalAgent) -> None:
    """An agent that waits for a slow server ends at once when asked, and the next one has the server."""
    target = agent.directory / "mnt"
    api.bound_claim(agent, "data")
    api.mount(agent, "data", target)
    before = api.servers(agent)
    (pid,) = before.values()
    agent.kill()
    os.kill(pid, signal.SIGSTOP)
    starting = agent.launch()
    eventually(lambda: _catches(starting.pid, signal.SIGTERM), what="the start has begun")
    starting.terminate()
    status = starting.wait(3)
    os.kill(pid, signal.SIGCONT)
    agent.start()

    assert status == 0
    assert api.servers(agent) == before


def _catches(pid: int, number: signal.Signals) -> bool:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def _garbage(file: Path) -> None:
    file.write_text("{ this is no")


def _stale_socket(file: Path) -> None:
    file.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))


@pytest.mark.parametrize("damage", [_garbage, Path.unlink])
def test_damaged_records_of_servers(attached: Attached, damage: Callable[[Path], None]) -> None:
    """Servers whose spec files are damaged or missing are adopted all the same; what belongs to no server goes."""
    agent = attached.agent
    before = api.servers(agent)
    agent.kill()
    directory = agent.run_dir / "servers"
    specs = sorted(directory.glob("*.json"))
    for spec in specs:
        damage(spec)
    (directory / "gone.json").write_text("{ neither is this")
    (directory / "gone.sock").touch()
    _stale_socket(directory / "gone.sock")
    agent.start()

    assert len(specs) == len(before) == 4
    assert api.servers(agent) == before
    assert attached.whole()
    assert not list(directory.glob("gone.*"))


def test_stale_socket_of_the_agent(agent: MortalAgent) -> None:
    """The socket that a killed agent leaves behind does not keep the next one from starting."""
    agent.kill()
    left = agent.socket.is_socket()
    agent.start()

    assert left
    assert agent.ok("get", "pvc", "-o", "name") == ""


def _damaged(file: Path, page: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(page * 4096)
        opened.write(b"\xff" * 4096)


def _no_json(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE attachments SET body = '{'")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file: _damaged(file, 0), r"The object store {} cannot be used \(.+\): "),
        (lambda file: _damaged(file, 5), r"The object store {} cannot be used \(.+\): "),
        (_no_json, r"The mount record of /.+ in {} cannot be read: .+"),
    ],
    ids=["header", "page", "row"],
)
def test_damaged_objects(attached: Attached, damage: Callable[[Path], None], sentence: str) -> None:
    """A damaged agent.db keeps the agent from starting, in one sentence, and nothing else is touched."""
    agent = attached.agent
    before = attached.points(), agent.processes()
    assert agent.stop() == 0
    database = agent.state / "agent.db"
    good = database.read_bytes()
    damage(database)
    bad = database.read_bytes()
    said = refused(agent)
    unchanged = database.read_bytes()
    meanwhile = attached.points(), agent.processes()
    database.write_bytes(good)
    agent.start()

    assert re.fullmatch("Error: " + sentence.format(database) + ".+\n", said)
    assert unchanged == bad != good
    assert meanwhile == before
    assert attached.whole()


def test_second_agent(attached: Attached) -> None:
    """A second agent on the same state says who is there, and the first one does not notice."""
    agent = attached.agent
    before = attached.points(), api.servers(agent)
    said = refused(agent)

    assert (
        said == f"Error: Another agent (pid {agent.pid}) uses {agent.state}: stop it, or choose another --state-dir.\n"
    )
    assert (attached.points(), api.servers(agent)) == before
    assert attached.whole()
