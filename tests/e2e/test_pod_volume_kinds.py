"""Pod volumes beside Secrets and plain claims: in memory, made for the Pod, by drivers; and parts of volumes."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.support import api, pods
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root
GID = 4321


def mode(place: Path) -> tuple[str, int]:
    """Permission bits and group."""
    found = place.lstat()
    return oct(stat.S_IMODE(found.st_mode)), found.st_gid


def size(place: Path) -> int:
    """What df says."""
    found = os.statvfs(place)
    return found.f_blocks * found.f_frsize


def test_memory_is_a_tmpfs_with_a_limit(agent: Agent) -> None:
    """1.4: a tmpfs as large as sizeLimit, which is hard; without one, as the Pod's memory limit, else the node's."""
    limited = {"resources": {"limits": {"memory": "8Mi"}}}
    source = {"m": {"emptyDir": {"medium": "Memory"}}}
    pods.pod(agent, "size", {"m": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}}, container=limited)
    pods.pod(agent, "pod", source, container=limited)
    pods.pod(agent, "node", source)
    places = {name: pods.ready(agent, name)["/m"] for name in ("size", "pod", "node")}
    found = [p for p in map(mount.find, places.values()) if p]
    kinds = {(p.fstype, "noswap" in p.super_options) for p in found}
    sizes = {name: size(place) for name, place in places.items()}
    with pytest.raises(OSError, match="No space left"):
        (places["size"] / "big").write_bytes(b"x" * (1 << 21))
    inodes = os.statvfs(places["size"]).f_files
    bits = mode(places["size"])
    pods.delete(agent, "Pod", "size")

    assert kinds == {("tmpfs", True)}
    assert sizes == {
        "size": 1 << 20,
        "pod": 8 << 20,
        "node": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    assert (inodes, bits) == (1024, ("0o1777", 0))
    assert not places["size"].exists()


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Eight huge pages of 2 MiB, as long as the test lasts."""
    reserved = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not reserved.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    before = int(reserved.read_text())
    reserved.write_text(str(before + 8))
    try:
        if int(reserved.read_text()) < before + 8:
            pytest.skip("memory is too fragmented for eight huge pages")
        yield
    finally:
        reserved.write_text(str(before))


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages(agent: Agent) -> None:
    """1.5: a hugetlbfs with pages of the size that the Pod requests, gone with the Pod; sizeLimit is hard, in pages."""
    asks = {"resources": {"limits": {"hugepages-2Mi": "8Mi", "memory": "64Mi"}}}
    medium = {"any": "HugePages", "named": "HugePages-2Mi"}
    for name, words in medium.items():
        pods.pod(agent, name, {"m": {"emptyDir": {"medium": words, "sizeLimit": "5Mi"}}}, container=asks)
    places = {name: pods.ready(agent, name)["/m"] for name in medium}
    found = [p for p in map(mount.find, places.values()) if p]
    with (places["any"] / "f").open("w+b") as file:
        file.truncate(4 << 20)
        with mmap.mmap(file.fileno(), 4 << 20) as memory:
            memory[:3] = b"abc"
            memory[3 << 20] = 1
        file.truncate(6 << 20)
        with pytest.raises(OSError, match=r"Cannot allocate memory|No space left"):
            mmap.mmap(file.fileno(), 6 << 20)
    bits = mode(places["named"])
    spec = {"securityContext": {"fsGroup": 4321}}
    pods.pod(agent, "group", {"m": {"emptyDir": {"medium": "HugePages"}}}, container=asks, **spec)
    grouped = pods.ready(agent, "group")["/m"].stat()
    for name in (*medium, "group"):
        pods.delete(agent, "Pod", name)

    assert [p.fstype for p in found] == ["hugetlbfs"] * 2
    assert all("pagesize=2M" in p.super_options for p in found)
    assert bits == ("0o777", 0)
    assert (grouped.st_gid, stat.S_IMODE(grouped.st_mode)) == (4321, 0o2777)
    assert not any(place.exists() for place in places.values())


@pytest.mark.parametrize(
    ("medium", "asked", "why"),
    [
        ("HugePages", [], "no resource request for huge pages"),
        ("HugePages", ["hugepages-2Mi", "hugepages-1Gi"], "multiple huge page sizes"),
        ("HugePages-2Mi", ["hugepages-1Gi"], "request no huge pages of that size"),
        ("HugePages-3Mi", ["hugepages-3Mi"], "the node has no huge pages of 3Mi"),
        ("HugePages-x", ["hugepages-2Mi"], "unknown storage medium HugePages-x"),
        ("HugePagesX", ["hugepages-2Mi"], "unknown storage medium HugePagesX"),
    ],
)
def test_huge_pages_that_cannot_be(agent: Agent, medium: str, asked: list[str], why: str) -> None:
    """1.5: the Pod's containers must request exactly what the medium means."""
    limits = {"resources": {"limits": dict.fromkeys(asked, "1Gi")}}
    pods.pod(agent, "p", {"m": {"emptyDir": {"medium": medium}}}, container=limits)

    assert why in pods.refused(agent, "p", why)


def test_a_host_path_that_comes_later(agent: Agent) -> None:
    """2.3: a Pod whose hostPath is not there waits with the reason, as event too, and goes on when it comes."""
    place = agent.directory / "later"
    pods.pod(agent, "p", {"h": {"hostPath": {"path": str(place), "type": "Directory"}}})
    told = pods.refused(agent, "p", "doesn't exist")
    events = agent.ok("events", "--for", "pod/p")
    place.mkdir()
    ready = pods.ready(agent, "p")

    assert told == f'MountVolume.SetUp failed for volume "h" : hostPath {place} doesn\'t exist'
    assert "FailedMount" in events
    assert ready == {"/h": place}


def test_the_group_gets_what_kubernetes_gives_it(agent: Agent) -> None:
    """6.3: emptyDirs on disk and in memory and claims are the group's, a hostPath never, read-only claims neither."""
    host = agent.directory / "host"
    host.mkdir(mode=0o755)
    api.bound_claim(agent, "data")
    api.bound_claim(agent, "read")
    volumes = {
        "disk": {"emptyDir": {}},
        "memory": {"emptyDir": {"medium": "Memory"}},
        "claim": {"persistentVolumeClaim": {"claimName": "data"}},
        "read": {"persistentVolumeClaim": {"claimName": "read", "readOnly": True}},
        "host": {"hostPath": {"path": str(host)}},
    }
    pods.pod(agent, "p", volumes, securityContext={"fsGroup": GID})
    places = pods.ready(agent, "p")

    assert {n: mode(p) for n, p in places.items()} == {
        "/disk": ("0o2777", GID),
        "/memory": ("0o3777", GID),
        "/claim": ("0o2777", GID),
        "/read": ("0o777", 0),
        "/host": ("0o755", 0),
    }


def test_a_claims_files_change_hands(agent: Agent) -> None:
    """6.4: the next Pod's group gets all files, Always; with OnRootMismatch nothing while the root fits."""
    api.bound_claim(agent, "data")
    volumes = {"c": {"persistentVolumeClaim": {"claimName": "data"}}}
    found = []
    for turn, (gid, policy) in enumerate([(GID, "Always"), (GID, "OnRootMismatch"), (GID, "Always"), (7, "Always")]):
        pods.pod(agent, f"p{turn}", volumes, securityContext={"fsGroup": gid, "fsGroupChangePolicy": policy})
        place = pods.ready(agent, f"p{turn}")["/c"]
        file = place / "file"
        if turn == 0:
            file.touch(mode=0o600)
            os.chown(file, 1000, 1000)
        else:
            found.append((mode(file), file.stat().st_uid))
        pods.delete(agent, "Pod", f"p{turn}")

    assert found == [(("0o600", 1000), 1000), (("0o660", GID), 1000), (("0o660", 7), 1000)]


def test_a_claim_of_the_pods_own(agent: Agent) -> None:
    """1.7: the claim is made with the template's labels, owned by the Pod, and gone with it, volume and all."""
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Mi"}}},
    }
    made = pods.pod(agent, "p", {"v": {"ephemeral": {"volumeClaimTemplate": template}}})
    place = pods.ready(agent, "p")["/v"]
    claim = pods.find(agent, "PersistentVolumeClaim", "p-v") or {}
    with pytest.raises(OSError, match="No space left"):
        (place / "big").write_bytes(b"x" * (5 << 20))
    pods.delete(agent, "Pod", "p")
    eventually(lambda: pods.find(agent, "PersistentVolumeClaim", "p-v") is None, what="the claim is gone")
    eventually(lambda: not os.listdir(agent.pool / "volumes"), what="the volume is gone")

    assert claim["metadata"]["labels"] == {"a": "b"}
    owner = claim["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("Pod", made["metadata"]["uid"], True)


def test_somebody_elses_claim_is_not_taken(agent: Agent) -> None:
    """1.7: a claim of the right name that the Pod does not own stops it, and stays when the Pod goes."""
    api.bound_claim(agent, "p-v")
    template = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Mi"}}}}
    pods.pod(agent, "p", {"v": {"ephemeral": {"volumeClaimTemplate": template}}})
    message = pods.refused(agent, "p", "not owner")
    pods.delete(agent, "Pod", "p")

    assert message.endswith("PVC default/p-v was not created for pod default/p (pod is not owner)")
    assert api.is_bound(agent, "p-v")


def test_an_inline_volume_of_the_driver(agent: Agent) -> None:
    """csi inline: a volume with a hard limit that ends with its Pod; other drivers and attributes are refused."""

    def inline(driver: str = "fusevol.io", **attributes: str) -> dict[str, object]:
        return {"v": {"csi": {"driver": driver, "volumeAttributes": attributes}}}

    pods.pod(agent, "p", inline(size="1Mi"))
    pods.pod(agent, "other", inline("ebs.csi.aws.com", size="1Mi"))
    pods.pod(agent, "typo", inline(size="1Mi", sizes="2Mi"))
    pods.pod(agent, "host", inline(kind="hostPath", path="/srv"))
    pods.pod(agent, "free", inline(mode="0750", quota="none"))
    place = pods.ready(agent, "p")["/v"]
    with pytest.raises(OSError, match="No space left"):
        (place / "big").write_bytes(b"x" * (2 << 20))
    (place / "big").unlink()
    pods.delete(agent, "Pod", "p")
    eventually(lambda: len(os.listdir(agent.pool / "volumes")) == 1, what="only the other volume is left")

    assert size_of_name(place) == "kubernetes.io~csi/v/mount"
    assert "not found in the list of registered CSI drivers" in pods.refused(agent, "other", "ebs")
    assert 'no volume attribute "sizes"' in pods.refused(agent, "typo", "sizes")
    assert "use a hostPath volume here" in pods.refused(agent, "host", "hostPath")
    assert mode(pods.ready(agent, "free")["/v"]) == ("0o750", 0)


def size_of_name(place: Path) -> str:
    """The last three parts of a path."""
    return "/".join(place.parts[-3:])


def test_flex_volumes_of_the_driver(agent: Agent) -> None:
    """flexVolume: what the call-outs serve, without a kubelet; a claim is made when a size is given, and stays."""
    host = agent.directory / "host"
    host.mkdir()

    def flex(driver: str = "fusevol.io/fusevol", **options: str) -> dict[str, object]:
        return {"flexVolume": {"driver": driver, "options": {f"fusevol/{k}": v for k, v in options.items()}}}

    volumes = {
        "empty": flex(kind="emptyDir", size="1Mi"),
        "claim": flex(claim="made", size="2Mi"),
        "host": flex(path=str(host), type="Directory"),
    }
    pods.pod(agent, "p", volumes, securityContext={"fsGroup": GID})
    pods.pod(agent, "other", {"v": flex("example.com/lvm", size="1Gi")})
    places = pods.ready(agent, "p")
    sizes = (size(places["/empty"]), size(places["/claim"]))
    modes = {name: mode(place) for name, place in places.items()}
    pods.delete(agent, "Pod", "p")

    assert sizes == (1 << 20, 2 << 20)
    assert modes == {"/empty": ("0o2777", GID), "/claim": ("0o2777", GID), "/host": ("0o755", 0)}
    assert places["/host"] == host
    assert api.is_bound(agent, "made")
    assert "no driver found for example.com/lvm" in pods.refused(agent, "other", "driver")


def test_paths_from_variables(agent: Agent) -> None:
    """subPathExpr: variables of the container, from the Pod and from objects; a missing one or ``..`` is refused."""
    pods.put(agent, "ConfigMap", "c", data={"tenant": "t1"})
    env = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "TENANT", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "tenant"}}},
        {"name": "BOTH", "value": "$(TENANT)/$(POD)"},
        {"name": "UP", "value": "../x"},
    ]

    def mounts(expression: str) -> list[dict[str, str]]:
        return [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/part", "subPathExpr": expression}]

    volumes = {"v": {"emptyDir": {}}}
    for name, expression in (("p", "logs/$(BOTH)"), ("none", "$(NOPE)"), ("up", "$(UP)")):
        pods.pod(agent, name, volumes, mounts(expression), container={"env": env})
    places = pods.ready(agent, "p")
    (places["/part"] / "file").touch()

    assert (places["/v"] / "logs" / "t1" / "p" / "file").exists()
    assert 'missing value for "NOPE"' in pods.refused(agent, "none", "NOPE")
    assert "must not contain '..'" in pods.refused(agent, "up", "..")


def test_a_sub_path_never_reaches_etc(agent: Agent) -> None:
    """6.5: a symbolic link to /etc, planted in a claim by an earlier Pod, is refused; one that stays inside is fine."""
    api.bound_claim(agent, "data")
    volumes = {"c": {"persistentVolumeClaim": {"claimName": "data"}}}
    pods.pod(agent, "first", volumes)
    place = pods.ready(agent, "first")["/c"]
    (place / "conf").symlink_to("/etc")
    (place / "real").mkdir()
    (place / "alias").symlink_to("real")
    pods.pod(agent, "bad", volumes, [{"name": "c", "mountPath": "/c", "subPath": "conf"}])
    pods.pod(agent, "good", volumes, [{"name": "c", "mountPath": "/c", "subPath": "alias"}])
    message = pods.refused(agent, "bad", "subPath")
    (pods.ready(agent, "good")["/c"] / "file").touch()
    shown = [m for m in mount.below(agent.state / "pods") if m.root == "/etc" or m.root.startswith("/etc/")]

    assert message.endswith('failed to prepare subPath "conf": it leads out of the volume')
    assert (place / "real" / "file").exists()
    assert shown == []


def test_recursive_read_only(agent: Agent) -> None:
    """6.2: with recursiveReadOnly, what is mounted inside a hostPath is read-only too; the status says so."""
    host = agent.directory / "host"
    (host / "inner").mkdir(parents=True)
    mount.bind(host, host)
    other = agent.directory / "other"
    other.mkdir()
    mount.bind(other, host / "inner")
    mounts = [{"name": "h", "mountPath": "/h", "readOnly": True, "recursiveReadOnly": "Enabled"}]
    pods.pod(agent, "p", {"h": {"hostPath": {"path": str(host)}}}, mounts)
    place = pods.ready(agent, "p")["/h"]
    entry = (pods.find(agent, "Pod", "p") or {})["status"]["volumeMounts"][0]
    with pytest.raises(OSError, match="Read-only"):
        (place / "inner" / "x").touch()
    (host / "inner" / "x").touch()
    pods.delete(agent, "Pod", "p")

    assert (entry["readOnly"], entry["recursiveReadOnly"]) == (True, "Enabled")
    assert (other / "x").exists()
    assert not place.exists()
