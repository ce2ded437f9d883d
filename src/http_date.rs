//! Dates as HTTP writes them.

use jiff::{Timestamp, fmt::rfc2822};

/// Reads a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}
