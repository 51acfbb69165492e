"""The FlexVolume call-outs without an agent: status lines, exit codes, options (reference sections 7.2-7.4)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import flexvolume
from agent.cli.main import main
from fusevol.errors import InvalidError


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    """The one JSON line of a call-out; fails on anything else on either stream, or another exit code than 0."""
    code = main(["flexvolume", *argv])
    out, err = capsys.readouterr()
    assert (code, err, out.count("\n")) == (0, "", 1)
    status: dict[str, object] = json.loads(out)
    return status


@pytest.fixture(autouse=True)
def no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket path on which nobody listens."""
    path = tmp_path / "agent.sock"
    monkeypatch.setenv("FUSEVOL_SOCKET", str(path))
    return path


def test_init(capsys: pytest.CaptureFixture[str]) -> None:
    """``init`` succeeds without an agent and says that nothing is to be attached."""
    status = answer(capsys, "init")

    assert status["status"] == "Success"
    assert isinstance(status["capabilities"], dict)
    assert status["capabilities"]["attach"] is False


@pytest.mark.parametrize(
    "argv",
    [
        ("attach", "{}", "node"),
        ("waitforattach", "/dev/x", "{}"),
        ("isattached", "{}", "node"),
        ("detach", "volume", "node"),
        ("mountdevice", "/mnt", "/dev/x", "{}"),
        ("unmountdevice", "/mnt"),
        ("expandvolume", "{}", "/dev/x", "2", "1"),
        ("expandfs", "{}", "/dev/x", "/mnt", "2", "1"),
        ("frobnicate",),
    ],
    ids=lambda argv: argv[0],
)
def test_not_supported(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    """A call-out that makes no sense without a device, or is unknown, is answered with exactly `Not supported`."""
    assert answer(capsys, *argv) == {"status": "Not supported"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "name is missing"),
        (("init", "x"), "init was called with 1 arguments"),
        (("mount", "/mnt/x"), "`mount DIR JSON`"),
        (("mount", "relative", '{"fusevol/claim":"a"}'), "absolute path"),
        (("mount", "/mnt/../etc", '{"fusevol/claim":"a"}'), "absolute path"),
        (("unmount", "mnt"), "absolute path"),
        (("mount", "/mnt/x", "{"), "not JSON"),
        (("mount", "/mnt/x", "[]"), "not a JSON object"),
        (("mount", "/mnt/x", '{"fusevol/claim":{"a":1}}'), "not a string"),
        (("mount", "/mnt/x", '{"fusevol/claim":true}'), "not a string"),
        (("mount", "/mnt/x", "{}"), "do not say which volume"),
        (("mount", "/mnt/x", '{"kubernetes.io/pvOrVolumeName":"v"}'), 'of "v" do not say'),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","fusevol/sise":"1Gi"}'), 'no option "fusevol/sise"'),
        (("mount", "/mnt/x", '{"fusevol/kind":"nfs"}'), "one of persistent, emptyDir, hostPath"),
        (("mount", "/mnt/x", '{"fusevol/kind":"hostPath"}'), "fusevol/path"),
        (("mount", "/mnt/x", '{"fusevol/kind":"persistent"}'), "fusevol/claim"),
        (("mount", "/mnt/x", '{"fusevol/kind":"emptyDir","fusevol/path":"/x"}'), "does not fit"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","kubernetes.io/readwrite":"yes"}'), "rw or ro"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","fusevol/pool":"fast"}'), "does not fit"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","fusevol/size":"10GB"}'), "fusevol/size"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","fusevol/size":"0"}'), "fusevol/size"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a","fusevol/size":"-1Gi"}'), "fusevol/size"),
        (("mount", "/mnt/x", '{"fusevol/claim":"a"}'), "No agent answers"),
        (("getvolumename", "{}"), "no name"),
    ],
)
def test_failure(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    """Whatever is wrong: status Failure with one sentence, exit code 0 (so that no kubelet logs secrets)."""
    status = answer(capsys, *argv)

    assert status["status"] == "Failure"
    assert says in str(status["message"])
    assert "\n" not in str(status["message"])


def test_unmount_without_agent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing mounted, no agent: still a success, since there is nothing to undo."""
    assert answer(capsys, "unmount", str(tmp_path)) == {"status": "Success"}


def test_bug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is a Failure too, not a traceback that no kubelet can parse."""
    monkeypatch.setattr(flexvolume, "CAPABILITIES", property())
    monkeypatch.setattr(flexvolume, "success", lambda **_: 1 / 0)

    assert answer(capsys, "init")["status"] == "Failure"


def test_volume_name(capsys: pytest.CaptureFixture[str]) -> None:
    """``getvolumename`` prefers the claim to the name that the kubelet made up."""
    options = '{"fusevol/claim":"data","kubernetes.io/pvOrVolumeName":"pv-1"}'

    assert answer(capsys, "getvolumename", options) == {"status": "Success", "volumeName": "data"}


KUBELET = {
    "kubernetes.io/fsType": "",
    "kubernetes.io/readwrite": "ro",
    "kubernetes.io/pvOrVolumeName": "scratch",
    "kubernetes.io/pod.name": "web-0",
    "kubernetes.io/pod.namespace": "shop",
    "kubernetes.io/pod.UID": "0f3c",
    "kubernetes.io/serviceAccount.name": "default",
    "kubernetes.io/mounterArgs.FsGroup": "2000",
    "kubernetes.io/secret/token": "czNjcjN0",
    "note": "kept for people",
}


@pytest.mark.parametrize(
    ("own", "kind", "options"),
    [
        (
            {"fusevol/claim": "data", "fusevol/size": "64Mi"},
            "persistent",
            {"claim": "data", "size": "64Mi", "namespace": "shop"},
        ),
        ({"fusevol/kind": "persistent"}, "persistent", {"claim": "scratch", "namespace": "shop"}),
        ({"fusevol/claim": "data", "fusevol/namespace": "x"}, "persistent", {"claim": "data", "namespace": "x"}),
        (
            {"fusevol/claim": "data", "fusevol/class": "slow"},
            "persistent",
            {"claim": "data", "storageClass": "slow", "namespace": "shop"},
        ),
        ({"fusevol/kind": "emptyDir", "fusevol/size": "1Gi"}, "emptyDir", {"size": "1Gi"}),
        ({"fusevol/path": "/srv", "fusevol/type": "Directory"}, "hostPath", {"path": "/srv", "type": "Directory"}),
    ],
)
def test_request(own: dict[str, str], kind: str, options: dict[str, object]) -> None:
    """The options become the agent's request; what others put in is left out, secrets above all."""
    expected = {"kind": kind, "options": {**options, "readOnly": True, "pod": "0f3c"}}

    assert flexvolume.ephemeral({**KUBELET, **own}) == expected


def test_numbers_are_text() -> None:
    """By hand one writes a number without quotes; it counts as its text."""
    assert flexvolume.options_of('{"fusevol/size": 1024}') == {"fusevol/size": "1024"}


def test_nested_options_are_refused() -> None:
    """FlexVolume options are flat; a list is no text."""
    with pytest.raises(InvalidError, match='"a" is not a string'):
        flexvolume.options_of('{"a": []}')
