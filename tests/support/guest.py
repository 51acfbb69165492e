"""A guest: this machine's files under another kernel, in qemu, for what the kernel here does not have.

The guest sees the host's root through virtiofs and only reads it; an overlay in memory takes what it writes, so that
nothing of the host changes but one shared directory, which has the same path on both sides. Kernels are Debian's
(``guest_kernel.py``); qemu emulates the processor, so that it runs wherever a process runs, several times slower
than the host. By hand: ``make guest KERNEL=6.12 ARGS="tests/pools -q"``.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from tests.support.guest_kernel import kernel

TREE = Path(__file__).parents[2]
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
INSIDE = "FUSEVOL_GUEST"
"""Environment variable that a guest has, and no host: its kernel's series."""
POLL = 0.05
"""Seconds."""
_VISIBLE = 40
"""Lines of the console that a failure shows."""


class Disk(NamedTuple):
    """A raw image that the guest has as ``/dev/vda``, ``/dev/vdb``, …, in order."""

    image: Path
    cache: Literal["writethrough", "none", "directsync", "writeback", "unsafe"] = "writethrough"
    """As qemu names it. With ``writethrough`` and ``directsync`` a write that was answered is on the image, so that
    :meth:`Guest.power_loss` loses exactly what the guest had in its own memory. With ``writeback`` and ``none`` the
    guest is told that the disk has a volatile cache; a dead qemu loses nothing of that, as it is the host's memory.
    """


class GuestError(Exception):
    """A guest that did not do what it was started for; the message ends with its console's last lines."""


class Guest:
    """One boot of a kernel. Use it as a context manager, so that its processes end.

    *directory* is shared: the guest's command may read and write there, beside the files of this class. It is not
    removed. The thread that starts the guest must outlive it: the processes die with that thread.
    """

    def __init__(
        self, series: str, directory: Path, *, disks: Sequence[Disk] = (), memory_mib: int = 3072, cpus: int = 2
    ) -> None:
        self.series = series
        self.kernel = kernel(series)
        self.directory = directory.resolve()
        self.output = self.directory / "output"
        self.console = self.directory / "console"
        self._status = self.directory / "status"
        self._disks = disks
        self._memory = memory_mib
        self._cpus = cpus
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: Path | None = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it runs."""
        self.power_loss()

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Boot, and run *command* in the checkout as root. Returns at once.

        The environment is a small one of its own, and *environment*. After an end it can be started again: its disks
        are as they were left.
        """
        assert not self._processes, "it runs already"
        for file in (self.output, self.console, self._status):
            file.unlink(missing_ok=True)
        (self.directory / "command").write_text(_script(self.series, command, environment or {}))
        sockets = self._sockets = Path(tempfile.mkdtemp(prefix="g"))
        try:
            for tag, path in (("root", Path("/")), ("out", self.directory)):
                # bound and listening before anybody is started: qemu asks once, and may be the quicker one
                with socket.socket(socket.AF_UNIX) as door:
                    door.bind(str(sockets / tag))
                    door.listen(1)
                    self._spawn(
                        f"virtiofsd-{tag}", _virtiofsd(door.fileno(), path, cached=tag == "root"), door.fileno()
                    )
            self._spawn("qemu", self._qemu(sockets))
        except BaseException:
            self.power_loss()
            raise

    def _spawn(self, name: str, command: list[str], *inherited: int) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherited,
                )
            )

    def _qemu(self, sockets: Path) -> list[str]:
        devices = []
        for tag in ("root", "out"):
            devices += ["-chardev", f"socket,id={tag},path={sockets / tag}"]
            devices += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        for number, disk in enumerate(self._disks):
            devices += ["-drive", f"file={disk.image},format=raw,if=none,id=disk{number},cache={disk.cache}"]
            devices += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(self._cpus),
            "-machine", "pc,memory-backend=memory", "-m", f"{self._memory}M",
            "-object", f"memory-backend-memfd,id=memory,size={self._memory}M,share=on",
            "-kernel", str(self.kernel.image), "-initrd", str(self.kernel.initramfs),
            "-append", f"console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off out={self.directory}",
            "-serial", f"file:{self.console}", *devices,
        ]  # fmt: skip

    def running(self) -> bool:
        """Whether the guest has power."""
        return bool(self._processes) and self._processes[-1].poll() is None

    def wait(self, seconds: float) -> int:
        """The exit status of the command. Raises :class:`GuestError` if the guest ends without one, or not in time."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                raise GuestError(f"The guest had not ended after {seconds:g} s.{self.last_words()}")
            time.sleep(POLL)
        self.power_loss()
        try:
            return int(self._status.read_text())
        except (FileNotFoundError, ValueError) as e:
            raise GuestError(f"The guest ended before its command did.{self.last_words()}") from e

    def power_loss(self) -> None:
        """Take its power away, between any two instructions: its memory is lost, its disks are as they are."""
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait(20)
        self._processes.clear()
        if self._sockets is not None:
            shutil.rmtree(self._sockets)
            self._sockets = None

    def last_words(self) -> str:
        """The end of the console and of what qemu said, for a message."""
        said = []
        for file in (self.console, *sorted(self.directory.glob("*.log"))):
            lines = file.read_text(errors="replace").splitlines()[-_VISIBLE:] if file.exists() else []
            if lines:
                said.append("\n".join((f"\n--- {file}", *lines)))
        return "".join(said)


def _virtiofsd(door: int, path: Path, *, cached: bool) -> list[str]:
    cache = "always" if cached else "none"
    options = ("sandbox=chroot", f"source={path}", f"cache={cache}", "log_level=warn")
    given = [word for option in options for word in ("-o", option)]
    return [str(VIRTIOFSD), f"--fd={door}", "--thread-pool-size=0", *given]


def _script(series: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TMPDIR": "/run/fv",
        "PYTHONDONTWRITEBYTECODE": "1",
        INSIDE: series,
        **environment,
    }
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    return f"umask 022\n{exports}\nmkdir -m 755 $TMPDIR\ncd {shlex.quote(str(TREE))} || exit\n{shlex.join(command)}\n"


def main() -> int:
    """Run a command in a guest, show what it writes as it comes, and end with its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.guest", description=main.__doc__)
    parser.add_argument("--disk", action="append", default=[], metavar="FILE[:CACHE]", help="a raw image, kept")
    parser.add_argument("--seconds", type=float, default=600, help="after which it is given up")
    parser.add_argument("kernel", help="its series, as 6.12")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    words = [file.partition(":") for file in given.disk]
    disks = [Disk(Path(file).resolve(), cache or "writethrough") for file, _, cache in words]
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        try:
            with Guest(given.kernel, Path(directory), disks=disks) as guest:
                guest.start(given.command)
                _follow(guest, given.seconds)
                return guest.wait(0)
        except (GuestError, RuntimeError) as e:
            print(e, file=sys.stderr)
            return 1


def _follow(guest: Guest, seconds: float) -> None:
    end = time.monotonic() + seconds
    shown = 0
    running = True
    while running and time.monotonic() < end:
        running = guest.running()  # asked first: what it wrote before its end must be seen
        if guest.output.exists():
            with guest.output.open("rb") as file:
                file.seek(shown)
                new = file.read()
            shown += len(new)
            sys.stdout.buffer.write(new)
            sys.stdout.flush()
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())
