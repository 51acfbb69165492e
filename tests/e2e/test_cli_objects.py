"""The command line with a real agent: apply, get, describe, delete, mount, pool, events, version."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import fusevol
from fusevol.transport import mount
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

CLAIM = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: data
  labels: {app: web}
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: 64Mi
"""
SEED_CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  creationTimestamp: "2019-12-29T09:09:14Z"
  name: cephfs
  resourceVersion: "216329"
  selfLink: /apis/storage.k8s.io/v1/storageclasses/cephfs
  uid: 3a225dd9-41e8-4767-a511-d1cfaf7e3db1
provisioner: fusevol.io/fusevol
reclaimPolicy: Delete
volumeBindingMode: Immediate
"""


def bound(agent: Agent, name: str = "data") -> str:
    """Wait until the claim is bound; its volume's name."""

    def volume() -> str:
        found = agent.client.request("GET", f"/v1/namespaces/default/persistentvolumeclaims/{name}")
        return str(found["spec"].get("volumeName", "")) if found.get("status", {}).get("phase") == "Bound" else ""

    return eventually(volume, what=f"claim {name} is bound")


def test_apply_says_what_it_did(agent: Agent) -> None:
    """created, then unchanged, then configured."""
    first = agent.apply(CLAIM)
    second = agent.apply(CLAIM)
    third = agent.apply(CLAIM.replace("app: web", "app: shop"))

    assert [first, second, third] == [
        f"persistentvolumeclaim/data {word}\n" for word in ("created", "unchanged", "configured")
    ]


def test_apply_from_files_and_directories(agent: Agent) -> None:
    """Several -f, files and directories; other files in a directory are left alone."""
    directory = agent.directory / "manifests"
    directory.mkdir()
    (directory / "claim.yml").write_text(CLAIM)
    (directory / "class.json").write_text(json.dumps(yaml.safe_load(SEED_CLASS)))
    (directory / "README.md").write_text("not: [yaml")
    (agent.directory / "more.yaml").write_text(CLAIM.replace("name: data", "name: more"))
    out = agent.ok("apply", "-f", "manifests", "-f", "more.yaml")

    assert out.splitlines() == [
        "persistentvolumeclaim/data created",
        "storageclass.storage.k8s.io/cephfs created",
        "persistentvolumeclaim/more created",
    ]


def test_table(agent: Agent) -> None:
    """The claims' table has kubectl's columns and what is used."""
    agent.apply(CLAIM)
    volume = bound(agent)
    headers, row = agent.ok("get", "pvc").splitlines()

    assert re.split(r" {2,}", headers) == (
        ["NAME", "STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "AGE", "USED"]
    )
    assert re.split(r" {2,}", row)[:6] == ["data", "Bound", volume, "64Mi", "RWO", "fusevol"]


def test_outputs(agent: Agent) -> None:
    """yaml, json and name; one object alone is not a list; a selector chooses."""
    agent.apply(CLAIM)
    agent.apply(CLAIM.replace("name: data", "name: other").replace("app: web", "app: shop"))
    one = yaml.safe_load(agent.ok("get", "pvc/data", "-o", "yaml"))
    several = json.loads(agent.ok("get", "pvc", "-o", "json"))
    names = agent.ok("get", "pvc", "-o", "name", "-l", "app=shop")

    assert (one["kind"], one["metadata"]["name"]) == ("PersistentVolumeClaim", "data")
    assert (several["kind"], len(several["items"])) == ("List", 2)
    assert names == "persistentvolumeclaim/other\n"


def test_namespaces(agent: Agent) -> None:
    """-n chooses a namespace, -A shows all with a column of their own, nothing found is said on stderr."""
    agent.ok("apply", "-n", "shop", "-f", "-", text=CLAIM)
    empty = agent.cli("get", "pvc")
    everywhere = agent.ok("get", "pvc", "-A").splitlines()

    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "No resources found in default namespace.\n")
    assert [line.split()[0] for line in everywhere] == ["NAMESPACE", "shop"]
    assert agent.ok("get", "pvc", "-n", "shop", "-o", "name") == "persistentvolumeclaim/data\n"


def test_several_kinds(agent: Agent) -> None:
    """Several kinds make several tables, names with their kind."""
    agent.apply(CLAIM)
    bound(agent)
    first, second = agent.ok("get", "pvc,sc").split("\n\n")

    assert first.splitlines()[1].startswith("persistentvolumeclaim/data ")
    assert second.splitlines()[1].startswith("storageclass.storage.k8s.io/fusevol ")


def test_watch(agent: Agent) -> None:
    """-w prints what is there, then what changes."""
    process = subprocess.Popen(
        agent.command("get", "pvc", "-w", "-o", "name"), stdout=subprocess.PIPE, text=True, env=agent.environment
    )
    try:
        assert process.stdout is not None
        agent.apply(CLAIM)
        line = process.stdout.readline()
    finally:
        process.kill()
        process.communicate()

    assert line == "persistentvolumeclaim/data\n"


def test_describe(agent: Agent) -> None:
    """The page has the fields, the use, where it is mounted, by which process, and the events."""
    agent.apply(CLAIM)
    volume = bound(agent)
    agent.ok("mount", "data", "mnt")
    page = agent.ok("describe", "pvc", "data")
    (server,) = agent.servers()

    for expected in (
        r"^Name: +data$",
        r"^Status: +Bound$",
        rf"^Volume: +{volume}$",
        r"^Capacity: +64Mi$",
        r"^Used: +\S+ of 64Mi$",
        rf"^Mounted At: +{re.escape(str(agent.directory / 'mnt'))}$",
        rf"^Server: +pid {server},",
        r"^Events:$",
    ):
        assert re.search(expected, page, re.MULTILINE), (expected, page)


def test_mount_and_umount(agent: Agent) -> None:
    """A claim is mounted at a directory, its limit enforced and shown; twice is fine; umount undoes it, twice too."""
    agent.apply(CLAIM)
    target = agent.directory / "mnt"
    for _ in range(2):
        agent.ok("mount", "data", "mnt")
    (target / "file").write_text("kept")
    stat = os.statvfs(target)
    for _ in range(2):
        agent.ok("umount", "mnt")
    assert not mount.is_mounted(target)
    agent.ok("mount", "data", "mnt", "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").write_text("x")

    assert stat.f_blocks * stat.f_frsize == 64 << 20
    assert (target / "file").read_text() == "kept"


def test_delete_waits_for_users(agent: Agent) -> None:
    """A claim that a Pod uses is held: delete tells by what after the time given, and finishes when the Pod is gone."""
    agent.apply(CLAIM)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {
            "containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }
    file = agent.directory / "pod.yaml"
    file.write_text(yaml.safe_dump(pod))
    agent.ok("run", "--prepare", "-f", str(file))
    held = agent.cli("delete", "pvc", "data", "--timeout", "0.5")
    asked = agent.ok("delete", "pvc", "data", "--no-wait")
    agent.ok("delete", "-f", str(file))
    eventually(lambda: agent.get("pvc")["items"] == [], what="the claim goes with its last user")

    assert held.returncode == 1
    assert "still held by kubernetes.io/pvc-protection" in held.stderr
    assert asked == "persistentvolumeclaim/data will be deleted when nothing uses it any more\n"


def test_delete(agent: Agent) -> None:
    """Deleting a claim takes its volume along (reclaim policy Delete); a second time it is not found, or ignored."""
    agent.apply(CLAIM)
    bound(agent)
    out = agent.ok("delete", "pvc/data")
    again = agent.cli("delete", "pvc/data")
    eventually(lambda: agent.get("pv")["items"] == [], what="the volume is reclaimed")

    assert out == "persistentvolumeclaim/data deleted\n"
    assert again.returncode == 1
    assert agent.ok("delete", "pvc/data", "--ignore-not-found") == ""


def test_pools_and_listings(agent: Agent) -> None:
    """Pools, mounts, servers and events can be listed."""
    agent.apply(CLAIM)
    volume = bound(agent)
    agent.ok("mount", "data", "mnt")

    assert agent.ok("get", "pools").splitlines()[1].split()[:2] == ["default", "1"]
    assert volume in agent.ok("pool", "show", "default")
    assert agent.ok("pool", "check") == "default: no damage found\n"
    assert str(agent.directory / "mnt") in agent.ok("get", "mounts")
    assert agent.ok("get", "servers").splitlines()[1].split()[1] == str(agent.servers()[0])
    assert "persistentvolumeclaim/data" in agent.ok("events")


def test_version(agent: Agent) -> None:
    """Both versions; the client's alone needs no agent."""
    both = agent.ok("version")
    agent.environment["FUSEVOL_SOCKET"] = str(Path("/nonexistent/socket"))

    assert both == f"Client: {fusevol.__version__}\nAgent:  {fusevol.__version__}\n"
    assert agent.ok("version", "--client") == f"Client: {fusevol.__version__}\n"


def test_no_answer_before_the_request_is_read(agent: Agent) -> None:
    """Who sends a body, though none is needed, finds the agent still there to take it."""
    found = [agent.client.request("POST", "/v1/pools/default/check", {}) for _ in range(100)]

    assert found == [{"items": []}] * 100
