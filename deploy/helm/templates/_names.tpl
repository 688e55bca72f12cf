{{- define "maveriq.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Of a root and a component: what its pods are chosen by. */}}
{{- define "maveriq.selector" -}}
app.kubernetes.io/name: maveriq
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "maveriq.labels" -}}
{{ include "maveriq.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "maveriq.secret" -}}
{{- .Values.existingSecret | default (printf "%s-connections" (include "maveriq.name" .)) -}}
{{- end }}

{{/* Of a root, a service and an engine. */}}
{{- define "maveriq.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end -}}
maveriq-{{ .service }}{{ if eq (.engine | default "") "trtllm" }}-trtllm{{ end }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Metadata of a pod; it is started anew when a setting changes. */}}
{{- define "maveriq.podMetadata" -}}
labels: {{- include "maveriq.labels" . | nindent 2 }}
annotations:
  checksum/settings: {{ toJson .root.Values.settings | sha256sum }}
  {{- if not .root.Values.metrics.podMonitor }}
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ .port | default 8001 | quote }}
  {{- end }}
{{- end }}

{{- define "maveriq.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # they would look like settings of ours
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
{{- end }}

{{/* What every service's container has: of a root, a service, an engine and the port that tells of its health. */}}
{{- define "maveriq.container" -}}
image: {{ include "maveriq.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [python, -m, maveriq_{{ .service }}]
securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
envFrom:
  - configMapRef: {name: {{ include "maveriq.name" .root }}-settings}
startupProbe: {httpGet: {path: /healthz, port: {{ .port | default 8001 }}}, periodSeconds: 5, failureThreshold: 36}
livenessProbe: {httpGet: {path: /healthz, port: {{ .port | default 8001 }}}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
readinessProbe: {httpGet: {path: /readyz, port: {{ .port | default 8001 }}}, periodSeconds: 10, timeoutSeconds: 5}
{{- end }}

{{/* Entries of a container's env, of a root and a service: planner and workers have no business in Redis. */}}
{{- define "maveriq.env" -}}
- name: MAVERIQ_AMQP_URL
  valueFrom: {secretKeyRef: {name: {{ include "maveriq.secret" .root }}, key: amqp-url}}
{{- if has .service (list "ingress" "profiler" "allocator") }}
- name: MAVERIQ_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "maveriq.secret" .root }}, key: redis-url}}
{{- end }}
- {name: MAVERIQ_HTTP_HOST, value: "0.0.0.0"}
- {name: MAVERIQ_HEALTH_PORT, value: "8001"}
{{- end }}
