{{- define "proxy-agent.image" -}}
{{ if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end -}}
{{- define "proxy-agent.securityContext" }}
        securityContext:
          {{- if .Values.security.privileged }}
          privileged: true
          {{- else }}
          # No allowPrivilegeEscalation: SYS_ADMIN implies it.
          capabilities:
            drop: [ALL]
            add:
              {{- toYaml .Values.security.capabilities | nindent 14 }}
          {{- with .Values.security.seccompProfile }}
          seccompProfile:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with .Values.security.appArmorProfile }}
          appArmorProfile:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with .Values.security.seLinuxOptions }}
          seLinuxOptions:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- end }}
          readOnlyRootFilesystem: true
          runAsUser: 0
{{- end -}}
