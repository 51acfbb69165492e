"""`make demo`: the YAML that one gives to kubectl, real containers, and what becomes of their data.

``KEEP=1`` leaves everything running at the end and says how to look around; ``demo.py --clean DIR`` cleans up then.
Exit code 0 only if all that the table at the end lists was seen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stage import MARK, DemoError, Stage, wait_for

GIB = 1 << 30
NAMESPACE = "dlkit-resources"
CLAIM = "dlkit-workspace-test"
DESKTOP = Path("/User/cui/Desktop")
WRITER, READER = "workspace-writer", "workspace-reader"


@dataclass(frozen=True, slots=True)
class Proof:
    """One line of the table at the end."""

    letter: str
    claim: str
    seen: str
    holds: bool


def check(condition: bool, otherwise: str) -> None:
    """:class:`DemoError` saying *otherwise* unless *condition*."""
    if not condition:
        raise DemoError(otherwise)


def seed(stage: Stage) -> str:
    """(a) The seed's Pods, its StorageClass and its claim are applied as they stand."""
    made = [path for path in (DESKTOP, *DESKTOP.parents) if not path.exists()]
    file = DESKTOP / "test.test.test"
    stage.remember_host([str(p) for p in ([] if file.exists() else [file]) + made])
    DESKTOP.mkdir(parents=True, exist_ok=True)
    stage.fusevol("run", "-f", "seed/hostpath-pod.yaml")
    check(file.exists(), f"the hostPath Pod left no {file}")

    refusal = stage.fusevol("apply", "-f", "seed/emptydir-pod.yaml", fails=True)
    proposed = re.search(r"\b(emptydir-path)\b", refusal)
    if proposed is None:
        raise DemoError("the refusal of the name emptyDir-path proposes no valid one")
    print(f"    The name is refused as Kubernetes refuses it; with the proposed one, {proposed[1]}:")
    text = (Path(__file__).parent / "seed" / "emptydir-pod.yaml").read_text()
    stage.fusevol("run", "-f", "-", feed=text.replace("emptyDir-path", proposed[1]))

    stage.fusevol("apply", "-f", "objects/claim.yaml")
    wait_for("the binding of the claim", lambda: claim(stage)["status"].get("phase") == "Bound")
    stage.fusevol("get", "sc,pvc", "-n", NAMESPACE)
    stage.fusevol("get", "pods")
    return f"both Pods ran (the second as {proposed[1]}), the 1Gi claim is Bound"


def claim(stage: Stage) -> dict[str, dict[str, str]]:
    """The claim as the agent has it."""
    found: dict[str, dict[str, str]] = json.loads(
        stage.fusevol("get", "pvc", CLAIM, "-n", NAMESPACE, "-o", "json", quiet=True)
    )
    return {**found, "status": found.get("status") or {}}


def container_killed(stage: Stage) -> str:
    """(b) A container that is killed and restarted finds its data."""
    stage.fusevol("run", "-d", "-f", "objects/workspace-pod.yaml")
    wait_for("the writer's first line", lambda: lines(stage, "/data/starts") == 1)
    stage.inside(WRITER, "echo 'written before the kill' > /data/note; date > /scratch/tick; ls -l /data")
    wait_for("ticks", lambda: lines(stage, "/data/ticks") > 3)
    before = main_process(stage)
    check(before > 1, "podman names no main process of the writer")
    print(f"    kill -9 of the writer's main process, {before}; it is started again as restartPolicy: Always says")
    os.kill(before, signal.SIGKILL)
    wait_for("the restart of the writer", lambda: main_process(stage) not in {0, before})
    wait_for("the restarted writer's line", lambda: lines(stage, "/data/starts") == 2)
    text = stage.inside(WRITER, "cat /data/starts /data/note")
    check("written before the kill" in text, "the note is gone")
    count = lines(stage, "/data/ticks")
    wait_for("more ticks", lambda: lines(stage, "/data/ticks") > count)
    check(contiguous(stage), "the numbers in /data/ticks have a gap")
    return "new process, same note, and the count goes on without a gap"


def main_process(stage: Stage) -> int:
    """The writer's main process as the host sees it; 0 while there is none."""
    try:
        return int(stage.run("podman", "inspect", WRITER, "--format", "{{.State.Pid}}", quiet=True))
    except ValueError:
        return 0


def lines(stage: Stage, file: str) -> int:
    """How many lines *file* has in the writer; 0 while it or the container is not there."""
    try:
        return int(stage.inside(WRITER, f"wc -l <{file}", quiet=True))
    except (DemoError, ValueError):
        return 0


def contiguous(stage: Stage) -> bool:
    """Whether /data/ticks counts 1, 2, 3, ... and no write failed."""
    numbers = stage.inside(WRITER, "cat /data/ticks; cat /tmp/failed 2>/dev/null | sed 's/^/failed /'", quiet=True)
    return numbers.splitlines() == [str(i + 1) for i in range(len(numbers.splitlines()))]


def shared(stage: Stage) -> str:
    """(c) Two containers of one Pod share the emptyDir."""
    stage.inside(WRITER, "echo 'from the writer' > /scratch/message")
    text = stage.inside(READER, "cat /exchange/message")
    check(text == "from the writer", "the reader sees another emptyDir")
    stage.inside(READER, "echo 'and back' >> /exchange/message")
    check("and back" in stage.inside(WRITER, "cat /scratch/message"), "the writer does not see the reader's line")
    return "what one writes, the other reads, both ways"


def agent_killed(stage: Stage) -> str:
    """(g) kill -9 of the agent, and its restart, change nothing for a running container."""
    agent = stage.agent.pid if stage.agent else 0
    servers = server_pids(stage)
    check(bool(servers), "no volume server runs")
    process = main_process(stage)
    first = lines(stage, "/data/ticks")
    print(f"    kill -9 {agent}   (the agent; the volume servers are {', '.join(map(str, servers))})")
    stage.kill_agent()
    stage.fusevol("get", "pvc", "-n", NAMESPACE, fails=True)
    wait_for("ticks without an agent", lambda: lines(stage, "/data/ticks") > first + 5)
    without = lines(stage, "/data/ticks")
    print(f"    no agent: the writer went on from tick {first} to {without}; now it is started again")
    stage.start_agent()
    wait_for("ticks with the new agent", lambda: lines(stage, "/data/ticks") > without + 5)
    stage.fusevol("get", "pvc", "-n", NAMESPACE)
    check(main_process(stage) == process, "the writer was restarted")
    check(server_pids(stage) == servers, "the volume servers are not the same processes")
    check(contiguous(stage), "the writer had a failed write or lost a number")
    return f"{lines(stage, '/data/ticks') - first} writes meanwhile, none failed, same container, same servers"


def server_pids(stage: Stage) -> list[int]:
    """Processes that serve volumes."""
    listed = json.loads(stage.fusevol("get", "servers", "-o", "json", quiet=True))
    return sorted(server["pid"] for server in (listed["items"] if isinstance(listed, dict) else listed))


def pod_recreated(stage: Stage) -> str:
    """(d) A Pod that is deleted and created again finds the claim's data and an empty emptyDir."""
    check("tick" in stage.inside(WRITER, "ls /scratch"), "the emptyDir is empty before the test")
    count = lines(stage, "/data/ticks")
    stage.fusevol("delete", "pod", "workspace", "-n", NAMESPACE, "--now")
    stage.fusevol("run", "-d", "-f", "objects/workspace-pod.yaml")
    wait_for("the new writer", lambda: lines(stage, "/data/starts") == 3)
    text = stage.inside(WRITER, "cat /data/note; ls -A /scratch | wc -l")
    check(text.splitlines() == ["written before the kill", "0"], "the note is gone or the emptyDir is not empty")
    check(lines(stage, "/data/ticks") >= count, "ticks were lost")
    return "the claim's data is there, the emptyDir is a new one"


def host_keeps(stage: Stage) -> str:
    """(e) hostPath data is on the host after the Pod is gone."""
    stage.fusevol("delete", "pod", "hostpath-pod", "emptydir-path", "--now")
    stage.run("ls", "-l", str(DESKTOP))
    check((DESKTOP / "test.test.test").exists(), "the file is gone")
    return f"{DESKTOP}/test.test.test outlived its Pod"


def quota(stage: Stage) -> str:
    """(f) A write past the quota fails with ENOSPC at exactly the limit; `df` shows 1.0G; older data is intact."""
    stage.inside(WRITER, "head -c 3000000 /dev/urandom > /data/precious")
    before = stage.inside(WRITER, "sha256sum /data/precious /data/note")
    full = "No space left on device"
    first = stage.inside(WRITER, "dd if=/dev/zero of=/data/fill bs=1M", fails=True)
    second = stage.inside(WRITER, "dd if=/dev/zero of=/data/rest bs=4k", fails=True)
    check(full in first and full in second, "the write past the limit failed in another way than ENOSPC")
    size = stage.inside(WRITER, "df -hP /data").splitlines()[-1].split()[1]
    look = stage.home / "look"
    look.mkdir()
    stage.fusevol("mount", CLAIM, str(look), "-n", NAMESPACE)
    used = int(stage.run("du", "-s", "--block-size=1", str(look)).split()[0])
    stage.fusevol("umount", str(look))
    stage.fusevol("get", "pvc", "-n", NAMESPACE)
    check(used == GIB, f"{used} bytes are allocated, {GIB - used} short of the limit")
    check(size == "1.0G", f"df says {size}")
    check(stage.inside(WRITER, "sha256sum /data/precious /data/note") == before, "older data was harmed")
    stage.inside(WRITER, "rm -f /data/fill /data/rest && echo 'room again' >> /data/note && df -h /data")
    return f"ENOSPC with {used} bytes allocated = 1 GiB, df says {size}, checksums as before"


STEPS: tuple[tuple[str, str, Callable[[Stage], str]], ...] = (
    ("a", "the seed's Pods, StorageClass and 1Gi claim are applied", seed),
    ("b", "a killed container is restarted and finds its data", container_killed),
    ("c", "two containers of one Pod share the emptyDir", shared),
    ("g", "kill -9 and restart of the agent: containers notice nothing", agent_killed),
    ("d", "a Pod deleted and created again: claim kept, emptyDir empty", pod_recreated),
    ("e", "hostPath data is on the host after the Pod is gone", host_keeps),
    ("f", "a write past the quota fails at exactly the limit", quota),
)


def play(stage: Stage) -> list[Proof]:
    """All steps, in order; a step that fails ends the story, since the next ones build on it."""
    print(f"An agent of its own in {stage.home}, podman with a storage of its own (busybox under the images' names).")
    stage.start_agent()
    stage.fusevol("get", "sc,pools")
    proofs: list[Proof] = []
    for letter, title, step in STEPS:
        print(f"\n({letter}) {title}")
        if proofs and not proofs[-1].holds:
            proofs.append(Proof(letter, title, "not tried: an earlier step failed", False))
            continue
        try:
            proofs.append(Proof(letter, title, step(stage), True))
        except DemoError as e:
            print(f"    FAILED: {e}")
            proofs.append(Proof(letter, title, str(e), False))
    return proofs


def tidy(stage: Stage) -> Proof:
    """Take the stage down; the last line of the table."""
    left = stage.strike()
    title = "nothing is left behind"
    return Proof("", title, ", ".join(left) or "no mount, process, container or directory", not left)


def table(proofs: list[Proof], seconds: float) -> str:
    """What was proven."""
    width = max(len(p.claim) for p in proofs)
    rows = [
        f"{'ok' if p.holds else 'FAILED':6} {f'({p.letter})' if p.letter else '':4}{p.claim:{width}}  {p.seen}"
        for p in sorted(proofs, key=lambda p: p.letter or "z")
    ]
    return "\n".join(["", f"What was seen, in {seconds:.0f} seconds:", *rows])


def how_to_look(stage: Stage) -> str:
    """What `KEEP=1` says at the end."""
    exports = "\n".join(
        f"  export {name}={value}" for name, value in stage.environment.items() if name not in {"PATH", MARK}
    )
    return (
        f"\nEverything is left running in {stage.home}. To look around:\n{exports}\n"
        f"  export PATH={Path(sys.executable).parent}:$PATH\n"
        "  fusevol get pods,pvc -A; podman ps; podman exec -it workspace-writer sh\n"
        f"and to clean up:\n  {sys.executable} {Path(__file__).resolve()} --clean {stage.home}"
    )


def interrupted(*_: object) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: it cleans up."""
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Play, clean up, print the table."""
    if arguments[:1] == ["--clean"] and len(arguments) == 2:
        home = Path(arguments[1]).resolve()
        if not home.name.startswith("fvdemo.") or not home.is_dir():
            print(f"demo: {home} is not a directory of this demo.", file=sys.stderr)
            return 2
        left = Stage(home).strike()
        print(f"demo: left behind: {', '.join(left)}" if left else "demo: all gone.")
        return 1 if left else 0
    if os.geteuid() != 0:
        print("demo: run it as root; it mounts and starts containers.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    started = time.monotonic()
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    proofs: list[Proof] = []
    stage = Stage.build()
    try:
        proofs = play(stage)
    except KeyboardInterrupt:
        keep = False
        proofs.append(Proof("", "the demo was interrupted", "", False))
    except DemoError as e:
        proofs.append(Proof("", "the demo could start", str(e), False))
    finally:
        log = stage.home / "agent.log"
        if log.exists() and not all(p.holds for p in proofs):
            kept = Path("build") / "demo-agent.log"
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(log, kept)
            print(f"\nThe agent's log is kept as {kept}.")
        if not keep:
            proofs.append(tidy(stage))
    print(table(proofs, time.monotonic() - started))
    if keep:
        print(how_to_look(stage))
    return 0 if all(p.holds for p in proofs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
