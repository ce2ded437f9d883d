//! What a server said, fit to be shown: on one short line, and without the secrets that it was
//! sent and may echo. It knows neither HTTP nor what the words mean.

use std::borrow::Cow;

use crate::secret::{REDACTED, Secret};

/// How many characters are shown.
const MAX_EXCERPT: usize = 160;

/// How much is looked at, in bytes, however much was said: there may be much white space.
const WINDOW: usize = 4 << 10;

/// A shorter secret, such as the organisation `1`, is hidden only where it stands alone: anywhere
/// else it is part of another word, and hiding it would only garble the message.
const MIN_ANYWHERE: usize = 6;

/// Secrets that must not be shown.
#[derive(Debug, Default)]
pub(crate) struct Secrets(Vec<Secret>);

// === impl Secrets ===

impl Secrets {
    /// Values of headers. Of `Bearer …` and the like, what follows the scheme is secret by itself.
    pub(crate) fn of(values: Vec<Secret>) -> Self {
        let mut secrets = values;
        let alone: Vec<_> = secrets
            .iter()
            .flat_map(|secret| secret.expose().split_whitespace().skip(1))
            .map(Secret::new)
            .collect();
        secrets.extend(alone);
        secrets.retain(|secret| !secret.expose().trim().is_empty());
        // One may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        Self(secrets)
    }

    /// The beginning of what was said, without control characters and secrets.
    pub(crate) fn excerpt(&self, said: &[u8]) -> String {
        // The first is the longest.
        let longest = self.0.first().map_or(0, |secret| secret.expose().len());
        let window = &said[..said.len().min(WINDOW + longest)];
        let mut text = String::from_utf8_lossy(window).into_owned();
        for secret in &self.0 {
            text = hide(&text, secret.expose().trim());
        }
        if window.len() < said.len() {
            // What is left of a secret that goes on behind the window is shorter than the secret.
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(longest)));
        }
        let words: Vec<_> = text
            .split(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}')
            .filter(|word| !word.is_empty())
            .collect();
        let line = words.join(" ");
        match line.char_indices().nth(MAX_EXCERPT) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

fn hide(text: &str, secret: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, after) = (&rest[..at], &rest[at + secret.len()..]);
        shown.push_str(before);
        let part_of_a_word =
            shown.ends_with(char::is_alphanumeric) || after.starts_with(char::is_alphanumeric);
        let hidden = secret.len() >= MIN_ANYWHERE || !part_of_a_word;
        shown.push_str(if hidden { REDACTED } else { secret });
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// `text`, cut so that it has at most `max` bytes. What is cut is cut at a character border and
/// followed by a mark that says how many bytes are missing, as long as there is room for one.
pub(crate) fn truncate<'a>(text: impl Into<Cow<'a, str>>, max: usize) -> Cow<'a, str> {
    let text = text.into();
    if text.len() <= max {
        return text;
    }
    let mark = |missing: usize| format!("…[truncated {missing} bytes]");
    // No mark is longer than that of the whole text.
    match max.checked_sub(mark(text.len()).len()) {
        Some(room) => {
            let kept = &text[..text.floor_char_boundary(room)];
            Cow::Owned(format!("{kept}{}", mark(text.len() - kept.len())))
        }
        None => Cow::Owned(text[..text.floor_char_boundary(max)].to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        Secrets::of(values.iter().copied().map(Secret::new).collect())
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_border_and_marked() {
        assert_eq!(truncate("short", 5), "short");
        let cut = truncate("ääääääääääääääääääääääää", 40);
        assert_eq!(cut, "ääääääää…[truncated 32 bytes]");
        assert!(cut.len() <= 40);
        assert_eq!(truncate("äää", 3), "ä");
        assert_eq!(truncate("äää", 0), "");
    }

    #[test]
    fn a_scheme_is_no_secret_and_what_follows_it_is_one_by_itself() {
        let secrets = secrets(&["Bearer abcdefgh", "abcdef"]);
        for (said, shown) in [
            ("no \"Bearer abcdefgh\"", "no \"<secret>\""),
            (
                "token=abcdefgh; Bearer expected",
                "token=<secret>; Bearer expected",
            ),
            ("xabcdefx", "x<secret>x"),
        ] {
            assert_eq!(secrets.excerpt(said.as_bytes()), shown);
        }
    }

    #[test]
    fn a_short_secret_is_hidden_where_it_stands_alone() {
        let shown = secrets(&["12", ""]).excerpt(b"org 12: 4123 of 12, error 12a");
        assert_eq!(shown, "org <secret>: 4123 of <secret>, error 12a");
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        let said = format!("\x00\r\n\x1b[31mno \u{fffd} luck {}", "x".repeat(10_000));
        let shown = secrets(&[]).excerpt(said.as_bytes());
        assert!(shown.starts_with("[31mno luck xxx"), "{shown}");
        assert!(
            shown.ends_with('…') && shown.chars().count() == MAX_EXCERPT + 1,
            "{shown}"
        );
        assert_eq!(secrets(&[]).excerpt(b""), "");
    }

    #[test]
    fn a_secret_at_the_end_of_what_is_looked_at_is_hidden_whole() {
        let secret = "q".repeat(64);
        for padding in WINDOW - 200..WINDOW + 200 {
            let said = format!("{}{secret}", " ".repeat(padding));
            let shown = secrets(&[&secret]).excerpt(said.as_bytes());
            assert!(!shown.contains('q'), "{padding}");
        }
    }

    proptest! {
        #[test]
        fn a_cut_text_fits_and_begins_as_the_whole(text in "\\PC{0,200}", max in 0..200_usize) {
            let cut = truncate(&*text, max);
            prop_assert!(cut.len() <= max);
            let kept = cut.split("…[").next().unwrap();
            prop_assert!(text.starts_with(kept));
        }

        #[test]
        fn a_secret_is_never_shown_not_even_in_part_at_the_end(
            padding in 0..300_usize, repeats in 1..5_usize, secret in "[q-t]{6,80}"
        ) {
            let said = format!("{}{}", "x ".repeat(padding), secret.repeat(repeats));
            let shown = secrets(&[&secret]).excerpt(said.as_bytes());
            prop_assert!(!shown.contains(&secret[..6]), "{}", shown);
        }
    }
}
