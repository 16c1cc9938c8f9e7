{{/* Which release this is: on every object, in no selector. */}}
{{- define "election-agent.release" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "election-agent.labels" -}}
app.kubernetes.io/name: election-agent
{{ include "election-agent.release" . }}
{{- end }}

{{- define "election-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* The names of the Redis servers, separated by spaces. */}}
{{- define "election-agent.servers" -}}
{{- $servers := int .Values.redis.servers -}}
{{- if eq $servers 1 }}redis{{ else if eq $servers 3 }}redis-a redis-b redis-c{{ else if eq $servers 5 }}redis-a redis-b redis-c redis-d redis-e{{ end -}}
{{- end }}

{{/* Whether agents ask the API server. */}}
{{- define "election-agent.asksApiServer" -}}
{{- if or .Values.tokenReview.enabled (ne .Values.podLookup "none") }}true{{ end -}}
{{- end }}

{{/* All settings, those of `settings` last. */}}
{{- define "election-agent.settings" -}}
{{- $settings := dict "EA_HTTP_PORT" "8080" "EA_GRPC_PORT" "8443" "EA_SHUTDOWN_GRACE" "30s" "EA_KUBE_ENABLE" (ne .Values.podLookup "none" | toString) -}}
{{- with include "election-agent.servers" . -}}
{{- $urls := list -}}
{{- range splitList " " . }}{{ $urls = append $urls (printf "redis://%s:6379/0" .) }}{{ end -}}
{{- $_ := set $settings "EA_REDIS_URLS" (join "," $urls) -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $settings "EA_TLS_CERT_FILE" "/etc/election-agent/tls/tls.crt" -}}
{{- $_ := set $settings "EA_TLS_KEY_FILE" "/etc/election-agent/tls/tls.key" -}}
{{- end -}}
{{- $modes := list -}}
{{- if .Values.tokens.enabled -}}
{{- $modes = append $modes "token" -}}
{{- $_ := set $settings "EA_AUTH_TOKEN_FILE" "/etc/election-agent/tokens/tokens" -}}
{{- end -}}
{{- if .Values.tokenReview.enabled -}}
{{- $modes = append $modes "kubernetes" -}}
{{- $_ := set $settings "EA_AUTH_KUBERNETES_AUDIENCES" .Values.tokenReview.audiences -}}
{{- end -}}
{{- if $modes }}{{ $_ := set $settings "EA_AUTH_MODES" (join "," $modes) }}{{ end -}}
{{- with .Values.traces }}{{ if .enabled -}}
{{- $_ := set $settings "OTEL_EXPORTER_OTLP_ENDPOINT" .endpoint -}}
{{- $_ := set $settings "OTEL_EXPORTER_OTLP_PROTOCOL" .protocol -}}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER" .sampler -}}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER_ARG" .samplerArg -}}
{{- end }}{{ end -}}
{{- range $name, $value := .Values.settings }}{{ $_ := set $settings $name $value }}{{ end -}}
{{- range $name, $value := $settings }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* A rule for names. */}}
{{- define "election-agent.names" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
      podSelector:
        matchLabels:
          k8s-app: kube-dns
    # NodeLocal DNSCache.
    - ipBlock:
        cidr: 169.254.20.10/32
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}

{{/* A probe: gRPC, of which Kubernetes' speak no TLS, or HTTPS. */}}
{{- define "election-agent.probe" -}}
{{- if .root.Values.tls.enabled -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: HTTPS
{{- else -}}
grpc:
  port: 8443
  service: {{ .service }}
{{- end }}
{{- end }}
