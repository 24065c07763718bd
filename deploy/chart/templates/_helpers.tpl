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
{{- define "proxy-agent.args" }}
        {{- if .Values.kubeProxyConfigMap }}
        - --config=/var/lib/kube-proxy/config.conf
        {{- end }}
        {{- if ne .Values.logFormat "text" }}
        - --log-format={{ .Values.logFormat }}
        {{- end }}
        {{- if ne (int .Values.logVerbosity) 2 }}
        - --v={{ int .Values.logVerbosity }}
        {{- end }}
        {{- if .Values.ipv6Only }}
        - --healthz-bind-address=[::]:10256
        {{- end }}
        {{- if or .Values.metricsOnNodeAddress .Values.monitoring.podMonitor }}
        - --metrics-bind-address={{ if .Values.ipv6Only }}[::]{{ else }}0.0.0.0{{ end }}:10249
        {{- else if .Values.ipv6Only }}
        - --metrics-bind-address=[::1]:10249
        {{- end }}
        {{- range .Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
{{- end -}}
{{- define "proxy-agent.env" }}
        env:
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
        {{- if not .Values.kubeProxyConfigMap }}
        envFrom:
        - configMapRef:
            name: proxy-agent
        {{- end }}
{{- end -}}
{{- define "proxy-agent.volumeMounts" }}
        volumeMounts:
        # Maps and links are pinned here and outlive the agent.
        - name: bpffs
          mountPath: /sys/fs/bpf
          mountPropagation: {{ if .Values.security.privileged }}Bidirectional{{ else }}HostToContainer{{ end }}
        # The node's hierarchy: the container's own /sys/fs/cgroup shows no other process's cgroup.
        - name: cgroup
          mountPath: /host/cgroup
          readOnly: true
        # The container's own /proc/sys and /sys are read-only. Written: source ports that are kept off local sockets, accept_local of lo,
        # limits and timeouts of conntrack as kube-proxy sets them.
        - name: net-settings
          mountPath: /host/proc/sys/net
        # Written while many programs are attached.
        - name: rcu-expedited
          mountPath: /host/sys/kernel/rcu_expedited
        {{- if .Values.kubeProxyConfigMap }}
        - name: kube-proxy
          mountPath: /var/lib/kube-proxy
          readOnly: true
        {{- end }}
{{- end -}}
