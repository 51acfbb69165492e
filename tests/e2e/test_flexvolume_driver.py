"""The FlexVolume driver that lands on a cluster's nodes, called as a kubelet calls it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusevol.transport import mount
from tests.e2e.test_flexvolume import options
from tests.support.agent import Agent

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
PATIENCE = 100.0
"""Seconds until a call-out must have answered: a kubelet knows no end, so a driver must."""

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def driver(agent: Agent) -> Path:
    """The script of the config map, in a plugin directory. What differs: where this agent has its runtime files, and
    what its command line is called."""
    objects = yaml.safe_load((ROOT / "manifests" / "configmap.yaml").read_text())
    place = agent.directory / "fusevol.io~fusevol"
    place.mkdir()
    script = place / "fusevol"
    text = objects["data"]["flexvolume-driver.sh"].replace("/run/fusevol/", f"{agent.run_dir}/")
    script.write_text(text.replace("'fusevol'", "'agent.cli.main'"))
    script.chmod(0o755)
    (agent.run_dir / "agent.pid").write_text(f"{agent.pid}\n")  # as the DaemonSet's command does
    return script


@pytest.fixture
def call(agent: Agent, driver: Path) -> Call:
    """One call-out: exit code 0, nothing on stderr, one line of strict JSON that names a status."""
    binaries = ROOT / ".venv" / "bin"
    environment = {"PATH": f"{binaries}:{os.environ['PATH']}", "FUSEVOL_SOCKET": str(agent.socket)}
    if "FUSEVOL_TEST_RUN" in os.environ:
        environment["FUSEVOL_TEST_RUN"] = os.environ["FUSEVOL_TEST_RUN"]

    def out(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [driver, *arguments],
            check=False,
            capture_output=True,
            env=environment,
            cwd="/",
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b"\n") == 1
        assert done.stdout.isascii(), "a kubelet logs it"
        status: dict[str, Any] = json.loads(done.stdout, parse_constant=_no_number)
        assert status["status"] in {"Success", "Failure", "Not supported"}
        return status

    return out


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


SUCCESS = {"status": "Success"}
UNSUPPORTED = {"status": "Not supported"}


def test_the_life_of_a_volume(agent: Agent, call: Call) -> None:
    """Every call-out in a kubelet's order, and once more each, as after a kubelet's restart."""
    wanted = options(fusevol_claim="data", fusevol_size="16Mi")
    target = str(agent.directory / "pods" / "uid" / "volumes" / "fusevol.io~fusevol" / "v")
    assert call("unmount", target) == SUCCESS  # out of order: nothing is there yet
    for _ in range(2):
        begun = call("init")
        assert (begun["status"], begun["capabilities"]["attach"]) == ("Success", False)
        assert call("getvolumename", wanted) == {**SUCCESS, "volumeName": "data"}
        for unused in (
            ("attach", wanted, "node"),
            ("waitforattach", "", wanted),
            ("isattached", wanted, "node"),
            ("mountdevice", target, "", wanted),
            ("expandvolume", wanted, "", "33554432", "16777216"),
            ("expandfs", wanted, "", target, "33554432", "16777216"),
            ("unmountdevice", target),
            ("detach", "v", "node"),
            ("of-a-later-kubelet",),
        ):
            assert call(*unused) == UNSUPPORTED
        assert call("mount", target, wanted) == call("mount", target, wanted) == SUCCESS
        Path(target, "f").write_text("kept")
        assert len(mount.below(Path(target))) == 1
    for _ in range(2):
        assert call("unmount", target) == SUCCESS
    assert not mount.is_mounted(target)
    assert call("mount", target, wanted) == SUCCESS
    assert Path(target, "f").read_text() == "kept"


def test_fifty_at_once(agent: Agent, call: Call) -> None:
    """50 Pods of one node start and end together, each twice asked for, as a kubelet with workers does."""
    targets = [agent.directory / "pods" / f"{n}" for n in range(50)]

    def begin(number: int) -> list[dict[str, Any]]:
        wanted = options(fusevol_claim=f"data-{number}", fusevol_size="1Mi")
        return [call("mount", str(targets[number]), wanted) for _ in range(2)]

    def end(number: int) -> list[dict[str, Any]]:
        return [call("unmount", str(targets[number])) for _ in range(2)]

    with ThreadPoolExecutor(50) as pool:
        begun = list(pool.map(begin, range(50)))
        sizes = {os.statvfs(target).f_blocks * os.statvfs(target).f_frsize for target in targets}
        names = {str(c["metadata"]["name"]) for c in agent.get("pvc")["items"]}
        ended = list(pool.map(end, range(50)))

    assert begun == ended == [[SUCCESS] * 2] * 50
    assert (sizes, names) == ({1 << 20}, {f"data-{n}" for n in range(50)})
    assert not any(mount.is_mounted(str(target)) for target in targets)


def test_a_dead_agent(agent: Agent, call: Call) -> None:
    """Failure in a sentence while it is away (but for init, which a kubelet asks once); afterwards all goes on."""
    wanted = options(fusevol_claim="data", fusevol_size="1Mi")
    target, late = str(agent.directory / "a"), str(agent.directory / "b")
    assert call("mount", target, wanted) == SUCCESS
    agent.kill()
    begun = call("init")
    said = [call("getvolumename", wanted), call("mount", late, wanted), call("unmount", target)]
    seen = os.path.lexists(late)
    agent.start()
    (agent.run_dir / "agent.pid").write_text(f"{agent.pid}\n")

    assert begun["status"] == "Success"
    assert {s["status"] for s in said} == {"Failure"}
    assert all("agent of this node does not run" in s["message"] for s in said)
    assert not seen
    assert call("unmount", target) == call("mount", late, wanted) == SUCCESS


DEEP = '{"a":' * 20_000 + "1" + "}" * 20_000  # an argument has 128 KiB at most
VALUES = [
    "../x", "a/b", "/etc", "..", ".", "a\nb", 'a"b', "a'b", "$(touch /tmp/owned)", "`touch /tmp/owned`", ";reboot",
    "a\0b", "\u001b[31mred", "--help", "-n", "A", "a" * 300, "x" * (100 << 10), "\u202eevil", "ä", "a b", "%s%n",
    "a\\b",
]  # fmt: skip


@pytest.mark.parametrize("option", ["claim", "namespace", "pool", "size", "kind", "path"])
def test_hostile_values(agent: Agent, call: Call, option: str) -> None:
    """A name from outside is never a path, a command or an option: it is refused in one line, and nothing is made."""
    target = agent.directory / "mnt"
    before = _all_below(agent)
    accepted = []
    for value in VALUES:
        wanted = {"fusevol_claim": "data", "fusevol_size": "1Mi", f"fusevol_{option}": value}
        said = call("mount", str(target), options(**({"fusevol_path": value} if option == "path" else wanted)))
        if said["status"] != "Failure":
            accepted.append(value)
            assert call("unmount", str(target)) == SUCCESS

    assert accepted == (["/etc"] if option == "path" else [])  # a path of the node is what a hostPath is
    assert _all_below(agent) == before
    assert not mount.is_mounted(str(target))
    assert not os.path.lexists("/tmp/owned")


TEXTS = [
    "", "{", "null", "[]", "1", '"x"', '{"fusevol/claim":{"a":1}}', '{"fusevol/claim":null}', DEEP, "\udcff", "NaN",
    "$(touch /tmp/owned)", "'; touch /tmp/owned; '", "x" * (100 << 10), '{"fusevol/claim":"a","fusevol/size":"1Mi"}x',
]  # fmt: skip


def test_hostile_options(agent: Agent, call: Call) -> None:
    """What is no object of strings is refused."""
    said = [call("mount", str(agent.directory / "mnt"), text) for text in TEXTS]

    assert [s["status"] for s in said] == ["Failure"] * len(TEXTS)
    assert agent.get("pvc")["items"] == []
    assert not os.path.lexists("/tmp/owned")


def test_hostile_directories(agent: Agent, call: Call) -> None:
    """Nothing is mounted where nobody should mount, and nothing is unmounted that is not ours."""
    words = [
        *(
            "",
            "mnt",
            "./mnt",
            "/../etc",
            "{}/../../etc",
            "$(touch /tmp/owned)",
            "-x",
            "/",
            "/proc/1",
            "/sys/fs",
            "/dev",
        ),
        *("{}/s/pools", "{}/s/pools/default/volumes/x", "{}/s", "{}/r/mnt", "{}"),
    ]
    before = Path("/proc/self/mountinfo").read_text()
    for directory in (word.format(agent.directory) for word in words):
        said = call("mount", directory, options(fusevol_claim="data", fusevol_size="1Mi"))
        call("unmount", directory)
        assert said["status"] == "Failure", directory

    assert Path("/proc/self/mountinfo").read_text() == before
    assert not os.path.lexists("/tmp/owned")


def _all_below(agent: Agent) -> tuple[list[str], list[str]]:
    """The claims, and the names in the pool's rooms."""
    rooms = (agent.pool / room for room in ("volumes", "snapshots", "trash", "tmp"))
    return (
        [str(c["metadata"]["name"]) for c in agent.get("pvc", "-A")["items"]],
        sorted(str(p) for room in rooms for p in (room.iterdir() if room.exists() else ())),
    )
