//! Settings of kube-proxy that have no effect here, with the reason.

/// A flag, or a field of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unused {
    /// The flag's name, or the field's path; fields below it are meant as well.
    pub name: &'static str,
    /// A flag that needs no value.
    pub is_bool: bool,
    /// Why it has no effect here.
    pub why: &'static str,
    /// A user of this setting should know: services behave differently from what it requests.
    pub matters: bool,
}

const NO_IPTABLES: &str = "services are not served by iptables, ipvs or nftables rules";
const CLIENTS: &str = "where a client is follows from the hook that sees its packet, not from an address";
const API: &str = "the connection to the API server needs no tuning: it only lists and watches";
const WATCHES: &str =
    "watches are followed at once and listed again when they end, without resynchronisation";
const PROFILING: &str = "this program has no profiler";
const GATES: &str = "this program has no feature gates";
const HIDDEN_METRICS: &str = "no metrics are hidden";
const WINDOWS: &str = "this is not Windows";
const LOG: &str = "the log needs no such setting";

/// Why `masqueradeAll` is not done.
pub(crate) const MASQUERADE_ALL: &str = "clients of cluster IPs keep their own address here: replies find their way back without \
     masquerading. Masquerading all of them is not supported";
/// Why `mode` has no effect.
pub(crate) const MODE: &str = "services are always served by eBPF programs";

const fn flag(name: &'static str, why: &'static str) -> Unused {
    Unused { name, is_bool: false, why, matters: false }
}

const fn bool_flag(name: &'static str, why: &'static str) -> Unused {
    Unused { name, is_bool: true, why, matters: false }
}

const fn field(name: &'static str, why: &'static str) -> Unused {
    Unused { name, is_bool: false, why, matters: false }
}

/// Flags of kube-proxy. All others that it has are flags of `run`.
pub const FLAGS: &[Unused] = &[
    flag("proxy-mode", MODE),
    flag("cluster-cidr", CLIENTS),
    flag("detect-local-mode", CLIENTS),
    flag("pod-bridge-interface", CLIENTS),
    flag("config-sync-period", WATCHES),
    flag("feature-gates", GATES),
    flag("iptables-masquerade-bit", NO_IPTABLES),
    flag("iptables-sync-period", NO_IPTABLES),
    flag("ipvs-exclude-cidrs", NO_IPTABLES),
    flag("ipvs-min-sync-period", NO_IPTABLES),
    flag("ipvs-scheduler", NO_IPTABLES),
    bool_flag("ipvs-strict-arp", NO_IPTABLES),
    flag("ipvs-sync-period", NO_IPTABLES),
    flag("ipvs-tcp-timeout", NO_IPTABLES),
    flag("ipvs-tcpfin-timeout", NO_IPTABLES),
    flag("ipvs-udp-timeout", NO_IPTABLES),
    flag("kube-api-burst", API),
    flag("kube-api-content-type", API),
    flag("kube-api-qps", API),
    flag("log-flush-frequency", LOG),
    Unused { name: "masquerade-all", is_bool: true, why: MASQUERADE_ALL, matters: true },
    bool_flag("profiling", PROFILING),
    flag("show-hidden-metrics-for-version", HIDDEN_METRICS),
    flag("vmodule", LOG),
];

/// Fields of `KubeProxyConfiguration` that `config::file` does not read.
pub const FIELDS: &[Unused] = &[
    field("clientConnection", API),
    field("clusterCIDR", CLIENTS),
    field("configSyncPeriod", WATCHES),
    field("detectLocal", CLIENTS),
    field("detectLocalMode", CLIENTS),
    field("enableProfiling", PROFILING),
    field("featureGates", GATES),
    field("iptables.masqueradeBit", NO_IPTABLES),
    field("iptables.syncPeriod", NO_IPTABLES),
    field("ipvs", NO_IPTABLES),
    field("logging", LOG),
    field("nftables.masqueradeBit", NO_IPTABLES),
    field("nftables.syncPeriod", NO_IPTABLES),
    field("portRange", "kube-proxy has not used it for long either"),
    field("showHiddenMetricsForVersion", HIDDEN_METRICS),
    field("windowsRunAsService", WINDOWS),
    field("winkernel", WINDOWS),
];
