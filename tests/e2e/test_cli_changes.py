"""Commands that look at objects and change them, with a real agent: sort, diff, edit, resize, top."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support import api
from tests.support.agent import Agent
from tests.support.polling import eventually

pytestmark = pytest.mark.root

GROWING = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: growing}
provisioner: fusevol.io/fusevol
allowVolumeExpansion: true
"""
CLAIM = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: data
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: growing
  resources:
    requests:
      storage: 8Mi
"""
WORD = """\
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {key: %s, other: same}
"""


def bound(agent: Agent) -> None:
    """Make the claim and wait until it is bound and quiet."""
    agent.apply(GROWING + "---\n" + CLAIM)
    eventually(lambda: api.is_bound(agent, "data"), 20.0)


def editor(agent: Agent, script: str) -> None:
    """Have ``fusevol edit`` call a shell script, with the file as its argument and its calls counted in ``calls``."""
    path = agent.directory / "editor"
    path.write_text(f'#!/bin/sh\necho x >> "{agent.directory}/calls"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    agent.environment["EDITOR"] = str(path)


def calls(agent: Agent) -> int:
    """How often the editor was called."""
    return len((agent.directory / "calls").read_text().splitlines())


def test_sorted(agent: Agent) -> None:
    """Objects of all namespaces in the order of a size; pools and the like by their JSON's fields."""
    for namespace, name, size in (("a", "large", "1Gi"), ("b", "small", "900Mi"), ("c", "middle", "950Mi")):
        text = CLAIM.replace("name: data", f"name: {name}").replace("8Mi", size)
        agent.ok("apply", "-n", namespace, "-f", "-", text=text)
    by_size = agent.ok("get", "pvc", "-A", "--sort-by", ".spec.resources.requests.storage", "-o", "name")
    rows = agent.ok("get", "pvc", "-A", "--sort-by", ".metadata.name").splitlines()
    pages = agent.ok("describe", "pvc", "-A")
    pools = agent.ok("get", "pools", "--sort-by", "name")
    wrong = agent.cli("get", "pvc", "-A", "--sort-by", ".spec.frob")
    watched = agent.cli("get", "pvc", "-w", "--sort-by", ".metadata.name")
    named = agent.cli("get", "pvc", "large", "-A")

    assert [line.rpartition("/")[2] for line in by_size.splitlines()] == ["small", "middle", "large"]
    assert [line.split()[:2] for line in rows[1:]] == [["a", "large"], ["c", "middle"], ["b", "small"]]
    assert re.findall(r"^Name: +(\w+)$", pages, re.MULTILINE) == ["large", "small", "middle"]
    assert "default" in pools
    assert (wrong.returncode, ".spec.frob" in wrong.stderr) == (2, True)
    assert (watched.returncode, "--sort-by" in watched.stderr) == (2, True)
    assert (named.returncode, "-n NS" in named.stderr) == (2, True)


def test_diff(agent: Agent) -> None:
    """What apply would do, by its exit code and as a diff; nothing is changed by it, and no Secret is shown."""
    new = agent.cli("diff", "-f", "-", text=GROWING + "---\n" + CLAIM)
    before = agent.cli("get", "pvc,sc", "-o", "name").stdout
    bound(agent)
    same = agent.cli("diff", "-f", "-", text=CLAIM)
    larger = agent.cli("diff", "-f", "-", text=CLAIM.replace("8Mi", "9Mi"))
    refused = agent.cli("diff", "-f", "-", text=CLAIM.replace("8Mi", "4Mi"))
    agent.apply(WORD % "first")
    secret = agent.cli("diff", "-f", "-", text=WORD % "second")

    assert (new.returncode, "+  name: data" in new.stdout.splitlines(), "data" in before) == (1, True, False)
    assert (same.returncode, same.stdout) == (0, "")
    assert larger.returncode == 1
    changed = [ln for ln in larger.stdout.splitlines() if ln[0] in "+-"]
    assert changed == [
        "--- persistentvolumeclaim/data (now)",
        "+++ persistentvolumeclaim/data (applied)",
        "-      storage: 8Mi",
        "+      storage: 9Mi",
    ]
    assert (refused.returncode, "can not be less" in refused.stderr) == (2, True)
    assert agent.get("pvc/data")["spec"]["resources"]["requests"]["storage"] == "8Mi"
    assert [ln for ln in secret.stdout.splitlines() if "***" in ln] == [
        "-  key: '*** (before)'",
        "+  key: '*** (after)'",
        "   other: '***'",
    ]


def test_a_dry_run_changes_nothing(agent: Agent) -> None:
    """``apply --dry-run`` says what would be done, or refused, and stores none of it."""
    path = agent.directory / "claim.yaml"
    path.write_text(CLAIM)

    def tried(where: str) -> str:
        return agent.ok("apply", "-f", str(path), f"--dry-run={where}").strip()

    agent.apply(GROWING)
    absent = tried("server"), tried("client"), agent.ok("get", "pvc", "-o", "name")
    bound(agent)
    same = tried("server")
    path.write_text(CLAIM.replace("8Mi", "16Mi"))
    larger = tried("server"), tried("client")
    path.write_text(CLAIM.replace("8Mi", "4Mi"))
    refused = agent.cli("apply", "-f", str(path), "--dry-run=server")
    kept = agent.ok("get", "pvc", "data", "-o", "jsonpath={.spec.resources.requests.storage}").strip()

    name = "persistentvolumeclaim/data"
    assert absent == (f"{name} created (server dry run)", f"{name} created (dry run)", "")
    assert same == f"{name} unchanged (server dry run)"
    assert larger == (f"{name} configured (server dry run)", f"{name} configured (dry run)")
    assert (refused.returncode != 0, "can not be less than" in refused.stderr, kept) == (True, True, "8Mi")


def test_edit(agent: Agent) -> None:
    """What was saved is what there is; what is refused comes back with the reason, and can be mended."""
    bound(agent)
    # the first save asks for less, which is refused; the second one reads the reason and mends it
    editor(
        agent,
        'if grep -q "^# .*can not be less" "$1"; then sed -i "s/storage: 4Mi/storage: 16Mi/" "$1"\n'
        'else sed -i "0,/storage: 8Mi/s//storage: 4Mi/" "$1"; fi',
    )
    out = agent.ok("edit", "pvc", "data")
    request = agent.get("pvc/data")["spec"]["resources"]["requests"]["storage"]

    assert out == "persistentvolumeclaim/data edited\n"
    assert request == "16Mi"
    assert calls(agent) == 2


@pytest.mark.parametrize("script", ["true", ': > "$1"', 'echo "# only a comment" >> "$1"'])
def test_edit_of_nothing(agent: Agent, script: str) -> None:
    """A file that is not changed, or emptied, changes nothing."""
    agent.apply(GROWING)
    before = agent.get("sc/growing")
    editor(agent, script)
    done = agent.cli("edit", "sc/growing")

    assert (done.returncode, done.stderr) == (0, "Nothing was changed.\n")
    assert agent.get("sc/growing") == before


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('sed -i "s/^provisioner: .*/provisioner: 5/" "$1"', "provisioner"),
        ('sed -i "s/name: growing/name: other/" "$1"', "cannot be changed"),
        ('echo "{" > "$1"', "line 2, column 1"),
        ("exit 3", "status 3"),
        (
            'fusevol_apply; sed -i "s/allowVolumeExpansion: true/allowVolumeExpansion: false/" "$1"',
            "has been modified",
        ),
    ],
)
def test_edit_that_is_refused(agent: Agent, script: str, says: str) -> None:
    """Whoever gives up, or was overtaken by somebody else's change, is told why, and finds their text in the file."""
    agent.apply(GROWING)
    (agent.directory / "other.yaml").write_text(GROWING.replace("{name: growing}", "{name: growing, labels: {a: b}}"))
    words = " ".join(agent.command("apply", "-f", str(agent.directory / "other.yaml")))
    editor(agent, script.replace("fusevol_apply", words))
    done = agent.cli("edit", "sc", "growing")
    file = Path(done.stderr.strip().rpartition(" ")[2].rstrip("."))

    assert done.returncode == 1
    assert says in done.stderr
    assert file.exists()
    assert agent.get("sc/growing")["allowVolumeExpansion"] is True
    file.unlink()


def test_edit_without_an_editor(agent: Agent) -> None:
    """An editor that is not there is a sentence."""
    agent.apply(GROWING)
    agent.environment["EDITOR"] = "no-such-editor -w"
    done = agent.cli("edit", "sc", "growing")

    assert (done.returncode, "set EDITOR" in done.stderr) == (1, True)


def test_resize(agent: Agent) -> None:
    """A claim grows while it is mounted, and the command waits for it; what cannot be is told with the reason."""
    bound(agent)
    target = agent.directory / "mnt"
    api.mount(agent, "data", target)
    out = agent.ok("resize", "data", "32Mi")
    again = agent.ok("resize", "pvc/data", "32Mi")
    blocks = subprocess.run(
        ["stat", "-f", "-c", "%b %S", str(target)], check=True, capture_output=True, text=True, timeout=20
    ).stdout.split()
    smaller = agent.cli("resize", "data", "4Mi")
    nonsense = agent.cli("resize", "data", "much")
    other = agent.cli("resize", "pod/data", "1Gi")

    assert out == "persistentvolumeclaim/data resized\n"
    assert again == "persistentvolumeclaim/data unchanged\n"
    assert int(blocks[0]) * int(blocks[1]) == 32 * 2**20
    assert agent.get("pvc/data")["status"]["capacity"]["storage"] == "32Mi"
    assert (smaller.returncode, "can not be less" in smaller.stderr) == (1, True)
    assert (nonsense.returncode, nonsense.stderr.count("\n")) == (2, 1)
    assert other.returncode == 2


def test_resize_that_the_class_forbids(agent: Agent) -> None:
    """4.2: only claims whose class allows it grow, none without a class; the refusal is Kubernetes'."""
    agent.apply(GROWING.replace("allowVolumeExpansion: true", "allowVolumeExpansion: false") + "---\n" + CLAIM)
    eventually(lambda: api.is_bound(agent, "data"), 20.0)
    done = agent.cli("resize", "data", "16Mi")
    api.apply(agent, api.volume("static", "8Mi"), api.claim("by-hand", "8Mi", storageClassName=""))
    eventually(lambda: api.is_bound(agent, "by-hand"), 20.0)
    by_hand = agent.cli("resize", "by-hand", "16Mi")

    assert done.returncode == by_hand.returncode == 1
    assert by_hand.stderr.partition("is invalid: ")[2] == done.stderr.partition("is invalid: ")[2]
    assert "the storageclass that provisions the pvc must support resize" in done.stderr
    assert agent.get("pvc/data")["spec"]["resources"]["requests"]["storage"] == "8Mi"


def test_top(agent: Agent) -> None:
    """What a volume uses now, and how that changes; nothing mounted is said so."""
    nothing = agent.cli("top", "--once")
    bound(agent)
    target = agent.directory / "mnt"
    api.mount(agent, "data", target)
    live = subprocess.Popen(
        agent.command("top", "--interval", "0.2"), stdout=subprocess.PIPE, text=True, env=agent.environment
    )
    try:
        assert live.stdout is not None
        first = [live.stdout.readline().split() for _ in range(2)]
        (target / "file").write_bytes(b"x" * 2**20)
        changed = next(line.split() for line in live.stdout if "+" in line)
    finally:
        live.terminate()
        live.wait(20)
        if live.stdout is not None:
            live.stdout.close()
    once = agent.ok("top", "--once").splitlines()

    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert first[0][:2] == ["VOLUME", "USER"]
    assert first[1][1] == "default/data"
    assert changed[2] == "1Mi"
    assert once[1].split()[3:5] == ["8Mi", "13%"]


def test_explain_and_completion_need_no_agent(agent: Agent) -> None:
    """Both answer without anybody to ask."""
    agent.environment["FUSEVOL_SOCKET"] = "/nonexistent"
    explained = agent.ok("explain", "sc.parameters")
    script = agent.ok("completion", "bash")

    assert "map[string]string" in explained
    assert "complete " in script
