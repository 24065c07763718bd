//! Programs that are loaded before anything is attached or written.

use anyhow::{Context as _, Result};
use proxy_common::layout::maps::all;
use tracing::info;

use super::{
    Datapath, Loaded, ObjectConfig, hooks, maps, object::Object, packet_pods::PacketPods, pins::Pins, room,
    socket_reader, synced,
};
use crate::{model::plan::IpFamily, net::absent_family::absent_family};

/// Programs of uplinks with Ethernet headers: nearly every node needs them.
const UPLINK: [&str; 2] = ["uplink_ingress", "uplink_egress"];

/// Programs and maps for [`Datapath::open_prepared`](super::Datapath::open_prepared).
pub struct Prepared {
    pub(super) object: Object,
    uplinks: Uplinks,
}

/// The programs of uplinks.
enum Uplinks {
    /// Loaded, or loaded when they are attached.
    Ready,
    /// To be loaded while sockets are served.
    Later,
    /// The kernel refused one.
    Refused(anyhow::Error),
}

impl Prepared {
    /// Makes the maps that are not there, and loads the programs that every node needs. Attached programs and the entries of
    /// maps stay unchanged: another agent may be running. Without those of uplinks an agent serves sockets; see [`Self::complete`].
    ///
    /// # Errors
    /// When the kernel or its permissions do not allow it; with advice.
    pub fn load(config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        let mut prepared = Self::maps_only(config, pins, absent_family())?;
        let object = &mut prepared.object;
        let of_sockets = of_sockets(object);
        // Pods' interfaces have programs, which are to be replaced soon.
        let serves_pods =
            config.sockets_of_node_only || PacketPods::open(pins).is_ok_and(|pods| !pods.known().is_empty());
        let of_pods: &[&str] = if serves_pods { &hooks::POD } else { &[] };
        prepared.uplinks = load(&of_sockets, of_pods, |names| object.load_programs(names.iter().copied()))?;
        Ok(prepared)
    }

    /// The same without the programs of uplinks, for a node that nothing serves yet: sockets can be served while the verifier looks at those,
    /// which takes it longer than all others together. See [`Datapath::loading_of_uplink_programs`].
    ///
    /// # Errors
    /// The same as for [`Self::load`].
    pub fn load_for_sockets(config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        let mut prepared = Self::maps_only(config, pins, absent_family())?;
        let object = &mut prepared.object;
        object.load_programs(of_sockets(object).into_iter())?;
        prepared.uplinks = Uplinks::Later;
        Ok(prepared)
    }

    /// Whether the programs of uplinks were left for later.
    pub fn lacks_uplinks(&self) -> bool {
        matches!(self.uplinks, Uplinks::Later)
    }

    /// With all programs: an agent that takes over from programs that serve must not begin with fewer.
    ///
    /// # Errors
    /// When the kernel refuses a program of uplinks.
    pub fn complete(mut self) -> Result<Self> {
        match self.uplinks {
            Uplinks::Refused(error) => return Err(error),
            Uplinks::Later => self.object.load_programs(UPLINK.into_iter())?,
            Uplinks::Ready => {}
        }
        self.uplinks = Uplinks::Ready;
        Ok(self)
    }

    /// Whether maps that these programs use were replaced by larger ones since, or their pins removed.
    pub(super) fn is_outdated(&self, pins: &Pins) -> bool {
        let ids = room::growing_maps().filter_map(|name| Some((name, self.object.map_id(name)?)));
        room::were_replaced(pins, ids)
            || all().any(|map| !pins.map(map.name).exists())
            || self.object.serves_others(pins)
    }

    /// The programs, loaded again if another agent replaced maps meanwhile. Only the holder of the lock may, which this agent must be now.
    ///
    /// # Errors
    /// The same as for [`Self::load`].
    pub(crate) fn renew(self, config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        if self.is_outdated(pins) { Self::load(config, pins)?.complete() } else { Ok(self) }
    }

    /// Before maps are filled while attached programs use others. Removes the pins of those, and the mark of these: from here on ids may
    /// change that the other maps contain, so any agent that starts later has to fill its maps, too.
    ///
    /// # Errors
    /// When the bpf file system refuses, or the kernel the programs.
    pub(crate) fn begin_to_fill(self, config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        synced::unmark(pins).context("cannot take the mark from the maps")?;
        let removed = pins.remove_other_layouts()?;
        if removed > 0 {
            info!(
                "unpinned {removed} maps of another release, which its programs use until they are replaced"
            );
        }
        if !self.is_outdated(pins) && !room::is_short_of_ids(pins) {
            return Ok(self);
        }
        drop(self);
        pins.remove_services()?;
        Self::load(config, pins)?.complete()
    }

    /// The same without programs, which are loaded when they are needed, and for a node without addresses of the family `absent`.
    ///
    /// # Errors
    /// The same as for [`Self::load`].
    pub(super) fn maps_only(config: &ObjectConfig, pins: &Pins, absent: Option<IpFamily>) -> Result<Self> {
        pins.create()?;
        maps::check_layouts(pins)?;
        Ok(Self { object: Object::load(config, pins, absent)?, uplinks: Uplinks::Ready })
    }
}

impl Datapath {
    /// Work that loads the programs of uplinks; for use where blocking is allowed. Fails when the kernel refuses one.
    pub fn loading_of_uplink_programs(&self) -> impl FnOnce() -> Result<Loaded> + Send + use<> {
        self.object.loading(&UPLINK)
    }

    /// Whether programs must be attached to a pod's interface that are not loaded.
    pub fn needs_pod_programs(&self) -> bool {
        self.hooks.attaches_to_pods() && !hooks::POD.iter().all(|name| self.object.has(name))
    }

    /// Work that loads the programs for pods' interfaces; for use where blocking is allowed: the verifier takes its time. Fails when the
    /// kernel refuses them.
    pub fn loading_of_pod_programs(&self) -> impl FnOnce() -> Result<Loaded> + Send + use<> {
        self.object.loading(&hooks::POD)
    }
}

/// Names of the programs that serve and read sockets.
fn of_sockets(object: &Object) -> Vec<&'static str> {
    let has_socket_storage = object.features.sk_storage;
    let readers = has_socket_storage.then_some(socket_reader::PROGRAMS);
    hooks::socket_hooks(has_socket_storage)
        .map(|(name, _)| name)
        .chain(readers.into_iter().flatten())
        .collect()
}

/// Loads the programs of sockets, uplinks and pods' interfaces. Those of pods are loaded again, and a refusal reported, when one needs them.
///
/// # Errors
/// When one of sockets was refused.
fn load(
    of_sockets: &[&str],
    of_pods: &[&str],
    mut load: impl FnMut(&[&str]) -> Result<()>,
) -> Result<Uplinks> {
    // All at once, because they are loaded in parallel. Those that are accepted are not loaded again.
    if load(&[of_sockets, &UPLINK, of_pods].concat()).is_ok() {
        return Ok(Uplinks::Ready);
    }
    load(of_sockets)?;
    Ok(load(&UPLINK).map_or_else(Uplinks::Refused, |()| Uplinks::Ready))
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn sockets_are_served_without_programs_of_uplinks() {
        for (refused, serves, is_complete) in [
            ("none", true, true),
            ("pod_egress", true, true),
            ("uplink_egress", true, false),
            ("connect4", false, false),
        ] {
            let loaded = load(&["connect4", "sendmsg4"], &hooks::POD, |names| {
                ensure!(!names.contains(&refused), "no {refused}");
                Ok(())
            });
            assert_eq!(loaded.is_ok(), serves, "{refused}");
            assert_eq!(
                loaded.is_ok_and(|uplinks| matches!(uplinks, Uplinks::Ready)),
                is_complete,
                "{refused}"
            );
        }
    }
}
