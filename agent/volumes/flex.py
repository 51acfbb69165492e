"""flexVolume in a Pod: what the call-outs of the driver fusevol.io/fusevol would do, without a kubelet. Pure."""

from __future__ import annotations

from typing import Any, Final

from agent import flexvolume
from agent.volumes import emptydir
from agent.volumes.scratch import made, volume_id
from agent.volumes.wanted import Context, Wanted, owner, uid_of
from fusevol.errors import InvalidError

Obj = dict[str, Any]
DRIVERS: Final = ("fusevol.io/fusevol", "fusevol")


def asked(pod: Obj, name: str, source: Obj) -> tuple[str, Obj]:
    """The kind of volume and its options. Raises :class:`InvalidError`."""
    driver = str(source.get("driver") or "")
    if driver not in DRIVERS:
        raise InvalidError(f"no driver found for {driver}: the one that is served here is {DRIVERS[0]}.")
    metadata = pod["metadata"]
    given = {
        **flexvolume.flat(source.get("options") or {}),
        "kubernetes.io/pvOrVolumeName": name,
        "kubernetes.io/pod.namespace": metadata["namespace"],
        "kubernetes.io/pod.uid": metadata["uid"],
        "kubernetes.io/readwrite": "ro" if source.get("readOnly") else "rw",
    }
    found = flexvolume.ephemeral(given)
    if found["options"].get("namespace", metadata["namespace"]) != metadata["namespace"]:
        raise InvalidError("a Pod uses claims of its own namespace only: leave out fusevol/namespace.")
    return found["kind"], found["options"]


def claim_for(pod: Obj, name: str, source: Obj) -> Obj | None:
    """The claim that is made if there is none of its name; None without a size. Raises :class:`InvalidError`."""
    kind, options = asked(pod, name, source)
    if kind != "persistent" or not options.get("size"):
        return None
    spec: Obj = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": options["size"]}}}
    if options.get("storageClass"):
        spec["storageClassName"] = options["storageClass"]
    metadata = {"name": options["claim"], "namespace": pod["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def claim_of(pod: Obj, volume: Obj) -> str:
    """The name of the claim that a Pod's volume uses by way of flexVolume; empty if it uses none."""
    try:
        kind, options = asked(pod, str(volume["name"]), volume["flexVolume"])
    except InvalidError:
        return ""
    return str(options["claim"]) if kind == "persistent" else ""


def empty_dir(pod: Obj, name: str, options: Obj, context: Context) -> Wanted:
    """A volume of the kind emptyDir."""
    request = emptydir.request(volume_id(uid_of(pod), name), {"sizeLimit": options.get("size")}, owner(pod))
    target = str(context.volumes(pod) / "fusevol.io~fusevol" / name)
    return made(pod, name, "emptyDir", target, str(options.get("pool") or context.pool), request, context)
