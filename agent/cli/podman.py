"""The podman that ``fusevol run`` and ``delete pod`` use.

Nothing of the machine is decided here: runtime, network, limits and storage are podman's own configuration
(``CONTAINERS_CONF``, ``CONTAINERS_STORAGE_CONF``). ``FUSEVOL_PODMAN`` is a command line to use instead of ``podman``,
for example ``sudo podman --runtime runc``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from fusevol.errors import FusevolError, UnavailableError

LABEL_NAME = "io.fusevol.pod.name"
LABEL_NAMESPACE = "io.fusevol.pod.namespace"
LABEL_UID = "io.fusevol.pod.uid"
LABEL_CONTAINER = "io.fusevol.container"

Obj = dict[str, Any]


def find() -> list[str] | None:
    """The command that runs podman; None when there is none on this machine."""
    words = shlex.split(os.environ.get("FUSEVOL_PODMAN") or "podman")
    return words if words and shutil.which(words[0]) else None


def require() -> list[str]:
    """Like :func:`find`. Raises :class:`UnavailableError` when there is none."""
    words = find()
    if words is None:
        program = (shlex.split(os.environ.get("FUSEVOL_PODMAN", "")) or ["podman"])[0]
        raise UnavailableError(
            f"{program} is not installed: run `apt-get install podman`, "
            "or start the containers yourself with what `fusevol run --prepare` prints."
        )
    return words


class Podman:
    """Calls podman, each call in its own session, so that Ctrl-C reaches us and not a half-done podman."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def run(self, *arguments: str) -> str:
        """Podman's standard output. Raises :class:`FusevolError` with podman's own words when it fails."""
        done = self.try_run(*arguments)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            reason = said[-1].removeprefix("Error: ") if said else f"exit code {done.returncode}"
            raise FusevolError(f"podman {arguments[0]} failed: {reason}")
        return done.stdout

    def try_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One call of podman, whatever its exit code. Raises :class:`UnavailableError` if it cannot be started."""
        try:
            return subprocess.run(
                [*self.command, *arguments],
                check=False,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,
            )
        except OSError as e:
            raise UnavailableError(
                f"{self.command[0]} cannot be started ({e.strerror}): check its installation."
            ) from e

    def of_pod(self, uid: str) -> list[str]:
        """Ids of all containers of the Pod with this uid, running or not."""
        return self.run("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL_UID}={uid}").split()

    def inspect(self, name: str) -> Obj | None:
        """What podman knows of a container; None if there is none of that name."""
        done = self.try_run("container", "inspect", name)
        if done.returncode:
            return None
        found: list[Obj] = json.loads(done.stdout)
        return found[0] if found else None

    def remove(self, containers: Sequence[str], grace: int) -> None:
        """Stop (SIGKILL after *grace* seconds) and remove *containers*; those already gone are no error."""
        if containers:
            self.run("rm", "--force", "--ignore", "--time", str(grace), *containers)
