"""Mounts a StorageClass's CephFS by ceph-fuse, and makes Ceph users for its volumes. Blocking: for a hazard's thread.

The mount is one process of Ceph's, started once for each pool, and it outlives the agent. It reads the key from a file
that is gone before anybody uses the mount; no command line, log or message has the key.

*Who says no?* ceph-fuse leaves permissions to whoever mounts what it serves: the volume servers' kernel checks them for
the user who asks, and the directory above the mount point is root's alone.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fusevol.errors import ForbiddenError, FusevolError, InvalidError, NotFoundError, UnavailableError
from fusevol.objects import share
from fusevol.objects.share import Share
from fusevol.transport import mount

KeyOf = Callable[[], bytes]
"""The value of the Secret that a share names. Raises a :class:`FusevolError`."""
PATIENCE: Final = 5
"""Seconds that the cluster may take to let a client in."""
_BANNER: Final = 9
_LEGACY: Final = 6789
_KEY: Final = 28
"""Bytes of a cephx key: type, time, length, and 16 of secret."""


class CephMount:
    """One share, and where it is mounted."""

    def __init__(self, what: Share, directory: Path, key_of: KeyOf) -> None:
        """*directory* takes the mount point."""
        self.share = what
        self._point = directory / what.pool
        self._key_of = key_of
        self.times = 0
        """How often it was found mounted, or mounted, anew."""

    @property
    def pool(self) -> Path:
        """The pool's directory."""
        return self._point / share.POOL

    def __repr__(self) -> str:
        """Shows what is mounted where."""
        return f"<CephMount of {self.share} at {self._point}>"

    @property
    def renewable(self) -> bool:
        """No: a mount whose process lives recovers by itself, any other is made again."""
        return False

    def renew(self) -> bool:
        """See to it that the share is mounted; whether it had to be mounted now. Raises a :class:`FusevolError`.

        Waits for as long as the filesystem hangs.
        """
        if mount.root(self._point) is not None:
            try:
                self._point.stat()
            except OSError:  # its process has ended
                mount.unmount(self._point, lazy=True)
            else:
                self.times = max(self.times, 1)
                return False
        self._point.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._point.mkdir(mode=0o700, exist_ok=True)
        with self._client() as client:
            try:
                client.mount(self._point, self.share.directory)
            except NotFoundError:
                self._make_root(client)
                client.mount(self._point, self.share.directory)
        self.times += 1
        return True

    def unmount(self) -> None:
        """Nothing; see :attr:`renewable`."""

    def _make_root(self, client: _Client) -> None:
        """Make the share's directory, by a mount of the whole filesystem that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._point.parent) as top:
            client.mount(Path(top), "/")
            try:
                Path(top, self.share.directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise ForbiddenError(
                    f"The Ceph client {self.share.user} cannot make claimRoot of {self.share} ({e.strerror}): "
                    "make that directory, or give the client more capabilities."
                ) from e
            finally:
                mount.unmount(top)

    @contextlib.contextmanager
    def _client(self) -> Iterator[_Client]:
        key = _checked(self._key_of(), self.share)
        monitors = [_reached(monitor) for monitor in self.share.monitors]
        found = ",".join(m for m in monitors if m is not None)
        if not found:
            raise UnavailableError(
                f"No monitor of {self.share} answers: correct the parameter monitors, or see that the cluster runs."
            )
        with tempfile.NamedTemporaryFile("w", dir=self._point.parent, prefix="keyring.") as keyring:  # mode 0600
            keyring.write(f"[client.{self.share.user}]\n\tkey = {key}\n")
            keyring.flush()
            yield _Client(self.share, found, keyring.name)

    # users

    def user_for(self, volume: str, path: str) -> tuple[str, str] | None:
        """The Ceph user, and its key, that may use the directory *path* of the filesystem and no other.

        ``None`` where the ``ceph`` command is missing, or the share's own client may make no users. The same user each
        time.
        """
        name = f"fusevol-{volume}"
        caps = ["mon", "allow r", "mds", f"allow rw path={path}", "osd", self._data_caps(path)]
        try:
            with self._client() as client:
                answer = client.command("auth", "get-or-create", f"client.{name}", *caps)
        except (ForbiddenError, FileNotFoundError):
            return None
        (made,) = json.loads(answer)
        return name, str(made["key"])

    def _data_caps(self, path: str) -> str:
        data = self._point / Path(path).relative_to(self.share.directory)
        layout = {}
        for word in ("pool", "pool_namespace"):
            with contextlib.suppress(OSError):
                layout[word] = os.getxattr(data, f"ceph.dir.layout.{word}").decode()
        if layout.get("pool") and layout.get("pool_namespace"):
            return f"allow rw pool={layout['pool']} namespace={layout['pool_namespace']}"
        return "allow rw tag cephfs data=*"

    def forget_user(self, volume: str) -> None:
        """Delete the volume's Ceph user; none is fine. Raises a :class:`FusevolError`."""
        with contextlib.suppress(FileNotFoundError), self._client() as client:
            client.command("auth", "del", f"client.fusevol-{volume}")


class _Answer(NamedTuple):
    status: int
    stdout: str
    stderr: str


class _Client:
    """Runs Ceph's programs as one of its clients."""

    def __init__(self, what: Share, monitors: str, keyring: str) -> None:
        self._share = what
        config = Path(f"/etc/ceph/{what.cluster}.conf")
        self._who = [
            *("-c", str(config) if config.exists() else os.devnull),
            *("-m", monitors),
            *("--id", what.user),
            f"--keyring={keyring}",
            "--admin-socket=",
            "--log-file=",
        ]

    def mount(self, point: Path, root: str) -> None:
        """Mount the directory *root*. Raises a :class:`FusevolError`: :class:`NotFoundError` if there is none."""
        words = [
            "ceph-fuse",
            *self._who,
            *("-r", root),
            f"--client_mount_timeout={PATIENCE}",
            # after it was away for long (the machine slept), it comes back instead of failing for ever
            "--client_reconnect_stale=true",
            "--client_permissions=false",
            "--client_acl_type=posix_acl",
            str(point),
        ]
        try:
            answer = _run(words)
            if answer.status != 0 and "mount failed" not in answer.stderr:
                # a client that is not let in cannot fetch the configuration, and does not say why; this one says it
                answer = _run([*words, "--no-mon-config"])
        except FileNotFoundError as e:
            raise UnavailableError(
                f"{self._share} cannot be mounted without the program ceph-fuse: install it (package ceph-fuse)."
            ) from e
        if answer.status != 0:
            raise self._refusal(answer.stderr)

    def _refusal(self, said: str) -> FusevolError:
        what = self._share
        failed = re.search(r"mount failed with \((\d+)\)", said)
        code = int(failed[1]) if failed else 0
        if code in {1, 13}:
            return ForbiddenError(
                f"{what} refuses the Ceph client {what.user}: correct its key in the Secret "
                f"{what.namespace}/{what.secret}, or its capabilities."
            )
        if code == 2:
            return NotFoundError(f"There is no directory {what.directory} in {what}: make it.")
        if code == 65536:
            return UnavailableError(f"{what} has no MDS that is up: start one, then it is tried again.")
        last = said.strip().splitlines()[-1:] or ["it did not say why"]
        return UnavailableError(f"{what} cannot be mounted ({last[0][-200:]}): see that the cluster is healthy.")

    def command(self, *words: str) -> str:
        """What a command of the cluster answers, as JSON. Raises :class:`ForbiddenError` if the client may not."""
        if shutil.which("ceph") is None:
            raise FileNotFoundError("ceph")
        answer = _run(["ceph", *self._who, f"--connect-timeout={PATIENCE}", "--format=json", *words])
        if answer.status == 0:
            return answer.stdout
        last = (answer.stderr.strip().splitlines() or ["it did not say why"])[-1]
        if answer.status in {1, 13} or "EACCES" in last or "EPERM" in last:
            raise ForbiddenError(f"{self._share} refuses `ceph {words[0]} {words[1]}` to client {self._share.user}.")
        raise UnavailableError(f"{self._share} fails at `ceph {words[0]} {words[1]}` ({last[-200:]}): try again later.")


def _run(words: list[str]) -> _Answer:
    # into files: what goes on in the background would keep a pipe open
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd="/", start_new_session=True
        )
        try:
            status = process.wait(3 * PATIENCE)
        except BaseException as e:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                status = -signal.SIGKILL
            else:
                raise
        out.seek(0)
        err.seek(0)
        return _Answer(status, out.read(), err.read())


def _checked(key: bytes, what: Share) -> str:
    text = key.decode(errors="replace").strip()
    try:
        good = len(base64.b64decode(text, validate=True)) >= _KEY
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise InvalidError(
            f"The Secret {what.namespace}/{what.secret} has no Ceph key: its value is what "
            f"`ceph auth get-key client.{what.user}` prints."
        )
    return text


def _reached(monitor: str) -> str | None:
    """The address of *monitor* with the protocol that it speaks there; ``None`` if it does not answer.

    A client that has to guess the protocol tries both for ever when its key is wrong, and never says that it is.
    """
    host, colon, port = monitor.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = monitor, str(_LEGACY)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE / 2) as s:
            banner = s.recv(_BANNER, socket.MSG_WAITALL)
            address = s.getpeername()[0]
    except (OSError, OverflowError):
        return None
    version = "v2" if banner.startswith(b"ceph v2") else "v1"
    return f"{version}:[{address}]:{port}" if ":" in address else f"{version}:{address}:{port}"
