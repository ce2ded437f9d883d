//! Dates and waits as HTTP writes them.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};

/// A server that asks for a longer pause is asked again after this one.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Reads a date such as `Sun, 06 Nov 1994 08:49:37 GMT`, or in one of the two old forms that RFC 9110
/// has every recipient read.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let usual = rfc2822::DateTimeParser::new().parse_timestamp(text);
    usual.ok().or_else(|| {
        let old = httpdate::parse_http_date(text).ok()?;
        Timestamp::try_from(old).ok()
    })
}

/// Reads the value of `Retry-After`: seconds, or a date by the server's clock, which may differ from
/// ours. At most [`MAX_PAUSE`]; a time that has passed is no wait.
pub(crate) fn retry_after(text: &str, server_now: Timestamp) -> Option<Duration> {
    let text = text.trim().trim_matches('"').trim();
    // `inf` and `nan` are numbers to the parser.
    let number = Some(text).filter(|text| !text.contains(char::is_alphabetic));
    let wait = match number.and_then(|number| number.parse::<f64>().ok()) {
        Some(seconds) => Duration::try_from_secs_f64(seconds.min(MAX_PAUSE.as_secs_f64())).ok()?,
        None => Duration::try_from(parse(text)?.duration_since(server_now)).unwrap_or_default(),
    };
    Some(wait.min(MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_date_is_read_in_each_of_its_forms() {
        for text in [
            "Sun, 01 Mar 2026 10:00:00 GMT",
            "Sunday, 01-Mar-26 10:00:00 GMT",
            "Sun Mar  1 10:00:00 2026",
        ] {
            assert_eq!(parse(text), Some(now()), "{text}");
        }
    }

    #[test]
    fn a_wait_is_read_in_every_form_and_is_no_longer_than_five_minutes() {
        for (text, seconds) in [
            ("40", 40.0),
            (" \"40\" ", 40.0),
            ("+40", 40.0),
            ("40.5", 40.5),
            ("0", 0.0),
            ("301", 300.0),
            ("86400", 300.0),
            ("18446744073709551615", 300.0),
            ("99999999999999999999999", 300.0),
            ("Sun, 01 Mar 2026 10:00:42 GMT", 42.0),
            ("Sunday, 01-Mar-26 10:00:42 GMT", 42.0),
            ("Sun Mar  1 10:00:42 2026", 42.0),
            ("Sun, 01 Mar 2026 09:00:00 GMT", 0.0),
            ("Mon, 01 Mar 2027 10:00:00 GMT", 300.0),
        ] {
            let wait = retry_after(text, now()).map(|wait| wait.as_secs_f64());
            assert_eq!(wait, Some(seconds), "{text}");
        }
        for nonsense in ["", "soon", "-5", "inf", "nan", "1e3", "."] {
            assert_eq!(retry_after(nonsense, now()), None, "{nonsense}");
        }
    }
}
