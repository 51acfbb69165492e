"""The capabilities that the manifests leave to the agent: enough for all that it does, and not one too many."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
import yaml

from fusevol.server.privileges import KEPT
from tests.conftest import StartServer
from tests.support import api
from tests.support.agent import Agent
from tests.support.logs import LogCheck
from tests.support.polling import eventually

pytestmark = pytest.mark.root

_MANIFESTS = Path(__file__).parents[2] / "manifests"
_USER = 1234
_BY_HANDLE = [
    sys.executable, "-c",
    ("import os; from fusevol.fs import _libc; fd = os.open('/usr', os.O_PATH)\n"
    "try: _libc.open_handle(os.open('/usr', os.O_RDONLY), _libc.file_handle(fd), os.O_PATH)\n"
    "except PermissionError: raise SystemExit(1)"),
]  # fmt: skip
"""A program that opens an inode by its handle."""


def listed() -> list[str]:
    """The capabilities in the DaemonSet, as setpriv(1) is told them."""
    agent = yaml.safe_load((_MANIFESTS / "daemonset.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    found = re.search(r"--bounding-set=-all,(\S+)", agent["command"][-1])
    assert found is not None
    return [word.removeprefix("+") for word in found[1].split(",")]


def bounded(capabilities: Collection[str]) -> list[str]:
    """The words before a command that can have no other *capabilities*."""
    return ["setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(f'+{c}' for c in capabilities)}"]


class Bounded(Agent):
    """An agent that can have what is listed, as the DaemonSet's command sees to it."""

    def command(self, *arguments: str) -> list[str]:
        """With that before it."""
        return [*bounded(listed()), *super().command(*arguments)]


def as_user(work: Callable[[], None]) -> None:
    """Do *work* as somebody who is not root. Raises ``AssertionError`` if it fails."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(_USER, _USER, _USER)
            os.setresuid(_USER, _USER, _USER)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def owners(volume: Path) -> None:
    """Root gives a file away."""
    (volume / "given").touch()
    os.chown(volume / "given", _USER, _USER)
    assert (volume / "given").stat().st_uid == _USER


def root_may_all(volume: Path) -> None:
    """Root changes what is another user's, and closed to all."""
    as_user(lambda: (volume / "closed").mkdir(0o500))
    (volume / "closed" / "f").touch()
    assert (volume / "closed" / "f").exists()


def root_owns_all(volume: Path) -> None:
    """Root changes the mode of a file that is another user's."""
    as_user(lambda: (volume / "theirs").touch(0o644))
    (volume / "theirs").chmod(0o600)
    assert stat.S_IMODE((volume / "theirs").stat().st_mode) == 0o600


def group_bit(volume: Path) -> None:
    """The setgid bit of a file of another group stays when root changes the mode."""
    (volume / "group").mkdir()
    os.chown(volume / "group", 0, _USER)
    (volume / "group").chmod(0o2770)
    assert stat.S_IMODE((volume / "group").stat().st_mode) == 0o2770


def owner_of_new(volume: Path) -> None:
    """What a user makes is the user's."""
    as_user((volume / "new").touch)
    assert (volume / "new").stat().st_uid == _USER


def group_of_new(volume: Path) -> None:
    """And the user's group's."""
    as_user((volume / "new").touch)
    assert (volume / "new").stat().st_gid == _USER


def file_capabilities(volume: Path) -> None:
    """Root gives a program a capability."""
    (volume / "program").touch(0o755)
    os.setxattr(volume / "program", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
    assert os.getxattr(volume / "program", "security.capability")


USES: Mapping[str, Callable[[Path], None]] = {
    "chown": owners,
    "dac_override": root_may_all,
    "fowner": root_owns_all,
    "fsetid": group_bit,
    "setgid": group_of_new,
    "setuid": owner_of_new,
    "setfcap": file_capabilities,
}
"""What in a volume takes which capability."""


def score(pid: int) -> int:
    """How readily the kernel ends a process when memory is short."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def capabilities(pid: int | str) -> int:
    """The effective ones of a process, as bits."""
    found = re.search(r"CapEff:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1], 16)


def served(agent: Agent) -> Path:
    """A claim of 8 MiB with the agent's quota, mounted."""
    agent.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, "
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}}"
    )
    target = agent.directory / "t"
    api.mount(agent, "c", target)
    return target


def test_what_is_listed_is_enough(workdir: Path, logs: LogCheck) -> None:
    """With the manifest's capabilities, volumes are mounted, limited, bound, used in every way, and end."""
    workdir.chmod(0o755)
    agent = Bounded(workdir, logs)
    try:
        agent.start()
        volume = served(agent)
        with pytest.raises(OSError, match="No space left"):
            (volume / "large").write_bytes(b"x" * (9 << 20))
        (volume / "large").unlink()
        for use in USES.values():
            use(volume)
            subprocess.run(["rm", "-rf", *volume.iterdir()], check=True, timeout=20)
        (server,) = agent.servers()
        resists = score(server)
        agent.kill()
        agent.start()
        again = agent.servers() == [server]
        own, effective = capabilities("self"), capabilities(agent.pid)
        agent.ok("umount", str(volume))
        agent.ok("delete", "pvc", "c")
        eventually(lambda: not os.listdir(agent.pool / "volumes"), what="the volume is gone")
    finally:
        agent.close()

    assert again
    assert resists == (-900 if own >> 24 & 1 else 0)  # CAP_SYS_RESOURCE: this machine's root may not have it itself
    assert effective.bit_count() == len(listed()) - (not own >> 24 & 1)


def test_none_is_listed_that_is_not_needed(workdir: Path, volume_server: StartServer) -> None:
    """Without any one of them something fails that is named here."""
    workdir.chmod(0o755)
    works: set[str] = set()
    for name in listed():
        left = bounded(set(listed()) - {name})
        if name == "dac_read_search":  # an inode is not found by its handle: no server can go on in another one's place
            assert subprocess.run([*left, *_BY_HANDLE], check=False, timeout=20).returncode == 1
            assert subprocess.run([*bounded(listed()), *_BY_HANDLE], check=False, timeout=20).returncode == 0
            continue
        server = volume_server(start=False, quota="ledger", command=left)
        if server.launch() != "READY":
            assert name == "sys_admin", server.ready_lines
            continue
        server.source.chmod(0o777)
        if name == "sys_resource":
            assert score(server.pid) >= 0
        elif name in USES:
            try:
                USES[name](server.mountpoint)
                works.add(name)
            except (AssertionError, OSError) as e:
                print(f"Without {name}: {e}")

    assert works == set()
    # without the last one, rings count against a limit: tests/faults/test_io_uring_refused.py
    assert set(listed()) - set(USES) == {"dac_read_search", "sys_admin", "sys_resource", "ipc_lock"}


def test_the_unit_lists_the_same() -> None:
    """systemd's unit leaves the agent what the DaemonSet does, and that is what a volume server wants."""
    unit = (_MANIFESTS / "systemd" / "fusevol.service").read_text()
    found = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)

    assert found is not None
    assert {word.removeprefix("CAP_").lower() for word in found[1].split()} == set(listed())
    assert set(listed()) - {word.lower() for word in KEPT} == {"sys_resource"}
    assert {word.lower() for word in KEPT} - set(listed()) == {"mknod"}  # no claim may have devices
