//! Groups of maps that change their layouts together.
//!
//! Two releases share the maps of every group that has the same layout in both. Programs of both releases use
//! the same kernel maps during an upgrade, so flows, session affinity and socket state are kept.

use super::maps;

/// Maps with one version of their layouts. Each group is pinned in a separate directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Names and backends by id: flows, affinity entries and sockets refer to service ports and backends by id.
    Ids,
    /// State that the agent can rebuild from Services and the node's network; also counters and scratch memory.
    Services,
    /// Flows, and other state that the agent cannot rebuild: it comes from past packets.
    Flows,
    /// Translations of sockets, and the sockets that are left alone.
    Sockets,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 4] = [Self::Ids, Self::Services, Self::Flows, Self::Sockets];

    /// The directory of the group, which identifies its layout to other releases. If a key or value or its
    /// meaning changes, raise the last number; for ids, raise the first number of all groups, because all refer
    /// to ids. Once between two releases is enough.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Ids => "maps-ids-2",
            Self::Services => "maps-services-2-2",
            Self::Flows => "maps-flows-2-2",
            Self::Sockets => "maps-sockets-2-2",
        }
    }

    /// The group of a map. Pins beside the programs' maps belong to the services.
    pub fn of(map: &str) -> Self {
        maps::find(map).map_or(Self::Services, |map| map.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_groups_refer_to_the_same_ids() {
        let ids = |group: Group| group.directory().split('-').nth(2);
        assert!(ids(Group::Ids).is_some());
        assert!(Group::ALL.iter().all(|group| ids(*group) == ids(Group::Ids)));
    }

    #[test]
    fn maps_of_both_families_are_of_one_group() {
        for (map, group) in [
            ("flows_v4", Group::Flows),
            ("flows_v6", Group::Flows),
            ("reply_filter", Group::Flows),
            ("udp_peers_v6", Group::Sockets),
            ("service_names", Group::Ids),
            ("backend_sets", Group::Services),
            ("in-step", Group::Services),
        ] {
            assert_eq!(Group::of(map), group, "{map}");
        }
    }
}
