//! Which programs are attached where, kept in step with what the node looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use tracing::{info, warn};

use super::{
    link::{self, Attached, Target},
    object::Object,
    pins::Pins,
};
use crate::{
    cli::XdpMode,
    net::{
        driver,
        filters::Filter,
        topology::{PodPort, Topology, Uplink},
    },
};

/// The socket hooks: program name and `bpf_attach_type`.
const SOCKET_HOOKS: [(&str, u32); 8] = [
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

/// What is attached.
pub(super) struct Hooks {
    pins: Pins,
    xdp: XdpMode,
    /// By pin name (or, for clsact, what the pin would be called).
    attached: BTreeMap<String, Hook>,
    /// What could not be attached, and why; tried again when the interfaces change.
    failed: BTreeMap<String, String>,
}

impl Hooks {
    pub(super) fn new(pins: Pins, xdp: XdpMode) -> Self {
        Self { pins, xdp, attached: BTreeMap::new(), failed: BTreeMap::new() }
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
            let hook = Hook { at: "cgroup".into(), program: program.into(), how: "cgroup link" };
            self.attached.insert(name, hook);
        }
        Ok(())
    }

    /// Attaches to the interfaces of a topology and detaches from others. Returns the interfaces with native XDP.
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
            if let Some(name) = self.xdp(object, uplink, &mut native) {
                wanted.insert(name);
            }
        }
        for PodPort { index, name, .. } in &topology.pods {
            // Answers must be translated back before anything is translated forth.
            wanted.insert(self.tc(object, *index, name, "pod_egress", TcAttachType::Egress));
            wanted.insert(self.tc(object, *index, name, "pod_ingress", TcAttachType::Ingress));
        }
        self.detach_others(&wanted);
        native
    }

    /// Detaches from interfaces that are not in `wanted`, an earlier agent's included.
    fn detach_others(&mut self, wanted: &BTreeSet<String>) {
        let pinned = self.pins.link_names().unwrap_or_default();
        for name in pinned {
            if name.starts_with("cgroup-") || wanted.contains(&name) {
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
            let keep = name.starts_with("cgroup-") || wanted.contains(name);
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
        let name = format!("tc-{index}-{}", if is_ingress { "ingress" } else { "egress" });
        if self.attached.contains_key(&name) {
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
                info!("{verb} {program} at {interface} ({how})");
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

/// [`Hook::how`] of filters.
const CLSACT: &str = "clsact";
/// Before every program of a CNI; 0 would let the kernel choose.
const CLSACT_PRIORITY: u16 = 1;
/// Marks our filters, so that a later agent finds them.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x7078);

/// Is it one of ours?
pub(super) fn is_own_filter(filter: &Filter) -> bool {
    (filter.priority, filter.handle) == (CLSACT_PRIORITY, u32::from(CLSACT_HANDLE))
}

/// Attaches by a filter of the clsact qdisc, which outlives the agent by itself; replaces an earlier agent's.
fn attach_clsact(
    object: &mut Object,
    interface: &str,
    program: &str,
    direction: TcAttachType,
) -> Result<Attached> {
    object.program(program)?;
    if let Err(error) = qdisc_add_clsact(interface) {
        let error = anyhow::Error::from(error);
        let exists = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|error| error.raw_os_error() == Some(libc::EEXIST));
        if !exists && !format!("{error:#}").contains("exists") {
            return Err(error.context("cannot add a clsact qdisc"));
        }
    }
    let program: &mut SchedClassifier =
        object.ebpf().program_mut(program).context("no such program")?.try_into()?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        ..NlOptions::default()
    });
    let (link, attached) = match program.attach_with_options(interface, direction, options) {
        Ok(id) => (program.take_link(id)?, Attached::New),
        // An earlier agent's filter is there.
        Err(_) => {
            let there =
                SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)?;
            let id = program.attach_to_link(there)?;
            (program.take_link(id)?, Attached::Updated)
        }
    };
    // Dropping the link would remove the filter.
    std::mem::forget(link);
    Ok(attached)
}

/// Removes what an earlier agent left at interfaces that are not in the topology: filters leave no pin to find them by.
fn detach_stale_clsact(topology: &Topology) {
    let uplinks = topology.uplinks.iter().map(|uplink| uplink.name.as_str());
    let wanted: BTreeSet<&str> = uplinks.chain(topology.pods.iter().map(|pod| pod.name.as_str())).collect();
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return };
    let names = interfaces.iter().filter_map(|interface| interface.name().to_str().ok());
    names.filter(|name| !wanted.contains(name)).for_each(detach_clsact);
}

/// Removes our clsact filters from an interface.
pub(super) fn detach_clsact(interface: &str) {
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        // Dropping a link to a filter removes it; where there is none there is nothing to do.
        if let Ok(link) =
            SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        {
            drop(link);
        }
    }
}
