//! Which programs are attached where, kept in step with what the node looks like.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::programs::TcAttachType;
use nix::net::if_::if_nametoindex;
use tracing::{debug, info, warn};

use super::{
    clsact::{CLSACT, attach_clsact, detach_clsact, detach_stale_clsact},
    link::{self, Attached, Target},
    object::Object,
    pins::Pins,
    rcu::Expedited,
    sys,
};
use crate::{
    cli::XdpMode,
    net::{
        driver,
        topology::{PodPort, Topology, Uplink},
    },
};

/// The socket hooks: program name and `bpf_attach_type`.
pub(super) const SOCKET_HOOKS: [(&str, u32); 8] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// An attached program, as `info` tells it.
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
    /// Is it at a cgroup?
    pub fn is_of_sockets(&self) -> bool {
        self.how == CGROUP
    }
}

/// [`Hook::how`] of socket hooks.
const CGROUP: &str = "cgroup link";

/// What is attached.
pub(super) struct Hooks {
    pins: Pins,
    xdp: XdpMode,
    /// By pin name (or, for clsact, what the pin would be called).
    attached: BTreeMap<String, Hook>,
    /// What could not be attached, and why; tried again when the interfaces change.
    failed: BTreeMap<String, String>,
    /// What is to be done at pods' interfaces: there may be many.
    pending: VecDeque<Pending>,
}

/// A change that waits.
enum Pending {
    Attach(PodPort),
    /// By the name of its link.
    Detach(String),
}

/// With more changes than these, grace periods are made short.
const FEW: usize = 8;

impl Hooks {
    pub(super) fn new(pins: Pins, xdp: XdpMode) -> Self {
        Self { pins, xdp, attached: BTreeMap::new(), failed: BTreeMap::new(), pending: VecDeque::new() }
    }

    /// What is attached.
    pub(super) fn attached(&self) -> impl Iterator<Item = &Hook> {
        self.attached.values()
    }

    /// What could not be attached.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&String, &String)> {
        self.failed.iter()
    }

    /// Attaches the socket hooks to a cgroup.
    pub(super) fn attach_sockets(&mut self, object: &mut Object, cgroup: &Path) -> Result<()> {
        let directory =
            File::open(cgroup).with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let id = directory.metadata()?.ino();
        for (program, attach_type) in SOCKET_HOOKS {
            let fd = object.program(program)?;
            let name = format!("cgroup-{program}");
            let target = Target::Cgroup { directory: directory.as_fd(), id, attach_type };
            link::attach(&self.pins, &name, &fd, target)
                .with_context(|| format!("cannot attach {program} to the cgroup {}", cgroup.display()))?;
            let hook = Hook { at: "cgroup".into(), program: program.into(), how: CGROUP };
            self.attached.insert(name, hook);
        }
        Ok(())
    }

    /// What was attached by a link that the kernel does not have any more, or that has another program. It counts as not attached
    /// from now on. What was at an interface that is gone is left out: it goes with the topology.
    pub(super) fn forget_lost_links(&mut self, object: &Object) -> Vec<Hook> {
        let is_lost = |name: &str, hook: &Hook| {
            let is_there = || hook.is_of_sockets() || if_nametoindex(hook.at.as_str()).ok() == index_of(name);
            hook.how != CLSACT
                && !link::is_attached(&self.pins, name, object.program_id(&hook.program))
                && is_there()
        };
        let lost: Vec<String> = self
            .attached
            .iter()
            .filter(|(name, hook)| is_lost(name, hook))
            .map(|(name, _)| name.clone())
            .collect();
        lost.iter().filter_map(|name| self.attached.remove(name)).collect()
    }

    /// Gives everything that is attached the programs of another object, each at once, and attaches what waits. Returns what could not
    /// be: it counts as not attached from now on.
    pub(super) fn replace_programs(&mut self, object: &mut Object) -> Vec<Hook> {
        let mut lost = Vec::new();
        for (name, hook) in self.attached.clone() {
            if let Err(error) = self.replace_program(object, &name, &hook) {
                debug!("{} at {}: {error:#}", hook.program, hook.at);
                self.attached.remove(&name);
                lost.push(hook);
            }
        }
        while let Some(far) = Instant::now().checked_add(Duration::from_secs(3600))
            && self.has_pending()
        {
            self.work(object, far);
        }
        lost
    }

    fn replace_program(&self, object: &mut Object, name: &str, hook: &Hook) -> Result<()> {
        if hook.how == CLSACT {
            let is_ingress = name.ends_with("ingress");
            let direction = if is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
            return attach_clsact(object, &hook.at, &hook.program, direction).map(drop);
        }
        let program = object.program(&hook.program)?;
        let link = sys::open_pinned(&self.pins.link(name))?;
        Ok(sys::update_link(link.as_fd(), program.as_fd())?)
    }

    /// What was attached by filters, with the index of the interface.
    pub(super) fn filters(&self) -> Vec<(u32, Hook)> {
        let filters = self.attached.iter().filter(|(_, hook)| hook.how == CLSACT);
        filters.filter_map(|(name, hook)| Some((index_of(name)?, hook.clone()))).collect()
    }

    /// A filter is gone.
    pub(super) fn forget_filter(&mut self, index: u32, hook: &Hook) {
        self.attached.retain(|name, other| {
            other != hook || !["ingress", "egress"].iter().any(|way| *name == format!("tc-{index}-{way}"))
        });
    }

    /// Attaches to the uplinks of a topology. What is to be attached to or detached from pods' interfaces waits for
    /// [`Self::work`]. Returns the interfaces with native XDP.
    ///
    /// What fails is logged and noted; the rest is attached.
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
        self.detach_others(&wanted);
        native
    }

    /// Is there anything for [`Self::work`]?
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Are both programs at the interface of a pod?
    pub(super) fn serves_pod(&self, index: u32) -> bool {
        // An interface may look like a pod's that was an uplink.
        [(true, "pod_ingress"), (false, "pod_egress")].into_iter().all(|(is_ingress, program)| {
            self.attached.get(&link_name(index, is_ingress)).is_some_and(|hook| hook.program == program)
        })
    }

    /// Attaches and detaches at pods' interfaces until it is done, or that time.
    pub(super) fn work(&mut self, object: &mut Object, until: Instant) {
        let _expedited = (self.pending.len() > FEW).then(Expedited::begin);
        let (mut attached, mut detached) = (0, 0);
        while let Some(change) = self.pending.pop_front() {
            match change {
                Pending::Attach(PodPort { index, name, .. }) => {
                    // Answers must be translated back before anything is translated forth.
                    self.tc(object, index, &name, "pod_egress", TcAttachType::Egress);
                    self.tc(object, index, &name, "pod_ingress", TcAttachType::Ingress);
                    attached += 1;
                }
                Pending::Detach(name) => {
                    match link::detach_now(&self.pins, &name) {
                        Ok(()) => drop(self.attached.remove(&name)),
                        Err(error) => warn!("{error:#}"),
                    }
                    detached += 1;
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        let left = self.pending.len();
        if attached > 0 {
            info!("attached programs at {attached} pod interfaces; {left} changes are left");
        }
        if detached > 0 {
            info!("detached {detached} programs from pod interfaces; {left} changes are left");
        }
    }

    /// Detaches from interfaces that are not in `wanted`, an earlier agent's included.
    fn detach_others(&mut self, wanted: &BTreeSet<String>) {
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
                link::attach(&self.pins, &name, &fd, Target::Tcx { ifindex: index, attach_type })
            });
            (result, "tcx")
        } else {
            (attach_clsact(object, interface, program, direction), CLSACT)
        };
        self.note(name.clone(), interface, program, how, result);
        name
    }

    /// Attaches XDP as far as the mode asks for it; returns the name of its link if there is one to keep.
    fn xdp(&mut self, object: &mut Object, uplink: &Uplink, native: &mut BTreeSet<u32>) -> Option<String> {
        let Uplink { index, name: interface, has_link_header, is_virtual, .. } = uplink;
        let (flags, how) = match self.xdp {
            XdpMode::Off => return None,
            XdpMode::Auto if *is_virtual || !has_link_header => return None,
            XdpMode::Auto | XdpMode::Native => (link::XDP_NATIVE, "xdp native"),
            XdpMode::Generic => (link::XDP_GENERIC, "xdp generic"),
        };
        // A link keeps its mode, so each mode has a name, and only one can be attached.
        let mode = |flags| if flags == link::XDP_GENERIC { "generic" } else { "native" };
        let name = format!("xdp-{index}-{}", mode(flags));
        let other = mode(if flags == link::XDP_GENERIC { link::XDP_NATIVE } else { link::XDP_GENERIC });
        if let Err(error) = link::detach(&self.pins, &format!("xdp-{index}-{other}")) {
            warn!("{error:#}");
        }
        if self.attached.contains_key(&name) {
            if flags == link::XDP_NATIVE {
                native.insert(*index);
            }
            return Some(name);
        }
        let attach = |object: &mut Object, program: &str| -> Result<Attached> {
            let fd = object.program(program)?;
            link::attach(&self.pins, &name, &fd, Target::Xdp { ifindex: *index, flags })
        };
        // Kernels below 5.18 know no packets in several buffers. And for programs that do, generic XDP copies the packet
        // and forgets the length of its link header (`skb_pp_cow_data`), so that tc programs would find it shifted.
        let with_frags =
            if flags == link::XDP_GENERIC { None } else { attach(object, "uplink_xdp_frags").ok() };
        let (result, program) = match with_frags {
            Some(attached) => (Ok(attached), "uplink_xdp_frags"),
            None => (attach(object, "uplink_xdp"), "uplink_xdp"),
        };
        if let Err(error) = &result
            && self.xdp == XdpMode::Auto
        {
            info!("{interface} has no native XDP ({}): tc serves it", error.root_cause());
            return None;
        }
        if let Ok(attached) = &result
            && flags == link::XDP_NATIVE
        {
            native.insert(*index);
            if *attached == Attached::New {
                let driver = driver::name(interface).unwrap_or_else(|_| "unknown".to_owned());
                warn!(
                    "native XDP at {interface} (driver {driver}): many drivers reset the link when it is attached and switch LRO \
                     off, and some lose frames that XDP sends to another interface; `--xdp off` leaves all to tc (see \
                     docs/operations.md, Native XDP)"
                );
            }
        }
        self.note(name.clone(), interface, program, how, result);
        Some(name)
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
                    // There may be many: `work` says how many.
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

/// What the link of a tc program is pinned as.
pub(crate) fn link_name(index: u32, is_ingress: bool) -> String {
    format!("tc-{index}-{}", if is_ingress { "ingress" } else { "egress" })
}
