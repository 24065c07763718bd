//! Programs attached in this kernel, by this agent and by others, and which of this agent's programs it accepts. For `proxy-agent
//! check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::Result;
use aya::programs::loaded_programs;
use proxy_sys::bpf::{
    link::{CgroupPrograms, link_info, query_cgroup},
    open_pinned,
};

use super::{Datapath, hooks::socket_hooks, pins::Pins};

/// The programs at a hook of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupHook {
    /// Like `connect4`.
    pub(crate) name: &'static str,
    /// Another program can be attached beside those that are there.
    pub(crate) has_room: bool,
    /// The kernel's ids, in the order they run.
    pub(crate) ids: Vec<u32>,
}

impl Datapath {
    /// Loads every program, attached to nothing.
    ///
    /// # Errors
    /// When this binary was built without programs.
    pub(crate) fn try_programs(&mut self) -> Result<Vec<(String, Result<()>)>> {
        let object = &mut self.object;
        let names = object.program_names()?;
        // Refused ones are tried once more below, for the reason.
        let _ = object.load_programs(names.iter().map(String::as_str));
        Ok(names.into_iter().map(|name| (name.clone(), object.program(&name).map(drop))).collect())
    }
}

/// The hooks of a cgroup that this agent uses.
///
/// # Errors
/// The kernel's.
pub(crate) fn cgroup_hooks(cgroup: &Path, has_socket_storage: bool) -> io::Result<Vec<CgroupHook>> {
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let directory = File::open(cgroup)?;
    let read = |(name, attach_type)| {
        let CgroupPrograms { flags, ids } = query_cgroup(directory.as_fd(), attach_type)?;
        Ok(CgroupHook { name, has_room: ids.is_empty() || flags & BPF_F_ALLOW_MULTI != 0, ids })
    };
    socket_hooks(has_socket_storage).map(read).collect()
}

/// The kernel's ids of the programs that an agent attached by links with pins.
pub(crate) fn own_programs(pins: &Pins) -> BTreeSet<u32> {
    let names = pins.link_names().unwrap_or_default();
    let links = names.iter().filter_map(|name| open_pinned(&pins.link(name)).ok());
    links.filter_map(|link| Some(link_info(link.as_fd()).ok()?.program_id)).collect()
}

/// Names of all programs in this kernel, by their ids; 15 bytes of each are kept. One that goes meanwhile is left out.
///
/// # Errors
/// The kernel's error, if it has no name.
pub(crate) fn program_names() -> Result<BTreeMap<u32, String>> {
    let (mut names, mut failed) = (BTreeMap::new(), None);
    for program in loaded_programs() {
        match program {
            Ok(program) => {
                names.insert(program.id(), program.name_as_str().unwrap_or_default().to_owned());
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if names.is_empty() => Err(error.into()),
        _ => Ok(names),
    }
}
