"""A PostgreSQL cluster on each subject, run as an ordinary user, and pgbench on it."""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCALE: Final = 2
"""200,000 rows, 30 MiB: more than the server's own cache."""
CLIENTS: Final = 2
_OPTIONS: Final = "-c listen_addresses='' -c shared_buffers=16MB -c autovacuum=off"
_PATIENCE_S: Final = 60
_TPS: Final = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Postgres:
    """The programs, who runs them, where their socket is, and a cluster to copy."""

    programs: Path
    user: str
    sockets: Path
    template: Path

    def prepare(self) -> None:
        """Make the template: a cluster with pgbench's tables."""
        owner = pwd.getpwnam(self.user)
        for folder in (self.sockets, self.template.parent):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "--no-sync", "--auth=trust", "-E", "UTF8", "--locale=C", "-D", str(self.template))
        try:
            self._start(self.template)
            self._run("pgbench", "--quiet", "-i", "-s", str(SCALE), "-h", str(self.sockets), "postgres")
        finally:
            self._stop(self.template)

    def copy_to(self, source: Path) -> None:
        """Put a copy of the template into a backing directory."""
        subprocess.run(["cp", "-a", str(self.template), str(source / "cluster")], check=True)

    def rate(self, cluster: Path, seconds: int) -> float:
        """Transactions per second of pgbench's own mix (TPC-B), fsync on; the server is started and stopped untimed."""
        try:
            self._start(cluster)
            said = self._run(
                *("pgbench", "-n", "-M", "prepared", "-c", str(CLIENTS), "-T", str(seconds)),
                *("-h", str(self.sockets), "postgres"),
            )
        finally:
            self._stop(cluster)
        found = _TPS.search(said)
        if not found:
            raise RuntimeError(f"pgbench gave no rate: {said}")
        return float(found[1])

    def _start(self, cluster: Path) -> None:
        options = f"{_OPTIONS} -c unix_socket_directories={self.sockets}"
        log = self.sockets / "log"
        self._run("pg_ctl", "--silent", "-w", "-D", str(cluster), "-l", str(log), "-o", options, "start")

    def _stop(self, cluster: Path) -> None:
        if (cluster / "postmaster.pid").exists():
            self._run("pg_ctl", "--silent", "-w", "-m", "fast", "-D", str(cluster), "stop")

    def _run(self, program: str, *arguments: str) -> str:
        account = pwd.getpwnam(self.user)
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            check=False,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGUSER": self.user},
            # not pipes: the server that pg_ctl leaves behind would hold them open
            stdout=(self.sockets / "out").open("wb"),
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE_S,
        )
        said = (self.sockets / "out").read_text(encoding="utf-8", errors="replace")
        if done.returncode:
            raise RuntimeError(f"{program} failed ({done.returncode}): {said}")
        return said


def installed(scratch: Path) -> Postgres | None:
    """The newest PostgreSQL of this Debian, run as ``postgres``; ``None`` where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if not folders or not (folders[-1] / "pgbench").exists():
        return None
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return None
    return Postgres(folders[-1], "postgres", scratch / "pg", scratch / "pg" / "template")
