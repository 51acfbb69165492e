"""The image, built from the Dockerfile, run as the DaemonSets run it: two generations, while a container writes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.volumes.environment import expand
from fusevol.transport import mount
from tests.support.csi import Plugin, capability
from tests.support.podman import Podman
from tests.support.polling import eventually

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
pytestmark = [pytest.mark.root, pytest.mark.slow]
WRITER = """
import os, sys, time
kept = os.open("/data/kept", os.O_RDWR | os.O_CREAT)
number = 0
while True:
    number += 1
    assert os.pwrite(kept, b"%d" % number, 0)
    os.fsync(kept)
    assert os.pread(kept, 20, 0) == b"%d" % number
    name = f"/data/{number % 7}"
    with open(name, "w") as file:
        file.write(str(number))
    assert open(name).read() == str(number)
    os.rename(name, "/data/renamed")
    os.unlink("/data/renamed")
    with open("/log/steps", "w") as file:
        file.write(str(number))
"""


class Node:
    """A node's directories and the containers on it, as the manifests say."""

    def __init__(self, podman: Podman, directory: Path, image: str) -> None:
        self._podman = podman
        self.directory = directory
        self._image = image
        self.plugin_socket = self.place("/var/lib/kubelet/plugins/fusevol.io/csi.sock")

    def place(self, path: str) -> Path:
        """Where a path of the node is here."""
        return self.directory / path.lstrip("/")

    def start(self, name: str, manifest: str) -> None:
        """The first container of a DaemonSet."""
        (found,) = yaml.safe_load_all((MANIFESTS / manifest).read_text())
        pod = found["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert pod["hostPID"]
        assert container["securityContext"]["privileged"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        words: list[str] = []
        for wanted in container["volumeMounts"]:
            words += self._volume(wanted, volumes[wanted["name"]])
        environment = [
            w for e in container.get("env", []) if "value" in e for w in ("--env", f"{e['name']}={e['value']}")
        ]
        command = [expand(word, {}) for word in container["command"]]
        self._podman.run(
            "run", "--detach", "--name", name, "--pid", "host", "--network", "host", "--privileged", *environment,
            "--entrypoint", command[0], *words, self._image, *command[1:],
        )  # fmt: skip

    def _volume(self, wanted: dict[str, Any], volume: dict[str, Any]) -> list[str]:
        if "configMap" in volume:
            (config,) = yaml.safe_load_all((MANIFESTS / "configmap.yaml").read_text())
            source = self.directory / "config"
            source.mkdir(exist_ok=True)
            for name, text in config["data"].items():
                (source / name).write_text(text)
        else:
            path = volume["hostPath"]["path"]
            source = Path(path) if path.startswith("/dev/") else self.place(path)
            if not path.startswith("/dev/"):
                source.mkdir(parents=True, exist_ok=True)
        how = {"Bidirectional": "rshared", "HostToContainer": "rslave"}.get(
            wanted.get("mountPropagation", ""), "rprivate"
        )
        return ["--volume", f"{source}:{wanted['mountPath']}:{how}{',ro' if wanted.get('readOnly') else ''}"]

    def keeps(self, name: str) -> bool:
        """Whether the readiness probe of a keeper's container succeeds."""
        return self._podman.run("exec", name, "test", "-e", "/tmp/keeping", check=False).returncode == 0

    def answers(self, name: str) -> bool:
        """Whether the liveness probe of an agent's container succeeds."""
        return self._podman.run("exec", name, "fusevol", "version", check=False).returncode == 0

    def end(self, name: str) -> None:
        """As a Pod ends."""
        self._podman.run("stop", "--time", "20", name)
        self._podman.run("rm", "--force", name)

    def in_container(self, name: str) -> set[int]:
        """The processes in a container's cgroup."""
        pid = self._podman.pid(name)
        group = Path(f"/proc/{pid}/cgroup").read_text()
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if (entry / "cgroup").read_text() == group:
                        found.add(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture
def node(workdir: Path) -> Iterator[tuple[Node, Podman]]:
    """A node with the image, and no container yet."""
    for tool in ("buildah", "debootstrap"):
        if subprocess.run(["which", tool], check=False, capture_output=True).returncode != 0:
            pytest.skip(f"{tool} is not installed: the image cannot be built")
    podman = Podman(workdir / "podman")
    directory = workdir / "node"
    directory.mkdir()
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "--make-rshared", directory], check=True)
    try:
        built = subprocess.run(
            [ROOT / "scripts" / "image.sh", podman.directory], check=False, capture_output=True, text=True, timeout=600
        )
        assert built.returncode == 0, built.stderr
        yield Node(podman, directory, built.stdout.split()[-1]), podman
    finally:
        podman.close()
        for found in reversed(mount.below(directory)):
            mount.unmount(found.mountpoint, lazy=True)


def test_two_generations(node: tuple[Node, Podman], workdir: Path) -> None:
    """The built image is a CSI driver; and agent and keeper are replaced by others, with no call of a writing container
    failing."""
    machine, podman = node
    machine.start("keeper1", "keeper.yaml")
    eventually(lambda: machine.keeps("keeper1"), 30.0, what="the keeper keeps")
    machine.start("agent1", "daemonset.yaml")
    eventually(lambda: machine.answers("agent1"), 30.0, what="the agent answers", interval=0.2)
    plugin = Plugin(machine.plugin_socket)
    plugin.call("NodeGetInfo")
    volume = plugin.create("data", 64 << 20)
    staging = "/var/lib/kubelet/plugins/kubernetes.io/csi/fusevol.io/1/globalmount"
    target = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv/mount"
    machine.place(staging).mkdir(parents=True)
    machine.place(target).parent.mkdir(parents=True)
    how = capability()
    plugin.call("NodeStageVolume", volume_id=volume, staging_target_path=staging, volume_capability=how)
    plugin.call(
        "NodePublishVolume", volume_id=volume, staging_target_path=staging, target_path=target, volume_capability=how
    )
    plugin.close()
    log = workdir / "log"
    log.mkdir()
    (log / "writer.py").write_text(WRITER)
    podman.run(
        "run", "--detach", "--name", "writer", "--entrypoint", "/opt/fusevol/bin/python",
        "--volume", f"{machine.place(target)}:/data:rslave", "--volume", f"{log}:/log",
        "localhost/fusevol:dev", "/log/writer.py",
    )  # fmt: skip

    def goes_on(more: int = 50) -> None:
        steps = log / "steps"
        before = int((steps.read_text() if steps.exists() else "") or "0")

        def further() -> bool:
            assert podman.inspect("writer")["State"]["Running"], podman.run("logs", "writer").stderr
            return int(steps.read_text() or "0") > before + more

        eventually(further, 30.0, what="the writer goes on", interval=0.1)

    eventually((log / "steps").exists, 20.0, what="the writer begins")
    goes_on()
    machine.start("keeper2", "keeper.yaml")
    eventually(lambda: machine.keeps("keeper2"), 60.0, what="the next keeper has taken over", interval=0.2)
    goes_on()
    machine.end("keeper1")
    goes_on()
    machine.end("agent1")
    goes_on()
    machine.start("agent2", "daemonset.yaml")
    eventually(lambda: machine.answers("agent2"), 30.0, what="the next agent answers", interval=0.2)
    goes_on()
    servers = [pid for pid in machine.in_container("keeper2") if _name(pid) == "fusevol-server"]
    plugin = Plugin(machine.plugin_socket)
    podman.run("rm", "--force", "--time", "0", "writer")
    plugin.call("NodeUnpublishVolume", volume_id=volume, target_path=target)
    plugin.call("NodeUnstageVolume", volume_id=volume, staging_target_path=staging)
    plugin.call("DeleteVolume", volume_id=volume)
    plugin.close()
    size = int(podman.run("image", "inspect", "--format", "{{.Size}}", "localhost/fusevol:dev").stdout)
    print(f"the image has {size >> 20} MiB")

    assert len(servers) == 1
    assert not [m for m in mount.below(machine.directory) if m.is_fuse]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
