"""The demo's own little node: a temporary directory with an agent, its state, and a podman storage of its own.

Everything on it goes through the public command line (`fusevol`, `podman`). :meth:`Stage.strike` takes it all down
again, whatever state it is in: containers, mounts, processes, directories, and what was made on the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COMMAND_SECONDS = 120
MARK = "FUSEVOL_DEMO"
"""Variable that tells the demo's processes from a shell in which somebody looks around."""


class DemoError(Exception):
    """Something did not go as the story says."""


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    """Until *condition* holds; :class:`DemoError` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


class Stage:
    """One demo's directory and what runs in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.agent: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {
            MARK: str(home),
            "FUSEVOL_STATE_DIR": str(home / "state"),
            "FUSEVOL_RUN_DIR": str(home / "run"),
            "FUSEVOL_SOCKET": str(home / "run" / "agent.sock"),
            "CONTAINERS_CONF": str(home / "podman" / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "podman" / "storage.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    @classmethod
    def build(cls) -> Self:
        """A new one, with podman ready and the images that the Pods name."""
        stage = cls(Path(tempfile.mkdtemp(prefix="fvdemo.", dir="/tmp")))
        try:
            stage.run(str(ROOT / "scripts" / "test-image.sh"), str(stage.home / "podman"), quiet=True)
        except BaseException:
            stage.strike()
            raise
        return stage

    # -- commands

    def run(self, *command: str, fails: bool = False, quiet: bool = False, feed: str | None = None) -> str:
        """Run and show a command; its output (both streams). :class:`DemoError` unless it ends as expected."""
        if not quiet:
            shown = ["fusevol" if word.endswith("/fusevol") else word for word in command]
            print(f"    $ {shlex.join(w if len(w) < 90 else '...' for w in shown)}", flush=True)
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            cwd=HERE,
            input=feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        text = done.stdout.strip()
        if text and not quiet:
            print("\n".join(f"      {line}" for line in text.splitlines()), flush=True)
        if (done.returncode != 0) is not fails:
            raise DemoError(f"`{shlex.join(command)}` ended with exit code {done.returncode}: {text or 'no output'}")
        return text

    def fusevol(self, *arguments: str, fails: bool = False, quiet: bool = False, feed: str | None = None) -> str:
        """`fusevol ...`"""
        return self.run("fusevol", *arguments, fails=fails, quiet=quiet, feed=feed)

    def inside(self, container: str, script: str, *, fails: bool = False, quiet: bool = False) -> str:
        """A shell command in a running container."""
        return self.run("podman", "exec", container, "sh", "-c", script, fails=fails, quiet=quiet)

    # -- the agent

    def start_agent(self) -> int:
        """Start the agent and wait until it answers; its process id."""
        with (self.home / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [str(Path(sys.executable).parent / "fusevol"), "agent"],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for("an answer of the agent", self._answers)
        return self.agent.pid

    def _answers(self) -> bool:
        if self.agent is not None and self.agent.poll() is not None:
            log = (self.home / "agent.log").read_text(errors="replace").strip().splitlines()
            raise DemoError(f"the agent ended at once: {log[-1] if log else 'it said nothing'}")
        try:
            self.fusevol("version", quiet=True)
        except DemoError:
            return False
        return True

    def kill_agent(self) -> None:
        """kill -9."""
        if self.agent is None:
            raise DemoError("there is no agent to kill")
        self.agent.kill()
        self.agent.wait(10)

    # -- the host

    def remember_host(self, created: list[str]) -> None:
        """Note what the demo makes outside its directory, in the order in which it is to be removed."""
        (self.home / "host.json").write_text(json.dumps(created))

    def _forget_host(self) -> None:
        notes = self.home / "host.json"
        for name in json.loads(notes.read_text()) if notes.exists() else []:
            path = Path(name)
            try:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            except OSError as e:
                print(f"demo: {path} stays ({e.strerror})", file=sys.stderr)

    # -- the end

    def mounts(self) -> list[str]:
        """Mount points below the directory, the latest first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
        return [p for p in reversed(points) if p.startswith(f"{self.home}/")]

    def processes(self, of: bytes = b"") -> list[int]:
        """Processes that were started for this stage and have *of* in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            marked = f"{MARK}={self.home}".encode() in environment.split(b"\0")
            serves = b"fusevol.keeper" in command and f"{self.home}/".encode() in command
            if int(entry.name) != os.getpid() and (marked or serves) and of in command:
                found.append(int(entry.name))
        return found

    def _end(self, of: bytes, *signals: signal.Signals) -> None:
        """Send *signals*, one after the other, until no process with *of* in its command line is left."""
        for number in signals:
            for pid in self.processes(of):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if self.agent is not None:
                self.agent.poll()  # so that it is no zombie
            with contextlib.suppress(DemoError):
                wait_for("the end of the processes", lambda: not self.processes(of), 8)
                return

    def _end_keeper(self) -> None:
        """End the keeper, not the volume servers that it forked: those have the same command line."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.home / "run" / "keeper.lock").read_text())
            if pid in self.processes(b"fusevol.keeper"):
                os.kill(pid, signal.SIGTERM)

    def strike(self) -> list[str]:
        """Take everything down; what could not be removed, as sentences. Works in any state."""
        if (self.home / "podman").exists():
            _try([str(ROOT / "scripts" / "test-image.sh"), "--remove", str(self.home / "podman")], self.environment)
        # the agent first: it would mount again what it finds unmounted
        self._end(b"fusevol\0agent", signal.SIGTERM, signal.SIGKILL)
        self._end_keeper()
        for point in self.mounts():
            _try(["umount", point]) or _try(["umount", "-l", point])
        # a volume server ends by itself when its mount is gone
        with contextlib.suppress(DemoError):
            wait_for("the end of the volume servers", lambda: not self.processes(), 5)
        self._end(b"", signal.SIGTERM, signal.SIGKILL)
        self._forget_host()
        left = [f"mount {p}" for p in self.mounts()] + [f"process {p}" for p in self.processes()]
        if not self.mounts():
            shutil.rmtree(self.home, ignore_errors=True)
        if self.home.exists():
            left.append(f"directory {self.home}")
        return left


def _try(command: list[str], environment: Mapping[str, str] | None = None) -> bool:
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return done.returncode == 0
