"""``fusevol describe``: all about an object or a mount on one page: fields, conditions, use, mounts, events."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from agent.cli import listings, output, serving
from agent.cli.resources import DEFAULT_NAMESPACE, get_object, list_objects, selections
from agent.client import Client
from fusevol import objects
from fusevol.errors import EXIT_OK, UsageError

Obj = dict[str, Any]
Line = tuple[str, str]

_SHORT_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
_HIDDEN_ANNOTATION = "last-applied-configuration"


def command(options: Namespace) -> int:
    """Print a page for each object, two empty lines apart."""
    client = Client(options.socket)
    pages: list[str] = []
    for selection in selections(options.what):
        if selection.word.lower() in {"mount", "mounts"}:
            pages += [_laid_out(_mount(m, client)) for m in listings.named(client, "mounts", selection.names)]
            continue
        kind = objects.find_kind(selection.word)
        namespace = None if options.all_namespaces else options.namespace or DEFAULT_NAMESPACE
        if options.all_namespaces and kind.namespaced and selection.names:
            raise UsageError("A name cannot be looked up in all namespaces: give -n NS instead of -A.")
        found = (
            [get_object(client, kind, namespace, name) for name in selection.names]
            if selection.names
            else list_objects(client, kind, namespace)
        )
        pages += [page(client, kind, obj) for obj in found]
    if pages:
        print("\n\n\n".join(pages))
    else:
        output.note("No resources found.")
    return EXIT_OK


def page(client: Client, kind: objects.Kind, obj: Obj) -> str:
    """The description of one object."""
    context = _Context(client)
    text = _laid_out([*_metadata(kind, obj), *_PARTS.get(kind.name, _no_part)(obj, context)])
    return "\n".join([text, *_conditions(obj), *_events(context, obj)])


def _laid_out(lines: Iterable[Line]) -> str:
    lines = list(lines)
    width = max(len(title) for title, _ in lines) + 3
    text = []
    for title, value in lines:
        first, *rest = value.split("\n")
        text.append(f"{f'{title}:' if title else '':<{width}}{first}".rstrip())
        text += [" " * width + line for line in rest]
    return "\n".join(text)


class _Context:
    """What the agent knows besides the object, asked for when it is needed."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def listed(self, plural: str, **query: str | None) -> list[Obj]:
        return listings.items(self.client, plural, **query)

    def pods(self, namespace: str) -> list[Obj]:
        return list_objects(self.client, objects.find_kind("Pod"), namespace)


def _mapping(values: Obj | None) -> str:
    shown = [f"{k}={v}" for k, v in sorted((values or {}).items()) if _HIDDEN_ANNOTATION not in k]
    return "\n".join(shown) or "<none>"


def _text(value: object) -> str:
    return "<none>" if value is None or value in ("", [], {}) else str(value)


def _modes(modes: Iterable[str] | None) -> str:
    return ",".join(_SHORT_MODES.get(m, m) for m in modes or []) or "<none>"


def _metadata(kind: objects.Kind, obj: Obj) -> Iterator[Line]:
    metadata = obj["metadata"]
    yield "Name", metadata["name"]
    if kind.namespaced:
        yield "Namespace", metadata.get("namespace", DEFAULT_NAMESPACE)
    yield "Labels", _mapping(metadata.get("labels"))
    yield "Annotations", _mapping(metadata.get("annotations"))
    yield "UID", _text(metadata.get("uid"))
    created = metadata.get("creationTimestamp")
    yield "Created", f"{created} ({output.age(created)} ago)"
    if metadata.get("deletionTimestamp"):
        yield "Deleting", f"since {metadata['deletionTimestamp']}"
    if metadata.get("finalizers"):
        yield "Finalizers", "\n".join(metadata["finalizers"])


def _no_part(_obj: Obj, _context: _Context) -> Iterator[Line]:
    return iter(())


def _served(namespace: object, claim: object, capacity: str | None, context: _Context) -> Iterator[Line]:
    """What is used of a claim's volume, where it is mounted and how it is served."""
    mounts = [m for m in context.listed("mounts") if (m.get("namespace"), m.get("claim")) == (namespace, claim)]
    server = serving.ask(context.client, next((m["mountId"] for m in mounts if "mountId" in m), None))
    yield "Used", serving.used(server, capacity)
    yield "Mounted At", "\n".join(str(m.get("target")) for m in mounts) or "<none>"
    if server is not None:
        yield from serving.lines(server)


def _mount(mount: Obj, client: Client) -> Iterator[Line]:
    yield "Target", str(mount["target"])
    yield "Kind", str(mount["kind"])
    yield "Access", "ro" if mount.get("readOnly") else "rw"
    yield "Volume", f"{mount['pool']}/{mount['volume']}" if mount.get("volume") else _text(mount.get("path"))
    if mount.get("subPath"):
        yield "Sub Path", str(mount["subPath"])
    yield "Claim", f"{mount['namespace']}/{mount['claim']}" if mount.get("claim") else "<none>"
    yield "Pod", _text(mount.get("pod"))
    if "mountId" not in mount:
        yield "Server", "<none>: memory" if mount.get("medium") else "<none>: the host's own directory"
        return
    server = serving.ask(client, mount["mountId"])
    limit = ((server or {}).get("usage") or {}).get("limit_bytes")
    yield "Used", serving.used(server, output.size(limit) if limit is not None else None)
    yield from serving.lines(server) if server is not None else [("Server", "<none>: it is being started")]


def _claim(obj: Obj, context: _Context) -> Iterator[Line]:
    spec, status, metadata = obj["spec"], obj.get("status", {}), obj["metadata"]
    capacity = status.get("capacity", {}).get("storage")
    yield "Status", _text(status.get("phase"))
    yield "StorageClass", _text(spec.get("storageClassName"))
    yield "Volume", _text(spec.get("volumeName"))
    yield "Requested", _text(spec.get("resources", {}).get("requests", {}).get("storage"))
    yield "Capacity", _text(capacity)
    yield "Access Modes", _modes(status.get("accessModes") or spec.get("accessModes"))
    yield "VolumeMode", _text(spec.get("volumeMode"))
    users = [
        pod["metadata"]["name"]
        for pod in context.pods(metadata.get("namespace", DEFAULT_NAMESPACE))
        if metadata["name"] in objects.pod.claims(pod)
    ]
    yield "Used By", "\n".join(users) or "<none>"
    yield from _served(metadata.get("namespace", DEFAULT_NAMESPACE), metadata["name"], capacity, context)


def _volume(obj: Obj, context: _Context) -> Iterator[Line]:
    spec = obj["spec"]
    capacity = spec.get("capacity", {}).get("storage")
    claim = spec.get("claimRef")
    yield "Status", _text(obj.get("status", {}).get("phase"))
    yield "Claim", f"{claim.get('namespace')}/{claim.get('name')}" if claim else "<none>"
    yield "Reclaim Policy", _text(spec.get("persistentVolumeReclaimPolicy"))
    yield "StorageClass", _text(spec.get("storageClassName"))
    yield "Capacity", _text(capacity)
    yield "Access Modes", _modes(spec.get("accessModes"))
    yield "VolumeMode", _text(spec.get("volumeMode"))
    for source in ("csi", "hostPath", "local", "flexVolume", "nfs", "cephfs"):
        if source in spec:
            yield "Source", "\n".join([source, *(f"{k}={v}" for k, v in sorted(spec[source].items()))])
    if claim:
        yield from _served(claim.get("namespace"), claim.get("name"), capacity, context)


def _storage_class(obj: Obj, _context: _Context) -> Iterator[Line]:
    default = (obj["metadata"].get("annotations") or {}).get("storageclass.kubernetes.io/is-default-class")
    yield "Default", "yes" if default == "true" else "no"
    yield "Provisioner", _text(obj.get("provisioner"))
    yield "Parameters", _mapping(obj.get("parameters"))
    yield "Reclaim Policy", _text(obj.get("reclaimPolicy"))
    yield "Binding", _text(obj.get("volumeBindingMode"))
    yield "Expansion", "allowed" if obj.get("allowVolumeExpansion") else "not allowed"


def _pod(obj: Obj, _context: _Context) -> Iterator[Line]:
    spec, status = obj["spec"], obj.get("status", {})
    yield "Status", _text(status.get("phase"))
    yield "Restart Policy", _text(spec.get("restartPolicy"))
    for container in spec.get("containers", []):
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        yield (
            "Container",
            "\n".join([f"{container['name']} ({container.get('image')})", *([" ".join(words)] * bool(words))]),
        )
    for volume in spec.get("volumes", []):
        source = next((k for k in volume if k != "name"), "<none>")
        details = [f"{k}={v}" for k, v in (volume.get(source) or {}).items()]
        yield "Volume", " ".join([f"{volume['name']}: {source}", *details])
    for mount in status.get("volumeMounts", []):
        access = "ro" if mount.get("readOnly") else "rw"
        yield "Mount", f"{mount['container']}: {mount['mountPath']} ({access}) from {mount['hostPath']}"


def _payload(obj: Obj, _context: _Context) -> Iterator[Line]:
    """A Secret's or ConfigMap's keys with their sizes; a Secret's values are for who asks with ``get -o yaml``."""
    if obj["kind"] == "Secret":
        yield "Type", _text(obj.get("type"))
    sizes = {k: f"{len(v)} bytes" for k, v in objects.payload.values(obj).items()}
    yield "Data", "\n".join(f"{k}: {sizes[k]}" for k in sorted(sizes)) or "<none>"


_PARTS = {
    "PersistentVolumeClaim": _claim,
    "PersistentVolume": _volume,
    "StorageClass": _storage_class,
    "Pod": _pod,
    "Secret": _payload,
    "ConfigMap": _payload,
}


def _conditions(obj: Obj) -> list[str]:
    conditions = obj.get("status", {}).get("conditions") or []
    if not conditions:
        return []
    rows = [[_text(c.get(k)) for k in ("type", "status", "reason", "message")] for c in conditions]
    return ["Conditions:", _indented(output.table(["TYPE", "STATUS", "REASON", "MESSAGE"], rows))]


def _events(context: _Context, obj: Obj) -> list[str]:
    found = context.listed("events", regarding=obj["metadata"].get("uid"))
    if not found:
        return ["Events:  <none>"]
    rows = [
        [
            _text(e.get("type")),
            _text(e.get("reason")),
            output.age(e.get("lastTimestamp")) + (f" (x{e['count']})" if e.get("count", 1) > 1 else ""),
            _text(e.get("message")),
        ]
        for e in found
    ]
    return ["Events:", _indented(output.table(["TYPE", "REASON", "AGE", "MESSAGE"], rows))]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
