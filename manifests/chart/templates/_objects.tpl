{{- /*
The objects are those of manifests/, read from files/ (links to them, which `helm package` resolves), so that there is one
source; here they are only changed as the values say.
*/ -}}

{{- /* What stands in a file, for this release: dict "root" $ "file" "rbac.yaml". */ -}}
{{- define "fusevol.text" -}}
{{- $text := .root.Files.Get (printf "files/%s" .file) | required (printf "the chart lacks files/%s" .file) -}}
{{- $text | replace "/var/lib/kubelet" .root.Values.kubeletDir | replace "fusevol-system" .root.Release.Namespace -}}
{{- end -}}

{{- /* One object as YAML, labelled as this release's: dict "root" $ "object" $object. */ -}}
{{- define "fusevol.object" -}}
{{- $labels := dict "app.kubernetes.io/managed-by" .root.Release.Service "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version) -}}
{{- $_ := set .object.metadata "labels" (merge $labels (.object.metadata.labels | default dict)) -}}
---
{{ toYaml .object }}
{{ end -}}

{{- /* Give a Pod's container the nodes' directories that pools are in: dict "root" $ "pod" $pod "container" $container. */ -}}
{{- define "fusevol.pools" -}}
{{- range $number, $path := .root.Values.poolPaths -}}
{{- $name := printf "pool-%d" $number -}}
{{- $volume := dict "name" $name "hostPath" (dict "path" $path "type" "DirectoryOrCreate") -}}
{{- $mount := dict "name" $name "mountPath" $path "mountPropagation" "Bidirectional" -}}
{{- $_ := set $.pod "volumes" (append $.pod.volumes $volume) -}}
{{- $_ := set $.container "volumeMounts" (append $.container.volumeMounts $mount) -}}
{{- end -}}
{{- end -}}

{{- /* All objects of a file as they are. */ -}}
{{- define "fusevol.file" -}}
{{- $root := .root -}}
{{- range splitList "\n---\n" (include "fusevol.text" .) -}}
{{- include "fusevol.object" (dict "root" $root "object" (fromYaml .)) -}}
{{- end -}}
{{- end -}}

{{- /* The values that a kustomize component adds to the DaemonSet, in their order, as a YAML list of JSON patches. */ -}}
{{- define "fusevol.patch" -}}
{{- $component := include "fusevol.text" . | fromYaml -}}
{{- (index $component.patches 0).patch -}}
{{- end -}}
