//! `proxy-agent check`: would the agent work on this node, with these flags? Needs no running agent and leaves nothing behind.
//!
//! Each check is a pure assessment of facts, and thin functions gather the facts:
//!
//! * [`kernel`], [`capabilities`], [`bpffs`], [`cgroup`]: the agent's prerequisites.
//! * [`trial`], [`connect`], [`hooks`]: the programs are loaded, and a real connection is made through them.
//! * [`foreign`], [`attached`], [`rules`], [`agent`]: other programs and rules that translate or see packets.
//! * [`network`], [`xdp`]: interfaces and sysctls.
//! * [`api_server`]: where Services come from.

mod agent;
mod api_server;
mod attached;
mod bpffs;
mod capabilities;
mod cgroup;
mod connect;
mod finding;
mod foreign;
mod hooks;
mod kernel;
mod network;
pub(crate) mod processes;
mod rules;
mod trial;
mod xdp;

use std::{fs, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;

pub(crate) use self::api_server::trouble as api_server_trouble;
use self::finding::Finding;
use crate::{
    cli::{CheckArgs, LogArgs},
    config::{self, Settings, topology_config},
    datapath::{locked_memory, pins::Pins},
    net::{
        forwarding,
        interfaces::{self, Interface},
        topology::Topology,
    },
    output::{self, OutputFormat},
};

/// As an init container: how long all checks may take, and how long the API server may. The agent starts without one that does not answer.
const LONGEST: Duration = Duration::from_secs(60);
const API_SERVER: Duration = Duration::from_secs(5);

/// Makes all checks and prints their findings to standard output. True if none failed; as an init container, if the agent would not
/// end at its start.
///
/// # Errors
/// When the flags or the configuration file cannot be used, or the output cannot be written. As an init container never: the agent
/// reports that instead.
pub fn run(args: &CheckArgs, log: &LogArgs) -> Result<bool> {
    if !args.init_container {
        return in_runtime(args, log);
    }
    let (sender, receiver) = mpsc::channel();
    let (args, log) = (args.clone(), log.clone());
    let work = move || {
        // The receiver may have timed out.
        let _ = sender.send(in_runtime(&args, &log));
    };
    let why = match thread::Builder::new().name("checks".into()).spawn(work) {
        Ok(_) => match receiver.recv_timeout(LONGEST) {
            Ok(Ok(is_well)) => return Ok(is_well),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("not done after {LONGEST:?}"),
        },
        Err(error) => error.to_string(),
    };
    eprintln!("the checks could not be made: {why}. The agent starts all the same");
    Ok(true)
}

fn in_runtime(args: &CheckArgs, log: &LogArgs) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(all(args, log))
}

async fn all(args: &CheckArgs, log: &LogArgs) -> Result<bool> {
    let loaded = config::load(&args.run, log)?;
    let findings = findings(&loaded.settings, args.init_container).await?;
    let (fails, ends_agent) = (finding::has_failures(&findings), finding::ends_agent(&findings));
    let mut text = output::render(&findings, args.output)?;
    if args.output == OutputFormat::Table {
        text += &format!("\n{}\n", finding::summary(&findings));
        if args.init_container && fails {
            text += if ends_agent {
                "the agent would end at its start\n"
            } else {
                "the agent starts all the same\n"
            };
        }
    }
    output::print(&text)?;
    Ok(if args.init_container { !ends_agent } else { !fails })
}

async fn findings(settings: &Settings, is_hurried: bool) -> Result<Vec<Finding>> {
    let release =
        uname().context("cannot read the kernel's release")?.release().to_string_lossy().into_owned();
    let version = kernel::parse(&release);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let processes = processes::list();
    let cgroup = cgroup::gather(settings.cgroup_root.as_deref());
    let cgroup_root = cgroup.path.clone().filter(|_| matches!(cgroup.is_cgroup2, Ok(true)));
    let trial = trial::run(settings, cgroup_root.clone());
    let mut findings = vec![
        kernel::assess(&release),
        kernel::locked_memory(locked_memory::raise()),
        capabilities::assess(capabilities::parse(&status)),
        kernel::features(&trial),
        kernel::programs(&trial, version),
        bpffs::assess(&bpffs::gather(&settings.bpffs)),
        agent::assess(&agent::gather(&settings.bpffs, &processes), &settings.bpffs),
        cgroup::assess(&cgroup, &processes),
        cgroup::assess_classes(&cgroup, &processes, version),
        hooks::assess(&trial),
    ];

    let netlink = interfaces::connect()?;
    let interfaces = interfaces::read(&netlink).await?;
    let topology = topology(settings, &interfaces);
    let pins = Pins::new(&settings.bpffs);
    // Where nothing could be tried, a kernel like most is assumed.
    let has_socket_storage = trial.as_ref().map_or(true, |trial| trial.features.sk_storage);
    let cgroup = cgroup_root.as_deref();
    let hooks = attached::read(&netlink, cgroup, has_socket_storage, &topology, &pins, settings.xdp).await;
    let hooks = hooks.map_err(|error| format!("{error:#}"));
    let rules = rules::gather();
    let switched_off: Vec<&str> = forwarding::switched_off().collect();
    findings.extend([
        foreign::assess(&hooks),
        foreign::assess_proxies(&hooks),
        rules::assess_kube_proxy(&rules, &processes),
        rules::assess_ipvs(&rules, &interfaces),
        rules::assess_nat(&rules),
        network::assess_uplinks(&topology, !settings.uplinks.is_empty()),
        network::assess_forwarding(&topology.local_addresses, &switched_off),
        network::assess_source_checks(&network::source_checks(&topology.uplinks)),
        network::assess_mtu(&topology.uplinks, &topology.local_addresses),
        xdp::assess(&xdp::gather(&topology.uplinks), settings.xdp, version),
    ]);
    let patience = if is_hurried { API_SERVER } else { Duration::MAX };
    findings.extend(of_api_server(settings, patience).await);
    Ok(findings)
}

async fn of_api_server(settings: &Settings, patience: Duration) -> [Finding; 2] {
    if settings.manifests.is_some() {
        return api_server::skipped();
    }
    match tokio::time::timeout(patience, api_server::gather(settings)).await {
        Ok(facts) => [api_server::assess(&facts), api_server::assess_rights(&facts)],
        Err(_) => api_server::silent(patience),
    }
}

/// As `run` has it before it knows the Node object.
fn topology(settings: &Settings, interfaces: &[Interface]) -> Topology {
    Topology::new(interfaces, &[], &topology_config(settings))
}
