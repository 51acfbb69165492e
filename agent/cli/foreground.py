"""Following containers in the foreground: their output, their end, Ctrl-C.

Output comes from ``podman logs --follow --timestamps``, not from an attached ``podman run``: that one ends with the
container's first process, also when podman's restart policy starts another. The time stamps (not shown) say where to
go on after a restart, with any of podman's log drivers.
"""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import IO, Any, Self

from agent.cli import containers, output
from agent.cli.podman import Podman
from agent.cli.supervision import Report, Watch, wait_for
from fusevol.errors import EXIT_FAILED, EXIT_OK, FusevolError

Obj = dict[str, Any]


class Interruptible:
    """While entered, SIGTERM is a Ctrl-C; on either, the containers that are followed are stopped."""

    def __init__(self, podman: Podman) -> None:
        self._podman = podman
        self.names: list[str] = []
        """The containers to stop when interrupted."""
        self._previous: Any = None
        self._began = dt.datetime.now(dt.UTC).isoformat()

    def __enter__(self) -> Self:
        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.names:
            output.note("Stopping the containers.")
            self._podman.try_run("stop", "--time", "10", *self.names)

    def follow(
        self, shown: Mapping[str, str], policy: str, *, longest: float, report: Report, sidecars: Sequence[str] = ()
    ) -> int:
        """Print the output of the containers (*shown*: name to prefix) until all have ended for good under *policy*.

        They are started again as that says, after at most *longest* seconds; *sidecars* always, for as long as others
        run. Returns 0 if all succeeded; else 1, after a sentence that names those that did not.
        """
        lock = threading.Lock()
        followers = [
            _Follower(self._podman, name, f"[{prefix}] " if len(shown) > 1 else "", self._began, lock)
            for name, prefix in shown.items()
        ]

        def watched(name: str, policy: str) -> Watch:
            return Watch(self._podman, name, policy, longest=longest, tell=output.note, report=report)

        watches = [watched(name, policy) for name in shown]
        beside = [watched(name, "Always") for name in sidecars]
        for follower in followers:
            follower.start()
        for watch in [*watches, *beside]:
            watch.start()
        try:
            wait_for(watches)
        except BaseException:
            for follower in followers:
                follower.stop()
            raise
        finally:
            for watch in beside:
                watch.stop()
            wait_for(beside)
        for follower in followers:
            follower.end()
        failed = {shown[watch.container]: watch.code for watch in watches if watch.code}
        if not failed:
            return EXIT_OK
        ends = ", ".join(f'"{name}" ended with exit code {code}' for name, code in failed.items())
        sys.stdout.flush()
        output.note(f"Error: Container {ends}; what it printed says why.")
        return EXIT_FAILED


def finish_init(podman: Podman, pod: Obj, container: Obj, *, longest: float, report: Report) -> None:
    """Wait for an init container, which is started again if it fails. Raises :class:`FusevolError` if that is final."""
    name = containers.container_name(pod, container)
    policy = "Never" if pod["spec"].get("restartPolicy") == "Never" else "OnFailure"
    watch = Watch(podman, name, policy, longest=longest, tell=output.note, report=report)
    watch.start()
    wait_for([watch])
    if watch.code:
        raise FusevolError(
            f'The init container "{container["name"]}" ended with exit code {watch.code}: `podman logs {name}` may say '
            "why."
        )


class _Follower:
    """Copies one container's output, across its restarts."""

    def __init__(self, podman: Podman, name: str, prefix: str, began: str, lock: threading.Lock) -> None:
        self._podman, self._name, self._prefix, self._lock = podman, name, prefix, lock
        self._began = began
        self._seen = {"stdout": ("", 0), "stderr": ("", 0)}
        """Per stream the newest time stamp and how many lines had it (lines written at once share one)."""
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name=f"logs of {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The container has ended: print what is left."""
        self._ended.set()
        self._thread.join(timeout=10)
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _run(self) -> None:
        while True:
            last_round = self._ended.is_set()
            self._copy(follow=not last_round)
            if last_round:
                return
            self._ended.wait(0.2)

    def _copy(self, *, follow: bool) -> None:
        arguments = ["logs", "--timestamps", *(["--follow"] if follow else [])]
        # from the beginning of this command: a container that is started again has earlier output
        since = max(stamp for stamp, _ in self._seen.values()) or self._began
        arguments += ["--since", since]
        self._process = subprocess.Popen(
            [*self._podman.command, *arguments, self._name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        process = self._process
        other = threading.Thread(target=self._pump, args=(process.stderr, "stderr"), daemon=True)
        other.start()
        self._pump(process.stdout, "stdout")
        other.join()
        process.wait()

    def _pump(self, stream: IO[str] | None, which: str) -> None:
        target = sys.stdout if which == "stdout" else sys.stderr
        last, count = before, skip = self._seen[which]
        for line in stream or ():
            stamp, _, text = line.partition(" ")
            if not stamp[:4].isdigit() or "T" not in stamp:
                continue  # podman's own remarks, for example that the container is gone
            if stamp < before:
                continue
            if stamp == before and skip:
                skip -= 1
                continue
            last, count = (stamp, count + 1) if stamp == last else (stamp, 1)
            self._seen[which] = last, count
            with self._lock:
                print(self._prefix + text.rstrip("\n"), file=target, flush=True)
