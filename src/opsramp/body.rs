//! The body of an answer as it comes in. It is decompressed, its length is limited, and it takes
//! no more memory than there is room for.

use std::io::{self, Write as _};

use flate2::write::MultiGzDecoder;
use reqwest::header::HeaderMap;
use tokio::task::coop::consume_budget;

use super::room::{Room, Share};
use crate::http_client::is_gzip;

/// The most bytes that the decompressor hands on at a time.
const STEP: usize = 32 * 1024;

/// A body that is not complete yet.
pub(super) struct Body<'a> {
    /// The part that has come so far.
    coding: Coding,
    /// The longest that the body may become, in bytes.
    limit: u64,
    /// The length on the wire that the server stated, in bytes; otherwise 0.
    expected_length: usize,
    /// The bytes that have come on the wire.
    received: u64,
    room: Room,
    /// The account's share of the turns for long bodies.
    share: &'a Share,
}

enum Coding {
    Plain(Vec<u8>),
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
}

/// Why a body cannot be used.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The body is longer than the limit.
    TooLarge,
    /// The body cannot be decompressed.
    Corrupt(io::Error),
}

// === impl Body ===

impl<'a> Body<'a> {
    /// Creates the body that follows these headers. `expected_length` is its length on the wire,
    /// if the headers state it.
    pub(super) fn new(
        headers: &HeaderMap,
        expected_length: Option<u64>,
        limit: u64,
        share: &'a Share,
    ) -> Self {
        let expected_length = expected_length.filter(|length| *length <= limit);
        Self {
            coding: if is_gzip(headers) {
                Coding::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
            } else {
                Coding::Plain(Vec::new())
            },
            limit,
            expected_length: expected_length
                .and_then(|length| length.try_into().ok())
                .unwrap_or(0),
            received: 0,
            room: Room::default(),
            share,
        }
    }

    /// Adds a chunk to the body. Waits if there is no room for it yet.
    pub(super) async fn push(&mut self, mut chunk: &[u8]) -> Result<(), BodyError> {
        self.received += chunk.len() as u64;
        if self.received > self.limit {
            // The wire needs a limit of its own: any number of compressed bytes may decompress to
            // none.
            return Err(BodyError::TooLarge);
        }
        match &mut self.coding {
            Coding::Plain(bytes) => {
                let needed = bytes.len() + chunk.len();
                self.room.grow_to(needed, self.share).await;
                if bytes.capacity() < needed && needed <= self.expected_length {
                    // Reserve the length that the server stated, so that a page does not take up
                    // to twice its size; but no more than there is room for.
                    let reserved = self.expected_length.min(self.room.limit());
                    bytes.reserve_exact(reserved - bytes.len());
                }
                bytes.extend_from_slice(chunk);
            }
            Coding::Gzip(decoder) => {
                while !chunk.is_empty() {
                    let length = decoder.get_ref().len();
                    self.room.grow_to(length + STEP, self.share).await;
                    let taken = decoder.write(chunk).map_err(BodyError::Corrupt)?;
                    chunk = chunk.get(taken..).unwrap_or_default();
                    if decoder.get_ref().len() as u64 > self.limit {
                        return Err(BodyError::TooLarge);
                    }
                    // A chunk may decompress to a thousand times its length, so let other tasks
                    // run meanwhile.
                    consume_budget().await;
                }
            }
        }
        Ok(())
    }

    /// Returns the whole body and the room that it takes. Called when no more chunks come.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Room), BodyError> {
        let bytes = match self.coding {
            Coding::Plain(bytes) => bytes,
            // An empty body has no gzip header.
            Coding::Gzip(_) if self.received == 0 => Vec::new(),
            Coding::Gzip(decoder) => decoder.finish().map_err(BodyError::Corrupt)?,
        };
        if bytes.len() as u64 > self.limit {
            return Err(BodyError::TooLarge);
        }
        Ok((bytes, self.room))
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use reqwest::header::{CONTENT_ENCODING, HeaderValue};

    use super::*;

    const LIMIT: u64 = 1024 * 1024;

    fn compressed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(coding: &'static str) -> HeaderMap {
        let coding = HeaderValue::from_static(coding);
        HeaderMap::from_iter([(CONTENT_ENCODING, coding)])
    }

    /// Reads a body of this coding that comes in pieces of `piece` bytes.
    async fn read(coding: &'static str, body: &[u8], piece: usize) -> Result<Vec<u8>, BodyError> {
        let headers = headers(coding);
        let share = Share::default();
        let mut taken = Body::new(&headers, Some(body.len() as u64), LIMIT, &share);
        for chunk in body.chunks(piece) {
            taken.push(chunk).await?;
        }
        Ok(taken.finish()?.0)
    }

    #[tokio::test]
    async fn a_compressed_body_is_read_however_its_coding_is_written_and_in_all_its_members() {
        let text = b"[1, 2, 3]".repeat(10_000);
        let (first, second) = text.split_at(1000);
        let members = [compressed(first), compressed(&[]), compressed(second)].concat();
        for coding in ["gzip", "GZIP", "x-gzip", " X-GZip "] {
            for piece in [1, 7, 4096, usize::MAX] {
                let read = read(coding, &members, piece).await.unwrap();
                assert!(read == text, "{coding} in pieces of {piece}");
            }
        }
        for coding in ["identity", "br", ""] {
            assert_eq!(read(coding, b"plain", 2).await.unwrap(), b"plain");
        }
        assert_eq!(read("gzip", b"", 1).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_compressed_body_that_is_cut_off_or_damaged_is_not_taken_for_a_whole_one() {
        let whole = compressed(&b"[1, 2, 3]".repeat(10_000));
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x10;
        let trailing = [&whole[..], b"more"].concat();
        let short = &whole[..whole.len() - 1];
        for body in [short, &whole[..5], &damaged, &trailing, b"no gzip at all"] {
            for piece in [1, usize::MAX] {
                let read = read("gzip", body, piece).await;
                assert!(matches!(read, Err(BodyError::Corrupt(_))), "{read:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_may_be_as_long_as_the_limit_and_no_longer() {
        let longest = vec![b' '; LIMIT as usize];
        let longer = vec![b' '; LIMIT as usize + 1];
        let far_too_long = vec![b' '; 20 * LIMIT as usize];
        let compressed_longest = [compressed(&longest), compressed(&[])].concat();
        assert!(read("gzip", &compressed_longest, 100).await.unwrap() == longest);
        assert!(read("", &longest, 10_000).await.unwrap() == longest);
        for (coding, body) in [
            ("gzip", compressed(&longer)),
            ("gzip", compressed(&far_too_long)),
            ("", longer),
        ] {
            let read = read(coding, &body, 10_000).await;
            assert!(matches!(read, Err(BodyError::TooLarge)), "{coding}");
        }
    }

    #[tokio::test]
    async fn nor_is_it_longer_on_the_wire_however_little_is_in_it() {
        let page = compressed(b"[]");
        let mut body = compressed(&[]).repeat(LIMIT as usize / compressed(&[]).len() - 2);
        body.extend(&page);
        assert!(body.len() as u64 <= LIMIT);
        assert_eq!(read("gzip", &body, 10_000).await.unwrap(), b"[]");
        let longer = [body, compressed(&[]).repeat(2), page].concat();
        assert!(longer.len() as u64 > LIMIT);
        let read = read("gzip", &longer, 10_000).await;
        assert!(matches!(read, Err(BodyError::TooLarge)), "{read:?}");
    }

    #[tokio::test]
    async fn memory_is_not_taken_before_there_is_a_turn_for_it() {
        let headers = HeaderMap::new();
        let share = Share::default();
        let mut body = Body::new(&headers, Some(64 << 20), 64 << 20, &share);
        body.push(b"[").await.unwrap();
        let Coding::Plain(bytes) = &body.coding else {
            panic!("it is not compressed");
        };
        assert!(bytes.capacity() <= 1024 * 1024, "{}", bytes.capacity());
    }

    #[tokio::test]
    async fn a_body_takes_the_memory_that_it_was_announced_with_and_no_more() {
        const LENGTH: usize = 9 << 20;
        let share = Share::default();
        for (expected, is_exact) in [
            (Some(LENGTH as u64), true),
            (Some(1 << 40), false),
            (None, false),
        ] {
            let mut body = Body::new(&HeaderMap::new(), expected, 16 << 20, &share);
            for chunk in vec![b' '; LENGTH].chunks(100_000) {
                body.push(chunk).await.unwrap();
            }
            let capacity = body.finish().unwrap().0.capacity();
            assert!(capacity <= 2 * LENGTH, "{expected:?}: {capacity}");
            assert_eq!(capacity == LENGTH, is_exact, "{expected:?}: {capacity}");
        }
    }

    #[tokio::test]
    async fn a_long_body_keeps_its_turns_until_it_is_no_longer_needed() {
        let long = vec![b' '; 2 * LIMIT as usize];
        let share = Share::default();
        for (coding, bytes) in [("", long.clone()), ("gzip", compressed(&long))] {
            let mut body = Body::new(&headers(coding), None, 2 * LIMIT, &share);
            body.push(&bytes).await.unwrap();
            let (_bytes, room) = body.finish().unwrap();
            assert_eq!(room.limit(), 8 << 20, "{coding}");
        }
    }

    #[tokio::test]
    async fn a_body_that_decompresses_to_too_much_is_given_up_before_all_of_it_is_there() {
        let bomb = compressed(&vec![b' '; 20 * LIMIT as usize]);
        let share = Share::default();
        let mut body = Body::new(&headers("gzip"), None, LIMIT, &share);
        let pushed = body.push(&bomb).await;
        assert!(matches!(pushed, Err(BodyError::TooLarge)), "{pushed:?}");
    }
}
