//! Replaces maps of services by larger ones while programs use them.
//!
//! 1. Larger maps are made, empty, and pinned beside the others; programs that use them are loaded. That takes the verifier a second
//!    or so, on another thread. Meanwhile the existing entries are served, and changes wait.
//! 2. Without a write in between: their contents are copied, their pins take the place of the others' (each by one rename), and each link
//!    gets its program. Both kinds of programs see the same services, and the same flows, which stay in their maps.
//! 3. From now on the larger maps are written. The smaller ones go with their last program.
//!
//! An agent that is killed leaves maps with the same contents, whichever pins it had replaced; the next one gives all links programs for those.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use proxy_common::layout::maps::Definition;

use super::{
    Datapath, Features, Hook, ObjectConfig,
    by_use::ByUseMap,
    hooks,
    object::Object,
    pins::Pins,
    room::{Part, Room},
    services::Maps,
    sizes::{is_unused, maps_of_flows},
};
use crate::model::plan::IpFamily;

/// The larger maps and programs to load.
#[derive(Debug)]
pub struct Growth {
    config: ObjectConfig,
    pins: Pins,
    maps: Vec<(&'static str, u32)>,
    by_use: Vec<(&'static Definition, u32)>,
    features: Features,
    programs: Vec<String>,
}

/// Larger maps, empty, and programs for them.
pub struct Larger {
    pins: Pins,
    maps: Vec<(&'static str, u32)>,
    object: Object,
}

/// The result of making larger maps.
#[derive(Debug)]
pub enum Grown {
    /// They are in use. These programs could not be replaced: they must be attached again.
    Done(Vec<Hook>),
    /// The maps keep their sizes.
    Refused(anyhow::Error),
}

impl Growth {
    /// Makes the maps and loads the programs; for use where blocking is allowed.
    ///
    /// # Errors
    /// When the kernel has no memory, or refuses.
    pub fn load(self) -> Result<Larger> {
        let Self { config, pins, maps, by_use, features, programs } = self;
        pins.make_room_for_larger()?;
        // No program uses these yet.
        for (map, entries) in by_use {
            let enlarge = || ByUseMap::open(&pins, map)?.begin(entries);
            enlarge().with_context(|| format!("cannot make a larger map `{}`", map.name))?;
        }
        let larger = pins.with_larger(maps.iter().map(|(name, _)| *name));
        let loaded = Object::load_larger(&config, &larger, &maps, features, &programs);
        if loaded.is_err()
            && let Err(error) = pins.remove_larger()
        {
            warn!("{error:#}");
        }
        Ok(Larger { pins: larger, maps, object: loaded? })
    }
}

impl Datapath {
    /// The work needed for so much room.
    pub fn growth(&self, room: &Room) -> Growth {
        let before = self.services.room();
        let mut maps = room.larger_maps(&before);
        let mut by_use = Vec::new();
        for family in IpFamily::ALL {
            let flows = Part::Flows(family);
            if room.of(flows) > before.of(flows) {
                // Unused maps have no entries to copy.
                let unused = maps_of_flows(self.config.max_flows, family).into_iter();
                for (map, entries) in unused.filter(|(map, _)| is_unused(&self.pins, map.name)) {
                    match map.by_use() {
                        Some(_) => by_use.push((map, entries)),
                        None => maps.push((map.name, entries)),
                    }
                }
            }
        }
        let mut programs = self.object.loaded();
        // They are attached with the larger maps at the latest.
        if self.needs_pod_programs() {
            programs.extend(hooks::POD.map(str::to_owned));
        }
        let (config, pins, features) = (self.config.clone(), self.pins.clone(), self.object.features);
        Growth { config, pins, maps, by_use, features, programs }
    }

    /// Moves to larger maps.
    ///
    /// # Errors
    /// When only some of the pins, or none of the socket hooks, could be replaced: nothing may be written any more, and the agent must be
    /// started again.
    pub fn move_to(&mut self, larger: Larger) -> Result<Grown> {
        let started = Instant::now();
        let Larger { pins, maps, mut object } = larger;
        let copied = Maps::open(&pins).and_then(|mut larger| {
            self.services.copy_to(&mut larger)?;
            Ok(larger)
        });
        let larger = match copied.context("cannot copy the entries of the maps") {
            Ok(larger) => larger,
            Err(error) => {
                if let Err(error) = self.pins.remove_larger() {
                    warn!("{error:#}");
                }
                return Ok(Grown::Refused(error));
            }
        };
        pins.replace_by_larger()?;
        let lost = self.hooks.replace_programs(&mut object);
        self.services.move_to(larger);
        self.object = object;
        if self.config.kernel_log.is_some()
            && let Err(error) = self.follow_kernel_log()
        {
            warn!("{error:#}");
        }
        if lost.iter().any(Hook::is_of_sockets) {
            self.attach_sockets_again()?;
        }
        report(&maps, started.elapsed());
        Ok(Grown::Done(lost))
    }
}

fn report(maps: &[(&'static str, u32)], took: Duration) {
    let maps: Vec<String> = maps.iter().map(|(name, entries)| format!("{name} {entries}")).collect();
    info!("maps grew, {took:.0?} without a write: {}", maps.join(", "));
}
