//! The subject of a watcher.

use crate::{
    model::objects::{Change, Kind, ObjectName},
    source::convert::Converted,
};

/// The objects that a watcher watches, and how to convert them.
pub(super) struct Subject<K> {
    pub(super) objects: Objects,
    pub(super) convert: fn(&K) -> Converted,
    pub(super) gone: fn(ObjectName) -> Change,
    pub(super) selectors: Selectors,
}

/// Which objects, and how much depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objects {
    /// All of a kind, whose lists are announced.
    Listed(Kind),
    /// The same, but not every server has them: the agent does not wait for them, and their problems are not the source's.
    Optional(Kind),
    /// One object, selected by its name, which is gone when a list does not have it.
    ThisNode,
}

impl Objects {
    /// The kind whose lists are announced.
    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Listed(kind) | Self::Optional(kind) => Some(kind),
            Self::ThisNode => None,
        }
    }
}

/// Objects that the server is asked to leave out. Conversion leaves them out too, so a server that cannot is not a problem.
pub(super) struct Selectors {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}
