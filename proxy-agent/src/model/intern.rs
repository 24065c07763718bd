//! One allocation for equal names.

use std::{collections::HashSet, sync::Arc};

/// Hands out shared strings. Node and port names repeat in every endpoint and slice of a cluster.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: HashSet<Arc<str>>,
    /// Size after the last pruning.
    kept: usize,
}

impl Interner {
    /// Replaces the string by the shared one of equal content.
    pub(super) fn share(&mut self, name: &mut Arc<str>) {
        if let Some(shared) = self.names.get(name) {
            *name = Arc::clone(shared);
        } else {
            self.prune_when_doubled();
            self.names.insert(Arc::clone(name));
        }
    }

    /// Drops names without other references; amortised O(1) per new name.
    fn prune_when_doubled(&mut self) {
        const FEW: usize = 1024;
        if self.names.len() >= FEW.max(2 * self.kept) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.kept = self.names.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("node-1".into(), "node-1".into());
        interner.share(&mut a);
        interner.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));

        for n in 0..100_000 {
            interner.share(&mut format!("gone-{n}").into());
        }
        assert!(interner.names.len() < 3000, "{} names kept", interner.names.len());
        assert!(interner.names.contains("node-1"));
    }
}
