//! The maps and programs in the kernel that the object inside this binary describes.
//!
//! * [`image`] reads and links the object.
//! * [`load`] loads its programs, [`loader`] those that are for the same maps.
//! * [`features`] probes this kernel.
//!
//! The object is read whenever programs are loaded, and dropped: reading takes milliseconds, keeping it megabytes.

mod features;
mod image;
mod load;
mod loader;
mod parallel;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, loaded_programs};
use proxy_common::layout::{
    config::Constants,
    maps::{self, DeclaredMap as _, table},
};
use proxy_sys::{bpf, bpf::program::program_info, socket::netns_cookie};
use tracing::info;

pub use self::features::Features;
use self::{
    features::{has_helper, helper},
    image::{Image, Variant},
    loader::{Loader, Programs},
};
use super::{
    denied::explain_load,
    locked_memory,
    maps::capacity,
    object_config::{ObjectConfig, log_level},
    pins::Pins,
    room::Room,
    sizes::{UNUSED, has_flows, map_sizes, will_have_flows},
};
use crate::model::plan::IpFamily;

/// A map of services.
const SERVICES: &str = table::BackendSets::DEFINITION.name;

/// All maps, and programs as they are requested.
pub(super) struct Object {
    loader: Arc<Loader>,
    programs: BTreeMap<String, OwnedFd>,
    /// Programs that are attached by filters.
    classifiers: HashMap<String, SchedClassifier>,
    pub(super) features: Features,
    /// By family: whether the programs serve it.
    serves: [bool; IpFamily::ALL.len()],
}

/// Programs that another thread has loaded.
pub struct Loaded {
    loader: Arc<Loader>,
    programs: Programs,
}

impl Object {
    /// Loads the maps, reusing pinned ones, and probes the kernel's features. New maps of `absent` have no room for its flows.
    pub(super) fn load(config: &ObjectConfig, pins: &Pins, absent: Option<IpFamily>) -> Result<Self> {
        // Pinned maps of services may have Services of both families, and connections: then new maps have room for the flows of both.
        let absent = absent.filter(|_| !pins.map(SERVICES).exists());
        Self::load_maps(config, pins, absent, &[], None)
    }

    /// Once more, with some larger maps, which `pins` have elsewhere, and the programs of these names.
    pub(super) fn load_larger(
        config: &ObjectConfig,
        pins: &Pins,
        larger: &[(&'static str, u32)],
        features: Features,
        programs: &[String],
    ) -> Result<Self> {
        let mut object = Self::load_maps(config, pins, None, larger, Some(features))?;
        object.load_programs(programs.iter().map(String::as_str))?;
        Ok(object)
    }

    fn load_maps(
        config: &ObjectConfig,
        pins: &Pins,
        absent: Option<IpFamily>,
        larger: &[(&'static str, u32)],
        known: Option<Features>,
    ) -> Result<Self> {
        // Before anything is made.
        locked_memory::raise();
        let variant = if config.kernel_log.is_some() { Variant::Logging } else { Variant::Plain };
        let mut image = Image::read(variant)?;
        let types = image.load_types()?;
        let features = match known {
            Some(features) => features,
            None => {
                let probe = image.link("probe")?;
                Features::find(&probe, types.as_ref().map(AsFd::as_fd)).map_err(explain_load)?
            }
        };
        let mut entries: HashMap<&str, u32> =
            map_sizes(config.max_flows, &Room::of_new_maps(pins, absent)).into_iter().collect();
        report_kept_sizes(&entries, pins);
        entries.extend(larger.iter().copied());
        let serves = IpFamily::ALL.map(|family| will_have_flows(pins, &entries, family));
        let [serves_v4, serves_v6] = serves;
        let constants = Constants { serves_v4, serves_v6, ..constants(config, features) }.encode();
        let level = [config.kernel_log.map_or(0u8, log_level)];
        let mut values: HashMap<&str, (&[u8], bool)> =
            constants.iter().map(|(name, value)| (*name, (value.as_bytes(), true))).collect();
        values.insert("AYA_LOG_LEVEL", (&level, config.kernel_log.is_some()));
        image.set_constants(values)?;

        let paths = maps::all().map(|map| (map.name, pins.map(map.name))).collect();
        let maps =
            image.make_maps(&entries, &paths, types.as_ref().map(AsFd::as_fd)).map_err(explain_load)?;
        let (programs, classifiers) = (BTreeMap::new(), HashMap::new());
        let loader = Arc::new(Loader { variant, types, maps });
        Ok(Self { loader, programs, classifiers, features, serves })
    }

    /// Whether the programs serve other families than the pinned maps have room for: another agent replaced maps while these were opened.
    pub(super) fn serves_others(&self, pins: &Pins) -> bool {
        self.serves != IpFamily::ALL.map(|family| has_flows(pins, family))
    }

    /// The kernel's ids of the programs that are loaded.
    pub(super) fn program_ids(&self) -> BTreeSet<u32> {
        self.programs.keys().filter_map(|name| self.program_id(name)).collect()
    }

    /// Names of the programs that are loaded.
    pub(super) fn loaded(&self) -> Vec<String> {
        self.programs.keys().cloned().collect()
    }

    /// Whether a program is loaded.
    pub(super) fn has(&self, name: &str) -> bool {
        self.programs.contains_key(name)
    }

    /// Names of all programs.
    pub(super) fn program_names(&self) -> Result<Vec<String>> {
        Ok(Image::read(self.loader.variant)?.program_names())
    }

    /// The kernel's id of a map.
    pub(super) fn map_id(&self, name: &str) -> Option<u32> {
        bpf::map::map_info(self.loader.maps.get(name)?.as_fd()).ok().map(|info| info.id)
    }

    /// The kernel's id of a program; none if it is not loaded.
    pub(super) fn program_id(&self, name: &str) -> Option<u32> {
        program_info(self.programs.get(name)?.as_fd()).ok().map(|info| info.id)
    }

    /// Loads every program. Returns by name how many instructions the verifier processed.
    pub(super) fn load_all(config: &ObjectConfig, pins: &Pins) -> Result<Vec<(String, Result<u32>)>> {
        let mut object = Self::load(config, pins, None)?;
        let names = object.program_names()?;
        let mut verified = |name: &str| -> Result<u32> {
            let info = program_info(object.program(name)?.as_fd())?;
            if info.verified_instructions != 0 {
                return Ok(info.verified_instructions);
            }
            let linked = object.loader.link(&[name])?.pop().context("no program was linked")?;
            load::count_by_log(&linked, object.loader.types())
        };
        Ok(names.into_iter().map(|name| (name.clone(), verified(&name))).collect())
    }

    /// Loads programs that are not loaded.
    ///
    /// # Errors
    /// When the kernel refuses one; others are loaded.
    pub(super) fn load_programs<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let wanted: Vec<&str> = names.filter(|name| !self.programs.contains_key(*name)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (loaded, result) = self.loader.load(&wanted);
        self.programs.extend(loaded);
        result
    }

    /// Work that loads programs, for another thread.
    pub(super) fn loading(
        &self,
        names: &'static [&'static str],
    ) -> impl FnOnce() -> Result<Loaded> + Send + use<> {
        let loader = Arc::clone(&self.loader);
        move || {
            let (programs, result) = loader.load(names);
            result.map(|()| Loaded { loader, programs })
        }
    }

    /// Takes over programs that another thread has loaded; false if they are for maps that were replaced since.
    pub(super) fn add(&mut self, loaded: Loaded) -> bool {
        let is_current = Arc::ptr_eq(&self.loader, &loaded.loader);
        if is_current {
            for (name, program) in loaded.programs {
                self.programs.entry(name).or_insert(program);
            }
        }
        is_current
    }

    /// The program of that name, loaded now if it was not.
    pub(super) fn program(&mut self, name: &str) -> Result<OwnedFd> {
        self.load_programs(std::iter::once(name))?;
        let program = self.programs.get(name).with_context(|| format!("program `{name}` does not exist"))?;
        Ok(program.try_clone()?)
    }

    /// The same, as aya attaches filters.
    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        self.program(name)?;
        if !self.classifiers.contains_key(name) {
            let id = self.program_id(name).with_context(|| format!("`{name}` has no id"))?;
            let mut programs = loaded_programs().filter_map(Result::ok);
            let info =
                programs.find(|info| info.id() == id).context("cannot find a program that is loaded")?;
            let classifier = SchedClassifier::from_program_info(info, name.to_owned().into())?;
            self.classifiers.insert(name.to_owned(), classifier);
        }
        self.classifiers.get_mut(name).with_context(|| format!("program `{name}` does not exist"))
    }
}

/// The programs' constants.
fn constants(config: &ObjectConfig, features: Features) -> Constants {
    let helpers = [helper::BPF_FUNC_GET_CURRENT_PID_TGID, helper::BPF_FUNC_GET_CURRENT_COMM];
    let node_netns = netns_cookie().unwrap_or_else(|error| {
        info!("the kernel does not identify network namespaces ({error}): assuming the machine's first one");
        0
    });
    Constants {
        node_netns,
        has_set_retval: features.set_retval,
        has_sk_storage: features.sk_storage,
        has_csum_ipv6: features.csum_ipv6,
        has_fib_src: features.fib_src,
        has_current: helpers.into_iter().all(has_helper),
        ..config.constants()
    }
}

/// Logs which pinned maps have another number of entries than these, without maps of services, which grow.
fn report_kept_sizes(entries: &HashMap<&str, u32>, pins: &Pins) {
    let services = Room::initial().maps();
    let is_fixed = |name: &str| !services.iter().any(|(grows, _)| *grows == name);
    for (name, wanted) in entries.iter().filter(|(name, _)| is_fixed(name)) {
        let grows_by_use = maps::find(name).is_some_and(|map| map.by_use().is_some());
        if let Some(pinned) = capacity(pins, name)
            && pinned != *wanted
            && ![pinned, *wanted].contains(&UNUSED)
            && !grows_by_use
        {
            info!(
                "the map `{name}` keeps its {pinned} entries instead of {wanted}: connections live in it (`cleanup` drops it)"
            );
        }
    }
}

#[cfg(test)]
mod tests;
