//! Renders the metrics, and reuses renderings.
//!
//! Encoding and compressing takes milliseconds if there are thousands of series. So a rendering is
//! shared by scrapes. It is used again until something changes, and after a change for ten times
//! as long as it took to make. In both cases it is used for a second at most, because time alone
//! changes some values. So encoding takes no more than a tenth of a core while it takes less than
//! 100 ms, however many clients ask and however often the board changes. While clients that do not
//! read hold many renderings, a rendering is used for some seconds. The outcome of a reload is
//! shown at once.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Metrics, render};

/// The maximum age of a rendering, even if nothing was reported since.
pub(super) const MAX_AGE: Duration = Duration::from_secs(1);

/// The maximum age of a rendering that is shown while another one is made.
const MAX_AGE_MEANWHILE: Duration = Duration::from_secs(5);

/// The bytes of former renderings in use above which the last one is shown for as long as
/// [`MAX_AGE_MEANWHILE`]. Otherwise each client that reads slowly, or not at all, could have a
/// rendering of its own in memory until its answer's time is up.
pub(super) const MAX_IN_USE: usize = 16 << 20;

/// After a change, a rendering is used for this many times the time that it took.
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
    /// Held while a thread encodes.
    encoding: Mutex<()>,
    /// Total length of the texts that are the latest or are being sent, in bytes.
    in_use: Arc<AtomicUsize>,
    /// Number of reloads. A rendering that was begun before the latest reload is not shown any
    /// more.
    epoch: AtomicU64,
}

/// A text that counts as in use until it is dropped.
struct Counted {
    bytes: Vec<u8>,
    in_use: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Cached {
    rendering: Arc<Rendering>,
    version: (u64, u64),
    epoch: u64,
    begun: Instant,
    took: Duration,
}

// === impl Cache ===

impl Cache {
    /// Keeps all renderings that have begun from being shown.
    pub(super) fn outdate(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The last rendering, unless a reload has outdated it.
    fn latest(&self) -> Option<Cached> {
        let latest = self.latest.lock().clone();
        latest.filter(|cached| cached.epoch == self.epoch())
    }
}

// === impl Metrics ===

impl Metrics {
    /// Returns a rendering that is fresh enough to be shown again, at no cost.
    #[must_use]
    pub fn fresh_rendering(&self) -> Option<Arc<Rendering>> {
        let cached = self.0.cache.latest()?;
        let age = cached.begun.elapsed();
        let unchanged = cached.version == self.version() && age <= MAX_AGE;
        let Rendering { text, gzip } = &*cached.rendering;
        let in_use = self.0.cache.in_use.load(Ordering::Relaxed);
        let max_age = if in_use.saturating_sub(text.len() + gzip.len()) > MAX_IN_USE {
            MAX_AGE_MEANWHILE
        } else {
            (cached.took * COST_FACTOR).min(MAX_AGE)
        };
        let too_costly_to_renew = age <= max_age;
        (unchanged || too_costly_to_renew).then_some(cached.rendering)
    }

    /// Returns the last rendering, unless it is too old to be shown even while another one is
    /// made.
    #[must_use]
    pub fn recent_rendering(&self) -> Option<Arc<Rendering>> {
        let cached = self.0.cache.latest()?;
        (cached.begun.elapsed() <= MAX_AGE_MEANWHILE).then_some(cached.rendering)
    }

    /// Returns a fresh rendering, and makes it if there is none. Making one may take some
    /// milliseconds, and as many more if another thread is making one.
    #[must_use]
    pub fn rendering(&self, now: Timestamp) -> Arc<Rendering> {
        let _encoding = self.0.cache.encoding.lock();
        // Another thread may have made one while this call waited.
        if let Some(rendering) = self.fresh_rendering() {
            return rendering;
        }
        let begun = Instant::now();
        let (version, epoch) = (self.version(), self.0.cache.epoch());
        let size_hint = self
            .0
            .cache
            .latest
            .lock()
            .as_ref()
            .map_or(4096, |last| last.rendering.text.len() * 9 / 8);
        let text = render::render(self, now, size_hint);
        let in_use = &self.0.cache.in_use;
        let rendering = Arc::new(Rendering {
            gzip: Counted::share(compress(text.as_bytes()), in_use),
            text: Counted::share(text.into_bytes(), in_use),
        });
        *self.0.cache.latest.lock() = Some(Cached {
            rendering: Arc::clone(&rendering),
            version,
            epoch,
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

// === impl Counted ===

impl Counted {
    /// Returns `bytes` so that they count as in use while anybody holds them.
    fn share(bytes: Vec<u8>, in_use: &Arc<AtomicUsize>) -> Bytes {
        in_use.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Self {
            bytes,
            in_use: Arc::clone(in_use),
        })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.in_use.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

fn compress(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 16), Compression::fast());
    encoder
        .write_all(text)
        .and_then(|()| encoder.finish())
        .expect("writing to a vector does not fail")
}
