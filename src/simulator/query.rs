//! The grammar of `queryString`, and the other parameters of a search.
//!
//! Pairs `key:value` are joined by `+` and values by `,`. A client that does not encode the `+`
//! sends a space, so a space before a documented key separates pairs as well. In a date, a space
//! stands for the `+` of the offset, but a `+` is accepted. This module only parses; the world
//! decides.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::alert::{Priority, State, Status};
use super::options::{Options, Oversized, UnknownKey};
use super::refusal::Refusal;

/// All documented keys.
const KEYS: &[&str] = &[
    "states",
    "startDate",
    "endDate",
    "alertTimeBase",
    "duration",
    "priority",
    "uniqueId",
    "deviceStatus",
    "resourceType",
    "resourceIds",
    "actions",
    "alertTypes",
    "metrics",
    "clientIds",
    "ticketId",
    "apps",
];

const DEFAULT_PAGE_SIZE: usize = 100;

/// What a search asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchParams {
    /// The number of the page, from 1.
    pub page_no: usize,
    /// Alerts on a page, after the server's maximum was applied.
    pub page_size: usize,
    /// Whether the largest comes first.
    pub descending: bool,
    /// The sort key.
    pub sort: Sort,
    /// Which alerts.
    pub query: Query,
}

/// `sortName`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By time. [`Options::ts`] says by which.
    #[default]
    Ts,
    /// By the order in which the alerts came into being.
    Id,
}

/// A parsed `queryString`. An alert must match one of the values of every key that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub(super) states: Option<Vec<State>>,
    pub(super) statuses: Option<Vec<Status>>,
    pub(super) priorities: Option<Vec<Priority>>,
    /// Seconds since the epoch.
    pub(super) start: Option<i64>,
    /// Seconds since the epoch.
    pub(super) end: Option<i64>,
    /// Seconds before now.
    pub(super) duration: Option<i64>,
    /// Whether dates mean the time of the last update rather than that of creation.
    pub(super) by_update: bool,
    pub(super) managed: Option<bool>,
    pub(crate) unique_ids: Option<Vec<String>>,
    pub(super) resource_types: Option<Vec<String>>,
    pub(super) resource_ids: Option<Vec<String>>,
    pub(super) alert_types: Option<Vec<String>>,
    pub(super) metrics: Option<Vec<String>>,
    pub(super) client_ids: Option<Vec<String>>,
    pub(super) ticket_ids: Option<Vec<String>>,
    pub(super) apps: Option<Vec<String>>,
}

// === impl SearchParams ===

impl SearchParams {
    /// Reads decoded parameters of a URL. If a parameter is repeated, the last one counts.
    pub fn parse(pairs: &[(String, String)], options: &Options) -> Result<Self, Refusal> {
        let last = |name: &str| last_of(pairs, name);
        let number = |name: &str, default: usize| match last(name) {
            None | Some("") => Ok(default),
            Some(text) => text.parse().map_err(|_| Refusal::bad(name, text)),
        };
        let page_no = number("pageNo", 1)?.max(1);
        let page_size = Self::page_size(number("pageSize", DEFAULT_PAGE_SIZE)?, options)?;
        let descending = match last("isDescendingOrder") {
            None | Some("") => true,
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) if text.eq_ignore_ascii_case("false") => false,
            Some(text) => return Err(Refusal::bad("isDescendingOrder", text)),
        };
        let sort = match last("sortName") {
            None | Some("" | "ts") => Sort::Ts,
            Some("id") => Sort::Id,
            Some(text) => return Err(Refusal::bad("sortName", text)),
        };
        let query = Query::parse(last("queryString").unwrap_or_default(), options.unknown_key)?;
        Ok(Self {
            page_no,
            page_size,
            descending,
            sort,
            query,
        })
    }

    pub(super) fn page_size(asked: usize, options: &Options) -> Result<usize, Refusal> {
        match options.oversized {
            _ if asked == 0 => Err(Refusal::InvalidPageSize),
            Oversized::Reject if asked > options.max_page_size => Err(Refusal::InvalidPageSize),
            Oversized::Blank | Oversized::Empty => Ok(asked),
            _ => Ok(asked.min(options.max_page_size.max(1))),
        }
    }
}

pub(super) fn last_of<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = pairs.iter().rev().find(|(key, _)| key == name)?;
    Some(&found.1)
}

// === impl Query ===

impl Query {
    /// Returns the query for open alerts: `actions:OPEN`.
    pub fn open() -> Self {
        Self {
            statuses: Some(vec![Status::New]),
            ..Self::default()
        }
    }

    /// Reads a decoded `queryString`.
    pub fn parse(text: &str, unknown: UnknownKey) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for (key, value) in pairs(text)? {
            query.set(key, &value, unknown)?;
        }
        Ok(query)
    }

    /// Whether the result depends on the time of the request.
    pub(super) const fn is_relative(&self) -> bool {
        self.duration.is_some()
    }

    fn set(&mut self, key: &str, value: &str, unknown: UnknownKey) -> Result<(), Refusal> {
        let words = || {
            let words = value.split(',').map(str::trim).filter(|w| !w.is_empty());
            Some(words.map(str::to_ascii_lowercase).collect::<Vec<_>>())
        };
        // A value that does not exist matches nothing, as far as is known.
        fn known<T>(
            words: Option<Vec<String>>,
            read: impl Fn(&str) -> Option<T>,
        ) -> Option<Vec<T>> {
            words.map(|words| words.iter().filter_map(|word| read(word)).collect())
        }
        match key {
            "states" => self.states = known(words(), |word| word.parse().ok()),
            "actions" => self.statuses = known(words(), status_of_action),
            "priority" => self.priorities = known(words(), |word| word.parse().ok()),
            "startDate" => self.start = Some(date(value).ok_or_else(|| Refusal::bad(key, value))?),
            "endDate" => self.end = Some(date(value).ok_or_else(|| Refusal::bad(key, value))?),
            "duration" => {
                let days: i64 = value
                    .split_ascii_whitespace()
                    .next()
                    .and_then(|word| word.parse().ok())
                    .filter(|days| [1, 7, 30].contains(days))
                    .ok_or_else(|| Refusal::bad(key, value))?;
                self.duration = Some(days * 86_400);
            }
            "alertTimeBase" => {
                self.by_update = match value.trim().to_ascii_lowercase().as_str() {
                    "updated" => true,
                    "created" => false,
                    _ => return Err(Refusal::bad(key, value)),
                }
            }
            "deviceStatus" => {
                self.managed = match value.trim().to_ascii_lowercase().as_str() {
                    "manage" => Some(true),
                    "unmanage" => Some(false),
                    "all" => None,
                    _ => return Err(Refusal::bad(key, value)),
                }
            }
            "uniqueId" => self.unique_ids = words(),
            "resourceType" => self.resource_types = words(),
            "resourceIds" => self.resource_ids = words(),
            "alertTypes" => self.alert_types = words(),
            "metrics" => self.metrics = words(),
            "clientIds" => self.client_ids = words(),
            "ticketId" => self.ticket_ids = words(),
            "apps" => self.apps = words(),
            _ => match unknown {
                UnknownKey::Ignore => {}
                UnknownKey::Reject => return Err(Refusal::UnknownKey(key.to_owned())),
            },
        }
        Ok(())
    }
}

fn status_of_action(word: &str) -> Option<Status> {
    Some(match word {
        "open" => Status::New,
        "acknowledged" => Status::Acknowledged,
        "ticketed" => Status::Ticketed,
        "closed" => Status::Closed,
        "ignore" => Status::Ignored,
        "suppressed" => Status::Suppressed,
        "purged" => Status::Purged,
        "correlated" => Status::Correlated,
        _ => return None,
    })
}

/// Splits a query into its pairs.
fn pairs(text: &str) -> Result<Vec<(&str, String)>, Refusal> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for piece in text.split('+') {
        let mut rest = piece;
        let mut first = true;
        while !rest.trim().is_empty() {
            let end = next_key(rest).unwrap_or(rest.len());
            let (pair, after) = rest.split_at(end);
            rest = after;
            match pair.trim().split_once(':') {
                Some((key, value)) if is_word(key) => pairs.push((key, value.to_owned())),
                // This piece is the offset of the date before it.
                _ if first && is_offset(pair) && pairs.last().is_some_and(|p| is_date_key(p.0)) => {
                    if let Some((_, value)) = pairs.last_mut() {
                        value.push('+');
                        value.push_str(pair.trim());
                    }
                }
                _ => return Err(Refusal::bad("queryString", text)),
            }
            first = false;
        }
    }
    Ok(pairs)
}

/// Returns the place of the first space that a documented key follows.
fn next_key(text: &str) -> Option<usize> {
    let text_start = text.len() - text.trim_start().len();
    text.char_indices()
        .filter(|(at, c)| *c == ' ' && *at > text_start)
        .map(|(at, _)| at)
        .find(|at| {
            text[at + 1..]
                .split_once(':')
                .is_some_and(|(word, _)| KEYS.contains(&word))
        })
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_offset(text: &str) -> bool {
    let text = text.trim();
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    digits == 4 && (text.len() == 4 || text.len() == 5 && text.as_bytes()[2] == b':')
}

fn is_date_key(key: &str) -> bool {
    matches!(key, "startDate" | "endDate")
}

/// Reads `yyyy-MM-ddTHH:mm:ss` and an offset: ` 0000`, `+0000`, `-0500`, `+00:00`, `Z`, or none,
/// which is UTC.
fn date(text: &str) -> Option<i64> {
    let text = text.trim();
    let (civil, offset) = text.split_at_checked(19)?;
    let civil: DateTime = civil.parse().ok()?;
    let (sign, digits) = match offset.chars().next() {
        None | Some('Z') => (1, "0000".to_owned()),
        Some('-') => (-1, offset[1..].replace(':', "")),
        Some(' ' | '+') => (1, offset[1..].trim().replace(':', "")),
        Some(_) => return None,
    };
    if digits.len() != 4 {
        return None;
    }
    let hours: i32 = digits.get(..2)?.parse().ok()?;
    let minutes: i32 = digits.get(2..)?.parse().ok()?;
    let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?;
    let at: Timestamp = offset.to_timestamp(civil).ok()?;
    Some(at.as_second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Query {
        Query::parse(text, UnknownKey::Reject).unwrap()
    }

    fn params(pairs: &[(&str, &str)], options: &Options) -> Result<SearchParams, Refusal> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        SearchParams::parse(&pairs, options)
    }

    const MORNING: i64 = 1_456_305_587;

    #[test]
    fn the_query_of_the_documentation_is_read() {
        let query = parse(
            "states:Critical,Warning+startDate:2016-02-24T09:19:47 0000+priority:P0,P5+actions:OPEN",
        );
        assert_eq!(query.states, Some(vec![State::Critical, State::Warning]));
        assert_eq!(query.start, Some(MORNING));
        assert_eq!(query.priorities, Some(vec![Priority::P0, Priority::P5]));
        assert_eq!(query.statuses, Some(vec![Status::New]));
    }

    #[test]
    fn values_are_read_in_any_case() {
        assert_eq!(parse("actions:open"), Query::open());
        assert_eq!(parse("states:OK").states, Some(vec![State::Ok]));
    }

    #[test]
    fn a_plus_that_was_decoded_to_a_space_still_separates() {
        assert_eq!(
            parse("actions:OPEN states:Ok"),
            parse("actions:OPEN+states:Ok")
        );
        assert_eq!(
            parse("startDate:2016-02-24T09:19:47 0000 actions:OPEN"),
            parse("startDate:2016-02-24T09:19:47 0000+actions:OPEN"),
        );
    }

    #[test]
    fn a_space_within_a_value_stays_there() {
        let query = parse("metrics:Windows Event Log,Disk+apps:AWS CloudWatch");
        assert_eq!(
            query.metrics,
            Some(vec!["windows event log".to_owned(), "disk".to_owned()])
        );
        assert_eq!(query.apps, Some(vec!["aws cloudwatch".to_owned()]));
    }

    #[test]
    fn dates_are_read_with_every_offset() {
        for text in [
            "2016-02-24T09:19:47 0000",
            "2016-02-24T09:19:47+0000",
            "2016-02-24T09:19:47Z",
            "2016-02-24T09:19:47",
            "2016-02-24T10:19:47+01:00",
            "2016-02-24T04:19:47-0500",
            "2016-02-24T14:49:47 0530",
        ] {
            assert_eq!(
                parse(&format!("endDate:{text}+actions:OPEN")).end,
                Some(MORNING),
                "{text}"
            );
        }
    }

    #[test]
    fn a_date_that_is_none_is_refused() {
        for text in ["startDate:yesterday", "startDate:2016-13-24T09:19:47 0000"] {
            assert!(Query::parse(text, UnknownKey::Ignore).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_that_does_not_exist_matches_nothing() {
        assert_eq!(parse("actions:OPNE").statuses, Some(vec![]));
    }

    #[test]
    fn an_unknown_key_is_refused_or_ignored() {
        assert!(Query::parse("foo:bar", UnknownKey::Reject).is_err());
        assert_eq!(
            Query::parse("foo:bar+actions:OPEN", UnknownKey::Ignore).unwrap(),
            Query::open()
        );
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        assert!(Query::parse("OPEN", UnknownKey::Ignore).is_err());
        assert!(Query::parse("actions:OPEN+0000", UnknownKey::Ignore).is_err());
    }

    #[test]
    fn of_a_repeated_parameter_the_last_one_counts() {
        let read = params(&[("pageNo", "1"), ("pageNo", "7")], &Options::default()).unwrap();
        assert_eq!(read.page_no, 7);
    }

    #[test]
    fn an_oversized_page_is_clamped_or_refused() {
        let mut options = Options {
            max_page_size: 200,
            ..Options::default()
        };
        let read = params(&[("pageSize", "500")], &options).unwrap();
        assert_eq!(read.page_size, 200);
        options.oversized = Oversized::Reject;
        let refused = params(&[("pageSize", "500")], &options);
        assert!(matches!(refused, Err(Refusal::InvalidPageSize)));
        options.oversized = Oversized::Blank;
        let read = params(&[("pageSize", "500")], &options).unwrap();
        assert_eq!(read.page_size, 500);
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let read = params(&[], &Options::default()).unwrap();
        assert_eq!((read.page_no, read.page_size), (1, 100));
        assert!(read.descending);
        assert_eq!((read.sort, read.query), (Sort::Ts, Query::default()));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}|[a-zA-Z:+, 0-9TZ-]{0,80}") {
            let _parsed = Query::parse(&text, UnknownKey::Ignore);
        }

        #[test]
        fn no_date_makes_it_panic(text in "startDate:[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}.{0,7}") {
            let _parsed = Query::parse(&text, UnknownKey::Ignore);
        }
    }
}
