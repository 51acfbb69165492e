"""A real agent process with directories of its own, and the command line that talks to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.client import Client
from fusevol.errors import FusevolError
from fusevol.keeper import client as keeper
from fusevol.server.client import call
from fusevol.transport import mount
from tests.support.devices import tear_down
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive, end_keepers, logging_into

_ROOT = Path(__file__).parents[2]


class Agent:
    """``fusevol agent`` below *directory*: state in ``s``, runtime in ``r``, log in ``agent.log``."""

    def __init__(self, directory: Path, logs: LogCheck, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.state = directory / "s"
        self.run_dir = directory / "r"
        self.socket = self.run_dir / "agent.sock"
        self.log = directory / "agent.log"
        self.client = Client(self.socket)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("FUSEVOL_") or k == "FUSEVOL_TEST_RUN"},
            "PYTHONPATH": str(_ROOT),
            "FUSEVOL_SOCKET": str(self.socket),
            "FUSEVOL_CONFIG": str(directory / "agent.yaml"),
            **(environment or {}),
        }
        (directory / "agent.yaml").touch()
        self._process: subprocess.Popen[bytes] | None = None
        logs.watch(self.log)
        logs.watch(self.run_dir / "keeper.log")

    @property
    def pool(self) -> Path:
        """The default pool."""
        return self.state / "pools" / "default"

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self._process is not None
        return self._process.pid

    def command(self, *arguments: str) -> list[str]:
        """The words that run the ``fusevol`` command."""
        return [sys.executable, "-m", "agent.cli.main", *arguments]

    def launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the agent's process and do not wait for it."""
        words = self.command("agent", "--state-dir", str(self.state), "--run-dir", str(self.run_dir), *arguments)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.directory,
                start_new_session=True,
            )
        return self._process

    def start(self, *arguments: str) -> Agent:
        """Start the agent and wait until it is ready."""
        process = self.launch(*arguments)

        def ready() -> bool:
            assert process.poll() is None, f"the agent ended: {self.log.read_text()[-2000:]}"
            try:
                self.client.request("GET", "/readyz", timeout=5)
            except FusevolError:
                return False
            return True

        eventually(ready, 30.0, what="the agent is ready", interval=0.05)
        return self

    def kill(self) -> None:
        """kill -9, and certainty that it died of it."""
        assert self._process is not None
        assert self._process.poll() is None, "the agent was not running"
        self._process.kill()
        assert self._process.wait(20) == -signal.SIGKILL

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def cli(self, *arguments: str, text: str | None = None, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One ``fusevol`` command, *text* on its standard input; whatever its exit code."""
        return subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            input=text or "",
            env=self.environment,
            cwd=self.directory,
            timeout=timeout,
        )

    def ok(self, *arguments: str, text: str | None = None, timeout: float = 60.0) -> str:
        """Standard output of a command that must succeed."""
        done = self.cli(*arguments, text=text, timeout=timeout)
        assert done.returncode == 0, f"fusevol {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def apply(self, text: str) -> str:
        """``fusevol apply -f -`` of *text*; what it prints."""
        return self.ok("apply", "-f", "-", text=text)

    def get(self, *what: str) -> dict[str, Any]:
        """``fusevol get … -o json``."""
        found: dict[str, Any] = json.loads(self.ok("get", *what, "-o", "json"))
        return found

    def servers(self) -> list[int]:
        """Process ids of the volume servers that answer."""
        pids = []
        for control in sorted((self.run_dir / "servers").glob("*.sock")):
            with contextlib.suppress(FusevolError):
                pids.append(int(call(control, {"op": "status"}, timeout=5)["pid"]))
        return pids

    def keeper(self) -> int | None:
        """Process id of the keeper, if one answers."""
        try:
            answer, descriptors = keeper.call(self.run_dir, {"op": "hello"}, timeout=5)
        except FusevolError:
            return None
        for descriptor in descriptors:
            os.close(descriptor)
        return int(answer["pid"])

    def processes(self) -> list[int]:
        """Process ids of all volume servers of this agent's run directory, whether they answer or not."""
        return logging_into(self.run_dir / "servers")

    def power_off(self, *kept: Path) -> None:
        """What the end of the machine leaves: no process, no mount but those at *kept*; files stay."""
        self.kill()
        end_keepers(self.run_dir)  # first: it would start another server for each one that dies
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for found in mount.below(self.directory):
            if Path(found.mountpoint) not in kept:
                mount.unmount(found.mountpoint, lazy=True)
        eventually(lambda: not self.processes(), what="the servers have ended")

    def close(self) -> None:
        """End agent, keeper, mounts and volume servers, whatever state they are in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        end_keepers(self.run_dir)
        pids = self.processes()
        # the mounts' ends are the servers' ends; a lazy unmount of everything, bind mounts first
        for found in mount.below(self.directory):
            with contextlib.suppress(OSError):
                mount.unmount(found.mountpoint)
        for pid in pids:
            try:
                eventually(lambda pid=pid: not alive(pid), 10.0)
            except AssertionError:
                os.kill(pid, signal.SIGKILL)
        tear_down(self.directory)
        for pid in pids:
            eventually(lambda pid=pid: not alive(pid), 10.0, what=f"volume server {pid} has ended")
