"""The objects of the lecture notes that fusevol began with apply as they were printed."""

from __future__ import annotations

import pytest

from fusevol import objects
from tests.unit.objects.samples import refusal

SEED = {
    "standard-class": """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
provisioner: kubernetes.io/aws-ebs
parameters:
  type: gp2
reclaimPolicy: Retain
allowVolumeExpansion: true
mountOptions:
  - debug
volumeBindingMode: Immediate
""",
    "hostpath-pod": """\
apiVersion: v1
kind: Pod
metadata:
  name: hostpath-pod
spec:
  containers:
    - name: test-container
      image: ubuntu
      command: ["touch","/etc/data/test.test.test"]
      volumeMounts:
      - name: volume1
        mountPath: "/etc/data"
  volumes:
    - name: volume1
      hostPath:
        path: /User/cui/Desktop
  restartPolicy: Never
""",
    "emptydir-pod": """\
apiVersion: v1
kind: Pod
metadata:
  name: emptyDir-path
spec:
  containers:
    - name: test-container
      image: ubuntu
      command: ["touch","/etc/data/test.test.test"]
      volumeMounts:
      - name: volume1
        mountPath: "/etc/data"
  volumes:
    - name: volume1
      emptyDir: {}
  restartPolicy: Never
""",
    "class-with-status": """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  creationTimestamp: "2019-12-29T09:09:14Z"
  name: cephfs
  resourceVersion: "216329"
  selfLink: /apis/storage.k8s.io/v1/storageclasses/cephfs
  uid: 3a225dd9-41e8-4767-a511-d1cfaf7e3db1
parameters:
  adminId: admin
  adminSecretName: ceph-secret-admin
  adminSecretNamespace: cephfs
  claimRoot: /dlkit-volumes
  monitors: 210.28.132.168:6789,210.28.132.169:6789,210.28.132.170:6789
provisioner: ceph.com/cephfs
reclaimPolicy: Delete
volumeBindingMode: Immediate
""",
    "claim-as-printed": """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  annotations:
    pv.kubernetes.io/bind-completed: "yes"
    pv.kubernetes.io/bound-by-controller: "yes"
    volume.beta.kubernetes.io/storage-provisioner: ceph.com/cephfs
  creationTimestamp: "2019-12-29T12:48:27Z"
  finalizers:
  - kubernetes.io/pvc-protection
  labels:
    dlkit.njuics.cn/name: test
    dlkit.njuics.cn/type: workspace
  name: dlkit-workspace-test
  namespace: dlkit-resources
  ownerReferences:
  - apiVersion: njuics.cn/v1alpha1
    blockOwnerDeletion: true
    controller: true
    kind: Workspace
    name: test
    uid: c70beebb-614e-49ec-a1bf-10415c610c39
  resourceVersion: "269997"
  selfLink: /api/v1/namespaces/dlkit-resources/persistentvolumeclaims/dlkit-workspace-test
  uid: 1f12135e-69dd-424e-97ac-c008e0b2981a
spec:
  accessModes:
  - ReadWriteOnce
  resources:
    requests:
      storage: 1Gi
  storageClassName: cephfs
  volumeMode: Filesystem
  volumeName: pvc-1f12135e-69dd-424e-97ac-c008e0b2981a
status:
  accessModes:
  - ReadWriteOnce
  capacity:
    storage: 1Gi
  phase: Bound
""",
    "volume-as-printed": """\
apiVersion: v1
kind: PersistentVolume
metadata:
  annotations:
    cephFSProvisionerIdentity: cephfs-provisioner-1
    cephShare: kubernetes-dynamic-pvc-81ffa895-2a39-11ea-9e0c-8ec5540e92a0
    pv.kubernetes.io/provisioned-by: ceph.com/cephfs
  creationTimestamp: "2019-12-29T12:48:27Z"
  finalizers:
  - kubernetes.io/pv-protection
  name: pvc-1f12135e-69dd-424e-97ac-c008e0b2981a
  resourceVersion: "269995"
  selfLink: /api/v1/persistentvolumes/pvc-1f12135e-69dd-424e-97ac-c008e0b2981a
  uid: 735eb06e-520b-4fbb-bac1-86eb2fc3772b
spec:
  accessModes:
  - ReadWriteOnce
  capacity:
    storage: 1Gi
  cephfs:
    monitors:
    - 210.28.132.168:6789
    - 210.28.132.169:6789
    - 210.28.132.170:6789
    path: /dlkit-volumes/kubernetes/kubernetes-dynamic-pvc-81ffa895-2a39-11ea-9e0c-8ec5540e92a0
    secretRef:
      name: ceph-kubernetes-dynamic-user-81ffa8f9-2a39-11ea-9e0c-8ec5540e92a0-secret
      namespace: cephfs
    user: kubernetes-dynamic-user-81ffa8f9-2a39-11ea-9e0c-8ec5540e92a0
  claimRef:
    apiVersion: v1
    kind: PersistentVolumeClaim
    name: dlkit-workspace-test
    namespace: dlkit-resources
    resourceVersion: "269946"
    uid: 1f12135e-69dd-424e-97ac-c008e0b2981a
  persistentVolumeReclaimPolicy: Delete
  storageClassName: cephfs
  volumeMode: Filesystem
status:
  phase: Bound
""",
}


@pytest.mark.parametrize("name", [n for n in SEED if n != "emptydir-pod"])
def test_applies_as_printed(name: str) -> None:
    """What kubectl printed, status and uid included, is admitted, and applying it again changes nothing."""
    (given,) = objects.load(SEED[name], name)
    admitted = objects.admit(given)

    assert admitted["metadata"]["name"] == given["metadata"]["name"]
    assert not {"uid", "resourceVersion", "selfLink", "creationTimestamp"} & set(admitted["metadata"])
    assert "status" not in admitted
    assert objects.admit_update(admitted, given) == admitted


def test_the_name_that_kubernetes_refuses() -> None:
    """The Pod emptyDir-path is refused as in Kubernetes, with the name that would do; under that name it is fine."""
    (given,) = objects.load(SEED["emptydir-pod"], "pod.yaml")
    text = refusal(given)
    given["metadata"]["name"] = "emptydir-path"

    assert text.startswith('Pod "emptyDir-path" is invalid: metadata.name: Invalid value: "emptyDir-path": a lowercase')
    assert text.endswith('; try "emptydir-path"')
    assert objects.pod.volumes(objects.admit(given))[0].kind == "emptyDir"


def test_the_printed_claim_keeps_its_binding() -> None:
    """What a user may set survives: annotations, finalizers, owners, the volume's name."""
    (given,) = objects.load(SEED["claim-as-printed"], "claim.yaml")
    admitted = objects.admit(given)

    assert objects.key(admitted) == ("PersistentVolumeClaim", "dlkit-resources", "dlkit-workspace-test")
    assert admitted["spec"] == given["spec"]
    for field in ("annotations", "finalizers", "labels", "ownerReferences"):
        assert admitted["metadata"][field] == given["metadata"][field]
