"""The manifests and examples are what Kubernetes and fusevol itself accept."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agent import flexvolume
from agent.address import Address
from agent.config import DRIVER
from agent.csi.settings import Settings
from agent.volumes.environment import expand
from fusevol import objects

ROOT = Path(__file__).parents[2] / "manifests"
RELEASE = "1.33"
"""A released Kubernetes; its schemas come with kubernetes-validate."""
OWN = {"StorageClass", "PersistentVolume", "PersistentVolumeClaim", "Pod"}
"""What `fusevol apply` takes."""

FILES = sorted(
    path
    for path in ROOT.rglob("*.yaml")
    if path.name != "kustomization.yaml" and "chart" not in path.relative_to(ROOT).parts  # tests/unit/test_chart.py
)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_kubernetes_knows_every_field(path: Path) -> None:
    """Every manifest passes the strict schema of a released Kubernetes, or fusevol's own of the snapshot kinds."""
    found = documents(path)
    for document in found:
        if document["apiVersion"].startswith("snapshot.storage.k8s.io/"):
            objects.admit(document)
            continue
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # its schema is the Prometheus operator's; see test_the_monitor_finds_the_agent
        kubernetes_validate.validate(document, RELEASE, strict=True)

    assert found


@pytest.mark.parametrize(
    "path", [p for p in FILES if not {"flexvolume", "csi"} & set(p.parts) and "examples" in p.parts], ids=relative
)
def test_fusevol_takes_its_own_examples(path: Path) -> None:
    """Every example that is meant for `fusevol apply` is understood and admitted without a complaint."""
    admitted = [objects.admit(o) for o in objects.load(path.read_text(encoding="utf-8"), str(path))]

    assert {o["kind"] for o in admitted} <= OWN


def test_the_storage_class_is_the_one_that_an_agent_makes() -> None:
    """The class of the manifests is admitted by fusevol and names its provisioner."""
    path = ROOT / "storageclass.yaml"
    (found,) = (objects.admit(o) for o in objects.load(path.read_text(encoding="utf-8"), str(path)))

    assert (found["metadata"]["name"], found["provisioner"]) == ("fusevol", "fusevol.io/fusevol")


def test_kustomization_lists_every_manifest() -> None:
    """`kubectl apply -k manifests/` applies all that lies beside the kustomization, and nothing that is not there."""
    listed = yaml.safe_load((ROOT / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]

    assert sorted(listed) == sorted(p.name for p in ROOT.glob("*.yaml") if p.name != "kustomization.yaml")


def test_every_example_explains_itself() -> None:
    """Each example directory has a manifest and a README, and the list of examples links to it."""
    directories = [p for p in (ROOT / "examples").iterdir() if p.is_dir()]
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    poor = [
        p.name
        for p in directories
        if not (p / "README.md").exists() or not list(p.glob("*.yaml")) or f"]({p.name})" not in index
    ]

    assert directories
    assert not poor


def test_references_between_the_manifests_hold() -> None:
    """The DaemonSet's service account, config map and keys exist, all in one namespace."""
    everything = {
        (d["kind"], d["metadata"]["name"]): d
        for p in ROOT.glob("*.yaml")
        for d in documents(p)
        if "kind" in d and "metadata" in d
    }
    pod = everything["DaemonSet", "fusevol-agent"]["spec"]["template"]["spec"]
    namespaces = {d["metadata"]["namespace"] for d in everything.values() if "namespace" in d["metadata"]}
    config = next(v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v)
    wanted = {("ServiceAccount", pod["serviceAccountName"]), ("ConfigMap", config), ("Namespace", "fusevol-system")}

    assert namespaces == {"fusevol-system"}
    assert wanted <= everything.keys()


def test_keeper_and_agent_fit_together() -> None:
    """What one of them mounts the other sees at the same place, they know each other's processes, and volume servers
    may do there what the agent may do here; a keeper is there before the last one goes."""
    (keepers,), (agents,) = documents(ROOT / "keeper.yaml"), documents(ROOT / "daemonset.yaml")
    (settings,) = documents(ROOT / "configmap.yaml")
    keeper, agent = (found["spec"]["template"]["spec"] for found in (keepers, agents))
    here, there = keeper["containers"][0], agent["containers"][0]
    places = {v["name"]: v["hostPath"]["path"] for v in keeper["volumes"]}
    mounts = {m["name"]: m for m in here["volumeMounts"]}
    agents_mounts = {m["name"]: m for m in there["volumeMounts"]}
    caps = {
        next(line for line in c["command"][2].splitlines() if "--bounding-set" in line).strip() for c in (here, there)
    }

    assert {v["name"]: v["hostPath"]["path"] for v in agent["volumes"] if v["name"] in places} == places
    assert {name: m["mountPath"] for name, m in mounts.items()} == {
        name: agents_mounts[name]["mountPath"] for name in mounts
    }
    assert mounts["state"]["mountPropagation"] == agents_mounts["state"]["mountPropagation"] == "Bidirectional"
    assert (mounts["run"]["mountPropagation"], agents_mounts["run"]["mountPropagation"]) == (
        "HostToContainer",
        "Bidirectional",
    )
    assert keeper["hostPID"]
    assert agent["hostPID"]
    assert len(caps) == 1
    assert yaml.safe_load(settings["data"]["agent.yaml"])["keeper"] == "external"
    assert keepers["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_csi_is_deployed_as_the_driver_is() -> None:
    """Names and the socket's path are the same everywhere, and only sidecars get a token for the API server."""
    everything = {(d["kind"], d["metadata"]["name"]): d for p in FILES for d in documents(p) if "metadata" in d}
    pod = everything["DaemonSet", "fusevol-agent"]["spec"]["template"]["spec"]
    host = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    config = yaml.safe_load(everything["ConfigMap", "fusevol-agent"]["data"]["agent.yaml"])
    settings = Settings.parse(config["csi"])
    arguments = {a for c in pod["containers"] for a in c.get("args", [])}
    with_token = {c["name"] for c in pod["containers"] for m in c["volumeMounts"] if m["name"] == "token"}
    rules = [r for d in everything.values() if d["kind"] in {"Role", "ClusterRole"} for r in d["rules"]]

    assert settings is not None
    assert settings.per_node
    assert str(settings.endpoint) == f"{host['csi']}/csi.sock"
    assert f"--kubelet-registration-path={settings.endpoint}" in arguments
    assert ("CSIDriver", DRIVER) in everything
    assert everything["StorageClass", "fusevol-csi"]["provisioner"] == DRIVER
    assert everything["VolumeSnapshotClass", "fusevol-csi"]["driver"] == DRIVER
    assert pod["automountServiceAccountToken"] is False
    assert with_token == {"external-provisioner", "external-resizer"}
    assert not any("*" in [*r["verbs"], *r["resources"], *r["apiGroups"]] for r in rules)


def test_the_monitor_finds_the_agent() -> None:
    """The PodMonitor selects the agent's Pods and the port that its component opens, where the agent then listens."""
    (monitor,) = documents(ROOT / "monitoring" / "podmonitor.yaml")
    (daemonset,) = documents(ROOT / "daemonset.yaml")
    component = yaml.safe_load((ROOT / "monitoring" / "kustomization.yaml").read_text(encoding="utf-8"))
    (patch,) = component["patches"]
    added = {op["path"].rpartition("0/")[2]: op["value"] for op in yaml.safe_load(patch["patch"])}
    template = daemonset["spec"]["template"]
    (port,) = added["ports"]
    address = Address.parse(None, added["env/-"]["value"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]

    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == daemonset["metadata"]["namespace"]
    assert patch["target"] == {"kind": "DaemonSet", "name": daemonset["metadata"]["name"]}
    assert template["spec"]["containers"][0]["name"] == "agent"
    assert "ports" not in template["spec"]["containers"][0]
    assert added["env/-"]["name"] == "FUSEVOL_METRICS"
    assert address is not None
    assert (endpoint["port"], address.port) == (port["name"], port["containerPort"])


@pytest.mark.parametrize("unit", sorted((ROOT / "systemd").iterdir()), ids=lambda unit: unit.name)
def test_systemd_takes_the_unit(unit: Path) -> None:
    """systemd finds nothing wrong with a unit but that no agent is installed where it looks for one."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if "is not executable: No such file" not in line]

    assert said == []


def driver(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The call-out script of the config map, as a kubelet calls it; *directory* takes the place of ``/run/fusevol``."""
    text = documents(ROOT / "configmap.yaml")[0]["data"]["flexvolume-driver.sh"]
    script = directory / "driver"
    script.write_text(text.replace("/run/fusevol/", f"{directory}/"), encoding="utf-8")
    return subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, check=True)


def test_the_flexvolume_driver_answers_one_json_line_without_an_agent(tmp_path: Path) -> None:
    """The call-out script of the config map is valid shell and answers Failure, exit code 0, when no agent runs."""
    answer = driver(tmp_path, "mount", "/mnt", "{}")

    assert yaml.safe_load(answer.stdout)["status"] == "Failure"
    assert answer.stderr == ""


def test_the_flexvolume_driver_is_found_before_the_agent_runs(tmp_path: Path) -> None:
    """A kubelet that starts calls ``init`` once, and drops a driver that fails then; the answer is the agent's own."""
    answer = driver(tmp_path, "init")

    assert json.loads(answer.stdout) == flexvolume.call(["init"])
    assert answer.stderr == ""


@pytest.mark.parametrize("name", ["daemonset.yaml", "keeper.yaml"])
def test_commands_arrive_as_they_are_written(name: str) -> None:
    """Kubernetes replaces ``$(NAME)`` and ``$$`` in a command; the shell is to see its own."""
    (found,) = documents(ROOT / name)
    pod = found["spec"]["template"]["spec"]
    words = [w for c in (*pod.get("initContainers", []), *pod["containers"]) for w in c.get("command", [])]

    assert words
    assert [expand(w, {}) for w in words] == words


def test_the_flexvolume_driver_finds_the_agent(tmp_path: Path) -> None:
    """What the agent's container writes down before it becomes the agent is its own process id."""
    (found,) = documents(ROOT / "daemonset.yaml")
    shell, option, script = found["spec"]["template"]["spec"]["containers"][0]["command"]
    before, _, _ = expand(script, {}).partition("exec ")
    run = subprocess.Popen([shell, option, before.replace("/run/fusevol/", f"{tmp_path}/")])

    assert run.wait(10) == 0
    assert (tmp_path / "agent.pid").read_text() == f"{run.pid}\n"
