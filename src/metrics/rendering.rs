//! A rendering and its reuse.
//!
//! Encoding and compressing costs milliseconds where there are thousands of series. It is done
//! once for what is shown, not once a scrape: a rendering is used again until something changes,
//! for a second at most because time alone changes some values, and in any case for ten times as
//! long as it took, so that encoding never takes more than a tenth of a core, however many ask
//! and however busy the board is.

use std::{
    io::Write as _,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, Crc, write::DeflateEncoder};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Metrics, lock, render};

/// A rendering is not used for longer, even if nothing was reported.
const MAX_AGE: Duration = Duration::from_secs(1);

/// While another one is made, the last one is shown up to this age.
const MAX_AGE_MEANWHILE: Duration = Duration::from_secs(5);

/// How much longer a rendering is used than it took.
const COST_FACTOR: u32 = 10;

/// The exposition at one moment, in both encodings.
#[derive(Clone, Debug)]
pub struct Rendering {
    /// Prometheus' text format 0.0.4.
    pub text: Bytes,
    /// The same, compressed with gzip.
    pub gzip: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    latest: Mutex<Option<Cached>>,
    /// Held by the one who encodes.
    encoding: Mutex<Gzip>,
}

/// Compresses one text after the other with the same working memory: a third of a MiB, which
/// would else be asked for, and left behind in pieces, on every thread that encodes.
#[derive(Debug, Default)]
struct Gzip(Option<DeflateEncoder<Vec<u8>>>);

#[derive(Clone, Debug)]
struct Cached {
    rendering: Arc<Rendering>,
    version: (u64, u64),
    begun: Instant,
    took: Duration,
}

// === impl Metrics ===

impl Metrics {
    /// A rendering that is fresh enough to be shown again, at no cost.
    #[must_use]
    pub fn fresh_rendering(&self) -> Option<Arc<Rendering>> {
        let cached = lock(&self.0.cache.latest).clone()?;
        let age = cached.begun.elapsed();
        let unchanged = cached.version == self.version() && age <= MAX_AGE;
        let dear = age <= (cached.took * COST_FACTOR).min(MAX_AGE);
        (unchanged || dear).then_some(cached.rendering)
    }

    /// The last rendering, unless it is too old to be shown even while another one is made.
    #[must_use]
    pub fn recent_rendering(&self) -> Option<Arc<Rendering>> {
        let cached = lock(&self.0.cache.latest).clone()?;
        (cached.begun.elapsed() <= MAX_AGE_MEANWHILE).then_some(cached.rendering)
    }

    /// The exposition, made where no fresh one is there. That may take some milliseconds, and as
    /// many more where somebody else is at it.
    #[must_use]
    pub fn rendering(&self, now: Timestamp) -> Arc<Rendering> {
        let mut gzip = lock(&self.0.cache.encoding);
        // Somebody else may have made one while this call waited.
        if let Some(rendering) = self.fresh_rendering() {
            return rendering;
        }
        let begun = Instant::now();
        let version = self.version();
        let size_hint = lock(&self.0.cache.latest)
            .as_ref()
            .map_or(4096, |last| last.rendering.text.len() * 9 / 8);
        let text = render::render(self, now, size_hint);
        let rendering = Arc::new(Rendering {
            gzip: gzip.compress(text.as_bytes()),
            text: Bytes::from(text),
        });
        *lock(&self.0.cache.latest) = Some(Cached {
            rendering: Arc::clone(&rendering),
            version,
            begun,
            took: begun.elapsed(),
        });
        rendering
    }

    fn version(&self) -> (u64, u64) {
        let changes = self.0.changes.load(Ordering::Acquire);
        (self.0.board.version(), changes)
    }
}

// === impl Gzip ===

impl Gzip {
    /// RFC 1952: deflated, no flags, no time, compressed fast, by an unknown system.
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

    fn compress(&mut self, text: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(text.len() / 16);
        out.extend_from_slice(&Self::HEADER);
        let encoder = self
            .0
            .get_or_insert_with(|| DeflateEncoder::new(Vec::new(), Compression::fast()));
        let mut out = encoder
            .reset(out)
            .and_then(|_| encoder.write_all(text))
            .and_then(|()| encoder.reset(Vec::new()))
            .expect("writing to a vector does not fail");
        let mut crc = Crc::new();
        crc.update(text);
        out.extend_from_slice(&crc.sum().to_le_bytes());
        out.extend_from_slice(&crc.amount().to_le_bytes());
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn texts_that_are_compressed_one_after_the_other_are_read_back() {
        let texts = ["", "opsramp_up 1\n", &"a line\n".repeat(50_000), "x", ""];
        let mut gzip = Gzip::default();
        for text in texts {
            let compressed = gzip.compress(text.as_bytes());
            let mut decoder = GzDecoder::new(&*compressed);
            let mut read = String::new();
            decoder.read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
            assert!(decoder.into_inner().is_empty(), "nothing follows");
        }
    }
}
