"""What a guest does until its power is taken away, and how it looks afterwards at what it finds on its disks.

``python -m tests.support.powerloss SHARED SEED [--check-only]``: mounts the disks, starts an agent on them, compares
everything with what the record says of the life before, and goes on changing things until the end. The record is a
file of JSON lines on the host: what is begun is written there before the agent is asked for it, what is done after
the agent has said so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal

from agent.client import Client
from fusevol import quantity
from fusevol.errors import ConflictError, FusevolError, NotFoundError
from tests.support.polling import eventually

Obj = dict[str, Any]
State = Literal["begun", "there", "going", "gone"]
RECORD: Final = "record"
_ROOT: Final = Path("/run/disks")
_RUN: Final = Path("/run/fv/agent")
DISKS: Final = {
    "default": (["mkfs.xfs", "-q"], "prjquota"),
    "plain": (["mkfs.ext4", "-q"], "defaults"),
    "btrfs": (["mkfs.btrfs", "-q"], "defaults"),
    "quota": (["mkfs.ext4", "-q", "-O", "quota,project"], "prjquota"),
}
"""A pool on each disk, in the order of the disks: how its filesystem is made and mounted."""
_POOLS: Final = {name: _ROOT / name / "pool" for name in DISKS}
_MIB: Final = 1 << 20
_THREADS: Final = 3
_CLAIMS: Final = 4
"""How many a thread has at most."""
_OBJECTS: Final = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: fusevol.io/fusevol
allowVolumeExpansion: true
parameters: {pool: %s}
"""
_SNAPSHOT_CLASS: Final = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: std, annotations: {snapshot.storage.kubernetes.io/is-default-class: "true"}}
driver: fusevol.io
deletionPolicy: Delete
"""


@dataclasses.dataclass
class Thing:
    """A claim or a snapshot as the record knows it."""

    state: State
    sizes: list[int]
    """In bytes: the one that a claim has, and the one that it may have; of a snapshot, those of its claim."""
    files: list[str]
    """Those that are there for certain."""
    perhaps: list[str]
    """Those that may be there, or a part of them."""


class Record:
    """What was begun and what was done. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.claims: dict[str, Thing] = {}
        self.snapshots: dict[str, Thing] = {}
        self._lock = threading.Lock()
        for line in path.read_text().splitlines() if path.exists() else []:
            self._apply(json.loads(line))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _apply(self, entry: Obj) -> None:
        things = self.snapshots if entry["kind"] == "snapshot" else self.claims
        if entry["state"] == "gone":
            things.pop(entry["name"], None)
        else:
            things[entry["name"]] = Thing(*(entry[field.name] for field in dataclasses.fields(Thing)))

    def write(self, kind: Literal["claim", "snapshot"], name: str, thing: Thing) -> None:
        """From now on this is what is known."""
        entry = {"kind": kind, "name": name, **dataclasses.asdict(thing)}
        with self._lock:
            os.write(self._file, json.dumps(entry).encode() + b"\n")
            self._apply(entry)


def _content(name: str) -> bytes:
    return (name.encode() + b"\n") * (150_000 // (len(name) + 1))


class Machine:
    """The agent of the guest, and what can be asked of it."""

    def __init__(self) -> None:
        self.client = Client(_RUN / "agent.sock")
        words = ["--state-dir", _ROOT / "default" / "state", "--run-dir", _RUN]
        words += [word for name, place in _POOLS.items() for word in ("--pool", f"{name}={place}")]
        environment = {**os.environ, "FUSEVOL_SOCKET": str(_RUN / "agent.sock"), "FUSEVOL_CONFIG": "/dev/null"}
        self._environment = environment
        self._process = subprocess.Popen([sys.executable, "-m", "agent.cli.main", "agent", *words], env=environment)
        eventually(self._ready, 60, what="the agent is ready")

    def _ready(self) -> bool:
        assert self._process.poll() is None, "the agent ended"
        with contextlib.suppress(FusevolError):
            self.client.request("GET", "/readyz", timeout=5)
            return True
        return False

    def apply(self, text: str) -> None:
        """``fusevol apply -f -``."""
        words = [sys.executable, "-m", "agent.cli.main", "apply", "-f", "-"]
        subprocess.run(words, input=text.encode(), check=True, env=self._environment, stdout=subprocess.DEVNULL)

    def list(self, plural: str, *, namespaced: bool = True) -> dict[str, Obj]:
        """All objects of a kind, by name."""
        path = f"/v1/namespaces/default/{plural}" if namespaced else f"/v1/{plural}"
        return {o["metadata"]["name"]: o for o in self.client.request("GET", path)["items"]}

    def find(self, plural: str, name: str) -> Obj | None:
        """One object."""
        try:
            found: Obj = self.client.request("GET", f"/v1/namespaces/default/{plural}/{name}")
        except NotFoundError:
            return None
        return found

    def post(self, plural: str, name: str, spec: Obj) -> None:
        """Make an object."""
        self.client.request("POST", f"/v1/namespaces/default/{plural}", {"metadata": {"name": name}, "spec": spec})

    def delete(self, plural: str, name: str) -> None:
        """Delete an object, and see it gone."""
        self.client.request("DELETE", f"/v1/namespaces/default/{plural}/{name}")
        eventually(lambda: self.find(plural, name) is None, 60, what=f"{name} is gone")

    @contextlib.contextmanager
    def mounted(self, claim: str) -> Iterator[Path]:
        """A claim at a directory."""
        target = Path("/run/fv/mnt") / claim
        self.client.request("POST", "/v1/mounts", {"claim": claim, "namespace": "default", "target": str(target)})
        try:
            yield target
        finally:
            self.client.request("DELETE", f"/v1/mounts?target={target}")


# -- after a boot -----------------------------------------------------------------------------------------------------


def check(machine: Machine, record: Record) -> None:
    """Wait until all that was interrupted has come to an end, and compare everything with the record."""
    eventually(lambda: _settled(machine, record), 60, what="everything is settled")
    for pool in _POOLS:
        found = machine.client.request("POST", f"/v1/pools/{pool}/check", {})["items"]
        assert found == [], f"damage in {pool}: {found}"
    claims, snapshots = machine.list("persistentvolumeclaims"), machine.list("volumesnapshots")
    for name, thing in list(record.claims.items()):
        claim = claims.get(name)
        if claim is None:
            record.write("claim", name, dataclasses.replace(thing, state="gone"))
            continue
        with machine.mounted(name) as place:
            files, rest = _files(place, thing)
            room = os.statvfs(place)
            assert room.f_blocks * room.f_frsize == _size(claim), f"{name} holds another size than it says"
        record.write("claim", name, Thing("there", [_size(claim)], files, rest))
    contents = machine.list("volumesnapshotcontents", namespaced=False)
    for name, thing in list(record.snapshots.items()):
        snapshot = snapshots.get(name)
        if snapshot is None:
            record.write("snapshot", name, dataclasses.replace(thing, state="gone"))
            continue
        handle = contents[snapshot["status"]["boundVolumeSnapshotContentName"]]["status"]["snapshotHandle"]
        pool, _, made = handle.partition("/")
        files, rest = _files(_POOLS[pool] / "snapshots" / made / "data", thing)
        record.write("snapshot", name, Thing("there", thing.sizes, files, rest))


def _status(obj: Obj) -> Obj:
    return obj.get("status") or {}


def _size(claim: Obj) -> int:
    return quantity.parse((_status(claim).get("capacity") or {}).get("storage") or "0")


def _files(place: Path, thing: Thing) -> tuple[list[str], list[str]]:
    """What there is in *place*: files that are whole, as all must be that were synced, and others."""
    names = sorted(os.listdir(place))
    assert set(thing.files) <= set(names) <= {*thing.files, *thing.perhaps}, f"{place}: {names}, not {thing}"
    for name in names:
        found, wanted = (place / name).read_bytes(), _content(name)
        if name in thing.files:
            assert found == wanted, f"{place / name} has lost what was synced"
    whole = [name for name in names if (place / name).read_bytes() == _content(name)]
    return whole, [name for name in names if name not in whole]


def _settled(machine: Machine, record: Record) -> bool:
    claims, volumes = machine.list("persistentvolumeclaims"), machine.list("persistentvolumes", namespaced=False)
    snapshots = machine.list("volumesnapshots")
    contents = machine.list("volumesnapshotcontents", namespaced=False)
    _legal(record.claims, claims, lambda o: _status(o).get("phase") == "Bound")
    _legal(record.snapshots, snapshots, lambda o: _status(o).get("readyToUse") is True)
    for name, claim in claims.items():
        asked, has = quantity.parse(claim["spec"]["resources"]["requests"]["storage"]), _size(claim)
        assert has == asked, f"{name} is not as large as is asked"
        assert has in record.claims[name].sizes, f"{name} has {has} bytes, not {record.claims[name].sizes}"
    bound = {claim["spec"]["volumeName"]: claim["metadata"]["uid"] for claim in claims.values()}
    assert {name: v["spec"]["claimRef"]["uid"] for name, v in volumes.items()} == bound
    assert all(v["status"]["phase"] == "Bound" for v in volumes.values())
    moving = [v for v in volumes.values() if "fusevol.io/move-to" in v["metadata"]["annotations"]]
    assert moving == []
    named = {s["status"]["boundVolumeSnapshotContentName"] for s in snapshots.values()}
    assert set(contents) == named
    places = {
        "volumes": {v["spec"]["csi"]["volumeHandle"] for v in volumes.values()},
        "snapshots": {c["status"]["snapshotHandle"] for c in contents.values()},
        "trash": set(),
        "tmp": set(),
    }
    for part, wanted in places.items():
        found = {f"{pool}/{name}" for pool, place in _POOLS.items() for name in _listed(place / part)}
        assert found == wanted, f"{part}: {found} instead of {wanted}"
    return True


def _listed(place: Path) -> list[str]:
    return os.listdir(place) if place.exists() else []


def _legal(known: dict[str, Thing], objects: dict[str, Obj], whole: Callable[[Obj], bool]) -> None:
    """Whether all that must be there is, and whole, and nothing else."""
    assert set(objects) <= set(known), f"nobody made {set(objects) - set(known)}"
    for name, thing in known.items():
        found = objects.get(name)
        assert found is not None or thing.state != "there", f"{name} is lost"
        if found is not None:
            assert "deletionTimestamp" not in found["metadata"], f"{name} does not go"
            assert whole(found), f"{name} is {_status(found)}"


# -- until the end ----------------------------------------------------------------------------------------------------


class Worker:
    """Changes claims of its own for ever."""

    def __init__(self, machine: Machine, record: Record, number: int, seed: int) -> None:
        self._machine = machine
        self._record = record
        self._prefix = f"t{number}-"
        self._random = random.Random(f"{seed} {number}")
        self._next = 1 + max((int(n.partition("-")[2]) for n in (*self._claims, *self._snapshots)), default=0)

    @property
    def _claims(self) -> list[str]:
        return [name for name in self._record.claims if name.startswith(self._prefix)]

    @property
    def _snapshots(self) -> list[str]:
        return [name for name in self._record.snapshots if name.startswith(self._prefix)]

    def work(self) -> None:
        """One change after the other."""
        while True:
            kinds = [self._create] if len(self._claims) < _CLAIMS else [self._delete]
            if self._claims:
                kinds += [self._write, self._write, self._expand, self._move, self._delete]
                kinds += [self._snapshot] if len(self._snapshots) < 2 else [self._drop]
            self._random.choice(kinds)()

    def _name(self) -> str:
        self._next += 1
        return f"{self._prefix}{self._next}"

    def _create(self) -> None:
        name, size = self._name(), self._random.choice((8, 16, 24)) * _MIB
        spec: Obj = {"accessModes": ["ReadWriteOnce"], "storageClassName": self._random.choice(list(DISKS))}
        files: list[str] = []
        perhaps: list[str] = []
        if self._snapshots and self._random.random() < 0.5:
            source = self._random.choice(self._snapshots)
            taken = self._record.snapshots[source]
            size = max(taken.sizes)
            files, perhaps = list(taken.files), list(taken.perhaps)
            group = "snapshot.storage.k8s.io"
            spec["dataSource"] = {"apiGroup": group, "kind": "VolumeSnapshot", "name": source}
        spec["resources"] = {"requests": {"storage": str(size)}}
        self._record.write("claim", name, Thing("begun", [size], files, perhaps))
        self._machine.post("persistentvolumeclaims", name, spec)
        eventually(lambda: _status(self._claim(name)).get("phase") == "Bound", 60, what=f"{name} is bound")
        self._record.write("claim", name, Thing("there", [size], files, perhaps))

    def _claim(self, name: str) -> Obj:
        found = self._machine.find("persistentvolumeclaims", name)
        assert found is not None
        return found

    def _one(self) -> tuple[str, Thing]:
        name = self._random.choice(self._claims)
        return name, self._record.claims[name]

    def _write(self) -> None:
        name, thing = self._one()
        if len(thing.files) == 20:
            return
        file = self._name()
        self._record.write("claim", name, dataclasses.replace(thing, perhaps=[*thing.perhaps, file]))
        with self._machine.mounted(name) as place:
            fd = os.open(place / file, os.O_WRONLY | os.O_CREAT)
            os.write(fd, _content(file))
            os.fsync(fd)
            os.close(fd)
            directory = os.open(place, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            self._record.write("claim", name, dataclasses.replace(thing, files=[*thing.files, file]))

    def _expand(self) -> None:
        name, thing = self._one()
        size = thing.sizes[0] + 4 * _MIB
        self._record.write("claim", name, dataclasses.replace(thing, sizes=[thing.sizes[0], size]))
        while True:
            claim = self._claim(name)
            claim["spec"]["resources"]["requests"]["storage"] = str(size)
            with contextlib.suppress(ConflictError):  # the agent has written something into it meanwhile
                path = f"/v1/namespaces/default/persistentvolumeclaims/{name}"
                self._machine.client.request("PUT", path, claim)
                break
        eventually(lambda: _size(self._claim(name)) == size, 60, what=f"{name} has grown")
        self._record.write("claim", name, dataclasses.replace(thing, sizes=[size]))

    def _move(self) -> None:
        name, _ = self._one()
        volume = self._claim(name)["spec"]["volumeName"]
        found = self._machine.client.request("GET", f"/v1/persistentvolumes/{volume}")
        here = found["spec"]["csi"]["volumeHandle"].partition("/")[0]
        pool = self._random.choice([pool for pool in DISKS if pool != here])
        wanted = {"kind": "PersistentVolumeClaim", "namespace": "default", "name": name, "pool": pool}
        self._machine.client.request("POST", "/v1/moves", wanted)

        def moved() -> bool:
            found = self._machine.client.request("GET", f"/v1/persistentvolumes/{volume}")
            return "fusevol.io/move-to" not in found["metadata"]["annotations"]

        eventually(moved, 60, what=f"{name} has moved")

    def _delete(self) -> None:
        name, thing = self._one()
        self._record.write("claim", name, dataclasses.replace(thing, state="going"))
        self._machine.delete("persistentvolumeclaims", name)
        self._record.write("claim", name, dataclasses.replace(thing, state="gone"))

    def _snapshot(self) -> None:
        claim, thing = self._one()
        name = self._name()
        self._record.write("snapshot", name, Thing("begun", thing.sizes, thing.files, thing.perhaps))
        self._machine.post("volumesnapshots", name, {"source": {"persistentVolumeClaimName": claim}})

        def ready() -> bool:
            found = self._machine.find("volumesnapshots", name)
            return found is not None and _status(found).get("readyToUse") is True

        eventually(ready, 60, what=f"{name} is ready")
        self._record.write("snapshot", name, Thing("there", thing.sizes, thing.files, thing.perhaps))

    def _drop(self) -> None:
        name = self._random.choice(self._snapshots)
        thing = self._record.snapshots[name]
        self._record.write("snapshot", name, dataclasses.replace(thing, state="going"))
        self._machine.delete("volumesnapshots", name)
        self._record.write("snapshot", name, dataclasses.replace(thing, state="gone"))


# -- the machine ------------------------------------------------------------------------------------------------------


def _mount_disks() -> bool:
    """The disks, made when they are empty; whether they were."""
    new = False
    for letter, (name, (make, options)) in zip(string.ascii_lowercase, DISKS.items(), strict=False):
        disk = f"/dev/vd{letter}"
        if subprocess.run(["blkid", disk], check=False, stdout=subprocess.DEVNULL).returncode != 0:
            subprocess.run([*make, disk], check=True)
            new = True
        (_ROOT / name).mkdir(parents=True)
        subprocess.run(["mount", "-o", options, disk, _ROOT / name], check=True)
    return new


def main() -> int:
    """See above; 0 when nothing but the check was asked for and all was right, never otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--check-only", action="store_true")
    given = parser.parse_args()
    new = _mount_disks()
    record, machine = Record(given.shared / RECORD), Machine()
    if new:
        machine.apply("---".join((*(_OBJECTS % (pool, pool) for pool in DISKS), _SNAPSHOT_CLASS)))
        os.sync()
    check(machine, record)
    print(f"checked: {len(record.claims)} claims, {len(record.snapshots)} snapshots", flush=True)
    if given.check_only:
        return 0
    failures: SimpleQueue[BaseException] = SimpleQueue()

    def work(worker: Worker) -> None:
        try:
            worker.work()
        except BaseException as e:  # noqa: BLE001  # the main thread raises it
            failures.put(e)

    for number in range(_THREADS):
        worker = Worker(machine, record, number, given.seed)
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    (given.shared / "working").touch()
    raise failures.get()


if __name__ == "__main__":
    sys.exit(main())
