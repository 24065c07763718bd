//! The kernel takes every program, those too that this machine's interfaces do not ask for. `cargo xtask vm` runs this
//! on old kernels.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use aya::util::KernelVersion;
use proxy_agent::{
    datapath::{KernelLogLevel, ObjectConfig, load_every_program, pins::Pins},
    net::ports::PortRange,
};
use proxy_common::layout::config::Timeouts;

fn config(kernel_log: Option<KernelLogLevel>) -> ObjectConfig {
    ObjectConfig {
        snat_ports: PortRange { first: 20000, last: 29999 },
        snat_addresses: Vec::new(),
        external_cluster_ips: false,
        sockets_of_node_only: false,
        reset_removed_tcp: true,
        reject_with_reset: true,
        localhost_nodeports: true,
        max_flows: 1024,
        timeouts: Timeouts::DEFAULT,
        kernel_log,
    }
}

/// Loads all programs; prints a line `VERIFIED program instructions` for each.
fn load_all(variant: &str, kernel_log: Option<KernelLogLevel>) {
    let directory = format!("verifier-test-{}{variant}", std::process::id());
    let pins = Pins::new(&Path::new("/sys/fs/bpf").join(directory));
    let programs = load_every_program(&config(kernel_log), &pins);
    pins.remove_all().unwrap();
    let multi_buffer = KernelVersion::current().unwrap() >= KernelVersion::new(5, 18, 0);
    let mut refused = Vec::new();
    // Not behind the name of the test.
    println!();
    for (name, result) in programs.unwrap() {
        let verdict = match result {
            Ok(instructions) => instructions.to_string(),
            // The agent then takes its sibling.
            Err(_) if name.ends_with("_frags") && !multi_buffer => "n/a".to_owned(),
            Err(error) => {
                refused.push(format!("{name}: {}", end_of(&format!("{error:#}"))));
                "REFUSED".to_owned()
            }
        };
        println!("VERIFIED {name}{variant} {verdict}");
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// The last lines: the verifier ends with the reason.
fn end_of(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[test]
fn every_program_loads() {
    load_all("", None);
}

#[test]
fn every_program_that_logs_loads() {
    load_all("+log", Some(KernelLogLevel::Debug));
}
