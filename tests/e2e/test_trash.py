"""Deleted volumes: kept for as long as their class says, brought back to a claim, or deleted for ever; and orphans."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

CLASS = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: fusevol.io/fusevol
reclaimPolicy: %s
parameters: {trashRetention: "%s"}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: %s
  resources: {requests: {storage: 64Mi}}
"""


def filled(agent: Agent, name: str, *, policy: str = "Delete", retention: str = "1h") -> str:
    """A bound claim with a file ``f`` that has its name; its volume."""
    agent.apply(CLASS % (f"{name}-class", policy, retention))
    agent.apply(CLAIM % (name, f"{name}-class"))
    volume = eventually(lambda: api.is_bound(agent, name), 20.0, what=f"claim {name} is bound")
    target = agent.directory / f"{name}-filled"
    api.mount(agent, name, target)
    (target / "f").write_text(name)
    api.unmount(agent, target)
    return volume


def trashed(agent: Agent) -> list[dict[str, Any]]:
    """What the API says is in the trash."""
    found: list[dict[str, Any]] = agent.client.request("GET", "/v1/trash")["items"]
    return found


def thrown(agent: Agent, name: str, volume: str) -> str:
    """Delete a claim and wait until its volume is in the trash and its PersistentVolume gone; the entry."""
    api.delete(agent, "pvc", name)
    eventually(lambda: api.find(agent, "pv", volume) is None, 20.0, what=f"{volume} is deleted")
    entries = [e["name"] for e in trashed(agent) if e["volume"] == volume]
    assert entries, "the trash does not have it"
    return str(entries[0])


def orphans(agent: Agent, *options: str) -> dict[str, str]:
    """``fusevol pool scan``: what it says of each volume, by its id."""
    lines = agent.ok("pool", "scan", *options).splitlines()
    return {line.split()[1]: line.split("   ")[-1].strip() for line in lines[1:]}


def test_restored_to_a_claim(agent: Agent) -> None:
    """A volume of a class with a retention outlives its claim and the agent, and becomes another claim's, as it was."""
    volume = filled(agent, "data")
    entry = thrown(agent, "data", volume)
    agent.stop()
    agent.start()
    listed = agent.ok("trash", "list").splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["default", entry, "64Mi"]]
    said = agent.ok("trash", "restore", entry, "--claim", "again")
    assert said.splitlines() == [f"volume {volume} restored", "persistentvolumeclaim/again created"]
    eventually(lambda: api.is_bound(agent, "again"), 20.0, what="the new claim is bound")
    target = agent.directory / "again"
    api.mount(agent, "again", target)
    found = agent.get("pv", volume)["spec"]

    assert (target / "f").read_text() == "data"
    assert (found["persistentVolumeReclaimPolicy"], found["storageClassName"]) == ("Delete", "data-class")
    assert trashed(agent) == []
    api.unmount(agent, target)
    assert thrown(agent, "again", volume) == entry  # kept again for as long


def test_purged_when_its_time_is_over(agent: Agent) -> None:
    """Not before, and without anybody asking for it; another one that is kept longer stays."""
    stays = thrown(agent, "long", filled(agent, "long"))
    volume = filled(agent, "short", retention="3s")
    entry = thrown(agent, "short", volume)
    until = dt.datetime.fromisoformat(next(e["until"] for e in trashed(agent) if e["name"] == entry))
    data = agent.pool / "trash" / entry
    assert data.is_dir()
    eventually(lambda: not data.exists(), 20.0, what="the entry is purged")

    assert dt.datetime.now(dt.UTC) >= until
    assert [e["name"] for e in trashed(agent)] == [stays]


def test_without_a_retention(agent: Agent) -> None:
    """What no class keeps is deleted at once."""
    volume = filled(agent, "data", retention="0")
    api.delete(agent, "pvc", "data")
    eventually(lambda: api.find(agent, "pv", volume) is None, 20.0, what="the volume is deleted")

    eventually(lambda: trashed(agent) == [], 10.0, what="the trash is empty")
    assert agent.cli("trash", "list").stderr == "The trash is empty.\n"


def test_purged_by_hand(agent: Agent) -> None:
    """One entry, or all of them, before their time."""
    entries = [thrown(agent, name, filled(agent, name)) for name in ("a", "b", "c")]
    first = agent.ok("trash", "purge", f"default/{entries[0]}")
    assert sorted(e["name"] for e in trashed(agent)) == sorted(entries[1:])
    rest = agent.ok("trash", "purge", "--all", "default")

    assert first == f"{entries[0]} deleted for ever\n"
    assert sorted(rest.splitlines()) == sorted(f"{e} deleted for ever" for e in entries[1:])
    assert list((agent.pool / "trash").iterdir()) == []


def test_refused_restores_change_nothing(agent: Agent) -> None:
    """No name, a name that is taken or none, no such entry, one whose deletion has begun: a sentence each."""
    volume = filled(agent, "data")
    entry = thrown(agent, "data", volume)
    agent.apply(CLAIM % ("taken", "data-class"))
    path = agent.pool / "trash" / entry
    said = []
    for words in (
        [entry],
        [entry, "--claim", "taken"],
        [entry, "--claim", "No Name"],
        ["pvc-0.1", "--claim", "again"],
        ["nowhere/pvc-0.1", "--claim", "again"],
        [],
    ):
        done = agent.cli("trash", "restore", *words)
        assert done.returncode in {1, 2}
        assert done.stdout == ""
        said.append(done.stderr.removeprefix("Error: "))
    (path / "data").rename(path / "purging")
    said.append(agent.cli("trash", "restore", entry, "--claim", "again").stderr.removeprefix("Error: "))
    (path / "purging").rename(path / "data")

    for text, expected in zip(
        said,
        (
            "Say for which claim",
            'There is a claim "default/taken" already',
            'PersistentVolumeClaim "No Name" is invalid',
            "There is no pvc-0.1 in the trash",
            'There is no pool "nowhere"',
            "Name what to restore",
            f"The deletion of {entry} has begun",
        ),
        strict=True,
    ):
        assert text.startswith(expected)
    assert [e["name"] for e in trashed(agent)] == [entry]
    assert api.find(agent, "pvc", "again") is None
    assert api.find(agent, "pv", volume) is None


def test_csi_volume_comes_back_without_a_claim(agent: Agent) -> None:
    """Its objects are an orchestrator's: the volume is put back, and its handle told for them."""
    volume = filled(agent, "data")
    entry = thrown(agent, "data", volume)
    record = agent.pool / "trash" / entry / "volume.json"
    fields = json.loads(record.read_text())
    fields["labels"] |= {"kind": "csi", "name": volume}
    record.write_text(json.dumps(fields))
    refused = agent.cli("trash", "restore", entry, "--claim", "again")
    assert refused.stderr.startswith(f"Error: {entry} is a CSI volume")
    said = agent.ok("trash", "restore", entry)

    assert said.splitlines() == [f"volume {volume} restored", f"its volumeHandle is default/{volume}"]
    assert (agent.pool / "volumes" / volume / "data" / "f").read_text() == "data"
    assert agent.ok("pool", "scan") == "All volumes are known.\n"


def test_pool_with_a_kept_volume_is_not_deleted(agent: Agent) -> None:
    """A pool goes only when nobody can want anything of it any more."""
    place = agent.directory / "p2"
    agent.ok("pool", "create", "p2", "--path", str(place))
    agent.apply(CLASS.replace("parameters: {", "parameters: {pool: p2, ") % ("data-class", "Delete", "1h"))
    agent.apply(CLAIM % ("data", "data-class"))
    volume = eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound")
    entry = thrown(agent, "data", volume)
    refused = agent.cli("pool", "delete", "p2")
    agent.ok("trash", "purge", entry)

    assert (refused.returncode, "fusevol trash purge --all p2" in refused.stderr) == (1, True)
    assert agent.ok("pool", "delete", "p2") == "pool/p2 deleted\n"


def test_orphans(agent: Agent) -> None:
    """What no object, mount or Pod knows is shown, adopted for its former claim alone, or moved to the trash."""
    volume = filled(agent, "data", policy="Retain")
    bystander = filled(agent, "other")
    api.call_out(agent, "emptyDir", agent.directory / "e", size="8Mi")
    api.make_pod(agent, "web", "other")
    eventually(lambda: api.is_ready(agent, "web"), 20.0, what="the Pod's volumes are ready")
    assert len(list((agent.pool / "volumes").iterdir())) == 4
    assert agent.ok("pool", "scan") == "All volumes are known.\n"
    api.delete(agent, "pvc", "data")
    eventually(lambda: api.find(agent, "pvc", "data") is None, 20.0, what="the claim is gone")
    forget(agent, volume)
    assert orphans(agent) == {volume: "-"}
    assert api.find(agent, "pv", volume) is None
    assert orphans(agent, "--adopt", "default") == {volume: f"persistentvolume/{volume} created"}
    eventually(lambda: agent.get("pv", volume)["status"]["phase"] == "Released", 20.0, what="it is Released")
    spec = agent.get("pv", volume)["spec"]
    assert (spec["persistentVolumeReclaimPolicy"], spec["claimRef"]["name"]) == ("Retain", "data")
    assert orphans(agent) == {}
    forget(agent, volume)
    assert orphans(agent, "--purge") == {volume: "moved to the trash"}
    api.delete(agent, "pod", "web")
    api.unmount(agent, agent.directory / "e")

    assert [e["reason"] for e in trashed(agent) if e["volume"] == volume] == ["orphan"]
    assert api.is_bound(agent, "other") == bystander


def forget(agent: Agent, volume: str) -> None:
    """Delete a PersistentVolume that is kept, and wait until it is gone."""
    api.delete(agent, "pv", volume)
    eventually(lambda: api.find(agent, "pv", volume) is None, 20.0, what=f"the PersistentVolume {volume} is gone")


def test_claim_that_has_lost_its_volume(agent: Agent) -> None:
    """Its volume is not thrown away; adopted, the claim has it again."""
    volume = filled(agent, "data")
    agent.stop()
    database = sqlite3.connect(agent.state / "agent.db")
    with database:
        deleted = database.execute("DELETE FROM objects WHERE kind = 'PersistentVolume'").rowcount
    database.close()
    assert deleted == 1
    agent.start()
    refused = agent.cli("pool", "scan", "--purge")
    assert refused.returncode == 1
    assert "The claim default/data is of this volume" in refused.stdout
    assert orphans(agent, "--adopt") == {volume: f"persistentvolume/{volume} created"}
    eventually(lambda: api.is_bound(agent, "data"), 20.0, what="the claim is bound again")
    target = Path(agent.directory / "again")
    api.mount(agent, "data", target)

    assert (target / "f").read_text() == "data"
    api.unmount(agent, target)


def test_options_of_another_action(agent: Agent) -> None:
    """Each goes with its own action, and a pool is named once."""
    done = [
        agent.cli(*words)
        for words in (
            ["pool", "show", "--purge"],
            ["pool", "scan", "--adopt", "--purge"],
            ["pool", "scan", "default", "--adopt", "other"],
            ["trash", "list", "--all"],
            ["trash", "purge", "x", "--all", "default"],
            ["trash", "purge", "x", "--claim", "c"],
        )
    ]

    assert [d.returncode for d in done] == [2] * 6
