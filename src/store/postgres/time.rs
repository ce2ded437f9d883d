//! Points in time as the server stores them: whole microseconds.

use bytes::{BufMut as _, BytesMut};
use jiff::Timestamp;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// The server counts from the beginning of the year 2000.
const EPOCH: i64 = 946_684_800_000_000;

/// The first moment that every server can store: the beginning of the year 1. No alert is older.
const FIRST: i64 = -62_135_596_800_000_000;

/// A point in time, in a `timestamptz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Timestamp);

// === impl Time ===

type Error = Box<dyn std::error::Error + Send + Sync>;

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Error> {
        out.put_i64(self.0.as_microsecond().max(FIRST) - EPOCH);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Error> {
        let stored = i64::from_be_bytes(raw.try_into()?);
        let micros = stored.saturating_add(EPOCH);
        // Only another program can have written infinity. It is read as the first or last point in
        // time.
        let far = if stored < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        };
        Ok(Self(Timestamp::from_microsecond(micros).unwrap_or(far)))
    }

    accepts!(TIMESTAMPTZ);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_in_microseconds() {
        for (told, expected) in [
            ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z"),
            ("1901-12-13T20:45:52.000001Z", "1901-12-13T20:45:52.000001Z"),
            (
                "2026-01-02T03:04:05.123456789Z",
                "2026-01-02T03:04:05.123456Z",
            ),
            ("-004800-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            let mut stored = BytesMut::new();
            let time = Time(told.parse().unwrap());
            time.to_sql(&Type::TIMESTAMPTZ, &mut stored).unwrap();
            let found = Time::from_sql(&Type::TIMESTAMPTZ, &stored).unwrap();
            assert_eq!(found.0.to_string(), expected);
        }
        let infinity = i64::MAX.to_be_bytes();
        let found = Time::from_sql(&Type::TIMESTAMPTZ, &infinity).unwrap();
        assert_eq!(found.0, Timestamp::MAX);
    }
}
