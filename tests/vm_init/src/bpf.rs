//! A kernel's loaded programs.

use std::{collections::BTreeSet, io, os::fd::AsFd as _};

use anyhow::{Context, Result};
use proxy_sys::bpf::program;

/// The names of all loaded programs, as the kernel cuts them.
pub(crate) fn loaded_programs() -> Result<BTreeSet<String>> {
    let names = || -> io::Result<BTreeSet<String>> {
        let (mut names, mut id) = (BTreeSet::new(), 0);
        while let Some(next) = program::next_id(id)? {
            id = next;
            names.insert(program::name(program::by_id(id)?.as_fd())?);
        }
        Ok(names)
    };
    names().context("cannot list the programs of this kernel")
}
