"""The rules of single volume sources, in Pods and PersistentVolumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fusevol.objects import names
from fusevol.objects.fields import Field

HOST_PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)

UNCHECKED = (
    "fc",
    "rbd",
    "cinder",
    "glusterfs",
    "awsElasticBlockStore",
    "gcePersistentDisk",
    "azureDisk",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "flocker",
    "storageos",
)
"""Sources of Pods and PersistentVolumes that are taken as they are: nothing here reads their fields."""


def exactly_one(field: Field, known: Mapping[str, Callable[[Field], object]]) -> str:
    """Report none, several or (by a likely typo) an unknown source in *field*; check the one that is there.

    The kind of the first source is returned, or an empty string.
    """
    found = [kind for kind in field.mapping() if kind in known]
    if not found:
        hints = [f'"{k}" must be written "{w}"' for k in field.mapping() for w in known if _near(k) == _near(w)]
        field.required("; ".join(["must specify a volume type", *hints]))
        return ""
    for extra in found[1:]:
        field.child(extra).forbidden("may not specify more than 1 volume type")
    source = field.child(found[0])
    source.mapping()
    known[found[0]](source)
    return found[0]


def _near(word: str) -> str:
    return re.sub("[^a-z]", "", word.lower())


def no_backsteps(field: Field) -> None:
    """Report a path with an element ``..``."""
    if ".." in field.text().split("/"):
        field.invalid("must not contain '..'")
    if "\0" in field.text():
        field.invalid("must not contain a null character")


def host_path(field: Field) -> None:
    """``hostPath: {path, type}``."""
    path = field.child("path")
    path.needed()
    no_backsteps(path)
    field.child("type").one_of(HOST_PATH_TYPES)


def local(field: Field) -> None:
    """``local: {path, fsType}``."""
    path = field.child("path")
    path.needed()
    no_backsteps(path)
    field.child("fsType").text()


def csi_volume(field: Field) -> None:
    """``csi`` of a PersistentVolume."""
    _csi_driver(field.child("driver"))
    field.child("volumeHandle").needed()
    field.child("readOnly").flag()
    field.child("fsType").text()
    _strings(field.child("volumeAttributes"))
    for word in (
        "controllerPublishSecretRef",
        "nodeStageSecretRef",
        "nodePublishSecretRef",
        "controllerExpandSecretRef",
        "nodeExpandSecretRef",
    ):
        secret(field.child(word), namespaced=True)


def csi_inline(field: Field) -> None:
    """``csi`` of a Pod."""
    _csi_driver(field.child("driver"))
    field.child("readOnly").flag()
    field.child("fsType").text()
    _strings(field.child("volumeAttributes"))
    secret(field.child("nodePublishSecretRef"), namespaced=False)


def _csi_driver(field: Field) -> None:
    name = field.needed()
    if len(name) > names.LABEL_LENGTH:
        field.too_long(names.LABEL_LENGTH)
    names.subdomain(Field(field.path, name.lower() or None, field.problems))


def flex_volume(field: Field) -> None:
    """``flexVolume: {driver, fsType, secretRef, readOnly, options}``."""
    field.child("driver").needed()
    field.child("fsType").text()
    field.child("readOnly").flag()
    field.child("secretRef").mapping()
    options = field.child("options")
    _strings(options)
    for key in options.mapping():
        prefix, slash, _ = key.partition("/")
        if slash and re.fullmatch(r"(.*\.)?(kubernetes|k8s)\.io", prefix.lower()):
            options.entry(key).invalid("kubernetes.io and k8s.io namespaces are reserved")


def cephfs(field: Field) -> None:
    """``cephfs: {monitors, path, user, secretRef, readOnly}``."""
    monitors = field.child("monitors")
    if not monitors.texts():
        monitors.required()
    for word in ("path", "user", "secretFile"):
        field.child(word).text()
    field.child("secretRef").mapping()
    field.child("readOnly").flag()


def nfs(field: Field) -> None:
    """``nfs: {server, path, readOnly}``."""
    field.child("server").needed()
    path = field.child("path")
    if path.needed() and not path.text().startswith("/"):
        path.invalid("must be an absolute path")
    field.child("readOnly").flag()


def iscsi(field: Field) -> None:
    """``iscsi: {targetPortal, iqn, lun}``."""
    field.child("targetPortal").needed()
    field.child("iqn").needed()


def secret(field: Field, *, namespaced: bool) -> None:
    """A reference to a Secret; absent is fine."""
    if not field:
        return
    field.mapping()
    field.child("name").needed()
    if namespaced:
        field.child("namespace").needed()


def _strings(field: Field) -> None:
    for key in field.mapping():
        field.entry(key).text()
