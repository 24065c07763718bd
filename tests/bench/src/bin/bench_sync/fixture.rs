//! A node, and the agent on it.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use proxy_figures::pin;
use proxy_harness::cluster::{Cluster, Process, agent_binary};

use crate::{
    api::{Api, Resource},
    maps::Maps,
    objects,
};

/// The agent has a CPU to itself, and all the rest has the other.
const AGENT_CPU: usize = 0;
const OWN_CPU: usize = 1;

const HEALTHZ: &str = "127.0.0.1:10256";
/// After this long something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A node with an API server beside it.
pub(crate) struct Fixture {
    cluster: Cluster,
    pub(crate) api: Api,
    log: tempfile::NamedTempFile,
}

impl Fixture {
    /// Makes it, and enters its network.
    pub(crate) fn new() -> Result<Self> {
        pin(OWN_CPU).context("there must be two CPUs")?;
        let cluster = Cluster::builder().nodes(1).pods_per_node(1).build()?;
        let host = &cluster.node(0)?.host;
        setns(host.netns.open()?, CloneFlags::CLONE_NEWNET)?;
        let api = Api::start()?;
        let node = objects::node(&host.name, host.v4, 1);
        api.set_list(Resource::Nodes, std::iter::once(node));
        Ok(Self { cluster, api, log: tempfile::NamedTempFile::new()? })
    }

    /// Gives the node an IPv6 address beside its IPv4 one, which it has at first, or takes it away.
    pub(crate) fn set_ipv6(&self, is_wanted: bool) -> Result<()> {
        let host = &self.cluster.node(0)?.host;
        let verb = if is_wanted { "replace" } else { "del" };
        host.netns.ip(&[format!("addr {verb} {}/64 dev eth0 nodad", host.v6)])
    }

    /// Whether the last of the socket hooks is attached.
    pub(crate) fn serves_sockets(&self) -> Result<bool> {
        Ok(self.bpffs()?.join("links/cgroup-getpeername6").exists())
    }

    pub(crate) fn bpffs(&self) -> Result<&Path> {
        Ok(&self.cluster.node(0)?.bpffs)
    }

    /// Starts the agent.
    pub(crate) fn start(&self) -> Result<Agent> {
        self.api.reset();
        let node = self.cluster.node(0)?;
        let mut command = node.host.command(&binary()?.to_string_lossy())?;
        command.args(["run", "--node-name", &node.host.name, "--api-server", &self.api.url()]);
        command.arg("--bpffs").arg(&node.bpffs).arg("--cgroup-root").arg(&node.cgroup);
        command.args(["--healthz-bind-address", HEALTHZ]);
        // Nothing from the environment may decide.
        command.env_remove("KUBECONFIG").env_remove("NODE_NAME").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.log.path())?);
        // SAFETY: a plain system call: it neither allocates nor takes a lock.
        unsafe { command.pre_exec(|| pin(AGENT_CPU).map_err(Into::into)) };
        let started = Instant::now();
        let process = Process::new(command.spawn().context("cannot start the agent")?);
        Ok(Agent { process, started, log: self.log.path().to_owned() })
    }

    /// Waits until the agent's maps can be opened.
    pub(crate) fn maps(&self, agent: &Agent) -> Result<Maps> {
        agent.until("its maps", || Ok(Maps::open(self.bpffs()?).ok()))
    }

    /// Removes all that an agent left.
    pub(crate) fn clean_up(&self) -> Result<()> {
        let node = self.cluster.node(0)?;
        let mut command = node.host.command(&binary()?.to_string_lossy())?;
        let output = command.arg("cleanup").arg("--bpffs").arg(&node.bpffs).output()?;
        if !output.status.success() {
            bail!("cleanup: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

fn binary() -> Result<PathBuf> {
    agent_binary()
}

/// A running agent. Dropping it ends it with SIGKILL; its maps stay.
pub(crate) struct Agent {
    process: Process,
    pub(crate) started: Instant,
    log: PathBuf,
}

/// A process' memory as the kernel reports it, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// `VmHWM`: the most that was resident at any time.
    pub(crate) peak: u64,
    /// `VmRSS`.
    pub(crate) resident: u64,
    /// `RssAnon`: heap and stacks.
    pub(crate) anonymous: u64,
    /// `RssFile` and `RssShmem`: the binary, and maps of the kernel that are mapped into memory.
    pub(crate) mapped: u64,
}

impl Agent {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// CPU time of all its threads since it began, those that have ended included.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.id().cast_signed()))?;
        Ok(clock_gettime(clock)?.into())
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let bytes = |field: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).context(field.to_owned())?;
            Ok(kibibytes.trim().parse::<u64>()? * 1024)
        };
        Ok(Memory {
            peak: bytes("VmHWM")?,
            resident: bytes("VmRSS")?,
            anonymous: bytes("RssAnon")?,
            mapped: bytes("RssFile")? + bytes("RssShmem")?,
        })
    }

    /// Waits, busily, until the agent reports that it is healthy.
    pub(crate) fn until_healthy(&self) -> Result<Instant> {
        self.until("it to be healthy", || Ok(is_healthy().then(Instant::now)))
    }

    /// Checks, busily, until there is a result; the other process has the other CPU.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if began.elapsed() > DEADLINE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<_> = log.lines().rev().take(20).collect();
                bail!(
                    "waited {DEADLINE:?} for {what}; the agent's log ends with (backwards)\n{}",
                    end.join("\n")
                );
            }
        }
    }
}

fn is_healthy() -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(HEALTHZ)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
