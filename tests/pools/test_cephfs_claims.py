"""The StorageClass ``cephfs`` and its claim as people have them, against a real cluster."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ceph
from tests.support import seed as notes
from tests.support.agent import Agent
from tests.support.leaks import Leaks
from tests.support.polling import eventually
from tests.support.processes import alive

pytestmark = [pytest.mark.root, pytest.mark.expect_log("The trash of pool .* cannot be emptied")]
MIB = 1 << 20
GIB = 1 << 30

CLASS = notes.one("cephfs-class")
CLAIM = yaml.safe_dump(notes.unbound_claim())
ADMIN = """\
apiVersion: v1
kind: Secret
metadata:
  name: ceph-secret-admin
  namespace: cephfs
type: Opaque
data:
  key: {key}
"""
NAME = ("dlkit-workspace-test", "-n", "dlkit-resources")


class Seed:
    """An agent, the cluster, and a claimRoot of the test's own."""

    def __init__(self, agent: Agent, cluster: ceph.Cluster, root: str) -> None:
        self.agent = agent
        self.cluster = cluster
        self.root = root

    def secret(self, key: str | None = None) -> str:
        """The Secret with the cluster's key, or another one."""
        return ADMIN.format(key=base64.b64encode((key or self.cluster.key("admin")).encode()).decode())

    def storage_class(self, **other: str) -> str:
        """The class, with the cluster's monitors."""
        here = {"monitors": self.cluster.monitors, "claimRoot": self.root}
        return yaml.safe_dump({**CLASS, "parameters": CLASS["parameters"] | here | other})

    def apply(self) -> dict[str, Any]:
        """Apply all three; the claim when it is bound."""
        self.agent.apply(f"{self.secret()}---\n{self.storage_class()}---\n{CLAIM}")
        return self.bound()

    def claim(self) -> dict[str, Any]:
        """The claim now."""
        return self.agent.get("pvc", *NAME)

    def bound(self, timeout: float = 20.0) -> dict[str, Any]:
        """The claim when it is bound."""

        def bound() -> dict[str, Any] | None:
            found = self.claim()
            return found if found["status"].get("phase") == "Bound" else None

        found = eventually(bound, timeout, what="the claim is bound", interval=0.1)
        assert found is not None
        return found

    def events(self) -> str:
        """What happened to the claim."""
        return self.agent.ok("describe", "pvc", *NAME)

    def ceph_fuse(self) -> list[int]:
        """Process ids of the agent's ceph-fuse."""
        return clients_below(self.agent.run_dir)

    def mount(self, name: str = "target") -> Path:
        """The claim, mounted by hand."""
        target = self.agent.directory / name
        self.agent.ok("mount", *NAME[:1], str(target), *NAME[1:])
        return target


def clients_below(directory: Path) -> list[int]:
    """Process ids of every ceph-fuse whose mount point is below *directory*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # ended
                continue
            if words[0].endswith(b"ceph-fuse") and any(os.fsencode(directory) in word for word in words):
                found.append(int(entry.name))
    return found


@pytest.fixture
def seed(ceph_cluster: ceph.Cluster, agent: Agent) -> Iterator[Seed]:
    """Nothing applied yet. Afterwards the agent's mounts of the cluster have ended by themselves."""
    found = Seed(agent, ceph_cluster, f"/dlkit-volumes-{agent.directory.name}")
    yield found
    clients = found.ceph_fuse()
    agent.close()
    for pid in clients:
        eventually(lambda pid=pid: not alive(pid), 60.0, what=f"ceph-fuse {pid} has ended")  # type: ignore[misc]


def test_the_claim_works_as_it_stands(seed: Seed, cephfs: Path) -> None:
    """Secret, class and claim are applied unchanged: bound, of 1 GiB, mounted, limited, on the cluster, and gone."""
    claim = seed.apply()
    volume = seed.agent.get("pv", claim["spec"]["volumeName"])
    target = seed.mount()
    size = os.statvfs(target)
    (target / "f").write_bytes(b"x" * MIB)
    with (target / "big").open("wb") as file:
        os.ftruncate(file.fileno(), GIB - 2 * MIB)
    (target / "more").touch()
    with pytest.raises(OSError, match="No space") as refused:
        os.truncate(target / "more", MIB)
    source = volume["spec"]["cephfs"]
    data = cephfs.parent / source["path"].lstrip("/")
    on_cluster = sorted(os.listdir(data))
    first = (data / "f").read_bytes()
    secrets = seed.agent.get("secret", "-n", "cephfs")
    clients = seed.ceph_fuse()
    command_line = Path(f"/proc/{clients[0]}/cmdline").read_bytes()
    seed.agent.ok("umount", str(target))
    seed.agent.ok("delete", "pvc", *NAME)
    eventually(lambda: not data.exists(), 20.0, what="the volume is gone from the cluster")
    eventually(lambda: not list(data.parents[2].glob("trash/*")), 20.0, what="the trash is empty")
    users = [u["entity"] for u in seed.cluster.command("auth", "ls")["auth_dump"]]
    left = [s["metadata"]["name"] for s in seed.agent.get("secret", "-n", "cephfs")["items"]]

    name = volume["metadata"]["name"]
    assert claim["status"]["capacity"] == {"storage": "1Gi"}
    assert claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-provisioner"] == "ceph.com/cephfs"
    assert size.f_blocks * size.f_frsize == GIB
    assert refused.value.errno == errno.ENOSPC
    assert on_cluster == ["big", "f", "more"]
    assert first == b"x" * MIB
    assert source == {
        "monitors": [seed.cluster.monitors],
        "path": f"{seed.root}/fusevol/volumes/{name}/data",
        "user": f"fusevol-{name}",
        "secretRef": {"name": f"ceph-fusevol-{name}-secret", "namespace": "cephfs"},
    }
    assert volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == "ceph.com/cephfs"
    assert volume["metadata"]["annotations"]["cephShare"] == name
    assert f"ceph-fusevol-{name}-secret" in [s["metadata"]["name"] for s in secrets["items"]]
    assert seed.cluster.key("admin").encode() not in command_line
    assert seed.cluster.key("admin") not in seed.agent.log.read_text()
    assert not list((seed.agent.run_dir / "ceph").glob("keyring*"))
    assert left == ["ceph-secret-admin"]
    assert f"client.fusevol-{name}" not in users


def test_a_volume_is_its_users_alone(seed: Seed, workdir: Path) -> None:
    """The user and key of a PersistentVolume mount it without fusevol, and open no other volume."""
    first = seed.apply()["spec"]["volumeName"]
    seed.agent.apply(CLAIM.replace("workspace-test", "workspace-other"))
    other = eventually(
        lambda: seed.agent.get("pvc", "dlkit-workspace-other", *NAME[1:])["spec"].get("volumeName"), 20.0
    )
    target = seed.mount()
    (target / "f").write_text("from fusevol")
    source = seed.agent.get("pv", first)["spec"]["cephfs"]
    secret = seed.agent.get("secret", source["secretRef"]["name"], "-n", source["secretRef"]["namespace"])
    who = {"client": source["user"], "key": base64.b64decode(secret["data"]["key"]).decode()}
    with seed.cluster.mounted(workdir / "own", root=source["path"], **who) as own:
        read = (own / "f").read_text()
        (own / "g").write_text("from elsewhere")
    elsewhere = source["path"].replace(first, other)
    with (
        pytest.raises(AssertionError, match="CephFS is mounted at"),
        seed.cluster.mounted(workdir / "other", root=elsewhere, timeout=5.0, **who),
    ):
        pass
    (user,) = seed.cluster.command("auth", "get", f"client.{source['user']}")

    assert read == "from fusevol"
    assert (target / "g").read_text() == "from elsewhere"
    assert "namespace=fusevol-pvc-" in user["caps"]["osd"]


def test_a_claim_of_several_nodes(seed: Seed, cephfs: Path) -> None:
    """ReadWriteMany: CephFS keeps the limit itself, and what others write is seen."""
    seed.agent.apply(
        f"{seed.secret()}---\n{seed.storage_class()}---\n{CLAIM.replace('ReadWriteOnce', 'ReadWriteMany')}"
    )
    name = seed.bound()["spec"]["volumeName"]
    target = seed.mount()
    data = cephfs.parent / seed.agent.get("pv", name)["spec"]["cephfs"]["path"].lstrip("/")
    limit = os.getxattr(data, "ceph.quota.max_bytes")
    os.listdir(target)
    (data / "f").write_text("from elsewhere")
    seen = eventually((target / "f").read_text, 5.0, what="the file is seen")

    assert limit == str(GIB).encode()
    assert seen == "from elsewhere"


def test_all_is_there_after_a_restart(seed: Seed) -> None:
    """The agent is killed and started again: what is mounted goes on, and its claim is mounted, used and deleted."""
    seed.apply()
    target = seed.mount()
    with (target / "f").open("wb", buffering=0) as file:
        file.write(b"before ")
        clients = seed.ceph_fuse()
        seed.agent.kill()
        file.write(b"meanwhile ")
        seed.agent.start()
        file.write(b"after")
    again = seed.mount("again")
    read = (again / "f").read_bytes()
    after = seed.ceph_fuse()
    for point in (target, again):
        seed.agent.ok("umount", str(point))
    seed.agent.ok("delete", "pvc", *NAME)
    eventually(lambda: seed.agent.get("pv")["items"] == [], 20.0, what="the volume is gone")

    assert read == b"before meanwhile after"
    assert len(clients) == 1
    assert after == clients


@pytest.mark.expect_log("cannot be known")
@pytest.mark.parametrize(
    ("class_fields", "said"),
    [
        ({"monitors": "127.0.0.1:1"}, "No monitor of CephFS"),
        ({"monitors": "--help"}, 'has "--help": write HOST:PORT'),
        ({"claimRoot": "/a/../b"}, "claimRoot"),
    ],
)
def test_a_class_that_names_no_cluster(seed: Seed, class_fields: dict[str, str], said: str) -> None:
    """What is wrong with a class is said once, in a sentence, and the claim can be deleted."""
    seed.agent.apply(f"{seed.secret()}---\n{seed.storage_class(**class_fields)}---\n{CLAIM}")
    told = eventually(lambda: said in seed.events() and seed.events(), 20.0, what=said)
    seed.agent.ok("delete", "pvc", *NAME)

    assert "Traceback" not in str(told)
    assert "ProvisioningFailed" in str(told)


@pytest.mark.expect_log("cannot be known", "failed to provision")
def test_a_wrong_key(seed: Seed) -> None:
    """A wrong key is named as the reason; other classes are served; the right key heals it without a restart."""
    seed.agent.apply(f"{seed.secret(seed.cluster.key('restricted'))}---\n{seed.storage_class()}---\n{CLAIM}")
    said = "refuses the Ceph client admin: correct its key in the Secret cephfs/ceph-secret-admin"
    eventually(lambda: said in seed.events(), 20.0, what="the reason is told")
    seed.agent.apply(CLAIM.replace("storageClassName: cephfs", "storageClassName: fusevol").replace("-test", "-else"))
    other = eventually(lambda: seed.agent.get("pvc", "dlkit-workspace-else", *NAME[1:])["spec"].get("volumeName"), 20.0)
    pending = seed.claim()["status"]["phase"]
    seed.agent.apply(seed.secret())
    bound = seed.bound()

    assert pending == "Pending"
    assert other
    assert bound["status"]["capacity"] == {"storage": "1Gi"}


def test_a_secret_that_comes_later(seed: Seed) -> None:
    """A class whose Secret is missing says so, and its claim is bound as soon as there is one."""
    seed.agent.apply(f"{seed.storage_class()}---\n{CLAIM}")
    eventually(
        lambda: 'There is no Secret "cephfs/ceph-secret-admin"' in seed.events(), 20.0, what="the reason is told"
    )
    seed.agent.apply(seed.secret())

    assert seed.bound()["status"]["phase"] == "Bound"


def test_keys_are_told_to_nobody(seed: Seed) -> None:
    """Ceph's keys are in agent.db and in Secrets that somebody asks for; in no log, command line, event or spec."""
    leaks = Leaks(seed.cluster.key("admin"))
    seed.agent.stop()
    with leaks.watched() as seen:
        seed.agent.start("--log-level", "debug")
        seed.apply()
        (seed.mount() / "f").touch()
    items = seed.agent.client.request("GET", "/v1/secrets")["items"]
    values = [base64.b64decode(v).decode() for s in items for v in (s.get("data") or {}).values()]
    keys = Leaks(*values)
    files = keys.files(seed.agent.run_dir, seed.agent.state)
    printed = [(kind, seed.agent.ok("describe", kind, "-A")) for kind in ("pvc", "pv", "sc", "secrets")]
    printed += [("events", seed.agent.ok("events")), ("log", seed.agent.log.read_text())]

    assert seed.ceph_fuse()
    assert seed.cluster.key("admin") in values
    assert {Path(f).name for f in files} <= {"agent.db", "agent.db-wal", "agent.db-shm"}
    assert keys.among(printed) == []
    assert list(keys.processes()) == []
    assert seen == set()
