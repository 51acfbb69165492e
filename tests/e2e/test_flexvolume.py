"""The FlexVolume call-outs with a real agent: what a kubelet does, and what one does by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fusevol.transport import mount
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root


def call(agent: Agent, *arguments: str) -> dict[str, Any]:
    """One call-out: exit code 0, nothing on stderr, one line of JSON on stdout."""
    done = agent.cli("flexvolume", *arguments)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def options(**own: str) -> str:
    """What a kubelet passes, with our own options (``_`` for ``/`` after fusevol)."""
    given = {
        "kubernetes.io/fsType": "",
        "kubernetes.io/readwrite": "rw",
        "kubernetes.io/pvOrVolumeName": "v",
        "kubernetes.io/pod.name": "web-0",
        "kubernetes.io/pod.namespace": "default",
        "kubernetes.io/pod.uid": "0f3c6dd1-0000-4000-8000-000000000000",
    }
    return json.dumps({**given, **{k.replace("fusevol_", "fusevol/"): v for k, v in own.items()}})


def test_by_hand(agent: Agent) -> None:
    """The issue's own line: provisions, mounts, twice in a row too; unmount undoes it, twice too; data stays."""
    target = agent.directory / "some" / "dir"
    wanted = '{"fusevol/claim":"data","fusevol/size":"64Mi"}'
    mounted = [call(agent, "mount", str(target), wanted) for _ in range(2)]
    stat = os.statvfs(target)
    (target / "f").write_text("kept")
    stacked = len(mount.below(target))
    unmounted = [call(agent, "unmount", str(target)) for _ in range(2)]
    gone = not mount.is_mounted(target)
    call(agent, "mount", str(target), wanted)

    assert mounted == unmounted == [{"status": "Success"}] * 2
    assert (stat.f_blocks * stat.f_frsize, stacked, gone) == (64 << 20, 1, True)
    assert (target / "f").read_text() == "kept"
    assert agent.get("pvc", "data")["status"]["capacity"]["storage"] == "64Mi"


def test_claim_of_a_namespace(agent: Agent) -> None:
    """The claim is looked for in the Pod's namespace, unless the options name another."""
    target = str(agent.directory / "mnt")
    call(agent, "mount", target, options(fusevol_claim="data", fusevol_size="1Mi", fusevol_namespace="shop"))

    assert agent.get("pvc", "data", "-n", "shop")["metadata"]["namespace"] == "shop"


def test_claim_that_does_not_exist(agent: Agent) -> None:
    """Without a size nothing is provisioned: a misspelt claim is a Failure, not a new volume."""
    status = call(agent, "mount", str(agent.directory / "mnt"), options(fusevol_claim="dtaa"))

    assert status["status"] == "Failure"
    assert "dtaa" in status["message"]
    assert agent.get("pvc")["items"] == []


def test_empty_dir(agent: Agent) -> None:
    """kind emptyDir: a volume with a hard limit that is gone with its unmount."""
    target = agent.directory / "mnt"
    first = call(agent, "mount", str(target), options(fusevol_kind="emptyDir", fusevol_size="1Mi"))
    (target / "f").write_text("x")
    stat = os.statvfs(target)
    call(agent, "unmount", str(target))
    eventually(lambda: list(agent.pool.glob("volumes/*")) == [], what="the emptyDir is removed from the pool")
    call(agent, "mount", str(target), options(fusevol_kind="emptyDir", fusevol_size="1Mi"))

    assert first == {"status": "Success"}
    assert stat.f_blocks * stat.f_frsize == 1 << 20
    assert list(target.iterdir()) == []


def test_host_path(agent: Agent) -> None:
    """kind hostPath: the host's directory appears at the target; unmount leaves it alone."""
    source, target = agent.directory / "srv", agent.directory / "mnt"
    wanted = options(fusevol_path=str(source), fusevol_type="DirectoryOrCreate")
    first = call(agent, "mount", str(target), wanted)
    (target / "f").write_text("x")
    call(agent, "unmount", str(target))

    assert first == {"status": "Success"}
    assert [p.name for p in source.iterdir()] == ["f"]
    assert not mount.is_mounted(target)


def test_host_path_missing(agent: Agent) -> None:
    """A hostPath of type Directory that is not there is a Failure with Kubernetes' words; nothing is mounted."""
    target = agent.directory / "mnt"
    wanted = options(fusevol_path=str(agent.directory / "missing"), fusevol_type="Directory")
    status = call(agent, "mount", str(target), wanted)

    assert status["status"] == "Failure"
    assert "doesn't exist" in status["message"]
    assert not mount.is_mounted(target)


def test_read_only(agent: Agent) -> None:
    """kubernetes.io/readwrite ro: the mount refuses writes."""
    target = agent.directory / "mnt"
    wanted = json.loads(options(fusevol_claim="data", fusevol_size="1Mi")) | {"kubernetes.io/readwrite": "ro"}
    call(agent, "mount", str(target), json.dumps(wanted))

    with pytest.raises(OSError, match="Read-only"):
        (target / "f").write_text("x")


def test_other_volume_at_the_same_place(agent: Agent) -> None:
    """A target that already has another volume is a Failure; the first stays."""
    target = agent.directory / "mnt"
    call(agent, "mount", str(target), options(fusevol_claim="one", fusevol_size="1Mi"))
    (target / "f").write_text("one")
    status = call(agent, "mount", str(target), options(fusevol_claim="two", fusevol_size="1Mi"))

    assert status["status"] == "Failure"
    assert (target / "f").read_text() == "one"


def test_survives_the_agent(agent: Agent) -> None:
    """After kill -9 and a restart of the agent, unmount still knows the mount."""
    target = agent.directory / "mnt"
    call(agent, "mount", str(target), options(fusevol_claim="data", fusevol_size="1Mi"))
    agent.kill()
    without = call(agent, "unmount", str(target))
    agent.start()
    status = call(agent, "unmount", str(target))

    assert without["status"] == "Failure"
    assert status == {"status": "Success"}
    assert not mount.is_mounted(target)


def test_unmount_of_nothing(agent: Agent, tmp_path: Path) -> None:
    """Unmounting where nothing is mounted, or nothing is at all, is a success."""
    there = call(agent, "unmount", str(tmp_path))
    missing = call(agent, "unmount", str(tmp_path / "missing"))

    assert there == missing == {"status": "Success"}
