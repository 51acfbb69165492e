"""Secrets, ConfigMaps and the Pod's own facts as files: what is shown, how it changes, when it cannot."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.transport import mount
from tests.support import pods
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root


def encoded(text: str) -> str:
    """Base64."""
    return base64.b64encode(text.encode()).decode()


def shown(place: Path) -> dict[str, str]:
    """The files of a volume by their visible paths."""
    files = [p for n in os.listdir(place) if not n.startswith("..") for p in _files(place / n)]
    return {str(p.relative_to(place)): p.read_text() for p in files}


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]


def modes(place: Path, *names: str) -> list[str]:
    """Permission bits of the files behind the visible names."""
    return [oct(stat.S_IMODE((place / n).stat().st_mode)) for n in names]


def test_a_secret_is_a_tmpfs_of_its_own(agent: Agent) -> None:
    """Every key a file with the default mode; on a tmpfs that goes with the Pod; containers get it read-only."""
    pods.put(agent, "Secret", "s", data={"user": encoded("me")}, stringData={"password": "pw"})
    pods.pod(agent, "p", {"v": {"secret": {"secretName": "s"}}})
    place = pods.ready(agent, "p")["/v"]
    found = mount.find(place)
    entry = (pods.find(agent, "Pod", "p") or {})["status"]["volumeMounts"][0]
    files, bits = shown(place), modes(place, "user", "password", ".")
    pods.delete(agent, "Pod", "p")

    assert files == {"user": "me", "password": "pw"}
    assert bits == ["0o644", "0o644", "0o1777"]
    assert found is not None
    assert (found.fstype, entry["readOnly"]) == ("tmpfs", True)
    assert (place.parent.name, place.exists(), os.listdir(agent.state / "pods")) == ("kubernetes.io~secret", False, [])


def test_items_modes_and_binary_data(agent: Agent) -> None:
    """Only the listed keys, where they are put, each with its mode or the default one; binaryData too."""
    pods.put(agent, "ConfigMap", "c", data={"a": "1", "b": "2", "c": "3"}, binaryData={"bin": encoded("4")})
    items = [{"key": "a", "path": "x/y/a"}, {"key": "b", "path": "b", "mode": 0o400}, {"key": "bin", "path": "x/bin"}]
    pods.pod(agent, "p", {"v": {"configMap": {"name": "c", "items": items, "defaultMode": 0o640}}})
    place = pods.ready(agent, "p")["/v"]

    assert shown(place) == {"x/y/a": "1", "b": "2", "x/bin": "4"}
    assert modes(place, "x/y/a", "b", "x/bin") == ["0o640", "0o400", "0o640"]


def test_the_pod_in_files(agent: Agent) -> None:
    """downwardAPI: names, single labels, whole maps quoted as Go does it, resources rounded up in their unit."""
    items = [
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
        {"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['n']"}},
        {"path": "uid", "fieldRef": {"fieldPath": "metadata.uid"}},
        {"path": "one", "fieldRef": {"fieldPath": "metadata.labels['app']"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}},
        {"path": "mem", "resourceFieldRef": _resource("limits.memory", "1Mi")},
        {"path": "cpu", "resourceFieldRef": _resource("requests.cpu", "1m")},
        {"path": "cpus", "resourceFieldRef": _resource("limits.cpu", "1")},
    ]
    limits = {"limits": {"memory": "100500Ki"}, "requests": {"cpu": "250m"}}
    metadata = {"labels": {"app": "web", "a": "b"}, "annotations": {"n": 'two\nlines "q" \\ \t\x01'}}
    volumes = {"v": {"downwardAPI": {"items": items}}}
    made = pods.pod(agent, "p", volumes, metadata=metadata, container={"resources": limits})
    place = pods.ready(agent, "p")["/v"]

    assert shown(place) == {
        "name": "p",
        "namespace": "default",
        "note": 'two\nlines "q" \\ \t\x01',
        "uid": made["metadata"]["uid"],
        "one": "web",
        "labels": 'a="b"\napp="web"',
        "notes": 'n="two\\nlines \\"q\\" \\\\ \\t\\x01"',
        "mem": "99",
        "cpu": "250",
        "cpus": str(os.cpu_count()),
    }


def _resource(name: str, divisor: str) -> dict[str, str]:
    return {"containerName": "main", "resource": name, "divisor": divisor}


def test_projected_sources_come_together(agent: Agent) -> None:
    """projected: all sources in one volume, later ones over earlier ones; a token is refused in a sentence, and so is
    what is missing, both at once; if one source fails later, nothing of the others is written."""
    pods.put(agent, "Secret", "s", stringData={"k": "secret", "both": "secret"})
    pods.put(agent, "ConfigMap", "c", data={"both": "config"})
    downward = {"downwardAPI": {"items": [{"path": "d/name", "fieldRef": {"fieldPath": "metadata.name"}}]}}
    sources = [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}, downward]
    pods.pod(agent, "p", {"v": {"projected": {"sources": sources, "defaultMode": 0o444}}})
    token = {"serviceAccountToken": {"path": "token"}}
    pods.pod(agent, "q", {"v": {"projected": {"sources": [token, {"secret": {"name": "no"}}]}}})
    place = pods.ready(agent, "p")["/v"]
    message = pods.refused(agent, "q", "serviceAccountToken")

    first = shown(place), modes(place, "k", "d/name")
    pods.delete(agent, "ConfigMap", "c")
    pods.put(agent, "Secret", "s", stringData={"k": "changed"})
    eventually(lambda: any('"c" not found' in e for e in pods.events(agent, "p")), what="an event tells of it")
    meanwhile = shown(place)
    pods.put(agent, "ConfigMap", "c", data={"both": "again"})
    eventually(lambda: shown(place)["both"] == "again", what="all is there again")

    assert first == ({"k": "secret", "both": "config", "d/name": "p"}, ["0o444", "0o444"])
    assert meanwhile == first[0]
    assert shown(place) == {"k": "changed", "both": "again", "d/name": "p"}
    assert "fusevol issues no tokens" in message
    assert 'secret "no" not found' in message


def test_what_is_missing(agent: Agent) -> None:
    """Missing objects and keys keep the Pod waiting until they come; optional ones are just not there, whether they
    come later or go again."""
    pods.put(agent, "ConfigMap", "c", data={"a": "1"})
    items = [{"key": "a", "path": "a"}, {"key": "b", "path": "b"}]
    pods.pod(agent, "object", {"v": {"secret": {"secretName": "s"}}})
    pods.pod(agent, "key", {"v": {"configMap": {"name": "c", "items": items}}})
    pods.put(agent, "Secret", "little", stringData={"a": "1"})
    pods.pod(agent, "word", {"v": {"secret": {"secretName": "little", "items": items}}})
    optional = {
        "s": {"secret": {"secretName": "none", "optional": True}},
        "c": {"configMap": {"name": "c", "items": items, "optional": True}},
    }
    pods.pod(agent, "optional", optional)
    said = [pods.refused(agent, name, "no") for name in ("object", "key", "word")]
    without = {p: shown(place) for p, place in pods.ready(agent, "optional").items()}
    pods.put(agent, "Secret", "s", stringData={"k": "v"})
    pods.put(agent, "Secret", "none", stringData={"k": "late"})
    pods.put(agent, "ConfigMap", "c", data={"a": "1", "b": "2"})
    places = pods.ready(agent, "optional")
    eventually(lambda: shown(places["/s"]) == {"k": "late"} and "b" in shown(places["/c"]), what="the files appear")
    pods.delete(agent, "Secret", "none")
    eventually(lambda: shown(places["/s"]) == {}, what="the optional files are gone again")

    assert said == [
        'MountVolume.SetUp failed for volume "v" : secret "s" not found',
        'MountVolume.SetUp failed for volume "v" : references non-existent config key: b',
        'MountVolume.SetUp failed for volume "v" : references non-existent secret key: b',
    ]
    assert without == {"/s": {}, "/c": {"a": "1"}}
    assert shown(pods.ready(agent, "object")["/v"]) == {"k": "v"}
    assert shown(pods.ready(agent, "key")["/v"]) == {"a": "1", "b": "2"}


def test_files_change_with_the_object(agent: Agent) -> None:
    """A change is seen within a second, labels too; a container that is started then gets the new part by subPath; the
    files of a deleted object stay, the part of a key that is gone as well."""
    pods.put(agent, "ConfigMap", "c", data={"a": "1", "b": "x"})
    labels = {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}
    volumes = {"v": {"configMap": {"name": "c"}}, "d": labels}
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/one", "subPath": "a"},
              {"name": "d", "mountPath": "/d"}]  # fmt: skip
    pods.pod(agent, "p", volumes, mounts, metadata={"labels": {"app": "one"}})
    places = pods.ready(agent, "p")
    first = (places["/one"].read_text(), shown(places["/d"]))
    pods.put(agent, "ConfigMap", "c", data={"a": "2", "c": "y"})
    eventually(lambda: shown(places["/v"]) == {"a": "2", "c": "y"}, 1.0, what="the new values are there", interval=0.01)
    eventually(lambda: places["/one"].read_text() == "2", 1.0, what="the part is the new one", interval=0.01)
    pods.put(agent, "ConfigMap", "c", data={"c": "z"})
    eventually(lambda: shown(places["/v"]) == {"c": "z"}, 1.0, what="the new values are there", interval=0.01)
    pods.pod(agent, "p", volumes, mounts, metadata={"labels": {"app": "two"}})
    eventually(lambda: shown(places["/d"]) == {"l": 'app="two"'}, 1.0, what="the new label is there", interval=0.01)
    pods.delete(agent, "ConfigMap", "c")
    eventually(lambda: any("not found" in e for e in pods.events(agent, "p")), what="an event tells of it")

    assert first == ("1", {"l": 'app="one"'})
    assert places["/one"].read_text() == "2"
    assert shown(places["/v"]) == {"c": "z"}
    assert pods.condition(agent, "p")["status"] == "True"


def test_the_group_can_read(agent: Agent) -> None:
    """fsGroup: the files are the group's and readable to it, also those of the next state."""
    pods.put(agent, "Secret", "s", stringData={"k": "1"})
    volumes = {"v": {"secret": {"secretName": "s", "defaultMode": 0o400}}}
    pods.pod(agent, "p", volumes, securityContext={"fsGroup": 4321})
    place = pods.ready(agent, "p")["/v"]
    pods.put(agent, "Secret", "s", stringData={"k": "2"})
    eventually(lambda: shown(place) == {"k": "2"}, what="the new value is there")

    assert modes(place, "k", ".", "..data") == ["0o440", "0o3777", "0o2755"]
    assert {p.stat().st_gid for p in (place, place / "k", place / "..data")} == {4321}


def test_other_mounts_inside(agent: Agent) -> None:
    """A volume mounted below a Secret's path has its directory in it, and it stays when the Secret changes."""
    pods.put(agent, "Secret", "s", stringData={"k": "1"})
    mounts = [{"name": "v", "mountPath": "/etc/s"}, {"name": "e", "mountPath": "/etc/s/cache/deep"}]
    pods.pod(agent, "p", {"v": {"secret": {"secretName": "s"}}, "e": {"emptyDir": {}}}, mounts)
    place = pods.ready(agent, "p")["/etc/s"]
    pods.put(agent, "Secret", "s", stringData={"k": "2"})
    eventually(lambda: (place / "k").read_text() == "2", what="the new value is there")

    assert modes(place, "cache/deep") == ["0o755"]


_READER = """
import os, sys
root, seen = sys.argv[1], set()
print("ready", flush=True)
while True:
    try:
        data = os.open(os.path.join(root, "..data"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fds = [os.open(n, os.O_RDONLY, dir_fd=data) for n in ("a", "z")]
        finally:
            os.close(data)
    except FileNotFoundError:
        continue
    got = [os.read(f, 100) for f in fds]
    for f in fds:
        os.close(f)
    seen.add(got[0])
    if got[0] != got[1]:
        sys.exit(f"mixed: {got}")
    if got[0] == b"end":
        break
print(len(seen))
"""


def test_a_reader_sees_whole_states_only(agent: Agent) -> None:
    """Updates through the agent, while somebody reads: of two values both are old or both are new."""
    pods.put(agent, "ConfigMap", "c", data={"a": "0", "z": "0"})
    pods.pod(agent, "p", {"v": {"configMap": {"name": "c"}}})
    place = pods.ready(agent, "p")["/v"]
    command = [sys.executable, "-c", _READER, str(place)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for value in [*map(str, range(1, 150)), "end"]:
            pods.put(agent, "ConfigMap", "c", data={"a": value, "z": value})
        told, errors = reader.communicate(timeout=30)
    finally:
        reader.kill()
        reader.wait(10)

    assert errors == ""
    assert int(told) > 10
