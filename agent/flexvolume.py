"""The FlexVolume call-outs: what a kubelet of an older cluster, or a person, runs as the driver's executable.

A thin client: each call asks the agent over its socket and answers exactly one JSON line on stdout, nothing on stderr.
No process that it starts outlives it, so no pipe of the kubelet's stays open.

**Exit code.** Always 0 once a status is answered, also for ``Failure``: a kubelet reads the failure from the status
either way, but logs the whole command line, base64 secrets included, of a call-out that exits otherwise. (Scripts
that call this by hand must look at ``status``.)

**Idempotence.** The agent holds which target has what: a second ``mount`` of the same thing and an ``unmount`` where
nothing is mounted are successes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusevol.errors import EXIT_OK, FusevolError, InvalidError, UnavailableError, UsageError

Status = dict[str, Any]

CAPABILITIES = {
    "attach": False,  # a node's own storage: the kubelet need not ask anybody to attach it
    "selinuxRelabel": False,  # a FUSE mount carries one label for all of it
    "supportsMetrics": True,  # statfs tells limit and use
    "fsGroup": True,  # the kubelet applies it after `mount`
    "requiresFSResize": False,
}

_PREFIX = "fusevol/"
_KINDS = {"persistent": "persistent", "emptydir": "emptyDir", "hostpath": "hostPath"}


@dataclass(frozen=True, slots=True)
class _Option:
    """One ``fusevol/…`` option: the agent's name for it, and the kinds it makes sense for."""

    name: str
    kinds: tuple[str, ...]


_OPTIONS = {
    "claim": _Option("claim", ("persistent",)),
    "size": _Option("size", ("persistent", "emptyDir")),
    "path": _Option("path", ("hostPath",)),
    "type": _Option("type", ("hostPath",)),
    "pool": _Option("pool", ("emptyDir",)),  # a claim's pool is what its class says
    "class": _Option("storageClass", ("persistent",)),
    "namespace": _Option("namespace", ("persistent",)),
}


def main(argv: Sequence[str]) -> int:
    """Carry out one call-out and print its status. Returns the exit code, which is 0 (see above)."""
    try:
        status = call(argv)
    except FusevolError as e:
        status = failure(e.message)
    except Exception as e:  # noqa: BLE001 - a kubelet must get a status for a bug of ours too
        status = failure(f"fusevol has a bug here ({type(e).__name__}: {e}): look at the agent's log and report it.")
    print(json.dumps(status), flush=True)  # noqa: T201 - the answer
    return EXIT_OK


def failure(message: str) -> Status:
    """The status of a call that failed."""
    return {"status": "Failure", "message": " ".join(message.split())}


def success(**fields: object) -> Status:
    """The status of a call that did what it was asked for."""
    return {"status": "Success", **fields}


def call(argv: Sequence[str]) -> Status:
    """The status that answers the call-out *argv* (command and arguments). Raises :class:`FusevolError`."""
    if not argv:
        raise UsageError("The call-out's name is missing: call for example `fusevol flexvolume init`.")
    command, arguments = argv[0], list(argv[1:])
    if command == "init":
        _expect(command, arguments, ())
        return success(capabilities=CAPABILITIES)
    if command == "getvolumename":
        _expect(command, arguments, ("JSON",))
        return success(volumeName=volume_name(options_of(arguments[0])))
    if command == "mount":
        _expect(command, arguments, ("DIR", "JSON"))
        return _mount(arguments[0], arguments[1])
    if command == "unmount":
        _expect(command, arguments, ("DIR",))
        return _unmount(arguments[0])
    # attach, waitforattach, isattached, detach, mountdevice, unmountdevice (there is no device), expandvolume,
    # expandfs, and whatever a later kubelet may think of: it then does what it does by default
    return {"status": "Not supported"}


def _expect(command: str, arguments: Sequence[str], names: Sequence[str]) -> None:
    if len(arguments) != len(names):
        wanted = " ".join([command, *names])
        raise UsageError(f"{command} was called with {len(arguments)} arguments: the call is `{wanted}`.")


def _mount(directory: str, text: str) -> Status:
    from agent.client import Client, path_of  # noqa: PLC0415 - init needs no client

    target = _target(directory)
    request = {**ephemeral(options_of(text)), "target": target}
    Client().request("POST", path_of("ephemeral"), request)
    return success()


def _unmount(directory: str) -> Status:
    from agent.client import Client, path_of  # noqa: PLC0415 - init needs no client

    target = _target(directory)
    try:
        Client().request("DELETE", path_of("mounts"), {"target": target})
    except UnavailableError:
        # lexists and mountinfo: a dead mount must not be looked at, and no agent is needed to see that nothing is there
        if os.path.lexists(target) and _is_mounted(target):
            raise
    return success()


def _is_mounted(target: str) -> bool:
    from fusevol.transport.mount import is_mounted  # noqa: PLC0415 - rarely needed

    return is_mounted(target)


def _target(directory: str) -> str:
    if not directory.startswith("/") or ".." in directory.split("/") or "\0" in directory:
        raise InvalidError(f'The mount directory "{directory}" must be an absolute path without "..".')
    return os.path.normpath(directory)


def options_of(text: str) -> dict[str, str]:
    """The options of a call-out's JSON argument. Raises :class:`InvalidError`."""
    try:
        options = json.loads(text)
    except RecursionError as e:
        raise InvalidError("The options are nested too deeply: give one object of strings.") from e
    except ValueError as e:
        raise InvalidError(f"The options are not JSON ({e}): give one object of strings.") from e
    if not isinstance(options, dict):
        raise InvalidError("The options are not a JSON object: give one object of strings.")
    return flat(options)


def flat(options: Mapping[str, Any]) -> dict[str, str]:
    """*options* as strings. Raises :class:`InvalidError` for a value that is something else."""
    found: dict[str, str] = {}
    for key, value in options.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidError(f'The option "{key}" is not a string: FlexVolume options are flat and hold strings.')
        found[key] = str(value)
    return found


def volume_name(options: Mapping[str, str]) -> str:
    """What a kubelet may call the volume: the claim, else the name of the PV or of the Pod's volume."""
    name = options.get("fusevol/claim") or options.get("kubernetes.io/pvOrVolumeName")
    if not name:
        raise InvalidError('The volume has no name: give the option "fusevol/claim".')
    return name


def ephemeral(options: Mapping[str, str]) -> dict[str, Any]:
    """The body of the agent's ``POST /v1/ephemeral`` (without the target) for a call-out's *options*.

    Raises :class:`InvalidError` for options that do not exist, do not go together, or are malformed. Options of
    others (no ``fusevol/`` and not Kubernetes') are ignored: ``flexVolume.options`` may hold notes. So is the Pod's
    fsGroup, which the kubelet itself applies after the mount.
    """
    own = {key.removeprefix(_PREFIX): value for key, value in options.items() if key.startswith(_PREFIX) and value}
    kind = _kind(own, options)
    wanted: dict[str, Any] = {}
    for key, value in own.items():
        if key == "kind":
            continue
        option = _OPTIONS.get(key)
        if option is None:
            known = ", ".join(f"fusevol/{k}" for k in ("kind", *_OPTIONS))
            raise InvalidError(f'There is no option "fusevol/{key}": the options are {known}.')
        if kind not in option.kinds:
            fitting = " and ".join(option.kinds)
            raise InvalidError(f'The option "fusevol/{key}" does not fit a volume of kind {kind}: it is for {fitting}.')
        wanted[option.name] = value
    _check_size(wanted)
    if kind == "persistent":
        wanted.setdefault("claim", options.get("kubernetes.io/pvOrVolumeName", ""))
        if not wanted["claim"]:
            raise InvalidError('A persistent volume needs the name of its claim: give the option "fusevol/claim".')
        wanted.setdefault("namespace", options.get("kubernetes.io/pod.namespace") or "default")
    if kind == "hostPath" and not wanted.get("path"):
        raise InvalidError('A hostPath volume needs the path on the host: give the option "fusevol/path".')
    wanted["readOnly"] = _read_only(options)
    if user := options.get("kubernetes.io/pod.uid") or options.get("kubernetes.io/pod.UID"):
        wanted["pod"] = user  # documentation and code spell it differently; it tells users of a claim apart
    return {"kind": kind, "options": wanted}


def _kind(own: Mapping[str, str], options: Mapping[str, str]) -> str:
    named = own.get("kind")
    if named is not None:
        kind = _KINDS.get(named.lower())
        if kind is None:
            raise InvalidError(f'"fusevol/kind" is "{named}": it must be one of {", ".join(_KINDS.values())}.')
        return kind
    if "claim" in own:
        return "persistent"
    if "path" in own:
        return "hostPath"
    name = options.get("kubernetes.io/pvOrVolumeName")
    which = f' of "{name}"' if name else ""
    raise InvalidError(
        f'The options{which} do not say which volume: give "fusevol/claim", "fusevol/path" or "fusevol/kind".'
    )


def _check_size(wanted: Mapping[str, Any]) -> None:
    if "size" not in wanted:
        return
    from fusevol import quantity  # noqa: PLC0415 - only where a size is given

    try:
        count = quantity.parse(wanted["size"])
    except InvalidError as e:
        raise InvalidError(f'"fusevol/size" is not a size: {e.message}') from e
    if count <= 0:
        raise InvalidError(f'"fusevol/size" is "{wanted["size"]}": it must be more than zero, such as 64Mi.')


def _read_only(options: Mapping[str, str]) -> bool:
    access = options.get("kubernetes.io/readwrite") or "rw"
    if access not in {"rw", "ro"}:
        raise InvalidError(f'"kubernetes.io/readwrite" is "{access}": it must be rw or ro.')
    return access == "ro"
