//! Answers: a page of a search, one alert, a page of clients.
//!
//! An answer owns its text. Pages and alerts that are read from it borrow the text.

use std::{borrow::Cow, fmt, sync::Arc};

use jiff::SignedDuration;
use memchr::memmem;
use serde::de::{Deserialize, DeserializeSeed as _, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    alert::{self, Alert, Key, Object, Reader, Text},
    client::is_path_segment,
    error::Error,
    room::Room,
};
use crate::{excerpt::Secrets, secret::Secret};

/// The body of a successful answer.
#[derive(Debug)]
pub struct Answer {
    endpoint: &'static str,
    text: String,
    /// The secrets that the server has been sent. No message may show them.
    sent_secrets: Arc<[Secret]>,
    clock_ahead: Option<SignedDuration>,
    _room: Room,
}

/// A page of a search.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    /// The alerts that could be read, in the server's order.
    pub alerts: Vec<Alert<'a>>,
    /// The same alerts as the JSON that the API gave, if the caller asked for it; otherwise empty.
    pub raw: Vec<&'a str>,
    /// Number of items that are no alert.
    pub unreadable: usize,
    /// `totalResults`.
    pub total_results: u64,
    /// `pageSize`, if the answer has it: the server may have clamped the requested size.
    pub page_size: Option<u64>,
    /// The number of the next page, if there is one.
    pub next_page: Option<u64>,
}

/// A client of a partner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// `uniqueId`, such as `client_14`: the tenant's id.
    pub id: String,
    /// `name`, or the id if there is no name.
    pub name: String,
    /// `activated`, or `true` if the answer does not say.
    pub activated: bool,
}

/// A page of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsPage {
    /// The clients that could be read.
    pub clients: Vec<ClientInfo>,
    /// Number of items on the page, including those that could not be read.
    pub shown: usize,
    /// `totalResults`, if the answer has it.
    pub total: Option<u64>,
    /// The number of the next page, if there is one.
    pub next_page: Option<u64>,
}

/// The maximum number of results on a page: ten times the largest `page_size`. A longer answer is
/// no page, and even the smallest alert takes a thousand bytes of memory.
const MAX_RESULTS: usize = 10_000;

/// The number of items that may be no alerts though they are all that a first page shows. They may
/// be odd ones of a result that is empty otherwise.
const MAX_ODD: usize = 2;

/// The envelope that all paged answers share.
struct Envelope<R> {
    results: Option<R>,
    total_results: Option<u64>,
    page_no: Option<u64>,
    page_size: Option<u64>,
    total_pages: Option<u64>,
    next_page: Option<bool>,
    next_page_no: Option<u64>,
}

// === impl Answer ===

impl Answer {
    /// Creates the answer of a search from its body.
    #[must_use]
    pub fn of_search(body: Vec<u8>) -> Self {
        Self::new("search", body, Room::default(), Arc::default(), None)
    }

    pub(super) fn new(
        endpoint: &'static str,
        body: Vec<u8>,
        room: Room,
        sent_secrets: Arc<[Secret]>,
        clock_ahead: Option<SignedDuration>,
    ) -> Self {
        // UTF-8 is checked once, here. An invalid byte becomes a replacement character, so that it
        // does not spoil the page.
        let text = String::from_utf8(body)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        let text = mend_surrogates(&text).unwrap_or(text);
        Self {
            endpoint,
            text,
            sent_secrets,
            clock_ahead,
            _room: room,
        }
    }

    /// Returns how far the server's clock was ahead of ours, if the answer gave its time.
    #[must_use]
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        self.clock_ahead
    }

    /// Reads a page of a search. `requested` is the number of the page that was requested.
    ///
    /// # Errors
    /// [`Error::Decode`] if the answer is not JSON, has no `results` or no `totalResults`, or has
    /// too many results.
    pub fn page(&self, requested: u64, keep_raw: bool) -> Result<Page<'_>, Error> {
        if !keep_raw && let Ok(envelope) = self.envelope::<Alerts<'_>>() {
            let next_page = envelope.next_page(requested);
            let (Alerts { alerts, unreadable }, total_results) =
                self.required(envelope.results, envelope.total_results)?;
            let is_empty = alerts.is_empty() && unreadable == 0;
            return Ok(Page {
                unreadable,
                raw: Vec::new(),
                alerts,
                total_results,
                page_size: envelope.page_size,
                next_page: next_page.filter(|_| !is_empty),
            });
        }
        self.page_item_by_item(requested, keep_raw)
    }

    /// Reads the first page of a whole result. If none of several items is an alert, no alert of
    /// this server can be read, so that is a failure.
    ///
    /// # Errors
    /// As for [`Answer::page`]; and [`Error::Decode`] if there are items, but no alert.
    pub fn first_page(&self, keep_raw: bool) -> Result<Page<'_>, Error> {
        let page = self.page(1, keep_raw)?;
        if page.alerts.is_empty() && page.unreadable > MAX_ODD {
            let items = page.unreadable;
            let what = format!("no alert, but {items} items without a usable uniqueId");
            return Err(self.unexpected(what));
        }
        Ok(page)
    }

    /// Reads each item by itself. This is slower, but an item that cannot be read does not spoil
    /// the others.
    fn page_item_by_item(&self, requested: u64, keep_raw: bool) -> Result<Page<'_>, Error> {
        let envelope = self.envelope::<Items<'_>>()?;
        let next_page = envelope.next_page(requested);
        let (Items(results), total_results) =
            self.required(envelope.results, envelope.total_results)?;
        let count = results.len();
        let mut alerts = Vec::with_capacity(count);
        let mut raw = Vec::new();
        for item in results {
            if let Ok(Some(alert)) = alert::read(item.get()) {
                alerts.push(alert);
                if keep_raw {
                    raw.push(item.get());
                }
            }
        }
        Ok(Page {
            unreadable: count - alerts.len(),
            raw,
            alerts,
            total_results,
            page_size: envelope.page_size,
            next_page: next_page.filter(|_| count > 0),
        })
    }

    /// Reads one alert.
    ///
    /// # Errors
    /// [`Error::Decode`] if the answer is no alert.
    pub fn alert(&self) -> Result<Alert<'_>, Error> {
        match alert::read(&self.text) {
            Ok(Some(alert)) => Ok(alert),
            Ok(None) => Err(self.unexpected("no alert".to_owned())),
            Err(error) => Err(self.unexpected(format!("no JSON ({})", self.quoted(&error)))),
        }
    }

    /// Reads the alert that was requested by its id. `None` if the answer is about another alert,
    /// or is no alert.
    #[must_use]
    pub fn alert_with(&self, id: &str) -> Option<Alert<'_>> {
        self.alert().ok().filter(|alert| *alert.id == *id)
    }

    /// The text of the answer.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads a page of clients.
    ///
    /// # Errors
    /// [`Error::Decode`] if the answer is no page of clients.
    pub fn clients(&self, requested: u64) -> Result<ClientsPage, Error> {
        let envelope = self.envelope::<Items<'_>>()?;
        let next_page = envelope.next_page(requested);
        let Some(Items(results)) = envelope.results else {
            return Err(self.unexpected("no results".to_owned()));
        };
        let next_page = next_page.filter(|_| !results.is_empty());
        let clients = results
            .iter()
            .filter_map(|item| ClientInfo::read(item.get()))
            .collect();
        Ok(ClientsPage {
            clients,
            shown: results.len(),
            total: envelope.total_results,
            next_page,
        })
    }

    fn envelope<'de, R: Deserialize<'de>>(&'de self) -> Result<Envelope<R>, Error> {
        serde_json::from_str::<Envelope<R>>(&self.text)
            .map_err(|error| self.unexpected(format!("no search result ({})", self.quoted(&error))))
    }

    fn required<T>(&self, results: Option<T>, total: Option<u64>) -> Result<(T, u64), Error> {
        match (results, total) {
            (Some(results), Some(total)) => Ok((results, total)),
            (None, _) => Err(self.unexpected("without results".to_owned())),
            (_, None) => Err(self.unexpected("without totalResults".to_owned())),
        }
    }

    fn unexpected(&self, what: String) -> Error {
        Error::Decode {
            endpoint: self.endpoint,
            what,
            excerpt: self.secrets().excerpt(self.text.as_bytes()),
        }
    }

    /// Returns the message of the JSON parser, which may quote a value of the answer.
    fn quoted(&self, error: &serde_json::Error) -> String {
        self.secrets().excerpt(error.to_string().as_bytes())
    }

    fn secrets(&self) -> Secrets {
        Secrets::of(&self.sent_secrets)
    }
}

// === impl ClientInfo ===

impl ClientInfo {
    fn read(item: &str) -> Option<Self> {
        let mut fields = ClientFields::default();
        let mut deserializer = serde_json::Deserializer::from_str(item);
        Reader(&mut fields).deserialize(&mut deserializer).ok()?;
        let text = |text: Text<'_>| {
            let text = text.filter(|text| !text.trim().is_empty());
            text.map(Cow::into_owned)
        };
        let is_id = |id: &String| alert::is_id(id) && is_path_segment(id);
        let id = text(fields.id).filter(is_id)?;
        let name = text(fields.name).unwrap_or_else(|| id.clone());
        Some(Self {
            id,
            name,
            activated: fields.activated.unwrap_or(true),
        })
    }
}

// === impl Envelope ===

impl<R> Envelope<R> {
    /// Returns the number of the page after `requested`, if there is one. `nextPage` decides whether
    /// there is; without it `nextPageNo` decides, and without both `totalPages`. The number is never
    /// `nextPageNo`: some server may give another number there, such as the place of the next
    /// alert, and the pages in between would never be read.
    fn next_page(&self, requested: u64) -> Option<u64> {
        let here = self.page_no.filter(|page| *page > 0).unwrap_or(requested);
        let more = match (self.next_page, self.next_page_no) {
            (Some(more), _) => more,
            (None, Some(next)) => next > here,
            (None, None) => self.total_pages.is_some_and(|pages| pages > here),
        };
        requested.checked_add(1).filter(|_| more)
    }
}

impl<'de, R: Deserialize<'de>> Deserialize<'de> for Envelope<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor(std::marker::PhantomData))
    }
}

struct EnvelopeVisitor<R>(std::marker::PhantomData<R>);

impl<'de, R: Deserialize<'de>> Visitor<'de> for EnvelopeVisitor<R> {
    type Value = Envelope<R>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with results and totalResults")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope {
            results: None,
            total_results: None,
            page_no: None,
            page_size: None,
            total_pages: None,
            next_page: None,
            next_page_no: None,
        };
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "results" => envelope.results = map.next_value()?,
                "totalResults" => envelope.total_results = number(&mut map)?,
                "pageNo" => envelope.page_no = number(&mut map)?,
                "pageSize" => envelope.page_size = number(&mut map)?.filter(|size| *size > 0),
                "totalPages" => envelope.total_pages = number(&mut map)?,
                "nextPage" => envelope.next_page = alert::boolean(&mut map)?,
                "nextPageNo" => envelope.next_page_no = number(&mut map)?,
                _ => alert::ignore(&mut map)?,
            }
        }
        Ok(envelope)
    }
}

/// The alerts among the results.
#[derive(Default)]
struct Alerts<'a> {
    alerts: Vec<Alert<'a>>,
    /// Number of results that are no alert.
    unreadable: usize,
}

impl<'de> Deserialize<'de> for Alerts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AlertsVisitor;

        impl<'de> Visitor<'de> for AlertsVisitor {
            type Value = Alerts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("alerts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut read = Alerts::default();
                loop {
                    // Each alert is read directly into its place in the vector, so that it is not
                    // moved.
                    let place = read.alerts.len();
                    read.alerts.push(Alert::default());
                    let alert = Reader(&mut read.alerts[place]);
                    let is_end = seq.next_element_seed(alert)?.is_none();
                    if is_end || !alert::is_id(&read.alerts[place].id) {
                        read.alerts.truncate(place);
                        read.unreadable += usize::from(!is_end);
                    }
                    if is_end {
                        return Ok(read);
                    }
                    check_result_count(read.alerts.len() + read.unreadable)?;
                }
            }
        }

        deserializer.deserialize_seq(AlertsVisitor)
    }
}

/// The results as raw JSON.
struct Items<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;

        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("results")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                    check_result_count(items.len())?;
                }
                Ok(Items(items))
            }
        }

        deserializer.deserialize_seq(ItemsVisitor)
    }
}

/// The members of a client that are read.
#[derive(Default)]
struct ClientFields<'a> {
    id: Text<'a>,
    name: Text<'a>,
    activated: Option<bool>,
}

impl<'a> Object<'a> for ClientFields<'a> {
    fn read_member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "uniqueId" => self.id = alert::text(map)?,
            "name" => self.name = alert::short_text(map)?,
            "activated" => self.activated = alert::boolean(map)?,
            _ => alert::ignore(map)?,
        }
        Ok(())
    }
}

fn check_result_count<E: serde::de::Error>(results: usize) -> Result<(), E> {
    if results > MAX_RESULTS {
        return Err(E::custom(format_args!(
            "more than {MAX_RESULTS} results on one page"
        )));
    }
    Ok(())
}

fn number<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<u64>, A::Error> {
    Ok(alert::text(map)?.and_then(|text| text.trim().parse().ok()))
}

/// Replaces `\u` escapes of lone surrogates, which no UTF-8 text can hold. `None` if there are
/// none.
fn mend_surrogates(json: &str) -> Option<String> {
    let bytes = json.as_bytes();
    // Most answers have no escape of a surrogate. Searching for one is faster than going through
    // all escapes.
    let is_suspect = |at| matches!(bytes.get(at + 2), Some(b'd' | b'D'));
    if !memmem::find_iter(bytes, "\\u").any(is_suspect) {
        return None;
    }
    let unit = |at: usize| -> Option<u16> {
        let escape = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    let mut mended = String::with_capacity(json.len());
    let (mut at, mut copied, mut found) = (0, 0, false);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => {
                mended.push_str(&json[copied..at]);
                mended.push_str("\\ufffd");
                found = true;
                at += 6;
                copied = at;
            }
            // Any other escape: the character after the backslash belongs to it.
            _ => at += 2,
        }
    }
    found.then(|| {
        mended.push_str(&json[copied..]);
        mended
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        Answer::of_search(text.as_bytes().to_vec())
    }

    fn problem(text: &str) -> String {
        answer(text).page(1, false).unwrap_err().to_string()
    }

    #[test]
    fn paging_follows_what_the_answer_says() {
        let next = |members: &str, asked| {
            let text = format!(r#"{{"results":[{{"uniqueId":"1"}}],"totalResults":9,{members}}}"#);
            answer(&text).page(asked, false).unwrap().next_page
        };
        assert_eq!(next(r#""nextPage":true,"nextPageNo":2"#, 1), Some(2));
        assert_eq!(next(r#""nextPage":true"#, 3), Some(4));
        assert_eq!(next(r#""nextPage":"true","pageNo":"3""#, 3), Some(4));
        assert_eq!(
            next(r#""nextPage":true,"nextPageNo":0"#, 3),
            Some(4),
            "0 leads nowhere"
        );
        assert_eq!(
            next(r#""nextPage":true,"nextPageNo":1"#, 3),
            Some(4),
            "nor does an earlier page"
        );
        assert_eq!(
            next(r#""nextPage":true,"nextPageNo":11"#, 1),
            Some(2),
            "the number may be that of an alert"
        );
        assert_eq!(next(r#""nextPage":false,"nextPageNo":2"#, 1), None);
        assert_eq!(next(r#""totalPages":3"#, 2), Some(3));
        assert_eq!(next(r#""totalPages":3"#, 3), None);
        assert_eq!(next(r#""nextPageNo":2"#, 1), Some(2));
        assert_eq!(next(r#""x":1"#, 1), None);
        let empty = r#"{"results":[],"totalResults":9,"nextPage":true,"nextPageNo":2}"#;
        assert_eq!(
            answer(empty).page(1, false).unwrap().next_page,
            None,
            "an empty page is the last"
        );
    }

    #[test]
    fn what_is_no_search_result_is_an_error_not_zero_alerts() {
        for text in [
            "",
            "null",
            "[]",
            "7",
            "<html><body>login</body></html>",
            "{\"results\":[",
            "\u{feff}{}",
        ] {
            assert!(
                problem(text).starts_with("search answered no search result"),
                "{text}: {}",
                problem(text)
            );
        }
        assert_eq!(problem("{}"), "search answered without results: {}");
        assert_eq!(
            problem(r#"{"results":null,"totalResults":0}"#),
            r#"search answered without results: {"results":null,"totalResults":0}"#
        );
        assert_eq!(
            problem(r#"{"results":[]}"#),
            r#"search answered without totalResults: {"results":[]}"#
        );
        assert_eq!(
            problem(r#"{"results":[],"totalResults":-1}"#),
            r#"search answered without totalResults: {"results":[],"totalResults":-1}"#
        );
        assert!(
            answer(r#"{"results":{},"totalResults":1}"#)
                .page(1, false)
                .is_err()
        );
    }

    #[test]
    fn one_unreadable_item_is_counted_and_does_not_spoil_the_page() {
        let text = r#"{"results":[{"uniqueId":"1"},null,{"subject":"x"},{"uniqueId":1e999,"x":1e999},
            {"uniqueId":"3","subject":"lone \ud83d surrogate, \\ud83d none, \ud83d\ude00 fine"}],"totalResults":5}"#;
        let answer = answer(text);
        let page = answer.page(1, false).unwrap();
        let ids: Vec<_> = page.alerts.iter().map(|alert| &*alert.id).collect();
        assert_eq!(ids, ["1", "3"]);
        assert_eq!(
            page.alerts[1].subject.as_deref(),
            Some("lone \u{fffd} surrogate, \\ud83d none, 😀 fine")
        );
        assert_eq!((page.unreadable, page.total_results), (3, 5));
    }

    #[test]
    fn stray_bytes_cost_a_character_not_the_page() {
        let mut body = br#"{"results":[{"uniqueId":"1","subject":"caf"#.to_vec();
        body.extend([0xe9]);
        body.extend(br#""}],"totalResults":1}"#);
        let answer = Answer::of_search(body);
        let page = answer.page(1, false).unwrap();
        assert_eq!(page.alerts[0].subject.as_deref(), Some("caf\u{fffd}"));
    }

    #[test]
    fn raw_alerts_are_kept_as_they_came() {
        let text = r#"{"results":[{"uniqueId":"1", "x" : 1.50},7],"totalResults":"2"}"#;
        let answer = answer(text);
        let page = answer.page(1, true).unwrap();
        assert_eq!(page.raw, [r#"{"uniqueId":"1", "x" : 1.50}"#]);
        assert_eq!(
            (page.alerts.len(), page.unreadable, page.total_results),
            (1, 1, 2)
        );
    }

    #[test]
    fn a_first_page_on_which_no_item_is_an_alert_is_a_failure() {
        let none = answer(r#"{"results":["x",7,null,{"id":"1"}],"totalResults":4}"#);
        let some = answer(r#"{"results":["x",{"uniqueId":"1"}],"totalResults":2}"#);
        let odd = answer(r#"{"results":["x",7],"totalResults":2}"#);
        let empty = answer(r#"{"results":[],"totalResults":2}"#);
        for keep_raw in [false, true] {
            let error = none.first_page(keep_raw).unwrap_err();
            assert_eq!(error.reason(), "decode");
            let told = error.to_string();
            assert!(told.contains("4 items without a usable uniqueId"), "{told}");
            assert_eq!(none.page(2, keep_raw).unwrap().unreadable, 4);
            assert_eq!(some.first_page(keep_raw).unwrap().alerts.len(), 1);
            assert_eq!(odd.first_page(keep_raw).unwrap().unreadable, MAX_ODD);
            assert!(empty.first_page(keep_raw).unwrap().alerts.is_empty());
        }
    }

    #[test]
    fn a_page_has_no_more_results_than_memory_is_meant_for() {
        for item in [r#"{"uniqueId":"1"}"#, "1"] {
            let text = |count| {
                let items = vec![item; count].join(",");
                format!(r#"{{"results":[{items}],"totalResults":1}}"#)
            };
            let (most, too_many) = (answer(&text(MAX_RESULTS)), answer(&text(MAX_RESULTS + 1)));
            for keep_raw in [false, true] {
                let page = most.page(1, keep_raw).unwrap();
                assert_eq!(page.alerts.len() + page.unreadable, MAX_RESULTS);
                let problem = too_many.page(1, keep_raw).unwrap_err().to_string();
                let expected = "(more than 10000 results on one page at";
                assert!(problem.contains(expected), "{problem}");
            }
            assert!(most.clients(1).is_ok());
            assert!(too_many.clients(1).is_err());
        }
    }

    #[test]
    fn deep_nesting_is_no_crash() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let text = format!(r#"{{"results":[{{"uniqueId":"1","x":{deep}}}],"totalResults":1}}"#);
        assert_eq!(
            answer(&text)
                .page(1, false)
                .map(|page| page.alerts.len())
                .unwrap_or(0),
            1
        );
        let nested = format!(r#"{{"results":{deep},"totalResults":1}}"#);
        assert!(
            answer(&nested)
                .page(1, false)
                .is_ok_and(|page| page.unreadable == 1)
        );
    }

    #[test]
    fn clients_are_read() {
        let text = include_str!("../../tests/samples/clients-search.json");
        let page = answer(text).clients(1).unwrap();
        let client = |id: &str, name: &str, activated| ClientInfo {
            id: id.into(),
            name: name.into(),
            activated,
        };
        assert_eq!(
            page.clients,
            [
                client("client_14", "Example Services", true),
                client("client_9", "Example Bank", false)
            ]
        );
        assert_eq!(page.next_page, None);
    }

    #[test]
    fn a_client_whose_id_leads_to_another_path_is_none() {
        let ids = [".", "..", "", "...", ".a"].map(|id| format!(r#"{{"uniqueId":"{id}"}}"#));
        let text = format!(r#"{{"results":[{}]}}"#, ids.join(","));
        let page = answer(&text).clients(1).unwrap();
        let ids: Vec<_> = page.clients.iter().map(|client| &*client.id).collect();
        assert_eq!(ids, ["...", ".a"]);
    }

    #[test]
    fn a_client_is_deactivated_in_whatever_way_that_is_written() {
        let activated = |value: &str| {
            let client = format!(r#"{{"uniqueId":"client_1","activated":{value}}}"#);
            let page = answer(&format!(r#"{{"results":[{client}]}}"#)).clients(1);
            page.unwrap().clients[0].activated
        };
        for no in [
            "false",
            "0",
            r#""0""#,
            r#""no""#,
            r#""false ""#,
            r#""FALSE""#,
        ] {
            assert!(!activated(no), "{no}");
        }
        for yes in [
            "true",
            "1",
            "null",
            r#""True""#,
            r#""""#,
            "[]",
            r#""perhaps""#,
        ] {
            assert!(activated(yes), "{yes}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_whatever_panics(body: Vec<u8>) {
            let answer = Answer::of_search(body);
            answer.page(1, true).ok();
            answer.alert().ok();
            answer.clients(1).ok();
        }

        #[test]
        fn mending_keeps_json_json(text: String, unit in 0xD800u16..=0xDFFF) {
            let json = serde_json::to_string(&text).unwrap();
            let broken = format!("{}\\u{unit:04x}\"", &json[..json.len() - 1]);
            let mended = mend_surrogates(&broken).unwrap();
            let read: String = serde_json::from_str(&mended).unwrap();
            proptest::prop_assert_eq!(read, format!("{text}\u{fffd}"));
        }
    }
}
