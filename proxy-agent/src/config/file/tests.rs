use super::*;

/// The file that kubeadm puts into its ConfigMap: every field, nearly all of them empty.
const KUBEADM: &str = include_str!("kubeadm.conf");

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn parse(text: &str) -> Result<(KubeProxyConfiguration, Vec<Notice>), String> {
    KubeProxyConfiguration::parse(Path::new("config.conf"), text).map_err(|error| format!("{error:#}"))
}

fn with_header(rest: &str) -> Result<(KubeProxyConfiguration, Vec<Notice>), String> {
    parse(&format!("{HEADER}{rest}"))
}

#[test]
fn kubeadm_s_own_file_has_few_notices() {
    let (config, notices) = parse(KUBEADM).unwrap();
    let expected = KubeProxyConfiguration {
        api_version: API_VERSION.into(),
        kind: KIND.into(),
        bind_address: Some("0.0.0.0".parse().unwrap()),
        bind_address_hard_fail: Some(false),
        client_connection: ClientConnection {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        },
        conntrack: Conntrack { tcp_be_liberal: Some(false), ..Conntrack::default() },
        iptables: Rules { masquerade_all: Some(false), ..Rules::default() },
        nftables: Rules { masquerade_all: Some(false), ..Rules::default() },
        ..KubeProxyConfiguration::default()
    };
    assert_eq!(config, expected);
    let texts: Vec<&str> = notices.iter().map(|notice| notice.text.as_str()).collect();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].starts_with("clusterCIDR is not used: "));
    assert!(!notices[0].is_warning);
}

#[test]
fn fields_that_are_used() {
    let (config, notices) = with_header(
        "bindAddress: fd00::1
bindAddressHardFail: true
conntrack: {maxPerCore: 1000, min: 0, tcpEstablishedTimeout: 1h0m0s, tcpCloseWaitTimeout: null, udpTimeout: 0s,
  udpStreamTimeout: 3m}
detectLocal: {interfaceNamePrefix: cali}
healthzBindAddress: :9000
hostnameOverride: n1
iptables: {localhostNodePorts: false, masqueradeAll: true, minSyncPeriod: 1m30s}
logging: {format: json, verbosity: 4}
metricsBindAddress: 10.0.0.1
mode: nftables
nodePortAddresses: [primary, 10.0.0.0/8]
oomScoreAdj: -500
",
    )
    .unwrap();
    assert_eq!(notices, []);
    assert_eq!(config.bind_address, Some("fd00::1".parse().unwrap()));
    assert_eq!(config.bind_address_hard_fail, Some(true));
    assert_eq!(
        config.conntrack,
        Conntrack {
            max_per_core: Some(1000),
            min: Some(0),
            tcp_established_timeout: Some(Duration::from_secs(3600)),
            udp_stream_timeout: Some(Duration::from_secs(180)),
            ..Conntrack::default()
        }
    );
    assert_eq!(config.detect_local.interface_name_prefix.as_deref(), Some("cali"));
    assert_eq!(config.healthz_bind_address, Some(BindAddress { ip: None, port: Some(9000) }));
    assert_eq!(config.hostname_override.as_deref(), Some("n1"));
    assert_eq!(config.iptables.localhost_node_ports, Some(false));
    assert_eq!(config.iptables.masquerade_all, Some(true));
    assert_eq!(config.iptables.min_sync_period, Some(Duration::from_secs(90)));
    assert_eq!(config.logging, Logging { format: Some(LogFormat::Json), verbosity: 4 });
    assert_eq!(config.metrics_bind_address.unwrap().port, None);
    assert_eq!(config.mode.as_deref(), Some("nftables"));
    assert_eq!(config.node_port_addresses.len(), 2);
    assert_eq!(config.oom_score_adj, Some(-500));
}

#[test]
fn unused_fields_are_reported_once_each() {
    for (text, expected) in [
        ("iptables: {masqueradeBit: 14}", Some((false, "iptables.masqueradeBit is not used"))),
        ("ipvs: {scheduler: rr, strictARP: true}", Some((false, "ipvs is not used"))),
        ("ipvs: {scheduler: ''}", None),
        ("featureGates: {A: true}", Some((false, "featureGates is not used: this program has no feature"))),
        ("clientConnection: {qps: 50}", Some((false, "clientConnection.qps is not used"))),
        ("conntrack: {tcpBeLiberal: true}", None),
        ("conntrack: {tcpLiberal: true}", Some((true, "conntrack.tcpLiberal is not a field"))),
        ("detectLocalMode: NodeCIDR", Some((false, "detectLocalMode is not used: where a client is"))),
        ("winkernel: {enableDSR: true}", Some((false, "winkernel is not used"))),
        ("clusterCidr: 10.0.0.0/8", Some((true, "clusterCidr is not a field"))),
        ("iptables: {masqueradeBits: 0}", Some((true, "iptables.masqueradeBits is not a field"))),
        ("ipvsx: 1", Some((true, "ipvsx is not a field"))),
    ] {
        let (_, notices) = with_header(text).unwrap();
        assert_eq!(notices.len(), usize::from(expected.is_some()), "{text}: {notices:?}");
        if let Some((is_warning, beginning)) = expected {
            assert_eq!(notices[0].is_warning, is_warning, "{text}");
            assert!(notices[0].text.starts_with(beginning), "{text}: {}", notices[0].text);
        }
    }
}

#[test]
fn errors_have_their_line() {
    for (text, expected) in [
        ("", "config.conf:1: it has no apiVersion"),
        ("kind: KubeProxyConfiguration", "config.conf:1: it has no apiVersion"),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
            "config.conf:2: kind is `KubeletConfiguration`, not KubeProxyConfiguration",
        ),
        ("\napiVersion: v1\nkind: ConfigMap", "config.conf:2: apiVersion is `v1`"),
        ("apiVersion: [", "line 1"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains("config.conf") && error.contains(expected), "{text}: {error}");
    }
    for (text, expected) in [
        ("mode: a\nmode: b", "line 4"),
        ("mode: x\nbindAddress: nowhere", "line 4"),
        ("metricsBindAddress: host:1", "line 3"),
        ("nodePortAddresses:\n- 10.0.0.0/8\n- some", "line 5"),
        ("iptables:\n  minSyncPeriod: 5", "line 4"),
        ("conntrack:\n  min: -1", "line 4"),
        ("logging:\n  format: xml", "line 4"),
        ("oomScoreAdj: 2000", "line 3"),
        ("bindAddressHardFail: 7", "line 3"),
        ("conntrack: yes", "line 3"),
    ] {
        let error = with_header(text).unwrap_err();
        assert!(error.contains("config.conf") && error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn json_is_yaml() {
    let text = format!("{{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\", \"mode\": \"iptables\"}}");
    assert_eq!(parse(&text).unwrap().0.mode.as_deref(), Some("iptables"));
}
