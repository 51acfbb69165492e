"""What was found. Plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusevol.transport.kernel.features import TABLE

Obj = dict[str, Any]
State = Literal["ok", "missing", "needed"]
"""``missing``: something is given up without it. ``needed``: it is missing, and nothing works without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    area: str
    """``machine``, ``mount``, ``pool NAME``, ``programs``."""
    name: str
    state: State
    found: str
    """What is there, or what is given up without it."""
    remedy: str = ""
    """What to do when it is missing."""


def ok(area: str, name: str, found: str) -> Finding:
    """Something that is there."""
    return Finding(area=area, name=name, state="ok", found=found)


def lacking(area: str, name: str, found: str, remedy: str, *, needed: bool = False) -> Finding:
    """Something that is not there: what is given up without it, and what to do."""
    return Finding(area=area, name=name, state="needed" if needed else "missing", found=found, remedy=remedy)


def all_needed(findings: Iterable[Finding]) -> bool:
    """Whether nothing is missing that is needed."""
    return all(finding.state != "needed" for finding in findings)


def as_objects(findings: Iterable[Finding]) -> list[Obj]:
    """For JSON."""
    return [dataclasses.asdict(finding) for finding in findings]


_SELDOM_MISSING = {feature.name for feature in TABLE if not feature.kernel}


def of_mount(trial: Mapping[str, Any], *, privileged: bool) -> list[Finding]:
    """What the trial mounts of :mod:`agent.doctor.trial` tell.

    *trial* has ``kernel`` and ``pyfuse3``, each what was found or an ``error``; and ``io_uring``, why it is not used.
    """
    kernel, pyfuse3 = trial.get("kernel", {}), trial.get("pyfuse3", {})
    works = [name for name, found in (("kernel", kernel), ("pyfuse3", pyfuse3)) if found and "error" not in found]
    found = []
    for name, one, remedy in (
        ("kernel", kernel, "Run as root with CAP_SYS_ADMIN; in a container give it /dev/fuse and that capability."),
        ("pyfuse3", pyfuse3, "Install fuse3 and, in a container, give it /dev/fuse."),
    ):
        if name in works:
            found.append(ok("mount", f"transport {name}", f"a volume was mounted, written and read{_spoken(one)}"))
        elif name == "kernel" and not privileged:
            found.append(
                lacking("mount", "transport kernel", "only root mounts by it", "Run as root to have it tried.")
            )
        else:
            found.append(lacking("mount", f"transport {name}", str(one.get("error")), remedy, needed=not works))
    if "kernel" in works:
        found += _features(kernel, str(trial.get("io_uring", "")))
    if works:
        found.append(_control((kernel if "kernel" in works else pyfuse3).get("waiting")))
    return found


def _spoken(found: Mapping[str, Any]) -> str:
    protocol = (found.get("stats") or {}).get("protocol")
    return f"; FUSE {protocol}" if protocol else ""


def _features(kernel: Mapping[str, Any], no_uring: str) -> list[Finding]:
    """What the kernel agreed on, and whether it then did it."""
    stats = kernel["stats"]
    offered = set(stats["features"])
    found = []
    for feature in TABLE:
        if feature.name == "over-io-uring":
            continue
        there = feature.name in offered
        if feature.name == "passthrough" and there and not kernel.get("passed_by"):
            found.append(lacking("mount", "passthrough", "offered, but an open file did not get it", _LOG))
        elif feature.name == "allow-idmap" and there and kernel.get("idmapped"):
            found.append(lacking("mount", "allow-idmap", f"offered, but refused: {kernel['idmapped']}", _LOG))
        elif there and feature.name not in _SELDOM_MISSING:
            found.append(ok("mount", feature.name, _DONE.get(feature.name, "offered by the kernel")))
        elif not there and feature.name not in _SELDOM_MISSING:
            found.append(lacking("mount", feature.name, f"without it {feature.without}", f"Linux {feature.kernel}."))
    if kernel["io_uring"]:
        found.append(ok("mount", "io_uring", "requests came over it"))
    else:
        without = next(feature.without for feature in TABLE if feature.name == "over-io-uring")
        why = kernel["why_not"].get("io_uring") or "it is not used"
        found.append(lacking("mount", "io_uring", f"{why}: {without}", no_uring or _LOG))
    return found


_LOG = "Mount a volume and see its server's log for the reason."
_DONE = {
    "passthrough": "an open file was read and written past the server",
    "allow-idmap": "a mount was idmapped",
}


def _control(waiting: object) -> Finding:
    if waiting is None:
        return lacking(
            "mount",
            "connection control",
            "without it hanging volumes are found by asking each server, and some cannot be ended",
            "mount -t fusectl fusectl /sys/fs/fuse/connections",
        )
    return ok("mount", "connection control", "requests that wait can be counted, and hanging mounts ended")


def of_pool(area: str, path: Path, trial: Mapping[str, Any]) -> list[Finding]:
    """What the trial of a pool's filesystem tells."""
    if trial["written"]:
        return [
            lacking(area, "directory", f"{path}: {trial['written']}", "Give the pool a disk that works.", needed=True)
        ]
    found = [ok(area, "directory", f"{path} ({trial['type']}), fsync takes {trial['fsync_ms']} ms")]
    for key, name, there, without, remedy in _FILESYSTEM:
        if not trial[key]:
            found.append(ok(area, name, there))
        else:
            found.append(lacking(area, name, f"{trial[key]}: {without}", remedy))
    if trial["quotas"]:
        found.append(ok(area, "quotas", " and ".join(_QUOTAS[name] for name in trial["quotas"])))
    else:
        remedy = "Mount XFS or ext4 with prjquota, or run btrfs quota enable."
        found.append(
            lacking(area, "quotas", "none of its own: the ledger keeps limits, file data passes through it", remedy)
        )
    if "passed_by" in trial and not trial["passed_by"]:
        remedy = "Linux 6.9, and a filesystem that is not stacked on others."
        found.append(lacking(area, "passthrough", "file data of volumes here goes through their servers", remedy))
    elif "passed_by" in trial:
        found.append(ok(area, "passthrough", "a file of a volume here was read and written past its server"))
    return found


_ANOTHER = "Use XFS, ext4 or btrfs."
_QUOTAS = {"project": "project quotas", "qgroups": "quota groups"}
_FILESYSTEM = (
    (
        "handles",
        "file handles",
        "inodes are found by them",
        "inodes are found by name, killed servers are not followed by others",
        _ANOTHER,
    ),
    ("xattrs", "extended attributes", "user.*", "programs cannot store any", _ANOTHER),
    (
        "trusted xattrs",
        "trusted attributes",
        "trusted.*",
        "volumes cannot carry overlayfs",
        "Run as root, on XFS, ext4 or btrfs.",
    ),
    ("acls", "POSIX ACLs", "kept", "permissions are those of owner, group and others", _ANOTHER),
    ("reflink", "reflink", "files can share blocks", "copies take their time and space", "Use XFS or btrfs."),
    ("unnamed files", "O_TMPFILE", "kept", "programs make temporary files by name", _ANOTHER),
    ("holes", "hole punching", "kept", "space within files cannot be given back", _ANOTHER),
)
"""The trial's key, the thing's name, what it is good for, what is given up without it, and the remedy."""
