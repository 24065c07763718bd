//! A map for a handful of entries, of which there are very many.

use std::{borrow::Borrow, mem};

/// A map in one allocation that is hardly larger than its entries, which are sorted by key.
///
/// Each service has several, mostly of one to ten entries: a node of a `BTreeMap` has room for eleven, and a hash table
/// keeps a part of its room free. Insertion and removal move the entries behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SortedMap<K, V>(Vec<(K, V)>);

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    /// Where a key is, or where it belongs.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.0.binary_search_by(|(known, _)| known.borrow().cmp(key))
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_ok()
    }

    /// Inserts or replaces; the value before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                // Room for a quarter more, and not for twice as much.
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(1 + self.0.len() / 4);
                }
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain_mut(|(key, value)| keep(key, value));
    }
}

impl<K, V> SortedMap<K, V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of keys, as all iterators here.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After any operations, it holds the same as a `BTreeMap`, in hardly more room than that needs.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u32..40), 1..200)) {
            let (mut ours, mut model) = (SortedMap::default(), BTreeMap::new());
            for (n, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 => prop_assert_eq!(ours.remove(&key), model.remove(&key)),
                    1 => prop_assert_eq!(ours.insert(key, n), model.insert(key, n)),
                    _ => {
                        let keep = |k: &u32, v: &mut usize| { *v += 1; k % 7 != key % 7 };
                        ours.retain(keep);
                        model.retain(keep);
                    }
                }
                prop_assert_eq!((ours.get(&key), ours.contains_key(&key)), (model.get(&key), model.contains_key(&key)));
                prop_assert_eq!(ours.get_mut(&key), model.get_mut(&key));
                prop_assert!(ours.iter().eq(model.iter()));
                prop_assert_eq!(ours.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn it_has_little_room_to_spare() {
        let mut map = SortedMap::default();
        for n in 0..50 {
            map.insert(n, ());
            assert!(map.0.capacity() <= 1 + n + n / 4, "{} for {n}", map.0.capacity());
        }
    }
}
