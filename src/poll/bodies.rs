//! The bodies of a commit. They come and go together, so they share a few large allocations.

use bytes::{Bytes, BytesMut};

/// The size of an allocation, unless a body is longer.
const BLOCK: usize = 64 * 1024;

/// Where bodies are written, one after the other.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    block: BytesMut,
    draft: Vec<u8>,
}

impl Bodies {
    /// The body that `write` appends to what it is given.
    pub(super) fn body<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        self.draft.clear();
        write(&mut self.draft)?;
        if self.block.capacity() < self.draft.len() {
            self.block = BytesMut::with_capacity(self.draft.len().max(BLOCK));
        }
        self.block.extend_from_slice(&self.draft);
        Ok(self.block.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn every_body_is_what_was_written_whatever_its_length() {
        let lengths = [0, 1, 700, BLOCK, 3, 2 * BLOCK, BLOCK - 1, 64, 5 * BLOCK, 0];
        let written = |place: usize| vec![place as u8; lengths[place]];
        let mut bodies = Bodies::default();
        let kept: Vec<Bytes> = (0..lengths.len())
            .map(|place| {
                let write = |out: &mut Vec<u8>| {
                    out.extend_from_slice(&written(place));
                    Ok::<_, Infallible>(())
                };
                bodies.body(write).unwrap()
            })
            .collect();
        for (place, body) in kept.iter().enumerate() {
            assert_eq!(*body, written(place));
        }
    }

    #[test]
    fn a_body_that_cannot_be_written_leaves_nothing_behind() {
        let mut bodies = Bodies::default();
        let failed = bodies.body(|out| {
            out.extend_from_slice(b"half");
            Err("no more")
        });
        assert_eq!(failed, Err("no more"));
        let body = bodies.body(|out| {
            out.extend_from_slice(b"whole");
            Ok::<_, Infallible>(())
        });
        assert_eq!(body.unwrap(), "whole");
    }
}
