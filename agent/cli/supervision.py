"""Watches a Pod's containers and starts them again as its restartPolicy says.

Podman's own restart policies know no back-off: a container that fails at once would fail many times a second, for ever.
So podman is told ``--restart=no``, and whoever runs the Pod watches: ``fusevol run`` itself in the foreground, after
``fusevol run -d`` a process of its own (``python -m agent.cli.supervision``). That sleeps on a pidfd of each
container's first process, and nothing but restarts needs it: what kills it harms no container, and running the Pod
again starts another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from agent.cli.backoff import LONGEST, Backoff, restarts
from agent.cli.podman import Podman, require
from agent.cli.reporting import Reporter
from agent.client import Client
from fusevol.errors import EXIT_OK, FusevolError

Obj = dict[str, Any]
Report = Callable[[str, Obj, str], None]
"""Called with a container's name, what podman says of it, and why it is not started again yet."""
_POLL: Final = 0.2
"""Seconds between two looks at a container that is neither running nor at its end."""
_LOOK: Final = 2.0
"""Seconds between two looks whether a container that waits for its next start is there still."""
_UNSETTLED: Final = {"created", "initialized", "stopping", "paused"}


class Watch(threading.Thread):
    """One container, from now until it has ended for good."""

    def __init__(
        self,
        podman: Podman,
        name: str,
        policy: str,
        *,
        longest: float = LONGEST,
        tell: Callable[[str], None],
        report: Report,
    ) -> None:
        """*policy* is the Pod's restartPolicy; *tell* hears of each restart that has to wait, *report* of all."""
        super().__init__(name=f"watch of {name}", daemon=True)
        self.container = name
        self.code = EXIT_OK
        """The exit code with which it ended for good; 0 for one that somebody has removed."""
        self.failure: FusevolError | None = None
        self._podman = podman
        self._policy = policy
        self._tell = tell
        self._report = report
        self._backoff = Backoff(longest)
        self._over = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

    @property
    def stopped(self) -> bool:
        """Whether somebody has called :meth:`stop`."""
        return self._over.is_set()

    def stop(self) -> None:
        """Watch no longer, and start nothing any more."""
        self._over.set()
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        try:
            self._watch()
        except FusevolError as e:
            self.failure = e

    def close(self) -> None:
        """Give back what it holds; after its end."""
        os.close(self._wake)

    def _watch(self) -> None:
        while not self._over.is_set():
            found = self._podman.inspect(self.container)
            if found is None:
                return  # somebody removed it, for example by `fusevol delete pod`
            state = found["State"]
            if state.get("Running"):
                self._report(self.container, found, "")
                self._sleep_until_end(int(state.get("Pid") or 0))
            elif state.get("Status") in _UNSETTLED:
                self._over.wait(_POLL)
            else:
                self.code = int(state.get("ExitCode", 0))
                if not restarts(self._policy, self.code):
                    self._report(self.container, found, "")
                    return
                if not self._again(found):
                    return

    def _sleep_until_end(self, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # it has ended just now, or podman runs it elsewhere
            self._over.wait(_POLL)
            return
        try:
            found = self._podman.inspect(self.container)
            if found is None or int(found["State"].get("Pid") or 0) != pid:
                return  # the number may be somebody else's by now
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.register(self._wake, select.POLLIN)
            waiting.poll()
        finally:
            os.close(descriptor)

    def _again(self, ended: Obj) -> bool:
        """Start it again, which has *ended*, when it is due; False when it is gone, or nobody wants that any more."""
        due = self._backoff.due(time.monotonic())
        if due - time.monotonic() >= 1:
            wait = round(due - time.monotonic())
            why = f"back-off {wait}s restarting failed container={self.container} (exit code {self.code})"
            self._tell(why)
            self._report(self.container, ended, why)
        else:
            self._report(self.container, ended, "")
        while (left := due - time.monotonic()) > 0:
            if self._over.wait(min(left, _LOOK)):
                return False
            found = self._podman.inspect(self.container)
            if found is None:
                return False
            if found["State"].get("Running"):  # somebody was faster: `fusevol restart`
                break
        if self._over.is_set():
            return False
        self._backoff.started(time.monotonic())
        done = self._podman.try_run("start", self.container)
        if done.returncode and self._podman.inspect(self.container) is not None:
            self._tell(f"{self.container} cannot be started: {' '.join(done.stderr.split())}")
        return True


def wait_for(watches: Sequence[Watch]) -> None:
    """Return when all have ended. Raises what made one fail; interrupted, all stop."""
    try:
        for watch in watches:
            while watch.is_alive():
                watch.join(0.5)  # a join without a limit does not let signals through
    except BaseException:
        for watch in watches:
            watch.stop()
        raise
    finally:
        for watch in watches:
            watch.join(10)
            if not watch.is_alive():
                watch.close()
    for watch in watches:
        if watch.failure is not None:
            raise watch.failure


# -- in the background


def lock_file(client: Client, uid: str) -> Path:
    """What the process that watches a Pod has locked, with its pid in it; beside the agent's socket."""
    return client.socket.parent / "supervisors" / f"{uid}.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is watched of a Pod."""

    policy: str
    """The Pod's restartPolicy."""
    containers: Sequence[str]
    """Podman's names."""
    pod: Mapping[str, str]
    """Its namespace, name and uid."""
    names: Mapping[str, str]
    """What the Pod calls its containers, by podman's names."""
    inits: Mapping[str, str]
    sidecars: Sequence[str] = ()
    """Those that are always started again, for as long as one of the others may run."""
    longest: float = LONGEST
    """Seconds of the longest back-off."""


def begin(client: Client, uid: str, watched: Watched) -> None:
    """Have a process watch the Pod in the background; nothing to do if one does."""
    place = lock_file(client, uid)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with place.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "agent.cli.supervision",
                str(place),
                json.dumps(asdict(watched)),
                str(client.socket),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with process.stdout:
        process.stdout.readline()  # it watches, or another one does


def end(client: Client, uid: str) -> float | None:
    """Have nobody watch the Pod in the background any more; the longest delay that somebody kept who did."""
    place = lock_file(client, uid)
    found: float | None = None
    try:
        with place.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # whoever holds the lock has written this
                pid, longest = file.read().split()
                found = float(longest)
                descriptor = os.pidfd_open(int(pid))
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                waiting = select.poll()
                waiting.register(descriptor, select.POLLIN)
                waiting.poll(10_000)
                os.close(descriptor)
    except (OSError, ValueError):
        pass
    for path in (place, place.with_suffix(".log")):
        path.unlink(missing_ok=True)
    return found


def is_watched(client: Client, uid: str) -> bool:
    """Whether a process in the background watches the Pod."""
    try:
        with lock_file(client, uid).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def main(argv: Sequence[str]) -> int:
    """Watch one Pod until its containers have ended for good or are gone. No agent is needed for that."""
    place, watched = Path(argv[0]), Watched(**json.loads(argv[1]))
    with place.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return EXIT_OK
        lock.truncate(0)
        lock.write(f"{os.getpid()} {watched.longest}")
        lock.flush()
        reporter = Reporter(Client(Path(argv[2])), watched.pod, watched.names, watched.inits)
        _watch_all(Podman(require()), watched, reporter.note)
    return EXIT_OK


def _watch_all(podman: Podman, watched: Watched, report: Report) -> None:
    def tell(text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        print(f"{stamp} {text}", file=sys.stderr, flush=True)

    def stop(_signal: int, _frame: object) -> None:
        for each in [*ordinary, *beside]:
            each.stop()

    def watch(name: str, policy: str) -> Watch:
        return Watch(podman, name, policy, longest=watched.longest, tell=tell, report=report)

    ordinary = [watch(name, watched.policy) for name in watched.containers]
    beside = [watch(name, "Always") for name in watched.sidecars]
    signal.signal(signal.SIGTERM, stop)
    for each in [*ordinary, *beside]:
        each.start()
    print("watching", flush=True)
    os.close(sys.stdout.fileno())
    wait_for(ordinary)
    stopped = any(each.stopped for each in ordinary)
    for each in beside:
        each.stop()
    wait_for(beside)
    if beside and not stopped:
        podman.try_run("stop", *watched.sidecars)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
