//! Values as the page writes them: escaped text, moments, durations, large numbers.

use std::fmt::{self, Write as _};

use jiff::Timestamp;

/// Text between tags or in a quoted attribute, escaped.
pub(super) struct Text<T>(pub(super) T);

/// A moment relative to another one: `3 min ago`, `in 12 s`.
pub(super) struct When {
    pub(super) at: Timestamp,
    pub(super) now: Timestamp,
}

/// A duration in at most two units.
pub(super) struct Span(pub(super) f64);

/// Escapes the text that is written through it.
struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

/// A number with its digits in groups of three.
pub(super) struct Thousands(pub(super) u64);

/// Returns a time to the second, for people.
pub(super) fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

// === impl Text ===

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

impl fmt::Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                // Control characters are not allowed in HTML, and directional overrides can make
                // a subject pass for something else.
                '\0'..='\x08'
                | '\x0b'..='\x1f'
                | '\x7f'..='\u{9f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => self.0.write_char('\u{fffd}')?,
                other => self.0.write_char(other)?,
            }
        }
        Ok(())
    }
}

// === impl When ===

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at.duration_since(self.now).as_secs_f64();
        let shown = utc(self.at);
        write!(f, "<time datetime=\"{}\" title=\"{shown}\">", self.at)?;
        if seconds.abs() < 1.0 {
            f.write_str("now")?;
        } else if seconds < 0.0 {
            write!(f, "{} ago", Span(-seconds))?;
        } else {
            write!(f, "in {}", Span(seconds))?;
        }
        f.write_str("</time>")
    }
}

// === impl Span ===

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        if seconds < 1.0 {
            return write!(f, "{:.0} ms", seconds * 1000.0);
        }
        if seconds < 9.95 && seconds.fract() >= 0.05 {
            return write!(f, "{seconds:.1} s");
        }
        let whole = seconds as u64;
        let (first, second) = match whole {
            0..60 => return write!(f, "{whole} s"),
            60..3600 => ((whole / 60, "min"), (whole % 60, "s")),
            3600..86400 => ((whole / 3600, "h"), (whole % 3600 / 60, "min")),
            _ => ((whole / 86400, "d"), (whole % 86400 / 3600, "h")),
        };
        write!(f, "{} {}", first.0, first.1)?;
        // The second unit says nothing if the first number is large.
        if second.0 > 0 && first.0 < 10 {
            write!(f, " {} {}", second.0, second.1)?;
        }
        Ok(())
    }
}

// === impl Thousands ===

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_is_shown_in_at_most_two_units() {
        for (seconds, shown) in [
            (0.0, "0 ms"),
            (0.25, "250 ms"),
            (1.0, "1 s"),
            (2.5, "2.5 s"),
            (9.97, "9 s"),
            (30.0, "30 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (600.0, "10 min"),
            (754.0, "12 min"),
            (3_600.0, "1 h"),
            (5_400.0, "1 h 30 min"),
            (90_000.0, "1 d 1 h"),
            (8_640_000.0, "100 d"),
        ] {
            assert_eq!(Span(seconds).to_string(), shown, "{seconds}");
        }
    }

    #[test]
    fn a_moment_is_shown_as_seen_from_now_with_its_date_at_hand() {
        let now: Timestamp = "2026-11-23T21:00:00Z".parse().unwrap();
        let shown = |at| When { at, now }.to_string();
        assert_eq!(
            shown(now - 90.seconds()),
            "<time datetime=\"2026-11-23T20:58:30Z\" title=\"2026-11-23 20:58:30 UTC\">\
             1 min 30 s ago</time>"
        );
        assert!(shown(now + 12.seconds()).contains(">in 12 s<"));
        assert!(shown(now + 900.milliseconds()).contains(">now<"));
    }

    #[test]
    fn digits_stand_in_groups_of_three() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(Thousands(number).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn no_text_can_end_its_tag_or_attribute(text: String) {
            let escaped = Text(&text).to_string();
            let breaks_out = escaped.contains(['<', '>', '"', '\'', '\0', '\u{202e}']);
            prop_assert!(!breaks_out, "{}", escaped);
            let back = escaped
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&");
            // Each replaced character becomes one character; all others come back unchanged.
            prop_assert_eq!(back.chars().count(), text.chars().count());
            for (after, before) in back.chars().zip(text.chars()) {
                let kept = after == before || after == '\u{fffd}';
                prop_assert!(kept, "{:?} became {:?}", before, after);
            }
        }
    }
}
