{{/* Tag of all images. */}}
{{- define "mesh.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* Labels of an object: dict "root" $ "component" NAME. */}}
{{- define "mesh.labels" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ .component | trimPrefix "mesh-" }}
app.kubernetes.io/part-of: mesh
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels by which a component's pods are found; they never change. */}}
{{- define "mesh.selector" -}}
app: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* Security context of our containers: Pod Security Standard "restricted", and a read-only root. */}}
{{- define "mesh.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "mesh.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where pods of a component go: dict "root" $ "component" NAME "values" VALUES. */}}
{{- define "mesh.scheduling" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "mesh.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "mesh.selector" . | nindent 8 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The MeshConfig's spec: the values, with defaults that depend on the release. */}}
{{- define "mesh.meshConfigSpec" -}}
{{- $defaults := dict "trustDomain" "cluster.local" "rootNamespace" .Release.Namespace -}}
{{- toYaml (mergeOverwrite $defaults (deepCopy .Values.meshConfig)) -}}
{{- end -}}

{{- define "mesh.trustDomain" -}}
{{- .Values.meshConfig.trustDomain | default "cluster.local" -}}
{{- end -}}

{{/* "true" when Istio's injection labels count. */}}
{{- define "mesh.istioLabels" -}}
{{- $wish := toString .Values.injection.istioLabels -}}
{{- if eq $wish "true" -}}
true
{{- else if eq $wish "auto" -}}
{{- $found := dict -}}
{{- range (lookup "admissionregistration.k8s.io/v1" "MutatingWebhookConfiguration" "" "").items -}}
{{- if or (eq .metadata.name "istio-sidecar-injector") (hasPrefix "istio-sidecar-injector-" .metadata.name) (hasPrefix "istio-revision-tag-" .metadata.name) -}}
{{- $_ := set $found "istio" "true" -}}
{{- end -}}
{{- end -}}
{{- if not $found.istio -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" when this release may write the CRD of that name: dict "root" $ "name" NAME. */}}
{{- define "mesh.ownsCrd" -}}
{{- $existing := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- if not $existing -}}
true
{{- else -}}
{{- $annotations := $existing.metadata.annotations | default dict -}}
{{- $labels := $existing.metadata.labels | default dict -}}
{{- $ours := eq (get $labels "app.kubernetes.io/part-of" | toString) "mesh" -}}
{{- if and $ours .root.Values.crds.takeOver -}}
true
{{- else if and $ours (eq (get $annotations "meta.helm.sh/release-name" | toString) .root.Release.Name) (eq (get $annotations "meta.helm.sh/release-namespace" | toString) .root.Release.Namespace) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}
