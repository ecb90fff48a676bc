{{/*
Names are fixed: clients look for the pod tp-manager-0, agents for the Service tp-manager. One manager per namespace.
*/}}
{{- define "tp-manager.name" -}}
tp-manager
{{- end }}

{{/*
Name of cluster-wide objects, where the managers of several namespaces meet.
*/}}
{{- define "tp-manager.clusterName" -}}
{{ include "tp-manager.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{/*
Labels that never change, by which the pod is selected.
*/}}
{{- define "tp-manager.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tp-manager.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tp-manager.labels" -}}
{{ include "tp-manager.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tp
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
Whether the API server has to be asked for its service subnets by a dry run, since it has no ServiceCIDR API.
*/}}
{{- define "tp-manager.probesServiceSubnets" -}}
{{- if not (or .Values.cluster.serviceSubnets (.Capabilities.APIVersions.Has "networking.k8s.io/v1/ServiceCIDR")) }}true{{ end }}
{{- end }}

{{/*
Whether the manager finds out who its clients are. It does by default: --reuse-values brings no defaults of later charts.
*/}}
{{- define "tp-manager.identifies" -}}
{{- if and .Values.engage.enabled (ne .Values.authorization "port-forward-only") }}true{{ end }}
{{- end }}

{{/*
Whether pods that ask for an agent get one.
*/}}
{{- define "tp-manager.injects" -}}
{{- if and .Values.engage.enabled (has .Values.engage.inject (list "enabled" "on-demand")) }}true{{ end }}
{{- end }}

{{/*
Whether the API server has anything to ask the manager.
*/}}
{{- define "tp-manager.hasWebhooks" -}}
{{- if or (include "tp-manager.identifies" .) (include "tp-manager.injects" .) }}true{{ end }}
{{- end }}
