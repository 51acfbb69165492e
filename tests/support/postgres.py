"""PostgreSQL clusters, run as an ordinary user, and pgbench on them."""

from __future__ import annotations

import contextlib
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.polling import PATIENCE

SCALE: Final = 2
"""200,000 rows, 30 MiB: more than the server's own cache."""
CLIENTS: Final = 2
_OPTIONS: Final = "-c listen_addresses='' -c shared_buffers=16MB -c autovacuum=off"
_PATIENCE_S: Final = int(60 * PATIENCE)
_TPS: Final = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Postgres:
    """The programs, who runs them, where their socket is, and a cluster to copy."""

    programs: Path
    user: str
    sockets: Path
    template: Path
    small: bool = False
    """Whether a cluster shall take 50 MiB and not 150: half the rows, and a short log."""

    def prepare(self) -> None:
        """Make the template: a cluster with pgbench's tables."""
        owner = pwd.getpwnam(self.user)
        for folder in (self.sockets, self.template.parent):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, owner.pw_uid, owner.pw_gid)
        less = ["--wal-segsize=1"] if self.small else []
        self._run("initdb", "--no-sync", "--auth=trust", "-E", "UTF8", "--locale=C", *less, "-D", str(self.template))
        try:
            self.start(self.template)
            scale = 1 if self.small else SCALE
            self._run("pgbench", "--quiet", "-i", "-s", str(scale), "-h", str(self.sockets), "postgres")
        finally:
            self.stop(self.template)

    def copy_to(self, source: Path) -> None:
        """Put a copy of the template into a backing directory."""
        subprocess.run(["cp", "-a", str(self.template), str(source / "cluster")], check=True)

    def rate(self, cluster: Path, seconds: int) -> float:
        """Transactions per second of pgbench's own mix (TPC-B), fsync on; the server is started and stopped untimed."""
        try:
            self.start(cluster)
            said = self._run(
                *("pgbench", "-n", "-M", "prepared", "-c", str(CLIENTS), "-T", str(seconds)),
                *("-h", str(self.sockets), "postgres"),
            )
        finally:
            self.stop(cluster)
        found = _TPS.search(said)
        if not found:
            raise RuntimeError(f"pgbench gave no rate: {said}")
        return float(found[1])

    def start(self, cluster: Path) -> None:
        """A server on *cluster*, ready: after a crash it has recovered. Raises ``RuntimeError`` with what it said."""
        less = " -c max_wal_size=8MB" if self.small else ""
        options = f"{_OPTIONS}{less} -c unix_socket_directories={self.sockets}"
        log = self.sockets / "log"
        self._run(
            "pg_ctl",
            "--silent",
            "-w",
            "-t",
            str(_PATIENCE_S),
            "-D",
            str(cluster),
            "-l",
            str(log),
            "-o",
            options,
            "start",
        )

    def stop(self, cluster: Path) -> None:
        """End its server, if it has one."""
        if (cluster / "postmaster.pid").exists():
            self._run("pg_ctl", "--silent", "-w", "-t", str(_PATIENCE_S), "-m", "fast", "-D", str(cluster), "stop")

    def ask(self, query: str) -> str:
        """What the server that runs says, as psql prints it: a line per row, columns between bars."""
        return self._run("psql", "-XAt", "-h", str(self.sockets), "-c", query, "postgres").strip()

    def check(self) -> None:
        """Compare every table with every index on it. Raises ``RuntimeError`` with what does not fit."""
        self._run("pg_amcheck", "--install-missing", "--heapallindexed", "-h", str(self.sockets), "postgres")

    @contextlib.contextmanager
    def transactions(self) -> Iterator[None]:
        """pgbench's own mix meanwhile; a transaction that fails is an error at the end."""
        command = ["pgbench", "-n", "-c", str(CLIENTS), "-T", "600", "-h", str(self.sockets), "postgres"]
        with (self.sockets / "load").open("wb") as said:
            load = subprocess.Popen(**self._as_user(command), stdout=said, stderr=subprocess.STDOUT)
            try:
                yield
                ended = load.poll()
            finally:
                load.terminate()
                load.wait(_PATIENCE_S)
        if ended is not None:
            raise RuntimeError(f"pgbench ended ({ended}): {(self.sockets / 'load').read_text()}")

    def _as_user(self, command: list[str]) -> dict[str, Any]:
        """How a program is run."""
        account = pwd.getpwnam(self.user)
        return {
            "args": [str(self.programs / command[0]), *command[1:]],
            "user": account.pw_uid,
            "group": account.pw_gid,
            "extra_groups": [],
            "cwd": "/",
            "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGUSER": self.user},
        }

    def _run(self, program: str, *arguments: str) -> str:
        with (self.sockets / "out").open(
            "wb"
        ) as out:  # no pipe: the server that pg_ctl leaves behind would hold it open
            done = subprocess.run(
                **self._as_user([program, *arguments]),
                check=False,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=_PATIENCE_S,
            )
        said = (self.sockets / "out").read_text(encoding="utf-8", errors="replace")
        if done.returncode:
            raise RuntimeError(f"{program} failed ({done.returncode}): {said}")
        return said


def installed(scratch: Path, *, small: bool = False) -> Postgres | None:
    """The newest PostgreSQL of this Debian, run as ``postgres``; ``None`` where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if not folders or not (folders[-1] / "pgbench").exists():
        return None
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return None
    return Postgres(folders[-1], "postgres", scratch / "pg", scratch / "pg" / "template", small)
