//! The bodies of a commit. They live equally long, so they share a few large allocations.

use bytes::{Bytes, BytesMut};

/// The size of an allocation, unless a body is longer.
const BLOCK: usize = 64 * 1024;

/// A writer of bodies that share allocations.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    block: BytesMut,
    draft: Vec<u8>,
}

impl Bodies {
    /// Returns the body that `write` appends to the buffer.
    pub(super) fn body(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        self.draft.clear();
        write(&mut self.draft);
        if self.block.capacity() < self.draft.len() {
            self.block = BytesMut::with_capacity(self.draft.len().max(BLOCK));
        }
        self.block.extend_from_slice(&self.draft);
        self.block.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_what_was_written_whatever_its_length() {
        let lengths = [0, 1, 700, BLOCK, 3, 2 * BLOCK, BLOCK - 1, 64, 5 * BLOCK, 0];
        let written = |place: usize| vec![place as u8; lengths[place]];
        let mut bodies = Bodies::default();
        let kept: Vec<Bytes> = (0..lengths.len())
            .map(|place| bodies.body(|out| out.extend_from_slice(&written(place))))
            .collect();
        for (place, body) in kept.iter().enumerate() {
            assert_eq!(*body, written(place));
        }
    }
}
