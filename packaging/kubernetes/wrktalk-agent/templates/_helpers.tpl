{{/* The name of every object, and the label by which they are found. */}}
{{- define "wrktalk-agent.name" -}}
{{ .Values.nameOverride | default .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "wrktalk-agent.labels" -}}
{app.kubernetes.io/name: {{ include "wrktalk-agent.name" . }}}
{{- end }}

{{- define "wrktalk-agent.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "wrktalk-agent.name" .) }}
{{- end }}

{{- define "wrktalk-agent.secret" -}}
{{ .Values.db.existingSecret | default (printf "%s-db" (include "wrktalk-agent.name" .)) }}
{{- end }}

{{- define "wrktalk-agent.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ .Values.image.tag | default .Chart.AppVersion | required "image.tag: none is published yet; build an image, push it, and name it here" }}
{{- end }}
{{- end }}
