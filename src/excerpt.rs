//! What a server said, fit to be shown: on one short line, and without the secrets that the server
//! was sent and may echo in any form. This module knows neither HTTP nor what the words mean.

use std::{borrow::Cow, collections::HashSet};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use percent_encoding::percent_decode_str;

use crate::secret::{REDACTED, Secret};

/// Maximum number of characters that are shown.
const MAX_EXCERPT: usize = 160;

/// Number of bytes that are looked at, however long the text is: it may hold much white space.
const WINDOW: usize = 4 << 10;

/// Minimum length of a secret that is hidden anywhere. A shorter one, such as the organisation
/// `1`, is hidden only where it stands alone. Elsewhere it is part of another word, and hiding it
/// would only garble the message.
const MIN_ANYWHERE: usize = 6;

/// Number of bytes of a secret in a row that tell too much of it.
const MIN_LEAKED_BYTES: usize = 12;

/// Number of letters and digits of a secret in a row that tell too much of it. Fewer also occur in
/// other words.
const MIN_LEAKED_LETTERS: usize = 8;

/// Maximum depth of escapes within escapes: the body of a form, in a text of JSON, in a page of
/// HTML.
const MAX_DEPTH: usize = 3;

/// Shown instead of an excerpt that would tell a secret.
const WITHHELD: &str = "(not shown, for it repeats a secret)";

/// Secrets that must not be shown.
#[derive(Debug, Default)]
pub(crate) struct Secrets(Vec<Secret>);

// === impl Secrets ===

impl Secrets {
    /// Takes the values of headers, or other secrets. In `Bearer …` and the like, the part after
    /// the scheme is a secret by itself. In `Basic …`, so are the decoded pair and the password in
    /// it.
    pub(crate) fn of(values: &[Secret]) -> Self {
        let mut secrets = values.to_vec();
        let parts: Vec<_> = secrets.iter().flat_map(secret_parts).collect();
        secrets.extend(parts);
        secrets.retain(|secret| !secret.expose().trim().is_empty());
        // Longer secrets come first, because one secret may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        Self(secrets)
    }

    /// Returns the beginning of what was said, without control characters and secrets.
    pub(crate) fn excerpt(&self, said: &[u8]) -> String {
        self.line(said, MAX_EXCERPT)
    }

    /// The same, with at most `most` characters.
    pub(crate) fn line(&self, said: &[u8], most: usize) -> String {
        // The first is the longest.
        let longest = self.0.first().map_or(0, |secret| secret.expose().len());
        let window = &said[..said.len().min(WINDOW + longest)];
        let mut text = String::from_utf8_lossy(window).into_owned();
        let (long, short): (Vec<_>, Vec<_>) = self
            .0
            .iter()
            .map(|secret| secret.expose().trim())
            .partition(|secret| secret.len() >= MIN_ANYWHERE);
        for secret in &long {
            text = hide(&text, secret);
        }
        // This must come before short secrets are hidden: one of them may be a part of a long
        // secret, which would no longer be recognised.
        if leaks_any_of(&text, &long) {
            return WITHHELD.to_owned();
        }
        for secret in short {
            text = hide(&text, secret);
        }
        if window.len() < said.len() {
            // A secret may begin in the window and end behind it. Its part in the window is
            // shorter than the longest secret, so as much is cut off.
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(longest)));
        }
        let words: Vec<_> = text
            .split(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}')
            .filter(|word| !word.is_empty())
            .collect();
        let line = words.join(" ");
        match line.char_indices().nth(most) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

/// Whether a text in which these secrets were hidden still tells one of them, or much of one:
/// escaped, in another form, or cut.
fn leaks_any_of(text: &str, secrets: &[&str]) -> bool {
    let forms = secrets.iter().flat_map(|secret| encodings(secret));
    let forms: Vec<_> = forms.map(|form| Folded::of(&form)).collect();
    let (mut parts, mut parts_of_letters) = (HashSet::new(), HashSet::new());
    for form in &forms {
        parts.extend(form.whole.as_bytes().windows(MIN_LEAKED_BYTES));
        parts_of_letters.extend(form.letters.as_bytes().windows(MIN_LEAKED_LETTERS));
    }
    // Longer forms are recognised by their parts.
    let short: Vec<_> = forms
        .iter()
        .map(|form| form.whole.as_str())
        .filter(|form| form.len() < MIN_LEAKED_BYTES)
        .collect();
    decodings(text).iter().any(|layer| {
        let Folded { whole, letters } = Folded::of(layer);
        let mut bytes = whole.as_bytes().windows(MIN_LEAKED_BYTES);
        let mut letters = letters.as_bytes().windows(MIN_LEAKED_LETTERS);
        bytes.any(|part| parts.contains(part))
            || letters.any(|part| parts_of_letters.contains(part))
            || short.iter().any(|form| whole.contains(form))
    })
}

/// Returns a secret as it is, in base64 (also within a longer text), and in hexadecimal digits.
fn encodings(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned()];
    for before in 0..3 {
        let bytes = [&[0; 3][..before], secret.as_bytes()].concat();
        // A character of base64 stands for six bits. The first and the last one may hold bits of
        // the neighbours.
        let own = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
        for alphabet in [&BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE_NO_PAD] {
            let form = alphabet.encode(&bytes)[own.clone()].to_owned();
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms.push(secret.bytes().map(|byte| format!("{byte:02x}")).collect());
    forms
}

/// A text as it is compared. Case is ignored, because servers change it, as in host names.
struct Folded {
    /// The text with spaces for plus signs: in the body of a form, a plus is a space.
    whole: String,
    /// Letters and digits alone, so that it does not matter how a text is broken, quoted or
    /// joined.
    letters: String,
}

impl Folded {
    fn of(text: &str) -> Self {
        let folded = text.to_lowercase();
        Self {
            whole: folded.replace('+', " "),
            letters: folded.chars().filter(|c| c.is_alphanumeric()).collect(),
        }
    }
}

/// Returns the parts of a header's value that are secret by themselves.
fn secret_parts(value: &Secret) -> Vec<Secret> {
    let mut words = value.expose().split_whitespace();
    let scheme = words.next().unwrap_or_default();
    let mut parts: Vec<_> = words.clone().map(Secret::new).collect();
    if scheme.eq_ignore_ascii_case("basic")
        && let Some(Ok(decoded)) = words.next().map(|word| BASE64_STANDARD.decode(word))
        && let Ok(pair) = String::from_utf8(decoded)
    {
        let (_, password) = pair.split_once(':').unwrap_or_default();
        parts.extend([Secret::new(password), Secret::new(pair)]);
    }
    parts
}

/// Returns the text, and what it becomes if its escapes are undone in any order.
fn decodings(text: &str) -> Vec<String> {
    let decoders: [fn(&str) -> String; 3] = [from_url, from_json, from_html];
    let mut layers = vec![text.to_owned()];
    let mut seen = 0;
    for _ in 0..MAX_DEPTH {
        let outer = seen..layers.len();
        seen = layers.len();
        for (outer, decode) in outer.flat_map(|outer| decoders.map(|decode| (outer, decode))) {
            let inner = decode(&layers[outer]);
            if !layers.contains(&inner) {
                layers.push(inner);
            }
        }
    }
    layers
}

fn from_url(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn from_json(text: &str) -> String {
    decode(text, '\\', |after| {
        let escaped = after.chars().next()?;
        let behind = &after[escaped.len_utf8()..];
        // `\x` is an escape of other languages.
        let digits = match escaped {
            'u' => 4,
            'x' => 2,
            _ => 0,
        };
        if digits > 0 {
            let code = u32::from_str_radix(behind.get(..digits)?, 16).ok()?;
            // Half of a surrogate pair is no character. Its replacement is no letter.
            let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            return Some((c, &behind[digits..]));
        }
        let is_white = matches!(escaped, 'b' | 'f' | 'n' | 'r' | 't');
        Some((if is_white { ' ' } else { escaped }, behind))
    })
}

fn from_html(text: &str) -> String {
    decode(text, '&', |after| {
        let (name, behind) = after.split_once(';')?;
        let c = match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let digits = name.strip_prefix('#')?;
                let code = match digits.strip_prefix(['x', 'X']) {
                    Some(digits) => u32::from_str_radix(digits, 16),
                    None => digits.parse(),
                };
                char::from_u32(code.ok()?)?
            }
        };
        Some((c, behind))
    })
}

/// Replaces each escape by the character that it stands for. An escape begins with `mark`. Given
/// the text after the mark, `undo` returns the character and the text after the escape.
fn decode(text: &str, mark: char, undo: impl Fn(&str) -> Option<(char, &str)>) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(mark) {
        plain.push_str(before);
        let (c, behind) = undo(after).unwrap_or((mark, after));
        plain.push(c);
        rest = behind;
    }
    plain + rest
}

fn hide(text: &str, secret: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    // Folding ASCII changes neither the length nor the borders of characters.
    let (folded, folded_secret) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let mut rest = text;
    while let Some(at) = folded[text.len() - rest.len()..].find(&folded_secret) {
        let (before, found) = rest.split_at(at);
        let (found, after) = found.split_at(secret.len());
        shown.push_str(before);
        let part_of_a_word =
            shown.ends_with(char::is_alphanumeric) || after.starts_with(char::is_alphanumeric);
        let hidden = secret.len() >= MIN_ANYWHERE || !part_of_a_word;
        shown.push_str(if hidden { REDACTED } else { found });
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// Returns `text`, cut to at most `max` bytes. It is cut at a character border and followed by a
/// mark that says how many bytes are missing, if there is room for the mark.
pub(crate) fn truncate<'a>(text: impl Into<Cow<'a, str>>, max: usize) -> Cow<'a, str> {
    let text = text.into();
    if text.len() <= max {
        return text;
    }
    let mark = |missing: usize| format!("…[truncated {missing} bytes]");
    // No mark is longer than the one for the whole text.
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
        Secrets::of(&values.iter().copied().map(Secret::new).collect::<Vec<_>>())
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
    fn a_secret_is_not_shown_whatever_it_is_escaped_for() {
        let secret = "pW&9\"x\\k<Zq>/7+L~m*=T%Q'uN \u{e4}";
        let json = serde_json::to_string(secret).unwrap();
        let form = "pW%269%22x%5Ck%3CZq%3E%2F7%2BL%7Em*%3DT%25Q%27uN+%C3%A4";
        let html = "pW&amp;9&quot;x\\k&lt;Zq&gt;/7+L~m*=T%Q&#39;uN &#xE4;";
        let ascii: String = secret
            .chars()
            .filter(char::is_ascii)
            .map(|c| format!("\\x{:02x}", u32::from(c)))
            .collect();
        for said in [
            json.as_str(),
            &ascii,
            &json.replace('/', "\\/").replace('\u{e4}', "\\u00e4"),
            form,
            "pW%269%22x%5ck%3cZq%3e%2f7%2bL%7em%2a%3dT%25Q%27uN+%c3%a4",
            &form.replace('+', "%20"),
            &form.replace('%', "%25"),
            &json.replace('&', "\\u0026").replace('<', "\\u003C"),
            html,
            &serde_json::to_string(html).unwrap(),
            &serde_json::to_string(&json).unwrap(),
            // Cut, as another program had read it.
            &form[..30],
        ] {
            let said = format!("400 for client_secret={said}&x=1");
            assert_eq!(
                secrets(&[secret]).excerpt(said.as_bytes()),
                WITHHELD,
                "{said}"
            );
        }
        let other = r#"{"error":"it\u2019s \"pW\" &amp; no more, 100%25","k":"Q'uN"}"#;
        assert_eq!(secrets(&[secret]).excerpt(other.as_bytes()), other);
    }

    #[test]
    fn a_secret_is_not_shown_in_base64_nor_in_hexadecimal_digits() {
        for secret in ["Zq7wRt93kLmX!vB2", "pw~\u{e4}?>\u{ff}\u{fe}", "abc123"] {
            for before in ["", "x", "me:"] {
                let text = format!("{before}{secret}&x=1");
                for said in [
                    BASE64_STANDARD.encode(&text),
                    BASE64_URL_SAFE_NO_PAD.encode(&text),
                    text.bytes().map(|byte| format!("{byte:02X}")).collect(),
                ] {
                    let said = format!("400 for {said}");
                    let shown = secrets(&[secret]).excerpt(said.as_bytes());
                    assert_eq!(shown, WITHHELD, "{said}");
                }
            }
        }
    }

    #[test]
    fn a_secret_is_not_shown_in_another_case_either() {
        let secrets = secrets(&["Bearer Abc\u{c4}defghijk", "Hunter2"]);
        for (said, shown) in [
            ("no HUNTER2, hunter2", "no <secret>, <secret>"),
            ("http://abcdefghijk.example", WITHHELD),
            ("ABC\u{e4}DEFGHIJK", WITHHELD),
            ("\u{c4}rger", "\u{c4}rger"),
        ] {
            assert_eq!(secrets.excerpt(said.as_bytes()), shown);
        }
    }

    #[test]
    fn the_password_of_basic_authentication_is_a_secret_in_clear_as_well() {
        // me:hunter2
        let secrets = secrets(&["Basic bWU6aHVudGVyMg=="]);
        for said in ["Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg==", "me:hunter2"] {
            assert_eq!(secrets.excerpt(said.as_bytes()), REDACTED, "{said}");
        }
        let shown = secrets.excerpt(b"no user me with hunter2; Basic realm=x");
        assert_eq!(shown, "no user me with <secret>; Basic realm=x");
    }

    #[test]
    fn much_of_a_long_secret_is_not_shown_either() {
        let secrets = secrets(&["abcdefghijklmnop", "p~~q~~r~~s~~t~~u", "q"]);
        for (said, shown) in [
            ("token abcdefgh... is unknown", WITHHELD),
            ("token a-b-c-d-e-f-g-h", WITHHELD),
            ("token p~~q~~r~~s~~", WITHHELD),
            ("token ...jklmnop is unknown", "token ...jklmnop is unknown"),
        ] {
            assert_eq!(secrets.excerpt(said.as_bytes()), shown);
        }
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
