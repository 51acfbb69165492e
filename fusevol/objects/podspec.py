"""The rules of a Pod's spec as far as they touch volumes and what runs on them (volume-semantics 1, 2, 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fusevol.objects import claim, names, projections, sources
from fusevol.objects.fields import Field

RESTART_POLICIES = ("Always", "OnFailure", "Never")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
PROPAGATIONS = ("None", "HostToContainer", "Bidirectional")
GROUP_POLICIES = ("Always", "OnRootMismatch")
RECURSIVE_READ_ONLY = ("Disabled", "IfPossible", "Enabled")


def validate(spec: Field) -> None:
    """Report what is wrong with a Pod's spec."""
    spec.mapping()
    kinds = _volumes(spec.child("volumes"))
    containers, init = spec.child("containers"), spec.child("initContainers")
    if not containers.items() and (containers.value is None or isinstance(containers.value, list)):
        containers.required()
    seen: set[str] = set()
    for container in [*init.items(), *containers.items()]:
        _container(container, kinds, seen)
    spec.child("restartPolicy").one_of(RESTART_POLICIES)
    spec.child("terminationGracePeriodSeconds").integer(-(2**63), 2**63 - 1)
    context = spec.child("securityContext")
    context.mapping()
    context.child("fsGroupChangePolicy").one_of(GROUP_POLICIES)
    for word in ("fsGroup", "runAsUser", "runAsGroup"):
        context.child(word).integer(0, 2**31 - 1)
    for group in context.child("supplementalGroups").items():
        group.integer(0, 2**31 - 1)
    spec.child("nodeSelector").mapping()


# -- volumes


def _volumes(field: Field) -> dict[str, str]:
    """The kinds of the volumes by their names."""
    kinds: dict[str, str] = {}
    for volume in field.items():
        volume.mapping()
        name = volume.child("name")
        text = name.needed()
        names.label(name)
        if text in kinds:
            name.duplicate()
        kind = sources.exactly_one(volume, SOURCES)
        if text:
            kinds[text] = kind
    return kinds


def _empty_dir(field: Field) -> None:
    field.child("medium").text()  # an unknown one is kubelet's to refuse (1.1)
    field.child("mode").integer(0, 0o1777)
    limit = field.child("sizeLimit").quantity()
    if limit is not None and limit.amount < 0:
        field.child("sizeLimit").forbidden("SizeLimit field must be a valid resource quantity")


def _claim_source(field: Field) -> None:
    field.child("claimName").needed()
    names.subdomain(field.child("claimName"))
    field.child("readOnly").flag()


def _ephemeral(field: Field) -> None:
    template = field.child("volumeClaimTemplate")
    if not template:
        template.required()
        return
    template.mapping()
    template.child("metadata").mapping()
    claim.validate_spec(template.child("spec"))


SOURCES: dict[str, Callable[[Field], object]] = {
    "emptyDir": _empty_dir,
    "hostPath": sources.host_path,
    "persistentVolumeClaim": _claim_source,
    "secret": projections.secret,
    "configMap": projections.config_map,
    "downwardAPI": projections.downward,
    "projected": projections.projected,
    "ephemeral": _ephemeral,
    "csi": sources.csi_inline,
    "flexVolume": sources.flex_volume,
    "nfs": sources.nfs,
    "cephfs": sources.cephfs,
    "iscsi": sources.iscsi,
    **dict.fromkeys(("image", "gitRepo", *sources.UNCHECKED), Field.mapping),
}
"""All sources that Kubernetes knows or knew, and the rules of each."""


# -- containers


def _container(field: Field, kinds: Mapping[str, str], seen: set[str]) -> None:
    field.mapping()
    name = field.child("name")
    if text := name.needed():
        names.label(name)
        if text in seen:
            name.duplicate()
        seen.add(text)
    image = field.child("image")
    text = image.needed()
    if text != text.strip():
        image.invalid("must not have leading or trailing whitespace")
    field.child("imagePullPolicy").one_of(PULL_POLICIES)
    for word in ("command", "args"):
        field.child(word).texts()
    field.child("workingDir").text()
    projections.variables(field)
    field.child("securityContext").mapping()
    privileged = field.at("securityContext", "privileged").flag()
    devices = _devices(field, kinds)
    _mounts(field.child("volumeMounts"), kinds, devices, privileged=privileged)


def _devices(container: Field, kinds: Mapping[str, str]) -> dict[str, str]:
    """Check ``volumeDevices``; their names by path."""
    mounted = {m.child("name").text() for m in container.child("volumeMounts").items()}
    paths: dict[str, str] = {}
    for device in container.child("volumeDevices").items():
        device.mapping()
        name, path = device.child("name"), device.child("devicePath")
        if text := name.needed():
            if text not in kinds:
                name.missing()
            elif kinds[text] not in {"persistentVolumeClaim", "ephemeral", ""}:
                name.invalid("can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
            if text in paths.values() or text in mounted:
                name.invalid("must not already exist in volumeMounts" if text in mounted else "must be unique")
        if where := path.needed():
            if where in paths:
                path.invalid("must be unique")
            sources.no_backsteps(path)
            paths[where] = text
    return paths


def _mounts(field: Field, kinds: Mapping[str, str], devices: Mapping[str, str], *, privileged: bool) -> None:
    paths: set[str] = set()
    for mount in field.items():
        mount.mapping()
        name, path = mount.child("name"), mount.child("mountPath")
        if (text := name.needed()) and text not in kinds:
            name.missing()
        if where := path.needed():
            if where in paths:
                path.invalid("must be unique")
            if where in devices:
                path.invalid("must not already exist as a path in volumeDevices")
            if ":" in where:
                path.invalid("must not contain ':'")  # says the API's reference; the runtime's syntax needs it
            if "\0" in where:
                path.invalid("must not contain a null character")
            paths.add(where)
        read_only = mount.child("readOnly").flag()
        _sub_path(mount)
        propagation = mount.child("mountPropagation")
        if propagation.one_of(PROPAGATIONS) == "Bidirectional" and not privileged:
            propagation.forbidden("Bidirectional mount propagation is available only to privileged containers")
        recursive = mount.child("recursiveReadOnly")
        if recursive.one_of(RECURSIVE_READ_ONLY) in {"IfPossible", "Enabled"}:
            if not read_only:
                recursive.forbidden("may only be specified when readOnly is true")
            if propagation.value not in {None, "", "None"}:
                recursive.forbidden("may only be specified when mountPropagation is None or not specified")


def _sub_path(mount: Field) -> None:
    for word in ("subPath", "subPathExpr"):
        path = mount.child(word)
        if path.text().startswith("/"):
            path.invalid("must be a relative path")
        sources.no_backsteps(path)
    if mount.child("subPath").text() and mount.child("subPathExpr").text():
        mount.child("subPathExpr").invalid("subPathExpr and subPath are mutually exclusive")
