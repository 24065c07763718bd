//! `--write-config-to`: the settings in effect as a configuration file of kube-proxy.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::Loaded;
use crate::{
    cli::RunArgs,
    logging::LogFormat,
    output::{OutputFormat, document},
};

/// Writes every setting that the format has a field for. A setting that is not given stays empty, as kubeadm writes it: it depends on the
/// node, or has a default.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, args: &RunArgs, loaded: &Loaded) -> Result<()> {
    let text = text(args, loaded)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!(
        "wrote the configuration to {}; flags that kube-proxy does not have are not in it",
        path.display()
    );
    Ok(())
}

fn text(args: &RunArgs, loaded: &Loaded) -> Result<String> {
    let Loaded { settings, configuration: file, .. } = loaded;
    let duration = |flag: Option<_>, file: Option<std::time::Duration>| {
        flag.or(file).map(|duration| format!("{}ms", duration.as_millis()))
    };
    let prefix = args.pod_interface_name_prefix.clone().or(file.detect_local.interface_name_prefix.clone());
    // The verbosity of Kubernetes' programs, from 0 to 10.
    let verbosity = match settings.verbosity {
        0 => 0,
        1 => 4,
        _ => 6,
    };
    let value = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": args.bind_address.or(file.bind_address),
        "bindAddressHardFail": settings.bind_address_hard_fail,
        "clientConnection": { "kubeconfig": settings.kubeconfig },
        "conntrack": {
            "maxPerCore": args.conntrack_max_per_core.or(file.conntrack.max_per_core),
            "min": args.conntrack_min.or(file.conntrack.min),
            "tcpBeLiberal": settings.conntrack.tcp_be_liberal,
            "tcpCloseWaitTimeout":
                duration(args.conntrack_tcp_timeout_close_wait, file.conntrack.tcp_close_wait_timeout),
            "tcpEstablishedTimeout":
                duration(args.conntrack_tcp_timeout_established, file.conntrack.tcp_established_timeout),
            "udpStreamTimeout": duration(args.conntrack_udp_timeout_stream, file.conntrack.udp_stream_timeout),
            "udpTimeout": duration(args.conntrack_udp_timeout, file.conntrack.udp_timeout),
        },
        "detectLocal": { "interfaceNamePrefix": prefix },
        "healthzBindAddress": settings.healthz_bind_address.to_string(),
        // The node's own name is not for all nodes.
        "hostnameOverride": file.hostname_override,
        "iptables": {
            "localhostNodePorts": settings.localhost_nodeports,
            "minSyncPeriod": duration(Some(settings.min_sync_period), None),
        },
        "logging": {
            "format": match settings.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            "verbosity": verbosity,
        },
        "metricsBindAddress": settings.metrics_bind_address.to_string(),
        "nodePortAddresses": settings.nodeport_addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "oomScoreAdj": settings.oom_score_adj,
    });
    document(&without_null(value), OutputFormat::Yaml)
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name, without_null(value))).collect::<Map<_, _>>())
        }
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, Command, normalise},
        config::{LoadedFile, understand},
    };

    fn loaded(flags: &str, file: Option<&str>) -> (RunArgs, Loaded) {
        let arguments = ["proxy-agent", "run", "--node-name=n"].into_iter().chain(flags.split_whitespace());
        let cli = Cli::parse_from(normalise(arguments.map(Into::into)));
        let Command::Run(args) = cli.command else { panic!("not run") };
        let file = file.map(|text| LoadedFile { path: "f".into(), text: text.to_owned() });
        let loaded = understand(&args, &cli.log, file).unwrap();
        (*args, loaded)
    }

    #[test]
    fn what_was_written_is_read_as_the_same() {
        const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        for (flags, file) in [
            ("", ""),
            (
                "--conntrack-max-per-core=1000 --conntrack-tcp-timeout-established=0 --oom-score-adj=-5 --bind-address=::",
                "",
            ),
            ("--nodeport-addresses=primary,10.0.0.0/8 --min-sync-period=1500ms --v=4 --log-format=json", ""),
            ("--healthz-bind-address=10.0.0.1:1", "conntrack: {min: 7, tcpBeLiberal: true, udpTimeout: 40s}"),
            ("--kubeconfig=/k", "detectLocal: {interfaceNamePrefix: cali}"),
        ] {
            let (args, before) = loaded(flags, Some(&format!("{HEADER}{file}")));
            let text = text(&args, &before).unwrap();
            let (_, after) = loaded("", Some(&text));
            assert_eq!(after.settings, before.settings, "{flags} {file}: {text}");
            assert!(after.notices.iter().all(|notice| !notice.is_warning), "{:?}", after.notices);
            assert!(!text.contains("hostnameOverride"), "the name is this node's alone: {text}");
        }
    }
}
