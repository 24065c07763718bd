//! `/configz`: the settings in effect, as kube-proxy shows its own.

use serde_json::{Value, json};

use super::Settings;
use crate::{datapath::Reject, logging::LogFormat};

/// The settings under kube-proxy's key: those that its configuration has a field for in that field, the rest in `proxyAgent`.
pub fn configz(settings: &Settings) -> Value {
    let texts = |list: &[String]| Value::from(list.to_vec());
    let display = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<_>>();
    let seconds = |seconds: u32| format!("{seconds}s");
    json!({
        "kubeproxy.config.k8s.io": {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "ebpf",
            "bindAddress": settings.bind_address,
            "bindAddressHardFail": settings.bind_address_hard_fail,
            "conntrack": {
                "tcpBeLiberal": settings.conntrack.tcp_be_liberal,
                "tcpCloseWaitTimeout": seconds(settings.timeouts.tcp_half_closed),
                "tcpEstablishedTimeout": seconds(settings.timeouts.tcp_established),
                "udpStreamTimeout": seconds(settings.timeouts.datagram_answered),
                "udpTimeout": seconds(settings.timeouts.datagram_new),
            },
            "clientConnection": { "kubeconfig": settings.kubeconfig },
            "healthzBindAddress": settings.healthz_bind_address,
            "hostnameOverride": settings.node_name,
            "iptables": { "localhostNodePorts": settings.localhost_nodeports },
            "logging": {
                "format": match settings.log_format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                },
                "verbosity": settings.verbosity,
            },
            "metricsBindAddress": settings.metrics_bind_address,
            "nodePortAddresses": display(&mut settings.nodeport_addresses.iter().map(ToString::to_string)),
            "oomScoreAdj": settings.oom_score_adj,
            "proxyAgent": {
                "apiServers": settings.api_servers,
                "bpffs": settings.bpffs,
                "cgroupRoot": settings.cgroup_root,
                "endpointSettleTime": format!("{:?}", settings.endpoint_settle_time),
                "externalClusterIPs": settings.external_cluster_ips,
                "kernelLog": settings.kernel_log.map(|level| format!("{level:?}").to_lowercase()),
                "manifests": settings.manifests,
                "maxFlows": settings.max_flows,
                "minSyncPeriod": format!("{:?}", settings.min_sync_period),
                "nodePortRange": settings.nodeport_range.to_string(),
                "podDatapath": format!("{:?}", settings.pod_datapath).to_lowercase(),
                "podInterfaces": texts(&settings.pod_interfaces),
                "reject": match settings.reject {
                    Reject::Icmp => "icmp",
                    Reject::TcpReset => "tcp-reset",
                },
                "resetRemovedTCP": settings.reset_removed_tcp,
                "serviceBudget": {
                    "addresses": settings.service_budget.addresses,
                    "endpoints": settings.service_budget.endpoints,
                    "ports": settings.service_budget.ports,
                    "sourceRanges": settings.service_budget.source_ranges,
                },
                "serviceCIDRs": display(&mut settings.service_cidrs.iter().map(ToString::to_string)),
                "snatAddresses": settings.snat_addresses,
                "snatPorts": settings.snat_ports.to_string(),
                "uplinks": texts(&settings.uplinks),
                "xdp": format!("{:?}", settings.xdp).to_lowercase(),
            },
        },
    })
}
