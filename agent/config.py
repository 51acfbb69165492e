"""The agent's configuration: a YAML file, then the environment, then flags; every value has a default that works."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, cast, get_args

from agent.address import Address
from agent.csi.settings import Settings as CsiSettings
from agent.logs import FORMATS, Format
from agent.patience import DEFAULT, Patience, seconds
from agent.plugin import settings as plugin_settings
from fusevol.errors import InvalidError, UsageError
from fusevol.objects import share
from fusevol.pool import drivers
from fusevol.pool.promises import check_ratio
from fusevol.server.spec import TransportChoice

DEFAULT_FILE = Path("/etc/fusevol/agent.yaml")
DEFAULT_STATE_DIR = Path("/var/lib/fusevol")
DEFAULT_RUN_DIR = Path("/run/fusevol")
PROVISIONER = "fusevol.io/fusevol"
"""The provisioner name that a StorageClass gives to have its claims served here."""
ALIASES = (share.PROVISIONER,)
"""Provisioner names of others whose StorageClasses work here as they stand."""
DRIVER = "fusevol.io"
"""The CSI driver name in the PersistentVolumes that are made here."""

_POOL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LEVELS = ("debug", "info", "warning", "error")
_KEYS = {
    "stateDir", "runDir", "socket", "pools", "provisioners", "logLevel", "logFormat", "nodeName", "nodeLabels", "hangs",
    "transport", "ioUring", "csi", "plugin", "metrics", "leaseDuration", "keeper", "mergeMemory",
}  # fmt: skip
_LEAST_LEASE: Final = 2.0
"""Seconds: a lease must live through a storage that hesitates."""
IoUring = Literal["auto", "on", "off"]
KeeperOf = Literal["agent", "external"]
_IO_URING: tuple[str, ...] = get_args(IoUring)
_TRANSPORTS: tuple[str, ...] = get_args(TransportChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Where a pool is, and how it is used."""

    path: Path
    driver: str | None = None
    """What makes its volumes (``fusevol.pool.drivers``); ``None``: what fits its filesystem."""
    overcommit: float | None = None
    """How many times its size may be promised to volumes; ``None``: as much as is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one agent is told. Paths are absolute."""

    state_dir: Path = DEFAULT_STATE_DIR
    """What must survive a reboot: the objects, the default pool, the mounts."""
    run_dir: Path = DEFAULT_RUN_DIR
    """Sockets and process records; may be gone after a reboot."""
    socket: Path = DEFAULT_RUN_DIR / "agent.sock"
    pools: Mapping[str, PoolSettings]
    """Where volumes live, by the pool's name."""
    provisioners: tuple[str, ...] = (PROVISIONER, *ALIASES)
    """Provisioner names that are served; the first one is written into new volumes."""
    log_level: str = "info"
    log_format: Format = "text"
    node_name: str = "localhost"
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """More labels of the node, which a volume's node affinity may name."""
    lease_s: float = 30.0
    """Seconds for which a lease on a volume of a shared pool holds without being renewed."""
    patience: Patience = DEFAULT
    """How long is waited for what may hang."""
    transport: TransportChoice = "auto"
    """How requests reach volume servers, unless a volume's mount options say otherwise."""
    csi: CsiSettings | None = None
    """How the CSI driver is served; None: it is not."""
    plugin: Path | None = None
    """The socket of the volume plugin of docker and podman; None: it is not served."""
    metrics: Address | None = None
    """Where metrics and probes are served by TCP, beside the API's socket; None: nowhere."""
    io_uring: IoUring = "auto"
    """``auto``: where the machine has it switched on; ``on``: the agent switches it on at its start; ``off``: never."""

    merge_memory: bool = False
    """Whether equal pages of keeper and volume servers are merged (:mod:`agent.merging`)."""
    keeper: KeeperOf = "agent"
    """Who starts and replaces the keeper: this agent, or a ``fusevol keeper`` beside it."""

    @classmethod
    def load(cls, file: Path | None = None, flags: Mapping[str, str] | None = None) -> Self:
        """The configuration from *file* (default: ``FUSEVOL_CONFIG``, else /etc/fusevol/agent.yaml if there is one).

        *flags*: ``state-dir``, ``run-dir``, ``socket``, ``log-level``, ``log-format``, ``node-name``, ``transport``,
        ``io-uring``, ``csi-socket``, ``plugin-socket``, ``metrics``, ``pool`` (``NAME=DIR``, several separated by
        commas); they go over ``FUSEVOL_STATE_DIR``, ``FUSEVOL_RUN_DIR``, ``FUSEVOL_SOCKET``, ``FUSEVOL_NODE_NAME``,
        ``FUSEVOL_METRICS`` and ``CSI_ENDPOINT``, which go over the file.
        Raises :class:`UsageError` for a file or flag that cannot be understood.
        """
        given = {k.replace("_", "-"): v for k, v in (flags or {}).items() if v}
        named = file or (Path(os.environ["FUSEVOL_CONFIG"]) if os.environ.get("FUSEVOL_CONFIG") else None)
        text = _read(named)
        state_dir = _path(given.get("state-dir") or os.environ.get("FUSEVOL_STATE_DIR") or text.get("stateDir"))
        run_dir = _path(given.get("run-dir") or os.environ.get("FUSEVOL_RUN_DIR") or text.get("runDir"))
        state_dir = state_dir or DEFAULT_STATE_DIR
        run_dir = run_dir or DEFAULT_RUN_DIR
        socket_path = _path(given.get("socket") or os.environ.get("FUSEVOL_SOCKET") or text.get("socket"))
        aliases = _strings(text, "provisioners")
        level = _word(given.get("log-level") or text.get("logLevel") or "info", "log level", _LEVELS)
        log_format = _word(given.get("log-format") or text.get("logFormat") or "text", "log format", FORMATS)
        transport = _word(given.get("transport") or text.get("transport") or "auto", "transport", _TRANSPORTS)
        io_uring = _word(given.get("io-uring") or _switch(text.get("ioUring")), "setting of ioUring", _IO_URING)
        return cls(
            state_dir=state_dir,
            run_dir=run_dir,
            socket=socket_path or run_dir / "agent.sock",
            pools=_pools(given.get("pool") or given.get("pools"), text.get("pools"), state_dir),
            provisioners=tuple(dict.fromkeys((PROVISIONER, *ALIASES, *aliases))),
            log_level=level,
            log_format=cast("Format", log_format),
            transport=cast("TransportChoice", transport),
            io_uring=cast("IoUring", io_uring),
            node_name=str(
                given.get("node-name")
                or os.environ.get("FUSEVOL_NODE_NAME")
                or text.get("nodeName")
                or socket.gethostname().lower()
            ),
            node_labels=_labels(text.get("nodeLabels")),
            merge_memory=_word(_switch(text.get("mergeMemory") or "off"), "setting of mergeMemory", ("on", "off"))
            == "on",
            keeper=cast("KeeperOf", _word(text.get("keeper") or "agent", "setting of keeper", get_args(KeeperOf))),
            lease_s=_lease(text.get("leaseDuration")),
            patience=Patience.parse(text.get("hangs")),
            csi=CsiSettings.parse(text.get("csi"), given.get("csi-socket")),
            plugin=plugin_settings.parse(text.get("plugin"), given.get("plugin-socket"), run_dir),
            metrics=Address.parse(text.get("metrics"), given.get("metrics") or os.environ.get("FUSEVOL_METRICS")),
        )


def _read(named: Path | None) -> dict[str, Any]:
    path = named or DEFAULT_FILE
    if named is None and not path.exists():
        return {}
    import yaml  # noqa: PLC0415 - most agents run without a file

    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as e:
        raise UsageError(f"The configuration file {path} cannot be read: {e.strerror}.") from e
    except RecursionError as e:
        raise UsageError(f"The configuration file {path} is nested too deeply: correct it.") from e
    except yaml.YAMLError as e:
        where = getattr(e, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UsageError(f"The configuration file {path} is not YAML{line}: correct it.") from e
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"The configuration file {path} must be a mapping such as `stateDir: /srv/fusevol`.")
    unknown = sorted(str(k) for k in set(loaded) - _KEYS)
    if unknown:
        known = ", ".join(sorted(_KEYS))
        raise UsageError(f"The configuration file {path} has unknown keys: {', '.join(unknown)}; known are {known}.")
    return loaded


def _word(value: object, what: str, known: Sequence[str]) -> str:
    found = str(value).lower()
    if found not in known:
        raise UsageError(f'"{value}" is no {what}: choose one of {", ".join(known)}.')
    return found


def _switch(value: object) -> object:
    """*value* of the file, where YAML 1.1 makes ``on`` and ``off`` truth values."""
    return "on" if value is True else "off" if value is False else value or "auto"


def _lease(value: object) -> float:
    found = seconds("leaseDuration", "30s" if value is None else value)
    if found is None or found < _LEAST_LEASE:
        raise UsageError(
            f"In the configuration, leaseDuration is {value!r}: give at least {_LEAST_LEASE:g}s, such as 30s."
        )
    return found


def _path(value: object) -> Path | None:
    return Path(str(value)).absolute() if value else None


def _labels(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(w, str) for pair in value.items() for w in pair):
        raise UsageError("In the configuration, nodeLabels must be a mapping of labels to texts.")
    return value


def _strings(text: Mapping[str, Any], key: str) -> list[str]:
    value = text.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UsageError(f"In the configuration, {key} must be a list of names.")
    return value


def _pools(flag: str | None, from_file: object, state_dir: Path) -> dict[str, PoolSettings]:
    if flag:
        pairs = [p.partition("=") for p in flag.split(",") if p]
        if not all(eq and path for _, eq, path in pairs):
            raise UsageError(f'"{flag}" does not name a pool: write NAME=DIR.')
        found = {name: PoolSettings(path=Path(path).absolute()) for name, _, path in pairs}
    elif from_file is None:
        found = {"default": PoolSettings(path=(state_dir / "pools" / "default").absolute())}
    elif isinstance(from_file, dict):
        found = {str(name): _pool(str(name), value) for name, value in from_file.items()}
    else:
        raise UsageError("In the configuration, pools must map names to directories.")
    for name in found:
        check_pool_name(name)
    return found


def _pool(name: str, value: object) -> PoolSettings:
    """A directory, or a mapping with ``path``, ``driver`` and ``overcommit``."""
    fields = {"path": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise UsageError(f"In the configuration, the pool {name} must be a directory, or a mapping with a path.")
    if unknown := sorted(str(k) for k in set(fields) - {"path", "driver", "overcommit"}):
        raise UsageError(f"In the configuration, the pool {name} has unknown keys: {', '.join(unknown)}.")
    driver, ratio = fields.get("driver"), fields.get("overcommit")
    if driver is not None and driver not in drivers.names():
        raise UsageError(
            f'In the configuration, the pool {name} has the unknown driver "{driver}": choose one of '
            f"{', '.join(drivers.names())}."
        )
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float)):
        raise UsageError(f"In the configuration, the overcommit of the pool {name} must be a number, such as 1.0.")
    return PoolSettings(
        path=Path(fields["path"]).absolute(),
        driver=driver,
        overcommit=None if ratio is None else check_ratio(float(ratio)),
    )


def check_pool_name(name: str) -> None:
    """Raise :class:`InvalidError` unless *name* can be a pool's name (a DNS label)."""
    if not _POOL_NAME.fullmatch(name):
        raise InvalidError(f'"{name}" cannot be the name of a pool: use lower-case letters, digits and "-".')
