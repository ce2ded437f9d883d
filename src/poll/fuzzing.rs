//! What must hold for any answer of a search, and for any query.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    engine::{Question, can_be_asked_for},
    reading,
    search::asking::{can_be_asked_by_id, query_by_id},
};
use crate::{
    deliver::{
        Format,
        fuzzing::{key, line},
    },
    identity::EventKind,
    opsramp::{Answer, Page, SearchRequest, alert::Alert, fuzzing::search_url},
    record::{self, AlertFields, Happening, Record},
    simulator,
};

/// A page is either refused or read, with and without the raw alerts alike. Whatever its alerts
/// hold, each event of each alert is one line that reads back.
///
/// # Panics
/// If that does not hold.
pub fn search_answer(data: &[u8]) {
    let answer = Answer::of_search(data.to_vec());
    for asked in [1, u64::MAX] {
        let plain = answer.page(asked, false);
        let with_raw = answer.page(asked, true);
        let (Ok(plain), Ok(with_raw)) = (&plain, &with_raw) else {
            assert!(
                plain.is_err() && with_raw.is_err(),
                "{plain:?} {with_raw:?}"
            );
            continue;
        };
        assert_eq!(plain.alerts, with_raw.alerts);
        assert_eq!(plain.unreadable, with_raw.unreadable);
        assert_eq!(plain.total_results, with_raw.total_results);
        assert_eq!(plain.next_page, with_raw.next_page);
        assert_eq!(with_raw.raw.len(), with_raw.alerts.len());
        assert!(plain.next_page.is_none_or(|next| next > asked));
        check_alerts(with_raw);
    }
    // The answer about one alert is read from such bytes, too.
    if let Ok(alert) = answer.alert() {
        check_alert(&alert, Some(answer.text()));
    }
}

fn check_alerts(page: &Page<'_>) {
    for (alert, raw) in page.alerts.iter().zip(&page.raw) {
        check_alert(alert, Some(raw));
    }
}

fn check_alert(alert: &Alert<'_>, raw: Option<&str>) {
    let sighting = || reading::sightings(std::slice::from_ref(alert));
    assert_eq!(sighting(), sighting());
    let fields = reading::fields(alert);
    let mut stored = Vec::new();
    fields.write_stored(&mut stored);
    assert!(is_one_line(&stored), "{}", String::from_utf8_lossy(&stored));
    let again = AlertFields::from_stored(&stored).expect("what is stored is read");
    let described = AlertFields {
        description: fields.description.clone(),
        ..again
    };
    assert_eq!(described, fields);
    let raw = raw.map(|raw| serde_json::from_str::<&RawValue>(raw).expect("it was read as JSON"));
    for kind in EventKind::ALL {
        let happening = Happening {
            kind,
            ordinal: 1,
            alert_id: &alert.id,
            previous_state: fields.state.clone(),
            previous_status: fields.status.clone(),
            reason: alert.departure_reason().map(Into::into),
            fields: fields.clone(),
            raw,
        };
        check_record(&Record::new(
            Timestamp::UNIX_EPOCH,
            &key(),
            happening,
            &OPTIONS,
        ));
    }
}

fn check_record(record: &Record<'_>) {
    let body = record.to_json();
    assert!(is_one_line(&body), "{}", String::from_utf8_lossy(&body));
    // Not read as a `Value`, which cannot hold a number such as 1e999: `raw` is as the server sent
    // it.
    let json: Ids = serde_json::from_slice(&body).expect("a line is JSON");
    assert_eq!(json.alert_id, *record.alert_id);
    assert_eq!(json.event_id, record.event_id.to_string());
    let again = Record::from_json(&body).expect("a line reads back");
    assert_eq!(
        String::from_utf8_lossy(&again.to_json()),
        String::from_utf8_lossy(&body)
    );
    for format in [Format::Json, Format::Logfmt] {
        let line = line(format, &body);
        let text = line.strip_suffix(b"\n").expect("a line ends");
        assert!(is_one_line(text), "{}", String::from_utf8_lossy(text));
    }
}

/// The fields by which a line is found.
#[derive(Deserialize)]
struct Ids {
    alert_id: String,
    event_id: String,
}

/// Whether a line has no character that a reader may take for the end of a line, and none that a
/// terminal obeys.
fn is_one_line(line: &[u8]) -> bool {
    let line = str::from_utf8(line).expect("a line is text");
    !line
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}'))
}

const OPTIONS: record::Options = record::Options {
    events: Vec::new(),
    include_raw: true,
    max_description_length: 64,
};

/// A query reaches the server as it was written, and so do ids that are added to it.
///
/// The bytes are the query and then the ids, each after a zero byte.
///
/// # Panics
/// If that does not hold.
pub fn query_string(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut parts = text.split('\0');
    let query = parts.next().unwrap_or_default();
    arrives(query);
    let Some(witness) = parts.next() else {
        return;
    };
    let question = Question {
        suspects: parts.map(Box::from).collect(),
        witness: Box::from(witness),
    };
    let mut ids = question.suspects.iter().chain([&question.witness]);
    if can_be_asked_by_id(query) && ids.all(|id| can_be_asked_for(id)) {
        let by_id = query_by_id(query, &question);
        arrives(&by_id);
        let (Ok(_), Ok(read)) = (parse(query), parse(&by_id)) else {
            assert!(parse(query).is_err(), "{by_id} is refused, {query} is not");
            return;
        };
        let asked = question.suspects.iter().chain([&question.witness]);
        let asked: Vec<_> = asked.map(|id| id.to_ascii_lowercase()).collect();
        assert_eq!(read.unique_ids.as_deref(), Some(&asked[..]));
    }
}

fn parse(query: &str) -> Result<simulator::Query, simulator::Refusal> {
    simulator::Query::parse(query, simulator::UnknownKey::Ignore)
}

/// Checks what the server reads from the request.
fn arrives(query: &str) {
    let request = SearchRequest {
        query: query.to_owned(),
        page: 3,
        page_size: 100,
        sorted: true,
    };
    let url = search_url("client 1/?&#%", &request);
    let url = reqwest::Url::parse(&url).expect("it is a URL");
    assert_eq!(
        url.path(),
        "/api/v2/tenants/client%201%2F%3F%26%23%25/alerts/search"
    );
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        pairs,
        [
            pair("pageNo", "3"),
            pair("pageSize", "100"),
            pair("isDescendingOrder", "true"),
            pair("sortName", "ts"),
            pair("queryString", query),
        ]
    );
    let options = simulator::Options {
        unknown_key: simulator::UnknownKey::Ignore,
        ..simulator::Options::default()
    };
    let read = simulator::SearchParams::parse(&pairs, &options).ok();
    assert_eq!(read.map(|read| read.query), parse(query).ok());
}
