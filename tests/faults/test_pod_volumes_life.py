"""Pod volumes of all kinds through the death of the agent and of the machine; what is left without its Pod."""

from __future__ import annotations

import os
import sqlite3
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.support import api, pods
from tests.support.mortal import MortalAgent, kill_at_every_step
from tests.support.polling import eventually

pytestmark = pytest.mark.root
GID = 4321
TEMPLATE = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Mi"}}}}


def make_pod(agent: MortalAgent, name: str) -> None:
    """A Pod with one volume of every kind that the agent makes, and the ways to mount parts of them."""
    host = agent.directory / "host"
    host.mkdir(exist_ok=True)
    volumes = {
        "config": {"configMap": {"name": "c"}},
        "projected": {"projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}},
        "memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        "disk": {"emptyDir": {}},
        "own": {"ephemeral": {"volumeClaimTemplate": TEMPLATE}},
        "inline": {"csi": {"driver": "fusevol.io", "volumeAttributes": {"size": "1Mi"}}},
        "host": {"hostPath": {"path": str(host)}},
    }
    mounts: list[dict[str, Any]] = [{"name": n, "mountPath": f"/{n}"} for n in volumes]
    mounts += [
        {"name": "config", "mountPath": "/key", "subPath": "key"},
        {"name": "memory", "mountPath": "/part", "subPath": "part"},
        {"name": "host", "mountPath": "/ro", "readOnly": True, "recursiveReadOnly": "Enabled"},
    ]
    pods.pod(agent, name, volumes, mounts, securityContext={"fsGroup": GID})


def is_right(places: dict[str, Path]) -> None:
    """Assert that each volume shows what it should, and can be written where it should."""
    assert (places["/config"] / "key").read_text() == "value"
    assert {n: (places["/projected"] / n).read_text() for n in ("key", "word")} == {"key": "value", "word": "secret"}
    assert places["/key"].read_text() == "value"
    for name in ("/memory", "/disk", "/own", "/inline", "/part"):
        found = places[name].stat()
        assert (found.st_gid, bool(found.st_mode & stat.S_ISGID)) == (GID, True), name
        (places[name] / "probe").touch()
        (places[name] / "probe").unlink()
    assert mount.find(places["/memory"]).fstype == "tmpfs"  # type: ignore[union-attr]
    assert not os.access(places["/ro"], os.W_OK)
    tops = [m.mountpoint for m in mount.mounts()]
    assert [tops.count(str(p)) for n, p in places.items() if n != "/host"] == [1] * (len(places) - 1)


def nothing_left(agent: MortalAgent) -> bool:
    """Whether there is no mount, server, directory, claim or volume of a Pod."""
    left = [
        *mount.below(agent.state),
        *agent.processes(),
        *os.listdir(agent.state / "pods"),
        *os.listdir(agent.state / "mounts"),
        *api.everything(agent, "pvc"),
        *api.everything(agent, "pv"),
        *os.listdir(agent.pool / "volumes"),
    ]
    return left == []


@pytest.fixture
def prepared(agent: MortalAgent) -> MortalAgent:
    """An agent with the objects that the Pod shows."""
    pods.put(agent, "ConfigMap", "c", data={"key": "value"})
    pods.put(agent, "Secret", "s", stringData={"word": "secret"})
    return agent


class Making:
    """A Pod's volumes come."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent

    def prepare(self, name: str) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Create the Pod."""
        make_pod(self.agent, name)

    def done(self, name: str) -> bool:
        """They are there."""
        return pods.condition(self.agent, name).get("status") == "True"

    def check(self, name: str) -> None:
        """All right, and nothing is left afterwards."""
        if pods.find(self.agent, "Pod", name) is None:
            make_pod(self.agent, name)
        is_right(pods.ready(self.agent, name))
        pods.delete(self.agent, "Pod", name)
        eventually(lambda: nothing_left(self.agent), 20.0, what="nothing is left")


class Deleting:
    """A Pod's volumes go."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent

    def prepare(self, name: str) -> None:
        """Make the Pod."""
        make_pod(self.agent, name)
        pods.ready(self.agent, name)

    def begin(self, name: str) -> None:
        """Delete it."""
        self.agent.client.request("DELETE", pods.path("Pod", name))

    def done(self, name: str) -> bool:
        """It is gone, and all of it."""
        return pods.find(self.agent, "Pod", name) is None and nothing_left(self.agent)

    def check(self, name: str) -> None:
        """It goes, also if it must be asked for again."""
        if not (pods.find(self.agent, "Pod", name) or {"metadata": {"deletionTimestamp": 1}})["metadata"].get(
            "deletionTimestamp"
        ):
            self.begin(name)
        eventually(lambda: self.done(name), 20.0, what="it is gone")


@pytest.mark.slow
@pytest.mark.parametrize("work", [Making, Deleting])
def test_a_kill_at_every_step(prepared: MortalAgent, work: type[Making | Deleting]) -> None:
    """kill -9 of the agent after each kind of step of making and of removing a Pod's volumes, the first and the last
    time: the next agent completes it."""
    steps = kill_at_every_step(prepared, work(prepared), once=True)
    expected = {
        Making: {
            "claim of the Pod made",
            "tmpfs mounted",
            "files written",
            "volume given to its group",
            "target bound",
        },
        Deleting: {"target unmounted", "attachment forgotten", "claim of the Pod deleted", "Pod let go"},
    }[work]

    assert expected <= set(steps)


def test_an_agent_that_is_restarted(prepared: MortalAgent) -> None:
    """Everything stays, what is in memory too; changes made meanwhile are shown by the next agent's first change."""
    make_pod(prepared, "p")
    places = pods.ready(prepared, "p")
    for name in ("/memory", "/disk", "/own", "/inline", "/host"):
        (places[name] / "file").write_text(name)
    before = (places["/config"] / "..data").readlink()
    prepared.kill()
    prepared.start()
    after = (places["/config"] / "..data").readlink()
    pods.put(prepared, "ConfigMap", "c", data={"key": "new"})
    eventually(lambda: (places["/config"] / "key").read_text() == "new", what="changes are followed again")

    assert after == before, "the same files were written again"
    assert [(places[n] / "file").read_text() for n in ("/memory", "/disk", "/own", "/inline", "/host")] == [
        "/memory",
        "/disk",
        "/own",
        "/inline",
        "/host",
    ]
    eventually(lambda: places["/key"].read_text() == "new", what="the part is the new one")


def test_a_machine_that_starts_again(prepared: MortalAgent) -> None:
    """What was on disk is there, what was in memory is empty, files of objects are as they are now; at the same paths,
    before the agent says that it is ready."""
    make_pod(prepared, "p")
    places = pods.ready(prepared, "p")
    kept = ("/disk", "/own", "/inline", "/host")
    for name in (*kept, "/memory"):
        (places[name] / "file").write_text(name)
    prepared.power_off()
    prepared.start()
    is_right(places)

    assert [(places[n] / "file").read_text() for n in kept] == list(kept)
    assert os.listdir(places["/memory"]) == ["part"]


def test_an_object_that_is_gone_when_the_machine_starts(prepared: MortalAgent) -> None:
    """A Pod whose Secret was deleted runs on with the old files; after a reboot there are none, and it is not ready."""
    make_pod(prepared, "p")
    place = pods.ready(prepared, "p")["/projected"]
    prepared.client.request("DELETE", pods.path("Secret", "s"))
    eventually(
        lambda: any('secret "s" not found' in e for e in pods.events(prepared, "p")), what="an event tells of it"
    )
    before = (pods.condition(prepared, "p")["status"], (place / "word").read_text())
    prepared.power_off()
    prepared.start()
    after = pods.condition(prepared, "p")
    pods.put(prepared, "Secret", "s", stringData={"word": "again"})
    is_ready = pods.ready(prepared, "p")["/projected"]

    assert before == ("True", "secret")
    assert (after["status"], 'secret "s" not found' in after["message"]) == ("False", True)
    assert (is_ready / "word").read_text() == "again"


@pytest.mark.parametrize("table", ["objects", "attachments"])
def test_a_directory_without_its_pod(prepared: MortalAgent, table: str) -> None:
    """6.9: a Pod that is lost from the store, with or without what is known of its mounts: all of it is undone."""
    make_pod(prepared, "p")
    pods.ready(prepared, "p")
    prepared.kill()
    with sqlite3.connect(prepared.state / "agent.db") as database:
        database.execute("DELETE FROM objects WHERE kind = 'Pod'")
        if table == "attachments":
            database.execute("DELETE FROM attachments")
    database.close()
    before = len(mount.below(prepared.state / "pods"))
    prepared.start()
    eventually(lambda: not mount.below(prepared.state), 20.0, what="nothing is mounted")
    eventually(lambda: os.listdir(prepared.state / "pods") == [], 20.0, what="the Pod's directory is gone")
    eventually(lambda: not prepared.processes(), 20.0, what="the servers have ended")
    eventually(lambda: not api.everything(prepared, "pvc"), 20.0, what="the Pod's own claim is gone")

    assert before > 8
    assert list((prepared.directory / "host").iterdir()) == []


@pytest.mark.expect_log("is not empty and stays")
def test_content_is_never_deleted(prepared: MortalAgent) -> None:
    """6.9: a directory with a file in it stays, and is told of; so does what is no Pod's."""
    prepared.kill()
    lost = prepared.state / "pods" / str(uuid.uuid4())
    (lost / "volumes" / "kubernetes.io~empty-dir" / "v").mkdir(parents=True)
    (lost / "volumes" / "kubernetes.io~empty-dir" / "v" / "file").write_text("precious")
    (lost / "volumes" / "kubernetes.io~secret" / "empty").mkdir(parents=True)
    (prepared.state / "pods" / "notes").mkdir()
    prepared.start()
    eventually(lambda: not (lost / "volumes" / "kubernetes.io~secret").exists(), what="what is empty is gone")

    assert (lost / "volumes" / "kubernetes.io~empty-dir" / "v" / "file").read_text() == "precious"
    assert (prepared.state / "pods" / "notes").exists()
