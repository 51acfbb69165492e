"""What others read out of admitted objects."""

from __future__ import annotations

from fusevol import objects
from fusevol.objects.pod import PodMount, PodVolume
from tests.unit.objects.samples import CLAIM, POD, VOLUME, changed


def test_pod_volumes_tell_what_is_served() -> None:
    """Sources that Kubernetes knows are valid; the view says which of them fusevol mounts."""
    pod = objects.admit(
        changed(
            POD,
            (
                "spec/volumes",
                [
                    {"name": "v", "emptyDir": {"sizeLimit": "1024Ki"}},
                    {"name": "h", "hostPath": {"path": "/srv"}},
                    {"name": "p", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "s", "secret": {"secretName": "s"}},
                    {"name": "n", "nfs": {"server": "a", "path": "/"}},
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": CLAIM["spec"]}}},
                ],
            ),
        )
    )
    found = objects.pod.volumes(pod)

    assert found[:2] == (
        PodVolume("v", "emptyDir", {"sizeLimit": "1Mi"}),
        PodVolume("h", "hostPath", {"path": "/srv", "type": ""}),
    )
    assert [v.kind for v in found if v.kind not in objects.pod.SERVED] == ["nfs"]
    assert objects.pod.claims(pod) == ("data", "web-e")


def test_pod_mounts() -> None:
    """Mounts of all containers, init containers first; a relative path becomes absolute."""
    pod = objects.admit(
        changed(
            POD,
            (
                "spec/initContainers",
                [{"name": "i", "image": "a", "volumeMounts": [{"name": "v", "mountPath": "data"}]}],
            ),
            ("spec/containers/0/volumeMounts/0/readOnly", True),
            ("spec/containers/0/volumeMounts/0/subPath", "a/b"),
        )
    )

    assert objects.pod.mounts(pod) == (
        PodMount("i", "v", "/data"),
        PodMount("c", "v", "/v", read_only=True, sub_path="a/b"),
    )


def test_claim_views() -> None:
    """Sizes, modes and the three-valued class of a claim; the old annotation wins."""
    claim = objects.admit(CLAIM)
    none = changed(claim, ("spec/storageClassName", ""))
    old = changed(none, ("metadata/annotations", {"volume.beta.kubernetes.io/storage-class": "slow"}))

    assert (objects.claim.request_bytes(claim), objects.claim.capacity_bytes(claim)) == (1 << 30, None)
    assert objects.claim.access_modes(claim) == ("ReadWriteOnce",)
    assert [objects.claim.storage_class(o) for o in (claim, none, old)] == [None, "", "slow"]


def test_volume_views() -> None:
    """Size, source, modes and class of a volume."""
    volume = objects.admit(VOLUME)

    assert objects.volume.capacity_bytes(volume) == 1 << 30
    assert objects.volume.source(volume) == ("hostPath", {"path": "/srv", "type": ""})
    assert (objects.volume.access_modes(volume), objects.volume.storage_class(volume)) == (("ReadWriteOnce",), "")
