//! Programs that use the same maps.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::{
    image::{Image, Linked, Variant},
    load::{load, load_all},
};

/// Links and loads programs of an object for its maps.
pub(super) struct Loader {
    pub(super) variant: Variant,
    pub(super) types: Option<OwnedFd>,
    pub(super) maps: HashMap<String, OwnedFd>,
}

/// Programs by name.
pub(super) type Programs = Vec<(String, OwnedFd)>;

impl Loader {
    /// Loads programs. Beside those that are loaded, the reason of the first that is not.
    pub(super) fn load(&self, names: &[&str]) -> (Programs, Result<()>) {
        let linked = match self.link(names) {
            Ok(linked) => linked,
            Err(error) => return (Programs::new(), Err(error)),
        };
        let mut loaded = load_all(linked, self.types());
        for name in names {
            if loaded.iter().all(|(loaded, _)| loaded != name) {
                match self.load_with_lines(name) {
                    Ok(fd) => loaded.push(((*name).to_owned(), fd)),
                    Err(error) => return (loaded, Err(error)),
                }
            }
        }
        (loaded, Ok(()))
    }

    /// Links programs. The object is read for that, and dropped.
    pub(super) fn link(&self, names: &[&str]) -> Result<Vec<Linked>> {
        let mut image = self.image(self.variant)?;
        names.iter().map(|name| image.link(name)).collect()
    }

    /// Loads a program that the kernel refused, for a log that quotes the source.
    fn load_with_lines(&self, name: &str) -> Result<OwnedFd> {
        let linked = self.image(self.variant.with_lines())?.link(name)?;
        load(&linked, self.types()).with_context(|| format!("the kernel refuses the program `{name}`"))
    }

    /// The object, with its programs ready to be linked.
    fn image(&self, variant: Variant) -> Result<Image> {
        let mut image = Image::read(variant)?;
        image.use_maps(&self.maps)?;
        Ok(image)
    }

    /// The types of the object, if this kernel has them.
    pub(super) fn types(&self) -> Option<BorrowedFd<'_>> {
        self.types.as_ref().map(|types| types.as_fd())
    }
}
