//! Durations and sizes as people write them.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::problem::shown_value;

/// A duration in the syntax of humantime: `30s`, `5m`, `1h 30m`. Months and years are refused,
/// because `M` is usually meant as minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(
    inline,
    with = "String",
    description = "",
    extend("pattern" = DURATION, "examples" = ["30s", "1h 30m"])
)]
pub struct HumanDuration(pub Duration);

/// A size in bytes: `64MiB` (powers of 1024), `64MB` (of 1000) or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(
    inline,
    with = "String",
    description = "",
    extend(
        "type" = ["string", "integer"],
        "minimum" = 0,
        "pattern" = "^[0-9]+ *([KkMmGg][Ii]?[Bb]|[Bb])?$",
        "examples" = ["64MiB", 4096],
    )
)]
pub struct ByteSize(pub u64);

/// A duration or a size that cannot be read; the message says how to write it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct UnitError(String);

/// The longest duration that is accepted. Longer ones are mistakes, and would overflow clocks.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const MONTHS_AND_YEARS: [&str; 8] = ["M", "month", "months", "y", "yr", "yrs", "year", "years"];

/// The pattern of a duration, for editors: the units are those of humantime, without
/// [`MONTHS_AND_YEARS`].
const DURATION: &str = "^ *([0-9]+(\\.[0-9]+)? *(n(anos|sec|s)|[uµ]s|usec|m(illis|sec|s)|s(ec(ond)?s?)?|\
    m(in(ute)?s?)?|h((ou)?rs?)?|d(ays?)?|w(eeks?|ks?)?) *)+$|^0$";

const A_DAY: u64 = 24 * 60 * 60;

const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

// === impl HumanDuration ===

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let shown = shown_value(text);
        let wrong = |why: &str| Err(UnitError(format!("\"{shown}\" {why}")));
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if is_number && text != "0" {
            return wrong(&format!("has no unit; write \"{shown}s\""));
        }
        let Ok(duration) = humantime::parse_duration(text) else {
            return wrong("is not a duration; write one like 30s, 5m or 1h 30m");
        };
        let mut units = text.split(|c: char| !c.is_alphabetic());
        if units.any(|unit| MONTHS_AND_YEARS.contains(&unit)) {
            return wrong(
                "is in months or years; write minutes as 5m, and long times in days, as 30d",
            );
        }
        if duration > LONGEST {
            return wrong("is longer than a year");
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0.as_secs() / A_DAY;
        let rest = self.0 - Duration::from_secs(days * A_DAY);
        match (days, rest) {
            (0, rest) => humantime::format_duration(rest).fmt(f),
            (days, Duration::ZERO) => write!(f, "{days}d"),
            (days, rest) => write!(f, "{days}d {}", humantime::format_duration(rest)),
        }
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl ByteSize ===

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            Some(1)
        } else {
            UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, factor)| *factor)
        };
        let wrong = |why| UnitError(format!("\"{}\" {why}", shown_value(text)));
        match (number.parse::<u64>(), factor) {
            (Ok(number), Some(factor)) => number
                .checked_mul(factor)
                .map(Self)
                .ok_or_else(|| wrong("is too large")),
            _ => Err(wrong(
                "is not a size; write one like 64MiB, 64KB or a number of bytes",
            )),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, factor)| *factor > 1 && self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(("", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn duration_error(text: &str) -> String {
        text.parse::<HumanDuration>().unwrap_err().to_string()
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [("30s", 30), ("1h 30m", 5400), ("1day", 86400), ("0", 0)] {
            assert_eq!(
                text.parse(),
                Ok(HumanDuration(Duration::from_secs(seconds))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wrong_duration_is_answered_with_how_to_write_it() {
        assert_eq!(duration_error("5"), "\"5\" has no unit; write \"5s\"");
        assert_eq!(
            duration_error("soon"),
            "\"soon\" is not a duration; write one like 30s, 5m or 1h 30m"
        );
        assert_eq!(
            duration_error("99999days"),
            "\"99999days\" is longer than a year"
        );
        for text in ["5M", "1h 5M", "1.5 months", "1y", "2h1yr"] {
            let error = duration_error(text);
            assert!(
                error.contains("is in months or years; write minutes as 5m"),
                "{error}"
            );
        }
        assert!(duration_error("").contains("is not a duration"));
        assert!(duration_error("-5s").contains("is not a duration"));
    }

    #[test]
    fn sizes_know_both_kinds_of_thousands() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("64KB", 64_000),
            ("64 kib", 65_536),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_wrong_size_is_answered_with_how_to_write_it() {
        for text in ["64Q", "MiB", "", "-1", "1.5MiB", "64M"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.ends_with("a number of bytes"), "{error}");
        }
        let error = "99999999999GiB".parse::<ByteSize>().unwrap_err();
        assert_eq!(error.to_string(), "\"99999999999GiB\" is too large");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again_as_the_same(bytes: u64, millis in 0..31_536_000_000_u64) {
            let size = ByteSize(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let duration = HumanDuration(Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn any_text_is_refused_or_means_what_it_is_shown_as(
            text in "[0-9]{1,4}(\\.[0-9]{1,3})? ?(ns|us|ms|s|min|m|h|d|w)( [0-9]{1,3}(ns|ms|s|m|h))?\
                |[0-9]{1,6} ?(B|KB|kib|MiB|GB)?\
                |\\PC*"
        ) {
            if let Ok(size) = text.parse::<ByteSize>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
            if let Ok(duration) = text.parse::<HumanDuration>() {
                prop_assert_eq!(duration.to_string().parse(), Ok(duration));
            }
        }
    }
}
