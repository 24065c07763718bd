//! Loads and tries the programs without leaving anything behind: pins are in a bpf file system of a private mount namespace, which ends
//! with the thread that made it, and the socket hooks are at a cgroup that only the connecting process is in.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::connect::{OwnCgroup, connect_from};
use crate::{
    config::{Settings, object_config},
    datapath::{Datapath, Features, ObjectConfig, pins::Pins},
    model::{
        objects::{ObjectName, Protocol},
        plan::{Endpoints, Frontend, IpFamily, Places, PortName, PortPlan},
    },
};

/// The result of the trial.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) features: Features,
    /// How many programs the kernel took.
    pub(super) loaded: usize,
    pub(super) refused: Vec<Refused>,
    /// By family; or why none could be tried.
    pub(super) connections: Result<Vec<Connection>, String>,
}

/// A program that the kernel does not take.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) program: String,
    pub(super) why: String,
}

/// A connection through a test VIP.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) vip: SocketAddr,
    pub(super) outcome: Outcome,
}

/// The outcome of a connection.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It came to the endpoint.
    Translated,
    /// It did not; the error, if there was one.
    NotTranslated(Option<io::Error>),
    /// The node does not have the family.
    NoFamily,
}

/// Reason for the lack of a [`Trial`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It cannot be made here.
    Impossible(String),
    /// Not even the maps can be made.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Impossible(why) | Self::Refused(why)) = self;
        f.write_str(why)
    }
}

/// Where the bpf file system of the trial is mounted.
const BPFFS: &str = "/sys/fs/bpf";
const PINS: &str = "/sys/fs/bpf/proxy-agent-check";

/// Enough for one connection.
const FLOWS: u32 = 1024;

/// Test VIPs: loopback addresses, so packets to them stay on the node, translated or not.
const VIPS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 99, 0, 1)), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Loads all programs, and connects through a test VIP from below a cgroup, if there is one. For use where blocking is allowed.
///
/// # Errors
/// Why no trial was made.
pub(super) fn run(settings: &Settings, cgroup: Option<PathBuf>) -> Result<Trial, Failure> {
    let config = config(settings);
    let xdp = settings.xdp;
    let work = move || -> Result<Trial, Failure> {
        own_mounts().map_err(|error| Failure::Impossible(format!("{error:#}")))?;
        let pins = Pins::new(Path::new(PINS));
        let mut datapath =
            Datapath::open(&config, &pins, xdp).map_err(|error| Failure::Refused(first_line(&error)))?;
        let features = datapath.features();
        let (mut loaded, mut refused) = (0, Vec::new());
        let tried = datapath.try_programs().map_err(|error| Failure::Refused(first_line(&error)))?;
        for (program, result) in tried {
            match result {
                Ok(()) => loaded += 1,
                Err(error) => refused.push(Refused { program, why: first_line(&error) }),
            }
        }
        let connections = match &cgroup {
            Some(cgroup) => connect(&mut datapath, cgroup).map_err(|error| format!("{error:#}")),
            None => Err("no cgroup2 hierarchy to attach to".to_owned()),
        };
        // They go with the mount as well, but some time after this process.
        let _ = pins.remove_all();
        Ok(Trial { features, loaded, refused, connections })
    };
    let thread = thread::Builder::new().name("check".into()).spawn(work);
    let thread = thread.map_err(|error| Failure::Impossible(error.to_string()))?;
    thread.join().unwrap_or_else(|_| Err(Failure::Impossible("the check panicked".to_owned())))
}

/// As in earnest, but for the size.
fn config(settings: &Settings) -> ObjectConfig {
    ObjectConfig { max_flows: FLOWS, ..object_config(settings) }
}

/// The verifier's log is long.
fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

/// Puts this thread into a private mount namespace, with a new bpf file system.
fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (CAP_SYS_ADMIN)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount a bpf file system at {BPFFS}, within a mount namespace"))
}

fn connect(datapath: &mut Datapath, cgroup: &Path) -> Result<Vec<Connection>> {
    let own = OwnCgroup::create(cgroup)
        .with_context(|| format!("cannot make a cgroup below {}", cgroup.display()))?;
    datapath.attach_sockets(own.path())?;
    VIPS.into_iter().map(|vip| connect_to(datapath, &own, vip)).collect()
}

fn connect_to(datapath: &mut Datapath, cgroup: &OwnCgroup, ip: IpAddr) -> Result<Connection> {
    let local: IpAddr = if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let Ok(listener) = TcpListener::bind((local, 0)) else {
        return Ok(Connection { vip: SocketAddr::new(ip, 0), outcome: Outcome::NoFamily });
    };
    listener.set_nonblocking(true)?;
    // A port at which nothing listens.
    let free = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
    let vip = free.with_context(|| format!("no port is free at {ip}"))?;
    datapath.services.apply(&plan(vip, listener.local_addr()?))?;
    let outcome = match connect_from(cgroup, vip) {
        Ok(()) if listener.accept().is_ok() => Outcome::Translated,
        Ok(()) => Outcome::NotTranslated(None),
        Err(error) => Outcome::NotTranslated(Some(error)),
    };
    Ok(Connection { vip, outcome })
}

fn plan(vip: SocketAddr, endpoint: SocketAddr) -> PortPlan {
    let endpoints: Endpoints = Arc::from([endpoint]);
    PortPlan {
        name: PortName {
            service: ObjectName::new("proxy-agent", "check"),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: IpFamily::of(&vip.ip()),
        },
        frontends: vec![Frontend::ClusterIp(vip)],
        internal: endpoints.clone(),
        external: endpoints.clone(),
        cluster: endpoints.clone(),
        serving: endpoints.clone(),
        places: Places { local: endpoints, unknown: Endpoints::default() },
        affinity: None,
        sources: None,
    }
}
