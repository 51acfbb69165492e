"""Which kinds of objects there are, and how an object is named."""

from __future__ import annotations

from typing import Any, NamedTuple

from fusevol.errors import NotFoundError

Obj = dict[str, Any]

DEFAULT_NAMESPACE = "default"

MAX_DEPTH = 200
"""How deeply an object may be nested. The code that reads objects is recursive; real ones have some ten levels."""


class Kind(NamedTuple):
    """A kind of object, with the words that mean it."""

    name: str
    plural: str
    singular: str
    short: tuple[str, ...]
    api_version: str
    namespaced: bool


class Key(NamedTuple):
    """What tells an object from all others. ``namespace`` is ``""`` for a kind that has none."""

    kind: str
    namespace: str
    name: str


_SNAPSHOTS = "snapshot.storage.k8s.io/v1"

KINDS = (
    Kind("StorageClass", "storageclasses", "storageclass", ("sc",), "storage.k8s.io/v1", namespaced=False),
    Kind("PersistentVolume", "persistentvolumes", "persistentvolume", ("pv",), "v1", namespaced=False),
    Kind("PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", ("pvc",), "v1", namespaced=True),
    Kind("Pod", "pods", "pod", ("po",), "v1", namespaced=True),
    Kind("Secret", "secrets", "secret", (), "v1", namespaced=True),
    Kind("ConfigMap", "configmaps", "configmap", ("cm",), "v1", namespaced=True),
    Kind("VolumeSnapshot", "volumesnapshots", "volumesnapshot", ("vs",), _SNAPSHOTS, namespaced=True),
    Kind(
        "VolumeSnapshotClass",
        "volumesnapshotclasses",
        "volumesnapshotclass",
        ("vsclass", "vsclasses"),
        _SNAPSHOTS,
        namespaced=False,
    ),
    Kind(
        "VolumeSnapshotContent",
        "volumesnapshotcontents",
        "volumesnapshotcontent",
        ("vsc", "vscs"),
        _SNAPSHOTS,
        namespaced=False,
    ),
)

BY_NAME = {kind.name: kind for kind in KINDS}


def _words(kind: Kind) -> set[str]:
    group = kind.api_version.rpartition("/")[0]
    plain = {kind.name.lower(), kind.plural, kind.singular, *kind.short}
    return plain | {f"{word}.{group}" for word in plain if group}


def find_kind(word: str) -> Kind:
    """The kind that *word* means: its name, plural, singular or short name in any case (``pvc``, ``Pods``).

    Raises :class:`NotFoundError`.
    """
    for kind in KINDS:
        if word.lower() in _words(kind):
            return kind
    known = ", ".join(f"{k.plural} ({', '.join(k.short)})" if k.short else k.plural for k in KINDS)
    raise NotFoundError(f'There is no kind "{word}": the kinds are {known}.')


def key(obj: Obj) -> Key:
    """What identifies *obj*, which has a valid kind and name. No namespace means the default one."""
    metadata = obj["metadata"]
    kind = BY_NAME[obj["kind"]]
    namespace = str(metadata.get("namespace") or DEFAULT_NAMESPACE) if kind.namespaced else ""
    return Key(kind.name, namespace, str(metadata["name"]))
