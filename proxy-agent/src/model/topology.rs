//! Which endpoints are meant for clients of this node, by their hints (KEP-2433, KEP-4444).

use super::objects::Hints;

/// Where hints place this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology<'a> {
    /// No usable hints: every endpoint is for everyone.
    Everyone,
    /// Endpoints that name this node are for us.
    Node(&'a str),
    /// Endpoints that name this zone are for us.
    Zone(&'a str),
}

impl<'a> Topology<'a> {
    /// Reads the hints of all ready endpoints of a Service port. Hints count only if every endpoint has one of their
    /// kind, and some endpoint names this node or zone: with half of them, the named endpoints would be overloaded, and
    /// without any, no endpoint would be left.
    pub(super) fn of<'h>(
        ready: impl Iterator<Item = &'h Hints> + Clone,
        node: &'a str,
        zone: Option<&'a str>,
    ) -> Self {
        let (by_node, by_zone) = (Self::Node(node), zone.map(Self::Zone));
        let is_followed = |topology: &Self| {
            ready.clone().all(|hints| !topology.hinted(hints).is_empty())
                && ready.clone().any(|hints| topology.allows(hints))
        };
        [Some(by_node), by_zone].into_iter().flatten().find(is_followed).unwrap_or(Self::Everyone)
    }

    /// Whether an endpoint with these hints is for clients here.
    pub(super) fn allows(&self, hints: &Hints) -> bool {
        match self {
            Self::Everyone => true,
            Self::Node(here) | Self::Zone(here) => self.hinted(hints).iter().any(|name| **name == **here),
        }
    }

    fn hinted<'h>(&self, hints: &'h Hints) -> &'h [std::sync::Arc<str>] {
        match self {
            Self::Everyone => &[],
            Self::Node(_) => hints.nodes(),
            Self::Zone(_) => hints.zones(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n:` names a node, anything else a zone.
    fn hints(text: &str) -> Hints {
        let of = |nodes: bool| {
            let words = text.split_whitespace().filter(|word| word.starts_with("n:") == nodes);
            words.map(|word| word.trim_start_matches("n:").into()).collect()
        };
        Hints::new(of(false), of(true))
    }

    #[test]
    fn hints_are_followed_if_all_have_them_and_some_name_us() {
        use Topology::{Everyone, Node, Zone};
        let (node, zone) = (Node("here"), Zone("a"));
        let cases: &[(&str, &[&str], Option<&str>, Topology<'_>)] = &[
            ("no endpoints", &[], Some("a"), Everyone),
            ("no hints", &["", ""], Some("a"), Everyone),
            ("all zones, one ours", &["a", "b"], Some("a"), zone),
            ("one endpoint of several zones", &["b a", "b"], Some("a"), zone),
            ("all zones, none ours", &["c", "b"], Some("a"), Everyone),
            ("one without a zone", &["a", ""], Some("a"), Everyone),
            ("our zone is unknown", &["a", "a"], None, Everyone),
            ("all nodes, one ours", &["n:here", "n:there"], None, node),
            ("one endpoint of several nodes", &["n:there n:here"], None, node),
            ("nodes come before zones", &["n:here a", "n:there b"], Some("b"), node),
            ("one without a node: zones", &["n:here a", "b"], Some("a"), zone),
            ("no node is ours: zones", &["n:there a", "n:there b"], Some("a"), zone),
            ("no node is ours, no zones", &["n:there", "n:there"], Some("a"), Everyone),
            ("some have nodes, others zones", &["n:here", "a"], Some("a"), Everyone),
        ];
        for (what, endpoints, zone, expected) in cases {
            let endpoints: Vec<_> = endpoints.iter().map(|text| hints(text)).collect();
            assert_eq!(Topology::of(endpoints.iter(), "here", *zone), *expected, "{what}");
        }
        assert!(node.allows(&hints("n:here b")) && !node.allows(&hints("n:there a here")));
        assert!(zone.allows(&hints("n:there b a")) && !zone.allows(&hints("n:a b")));
        assert!(Everyone.allows(&hints("n:there b")));
    }
}
