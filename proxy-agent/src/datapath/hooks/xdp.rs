//! XDP at uplinks.

use std::{collections::BTreeSet, os::fd::AsFd as _};

use anyhow::Result;
use proxy_sys::ethtool::driver;
use tracing::{info, warn};

use super::Hooks;
use crate::{
    datapath::{
        link::{self, Attached, Target},
        object::Object,
    },
    net::topology::Uplink,
};

/// How XDP is used: `--xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver has it.
    Auto,
    /// Native or an error.
    Native,
    /// The kernel's emulation.
    Generic,
    /// No XDP.
    Off,
}

impl Hooks {
    /// Attaches XDP as far as the mode requests it; returns the name of its link if one must be kept.
    pub(super) fn xdp(
        &mut self,
        object: &mut Object,
        uplink: &Uplink,
        native: &mut BTreeSet<u32>,
    ) -> Option<String> {
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
            link::attach(&self.pins, &name, fd.as_fd(), Target::Xdp { ifindex: *index, flags })
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
                let driver = driver(interface).unwrap_or_else(|_| "unknown".to_owned());
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
}
