"""The part ``csi`` of the agent's configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from fusevol.errors import UsageError

ENDPOINT = "CSI_ENDPOINT"
"""The environment variable by which the specification has the endpoint given."""
_KEYS = {"deployment", "endpoint", "hostPaths", "maxVolumes"}
_DEPLOYMENTS = ("single", "node")


class Settings(NamedTuple):
    """How the CSI driver is served."""

    endpoint: Path
    """Its unix socket."""
    host_paths: tuple[Path, ...] = ()
    """Directories in which Pods may have inline hostPath volumes; none: they may have none."""
    max_volumes: int = 0
    """Volumes that a node may have at once; 0 states no limit."""
    per_node: bool = False
    """Whether each node has a driver of its own, and calls to a controller reach any of them (``deployment: node``)."""

    @classmethod
    def parse(cls, given: object, flag: str | None = None) -> Self | None:
        """From the configuration's mapping, the environment and the command line; None without an endpoint.

        Raises :class:`UsageError`.
        """
        text = _mapping(given)
        endpoint = flag or os.environ.get(ENDPOINT) or text.get("endpoint")
        if not endpoint:
            if text:
                raise UsageError(
                    "In the configuration, csi lacks its endpoint: add one such as unix:///run/csi/csi.sock."
                )
            return None
        limit = text.get("maxVolumes", 0)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise UsageError(f"In the configuration, csi.maxVolumes is {limit!r}: give a number, 0 for no limit.")
        deployment = text.get("deployment", "single")
        if deployment not in _DEPLOYMENTS:
            raise UsageError(f"In the configuration, csi.deployment is {deployment!r}: write single or node.")
        return cls(_socket(str(endpoint)), _directories(text.get("hostPaths")), limit, deployment == "node")


def _mapping(given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UsageError("In the configuration, csi must be a mapping such as `endpoint: unix:///run/csi/csi.sock`.")
    unknown = sorted(str(k) for k in set(given) - _KEYS)
    if unknown:
        raise UsageError(
            f"In the configuration, csi has unknown keys: {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}."
        )
    return given


def _socket(endpoint: str) -> Path:
    """The path of ``unix:///path``, ``unix:/path`` or a bare path; many deployments use those, too."""
    path = endpoint.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/") or path.endswith("/"):
        raise UsageError(f'The CSI endpoint "{endpoint}" is no unix socket: write unix:///run/csi/csi.sock.')
    return Path(path)


def _directories(given: object) -> tuple[Path, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(p, str) for p in given):
        raise UsageError("In the configuration, csi.hostPaths must be a list of directories.")
    for path in given:
        if not path.startswith("/") or ".." in path.split("/"):
            raise UsageError(f'In the configuration, csi.hostPaths has "{path}": write an absolute path without "..".')
    return tuple(Path(os.path.normpath(path)) for path in given)
