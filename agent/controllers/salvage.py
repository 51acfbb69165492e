"""Volumes without a PersistentVolume: which they are, and the objects that give them one again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from agent.controllers import moving, provisioning
from agent.controllers.provisioning import CLASS_LABEL, MODES_LABEL, Plan
from agent.controllers.view import BIND_COMPLETED, annotations_of, claim_key, volume_name
from fusevol import quantity
from fusevol.errors import InvalidError
from fusevol.objects.share import Share
from fusevol.pool import Volume
from fusevol.pool.record import AGENT

Obj = dict[str, Any]


def is_csi(volume: Volume) -> bool:
    """Whether a CSI call has made the volume, so that an orchestrator knows of it, whose objects are not here."""
    kind = volume.labels.get("kind")
    # the agent's own Pods have volumes of the kind csi, too; those have no name
    return kind == "csi-inline" or (kind == "csi" and "name" in volume.labels)


class Known(NamedTuple):
    """What the objects and the mounts of this agent say of the volumes of one pool."""

    volumes: frozenset[str]
    """Ids that a PersistentVolume, a mount or a claim whose volume is being made accounts for."""
    pods: frozenset[str]
    """Uids of the Pods, with which the ids of their volumes begin."""
    claims: Mapping[str, str]
    """Claims that have lost their PersistentVolume, such as ``default/data``, by its name."""
    agent: str
    """Who this is, in pools that other nodes have, too; empty: what another agent has made is looked for as well."""

    def has(self, volume: Volume) -> bool:
        """Whether somebody knows of it; of another agent's, that one does."""
        return (
            volume.id in self.volumes
            or is_csi(volume)
            or volume.id.partition(".")[0] in self.pods
            or (self.agent != "" and volume.labels.get(AGENT, self.agent) != self.agent)
        )


def known(
    pool: str,
    *,
    volumes: Iterable[Obj],
    claims: Iterable[Obj],
    pods: Iterable[Obj],
    mounted: Iterable[str],
    agent: str = "",
) -> Known:
    """From all objects; *mounted* are the ids of the volumes of *pool* that an attachment names, *agent* as in
    :attr:`Known.agent`."""
    ids = set(mounted)
    names = set()
    for obj in volumes:
        names.add(obj["metadata"]["name"])
        for handle in moving.handles_of(obj):
            if handle.startswith(f"{pool}/"):
                ids.add(handle.partition("/")[2])
    lost = {}
    for claim in claims:
        if BIND_COMPLETED not in annotations_of(claim):
            ids.add(volume_name(claim))
        elif (name := str(claim["spec"].get("volumeName"))) not in names:
            lost[name] = "/".join(claim_key(claim))
    return Known(frozenset(ids), frozenset(pod["metadata"]["uid"] for pod in pods), lost, agent)


class Home(NamedTuple):
    """Where a volume is, as far as its PersistentVolume has to say it."""

    pool: str
    classes: Collection[Obj]
    share: Share | None
    user: tuple[str, str] | None
    """As for :func:`provisioning.persistent_volume`."""
    total: int
    """Bytes of the pool: the capacity of a volume without a limit."""


def persistent_volume(
    volume: Volume, home: Home, claim: Obj, policy: Literal["Delete", "Retain"], provisioner: str
) -> Obj:
    """A PersistentVolume for *volume*, for *claim*: for that very one if it has a uid, for any if it has no name."""
    capacity = volume.capacity_bytes or home.total
    made = Plan(
        pool=home.pool,
        volume=volume.id,
        capacity=capacity,
        inodes=volume.inode_limit,
        mode=0,
        enforced=True,
        owner=volume.owner,
        share=home.share,
    )
    storage_class = {**(_class_of(volume, home.classes) or {}), "reclaimPolicy": policy}
    obj = provisioning.persistent_volume(claim, storage_class, made, capacity, provisioner, home.user)
    ref = {k: v for k, v in obj["spec"]["claimRef"].items() if v and k != "resourceVersion"}
    obj["spec"]["claimRef"] = ref
    if not ref.get("name"):
        del obj["spec"]["claimRef"]
    return obj


def policy_of(volume: Volume, classes: Collection[Obj]) -> Literal["Delete", "Retain"]:
    """What its class says today; Retain when that is gone."""
    found = _class_of(volume, classes)
    return "Retain" if found is None or found.get("reclaimPolicy") == "Retain" else "Delete"


def _class_of(volume: Volume, classes: Collection[Obj]) -> Obj | None:
    return next((c for c in classes if c["metadata"]["name"] == volume.labels.get(CLASS_LABEL)), None)


def claim_for(volume: Volume, total: int, namespace: str, name: str) -> Obj:
    """A claim of all that *volume* has, bound to its PersistentVolume in advance."""
    size = quantity.format_bytes(volume.capacity_bytes or total)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": _modes(volume),
            "resources": {"requests": {"storage": size}},
            "storageClassName": volume.labels.get(CLASS_LABEL, ""),
            "volumeName": volume.id,
        },
    }


def former_claim(volume: Volume) -> Obj:
    """The claim that *volume* was made for, as its record tells; without a name if it was made for none."""
    owner = volume.owner
    return {
        "metadata": {
            "name": owner.get("claim", "") if owner.get("uid") else "",
            "namespace": owner.get("namespace", "default"),
            "uid": owner.get("uid", ""),
        },
        "spec": {"accessModes": _modes(volume), "storageClassName": volume.labels.get(CLASS_LABEL, "")},
    }


def share_with(pool: str, volumes: Iterable[Obj], classes: Iterable[Obj]) -> Share | None:
    """The CephFS that is *pool*, as some PersistentVolume or class names it."""
    for objs, find in ((volumes, provisioning.share_of_volume), (classes, provisioning.share_of)):
        for obj in objs:
            try:
                share = find(obj)
            except InvalidError:
                continue
            if share is not None and share.pool == pool:
                return share
    return None


def _modes(volume: Volume) -> list[str]:
    """Those of its first claim; records of before that was noted have none, and ReadWriteOnce does for every volume."""
    return volume.labels.get(MODES_LABEL, "ReadWriteOnce").split(",")
