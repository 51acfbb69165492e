"""The whole examination: trials in processes of their own, each with a time limit, and what they mean."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agent.doctor import findings, machine
from agent.doctor.findings import Finding, lacking
from fusevol.transport import mount

Obj = dict[str, Any]
_PATIENCE: Final = 20.0
"""Seconds for one trial."""


class _TrialFailedError(Exception):
    """A trial came to nothing; one sentence."""


def examine(pools: Mapping[str, Path]) -> list[Finding]:
    """Look at this machine and at the *pools*, which need not exist. Takes some seconds; leaves nothing behind."""
    found = [*machine.look()]
    with tempfile.TemporaryDirectory(prefix="fusevol-doctor-") as scratch:
        try:
            trial = _tried("mounts", Path(scratch))
        except _TrialFailedError as e:
            trial = {"kernel": {"error": str(e)}, "pyfuse3": {"error": str(e)}}
        finally:
            _unmount(Path(scratch))
        trial["io_uring"] = machine.no_io_uring()
        found += findings.of_mount(trial, privileged=os.geteuid() == 0)
    for name, path in pools.items():
        found += _pool(name, path)
    return [*found, *machine.programs()]


def _tried(what: str, directory: Path) -> Obj:
    """The answer of :mod:`agent.doctor.trial`. Everything it has started is gone when this returns, but what hangs."""
    try:
        trial = subprocess.Popen(
            [sys.executable, "-m", "agent.doctor.trial", what, str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    except OSError as e:
        raise _TrialFailedError(f"{sys.executable} cannot be run: {e.strerror}") from None
    try:
        said, errors = trial.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise _TrialFailedError(f"it did not end within {_PATIENCE:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trial.pid, signal.SIGKILL)
    try:
        answer: Obj = json.loads(said)
    except ValueError:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no reason was given"])[-1]
        raise _TrialFailedError(last) from None
    return answer


def _unmount(scratch: Path) -> None:
    """End what a trial that was given up has left mounted, where it could not have mounts of its own."""
    for found in mount.below(scratch):
        with contextlib.suppress(OSError):
            mount.abort(found.minor)
            mount.unmount(found.mountpoint, lazy=True)


def _pool(name: str, path: Path) -> Iterator[Finding]:
    area = f"pool {name}"
    try:
        answer = _tried("pool", path)
    except _TrialFailedError as e:
        remedy = f"See what the filesystem of {path} waits for, or whether it is mounted read-only."
        yield lacking(area, "directory", f"{path} cannot be used: {e}", remedy, needed=True)
        return
    yield from findings.of_pool(area, path, answer)
