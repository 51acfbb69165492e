"""Podman for tests: own storage, own configuration, an image without a registry; see scripts/test-image.sh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.polling import eventually

_SCRIPT = Path(__file__).parents[2] / "scripts" / "test-image.sh"


class Podman:
    """A podman whose containers and images all live below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        subprocess.run([_SCRIPT, directory], check=True, capture_output=True, timeout=60)
        self.environment = {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
        }

    def run(self, *arguments: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One podman command; with *check*, a failure shows what podman said."""
        done = subprocess.run(
            ["podman", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )
        assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done

    def exec(self, name: str, script: str, *, check: bool = True) -> str:
        """Standard output of a shell *script* in the container *name*."""
        return self.run("exec", name, "sh", "-c", script, check=check).stdout

    def names(self) -> list[str]:
        """Names of all containers, running or not."""
        return sorted(self.run("ps", "--all", "--format", "{{.Names}}").stdout.split())

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container."""
        found: list[dict[str, Any]] = json.loads(self.run("container", "inspect", name).stdout)
        return found[0]

    def pid(self, name: str) -> int:
        """Process id, on the host, of a running container's first process."""
        pid = int(self.inspect(name)["State"]["Pid"])
        assert pid > 1, f"{name} is not running"
        return pid

    def kill(self, name: str) -> int:
        """SIGKILL a container's first process from outside (podman's own kill would count as "stopped"); its pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), what=f"{name} killed")
        return pid

    def restarted(self, name: str, old_pid: int) -> bool:
        """Whether the container runs with another first process than *old_pid*."""
        pid = int(self.inspect(name)["State"]["Pid"])
        return pid not in {0, old_pid}

    def clear(self) -> None:
        """Remove all containers."""
        self.run("rm", "--all", "--force", "--time", "0")

    def close(self) -> None:
        """Remove containers, images and the directory."""
        subprocess.run([_SCRIPT, "--remove", self.directory], check=True, capture_output=True, timeout=60)
