"""The volume plugin by its protocol: who counts, what is refused, and what a kill of the agent leaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.client import Client
from fusevol.errors import FusevolError
from fusevol.transport import mount
from tests.support.logs import LogCheck
from tests.support.mortal import MortalAgent, kill_at_every_step
from tests.support.plugin import Caller, RefusedError
from tests.support.polling import eventually

# ruff: noqa: ARG002 - all work is asked with a name, and not all needs it

pytestmark = pytest.mark.root


@pytest.fixture
def agent(workdir: Path, logs: LogCheck) -> Iterator[MortalAgent]:
    """A running agent with a plugin socket in its run directory, and a second pool."""
    running = MortalAgent(workdir, logs)
    pools = f"pools: {{default: {running.pool}, other: {workdir}/other}}"
    (workdir / "agent.yaml").write_text(f"plugin: true\n{pools}\n")
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def caller(agent: MortalAgent) -> Caller:
    """Who calls its plugin."""
    return Caller(agent.run_dir / "plugin.sock")


def test_who_may_call(caller: Caller) -> None:
    """The socket is root's alone, and says what it is."""
    assert stat.S_IMODE(caller.path.stat().st_mode) == 0o600
    assert caller.raw("Plugin.Activate", b"")[1]["Implements"] == ["VolumeDriver"]
    assert caller.call("Capabilities")["Capabilities"] == {"Scope": "local"}


def test_a_mount_is_counted_by_its_callers(agent: MortalAgent, caller: Caller) -> None:
    """One mount for all callers, each counting once; it goes with the last one and not before."""
    caller.create("data", size="8Mi")
    first = caller.mount("data", "a")
    again, second = caller.mount("data", "a"), caller.mount("data", "b")
    (first / "f").write_text("kept")
    with pytest.raises(RefusedError, match="in use by 2 of its callers"):
        caller.call("Remove", Name="data")
    caller.unmount("data", "a")
    caller.unmount("data", "a")
    caller.unmount("data", "stranger")
    there = (first / "f").read_text()
    caller.unmount("data", "b")

    assert first == again == second
    assert there == "kept"
    assert not first.exists()
    assert agent.servers() == []
    assert caller.call("Path", Name="data")["Mountpoint"] == ""
    assert (caller.mount("data", "c") / "f").read_text() == "kept"


def test_callers_are_counted_across_a_kill(agent: MortalAgent, caller: Caller) -> None:
    """kill -9 of the agent neither ends a mount nor forgets who has it."""
    caller.create("data", size="8Mi")
    caller.mount("data", "a")
    place = caller.mount("data", "b")
    with (place / "f").open("w") as file:
        agent.kill()
        agent.start()
        file.write("written while no agent ran, or another one")
    caller.unmount("data", "a")
    still = mount.is_mounted(place)
    caller.unmount("data", "b")

    assert still
    assert not mount.is_mounted(place)


def test_options(agent: MortalAgent, caller: Caller) -> None:
    """A volume has what its options say; a class's parameters where they say nothing; the same again is the same."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "few"},
        "provisioner": "fusevol.io/fusevol",
        "parameters": {"pool": "other", "inodes": "3"},
    }
    Client(agent.socket).request("POST", "/v1/storageclasses", storage_class)
    for _ in range(2):
        caller.create("Few_Files", **{"size": "8Mi", "class": "few", "mode": "0700"})
    place = caller.mount("Few_Files", "a")
    (place / "1").touch()
    (place / "2").touch()
    with pytest.raises(OSError, match="No space left"):
        (place / "3").touch()
    got = caller.call("Get", Name="Few_Files")["Volume"]

    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (got["Name"], got["Mountpoint"]) == ("Few_Files", str(place))
    assert {"pool": "other", "size": 8 << 20, "inodes": 3}.items() <= got["Status"].items()
    with pytest.raises(RefusedError, match="with other options"):
        caller.create("Few_Files", size="9Mi")


@pytest.mark.parametrize(
    ("call", "body", "why"),
    [
        ("Create", b'{"Name": "x"}', "has no size"),
        ("Create", b'{"Name": "../x", "Opts": {"size": "1Gi"}}', "cannot be the name"),
        ("Create", b'{"Name": "x", "Opts": {"size": "1Gi", "pool": "moon"}}', 'There is no pool "moon"'),
        ("Create", b'{"Name": "x", "Opts": {"size": "1Gi", "class": "moon"}}', 'There is no StorageClass "moon"'),
        ("Mount", b'{"Name": "x", "ID": "a"}', 'There is no volume "x"'),
        ("Mount", b'{"Name": "x", "ID": 7}', "not one word"),
        ("Get", b'{"Name": "x"}', 'There is no volume "x"'),
        ("Path", b'{"Name": "x"}', 'There is no volume "x"'),
        ("Remove", b'{"Name": "x"}', 'There is no volume "x"'),
        ("Get", b"{", "not JSON"),
        ("Get", b"[]", "must be a JSON object"),
        ("Grow", b"{}", "has no POST /VolumeDriver.Grow"),
    ],
)
def test_a_mistake_gets_a_sentence(caller: Caller, call: str, body: bytes, why: str) -> None:
    """What cannot be is one sentence in Err, and a status that is not 200."""
    status, answer = caller.raw(f"VolumeDriver.{call}", body)

    assert why in answer["Err"]
    assert 400 <= status < 500


def test_volumes_of_others_are_not_the_plugins(agent: MortalAgent, caller: Caller) -> None:
    """A claim's volume is not listed, and cannot be named."""
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, "
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}}"
    )
    eventually(lambda: os.listdir(agent.pool / "volumes"), what="the claim has a volume")
    caller.create("mine", size="8Mi")
    (theirs,) = (v for v in os.listdir(agent.pool / "volumes") if not v.startswith("plugin."))

    assert caller.names() == ["mine"]
    with pytest.raises(RefusedError, match="There is no volume"):
        caller.call("Remove", Name=theirs)


def test_many_callers_at_once(agent: MortalAgent, caller: Caller) -> None:
    """Callers that come and go at the same time leave nothing mounted, and nothing counted."""
    caller.create("data", size="8Mi")

    def come_and_go(number: int) -> None:
        for turn in range(3):
            place = caller.mount("data", f"{number}.{turn}")
            (place / f"{number}").write_text("x")
            caller.unmount("data", f"{number}.{turn}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(come_and_go, range(8)))
    caller.call("Remove", Name="data")

    assert caller.names() == []
    assert not mount.below(agent.directory)


class _Life:
    """A volume is made, mounted for two, and all undone; and each part may be cut short by the agent's death."""

    def __init__(self, agent: MortalAgent, caller: Caller) -> None:
        self.agent = agent
        self.caller = caller
        self.ended = False

    def prepare(self, name: str) -> None:
        """Nothing."""

    def _calls(self, name: str) -> None:
        self.caller.create(name, size="8Mi")
        for who in ("a", "b"):
            (self.caller.mount(name, who) / who).write_text(who)
        for who in ("a", "b"):
            self.caller.unmount(name, who)
        self.caller.call("Remove", Name=name)

    def begin(self, name: str) -> None:
        """All calls, once."""
        self.ended = False
        self._calls(name)
        self.ended = True

    def done(self, name: str) -> bool:
        """All have ended."""
        return self.ended

    def check(self, name: str) -> None:
        """The same calls again succeed, and leave nothing."""
        try:
            for who in ("a", "b"):
                self.caller.unmount(name, who)
            self._calls(name)
        except FusevolError as e:
            raise AssertionError(str(e)) from e
        pool = self.agent.pool
        eventually(lambda: not os.listdir(pool / "volumes") and not os.listdir(pool / "trash"), what="an empty pool")
        assert os.listdir(self.agent.state / "mounts") == os.listdir(self.agent.state / "plugin") == []
        assert not mount.below(self.agent.directory)
        assert not self.agent.processes()


@pytest.mark.slow
def test_kill_at_every_step(agent: MortalAgent, caller: Caller) -> None:
    """Wherever the agent dies, the same calls complete what was begun."""
    steps = kill_at_every_step(agent, _Life(agent, caller))

    assert {"attachment recorded", "target bound", "caller counted", "caller discounted", "target unmounted"} <= set(
        steps
    )


def test_a_mount_that_nobody_was_told_of_is_undone(agent: MortalAgent, caller: Caller) -> None:
    """A mount over which the agent died counts for nobody: the next one undoes it, and the volume can be removed."""
    caller.create("data", size="8Mi")
    agent.doom("target bound")
    with pytest.raises(FusevolError):
        caller.mount("data", "a")
    agent.died()
    assert mount.below(agent.state / "plugin")
    agent.start()
    eventually(lambda: not mount.below(agent.state / "plugin"), what="the mount is undone")
    caller.call("Remove", Name="data")

    assert caller.names() == []
