#!/usr/bin/env bash
# Makes a kind cluster of three nodes with proxy-agent in place of kube-proxy. Needs kind, kubectl, helm and docker.
#   cargo xtask image && deploy/kind/up.sh target/proxy-agent.oci.tar
set -euo pipefail
image=${1:?usage: up.sh IMAGE-ARCHIVE [NAME=VALUE of the chart ...]}
shift
here=$(cd "$(dirname "$0")" && pwd)

kind create cluster --config "$here/cluster.yaml"
kind load image-archive --name proxy-agent "$image"

# kind's nodes have the API server at the control plane's address. Its certificate names it.
address=$(kubectl get node proxy-agent-control-plane \
    -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}' | cut -d' ' -f1)
settings=()
for setting in "$@"; do settings+=(--set "$setting"); done
# Nodes are containers: systemd mounts no bpf file system in them, so the agent has to.
helm install proxy-agent "$here/../chart" --namespace kube-system \
    --set "apiServers={https://$address:6443}" --set security.privileged=true "${settings[@]}"
kubectl -n kube-system rollout status daemonset/proxy-agent --timeout=3m
kubectl wait --for=condition=Ready nodes --all --timeout=3m
kubectl -n kube-system rollout status deployment/coredns --timeout=3m
