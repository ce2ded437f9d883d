//! One line of diagnostics: its keys, their order, and how values are quoted.
//!
//! Pure text. Whatever a value holds (line breaks, escape sequences of terminals, marks that
//! reverse the direction of writing), the result is one line that a machine can read back.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use tracing::Level;

use super::{Format, repeats::gist};
use crate::plain::is_unsafe;

/// An event on its way to a line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) level: Level,
    message: Value,
    fields: Vec<(&'static str, Value)>,
    target: String,
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Text, quoted where it needs to be.
    Text(String),
    /// A number or a boolean.
    Bare(String),
}

/// Keys that the line itself uses, so that no field may have them.
const RESERVED: [&str; 5] = ["ts", "level", "msg", "repeated", "target"];

/// The longest value, in bytes. Longer values are cut, because container runtimes split lines at 8
/// to 16 KiB.
const LONGEST_VALUE: usize = 4096;

// === impl Line ===

impl Line {
    pub(super) fn new(level: Level, message: Value, target: &str) -> Self {
        Self {
            level,
            message,
            fields: Vec::new(),
            target: target.to_owned(),
        }
    }

    /// Adds fields whose keys are still free.
    pub(super) fn extend(&mut self, fields: impl IntoIterator<Item = (&'static str, Value)>) {
        for (key, value) in fields {
            let is_taken = self.fields.iter().any(|(taken, _)| *taken == key);
            if !is_taken && !RESERVED.contains(&key) {
                self.fields.push((key, value));
            }
        }
    }

    /// The text by which a repeat is recognised: level, message and fields. Of an error, only the
    /// gist counts, which does not change from one time to the next.
    pub(super) fn identity(&self) -> String {
        let mut identity = String::new();
        let mut add = |text: &str| {
            identity.push_str(text);
            identity.push('\0');
        };
        add(self.level.as_str());
        add(self.message.as_str());
        for (key, value) in &self.fields {
            add(key);
            match value {
                Value::Text(text) if *key == "error" => add(&gist(text)),
                value => add(value.as_str()),
            }
        }
        identity
    }

    /// The whole line with its line break.
    pub(super) fn render(&self, format: Format, at: Timestamp, repeated: u64) -> String {
        let level = match self.level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            // There is no use for more detail than `debug` has.
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut out = String::with_capacity(160);
        if format == Format::Json {
            out.push('{');
        }
        format.pair(&mut out, "ts", &Value::Text(format!("{at:.3}")));
        format.pair(&mut out, "level", &Value::Text(level.to_owned()));
        format.pair(&mut out, "msg", &self.message);
        for (key, value) in &self.fields {
            format.pair(&mut out, key, value);
        }
        if repeated > 0 {
            format.pair(&mut out, "repeated", &Value::Bare(repeated.to_string()));
        }
        format.pair(&mut out, "target", &Value::Text(self.target.clone()));
        if format == Format::Json {
            out.push('}');
        }
        out.push('\n');
        out
    }
}

// === impl Format ===

impl Format {
    fn pair(self, out: &mut String, key: &str, value: &Value) {
        if !out.is_empty() && out != "{" {
            out.push(match self {
                Self::Logfmt => ' ',
                Self::Json => ',',
            });
        }
        match (self, value) {
            (Self::Json, Value::Text(text)) => {
                quote(out, key);
                out.push(':');
                quote(out, text);
            }
            (Self::Json, Value::Bare(text)) => {
                quote(out, key);
                out.push(':');
                out.push_str(text);
            }
            (Self::Logfmt, Value::Text(text)) if needs_quotes(text) => {
                out.push_str(key);
                out.push('=');
                quote(out, text);
            }
            (Self::Logfmt, Value::Text(text) | Value::Bare(text)) => {
                out.push_str(key);
                out.push('=');
                out.push_str(text);
            }
        }
    }
}

// === impl Value ===

impl Value {
    /// Text as it is displayed, cut where it is too long.
    pub(super) fn text(value: impl fmt::Display) -> Self {
        let mut cut = Cut(String::new());
        // Writing fails if the text is cut, or if a foreign `Display` gives up. What was written
        // is kept.
        let _complete = write!(cut, "{value}");
        Self::Text(cut.0)
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Bare(text) => text,
        }
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Self::Bare(value.to_string())
        } else {
            // JSON has no infinity and no NaN.
            Self::Text(value.to_string())
        }
    }
}

/// Collects text until it is too long.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST_VALUE.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty()
        || text
            .chars()
            .any(|c| c.is_whitespace() || matches!(c, '"' | '=' | '\\') || is_unsafe(c))
}

/// Appends a text in double quotes, with escapes that JSON and logfmt share.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(message: &str, key: &'static str, value: &str, format: Format) -> String {
        let mut line = Line::new(Level::WARN, Value::text(message), "opsramp_exporter");
        line.extend([(key, Value::text(value))]);
        line.render(format, Timestamp::UNIX_EPOCH, 7)
    }

    #[test]
    fn logfmt_quotes_only_what_needs_it() {
        assert_eq!(
            line("poll failed", "url", "https://a/b?c", Format::Logfmt),
            "ts=1970-01-01T00:00:00.000Z level=warn msg=\"poll failed\" url=https://a/b?c \
             repeated=7 target=opsramp_exporter\n"
        );
        assert_eq!(
            line("{", "k", "a=b", Format::Logfmt),
            "ts=1970-01-01T00:00:00.000Z level=warn msg={ k=\"a=b\" \
             repeated=7 target=opsramp_exporter\n"
        );
    }

    #[test]
    fn what_steers_a_terminal_or_begins_a_line_is_escaped() {
        let text = line(
            "\u{1b}[2J\u{85}\u{2028}\u{202e}",
            "k",
            "\r\n",
            Format::Logfmt,
        );
        assert!(
            text.contains("msg=\"\\u001b[2J\\u0085\\u2028\\u202e\" k=\"\\r\\n\""),
            "{text}"
        );
    }

    #[test]
    fn a_value_that_is_too_long_is_cut_at_a_character() {
        let Value::Text(text) = Value::text(format_args!("a{}", "ä".repeat(LONGEST_VALUE))) else {
            panic!("not text");
        };
        assert!(text.ends_with("ä…"), "{}", text.len());
        assert!(text.len() <= LONGEST_VALUE + '…'.len_utf8());
    }

    proptest! {
        #[test]
        fn any_text_makes_one_line_that_json_reads_back(message: String, value: String) {
            let text = line(&message, "key", &value, Format::Json);
            prop_assert_eq!(text.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json["msg"].as_str(), Some(message.as_str()));
            prop_assert_eq!(json["key"].as_str(), Some(value.as_str()));
        }

        #[test]
        fn any_text_makes_one_line_of_logfmt(message: String, value: String) {
            let text = line(&message, "key", &value, Format::Logfmt);
            prop_assert_eq!(text.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
            prop_assert!(text.ends_with(" repeated=7 target=opsramp_exporter\n"));
        }
    }
}
