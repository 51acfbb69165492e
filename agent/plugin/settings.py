"""The part ``plugin`` of the agent's configuration."""

from __future__ import annotations

from pathlib import Path

from fusevol.errors import UsageError

SOCKET = "plugin.sock"
"""The socket's name in the run directory, where nothing else is said."""


def parse(given: object, flag: str | None, run_dir: Path) -> Path | None:
    """The socket of the volume plugin, from the configuration's value and the command line; None: it is not served.

    Raises :class:`UsageError`.
    """
    if flag:
        return Path(flag).absolute()
    if given is None or given is False:
        return None
    if given is True:
        return run_dir / SOCKET
    if not isinstance(given, dict):
        raise UsageError("In the configuration, plugin must be true, or a mapping such as `socket: /run/fusevol.sock`.")
    if unknown := sorted(str(k) for k in set(given) - {"socket"}):
        raise UsageError(f"In the configuration, plugin has unknown keys: {', '.join(unknown)}; known is socket.")
    path = given.get("socket", str(run_dir / SOCKET))
    if not isinstance(path, str) or not path.startswith("/"):
        raise UsageError(f"In the configuration, plugin.socket is {path!r}: give an absolute path.")
    return Path(path)
