//! The init of the virtual machines of `cargo xtask vm`: makes a node with two pods and a client outside, runs the
//! agent, and tries services; then runs the tests that it finds in /tests.
//!
//! xtask reads what it prints: a line `CHECK PASS|PART|NOT|FAIL name[: reason]` a check (with part or all of it not
//! possible on this kernel; the lines of a failure that follow are indented), `ATTACHED program how`, what tests print,
//! among it `VERIFIED program instructions`, and `DONE` at the end. The kernel's command line has `suites=NAME,...`: what to
//! run, the node being one of them; with `shape=NAME` `networks` tries nothing but the shapes whose name contains that, with
//! `short=1` nothing but those of devices that not every kernel has.
#![forbid(unsafe_code)]

mod bpf;
mod node;
mod suite;
mod times;
mod traffic;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::{
    reboot::{RebootMode, reboot},
    resource::{RLIM_INFINITY, Resource, setrlimit},
    signal::{Signal, kill},
};

use crate::{suite::Verdict, times::Times};

/// A machine without hardware support is slow, and the verifier takes its time.
const READY_LIMIT: Duration = Duration::from_secs(240);
const HEALTHZ: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

/// The suite that this init runs itself.
const NODE: &str = "node";

/// The ways to run the agent that are tried, one after the other: `--pod-datapath` and `--xdp`.
const MODES: [(&str, &str); 2] = [("both", "generic"), ("socket", "native")];

fn main() {
    let mut report = Report::default();
    report.check("machine is set up", node::prepare());
    // Below 5.11 maps count as locked memory.
    let unlimited = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    report.check("memory is not limited", unlimited.map_err(Into::into));
    // Unknown parameters of the kernel's command line come as variables.
    let suites = std::env::var("suites").unwrap_or_default();
    let suites: Vec<_> = suites.split(',').filter(|suite| !suite.is_empty()).collect();
    if suites.contains(&NODE)
        && report.check("network is set up", node::connect())
        && report.check("servers run", traffic::serve())
    {
        let times = Times::now();
        for (pod_datapath, xdp) in MODES {
            report.mode = format!("pods by {pod_datapath}, XDP {xdp}: ");
            try_mode(&mut report, pod_datapath, xdp);
        }
        println!("{NODE} took {times}");
    }
    report.mode.clear();
    let wanted = suite::Wanted {
        shape: std::env::var("shape").unwrap_or_default(),
        is_short: std::env::var_os("short").is_some(),
    };
    for suite in suites.into_iter().filter(|suite| *suite != NODE) {
        suite::run(&mut report, suite, &wanted);
    }
    println!("DONE");
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    println!("cannot reboot: {error}");
}

/// Prints the checks.
#[derive(Default)]
struct Report {
    mode: String,
}

impl Report {
    fn check<T>(&mut self, name: &str, result: Result<T>) -> bool {
        match &result {
            Ok(_) => println!("CHECK PASS {}{name}", self.mode),
            Err(error) => {
                println!("CHECK FAIL {}{name}: {}", self.mode, format!("{error:#}").replace('\n', "\n    "))
            }
        }
        result.is_ok()
    }

    fn test(&mut self, name: &str, verdict: Verdict, output: &[String]) {
        match (verdict, suite::missing_capability(verdict, output)) {
            (Verdict::Passed, None) => println!("CHECK PASS {name}"),
            (Verdict::Passed, Some(reason)) => println!("CHECK PART {name}: {reason}"),
            (Verdict::Failed, Some(reason)) => println!("CHECK NOT {name}: {reason}"),
            (verdict, _) => {
                println!("CHECK FAIL {name}: {verdict:?}");
                output.iter().for_each(|line| println!("    {line}"));
            }
        }
    }
}

fn try_mode(report: &mut Report, pod_datapath: &str, xdp: &str) {
    // Generic XDP sees veth packets before their checksums are made; real links have them made.
    report.check("checksum offload is off", node::switch_checksum_offload_off());
    // The second one takes over the first one's state.
    for round in ["", "taken over: "] {
        let mode = report.mode.clone();
        report.mode += round;
        let is_well = with_agent(report, pod_datapath, xdp);
        report.mode = mode;
        if !is_well {
            break;
        }
        report.check("traffic continues without the agent", traffic::cluster_ip());
    }
    report.check("cleanup", cleanup());
}

/// Runs an agent from start to end. Without an agent that is ready there is nothing to go on with: returns false.
fn with_agent(report: &mut Report, pod_datapath: &str, xdp: &str) -> bool {
    let mut agent = match start_agent(pod_datapath, xdp) {
        Ok(agent) => agent,
        Err(error) => return report.check::<()>("agent starts", Err(error)),
    };
    let is_ready = report.check("agent is ready", wait_until_ready(&mut agent));
    if is_ready {
        report.check("hooks are listed", print_hooks());
        for (name, result) in traffic::run() {
            report.check(&name, result);
        }
        report.check("agent ends when asked", stop(&mut agent));
    } else if agent.kill().and_then(|()| agent.wait()).is_err() {
        println!("the agent cannot be ended");
    }
    is_ready
}

fn start_agent(pod_datapath: &str, xdp: &str) -> Result<Child> {
    let mut command = Command::new("/proxy-agent");
    command.args(["run", "--node-name", "vm", "--manifests", node::MANIFESTS, "--uplink", node::UPLINK]);
    command.args(["--pod-datapath", pod_datapath, "--xdp", xdp, "--cgroup-root", node::NODE_CGROUP]);
    command.spawn().context("cannot run the agent")
}

/// Waits until /healthz returns 200 and the agent is synced with its source: an agent that takes over complete maps serves before
/// that.
fn wait_until_ready(agent: &mut Child) -> Result<()> {
    let end = Instant::now() + READY_LIMIT;
    loop {
        if let Some(status) = agent.try_wait()? {
            bail!("the agent ended: {status}");
        }
        let answer = healthz();
        match answer {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") && !answer.contains(" are not ") => {
                return Ok(());
            }
            Ok(answer) if Instant::now() > end => bail!("still not healthy: {answer}"),
            Err(error) if Instant::now() > end => return Err(error.context("no answer from /healthz")),
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn healthz() -> Result<String> {
    get(HEALTHZ, "/healthz")
}

/// Prints which program is attached how, from the agent's metrics.
fn print_hooks() -> Result<()> {
    let metrics = get(METRICS, "/metrics")?;
    let hooks = metrics.lines().filter_map(|line| line.strip_prefix("proxy_agent_hooks{"));
    let mut count = 0;
    for hook in hooks {
        let label = |name: &str| hook.split_once(&format!("{name}=\""))?.1.split('"').next();
        let (program, how) = label("program").zip(label("how")).context("labels are missing")?;
        println!("ATTACHED {program} {how}");
        count += 1;
    }
    if count == 0 {
        bail!("there are none");
    }
    Ok(())
}

fn get(server: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(server)?;
    // An agent that the verifier keeps busy answers late.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn stop(agent: &mut Child) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id())?);
    kill(pid, Signal::SIGTERM)?;
    let status = agent.wait()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Everything is gone: pins, and with the last hook every program.
fn cleanup() -> Result<()> {
    run(Command::new("/proxy-agent").arg("cleanup"))?;
    if Path::new("/sys/fs/bpf/proxy-agent").exists() {
        bail!("something is left in /sys/fs/bpf/proxy-agent");
    }
    // The kernel frees a program some time after its last user.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match bpf::loaded_programs()? {
            left if left.is_empty() => return Ok(()),
            left if Instant::now() > end => bail!("still loaded: {left:?}"),
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
