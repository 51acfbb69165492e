"""kill -9 of the agent after each step of its work: the next agent completes it, or it can be asked for again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.support import api
from tests.support.mortal import MortalAgent, kill_at_every_step
from tests.support.polling import eventually

# ruff: noqa: ARG002 - all kinds of work are asked with a name, and not all need it

pytestmark = pytest.mark.root


def volumes(agent: MortalAgent) -> list[str]:
    """The volumes of the pool."""
    return sorted(os.listdir(agent.pool / "volumes"))


def clean(agent: MortalAgent) -> bool:
    """Whether the pool has volumes, and nothing that is half-made or half-deleted."""
    return os.listdir(agent.pool / "tmp") == os.listdir(agent.pool / "trash") == []


def nothing_stored(agent: MortalAgent) -> bool:
    """Whether claims and volumes are gone, as objects too: a step on one that is left would count for the next."""
    objects = [*api.everything(agent, "pvc"), *api.everything(agent, "pv")]
    return objects == volumes(agent) == [] and clean(agent)


def mounted_right(agent: MortalAgent, targets: list[Path], servers: int) -> bool:
    """Whether each of *targets* shows one mount that can be written, and *servers* processes serve them, no more."""
    for target in targets:
        (target / "probe").write_text("x")
        (target / "probe").unlink()
    stacked = [len([m for m in mount.mounts() if m.mountpoint == str(t)]) for t in targets]
    return stacked == [1] * len(targets) and len(agent.processes()) == len(agent.servers()) == servers


def nothing_mounted(agent: MortalAgent) -> bool:
    """Whether there is no mount, no server and no directory of a mount left."""
    left = [*mount.below(agent.directory), *agent.processes(), *os.listdir(agent.state / "mounts")]
    return left == []


class Provisioning:
    """A claim gets its volume."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent

    def prepare(self, name: str) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Ask for a volume."""
        api.make_claim(self.agent, name)

    def done(self, name: str) -> bool:
        """Both are bound."""
        return bool(api.is_bound(self.agent, name))

    def check(self, name: str) -> None:
        """One volume, whole, which can be mounted."""
        eventually(lambda: self.done(name), 20.0, what="the claim is bound")
        claims = api.everything(self.agent, "pvc")
        names = sorted(o["metadata"]["name"] for o in api.everything(self.agent, "pv"))
        assert names == volumes(self.agent) == sorted(c["spec"]["volumeName"] for c in claims)
        assert clean(self.agent)
        target = self.agent.directory / "mnt"
        api.mount(self.agent, name, target)
        assert mounted_right(self.agent, [target], 1)
        api.unmount(self.agent, target)
        api.delete(self.agent, "pvc", name)
        eventually(lambda: nothing_stored(self.agent), 20.0, what="the volume is gone")


class Reclaiming:
    """A claim is deleted, and its volume with it."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent

    def prepare(self, name: str) -> None:
        """A volume with files, and one that stays."""
        volume = api.bound_claim(self.agent, name)
        for i in range(3):
            (self.agent.pool / "volumes" / volume / "data" / f"f{i}").write_text("x")

    def begin(self, name: str) -> None:
        """Delete the claim."""
        api.delete(self.agent, "pvc", name)

    def done(self, name: str) -> bool:
        """Objects and files are gone."""
        return nothing_stored(self.agent)

    def check(self, name: str) -> None:
        """It comes to its end; what was not even begun is asked for again."""
        api.delete(self.agent, "pvc", name)
        eventually(lambda: self.done(name), 20.0, what="everything is gone")


class Moving:
    """A claim's volume goes to another pool."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent
        self.other = agent.directory / "other"
        self.volume = api.bound_claim(agent, "data")
        agent.ok("pool", "create", "other", "--path", str(self.other))
        self.places = {"default": agent.pool, "other": self.other}

    @property
    def home(self) -> str:
        """The pool that the PersistentVolume names."""
        handle: str = self.agent.get("pv", self.volume)["spec"]["csi"]["volumeHandle"]
        return handle.partition("/")[0]

    def prepare(self, name: str) -> None:
        """Write something new into it, and remember whither it shall go."""
        (self.places[self.home] / "volumes" / self.volume / "data" / "file").write_text(name)
        self.wanted = next(pool for pool in self.places if pool != self.home)

    def begin(self, name: str) -> None:
        """Have it moved."""
        wanted = {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "pool": self.wanted}
        self.agent.client.request("POST", "/v1/moves", wanted)

    def done(self, name: str) -> bool:
        """It is there, and no note of the move is left, nor of the old volume."""
        found = self.agent.get("pv", self.volume)
        moving = any(key.startswith("fusevol.io/move") for key in found["metadata"]["annotations"])
        left = [os.listdir(place / part) for place in self.places.values() for part in ("tmp", "trash")]
        return self.home == self.wanted and not moving and not any(left)

    def check(self, name: str) -> None:
        """It comes to its end, once it was begun; and the one volume is where the object says, with what was in it."""
        if self.home != self.wanted:
            self.begin(name)
        eventually(lambda: self.done(name), 20.0, what="it is moved")
        volumes = {pool: os.listdir(place / "volumes") for pool, place in self.places.items()}
        data = self.places[self.wanted] / "volumes" / self.volume / "data"
        assert volumes == {pool: [self.volume] if pool == self.wanted else [] for pool in self.places}
        assert (data / "file").read_text() == name


class Mounting:
    """A claim is mounted by hand."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent
        self.target = agent.directory / "mnt"
        api.bound_claim(agent, "data")

    def prepare(self, name: str) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Mount it."""
        api.mount(self.agent, "data", self.target)

    def done(self, name: str) -> bool:
        """The request is answered after the last step."""
        return mount.is_mounted(self.target)

    def check(self, name: str) -> None:
        """Asked for again it is there, once; and it can be undone."""
        self.begin(name)
        assert mounted_right(self.agent, [self.target], 1)
        api.unmount(self.agent, self.target)
        assert nothing_mounted(self.agent)
        assert not self.target.exists(), "the target was made for the mount"


class Unmounting(Mounting):
    """A claim is unmounted by hand."""

    def prepare(self, name: str) -> None:
        """A mount with a file in it."""
        api.mount(self.agent, "data", self.target)
        (self.target / name).write_text(name)

    def begin(self, name: str) -> None:
        """Unmount it."""
        api.unmount(self.agent, self.target)

    def done(self, name: str) -> bool:
        """The request is answered after the last step."""
        return nothing_mounted(self.agent)

    def check(self, name: str) -> None:
        """Asked for again it is gone, and the file is not."""
        self.begin(name)
        assert nothing_mounted(self.agent)
        assert not self.target.exists(), "the target was made for the mount"
        assert [p.read_text() for p in self.agent.pool.glob(f"volumes/*/data/{name}")] == [name]


class PreparingPod:
    """A Pod gets an emptyDir, a claim and a part of it."""

    def __init__(self, agent: MortalAgent) -> None:
        self.agent = agent
        api.bound_claim(agent, "data")

    def prepare(self, name: str) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Create the Pod."""
        api.make_pod(self.agent, name, "data")

    def done(self, name: str) -> bool:
        """The Pod says so."""
        return bool(api.is_ready(self.agent, name))

    def gone(self, name: str) -> bool:
        """Whether nothing of the Pod is left, and the claim's volume is."""
        return (
            api.find(self.agent, "pod", name) is None
            and nothing_mounted(self.agent)
            and len(volumes(self.agent)) == 1
            and clean(self.agent)
            and os.listdir(self.agent.state / "pods") == []
        )

    def check(self, name: str) -> None:
        """It gets ready, and it can be deleted."""
        places = eventually(lambda: api.is_ready(self.agent, name), 20.0, what="the Pod is ready")
        assert mounted_right(self.agent, places, 2)
        assert clean(self.agent)
        api.delete(self.agent, "pod", name)
        eventually(lambda: self.gone(name), 20.0, what="the Pod is gone")


class RemovingPod(PreparingPod):
    """A Pod is deleted."""

    def prepare(self, name: str) -> None:
        """A Pod that wrote something."""
        api.make_pod(self.agent, name, "data")
        _, part = eventually(lambda: api.is_ready(self.agent, name), 20.0, what="the Pod is ready")
        (part / name).write_text(name)

    def begin(self, name: str) -> None:
        """Delete it."""
        api.delete(self.agent, "pod", name)

    def done(self, name: str) -> bool:
        """It is gone."""
        return self.gone(name)

    def check(self, name: str) -> None:
        """It goes; what it wrote into the claim stays."""
        self.begin(name)
        eventually(lambda: self.gone(name), 20.0, what="the Pod is gone")
        assert [p.read_text() for p in self.agent.pool.glob(f"volumes/*/data/part/{name}")] == [name]


def test_provisioning(agent: MortalAgent) -> None:
    """A claim is bound to exactly one whole volume, wherever its making was interrupted."""
    steps = kill_at_every_step(agent, Provisioning(agent))

    assert len(steps) >= 10
    assert {"provisioning announced", "volume made", "PersistentVolume made", "put PersistentVolume"} <= set(steps)


def test_reclaiming(agent: MortalAgent) -> None:
    """A deleted claim's volume goes, with its object and all its files, wherever that was interrupted."""
    steps = kill_at_every_step(agent, Reclaiming(agent))

    assert len(steps) >= 10
    assert {"trash: renamed", "volume in the trash", "PersistentVolume let go", "purge: marked"} <= set(steps)


def test_moving(agent: MortalAgent) -> None:
    """A volume that is moved is in one of its two pools, whole, and ends up in the other, wherever that was
    interrupted."""
    steps = kill_at_every_step(agent, Moving(agent), once=True)

    assert {"move begun", "provision: durable", "volume copied", "handle changed", "moved cleared"} <= set(steps)
    assert "move over" in steps


def test_mounting(agent: MortalAgent) -> None:
    """A mount by hand that was interrupted is asked for again, and is there once."""
    steps = kill_at_every_step(agent, Mounting(agent))

    assert steps == ["attachment recorded", "server started", "server ready", "target bound"]


def test_unmounting(agent: MortalAgent) -> None:
    """An unmount by hand that was interrupted is asked for again, and nothing is left of the mount but the data."""
    steps = kill_at_every_step(agent, Unmounting(agent))

    assert steps == ["target unmounted", "server ended", "attachment forgotten"]


@pytest.mark.slow
def test_preparing_a_pod(agent: MortalAgent) -> None:
    """A Pod's volumes are all there, each once, wherever their mounting was interrupted."""
    steps = kill_at_every_step(agent, PreparingPod(agent))

    assert len(steps) >= 15
    assert {"provision: durable", "server started", "server ready", "target bound", "Pod reported"} <= set(steps)


@pytest.mark.slow
def test_removing_a_pod(agent: MortalAgent) -> None:
    """A deleted Pod leaves nothing but what it wrote into the claim, wherever its end was interrupted."""
    steps = kill_at_every_step(agent, RemovingPod(agent))

    assert len(steps) >= 12
    assert {"target unmounted", "server ended", "trash: renamed", "attachment forgotten"} <= set(steps)
