{{- define "sheepdog.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sheepdog.labels" -}}
app.kubernetes.io/name: sheepdog
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* (list . image): registry/repository:tag; the global registry replaces the image's own. */ -}}
{{- define "sheepdog.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistry | default $image.registry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{- define "sheepdog.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sheepdog.secret" -}}
{{- .Values.cluster.secretName | default (printf "%s-secret" .Values.cluster.name) -}}
{{- end -}}

{{- define "sheepdog.hostDir" -}}
{{- printf "%s/%s" (trimSuffix "/" .Values.cluster.dataDir) .Values.cluster.name -}}
{{- end -}}

{{- define "sheepdog.snapshots" -}}
{{- $want := .Values.csi.sidecars.snapshotter.enabled | toString -}}
{{- if or (eq $want "true") (and (eq $want "auto") (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1/VolumeSnapshot")) -}}true{{- end -}}
{{- end -}}

{{- define "sheepdog.groupSnapshots" -}}
{{- if and (include "sheepdog.snapshots" .) (.Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshot") -}}true{{- end -}}
{{- end -}}

{{- define "sheepdog.snapshotMetadata" -}}
{{- printf "%s-csi-metadata" (include "sheepdog.name" .) -}}
{{- end -}}

{{- define "sheepdog.attributesClasses" -}}
{{- if .Capabilities.APIVersions.Has "storage.k8s.io/v1/VolumeAttributesClass" -}}true{{- else -}}false{{- end -}}
{{- end -}}

{{- /* What every container that needs nothing of its host gets. */ -}}
{{- define "sheepdog.restricted" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "sheepdog.selector" -}}
app.kubernetes.io/name: sheepdog
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}
