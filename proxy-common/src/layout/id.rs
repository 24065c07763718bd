//! Ids of services and backends as they are stored in flows and sockets.

/// Index (24 bits) and generation (8 bits, never 0) of a service port or a backend.
///
/// Flows outlive the services and backends that they refer to. A reused index has another generation, so that a
/// stored id never refers to a later owner of the index.
///
/// ```
/// use proxy_common::layout::id::Id;
///
/// let stored = Id::new(5, 255);
/// let reused = stored.next();
/// assert_eq!(reused.index(), stored.index());
/// assert_ne!(reused, stored);
/// // 0 is kept for `Id::NONE`.
/// assert_eq!(reused.generation(), 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Id(pub u32);

impl Id {
    /// Refers to nothing.
    pub const NONE: Self = Self(0);

    /// Number of indices.
    pub const INDICES: u32 = 1 << 24;

    /// An id from its parts.
    #[inline(always)]
    pub const fn new(index: u32, generation: u8) -> Self {
        Self((generation as u32) << 24 | (index & (Self::INDICES - 1)))
    }

    /// Index of its entry in an array.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0 & (Self::INDICES - 1)
    }

    /// Generation: the owner of the index that it refers to; 0 for [`Id::NONE`] only.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The next owner of the same index.
    pub const fn next(self) -> Self {
        let generation = self.generation().wrapping_add(1);
        Self::new(self.index(), if generation == 0 { 1 } else { generation })
    }
}

super::plain!(Id);

#[cfg(test)]
mod tests {
    use super::Id;

    #[test]
    fn parts_and_generations() {
        let id = Id::new(0xabcdef, 255);
        assert_eq!((id.index(), id.generation()), (0xabcdef, 255));
        assert_eq!(id.next(), Id::new(0xabcdef, 1), "generation 0 is kept for `none`");
        assert_eq!(Id::NONE.generation(), 0);
    }
}
