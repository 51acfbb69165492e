"""Keepers for tests: started like an agent starts them, and ended with all that they started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusevol.keeper import client
from fusevol.server.spec import MountSpec
from fusevol.transport import mount
from tests.support.devices import tear_down
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive, end_keepers, logging_into

_ROOT = Path(__file__).parents[2]


@dataclass
class Kept:
    """A volume server that a keeper forked."""

    spec: MountSpec
    pid: int
    said: list[str] = field(default_factory=list)
    """Lines from the ready pipe."""

    @property
    def mountpoint(self) -> Path:
        """Where it is mounted."""
        return Path(self.spec.mountpoint)

    @property
    def source(self) -> Path:
        """What it serves."""
        return Path(self.spec.source)

    def kill(self) -> None:
        """SIGKILL of the first server, and certainty that it is gone."""
        assert alive(self.pid), "it was not running"
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not alive(self.pid), what=f"server {self.pid} has ended")


def read_lines(reader: int, timeout: float = 20.0) -> list[str]:
    """What a server says on its ready pipe until it closes that; closes *reader*."""
    received = b""
    end = time.monotonic() + timeout
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the ready pipe is still open after {timeout:g} s: {received!r}"
            chunk = os.read(reader, 4096)
            if not chunk:
                return received.decode().splitlines()
            received += chunk
    finally:
        os.close(reader)


class KeeperProcess:
    """A ``python -m fusevol.keeper`` of *directory*."""

    def __init__(self, directory: Path, logs: LogCheck, *, module: str = "fusevol.keeper") -> None:
        self.directory = directory
        self.log = directory / "keeper.log"
        self.module = module
        self.code = _ROOT
        """Where the keeper's code is."""
        self.kept: list[Kept] = []
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        logs.watch(self.log)

    @property
    def pid(self) -> int:
        """Process id of the keeper that was started last."""
        return self._processes[-1].pid

    def launch(self, *arguments: str) -> str:
        """Start the process (again); what it says last while it starts."""
        reader, writer = os.pipe()
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    self.module,
                    "--dir",
                    str(self.directory),
                    "--ready-fd",
                    str(writer),
                    *arguments,
                ],
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(self.code)},
            )
        self._processes.append(process)
        os.close(writer)
        return (read_lines(reader, 60.0) or [""])[-1]

    def start(self) -> KeeperProcess:
        """Start it and require that it listens."""
        said = self.launch()
        assert said == "READY", f"{said or 'nothing'}; log: {self.log.read_text()[-2000:]}"
        return self

    def call(self, op: str, *descriptors: int, **fields: Any) -> dict[str, Any]:
        """One request; descriptors in the answer are closed."""
        answer, received = client.call(self.directory, {"op": op, **fields}, descriptors)
        for descriptor in received:
            os.close(descriptor)
        return answer

    def ask_for(self, name: str, **fields: Any) -> tuple[MountSpec, dict[str, Any], int]:
        """Ask for a server and do not wait for it: its spec, the keeper's answer, and the ready pipe to read."""
        source, point = self.directory / f"{name}.src", self.directory / name
        for place in (source, point):
            if not mount.is_mounted(place):  # a dead mount cannot be looked into
                place.mkdir(exist_ok=True)
        base = {
            "mount_id": name,
            "source": str(source),
            "mountpoint": str(point),
            "control": str(self.directory / f"{name}.sock"),
            "log": str(self.directory / f"{name}.log"),
            "quota": "ledger",
            "ledger": str(self.directory / f"{name}.ledger"),
            "io_uring": False,
        }
        spec = MountSpec(**(base | fields))
        file = self.directory / f"{name}.json"
        spec.save(file)
        self._logs.watch(Path(spec.log))
        reader, writer = os.pipe()
        try:
            answer = self.call("start", writer, mount_id=name, spec=str(file), log=spec.log)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        if "pid" in answer:
            self.kept.append(Kept(spec, answer["pid"]))
        return spec, answer, reader

    def serve(self, name: str, **fields: Any) -> Kept:
        """A mounted volume."""
        _, answer, reader = self.ask_for(name, **fields)
        said = read_lines(reader)
        assert answer["ok"], answer
        assert said[-1] == "READY", said
        self.kept[-1].said = said
        return self.kept[-1]

    def servers(self) -> list[int]:
        """Process ids of all living volume servers of this directory, whichever keeper started them."""
        return [pid for pid in logging_into(self.directory) if alive(pid)]

    def server_of(self, name: str) -> int:
        """Process id of the server that serves a mount now; waits for the next one if it has just died."""

        def serving() -> int:
            found = self.call("find", mount_id=name)
            return int(found["pid"]) if found.get("state") == "serving" else 0

        return eventually(serving, what=f"a server of {name}")

    def wait(self, timeout: float = 20.0) -> int:
        """Exit status of the keeper that was started last."""
        return self._processes[-1].wait(timeout)

    def kill(self) -> None:
        """SIGKILL, and certainty that it died of it."""
        assert self._processes[-1].poll() is None, "it was not running"
        self._processes[-1].kill()
        assert self._processes[-1].wait(20) == -signal.SIGKILL

    def end(self) -> None:
        """End the keepers that this object started."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(20)

    def close(self) -> None:
        """End keepers, mounts and servers, whatever state they are in."""
        self.end()
        end_keepers(self.directory)
        for found in mount.below(self.directory):
            with contextlib.suppress(OSError):
                mount.unmount(found.mountpoint)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.servers(), 5.0)
        for pid in self.servers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        tear_down(self.directory)
        eventually(lambda: not self.servers(), what="all volume servers have ended")


@contextlib.contextmanager
def rescued(keeper: KeeperProcess) -> Iterator[KeeperProcess]:
    """*keeper*, running, whose connections are aborted when that takes too long: who hangs would not end otherwise."""

    def rescue() -> None:
        for found in mount.below(keeper.directory):
            mount.abort(found.minor)

    timer = threading.Timer(50, rescue)
    timer.start()
    try:
        yield keeper.start()
    finally:
        timer.cancel()
        keeper.close()
