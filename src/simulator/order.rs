//! An ordered set that knows the rank of its members.
//!
//! A search asks for "page 1,371 of 500" over a set of up to a million alerts that changes between
//! two requests. A `BTreeSet` cannot jump to a rank, and a sorted `Vec` moves megabytes for each
//! change. So this is a list of sorted chunks: a change moves a part of one chunk, and a jump adds
//! up lengths.

/// The length at which a chunk is divided. It is small in tests, so that small sets have many
/// chunks.
const MAX_CHUNK_LEN: usize = if cfg!(test) { 16 } else { 1024 };

/// The sort key of a member: seconds since the epoch, then the alert's slot.
pub(super) type Key = (i64, u32);

/// A sorted set of [`Key`]s with access by rank.
#[derive(Debug, Default)]
pub(super) struct Ordered {
    /// Sorted chunks, none of them empty. The keys of a chunk are larger than those of the chunk
    /// before.
    chunks: Vec<Vec<Key>>,
    len: usize,
}

// === impl Ordered ===

impl Ordered {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Adds a key. Returns false if it was there already.
    pub(super) fn insert(&mut self, key: Key) -> bool {
        let Some(at) = self.chunk_of(key) else {
            self.chunks.push(vec![key]);
            self.len = 1;
            return true;
        };
        let last = at + 1 == self.chunks.len();
        let chunk = &mut self.chunks[at];
        let Err(place) = chunk.binary_search(&key) else {
            return false;
        };
        if chunk.len() < MAX_CHUNK_LEN {
            chunk.insert(place, key);
        } else if last && place == MAX_CHUNK_LEN {
            // New alerts come at the end. Dividing the last chunk each time would leave every
            // chunk half empty.
            let mut next = Vec::with_capacity(MAX_CHUNK_LEN);
            next.push(key);
            self.chunks.push(next);
        } else {
            let mut upper = chunk.split_off(MAX_CHUNK_LEN / 2);
            if place <= MAX_CHUNK_LEN / 2 {
                chunk.insert(place, key);
            } else {
                upper.insert(place - MAX_CHUNK_LEN / 2, key);
            }
            self.chunks.insert(at + 1, upper);
        }
        self.len += 1;
        true
    }

    /// Removes a key. Returns false if it was not there.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        let Some(at) = self.chunk_of(key) else {
            return false;
        };
        let Ok(place) = self.chunks[at].binary_search(&key) else {
            return false;
        };
        self.chunks[at].remove(place);
        if self.chunks[at].is_empty() {
            self.chunks.remove(at);
        }
        self.len -= 1;
        true
    }

    /// Returns up to `count` keys from the given rank on, smallest first or largest first.
    pub(super) fn page(&self, rank: usize, count: usize, descending: bool) -> Vec<Key> {
        if rank >= self.len {
            return Vec::new();
        }
        let count = count.min(self.len - rank);
        let first = if descending {
            self.len - rank - count
        } else {
            rank
        };
        let mut skip = first;
        let mut keys = Vec::with_capacity(count);
        for chunk in &self.chunks {
            if skip >= chunk.len() {
                skip -= chunk.len();
                continue;
            }
            let wanted = count - keys.len();
            keys.extend(chunk[skip..].iter().take(wanted).copied());
            skip = 0;
            if keys.len() == count {
                break;
            }
        }
        if descending {
            keys.reverse();
        }
        keys
    }

    /// Returns the index of the chunk that holds the key or would hold it. `None` if there are no
    /// chunks.
    fn chunk_of(&self, key: Key) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| chunk[0] <= key);
        (!self.chunks.is_empty()).then(|| after.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn appending_leaves_no_half_empty_chunks() {
        let mut ordered = Ordered::default();
        for slot in 0..10 * MAX_CHUNK_LEN as u32 {
            ordered.insert((7, slot));
        }
        assert_eq!(ordered.chunks.len(), 10);
    }

    #[test]
    fn a_full_set_reads_the_same_from_both_ends() {
        let mut ordered = Ordered::default();
        for slot in (0..5000_u32).rev() {
            ordered.insert((i64::from(slot % 13), slot));
        }
        let up = ordered.page(0, usize::MAX, false);
        let mut down = ordered.page(0, usize::MAX, true);
        down.reverse();
        assert_eq!(up.len(), 5000);
        assert_eq!(up, down);
        assert!(up.is_sorted());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_btree_set(
            steps in prop::collection::vec((any::<bool>(), 0..40_i64, 0..200_u32), 0..4000),
            rank in 0..300_usize,
            count in 0..300_usize,
        ) {
            let mut model = BTreeSet::new();
            let mut ordered = Ordered::default();
            for (add, ts, slot) in steps {
                // Fewer removals than insertions, so that chunks are divided.
                if add || slot % 3 > 0 {
                    prop_assert_eq!(ordered.insert((ts, slot)), model.insert((ts, slot)));
                } else {
                    prop_assert_eq!(ordered.remove((ts, slot)), model.remove(&(ts, slot)));
                }
            }
            prop_assert_eq!(ordered.len(), model.len());
            let up: Vec<Key> = model.iter().skip(rank).take(count).copied().collect();
            prop_assert_eq!(ordered.page(rank, count, false), up);
            let down: Vec<Key> = model.iter().rev().skip(rank).take(count).copied().collect();
            prop_assert_eq!(ordered.page(rank, count, true), down);
        }
    }
}
