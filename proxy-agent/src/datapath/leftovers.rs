//! An agent's remains on a node: found, named, removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{clsact, link, pins::Pins};
use crate::net::filters::{Direction, Filter};

/// Something that an agent left. The order is that in which to remove: no program is left without its maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// The pinned link of a program.
    Link {
        /// For people.
        what: String,
        /// Its pin.
        pin: PathBuf,
    },
    /// A filter of the clsact qdisc.
    Filter {
        /// The interface.
        interface: String,
        /// Where there.
        direction: Direction,
        /// The program.
        program: String,
    },
    /// A pinned map, or anything else that is pinned.
    Map {
        /// For people.
        what: String,
        /// Its pin.
        pin: PathBuf,
    },
}

impl Leftover {
    /// In words.
    pub fn what(&self) -> String {
        match self {
            Self::Link { what, .. } | Self::Map { what, .. } => what.clone(),
            Self::Filter { interface, direction, program } => {
                format!("tc filter {program} at the {direction} of {interface} (clsact)")
            }
        }
    }

    /// Removes it. A pin that is gone already is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, pins: &Pins) -> Result<()> {
        match self {
            Self::Link { pin, .. } => {
                let name = pin.file_name().unwrap_or_default().to_string_lossy();
                link::detach_now(pins, &name)
            }
            Self::Filter { interface, direction, .. } => clsact::detach_filter(interface, *direction),
            Self::Map { pin, .. } => match fs::remove_file(pin) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot unpin {}", pin.display()))
                }
                _ => Ok(()),
            },
        }
    }

    /// All pins. `interface_name` knows interfaces by their index.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pinned(pins: &Pins, interface_name: impl Fn(u32) -> Option<String>) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for directory in pins.directories()? {
            let name = file_name(&directory);
            for pin in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
                let pin = pin?.path();
                all.push(if name == "links" {
                    Self::Link { what: describe(&file_name(&pin), &interface_name), pin }
                } else {
                    Self::Map { what: format!("map {} ({name})", file_name(&pin)), pin }
                });
            }
        }
        all.sort();
        Ok(all)
    }

    /// A filter, if it is ours.
    pub fn filter(interface: &str, direction: Direction, filter: Filter) -> Option<Self> {
        let is_ours = clsact::is_own_filter(&filter);
        is_ours.then(|| Self::Filter { interface: interface.to_owned(), direction, program: filter.name })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Describes a link by the name of its pin: see [`hooks`](super::hooks).
fn describe(pin: &str, interface_name: impl Fn(u32) -> Option<String>) -> String {
    let at = |index: &str| {
        let index = index.parse().ok()?;
        Some(interface_name(index).unwrap_or_else(|| format!("interface {index}, which is gone")))
    };
    let mut parts = pin.splitn(3, '-');
    let text = match (parts.next(), parts.next(), parts.next()) {
        (Some("cgroup"), Some(program), None) => Some(format!("socket hook {program} (cgroup link)")),
        (Some("tc"), Some(index), Some(direction)) => {
            at(index).map(|at| format!("tc program at the {direction} of {at} (TCX link)"))
        }
        (Some("xdp"), Some(index), Some(mode)) => at(index).map(|at| format!("XDP program at {at} ({mode})")),
        _ => None,
    };
    text.unwrap_or_else(|| format!("link {pin}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_named_by_program_and_interface() {
        let name = |index| (index == 3).then(|| "eth0".to_owned());
        for (pin, what) in [
            ("cgroup-connect4", "socket hook connect4 (cgroup link)"),
            ("tc-3-ingress", "tc program at the ingress of eth0 (TCX link)"),
            ("tc-4-egress", "tc program at the egress of interface 4, which is gone (TCX link)"),
            ("xdp-3-native", "XDP program at eth0 (native)"),
            ("tc-x-egress", "link tc-x-egress"),
            ("other", "link other"),
        ] {
            assert_eq!(describe(pin, name), what);
        }
    }

    #[test]
    fn filters_of_others_are_left_alone() {
        let filter = |name: &str, handle, priority| Filter { name: name.into(), handle, priority };
        for (filter, is_ours) in [
            (filter("uplink_ingress", 0x7078, 1), true),
            (filter("pod_egress", 0x7078, 1), true),
            (filter("cil_from_netdev", 0x7078, 1), false),
            (filter("uplink_ingress", 1, 1), false),
            (filter("uplink_ingress", 0x7078, 2), false),
        ] {
            let found = Leftover::filter("eth0", Direction::Ingress, filter.clone());
            assert_eq!(found.is_some(), is_ours, "{filter:?}");
        }
    }
}
