"""Who this agent is, for other agents that have the same pool: a name for people, and one that no other agent has."""

from __future__ import annotations

import secrets
from pathlib import Path

from fusevol.errors import CorruptError, UnavailableError
from fusevol.files import write_whole
from fusevol.lease import Holder

_FILE = "agent.id"
_LENGTH = 16


def identify(state_dir: Path, node: str, lease_s: float) -> Holder:
    """This agent, whose state is in *state_dir* and whose leases hold for so many seconds.

    Its id is made with the state and lost with it. Raises :class:`UnavailableError`, :class:`CorruptError`.
    """
    file = state_dir / _FILE
    try:
        if not file.exists():
            write_whole(file, f"{secrets.token_hex(_LENGTH // 2)}\n", 0o644)
        found = file.read_text().strip()
    except OSError as e:
        raise UnavailableError(f"The agent's id {file} cannot be read or made: {e.strerror}.") from e
    if len(found) != _LENGTH or not all(c in "0123456789abcdef" for c in found):
        raise CorruptError(f"The agent's id {file} is none: remove the file, and another one is made.")
    return Holder(node, found, lease_s)
