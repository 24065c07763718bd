//! Programs that are loaded before anything is attached or written.

use anyhow::{Context as _, Result};
use proxy_common::layout::maps::all;
use tracing::info;

use super::{ObjectConfig, hooks, maps, object::Object, pins::Pins, room, socket_reader, synced};

/// Programs of uplinks with Ethernet headers: nearly every node needs them.
const UPLINK: [&str; 2] = ["uplink_ingress", "uplink_egress"];

/// Programs and maps for [`Datapath::open_prepared`](super::Datapath::open_prepared).
pub struct Prepared(pub(super) Object);

impl Prepared {
    /// Makes the maps that are not there, and loads the programs that every node needs. Attached programs and the entries of
    /// maps stay unchanged: another agent may be running.
    ///
    /// # Errors
    /// When the kernel or its permissions do not allow it; with advice.
    pub fn load(config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        let mut prepared = Self::maps_only(config, pins)?;
        let object = &mut prepared.0;
        let of_sockets = object.features.sk_storage.then_some(socket_reader::PROGRAMS);
        let programs = hooks::SOCKET_HOOKS.into_iter().map(|(name, _)| name);
        object.load_programs(programs.chain(UPLINK).chain(of_sockets.into_iter().flatten()))?;
        Ok(prepared)
    }

    /// Whether maps that these programs use were replaced by larger ones since, or their pins removed.
    pub(super) fn is_outdated(&self, pins: &Pins) -> bool {
        let ids = room::growing_maps().filter_map(|name| Some((name, self.0.map_id(name)?)));
        room::were_replaced(pins, ids) || all().any(|map| !pins.map(map.name).exists())
    }

    /// The programs, loaded again if another agent replaced maps meanwhile. Only the holder of the lock may, which this agent must be now.
    ///
    /// # Errors
    /// The same as for [`Self::load`].
    pub(crate) fn renew(self, config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        if self.is_outdated(pins) { Self::load(config, pins) } else { Ok(self) }
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
        Self::load(config, pins)
    }

    /// The same without programs: they are loaded when they are needed.
    ///
    /// # Errors
    /// The same as for [`Self::load`].
    pub fn maps_only(config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        pins.create()?;
        maps::check_layouts(pins)?;
        Ok(Self(Object::load(config, pins)?))
    }
}
