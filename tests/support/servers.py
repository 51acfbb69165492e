"""Volume servers for tests: started like a supervisor starts them, and always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusevol.server.client import call
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from tests.support.logs import LogCheck
from tests.support.polling import eventually


class VolumeServer:
    """A ``python -m fusevol.server`` process and its mount.

    A timer aborts the connection after *deadline* seconds, so that a test that hangs in the mount gets an error
    instead (a task that waits for a FUSE answer does not even die of SIGKILL).
    """

    def __init__(
        self,
        spec: MountSpec,
        directory: Path,
        logs: LogCheck,
        *,
        module: str = "fusevol.server",
        deadline: float = 100.0,
        command: list[str] | None = None,
    ) -> None:
        self.spec = spec
        self.mountpoint = Path(spec.mountpoint)
        self.source = Path(spec.source)
        self.log = Path(spec.log)
        self.ready_lines: list[str] = []
        self._directory = directory
        self._module = module
        self._prefix = command or []
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        logs.watch(self.log)

    @property
    def pid(self) -> int:
        """Process id of the server that was started last."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> str:
        """Start the process (again); ``ready_lines`` are what it says. Returns the last one."""
        self.ready_lines.clear()
        file = self._directory / f"{self.spec.mount_id}.json"
        self.spec.save(file)
        reader, writer = os.pipe()
        command = [*self._prefix, sys.executable, "-m", self._module, "--spec", str(file), "--ready-fd", str(writer)]
        with (self._directory / f"{self.spec.mount_id}.err").open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
        os.close(writer)
        with os.fdopen(reader) as ready:
            for line in ready:
                self.ready_lines.append(line.rstrip("\n"))
                if line.startswith(("READY", "ERROR")):
                    break
        return self.ready_lines[-1] if self.ready_lines else ""

    def start(self) -> VolumeServer:
        """Start the process and require that it mounts."""
        said = self.launch()
        assert said == "READY", f"{said or 'nothing'}; stderr: {self.stderr()}"
        self._timer = threading.Timer(self._deadline, self._expire)
        self._timer.daemon = True
        self._timer.start()
        return self

    def _expire(self) -> None:
        with contextlib.suppress(OSError):
            mount.abort(self.mountpoint)
        if self._process is not None:  # over io_uring, requests stay with a server that is stopped
            self._process.kill()

    def stderr(self) -> str:
        """What the process wrote to its standard error."""
        return (self._directory / f"{self.spec.mount_id}.err").read_text(errors="replace")

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask over the control socket."""
        return call(Path(self.spec.control), {"op": op, **fields}, timeout=20.0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server (only ever to the process that this object started)."""
        assert self._process is not None
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end: meanwhile the mount answers nothing, and is not dead either."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self, timeout: float = 20.0) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, and certainty that it is gone; the mount stays behind, dead."""
        assert self._process is not None
        assert self._process.poll() is None, "it was not running"
        self._process.kill()
        assert self._process.wait(20) == -signal.SIGKILL

    def umount(self) -> int:
        """Unmount from outside; returns the server's exit status."""
        mount.unmount(self.mountpoint)
        return self.wait()

    def close(self) -> None:
        """End it whatever its state: asked first, then aborted, then killed."""
        if self._timer:
            self._timer.cancel()
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                for found in mount.below(self.mountpoint):
                    mount.abort(found.minor)
                self._process.kill()
                self._process.wait(20)
        for _ in mount.below(self.mountpoint):
            mount.abort(self.mountpoint)
            with contextlib.suppress(OSError):  # an abort may have unmounted it
                mount.unmount(self.mountpoint, lazy=True)
        self._process = None

    def settled(self) -> dict[str, Any]:
        """Usage after all that was started has been accounted for."""
        assert self.call("drain")["ok"]
        usage: dict[str, Any] = self.call("usage")["usage"]
        return usage

    def gone(self, timeout: float = 10.0) -> bool:
        """Whether process and mount have ended within *timeout* seconds."""
        self.wait(timeout)
        return eventually(lambda: not mount.is_mounted(self.mountpoint), timeout)
