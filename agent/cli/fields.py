"""The fields of the kinds, for ``fusevol explain``: what is validated or used here, and nothing else.

One type after the other: its name and text, then its fields with their types. A type with a capital letter is described
further below; ``[]`` is a list, ``{}`` a mapping with free keys; ``!`` marks what must be given.
"""

from __future__ import annotations

TEXT = """\
StorageClass: how volumes are made for claims that name it
apiVersion string! storage.k8s.io/v1
kind string! StorageClass
metadata Metadata! name, labels, annotations; it has no namespace
provisioner string! who makes volumes: fusevol.io/fusevol, ceph.com/cephfs, or nobody: kubernetes.io/no-provisioner
parameters {}string for fusevol: pool, mode, inodes, quota
reclaimPolicy string what happens to a volume whose claim is deleted: Delete (default) or Retain
volumeBindingMode string when a claim gets its volume: Immediate (default) or WaitForFirstConsumer, with its first Pod
allowVolumeExpansion boolean whether claims may ask for more later
mountOptions []string given to each volume that is made: ro, cache=..., transport=..., passthrough=...
allowedTopologies []TopologyTerm on which nodes volumes may be made; kept, not used on one machine

TopologyTerm: a set of nodes
matchLabelExpressions []TopologyLabel! labels that a node must have

TopologyLabel: one label of a node
key string! the label
values []string! what it may be

PersistentVolume: storage that one claim at a time can have
apiVersion string! v1
kind string! PersistentVolume
metadata Metadata! name, labels for the selectors of claims; it has no namespace
spec VolumeSpec! what it is and who may have it
status VolumeStatus written by the agent

VolumeSpec: what a PersistentVolume is and who may have it; it has exactly one source
capacity Capacity! how large it is
accessModes []string! ReadWriteOnce, ReadOnlyMany, ReadWriteMany, or ReadWriteOncePod alone
persistentVolumeReclaimPolicy string when its claim is gone: Retain (default), Delete or Recycle
storageClassName string only claims of this class get it; empty: only claims without a class
volumeMode string Filesystem (default); Block is kept, and cannot be mounted
mountOptions []string ro, cache=exclusive|shared|none, transport=auto|kernel|pyfuse3, passthrough=auto|off
claimRef ClaimReference the claim that has it, or for which it is reserved
nodeAffinity NodeAffinity on which nodes it can be reached; a local source needs it
volumeAttributesClassName string must be the claim's
hostPath HostPath source: a path of this machine
local LocalPath source: a directory or device of one node
csi CsiVolume source: a volume of a CSI driver; fusevol.io is served here
flexVolume FlexVolume source: a volume of a FlexVolume driver
cephfs CephFs source: a directory of a CephFS
nfs NfsVolume source that is kept, and not mounted here
iscsi IscsiVolume source that is kept, and not mounted here

Capacity: a size
storage quantity! bytes, such as 10Gi

ClaimReference: a claim
kind string PersistentVolumeClaim
apiVersion string v1
namespace string where it is
name string what it is called
uid string which one of that name; empty: whichever comes
resourceVersion string written by the agent

NodeAffinity: which nodes
required NodeSelector! what a node must be

NodeSelector: one of several descriptions
nodeSelectorTerms []NodeTerm! one of them must fit

NodeTerm: what must all be so
matchExpressions []NodeExpression about labels of the node
matchFields []NodeExpression about fields of the node

NodeExpression: one thing about a node
key string! a label or field
operator string! In, NotIn, Exists, DoesNotExist, Gt or Lt
values []string what it is compared with

VolumeStatus: how a PersistentVolume is
phase string Available, Bound, Released or Failed
reason string why it failed, in a word
message string why it failed, in a sentence
lastPhaseTransitionTime time since when it is in its phase

PersistentVolumeClaim: what a Pod asks for when it needs storage that outlives it
apiVersion string! v1
kind string! PersistentVolumeClaim
metadata Metadata! name, namespace, labels, annotations
spec ClaimSpec! what is asked for
status ClaimStatus written by the agent

ClaimSpec: what a claim asks for
accessModes []string! ReadWriteOnce, ReadOnlyMany, ReadWriteMany, or ReadWriteOncePod alone
resources ClaimResources! how much
storageClassName string which class makes it; left out: the default class; empty: none, only volumes that exist
volumeName string the one volume that is wanted; else written by the agent
volumeMode string Filesystem (default) or Block
selector Selector labels of the volumes that may be taken; only for volumes that exist
dataSource DataSource what it is filled from: a claim or a VolumeSnapshot
dataSourceRef DataSource the same; each is copied to the other
volumeAttributesClassName string must be the volume's

ClaimResources: sizes
requests Capacity! the least that is wanted; may grow once it is bound, if the class allows it
limits Capacity accepted, and not used

Selector: which labels
matchLabels {}string labels that there must be
matchExpressions []LabelExpression conditions that must all hold

LabelExpression: a condition on one label
key string! the label
operator string! In, NotIn, Exists or DoesNotExist
values []string for In and NotIn

DataSource: what a volume is filled from
apiGroup string empty for a claim, snapshot.storage.k8s.io for a snapshot
kind string! PersistentVolumeClaim or VolumeSnapshot
name string! its name, in the same namespace

ClaimStatus: how a claim is
phase string Pending, Bound or Lost
accessModes []string those of its volume
capacity Capacity what it has been given
conditions []Condition what is being done with it, such as Resizing
allocatedResources Capacity the size that is being worked on
allocatedResourceStatuses {}string how far that is

Condition: something that is so or not
type string what
status string True, False or Unknown
reason string why, in a word
message string why, in a sentence
lastTransitionTime time since when

Pod: containers that run together, and the volumes that they share
apiVersion string! v1
kind string! Pod
metadata Metadata! name, namespace, labels, annotations
spec PodSpec! what runs
status PodStatus written by the agent and by `fusevol run`

PodSpec: what a Pod runs and what it needs for that
containers []Container! what runs, side by side
initContainers []Container what runs before, one after the other
volumes []PodVolume what containers can mount
restartPolicy string when an ended container starts again: Always (default), OnFailure or Never
terminationGracePeriodSeconds integer what containers get to end before they are killed
securityContext PodSecurity who its processes are, and whose its volumes
nodeSelector {}string kept, not used on one machine

PodSecurity: who a Pod's processes are, and whose its volumes
fsGroup integer the group that gets its volumes' files
fsGroupChangePolicy string Always (default), or OnRootMismatch: only if the volume's root is not the group's yet
runAsUser integer uid of the processes
runAsGroup integer gid of the processes
supplementalGroups []integer further groups of the processes

Container: one program with its image
name string! its name in the Pod
image string! what it is made from
imagePullPolicy string Always, IfNotPresent or Never
command []string what is run instead of the image's entry point
args []string its arguments
workingDir string where it starts
env []Variable its variables
envFrom []VariableSource objects whose keys become variables
volumeMounts []VolumeMount which volumes it sees, and where
volumeDevices []VolumeDevice block devices; kept, and not served here
securityContext ContainerSecurity what it may do

ContainerSecurity: what a container may do
privileged boolean everything; needed for Bidirectional propagation

Variable: an environment variable
name string! what it is called
value string what it is; $(NAME) stands for an earlier one
valueFrom ValueFrom where it comes from instead

ValueFrom: where a variable comes from; exactly one
secretKeyRef KeyReference a key of a Secret
configMapKeyRef KeyReference a key of a ConfigMap
fieldRef FieldReference a field of the Pod
resourceFieldRef ResourceReference a resource of a container

VariableSource: an object whose keys become variables
prefix string put before each name
secretRef ObjectReference a Secret
configMapRef ObjectReference a ConfigMap

ObjectReference: an object of the namespace
name string! its name
optional boolean whether it may be missing

KeyReference: a key of an object of the namespace
name string! the object's name
key string! which key
optional boolean whether it may be missing

VolumeMount: a volume in a container
name string! which volume of the Pod
mountPath string! where in the container
readOnly boolean whether writes are refused
recursiveReadOnly string Disabled (default), IfPossible or Enabled: also for mounts inside
subPath string only this part of the volume
subPathExpr string the same, with $(NAME) for variables
mountPropagation string None (default), HostToContainer or Bidirectional

VolumeDevice: a block device in a container
name string! which volume of the Pod
devicePath string! where in the container

PodVolume: one volume of a Pod, with exactly one source
name string! what mounts call it
emptyDir EmptyDir a directory that lives as long as the Pod
hostPath HostPath a path of this machine
persistentVolumeClaim ClaimSource a claim of the Pod's namespace
ephemeral EphemeralVolume a claim that is made with the Pod and goes with it
secret SecretVolume a Secret's values as files
configMap ConfigMapVolume a ConfigMap's values as files
downwardAPI DownwardVolume fields of the Pod as files
projected ProjectedVolume several of these in one directory
csi CsiInline a volume of a CSI driver that lives as long as the Pod
flexVolume FlexVolume a volume of a FlexVolume driver

EmptyDir: a directory that lives as long as the Pod
medium string empty: in a pool; Memory: a tmpfs; HugePages, HugePages-2Mi: a hugetlbfs
sizeLimit quantity a hard limit; none without it
mode integer permission bits of the directory

HostPath: a path of this machine
path string! absolute
type string what must be there: Directory(OrCreate), File(OrCreate), Socket, CharDevice, BlockDevice; empty: anything

LocalPath: a directory or device of one node
path string! it must exist
fsType string for a device; not used here

ClaimSource: a claim of the Pod's namespace
claimName string! its name
readOnly boolean whether all mounts of it refuse writes

EphemeralVolume: a claim of the Pod's own
volumeClaimTemplate ClaimTemplate! what it is made from; it is called POD-VOLUME

ClaimTemplate: a claim to be made
metadata Metadata its labels and annotations
spec ClaimSpec! what is asked for

SecretVolume: a Secret's values as files
secretName string! which Secret
items []KeyPath only these keys; else all
defaultMode integer permission bits of the files (default: 0644)
optional boolean whether Secret and keys may be missing

ConfigMapVolume: a ConfigMap's values as files
name string! which ConfigMap
items []KeyPath only these keys; else all
defaultMode integer permission bits of the files (default: 0644)
optional boolean whether ConfigMap and keys may be missing

KeyPath: a key and its file
key string! which key
path string! relative path of the file
mode integer its permission bits

DownwardVolume: fields of the Pod as files
items []DownwardItem the files
defaultMode integer permission bits of the files (default: 0644)

DownwardItem: one file about the Pod, of a field or of a resource
path string! relative path of the file
fieldRef FieldReference a field of the Pod
resourceFieldRef ResourceReference a resource of a container
mode integer its permission bits

FieldReference: a field of the Pod
apiVersion string v1
fieldPath string! metadata.name, .namespace, .uid, .labels, .annotations, or one of them: metadata.labels['KEY']

ResourceReference: a resource of a container
containerName string which container; must be given in a volume
resource string! limits.cpu, requests.memory and the like
divisor quantity what it is divided by (default: 1)

ProjectedVolume: several sources in one directory
sources []ProjectedSource the sources; a later one goes over an earlier one
defaultMode integer permission bits of the files (default: 0644)

ProjectedSource: exactly one of these
secret ProjectedObject a Secret
configMap ProjectedObject a ConfigMap
downwardAPI ProjectedDownward fields of the Pod

ProjectedObject: an object's values as files
name string! its name
items []KeyPath only these keys; else all
optional boolean whether object and keys may be missing

ProjectedDownward: fields of the Pod as files
items []DownwardItem the files

CsiInline: a volume of a CSI driver that lives as long as the Pod
driver string! fusevol.io
readOnly boolean whether writes are refused
fsType string not used here
volumeAttributes {}string what the driver wants to know, such as size
nodePublishSecretRef LocalReference a Secret for the driver

LocalReference: an object of the same namespace
name string! its name

CsiVolume: a volume of a CSI driver
driver string! fusevol.io
volumeHandle string! POOL/VOLUME
readOnly boolean whether writes are refused
fsType string not used here
volumeAttributes {}string what the driver told when it was made

FlexVolume: a volume of a FlexVolume driver
driver string! fusevol.io/fusevol
fsType string not used here
readOnly boolean whether writes are refused
secretRef LocalReference a Secret for the driver
options {}string such as fusevol/claim and fusevol/size

CephFs: a directory of a CephFS
monitors []string! addresses of the cluster's monitors
path string the directory
user string the Ceph user
secretFile string a keyring on this machine
secretRef SecretReference a Secret with the key
readOnly boolean whether writes are refused

SecretReference: a Secret
name string what it is called
namespace string where it is, in a PersistentVolume; a Pod's is in its own

NfsVolume: a directory of an NFS server
server string! the server
path string! the directory
readOnly boolean whether writes are refused

IscsiVolume: a device of an iSCSI target
targetPortal string! address of the target
iqn string! its name
lun integer which device

PodStatus: how a Pod is
phase string Pending, Running, Succeeded or Failed
conditions []Condition VolumesReady, and why not
volumeMounts []MountStatus where each container's volumes are on this machine
containerStatuses []ContainerStatus how its containers are

MountStatus: a container's volume on this machine
container string which container
name string which volume
hostPath string where it is on this machine
mountPath string where it is in the container
readOnly boolean whether writes are refused

ContainerStatus: how a container is
name string which one
ready boolean whether it runs
restartCount integer how often it was started again

Secret: small values that not everybody may see
apiVersion string! v1
kind string! Secret
metadata Metadata! name, namespace, labels, annotations
type string what it is for (default: Opaque)
data {}string the values in base64
stringData {}string values as they are; goes over data when it is written
immutable boolean whether its values are fixed for good

ConfigMap: settings
apiVersion string! v1
kind string! ConfigMap
metadata Metadata! name, namespace, labels, annotations
data {}string texts
binaryData {}string other values in base64
immutable boolean whether its values are fixed for good

VolumeSnapshot: a claim's data as it was at a moment
apiVersion string! snapshot.storage.k8s.io/v1
kind string! VolumeSnapshot
metadata Metadata! name, namespace, labels, annotations
spec SnapshotSpec! of what
status SnapshotStatus written by the agent

SnapshotSpec: what a snapshot is of
source SnapshotSource! exactly one of them
volumeSnapshotClassName string which class; left out: the default one

SnapshotSource: what a snapshot is of
persistentVolumeClaimName string a claim of the same namespace
volumeSnapshotContentName string a content that exists

SnapshotStatus: how a snapshot is
boundVolumeSnapshotContentName string what it has
readyToUse boolean whether claims can be filled from it
restoreSize quantity the least size of such a claim
creationTime time of which moment it is
error SnapshotError what went wrong

SnapshotError: what went wrong
time time when
message string what

VolumeSnapshotClass: how snapshots are made
apiVersion string! snapshot.storage.k8s.io/v1
kind string! VolumeSnapshotClass
metadata Metadata! name, labels, annotations; it has no namespace
driver string! who makes them: fusevol.io
deletionPolicy string! what happens to the data of a snapshot that is deleted: Delete or Retain
parameters {}string for the driver

VolumeSnapshotContent: a snapshot's data in a pool
apiVersion string! snapshot.storage.k8s.io/v1
kind string! VolumeSnapshotContent
metadata Metadata! name, labels, annotations; it has no namespace
spec ContentSpec! what it is
status ContentStatus written by the agent

ContentSpec: what a snapshot's data is
driver string! whose it is
deletionPolicy string! Delete or Retain
source ContentSource! exactly one of them
volumeSnapshotRef SnapshotReference! the snapshot that has it
volumeSnapshotClassName string which class it was made by
sourceVolumeMode string Filesystem or Block

ContentSource: where the data is from
volumeHandle string the volume that the snapshot is of
snapshotHandle string a snapshot that exists

SnapshotReference: a snapshot
namespace string! where it is
name string! what it is called
uid string which one of that name

ContentStatus: how it is
snapshotHandle string what it is called in its pool
creationTime integer of which moment it is, in nanoseconds since 1970
restoreSize integer bytes
readyToUse boolean whether it can be used
error SnapshotError what went wrong

Metadata: what every object has
name string! its name: lower-case letters, digits, - and .
namespace string where it is (default: default)
labels {}string for selectors
annotations {}string for everything else
finalizers []string what must be done before it can go
ownerReferences []OwnerReference the objects that it belongs to
uid string written by the agent: which one of that name
resourceVersion string written by the agent: given back, a change is refused if somebody was quicker
selfLink string of old servers; dropped
creationTimestamp time written by the agent
deletionTimestamp time written by the agent: since when it is to go

OwnerReference: an object that this one belongs to
apiVersion string! its API
kind string! its kind
name string! its name
uid string! which one of that name
controller boolean whether the owner manages this object; one owner at most does
blockOwnerDeletion boolean kept, and not looked at here
"""
