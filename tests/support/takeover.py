"""Holds what a volume server leaves, and starts the next one on it: the least that a keeper does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusevol.server.held import Held
from fusevol.server.spec import MountSpec


def _until_ready(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line.rstrip("\n")
        if not line.startswith("SCAN"):
            return


class Holder:
    """A mount whose servers may be killed: each is followed by another one on the same connection."""

    def __init__(self, spec: MountSpec, file: Path) -> None:
        self._file = file
        spec.save(file)
        self.held: Held | None = None
        self.server: subprocess.Popen[bytes] | None = None
        self.scans = 0
        """How many servers but the first have counted the volume."""

    def start(self) -> None:
        """Start a server, the first or the next, and wait until it serves."""
        said = self.launch()
        assert said == "READY", said

    def launch(self, *prefix: str) -> str:
        """Start a server by the command *prefix*; READY, or the reason why it does not serve."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe()
        passed = [writer, theirs.fileno(), *(self.held.descriptors if self.held is not None else ())]
        command = [
            *prefix,
            sys.executable,
            "-m",
            "fusevol.server",
            "--spec",
            str(self._file),
            "--ready-fd",
            str(writer),
        ]
        command += ["--holder-fd", str(theirs.fileno())]
        if self.held is not None:
            command += ["--held", ",".join(map(str, (self.held.minor, *self.held.descriptors)))]
        with ours, theirs:
            self.server = subprocess.Popen(
                command, pass_fds=passed, cwd=Path(__file__).parents[2], start_new_session=True
            )
            os.close(writer)
            with os.fdopen(reader) as ready:
                lines = [*_until_ready(ready)]
            said = lines[-1] if lines else "nothing"
            self.scans += self.held is not None and len(lines) > 1
            if self.held is None and said == "READY":
                self.held = Held.receive(ours)
        return said

    def kill(self) -> None:
        """kill -9, and certainty that the server died of it."""
        assert self.server is not None
        assert self.server.poll() is None, "it was not running"
        self.server.kill()
        assert self.server.wait(20) != 0

    def close(self) -> None:
        """Give up the connection, and wait for the server to end of the unmount, which is the caller's."""
        if self.held is not None:
            self.held.close()
            self.held = None
        if self.server is not None:
            try:
                self.server.wait(15)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait(20)
