//! Text that people write: manifests, kube-proxy's configuration file, the command line.

use std::{ffi::OsString, path::Path};

use clap::Parser as _;
use proxy_agent::{
    cli::{Cli, Command, normalise},
    config::{Settings, file::KubeProxyConfiguration, machine::Machine},
    model::store::Store,
    net::{ports::PortRange, topology::NodePortAddresses},
    observe::BindAddress,
    source::{
        convert::{parse_cidr, parse_ip},
        manifests::{Format, read_text},
    },
};

use super::api::settle;

/// A file of a manifest folder, up to the plans: the first byte's lowest bit selects JSON.
pub fn manifests(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let format = if first & 1 == 1 { Format::Json } else { Format::Yaml };
    let (changes, problems) = read_text(text, format, "here");
    assert!(problems.iter().all(|problem| !problem.is_empty()));
    let mut store = Store::new();
    changes.into_iter().for_each(|change| store.apply(change));
    settle(&mut store);
}

fn machine() -> Machine {
    Machine { hostname: "here".to_owned(), cpus: 4, memory: 8 << 30 }
}

/// A kube-proxy configuration file, up to the settings.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok((config, notices)) = KubeProxyConfiguration::parse(Path::new("config.yaml"), text) else { return };
    assert!(notices.iter().all(|notice| !notice.text.is_empty()));
    let Ok(Cli { command: Command::Run(args), log }) = Cli::try_parse_from(["proxy-agent", "run"]) else {
        return;
    };
    if let Ok((settings, _)) = Settings::new(&args, &log, &config, &machine()) {
        assert!(!settings.node_name.is_empty(), "a node without a name");
    }
}

/// Values of flags and fields, one in each line.
pub fn values(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for line in text.lines() {
        if let Ok(range) = line.parse::<PortRange>() {
            assert!(range.first > 0 && range.contains(range.first) && range.contains(range.last));
            assert_eq!(range.to_string().parse(), Ok(range));
        }
        if let Ok(addresses) = line.parse::<NodePortAddresses>() {
            assert_eq!(addresses.to_string().parse(), Ok(addresses));
        }
        let _ = line.parse::<BindAddress>();
        if let Some(ip) = parse_ip(line) {
            assert_eq!(parse_ip(&ip.to_string()), Some(ip));
        }
        if let Some(net) = parse_cidr(line) {
            assert_eq!(parse_cidr(&net.to_string()), Some(net));
        }
    }
}

/// The command line, one argument in each line, up to the settings.
pub fn arguments(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let arguments = ["proxy-agent", "run"].into_iter().chain(text.lines()).map(OsString::from);
    let Ok(Cli { command: Command::Run(args), log }) = Cli::try_parse_from(normalise(arguments)) else {
        return;
    };
    let file = KubeProxyConfiguration::default();
    let _ = Settings::new(&args, &log, &file, &machine());
}
