//! Which warnings and errors were printed a moment ago and need not be printed again.
//!
//! Two errors are the same if their gist is the same. Details that an answer of a server has only
//! once (ids of requests, times, a whole document) do not make it another error.
//!
//! Pure: the time is an argument. A bounded number of texts is remembered, by their hashes. If
//! more texts repeat at once, the one that was printed longest ago is forgotten, and so printed
//! once more than necessary.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// What was printed lately.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// By the hash of the text, which has 128 bits so that no two texts are taken for one.
    printed: HashMap<u128, Printed>,
}

/// What to do with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Print it; `repeated` says how often it was suppressed since it was last printed.
    Print {
        repeated: u64,
    },
    Suppress,
}

#[derive(Clone, Copy, Debug)]
struct Printed {
    /// When the text was last printed; `None` if it has to be printed when it comes next.
    at: Option<Instant>,
    suppressed: u64,
}

/// A text is printed at most once in this time.
const EVERY: Duration = Duration::from_secs(60);

/// The most texts that are remembered; they take 14 KiB.
const LIMIT: usize = 256;

/// What an error is about, without what differs from one time to the next. A document is cut after
/// its first bracket, and a word with a digit in it becomes `0`. Statuses stay.
pub(super) fn gist(error: &str) -> String {
    let document = [": {", ": [", ": <"];
    let end = document.iter().filter_map(|begin| error.find(begin)).min();
    let told = match end {
        // The bracket with which the document begins is kept.
        Some(end) => &error[..end + 3],
        None => error,
    };
    let is_part_of_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let mut gist = String::with_capacity(told.len());
    for piece in told.split_inclusive(|c| !is_part_of_word(c)) {
        let word = piece.trim_end_matches(|c| !is_part_of_word(c));
        let varies = word.contains(|c: char| c.is_ascii_digit()) && !is_status(word);
        gist.push_str(if varies { "0" } else { word });
        gist.push_str(&piece[word.len()..]);
    }
    gist
}

fn is_status(word: &str) -> bool {
    word.parse()
        .is_ok_and(|number: u16| (100..600).contains(&number))
}

impl Repeats {
    /// Decides whether `text`, which comes up at `now`, is printed.
    pub(super) fn see(&mut self, text: &str, now: Instant) -> Verdict {
        let key = xxh3_128(text.as_bytes());
        if let Some(printed) = self.printed.get_mut(&key) {
            let is_recent = |at| now.saturating_duration_since(at) < EVERY;
            if printed.at.is_some_and(is_recent) {
                printed.suppressed += 1;
                return Verdict::Suppress;
            }
            let repeated = std::mem::take(&mut printed.suppressed);
            printed.at = Some(now);
            return Verdict::Print { repeated };
        }
        if self.printed.len() >= LIMIT {
            let oldest = self.printed.iter().min_by_key(|(_, printed)| printed.at);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.printed.remove(&key);
            }
        }
        let printed = Printed {
            at: Some(now),
            suppressed: 0,
        };
        self.printed.insert(key, printed);
        Verdict::Print { repeated: 0 }
    }

    /// Makes every text be printed when it comes up next, with its count.
    pub(super) fn print_all_again(&mut self) {
        for printed in self.printed.values_mut() {
            printed.at = None;
        }
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
    fn what_is_to_be_printed_again_keeps_its_count() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for verdict in [FIRST, Verdict::Suppress] {
            assert_eq!(repeats.see("a", start), verdict);
        }
        repeats.print_all_again();
        let again = Verdict::Print { repeated: 1 };
        for verdict in [again, Verdict::Suppress] {
            assert_eq!(repeats.see("a", start), verdict);
        }
    }

    #[test]
    fn the_gist_of_an_error_is_the_same_each_time() {
        let same = [
            (
                r#"search answered 500: {"requestId":"7f3a","at":"10:00:01"}"#,
                r#"search answered 500: {"requestId":"91bc","at":"10:00:31"}"#,
            ),
            (
                "search answered 503: upstream timed out, reference #18.2d3c1a17.1730541",
                "search answered 503: upstream timed out, reference #18.9f0e2b44.1730599",
            ),
            (
                "search answered no search result (EOF while parsing a string at line 1 column 8123): {\"a",
                "search answered no search result (EOF while parsing a string at line 1 column 7901): {\"b",
            ),
            (
                "cannot reach api: connection reset, request 123e4567-e89b-12d3-a456-426614174000",
                "cannot reach api: connection reset, request 00000000-e89b-12d3-a456-426614174000",
            ),
        ];
        for (one, other) in same {
            assert_eq!(gist(one), gist(other));
        }
        let different = [
            ("search answered 500: {}", "search answered 503: {}"),
            ("search answered 500: {}", "search answered 500: <html>"),
            ("search answered 500: {}", "token answered 500: {}"),
            ("cannot reach api.a", "cannot reach api.b"),
            ("forbidden (403): a", "forbidden (403): b"),
        ];
        for (one, other) in different {
            assert_ne!(gist(one), gist(other));
        }
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
