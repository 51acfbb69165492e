"""The Helm chart is the kustomization in another form: rendered by helm itself, compared with what kustomize makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.tools import run, tool

ROOT = Path(__file__).parents[2] / "manifests"
CHART = ROOT / "chart"
RELEASES = ("1.25", "1.29", "1.33", "1.37")
"""Of Kubernetes: the first that the chart takes, and some up to the newest with a schema."""
BOTH = ("--set=snapshots.enabled=true", "--set=monitoring.enabled=true")

Obj = dict[str, Any]
Objects = dict[tuple[str, str], Obj]


def rendered(*arguments: str, namespace: str = "fusevol-system") -> Objects:
    """What helm would install."""
    return objects(run("helm", *command(*arguments, namespace=namespace)))


def command(*arguments: str, namespace: str = "fusevol-system") -> list[str]:
    # a helm that `go install` has built takes itself for one of Kubernetes 1.20
    return ["template", "fusevol", str(CHART), "--namespace", namespace, "--kube-version=1.33.0", *arguments]


def kustomized(directory: Path, *components: str) -> Objects:
    """What `kubectl apply -k` would apply."""
    up = os.path.relpath(ROOT, directory)
    wanted = {"resources": [up], "components": [f"{up}/{name}" for name in components]}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    return objects(run("kustomize", "build", directory))


def objects(text: str) -> Objects:
    """The objects of *text*, without what only says by which tool they came."""
    found: Objects = {}
    for o in filter(None, yaml.safe_load_all(text)):
        for label in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            o["metadata"].get("labels", {}).pop(label, None)
        key = (o["kind"], o["metadata"]["name"])
        assert key not in found
        found[key] = o
    return found


def agent_of(found: Objects) -> Obj:
    """The agent's container."""
    agent: Obj = found["DaemonSet", "fusevol-agent"]["spec"]["template"]["spec"]["containers"][0]
    return agent


@pytest.mark.parametrize(
    ("components", "arguments"), [((), ()), (("snapshots", "monitoring"), BOTH)], ids=["base", "all"]
)
def test_chart_and_kustomization_are_the_same(
    tmp_path: Path, components: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    """With the values as they are, helm installs what kustomize applies, but for the namespace, which is helm's own."""
    expected = kustomized(tmp_path, *components)
    namespace = expected.pop(("Namespace", "fusevol-system"))
    found = rendered(*arguments)

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert found.keys() == expected.keys()
    assert found == expected


@pytest.mark.parametrize("release", RELEASES)
def test_every_kubernetes_takes_it(release: str) -> None:
    """What is rendered passes the strict schemas of old and new releases of Kubernetes."""
    known = [o for o in rendered(*BOTH).values() if not o["apiVersion"].startswith(("monitoring.", "snapshot."))]
    for one in known:
        kubernetes_validate.validate(one, release, strict=True)

    assert len(known) > 8


def test_values_reach_their_places() -> None:
    """Each value changes what it is for, everywhere."""
    found = rendered(
        *BOTH,
        "--set=image.repository=r.example/fusevol,image.tag=1.2,image.pullPolicy=Always,imagePullSecrets[0].name=pull",
        "--set=sidecarImages.liveness-probe=r.example/probe:1,kubeletDir=/srv/kubelet,maxUnavailable=10%",
        "--set=poolPaths[0]=/srv/pool,poolPaths[1]=/mnt/fast,keeper.mergeMemory=true",
        "--set=config.pools.default=/srv/pool,config.logLevel=debug,resources.limits.memory=4Gi",
        "--set=priorityClassName=mine,nodeSelector.storage=yes-it-is,tolerations=null,keeper.resources.limits.memory=2Gi",
        "--set=storageClass.default=true,storageClass.reclaimPolicy=Retain,storageClass.parameters.pool=fast",
        namespace="elsewhere",
    )
    pod = found["DaemonSet", "fusevol-agent"]["spec"]["template"]["spec"]
    keepers = found["DaemonSet", "fusevol-keeper"]["spec"]["template"]["spec"]
    (keeper,) = keepers["containers"]
    images = {c["name"]: c["image"] for c in [*pod["initContainers"], *pod["containers"]]}
    settings = yaml.safe_load(found["ConfigMap", "fusevol-agent"]["data"]["agent.yaml"])
    storage = found["StorageClass", "fusevol-csi"]
    text = yaml.safe_dump_all(found.values())

    assert (images["agent"], images["install-flexvolume-driver"]) == ("r.example/fusevol:1.2",) * 2
    assert images["liveness-probe"] == "r.example/probe:1"
    assert agent_of(found)["imagePullPolicy"] == "Always"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert agent_of(found)["resources"] == {"limits": {"memory": "4Gi"}}
    assert (pod["priorityClassName"], pod["nodeSelector"]["storage"]) == ("mine", "yes-it-is")
    assert (keeper["image"], keeper["imagePullPolicy"]) == ("r.example/fusevol:1.2", "Always")
    assert keeper["resources"] == {"limits": {"memory": "2Gi"}}
    assert {
        key: keepers.get(key) for key in ("priorityClassName", "nodeSelector", "tolerations", "imagePullSecrets")
    } == {key: pod.get(key) for key in ("priorityClassName", "nodeSelector", "tolerations", "imagePullSecrets")}
    for spec, container in ((pod, agent_of(found)), (keepers, keeper)):
        volumes = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if v["name"].startswith("pool-")}
        mounts = {m["name"]: (m["mountPath"], m.get("mountPropagation")) for m in container["volumeMounts"]}
        assert volumes == {"pool-0": "/srv/pool", "pool-1": "/mnt/fast"}
        assert all(mounts[name] == (path, "Bidirectional") for name, path in volumes.items())
    assert "fusevol keeper --merge-memory --run-dir" in keeper["command"][-1]
    assert (settings["pools"], settings["logLevel"]) == ({"default": "/srv/pool"}, "debug")
    assert settings["csi"]["endpoint"] == "unix:///srv/kubelet/plugins/fusevol.io/csi.sock"
    assert storage["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    assert (storage["reclaimPolicy"], storage["parameters"]["pool"]) == ("Retain", "fast")
    assert found["DaemonSet", "fusevol-agent"]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "10%"
    assert "fusevol-system" not in text
    assert "/var/lib/kubelet" not in text


@pytest.mark.parametrize(
    "wrong",
    [
        "image.tga=1",
        "image.tag=a b",
        "kubeletDir=relative",
        "storageClass.reclaimPolicy=Keep",
        "maxUnavailable=0",
        "poolPaths[0]=srv",
    ],
)
def test_wrong_values_are_refused(wrong: str) -> None:
    """What is misspelt or cannot be is refused by the schema, which names it."""
    done = subprocess.run(
        [tool("helm"), *command(f"--set={wrong}")], check=False, capture_output=True, text=True, timeout=60
    )

    assert done.returncode != 0
    assert wrong.partition("=")[0].rpartition(".")[2].partition("[")[0] in done.stderr


def test_the_package_stands_alone(tmp_path: Path) -> None:
    """A packaged chart has all its files in it, renders the same elsewhere, and helm's linter finds no fault."""
    run("helm", "lint", CHART, "--strict", "--kube-version=1.33.0")
    run("helm", "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("fusevol-*.tgz")
    words = [str(package) if word == str(CHART) else word for word in command(*BOTH)]

    assert objects(run("helm", *words)) == rendered(*BOTH)
