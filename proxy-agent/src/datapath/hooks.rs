//! Which programs are attached where, reconciled with the node's interfaces.

mod lost;
mod pods;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::programs::TcAttachType;
use tracing::{debug, info, warn};

pub(super) use self::pods::POD;
pub use self::xdp::XdpMode;

use self::pods::{FEW, Pending};
use super::{
    clsact::{CLSACT, attach_clsact, detach_clsact, detach_stale_clsact},
    link::{self, Attached, Target},
    object::Object,
    pins::Pins,
};
use crate::net::topology::Topology;

/// The hook that frees what `connect` takes.
const SOCK_RELEASE: &str = "sock_release";

/// All socket hooks: program name and `bpf_attach_type`. The one that frees is the first to be attached.
const SOCKET_HOOKS: [(&str, u32); 9] = [
    (SOCK_RELEASE, 34),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// The socket hooks of a kernel. Without socket storage `connect` takes no cell, and nothing has to be freed.
pub(super) fn socket_hooks(has_socket_storage: bool) -> impl Iterator<Item = (&'static str, u32)> {
    SOCKET_HOOKS.into_iter().filter(move |(name, _)| has_socket_storage || *name != SOCK_RELEASE)
}

/// An attached program, as `info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// Where: an interface's name, or `cgroup`.
    pub at: String,
    /// The program.
    pub program: String,
    /// How: `cgroup link`, `tcx`, `clsact`, `xdp native`, `xdp generic`.
    pub how: &'static str,
}

impl Hook {
    /// Whether it is at a cgroup.
    pub fn is_of_sockets(&self) -> bool {
        self.how == CGROUP
    }
}

/// [`Hook::how`] of socket hooks.
const CGROUP: &str = "cgroup link";

/// Attached programs.
pub(super) struct Hooks {
    pins: Pins,
    xdp: XdpMode,
    /// By pin name (for clsact: the name that the pin would have).
    attached: BTreeMap<String, Hook>,
    /// Hooks that could not be attached, and why; tried again when the interfaces change.
    failed: BTreeMap<String, String>,
    /// Work to do at pods' interfaces: their number may be large.
    pending: VecDeque<Pending>,
}

impl Hooks {
    pub(super) fn new(pins: Pins, xdp: XdpMode) -> Self {
        Self { pins, xdp, attached: BTreeMap::new(), failed: BTreeMap::new(), pending: VecDeque::new() }
    }

    /// Attached programs.
    pub(super) fn attached(&self) -> impl Iterator<Item = &Hook> {
        self.attached.values()
    }

    /// Hooks that could not be attached.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&String, &String)> {
        self.failed.iter()
    }

    /// Attaches the socket hooks to a cgroup.
    pub(super) fn attach_sockets(&mut self, object: &mut Object, cgroup: &Path) -> Result<()> {
        let directory =
            File::open(cgroup).with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let id = directory.metadata()?.ino();
        let has_socket_storage = object.features.sk_storage;
        object.load_programs(socket_hooks(has_socket_storage).map(|(name, _)| name))?;
        for (program, attach_type) in socket_hooks(has_socket_storage) {
            let fd = object.program(program)?;
            let name = format!("cgroup-{program}");
            let target = Target::Cgroup { directory: directory.as_fd(), id, attach_type };
            link::attach(&self.pins, &name, fd.as_fd(), target)
                .with_context(|| format!("cannot attach {program} to the cgroup {}", cgroup.display()))?;
            let hook = Hook { at: "cgroup".into(), program: program.into(), how: CGROUP };
            self.attached.insert(name, hook);
        }
        Ok(())
    }

    /// Attaches to the uplinks of a topology. Changes at pods' interfaces wait for [`Self::work`]. Returns the
    /// interfaces with native XDP.
    ///
    /// Failures are logged and noted; the rest is attached.
    pub(super) fn attach_interfaces(&mut self, object: &mut Object, topology: &Topology) -> BTreeSet<u32> {
        if !object.features.tcx && self.attached.values().all(|hook| hook.how != CLSACT) {
            detach_stale_clsact(topology);
        }
        let mut wanted = BTreeSet::new();
        let mut native = BTreeSet::new();
        for uplink in &topology.uplinks {
            let (ingress, egress) = if uplink.has_link_header {
                ("uplink_ingress", "uplink_egress")
            } else {
                ("uplink_l3_ingress", "uplink_l3_egress")
            };
            wanted.insert(self.tc(object, uplink.index, &uplink.name, egress, TcAttachType::Egress));
            wanted.insert(self.tc(object, uplink.index, &uplink.name, ingress, TcAttachType::Ingress));
            if uplink.may_have_xdp
                && let Some(name) = self.xdp(object, uplink, &mut native)
            {
                wanted.insert(name);
            }
        }
        self.pending.clear();
        for pod in &topology.pods {
            if !self.serves_pod(pod.index) {
                self.pending.push_back(Pending::Attach(pod.clone()));
            }
            wanted.extend([true, false].map(|is_ingress| link_name(pod.index, is_ingress)));
        }
        self.detach_foreign(&wanted);
        native
    }

    /// Detaches from interfaces that are not in `wanted`, an earlier agent's included.
    fn detach_foreign(&mut self, wanted: &BTreeSet<String>) {
        let pinned = self.pins.link_names().unwrap_or_default();
        let stale: Vec<String> = pinned
            .into_iter()
            .filter(|name| !name.starts_with("cgroup-") && !wanted.contains(name))
            .collect();
        let count = stale.len();
        for name in stale {
            if name.starts_with("tc-") && count > FEW {
                self.pending.push_back(Pending::Detach(name));
                continue;
            }
            match link::detach(&self.pins, &name) {
                Ok(()) => {
                    if let Some(hook) = self.attached.remove(&name) {
                        info!("detached {} from {}", hook.program, hook.at);
                    }
                }
                Err(error) => warn!("{error:#}"),
            }
        }
        self.attached.retain(|name, hook| {
            let is_filter = hook.how == CLSACT;
            let keep = name.starts_with("cgroup-") || wanted.contains(name) || (!is_filter && count > FEW);
            // Filters are not pinned.
            if !keep && hook.how == CLSACT {
                detach_clsact(&hook.at);
                info!("detached {} from {}", hook.program, hook.at);
            }
            keep
        });
        self.failed.retain(|name, _| wanted.contains(name));
    }

    /// Attaches a tc program; returns the name of its link.
    fn tc(
        &mut self,
        object: &mut Object,
        index: u32,
        interface: &str,
        program: &'static str,
        direction: TcAttachType,
    ) -> String {
        let is_ingress = matches!(direction, TcAttachType::Ingress);
        let name = link_name(index, is_ingress);
        // An interface may become an uplink that looked like a pod's.
        if self.attached.get(&name).is_some_and(|hook| hook.program == program) {
            return name;
        }
        let (result, how) = if object.features.tcx {
            let attach_type = if is_ingress { link::TCX_INGRESS } else { link::TCX_EGRESS };
            let result = object.program(program).and_then(|fd| {
                link::attach(&self.pins, &name, fd.as_fd(), Target::Tcx { ifindex: index, attach_type })
            });
            (result, "tcx")
        } else {
            (attach_clsact(object, interface, program, direction), CLSACT)
        };
        self.note(name.clone(), interface, program, how, result);
        name
    }

    fn note(
        &mut self,
        name: String,
        interface: &str,
        program: &str,
        how: &'static str,
        result: Result<Attached>,
    ) {
        match result {
            Ok(attached) => {
                let verb = if attached == Attached::New { "attached" } else { "took over" };
                if program.starts_with("pod_") {
                    // The number may be large: `work` logs how many.
                    debug!("{verb} {program} at {interface} ({how})");
                } else {
                    info!("{verb} {program} at {interface} ({how})");
                }
                self.failed.remove(&name);
                let hook = Hook { at: interface.into(), program: program.into(), how };
                self.attached.insert(name, hook);
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.failed.get(&name) != Some(&error) {
                    warn!("cannot attach {program} at {interface} ({how}): {error}");
                }
                self.failed.insert(name, error);
            }
        }
    }
}

/// The interface of a link, by its name.
fn index_of(link: &str) -> Option<u32> {
    link.split('-').nth(1)?.parse().ok()
}

/// The name of the pin of a tc program's link.
pub(crate) fn link_name(index: u32, is_ingress: bool) -> String {
    format!("tc-{index}-{}", if is_ingress { "ingress" } else { "egress" })
}
