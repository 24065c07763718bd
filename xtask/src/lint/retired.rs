//! The list of retired words: docs/glossary.md has the terms that replaced them.

/// A word that the project does not use any more.
pub(super) struct Retired {
    pub(super) what: What,
    /// The replacement.
    pub(super) instead: &'static str,
    /// Where it has its ordinary meaning.
    pub(super) allowed: &'static [Allowed],
}

/// The pattern to search for.
pub(super) enum What {
    /// Whole segments of names in snake case or camel case, and words of prose: `twin` is found in `twin_key`, `TwinKey` and "its twin",
    /// `let_go` in `LetGo`, but not in "let go".
    Word(&'static str),
    /// Words in a row, in lower case; breaks of lines do not count.
    Phrase(&'static str),
}

/// A place where the word is not meant.
pub(super) enum Allowed {
    /// Paths that begin so.
    In(&'static str),
    /// Text that has the word in it, exactly.
    As(&'static str),
}

const fn word(word: &'static str, instead: &'static str) -> Retired {
    Retired { what: What::Word(word), instead, allowed: &[] }
}

const fn phrase(phrase: &'static str, instead: &'static str) -> Retired {
    Retired { what: What::Phrase(phrase), instead, allowed: &[] }
}

impl Retired {
    const fn but(self, allowed: &'static [Allowed]) -> Self {
        Self { allowed, ..self }
    }
}

/// All of them, by topic.
pub(super) const RETIRED: &[Retired] = &[
    // Packets and flows.
    word("twin", "the opposite entry (forward, reverse)"),
    word("twins", "opposite entries"),
    word("steady", "the fast path").but(&[Allowed::In("tests/")]),
    word("shortcut", "the fast path"),
    word("unusual", "the slow path").but(&[Allowed::As("of an unusual name")]),
    word("known_route", "the FIB cache, a cached route"),
    word("announce_answers", "insert into the reply filter"),
    word("stranger", "a non-service packet or destination"),
    word("strangers", "non-service packets"),
    word("withheld", "NoLocalEndpoints"),
    word("is_sticky", "session affinity"),
    word("let_go", "dequeue, release"),
    word("refusals", "rejects").but(&[Allowed::In("proxy-agent/src/source/kube/"), Allowed::In("docs/")]),
    word("turn_away", "deny"),
    word("turned_away", "denied"),
    word("admit", "allow"),
    word("admits", "allows"),
    word("admitted", "allowed"),
    word("from_pod", "pod_ingress").but(&[Allowed::In("tests/")]),
    word("from_uplink", "uplink_ingress"),
    word("to_client", "pod_egress"),
    phrase("told the kernel the sum", "CHECKSUM_COMPLETE"),
    phrase("left to a device", "CHECKSUM_PARTIAL"),
    phrase("left to the device", "CHECKSUM_PARTIAL"),
    phrase("longest piece", "the longest segment (GSO)"),
    phrase("quick parse", "the fast-path parse"),
    phrase("connections passed on", "forwarded connections"),
    phrase("packets passed on", "forwarded packets"),
    // The agent.
    word("birth", "allocate"),
    word("unborn", "roll back"),
    word("bury", "release"),
    word("buried", "released"),
    word("mend", "repair"),
    word("orphans", "stale entries"),
    word("claimant", "the service port that waits for a frontend"),
    word("give_up", "release, expire"),
    word("reaper", "socket termination"),
    word("sweeper", "flow GC"),
    word("wishes", "configuration (TopologyConfig)"),
    word("surroundings", "ClusterMaps"),
    word("tally", "counts").but(&[Allowed::In("tests/")]),
    word("complaint", "a logged warning"),
    word("complaints", "logged warnings"),
    word("judge_node", "update_eligibility"),
    word("tell_of", "report"),
    word("learn_of", "apply"),
    word("look_back", "scan_at_start"),
    word("look_for_others", "find foreign programs"),
    word("lite", "trimmed objects"),
    word("in_step", "synced"),
    phrase("in step with", "synced with"),
    // Tests and benchmarks.
    word("world", "a fixture; external"),
    word("site", "a case, a fixture").but(&[Allowed::As("AddressScope::Site")]),
    word("floor", "a baseline").but(&[Allowed::As(".floor()")]),
    word("floors", "baselines"),
    phrase("was to be reached", "a target"),
    // Prose.
    word("whoever", "the subject: the kernel, the agent, the client"),
    phrase("no wish", "unset"),
];
