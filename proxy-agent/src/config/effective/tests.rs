use std::path::Path;

use clap::Parser as _;

use super::*;
use crate::{
    cli::{Cli, Command, normalise},
    config::configz,
};

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn load(flags: &str, file: &str) -> Result<(Settings, Vec<Notice>), String> {
    let arguments = ["proxy-agent", "run"].into_iter().chain(flags.split_whitespace());
    let cli = Cli::try_parse_from(normalise(arguments.map(Into::into))).map_err(|error| error.to_string())?;
    let Command::Run(mut args) = cli.command else { panic!("not run") };
    if !flags.contains("--node-name") && !flags.contains("--hostname-override") {
        args.node_name = None;
    }
    if !flags.contains("--kubeconfig") {
        args.kubeconfig = None;
    }
    let (config, mut notices) =
        KubeProxyConfiguration::parse(Path::new("f"), &format!("{HEADER}{file}")).unwrap();
    let machine = Machine { hostname: "Host-1".into(), cpus: 8, memory: 16 << 30 };
    let (settings, more) =
        Settings::new(&args, &cli.log, &config, &machine).map_err(|error| error.to_string())?;
    notices.extend(more);
    Ok((settings, notices))
}

fn settings(flags: &str, file: &str) -> Settings {
    load(flags, file).unwrap().0
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    type Shown = fn(&Settings) -> String;
    let cases: &[(&str, &str, Shown, [&str; 4])] = &[
        // The flag, the field; then the default, the flag alone, the field alone, and both.
        (
            "--hostname-override=A",
            "hostnameOverride: B",
            |settings| settings.node_name.clone(),
            ["host-1", "a", "b", "a"],
        ),
        (
            "--healthz-bind-address=:1",
            "healthzBindAddress: 10.0.0.1:2",
            |settings| settings.healthz_bind_address.to_string(),
            ["0.0.0.0:10256", "0.0.0.0:1", "10.0.0.1:2", "0.0.0.0:1"],
        ),
        (
            "--metrics-bind-address=0.0.0.0",
            "metricsBindAddress: 10.0.0.1",
            |settings| settings.metrics_bind_address.to_string(),
            ["127.0.0.1:10249", "0.0.0.0:10249", "10.0.0.1:10249", "0.0.0.0:10249"],
        ),
        (
            "--bind-address=10.0.0.1",
            "bindAddress: 10.0.0.2",
            |settings| format!("{:?}", settings.bind_address),
            ["None", "Some(10.0.0.1)", "Some(10.0.0.2)", "Some(10.0.0.1)"],
        ),
        (
            "--bind-address=::",
            "bindAddress: 0.0.0.0",
            |settings| format!("{:?} {}", settings.bind_address, settings.healthz_bind_address),
            ["None 0.0.0.0:10256", "None [::]:10256", "None 0.0.0.0:10256", "None [::]:10256"],
        ),
        (
            "--bind-address-hard-fail=false",
            "bindAddressHardFail: true",
            |settings| settings.bind_address_hard_fail.to_string(),
            ["false", "false", "true", "false"],
        ),
        (
            "--kubeconfig=a",
            "clientConnection: {kubeconfig: b}",
            |settings| format!("{:?}", settings.kubeconfig),
            ["None", "Some(\"a\")", "Some(\"b\")", "Some(\"a\")"],
        ),
        (
            "--nodeport-addresses=10.0.0.0/8,fd00::/8",
            "nodePortAddresses: [primary]",
            |settings| format!("{}", settings.nodeport_addresses.len()),
            ["0", "2", "1", "2"],
        ),
        (
            "--pod-interface-name-prefix=a --pod-interface=b",
            "detectLocal: {interfaceNamePrefix: c}",
            |settings| settings.pod_interfaces.join(" "),
            ["", "b a*", "c*", "b a*"],
        ),
        (
            "--localhost-nodeports false",
            "iptables: {localhostNodePorts: true}",
            |settings| settings.localhost_nodeports.to_string(),
            ["true", "false", "true", "false"],
        ),
        (
            "--iptables-localhost-nodeports",
            "iptables: {localhostNodePorts: false}",
            |settings| settings.localhost_nodeports.to_string(),
            ["true", "true", "false", "true"],
        ),
        (
            "--min-sync-period=0s",
            "iptables: {minSyncPeriod: 1s}",
            |settings| format!("{:?}", settings.min_sync_period),
            ["0ns", "0ns", "1s", "0ns"],
        ),
        (
            "--oom-score-adj -1",
            "oomScoreAdj: 0",
            |settings| settings.oom_score_adj.to_string(),
            ["-999", "-1", "0", "-1"],
        ),
        (
            "--logging-format=text --v=2",
            "logging: {format: json, verbosity: 5}",
            |settings| format!("{:?} {}", settings.log_format, settings.verbosity),
            ["Text 0", "Text 0", "Json 1", "Text 0"],
        ),
        ("-vv", "logging: {verbosity: 4}", |settings| settings.verbosity.to_string(), ["0", "2", "1", "2"]),
        (
            "--conntrack-max-per-core=0",
            "conntrack: {maxPerCore: 20000}",
            |settings| (settings.max_flows / 2).to_string(),
            ["195225", "195225", "160000", "195225"],
        ),
        (
            "--conntrack-tcp-timeout-established=2h",
            "conntrack: {tcpEstablishedTimeout: 1h0m0s}",
            |settings| settings.timeouts.tcp_established.to_string(),
            ["86400", "7200", "3600", "7200"],
        ),
        (
            "--conntrack-tcp-timeout-close-wait=0s",
            "conntrack: {tcpCloseWaitTimeout: 1m}",
            |settings| settings.timeouts.tcp_half_closed.to_string(),
            ["3600", "3600", "60", "3600"],
        ),
        (
            "--conntrack-udp-timeout=10s",
            "conntrack: {udpTimeout: 11s}",
            |settings| settings.timeouts.datagram_new.to_string(),
            ["30", "10", "11", "10"],
        ),
        (
            "--conntrack-udp-timeout-stream=10s",
            "conntrack: {udpStreamTimeout: 0s}",
            |settings| settings.timeouts.datagram_answered.to_string(),
            ["120", "10", "120", "10"],
        ),
    ];
    for (flag, field, shown, expected) in cases {
        let found = [("", ""), (flag, ""), ("", field), (flag, field)]
            .map(|(flags, file)| shown(&settings(flags, file)));
        assert_eq!(found, expected.map(str::to_owned), "{flag}, {field}");
    }
}

#[test]
fn flows_are_counted_as_kube_proxy_does() {
    for (conntrack, flows) in [
        ("{}", 195_225),
        ("{maxPerCore: 0, min: 9}", 195_225),
        ("{maxPerCore: 32768}", 262_144),
        ("{maxPerCore: 1, min: 200000}", 200_000),
        ("{maxPerCore: 1}", 131_072),
        ("{min: 300000}", 300_000),
        ("{maxPerCore: 1, min: 1}", 32_768),
    ] {
        assert_eq!(settings("", &format!("conntrack: {conntrack}")).max_flows / 2, flows, "{conntrack}");
    }
    let (settings, notices) = load("", "conntrack: {maxPerCore: 4000000000}").unwrap();
    assert_eq!(u64::from(settings.max_flows), (16 << 30) / 50 / 250);
    assert!(notices[0].is_warning && notices[0].text.contains("1048576 flows"), "{notices:?}");
    let (_, notices) = load("--max-flows 70000", "conntrack: {maxPerCore: 4000000000}").unwrap();
    assert_eq!(notices, []);
}

#[test]
fn the_kernel_s_connection_tracking_is_set_as_by_kube_proxy() {
    type Field = fn(&ConntrackSysctls) -> Option<u32>;
    let (max, established): (Field, Field) = (|it| it.max, |it| it.tcp_established);
    let (close_wait, udp, stream): (Field, Field, Field) =
        (|it| it.tcp_close_wait, |it| it.udp, |it| it.udp_stream);
    for (field, flags, file, expected) in [
        // Eight CPUs.
        (max, "", "{}", Some(262_144)),
        (max, "", "{maxPerCore: 1000}", Some(131_072)),
        (max, "--conntrack-max-per-core=30000 --conntrack-min=5", "{maxPerCore: 0}", Some(240_000)),
        (max, "", "{maxPerCore: 1, min: 0}", Some(8)),
        (max, "", "{maxPerCore: 0, min: 7}", None),
        (established, "", "{}", Some(86_400)),
        (established, "", "{tcpEstablishedTimeout: 0s}", None),
        (established, "--conntrack-tcp-timeout-established=1h", "{tcpEstablishedTimeout: 0s}", Some(3_600)),
        (close_wait, "", "{tcpCloseWaitTimeout: null}", Some(3_600)),
        (close_wait, "--conntrack-tcp-timeout-close-wait=0", "{tcpCloseWaitTimeout: 1m}", None),
        (udp, "", "{}", None),
        (udp, "--conntrack-udp-timeout=40s", "{}", Some(40)),
        (stream, "", "{udpStreamTimeout: 250s}", Some(250)),
    ] {
        let found = field(&settings(flags, &format!("conntrack: {file}")).conntrack);
        assert_eq!(found, expected, "{flags} {file}");
    }
    for (flags, file, expected) in [
        ("", "{}", false),
        ("--conntrack-tcp-be-liberal", "{}", true),
        ("", "{tcpBeLiberal: true}", true),
        ("--conntrack-tcp-be-liberal=false", "{tcpBeLiberal: true}", false),
    ] {
        let found = settings(flags, &format!("conntrack: {file}")).conntrack.tcp_be_liberal;
        assert_eq!(found, expected, "{flags} {file}");
    }
}

#[test]
fn timeouts_that_cannot_be_kept_are_reported() {
    let (settings, notices) =
        load("--conntrack-udp-timeout=1ms", "conntrack: {tcpEstablishedTimeout: 1000h}").unwrap();
    assert_eq!((settings.timeouts.datagram_new, settings.timeouts.tcp_established), (5, 480 * 3600));
    assert_eq!(notices.iter().filter(|notice| notice.is_warning).count(), 2, "{notices:?}");
}

#[test]
fn the_shortest_period_is_that_of_the_mode() {
    for (mode, millis) in [("''", 2), ("iptables", 2), ("nftables", 3), ("ipvs", 0)] {
        let file =
            format!("mode: {mode}\niptables: {{minSyncPeriod: 2ms}}\nnftables: {{minSyncPeriod: 3ms}}");
        assert_eq!(settings("", &file).min_sync_period, Duration::from_millis(millis), "{mode}");
    }
}

#[test]
fn a_folder_of_manifests_needs_no_credentials() {
    let settings = settings("--manifests=m", "clientConnection: {kubeconfig: k}");
    assert_eq!((settings.manifests, settings.kubeconfig), (Some("m".into()), None));
}

#[test]
fn arguments_of_kube_proxy_s_daemon_sets_are_accepted() {
    let flags = "--hostname-override=n --master=https://10.0.0.1:6443 --proxy-mode=iptables --cluster-cidr 10.0.0.0/8 \
                 --conntrack-max-per-core=32768 --conntrack-min=131072 --conntrack-tcp-timeout-established=24h \
                 --feature-gates=A=true --feature-gates=B=true --profiling --ipvs-strict-arp=true \
                 --kube-api-qps=50 --detect-local-mode=NodeCIDR --iptables-min-sync-period=1s --v=2 \
                 --config-sync-period=15m --oom-score-adj=-998 --masquerade-all";
    let (settings, notices) = load(flags, "").unwrap();
    assert_eq!(settings.node_name, "n");
    assert_eq!(settings.api_servers, ["https://10.0.0.1:6443"]);
    assert_eq!(settings.min_sync_period, Duration::from_secs(1));
    assert_eq!(settings.max_flows, 2 * 8 * 32_768);
    assert_eq!(settings.oom_score_adj, -998);
    for beginning in
        ["--proxy-mode=iptables", "--feature-gates=A=true,B=true", "--profiling=true", "--cluster-cidr="]
    {
        let found: Vec<_> = notices.iter().filter(|notice| notice.text.starts_with(beginning)).collect();
        assert_eq!(found.len(), 1, "{beginning}: {notices:?}");
        assert!(!found[0].is_warning);
    }
    let warnings: Vec<_> = notices.iter().filter(|notice| notice.is_warning).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].text.starts_with("--masquerade-all"));
    assert_eq!(notices.len(), 9, "{notices:?}");
}

#[test]
fn masquerading_everything_is_refused_with_a_warning() {
    for (flags, file, warnings) in [
        ("", "iptables: {masqueradeAll: true}", 1),
        ("", "nftables: {masqueradeAll: true}", 1),
        ("", "nftables: {masqueradeAll: false}", 0),
        ("--masquerade-all=false", "", 0),
    ] {
        let (_, notices) = load(flags, file).unwrap();
        let found = notices.iter().filter(|notice| notice.is_warning).count();
        assert_eq!(found, warnings, "{flags} {file}: {notices:?}");
    }
}

#[test]
fn what_cannot_work_is_an_error() {
    for (flags, expected) in [
        ("--no-such-flag=1", "--no-such-flag"),
        ("--snat-ports 0-30001", "0-30001"),
        ("--snat-address ::1", "no other node"),
        ("--snat-address 10.0.0.1,0.0.0.0", "no other node"),
        ("--snat-address eth0", "eth0"),
        ("--max-new-flows 5", "--max-new-flows"),
        ("--metrics-bind-address=x", "is not an address"),
        ("--min-sync-period=soon", "is not a duration"),
        ("--oom-score-adj=1001", "1001"),
        ("--service-cidr=10.0.0.1", "10.0.0.1"),
        ("-v --v=2", "cannot be used with"),
    ] {
        let error = load(flags, "").unwrap_err();
        assert!(error.contains(expected), "{flags}: {error}");
    }
}

#[test]
fn settings_of_our_own() {
    let settings =
        settings("--reject tcp-reset --reset-removed-tcp --service-cidr=10.96.0.0/12,fd00::/108", "");
    assert_eq!(settings.reject, Reject::TcpReset);
    assert!(settings.reset_removed_tcp);
    assert_eq!(settings.service_cidrs.len(), 2);
}

#[test]
fn source_translation() {
    let (settings, notices) = load("", "").unwrap();
    assert_eq!((settings.snat_ports.to_string().as_str(), settings.snat_addresses.len()), ("1024-29999", 0));
    assert_eq!(notices, []);
    // Replies are known by their tuples, so it may meet the nodePorts.
    let (settings, notices) =
        load("--snat-ports 30000-30998 --snat-address 10.0.0.1,fd00::1 --snat-address 10.0.0.1", "").unwrap();
    assert!(
        notices.len() == 1 && notices[0].is_warning && notices[0].text.contains("999 ports"),
        "{notices:?}"
    );
    let addresses: [IpAddr; 2] = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
    assert_eq!(settings.snat_addresses, addresses);
    let list = |count| (1..=count).map(|i| format!("10.0.0.{i}")).collect::<Vec<_>>().join(",");
    assert_eq!(load(&format!("--snat-address {},fd00::1", list(16)), "").unwrap().0.snat_addresses.len(), 17);
    let error = load(&format!("--snat-address {}", list(17)), "").unwrap_err();
    assert!(error.contains("17 addresses of one family"), "{error}");
}

#[test]
fn configz_shows_the_settings_in_effect() {
    let shown = configz(&settings(
        "--node-name n --min-sync-period=1s --reject=tcp-reset --nodeport-addresses=primary",
        "healthzBindAddress: 10.0.0.1:2",
    ));
    let config = &shown["kubeproxy.config.k8s.io"];
    assert_eq!(config["kind"], "KubeProxyConfiguration");
    assert_eq!(config["hostnameOverride"], "n");
    assert_eq!(config["healthzBindAddress"], "10.0.0.1:2");
    assert_eq!(config["metricsBindAddress"], "127.0.0.1:10249");
    assert_eq!(config["nodePortAddresses"], serde_json::json!(["primary"]));
    assert_eq!(config["proxyAgent"]["minSyncPeriod"], "1s");
    assert_eq!(config["proxyAgent"]["reject"], "tcp-reset");
}
