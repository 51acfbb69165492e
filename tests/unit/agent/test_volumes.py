"""What Pods and claims need mounted: hostPath types, the gate of claims, plans of Pods, paths inside volumes."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.volumes import emptydir, hostpath, persistent, places, projected
from agent.volumes import memory as in_memory
from agent.volumes.node import Node
from agent.volumes.pods import container_mounts, plan
from agent.volumes.wanted import Context
from fusevol.errors import FusevolError, InvalidError

Obj = dict[str, Any]


def said(path: str, kind: str) -> str:
    """The refusal of a hostPath; empty when it is fine."""
    try:
        hostpath.prepare(path, kind)
    except FusevolError as e:
        return str(e)
    return ""


def test_host_paths_are_checked_by_type(workdir: Path) -> None:
    """2.2 and 2.3: every type with every wrong kind, in kubelet's words; symbolic links are followed."""
    base = workdir
    (base / "file").touch()
    (base / "dir").mkdir()
    (base / "link").symlink_to("dir")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(base / "sock"))
    listener.close()
    got = {
        "ok": [said(str(base / p), t) for p, t in (
            ("dir", "Directory"), ("link", "Directory"), ("file", "File"), ("sock", "Socket"),
            ("nothing", ""), ("file", "FileOrCreate"), ("dir", "DirectoryOrCreate"), ("link", ""),
        )] + [said("/dev/null", "CharDevice")],
        "missing": said(str(base / "no"), "Directory"),
        "wrong": said(str(base / "file"), "Directory"),
        "device": said("/dev/null", "BlockDevice"),
        "socket": said(str(base / "dir"), "Socket"),
        "type": said(str(base / "dir"), "Folder"),
        "made": said(str(base / "file"), "DirectoryOrCreate"),
        "up": said(f"{base}/../x", ""),
        "relative": said("x", ""),
    }  # fmt: skip

    assert got == {
        "ok": [""] * 9,
        "made": f"hostPath type check failed: {base}/file is not a directory, it's a file",
        "missing": f"hostPath {base}/no doesn't exist",
        "wrong": f"hostPath type check failed: {base}/file is not a directory, it's a file",
        "device": "hostPath type check failed: /dev/null is not a block device, it's a character device",
        "socket": f"hostPath type check failed: {base}/dir is not a socket file, it's a directory",
        "type": "Folder is an invalid volume type",
        "up": f"invalid HostPath {base}/../x: must not contain '..'",
        "relative": "invalid HostPath x: must be an absolute path",
    }


def test_host_paths_are_created_where_the_type_says_so(workdir: Path) -> None:
    """DirectoryOrCreate: parents too, 0755. FileOrCreate: 0644, empty, and a missing parent is an error. What is there
    stays as it is."""
    (workdir / "old").mkdir(mode=0o700)
    (workdir / "kept").write_text("x")
    (workdir / "kept").chmod(0o600)
    before = os.umask(0o022)
    try:
        hostpath.prepare(str(workdir / "a" / "b"), "DirectoryOrCreate")
        hostpath.prepare(str(workdir / "a" / "f"), "FileOrCreate")
        hostpath.prepare(str(workdir / "old"), "DirectoryOrCreate")
        hostpath.prepare(str(workdir / "kept"), "FileOrCreate")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((workdir / p).stat().st_mode) for p in ("a", "a/b", "a/f", "old", "kept")]
    with pytest.raises(FileNotFoundError):
        hostpath.prepare(str(workdir / "no" / "f"), "FileOrCreate")

    assert modes == [0o755, 0o755, 0o644, 0o700, 0o600]
    assert ((workdir / "a" / "f").read_text(), (workdir / "kept").read_text()) == ("", "x")


@pytest.mark.parametrize(
    ("source", "size"), [({}, None), ({"sizeLimit": "0"}, None), ({"sizeLimit": "1Mi"}, 1 << 20), ({"sizeLimit": 5}, 5)]
)
def test_the_size_of_an_empty_dir(source: Obj, size: int | None) -> None:
    """1.1: no limit and 0 are the same."""
    assert emptydir.size_of(source) == size


@pytest.mark.parametrize("medium", ["Disk", "memory", "HugePages2Mi"])
def test_other_media_are_refused(medium: str) -> None:
    """1.1: what is not served is said, not silently put on the disk."""
    with pytest.raises(InvalidError, match=f"unknown storage medium {medium}"):
        emptydir.check_medium({"medium": medium})


@pytest.mark.parametrize("medium", ["Memory", "HugePages"])
def test_no_volume_of_a_pool_is_memory(medium: str) -> None:
    """1.1: who asks for a volume of a pool, and for memory, is told that this is no volume of a pool."""
    with pytest.raises(InvalidError, match=f"medium {medium} is for the emptyDirs of Pods"):
        emptydir.request("v", {"medium": medium}, {})


CLAIM: Obj = {
    "metadata": {"name": "data", "namespace": "default", "uid": "u1"},
    "spec": {"volumeName": "v", "accessModes": ["ReadWriteOnce"]},
    "status": {"phase": "Bound"},
}
VOLUME: Obj = {
    "metadata": {"name": "v"},
    "spec": {
        "claimRef": {"uid": "u1"},
        "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "fusevol.io", "volumeHandle": "default/v"},
    },
}


def changed(obj: Obj, **fields: Any) -> Obj:
    """*obj* with parts of metadata, spec or status replaced."""
    return {k: {**v, **fields.get(k, {})} for k, v in obj.items()}


@pytest.mark.parametrize(
    ("claim", "volume", "message"),
    [
        (None, None, 'persistentvolumeclaim "data" not found'),
        (changed(CLAIM, metadata={"deletionTimestamp": "now"}), VOLUME, "is being deleted"),
        (changed(CLAIM, status={"phase": "Pending"}), VOLUME, "is not bound"),
        (CLAIM, None, 'persistentvolume "v" of persistentvolumeclaim "data" not found'),
        (CLAIM, changed(VOLUME, spec={"claimRef": {"uid": "x"}}), "does not point to claim.UID u1"),
        (changed(CLAIM, spec={"volumeMode": "Block"}), VOLUME, "volumeMode Block"),
        (CLAIM, changed(VOLUME, spec={"csi": {"driver": "x", "volumeHandle": "y"}}), "CSI driver x"),
        (CLAIM, changed(VOLUME, spec={"csi": None, "cephfs": {"monitors": []}}), "the source cephfs"),
        (
            CLAIM,
            changed(VOLUME, spec={"nodeAffinity": {"required": {"nodeSelectorTerms": [{}]}}}),
            '1 node(s) didn\'t match PersistentVolume\'s node affinity (persistentvolume "v", this node is "n1")',
        ),
        (CLAIM, changed(VOLUME, spec={"mountOptions": ["nfsvers=4"]}), 'mount option "nfsvers=4"'),
        (
            CLAIM,
            changed(VOLUME, spec={"mountOptions": ["transport=fast"]}),
            "transport=kernel, transport=pyfuse3, passthrough=auto, passthrough=off and",
        ),
    ],
)
def test_the_gate_for_claims(claim: Obj | None, volume: Obj | None, message: str) -> None:
    """4.17: each condition that fails is named."""
    with pytest.raises(FusevolError) as caught:
        persistent.gate(claim, "data", volume, Node(name="n1"))

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, persistent.Source("default", "v", alone=True)),
        ({"mountOptions": ["ro", "debug"]}, persistent.Source("default", "v", alone=True, read_only=True)),
        ({"accessModes": ["ReadWriteMany"]}, persistent.Source("default", "v", cache="shared")),
        ({"mountOptions": ["passthrough=off"]}, persistent.Source("default", "v", alone=True, passthrough=False)),
        ({"mountOptions": ["cache=none"]}, persistent.Source("default", "v", alone=True, cache="none")),
        ({"mountOptions": ["transport=pyfuse3"]}, persistent.Source("default", "v", alone=True, transport="pyfuse3")),
        (
            {"csi": {**VOLUME["spec"]["csi"], "readOnly": True}},
            persistent.Source("default", "v", alone=True, read_only=True),
        ),
        ({"csi": None, "hostPath": {"path": "/p"}}, persistent.Source(path="/p", managed=False)),
        ({"csi": None, "local": {"path": "/p"}}, persistent.Source(path="/p", path_type="Directory")),
    ],
)
def test_what_is_behind_a_claim(spec: Obj, expected: persistent.Source) -> None:
    """Pool volumes, and for a single machine hostPath and local volumes."""
    assert persistent.gate(CLAIM, "data", changed(VOLUME, spec=spec), Node()) == expected


@pytest.mark.parametrize(
    ("modes", "read_only"),
    [(["ReadOnlyMany"], True), (["ReadWriteOnce", "ReadOnlyMany"], False), (["ReadWriteMany"], False)],
)
def test_a_claim_for_readers_is_read_only(modes: list[str], read_only: bool) -> None:
    """Whoever asks for nothing but ReadOnlyMany gets a read-only mount, whatever the volume could do."""
    volume = changed(VOLUME, spec={"accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]})

    assert persistent.gate(changed(CLAIM, spec={"accessModes": modes}), "data", volume, Node()).read_only is read_only


def test_only_one_pod_has_a_single_pod_claim() -> None:
    """4.15: the second Pod is refused in kubelet's words; the same Pod may come again."""
    claim = changed(CLAIM, spec={"accessModes": ["ReadWriteOncePod"]})
    persistent.check_single(claim, "pod1", ["pod1"])
    persistent.check_single(CLAIM, "pod1", ["pod2"])

    with pytest.raises(FusevolError, match="already in use by another pod"):
        persistent.check_single(claim, "pod1", ["pod2"])


POD: Obj = {
    "metadata": {"name": "p", "namespace": "default", "uid": "pu"},
    "spec": {
        "containers": [
            {
                "name": "c",
                "volumeMounts": [
                    {"name": "e", "mountPath": "/e"},
                    {"name": "d", "mountPath": "/d", "readOnly": True},
                    {"name": "h", "mountPath": "/h"},
                    {"name": "d", "mountPath": "/s", "subPath": "a/b"},
                ],
            }
        ],
        "volumes": [
            {"name": "e", "emptyDir": {}},
            {"name": "h", "hostPath": {"path": "/tmp"}},
            {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "n", "nfs": {"server": "x", "path": "/"}},
        ],
    },
}


CONTEXT = Context(
    root=Path("/p"), pool="default", claims=lambda _: (CLAIM, VOLUME), find=lambda _kind, _name: None, node=Node()
)


def test_a_pods_volumes_become_targets() -> None:
    """Each volume has its place, containers find it there, what is not supported is named."""
    wanted, problems = plan(POD, CONTEXT)
    shown, parts, more = container_mounts(POD, {w.name: w for w in wanted}, CONTEXT)

    assert [(s["name"], s["hostPath"], s["readOnly"]) for s in shown] == [
        ("e", "/p/pu/volumes/kubernetes.io~empty-dir/e", False),
        ("d", "/p/pu/volumes/kubernetes.io~csi/d", True),
        ("h", "/tmp", False),
        ("d", "/p/pu/volume-subpaths/d/c/3", False),
    ]
    assert [(a.target, a.sub_path, a.volume) for _, a in parts] == [("/p/pu/volume-subpaths/d/c/3", "a/b", "v")]
    assert [(p.name, "type nfs" in p.message) for p in problems + more] == [("n", True)]


def test_the_mode_of_an_empty_dir() -> None:
    """1.1: the volume's root is made with it, on disk and in memory; the group's bits come on top."""
    volumes = [
        {"name": "disk", "emptyDir": {"mode": 0o700}},
        {"name": "memory", "emptyDir": {"mode": 0o700, "medium": "Memory"}},
    ]
    wanted, _ = plan({**POD, "spec": {"volumes": volumes, "securityContext": {"fsGroup": 7}}}, CONTEXT)
    disk, memory = (w for w in wanted if w.attachment)

    assert disk.request is not None
    assert disk.request.mode == 0o700
    assert memory.attachment is not None
    assert memory.attachment.options == "mode=2770,gid=7"


def test_bind_mount_options_are_refused() -> None:
    """What is not served is said, not ignored."""
    mounts = [{"name": "e", "mountPath": "/e", "bindMountOptions": ["noexec"]}]
    pod = {**POD, "spec": {**POD["spec"], "containers": [{"name": "c", "volumeMounts": mounts}]}}
    wanted, _ = plan(pod, CONTEXT)
    _, _, problems = container_mounts(pod, {w.name: w for w in wanted}, CONTEXT)

    assert [p.message for p in problems] == ["bindMountOptions are not served here: leave them out."]


def test_a_volume_that_is_mounted_stays_although_its_claim_goes() -> None:
    """A running Pod keeps what it has: the gate is for new mounts."""
    wanted, _ = plan(POD, CONTEXT)
    rows = {w.attachment.target: w.attachment for w in wanted if w.attachment}
    leaving = changed(CLAIM, metadata={"deletionTimestamp": "now"})
    later = dataclasses.replace(CONTEXT, claims=lambda _: (leaving, VOLUME), existing=rows)
    again, _ = plan(POD, later)

    assert {w.name for w in again} == {"e", "h", "d"}


@pytest.mark.parametrize("path", ["/abs", "a/../b", ".."])
def test_a_sub_path_stays_in_the_volume(path: str) -> None:
    """6.2: absolute paths and `..` are refused."""
    with pytest.raises(InvalidError):
        places.check_sub_path(path)


def test_only_empty_directories_are_removed(workdir: Path) -> None:
    """6.9: content is never deleted; what is not empty stays and is named."""
    (workdir / "pod" / "volumes" / "a").mkdir(parents=True)
    (workdir / "pod" / "volumes" / "b").mkdir()
    (workdir / "pod" / "volumes" / "b" / "data").write_text("x")
    kept = places.remove_empty_tree(workdir / "pod")

    assert kept[0] == workdir / "pod" / "volumes" / "b"
    assert (workdir / "pod" / "volumes" / "b" / "data").read_text() == "x"
    assert not (workdir / "pod" / "volumes" / "a").exists()


@pytest.mark.parametrize(
    ("limits", "size_limit", "node", "size"),
    [
        ({"memory": "8Mi"}, 1 << 20, 1 << 30, 1 << 20),
        ({"memory": "8Mi"}, 1 << 24, 1 << 30, 8 << 20),
        ({"memory": "8Mi"}, None, 1 << 20, 1 << 20),
        ({}, None, 1 << 30, 1 << 30),
        ({}, 0, 1 << 30, 1 << 30),
    ],
)
def test_the_least_is_the_size_in_memory(limits: Obj, size_limit: int | None, node: int, size: int) -> None:
    """1.4: of what the node has, the Pod may use and sizeLimit says; 0 says nothing."""
    container = {"name": "c", "resources": {"limits": limits}}
    pod = {"spec": {"containers": [container]}}

    assert in_memory.size(pod, size_limit, Node(name="n", cpus=1, memory=node)) == size


def test_only_the_outermost_place_is_made() -> None:
    """3.7: of mounts below one another the first needs a directory in the volume, the next ones are in that mount."""
    paths = ["/etc/s/a/b/c", "/etc/s/a", "/etc/s/d/e", "/etc/other", "/etc/sx"]
    mounts = [{"name": "v", "mountPath": "/etc/s"}, *({"name": "e", "mountPath": p} for p in paths)]
    pod = {"spec": {"containers": [{"name": "c", "volumeMounts": mounts}]}}

    assert projected.places_inside(pod, "v") == ["a", "d/e"]
