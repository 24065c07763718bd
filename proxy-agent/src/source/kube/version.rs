//! Resource versions: the position of a watch, and their order.

use std::cmp::Ordering;

/// Which version a list may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListFrom {
    /// Any, however old: the API server answers from its cache.
    Any,
    /// This one or a newer one, from the cache as well.
    NotOlderThan(String),
    /// The newest: the API server reads from etcd's quorum.
    Newest,
}

/// Where a watch is.
#[derive(Debug)]
pub(super) struct Position {
    /// Where the watch resumes; none: a list is needed.
    pub(super) version: Option<String>,
    /// The version that the next list may have.
    pub(super) list_from: ListFrom,
    /// The newest version seen.
    newest: Option<String>,
}

impl Default for Position {
    fn default() -> Self {
        Self { version: None, list_from: ListFrom::Any, newest: None }
    }
}

impl Position {
    /// A list of this version is complete. Returns the newer version seen before, if there is one; a list from etcd's
    /// quorum counts all the same, because nothing is newer than that.
    pub(super) fn listed(&mut self, version: &str) -> Option<String> {
        let newer = self.newest.take().filter(|newest| is_older(version, newest));
        if newer.is_none() || self.list_from == ListFrom::Newest {
            self.version = Some(version.to_owned());
            self.newest = self.version.clone();
        } else {
            self.newest.clone_from(&newer);
        }
        newer
    }

    /// The watch reached this version. Returns the newer version seen before, if any.
    pub(super) fn advance(&mut self, version: &str) -> Option<String> {
        if let Some(newer) = self.newer_than(version) {
            return Some(newer.to_owned());
        }
        self.version = Some(version.to_owned());
        self.newest = self.version.clone();
        None
    }

    /// The newest version seen, if it is newer than this one.
    pub(super) fn newer_than(&self, version: &str) -> Option<&str> {
        self.newest.as_deref().filter(|newest| is_older(version, newest))
    }

    /// The history is lost: list, but nothing older than the version seen.
    pub(super) fn relist(&mut self) {
        if let Some(version) = self.version.take() {
            self.list_from = ListFrom::NotOlderThan(version);
        }
    }

    /// The version seen is not available any more: list etcd's present state.
    pub(super) fn relist_newest(&mut self) {
        self.version = None;
        self.list_from = ListFrom::Newest;
    }
}

/// Resource versions of built-in resources are decimal numbers that grow, of any length (KEP-5504; etcd revisions before
/// that). Anything else is not compared.
fn is_older(version: &str, than: &str) -> bool {
    compare(version, than) == Some(Ordering::Less)
}

fn compare(one: &str, other: &str) -> Option<Ordering> {
    let is_number =
        |text: &str| !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    let comparable = is_number(one) && is_number(other);
    comparable.then(|| one.len().cmp(&other.len()).then_with(|| one.cmp(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_where_they_are_numbers() {
        for (one, other, expected) in [
            ("9", "10", Some(Ordering::Less)),
            ("10", "9", Some(Ordering::Greater)),
            ("123", "123", Some(Ordering::Equal)),
            ("99999999999999999999998", "99999999999999999999999", Some(Ordering::Less)),
            ("", "1", None),
            ("0", "1", None),
            ("012", "1", None),
            ("a1", "2", None),
            ("-1", "2", None),
        ] {
            assert_eq!(compare(one, other), expected, "{one} and {other}");
        }
    }

    #[test]
    fn a_list_that_is_older_counts_only_if_etcd_has_nothing_newer() {
        let mut position = Position::default();
        assert_eq!(position.listed("10"), None);
        assert_eq!(position.advance("12"), None);
        assert_eq!(position.advance("12"), None, "a bookmark");
        assert_eq!(position.advance("11").as_deref(), Some("12"));

        position.relist();
        assert_eq!(position.list_from, ListFrom::NotOlderThan("12".into()));
        assert_eq!(position.listed("7").as_deref(), Some("12"));
        assert_eq!(position.version, None);
        position.relist_newest();
        assert_eq!(position.listed("8").as_deref(), Some("12"));
        assert_eq!(position.version.as_deref(), Some("8"));
        assert_eq!(position.advance("9"), None, "that was the truth");
    }
}
