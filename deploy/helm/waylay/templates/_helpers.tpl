{{- define "waylay.name" -}}
{{- if contains "waylay" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-waylay" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "waylay.selector" -}}
app.kubernetes.io/name: waylay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "waylay.labels" -}}
{{ include "waylay.selector" . }}
app.kubernetes.io/component: agent
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "waylay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The node's folder of the runtime's socket, and where the agent looks for it. */ -}}
{{- define "waylay.runtime" -}}
{{ get (dict "containerd" "/run/containerd" "cri-o" "/run/crio" "k3s" "/run/k3s/containerd") .Values.runtime }}
{{- end }}

{{- /* The configuration, with `select` put where it belongs. */ -}}
{{- define "waylay.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.select -}}
{{- $config = mergeOverwrite $config (dict "intercept" (dict "pods" (dict "select" .Values.select))) -}}
{{- end -}}
{{ toYaml $config }}
{{- end }}

{{- define "waylay.refuses" -}}
{{- if eq (dig "intercept" "on_agent_loss" "allow" .Values.config) "refuse" }}true{{ end }}
{{- end }}

{{- /* What the containers that write into the node's CNI folders have in common. */ -}}
{{- define "waylay.cni" -}}
image: {{ include "waylay.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
  {{- with .Values.seccompProfile }}
  seccompProfile:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with .Values.cni.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: cni-bin, mountPath: /host/opt/cni/bin}
  - {name: cni-conf, mountPath: /host/etc/cni/net.d}
{{- end }}
