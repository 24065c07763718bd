//! The addresses of one cluster's API servers, and which of them is in use.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Uri;
use tracing::info;

/// Addresses in order of preference. The one that answered last stays in use until it fails.
#[derive(Debug)]
pub struct Addresses(Mutex<InUse>);

#[derive(Debug)]
struct InUse {
    all: Vec<Uri>,
    /// Index of the address of the next request.
    current: usize,
}

impl Addresses {
    /// Begins with the first address.
    pub fn new(all: Vec<Uri>) -> Self {
        Self(Mutex::new(InUse { all, current: 0 }))
    }

    /// The address in use.
    pub fn current(&self) -> String {
        let in_use = self.lock();
        in_use.all.get(in_use.current).map(text).unwrap_or_default()
    }

    /// All addresses, for messages about a failure that does not concern one of them alone.
    pub fn all(&self) -> String {
        self.lock().all.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// The order to try them in: the one in use, those after it, then those before it.
    pub(super) fn in_order(&self) -> Vec<Uri> {
        let in_use = self.lock();
        let (before, from) = in_use.all.split_at(in_use.current.min(in_use.all.len()));
        from.iter().chain(before).cloned().collect()
    }

    /// An address answered: stay with it.
    pub(super) fn answered(&self, address: &Uri) {
        let mut in_use = self.lock();
        let Some(index) = in_use.all.iter().position(|known| known == address) else { return };
        if index != in_use.current {
            let before = in_use.all.get(in_use.current).map(text).unwrap_or_default();
            in_use.current = index;
            drop(in_use);
            info!("using the API server at {}: {before} did not answer", text(address));
        }
    }

    /// An address answers, but does not serve: the next request goes to another one.
    pub(super) fn unavailable(&self, address: &Uri) {
        let mut in_use = self.lock();
        if in_use.all.len() > 1 && in_use.all.get(in_use.current) == Some(address) {
            in_use.current = (in_use.current + 1) % in_use.all.len();
        }
    }

    /// New addresses. The one in use stays in use if it is among them.
    pub(super) fn replace(&self, all: Vec<Uri>) {
        let mut in_use = self.lock();
        if in_use.all == all {
            return;
        }
        let current = in_use.all.get(in_use.current);
        let current = all.iter().position(|address| Some(address) == current).unwrap_or(0);
        *in_use = InUse { all, current };
        drop(in_use);
        info!("the API server's address has changed: {}", self.all());
    }

    fn lock(&self) -> MutexGuard<'_, InUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(address: &Uri) -> String {
    address.to_string().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(addresses: &[&'static str]) -> Vec<Uri> {
        addresses.iter().map(|address| Uri::from_static(address)).collect()
    }

    #[test]
    fn the_address_that_answers_stays_in_use() {
        let [a, b, c] = ["http://a", "http://b", "http://c"].map(Uri::from_static);
        let addresses = Addresses::new(vec![a.clone(), b.clone(), c.clone()]);
        assert_eq!(addresses.in_order(), [a.clone(), b.clone(), c.clone()]);
        addresses.answered(&c);
        assert_eq!(addresses.current(), "http://c");
        assert_eq!(addresses.in_order(), [c.clone(), a.clone(), b.clone()]);
        addresses.unavailable(&b);
        assert_eq!(addresses.current(), "http://c", "another watch has left b already");
        addresses.unavailable(&c);
        assert_eq!(addresses.current(), "http://a");
        assert_eq!(addresses.all(), "http://a, http://b, http://c");
    }

    #[test]
    fn new_addresses_keep_the_one_in_use() {
        let addresses = Addresses::new(uris(&["http://a", "http://b"]));
        addresses.answered(&Uri::from_static("http://b"));
        addresses.replace(uris(&["http://c", "http://b"]));
        assert_eq!(addresses.current(), "http://b");
        addresses.replace(uris(&["http://d"]));
        assert_eq!(addresses.current(), "http://d");
        addresses.unavailable(&Uri::from_static("http://d"));
        assert_eq!(addresses.current(), "http://d", "it is the only one");
    }
}
