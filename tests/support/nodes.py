"""Several nodes on one machine: each is a mount namespace and a network namespace with an agent in it.

The nodes see the machine's processes and files, but none of each other's mounts, and reach :data:`ADDRESS` over a wire
of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually
from tests.support.processes import alive, end_keepers, keepers, logging_into

ADDRESS: Final = "10.199.7.1"
"""Of the machine, for all nodes."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20, capture_output=True, text=True)


@contextlib.contextmanager
def reachable() -> Iterator[str]:
    """:data:`ADDRESS`, which is the machine's until the end of the block."""
    _ip("addr", "add", f"{ADDRESS}/32", "dev", "lo")
    try:
        yield ADDRESS
    finally:
        _ip("addr", "del", f"{ADDRESS}/32", "dev", "lo")


class NodeAgent(Agent):
    """The agent of the node *name*, below *directory*, in namespaces of its own. The *number* tells nodes apart."""

    def __init__(self, directory: Path, logs: LogCheck, name: str, number: int) -> None:
        directory.mkdir()
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "-n", "--propagation", "private", "sleep", "infinity"],
            start_new_session=True,
        )
        own = os.readlink("/proc/self/ns/net")
        eventually(lambda: self._namespace() != own and self._sleeps(), what=f"the namespaces of {name}")
        self._wire(number)
        super().__init__(directory, logs, {"FUSEVOL_NODE_NAME": name})

    def _namespace(self) -> str:
        return os.readlink(f"/proc/{self._holder.pid}/ns/net")

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self._holder.pid}/comm").read_text().strip() == "sleep"

    def _wire(self, number: int) -> None:
        near, far = f"10.199.{number}.1", f"10.199.{number}.2"
        _ip("link", "add", f"fvn{number}", "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        _ip("addr", "add", f"{near}/30", "dev", f"fvn{number}")
        _ip("link", "set", f"fvn{number}", "up")
        for words in (
            "link set lo up",
            f"addr add {far}/30 dev eth0",
            "link set eth0 up",
            f"route add default via {near}",
        ):
            subprocess.run([*self._inside, "ip", *words.split()], check=True, timeout=20, capture_output=True)

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-m", "-n", "--"]

    def command(self, *arguments: str) -> list[str]:
        """As that of every agent, but on the node."""
        return [*self._inside, *super().command(*arguments)]

    def shell(self, script: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run *script* on the node."""
        words = [*self._inside, "sh", "-c", script]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout)

    def program(self, script: str) -> subprocess.Popen[str]:
        """A script that runs on the node meanwhile."""
        words = [*self._inside, "sh", "-c", script]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Agent, keepers and servers are stopped (SIGSTOP)."""
        everybody = [self.pid, *keepers(self.run_dir, understudies=True), *keepers(self.run_dir), *self.processes()]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in everybody:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End all that runs on the node; its mounts and its wire go with the namespaces."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)
        end_keepers(self.run_dir)
        for pid in logging_into(self.run_dir / "servers"):
            os.kill(pid, signal.SIGKILL)
        # a client of CephFS that is killed keeps what it has for half a minute
        self.shell("umount -l -a -t fuse.ceph-fuse")
        with contextlib.suppress(AssertionError):
            eventually(lambda: self._residents() == [self._holder.pid], 10.0)
        for pid in (inside := self._residents()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._holder.wait(20)
        for pid in inside:
            eventually(lambda pid=pid: not alive(pid), 30.0, what=f"process {pid} of the node has ended")

    def _residents(self) -> list[int]:
        """All processes in the node's network namespace."""
        namespace, found = self._namespace(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "net") == namespace:
                    found.append(int(entry.name))
        return found
