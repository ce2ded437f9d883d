//! Reads when a certificate ends. Only the parts of X.509 that lead there are parsed (RFC 5280,
//! 4.1). Whether a certificate is valid is for the TLS library to decide.

use std::fmt;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

/// A certificate that ends within this time is reported.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The tag `[0]` of the version, which is missing in certificates of the first version.
const VERSION: u8 = 0xa0;

/// The words about a certificate's end, to be put behind its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    left: SignedDuration,
}

// === impl Ending ===

impl Ending {
    /// Describes the end `not_after`; `None` if the end is not near.
    pub(crate) fn of(not_after: Timestamp, now: Timestamp) -> Option<Self> {
        let left = not_after.duration_since(now);
        (left < SOON).then_some(Self { left })
    }

    pub(crate) fn has_expired(self) -> bool {
        self.left.is_negative()
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.has_expired() {
            write!(f, "has expired {} ago", days(self.left.abs()))
        } else {
            write!(f, "ends in {}", days(self.left))
        }
    }
}

/// Writes a time in days, or in hours if it is short.
pub(crate) fn days(time: SignedDuration) -> String {
    match time.as_hours() {
        hours if hours < 48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
}

/// Returns `notAfter` of a certificate in DER; `None` if it cannot be read.
pub(crate) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (signed, _) = sequence(certificate)?;
    let (mut fields, _) = sequence(signed)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.rest;
    }
    // Skips the serial number, the algorithm and the issuer.
    for _ in 0..3 {
        fields = element(fields)?.rest;
    }
    let (validity, _) = sequence(fields)?;
    let end = element(element(validity)?.rest)?;
    let digits = std::str::from_utf8(end.content).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let written = match (end.tag, digits.len()) {
        // UTCTime has two digits of the year. Years below 50 are of this century.
        (UTC_TIME, 12) if digits < "50" => format!("20{digits}"),
        (UTC_TIME, 12) => format!("19{digits}"),
        (GENERALIZED_TIME, 14) => digits.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", written).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

fn sequence(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let element = element(der)?;
    (element.tag == SEQUENCE).then_some((element.content, element.rest))
}

/// Splits off the first element: a tag of one byte, a length, and as many bytes.
fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    let (length, der) = match first {
        0..=0x7f => (usize::from(first), der),
        0x81..=0x84 => {
            let (length, der) = der.split_at_checked(usize::from(first - 0x80))?;
            let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
            (length.iter().fold(0, add), der)
        }
        _ => return None,
    };
    let (content, rest) = der.split_at_checked(length)?;
    Some(Element { tag, content, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 14);
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_ways_to_write_it() {
        for year in [1999, 2026, 2049, 2050, 3021] {
            let expected: Timestamp = format!("{year}-03-14T00:00:00Z").parse().unwrap();
            assert_eq!(not_after(&certificate(year)), Some(expected));
        }
    }

    #[test]
    fn an_end_that_is_near_or_past_is_told() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |hours| {
            let end = now + SignedDuration::from_hours(hours);
            Ending::of(end, now).map(|ending| ending.to_string())
        };
        assert_eq!(told(14 * 24), None);
        assert_eq!(told(14 * 24 - 1).unwrap(), "ends in 13 days");
        assert_eq!(told(47).unwrap(), "ends in 47 h");
        assert_eq!(told(-1).unwrap(), "has expired 1 h ago");
        assert_eq!(told(-72).unwrap(), "has expired 3 days ago");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_whatever_panic(bytes: Vec<u8>) {
            not_after(&bytes);
        }

        #[test]
        fn nor_does_a_broken_certificate(at in 0usize..300, byte: u8, end in 0usize..400) {
            let mut bytes = certificate(2050);
            bytes[at] = byte;
            bytes.truncate(end);
            not_after(&bytes);
        }
    }
}
