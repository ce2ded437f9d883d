//! Which warnings and errors were printed a moment ago and need not be printed again.
//!
//! Pure: it is told the time. It remembers a bounded number of texts, by their hashes; where more
//! repeat at once, the one that was printed longest ago is forgotten, and printed once more than
//! need be.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// What was printed lately.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// By the hash of the text; 128 bits, so that no two texts are taken for one.
    printed: HashMap<u128, Printed>,
}

/// What becomes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is printed; `repeated` counts how often it was suppressed since it last was.
    Print {
        repeated: u64,
    },
    Suppress,
}

#[derive(Clone, Copy, Debug)]
struct Printed {
    at: Instant,
    suppressed: u64,
}

/// A text is printed once in so long.
const EVERY: Duration = Duration::from_secs(60);

/// So many texts are remembered: 14 KiB.
const LIMIT: usize = 256;

impl Repeats {
    /// Says whether `text`, which comes up at `now`, is printed.
    pub(super) fn see(&mut self, text: &str, now: Instant) -> Verdict {
        let key = xxh3_128(text.as_bytes());
        if let Some(printed) = self.printed.get_mut(&key) {
            if now.saturating_duration_since(printed.at) < EVERY {
                printed.suppressed += 1;
                return Verdict::Suppress;
            }
            let repeated = std::mem::take(&mut printed.suppressed);
            printed.at = now;
            return Verdict::Print { repeated };
        }
        if self.printed.len() >= LIMIT {
            let oldest = self.printed.iter().min_by_key(|(_, printed)| printed.at);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.printed.remove(&key);
            }
        }
        let printed = Printed {
            at: now,
            suppressed: 0,
        };
        self.printed.insert(key, printed);
        Verdict::Print { repeated: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Verdict = Verdict::Print { repeated: 0 };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_text_is_printed_once_a_minute_with_a_count() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.see("a", start), FIRST);
        assert_eq!(repeats.see("a", after(start, 1)), Verdict::Suppress);
        assert_eq!(repeats.see("a", after(start, 59)), Verdict::Suppress);
        assert_eq!(repeats.see("b", after(start, 59)), FIRST);
        assert_eq!(
            repeats.see("a", after(start, 60)),
            Verdict::Print { repeated: 2 }
        );
        assert_eq!(repeats.see("a", after(start, 119)), Verdict::Suppress);
        assert_eq!(
            repeats.see("a", after(start, 300)),
            Verdict::Print { repeated: 1 }
        );
        assert_eq!(repeats.see("a", after(start, 400)), FIRST);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for number in 0..=LIMIT as u64 {
            assert_eq!(
                repeats.see(&number.to_string(), start + Duration::from_millis(number)),
                FIRST
            );
        }
        assert_eq!(repeats.printed.len(), LIMIT);
        assert_eq!(repeats.see("1", after(start, 1)), Verdict::Suppress);
        assert_eq!(repeats.see("0", after(start, 1)), FIRST);
    }

    proptest! {
        #[test]
        fn every_text_is_printed_or_counted(steps in prop::collection::vec((0..3_u8, 0..50_u64), 1..200)) {
            let mut now = Instant::now();
            let mut repeats = Repeats::default();
            let (mut seen, mut printed, mut counted) = (0, 0, 0);
            for (text, seconds) in steps {
                now += Duration::from_secs(seconds);
                seen += 1;
                if let Verdict::Print { repeated } = repeats.see(&text.to_string(), now) {
                    printed += 1;
                    counted += repeated;
                }
            }
            let waiting: u64 = repeats.printed.values().map(|printed| printed.suppressed).sum();
            prop_assert_eq!(seen, printed + counted + waiting);
        }
    }
}
