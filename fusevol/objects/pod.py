"""Pod: defaults, immutability, and typed views of its volumes and mounts. Its rules are in ``podspec``."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from fusevol.objects import claim, podspec, projections
from fusevol.objects.fields import Field
from fusevol.objects.kinds import Obj
from fusevol.objects.volume import canonical

SERVED = (
    "emptyDir", "hostPath", "persistentVolumeClaim", "ephemeral", "secret", "configMap", "downwardAPI", "projected",
    "csi", "flexVolume",
)  # fmt: skip
"""Sources that fusevol mounts."""

_IMMUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


@dataclass(frozen=True, slots=True)
class PodVolume:
    """One entry of ``spec.volumes``."""

    name: str
    kind: str
    """The source as its field is called: ``emptyDir``, ``hostPath``, ``secret`` ..."""
    options: Obj
    """The source's fields."""


@dataclass(frozen=True, slots=True)
class PodMount:
    """One entry of a container's ``volumeMounts``."""

    container: str
    volume: str
    path: str
    """Where in the container; absolute."""
    read_only: bool = False
    sub_path: str = ""
    sub_path_expr: str = ""
    propagation: str = "None"


def validate(obj: Field) -> None:
    """Report what is wrong with a Pod."""
    podspec.validate(obj.child("spec"))


def default(obj: Obj) -> None:
    """Fill in what is left out, and write quantities in their canonical form."""
    spec = obj["spec"]
    spec.setdefault("restartPolicy", "Always")
    for volume in spec.get("volumes") or []:
        if "hostPath" in volume:
            volume["hostPath"].setdefault("type", "")
        elif "emptyDir" in volume:
            canonical(volume["emptyDir"], "sizeLimit")
        elif "ephemeral" in volume:
            claim.default_spec(volume["ephemeral"]["volumeClaimTemplate"]["spec"])
        projections.default(volume)


def validate_update(obj: Field, old: Obj) -> None:
    """Report changes of what stays as it was made: nearly everything (a Pod is replaced, not changed)."""
    spec = obj.child("spec")
    if _fixed(spec.mapping()) != _fixed(old["spec"]):
        changed = sorted(
            word
            for word in {*_fixed(spec.mapping()), *_fixed(old["spec"])}
            if _fixed(spec.mapping()).get(word) != _fixed(old["spec"]).get(word)
        )
        spec.forbidden(f"{_IMMUTABLE} (changed: {', '.join(changed)}); delete the Pod and apply it again")


def _fixed(spec: Any) -> Obj:
    """A spec without what may be changed."""
    kept = {
        k: copy.deepcopy(v)
        for k, v in spec.items()
        if k not in {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"} and v not in ([], {})
    }
    for part in ("containers", "initContainers"):
        for container in kept.get(part) or []:
            container.pop("image", None)
    return kept


# -- views


def volumes(obj: Obj) -> tuple[PodVolume, ...]:
    """The volumes of an admitted Pod, in order."""
    found = []
    for volume in obj["spec"].get("volumes") or []:
        kind = next(k for k in volume if k in podspec.SOURCES)
        found.append(PodVolume(str(volume["name"]), kind, volume[kind]))
    return tuple(found)


def claims(obj: Obj) -> tuple[str, ...]:
    """Names of the claims that the Pod's volumes use, in order, those of ephemeral volumes included (1.7)."""
    names = []
    for volume in volumes(obj):
        if volume.kind == "persistentVolumeClaim":
            names.append(str(volume.options["claimName"]))
        elif volume.kind == "ephemeral":
            names.append(f"{obj['metadata']['name']}-{volume.name}")
    return tuple(names)


def containers(obj: Obj) -> tuple[Obj, ...]:
    """Init containers, then containers."""
    spec = obj["spec"]
    return (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))


def mounts(obj: Obj) -> tuple[PodMount, ...]:
    """All mounts of all containers, init containers first."""
    return tuple(
        PodMount(
            container=str(container["name"]),
            volume=str(mount["name"]),
            # kubelet makes a relative path absolute in the same way (6.2)
            path=mount["mountPath"] if mount["mountPath"].startswith("/") else f"/{mount['mountPath']}",
            read_only=mount.get("readOnly") is True,
            sub_path=str(mount.get("subPath") or ""),
            sub_path_expr=str(mount.get("subPathExpr") or ""),
            propagation=str(mount.get("mountPropagation") or "None"),
        )
        for container in containers(obj)
        for mount in container.get("volumeMounts") or []
    )
