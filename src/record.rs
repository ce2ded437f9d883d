//! The record: one event of one alert, as it is journalled and delivered.
//!
//! The record's keys and their order are a contract (README, "Log records"), and [`Record::visit`]
//! is the one place that spells them out. The poller writes a record into the journal as one line
//! of JSON. A JSON sink hands this line on byte for byte; other formats read it back. No text of
//! an alert can end the line or begin another one. This module knows neither where an alert came
//! from nor where a line goes.

use std::borrow::Cow;

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    excerpt::truncate,
    identity::{EventKind, SearchKey},
};

pub(crate) mod json;
mod stored;

/// The namespace of event ids; see [`event_id`].
pub const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0x89a8_578e_a6a0_4b56_a93b_b412_af7a_8396);

/// Maximum size of a raw alert that is added to a record, in bytes. A longer one is left out,
/// because JSON cannot be cut.
const MAX_RAW: usize = 1024 * 1024;

/// Times as RFC 3339 in UTC, with as many decimals as they need.
static RFC_3339: DateTimePrinter = DateTimePrinter::new();
static MILLISECONDS: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// How events are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The kinds of events that are logged.
    pub events: Vec<EventKind>,
    /// Whether the alert as the API gave it is added under `alert`.
    pub include_raw: bool,
    /// Maximum length of a description, in bytes. A longer one is cut at a character border and
    /// marked.
    pub max_description_length: usize,
}

/// What is known about an alert itself: the part of a record that does not depend on the event.
/// Values are as the API gave them; values that it did not give are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertFields<'a> {
    /// `currentState`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'a, str>>,
    /// `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Cow<'a, str>>,
    /// `subject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// `description`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
    /// `metric`, else `serviceName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Cow<'a, str>>,
    /// `component`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<Cow<'a, str>>,
    /// `problemArea`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_area: Option<Cow<'a, str>>,
    /// `alertType`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert_type: Option<Cow<'a, str>>,
    /// `eventType`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<Cow<'a, str>>,
    /// `app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Cow<'a, str>>,
    /// `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Cow<'a, str>>,
    /// `resource.id`, else `device.id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<Cow<'a, str>>,
    /// `resource.name`, else `device.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<Cow<'a, str>>,
    /// `resource.resourceType`, else `resource.type`, else those of `device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<Cow<'a, str>>,
    /// `resource.ipAddress`, else `device.ipAddress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_ip: Option<Cow<'a, str>>,
    /// `clientUniqueId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<Cow<'a, str>>,
    /// `tenantName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_name: Option<Cow<'a, str>>,
    /// `incidentId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident_id: Option<Cow<'a, str>>,
    /// `inferenceId`; 0 means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_id: Option<u64>,
    /// `repeatCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_count: Option<u64>,
    /// `createdDate`, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// `updatedTime`, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// One event of one alert. Only the keys that cannot be derived from others are deserialized: to
/// read a line, use [`Record::from_json`].
#[derive(Clone, Debug, Deserialize)]
pub struct Record<'a> {
    /// When the event was journalled; a line shows milliseconds.
    pub timestamp: Timestamp,
    /// What happened.
    pub event: EventKind,
    /// The id of the event: the same for each delivery, by any replica.
    pub event_id: Uuid,
    /// The account's name.
    pub account: Cow<'a, str>,
    /// The tenant's name.
    pub tenant: Cow<'a, str>,
    /// The search's name.
    pub search: Cow<'a, str>,
    /// `uniqueId`.
    pub alert_id: Cow<'a, str>,
    /// The state before a `changed` or `left` event.
    pub previous_state: Option<Cow<'a, str>>,
    /// The status before a `changed` or `left` event.
    pub previous_status: Option<Cow<'a, str>>,
    /// Why the alert left.
    pub reason: Option<Cow<'a, str>>,
    /// The alert.
    #[serde(flatten)]
    pub fields: AlertFields<'a>,
    /// The alert as the API gave it.
    pub alert: Option<Box<RawValue>>,
}

/// An event as the poller reports it, from which [`Record::new`] makes a record.
#[derive(Clone, Debug)]
pub struct Happening<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The number of this event in the alert's life, from 1.
    pub ordinal: u32,
    /// `uniqueId`.
    pub alert_id: &'a str,
    /// The state before a `changed` or `left` event.
    pub previous_state: Option<Cow<'a, str>>,
    /// The status before a `changed` or `left` event.
    pub previous_status: Option<Cow<'a, str>>,
    /// Why the alert left.
    pub reason: Option<Cow<'a, str>>,
    /// The alert.
    pub fields: AlertFields<'a>,
    /// The alert as the API gave it, if it is at hand.
    pub raw: Option<&'a RawValue>,
}

/// The severity of an alert, in the terms of log stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// `Critical`.
    Critical,
    /// `Warning`.
    Warning,
    /// `Info` and `Ok`.
    Info,
    /// Any other state, or none.
    Unknown,
}

/// The value of one key of a record.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A whole number.
    Number(u64),
    /// JSON, without line breaks.
    Json(&'a RawValue),
}

/// Returns the id of an event. The same event always gets the same id, wherever and however often
/// it is computed.
///
/// The id is the `UUIDv5`, in the namespace [`EVENT_NAMESPACE`], of six netstrings (length in
/// bytes, colon, text, comma): account, tenant *id*, search, alert id, the kind's word, and the
/// ordinal of the event in the alert's life. The tenant's id is used because its name may change.
/// In Python:
///
/// ```text
/// uuid.uuid5(uuid.UUID("89a8578e-a6a0-4b56-a93b-b412af7a8396"),
///            "".join(f"{len(s.encode())}:{s}," for s in
///                    ["acme", "client_1234", "open", "8005", "opened", "1"]))
/// # 0ea1643a-8f28-5c30-a21b-021a3740bfbf
/// ```
#[must_use]
pub fn event_id(
    account: &str,
    tenant_id: &str,
    search: &str,
    alert_id: &str,
    kind: EventKind,
    ordinal: u32,
) -> Uuid {
    let mut digits = itoa::Buffer::new();
    let parts = [
        account,
        tenant_id,
        search,
        alert_id,
        kind.as_str(),
        digits.format(ordinal),
    ];
    let mut name = Vec::with_capacity(256);
    for part in parts {
        json::push_number(&mut name, part.len() as u64);
        name.push(b':');
        name.extend_from_slice(part.as_bytes());
        name.push(b',');
    }
    Uuid::new_v5(&EVENT_NAMESPACE, &name)
}

/// Returns the same JSON on one line: without whitespace between its parts, and without characters
/// in its strings that a reader could take for a line break. Numbers and the order of keys do not
/// change.
#[must_use]
pub fn compact_raw(raw: &RawValue) -> Box<RawValue> {
    let mut out = Vec::with_capacity(raw.get().len());
    json::push_compact(&mut out, raw.get());
    String::from_utf8(out)
        .ok()
        .and_then(|text| RawValue::from_string(text).ok())
        // Whitespace and escapes do not make valid JSON invalid.
        .unwrap_or_else(|| raw.to_owned())
}

// === impl Record ===

impl<'a> Record<'a> {
    /// Creates the record of an event that is journalled `now`.
    #[must_use]
    pub fn new(
        now: Timestamp,
        search: &'a SearchKey,
        happening: Happening<'a>,
        options: &Options,
    ) -> Self {
        let Happening {
            kind,
            ordinal,
            alert_id,
            previous_state,
            previous_status,
            reason,
            mut fields,
            raw,
        } = happening;
        fields.description = fields
            .description
            .map(|text| truncate(text, options.max_description_length));
        Self {
            timestamp: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
            event: kind,
            event_id: event_id(
                &search.account,
                &search.tenant.id,
                &search.search,
                alert_id,
                kind,
                ordinal,
            ),
            account: Cow::Borrowed(&search.account),
            tenant: Cow::Borrowed(&search.tenant.name),
            search: Cow::Borrowed(&search.search),
            alert_id: Cow::Borrowed(alert_id),
            previous_state,
            previous_status,
            reason,
            fields,
            alert: raw
                .filter(|raw| options.include_raw && raw.get().len() <= MAX_RAW)
                .map(compact_raw),
        }
    }

    /// Returns the record as one line of JSON, without a line break at the end.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        self.write_json(&mut out);
        out
    }

    /// Appends the same line as [`Record::to_json`] returns.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut separator = b'{';
        self.visit(|key, value| {
            out.push(separator);
            separator = b',';
            out.push(b'"');
            out.extend_from_slice(key.as_bytes());
            out.push(b'"');
            out.push(b':');
            match value {
                Value::Text(text) => json::push_string(out, text),
                Value::Number(number) => json::push_number(out, number),
                Value::Json(raw) => json::push_compact(out, raw.get()),
            }
        });
        out.push(b'}');
    }

    /// Returns the level of the alert, by its state.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::of_state(self.fields.state.as_deref().unwrap_or_default())
    }

    /// Calls `each` with every key that has a value, in the order of the contract. The keys up to
    /// `message` always have a value.
    pub fn visit(&self, mut each: impl FnMut(&'static str, Value<'_>)) {
        let fields = &self.fields;
        let level = self.level().as_str();
        let mut text = String::with_capacity(40);
        // Writing to a string cannot fail.
        MILLISECONDS
            .print_timestamp(&self.timestamp, &mut text)
            .ok();
        each("timestamp", Value::Text(&text));
        each("level", Value::Text(level));
        each("severity", Value::Text(level));
        each("event", Value::Text(self.event.as_str()));
        let mut id = Uuid::encode_buffer();
        let id = self.event_id.as_hyphenated().encode_lower(&mut id);
        each("event_id", Value::Text(id));
        each("account", Value::Text(&self.account));
        each("tenant", Value::Text(&self.tenant));
        each("search", Value::Text(&self.search));
        each("alert_id", Value::Text(&self.alert_id));
        for (key, value) in [
            ("state", &fields.state),
            ("status", &fields.status),
            ("message", &fields.message),
        ] {
            each(key, Value::Text(value.as_deref().unwrap_or_default()));
        }
        for (key, value) in [
            ("previous_state", &self.previous_state),
            ("previous_status", &self.previous_status),
            ("reason", &self.reason),
            ("description", &fields.description),
            ("metric", &fields.metric),
            ("component", &fields.component),
            ("problem_area", &fields.problem_area),
            ("alert_type", &fields.alert_type),
            ("event_type", &fields.event_type),
            ("source", &fields.source),
            ("priority", &fields.priority),
            ("resource_id", &fields.resource_id),
            ("resource_name", &fields.resource_name),
            ("resource_type", &fields.resource_type),
            ("resource_ip", &fields.resource_ip),
            ("client_id", &fields.client_id),
            ("client_name", &fields.client_name),
            ("incident_id", &fields.incident_id),
        ] {
            if let Some(value) = value {
                each(key, Value::Text(value));
            }
        }
        for (key, value) in [
            ("inference_id", fields.inference_id),
            ("repeat_count", fields.repeat_count),
        ] {
            if let Some(number) = value {
                each(key, Value::Number(number));
            }
        }
        for (key, value) in [
            ("created_at", fields.created_at),
            ("updated_at", fields.updated_at),
        ] {
            if let Some(time) = value {
                text.clear();
                RFC_3339.print_timestamp(&time, &mut text).ok();
                each(key, Value::Text(&text));
            }
        }
        if let Some(alert) = &self.alert {
            each("alert", Value::Json(alert));
        }
    }
}

impl Record<'static> {
    /// Reads a line that [`Record::to_json`] wrote. Unknown keys are skipped.
    ///
    /// # Errors
    /// If `line` is not a record.
    pub fn from_json(line: &[u8]) -> Result<Self, serde_json::Error> {
        let mut record: Self = serde_json::from_slice(line)?;
        let fields = &mut record.fields;
        for always_there in [&mut fields.state, &mut fields.status, &mut fields.message] {
            always_there.take_if(|text| text.is_empty());
        }
        Ok(record)
    }
}

// === impl Level ===

impl Level {
    /// Every level.
    pub const ALL: [Self; 4] = [Self::Critical, Self::Warning, Self::Info, Self::Unknown];

    /// Returns the level of a state, written in any case.
    #[must_use]
    pub fn of_state(state: &str) -> Self {
        let is = |word: &str| state.eq_ignore_ascii_case(word);
        if is("critical") {
            Self::Critical
        } else if is("warning") {
            Self::Warning
        } else if is("info") || is("ok") {
            Self::Info
        } else {
            Self::Unknown
        }
    }

    /// The word in a record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, LazyLock};

    use proptest::prelude::*;

    use super::*;
    use crate::identity::Tenant;

    pub(crate) const KEYS: [&str; 35] = [
        "timestamp",
        "level",
        "severity",
        "event",
        "event_id",
        "account",
        "tenant",
        "search",
        "alert_id",
        "state",
        "status",
        "message",
        "previous_state",
        "previous_status",
        "reason",
        "description",
        "metric",
        "component",
        "problem_area",
        "alert_type",
        "event_type",
        "source",
        "priority",
        "resource_id",
        "resource_name",
        "resource_type",
        "resource_ip",
        "client_id",
        "client_name",
        "incident_id",
        "inference_id",
        "repeat_count",
        "created_at",
        "updated_at",
        "alert",
    ];

    const OPTIONS: Options = Options {
        events: Vec::new(),
        include_raw: true,
        max_description_length: 4096,
    };

    static KEY: LazyLock<SearchKey> = LazyLock::new(|| SearchKey {
        account: Arc::from("acme"),
        tenant: Tenant {
            id: Arc::from("client_1234"),
            name: Arc::from("retail"),
        },
        search: Arc::from("open"),
    });

    /// A record with a value for every key.
    pub(crate) fn full() -> Record<'static> {
        let some = |value: &'static str| Some(Cow::from(value));
        let raw = "{ \"uniqueId\": \"8005\",\n \"n\": 1.10 }";
        let raw: &RawValue = serde_json::from_str(raw).unwrap();
        Record::new(
            "2026-03-01T10:20:30.123987Z".parse().unwrap(),
            &KEY,
            Happening {
                kind: EventKind::Changed,
                ordinal: 2,
                alert_id: "8005",
                previous_state: some("Warning"),
                previous_status: some("New"),
                reason: some("acknowledged"),
                fields: AlertFields {
                    state: some("Critical"),
                    status: some("Ticketed"),
                    message: some("CPU \"load\" = 99%\nnext line"),
                    description: some("C:\\temp\tis full"),
                    metric: some("system.cpu.load"),
                    component: some("cpu0"),
                    problem_area: some("CPU"),
                    alert_type: some("Monitoring"),
                    event_type: some("ALERT"),
                    source: some("OPSRAMP"),
                    priority: some("P1"),
                    resource_id: some("r-1"),
                    resource_name: some("web-01"),
                    resource_type: some("Linux"),
                    resource_ip: some("10.0.0.1"),
                    client_id: some("client_14"),
                    client_name: some("Rétail"),
                    incident_id: some("INC-7"),
                    inference_id: Some(42),
                    repeat_count: Some(3),
                    created_at: Some("2026-03-01T10:00:00Z".parse().unwrap()),
                    updated_at: Some("2026-03-01T10:20:00.5Z".parse().unwrap()),
                },
                raw: Some(raw),
            },
            &OPTIONS,
        )
    }

    /// An alert opens of which nothing else is known.
    fn opening() -> Happening<'static> {
        Happening {
            kind: EventKind::Opened,
            ordinal: 1,
            alert_id: "8005",
            previous_state: None,
            previous_status: None,
            reason: None,
            fields: AlertFields::default(),
            raw: None,
        }
    }

    fn now() -> Timestamp {
        "2026-03-01T10:20:30Z".parse().unwrap()
    }

    /// A record without any of the values that may be missing.
    pub(crate) fn bare() -> Record<'static> {
        Record::new(now(), &KEY, opening(), &OPTIONS)
    }

    fn line(record: &Record<'_>) -> String {
        String::from_utf8(record.to_json()).unwrap()
    }

    #[test]
    fn a_full_record_has_every_key_in_the_order_of_the_contract() {
        insta::assert_snapshot!(line(&full()), @r#"{"timestamp":"2026-03-01T10:20:30.123Z","level":"critical","severity":"critical","event":"changed","event_id":"3f643541-2328-5904-8305-86dd246f43ab","account":"acme","tenant":"retail","search":"open","alert_id":"8005","state":"Critical","status":"Ticketed","message":"CPU \"load\" = 99%\nnext line","previous_state":"Warning","previous_status":"New","reason":"acknowledged","description":"C:\\temp\tis full","metric":"system.cpu.load","component":"cpu0","problem_area":"CPU","alert_type":"Monitoring","event_type":"ALERT","source":"OPSRAMP","priority":"P1","resource_id":"r-1","resource_name":"web-01","resource_type":"Linux","resource_ip":"10.0.0.1","client_id":"client_14","client_name":"Rétail","incident_id":"INC-7","inference_id":42,"repeat_count":3,"created_at":"2026-03-01T10:00:00Z","updated_at":"2026-03-01T10:20:00.5Z","alert":{"uniqueId":"8005","n":1.10}}"#);
        let mut keys = Vec::new();
        full().visit(|key, _| keys.push(key));
        assert_eq!(keys, KEYS);
    }

    #[test]
    fn a_bare_record_has_the_keys_up_to_message_and_no_other() {
        insta::assert_snapshot!(line(&bare()), @r#"{"timestamp":"2026-03-01T10:20:30.000Z","level":"unknown","severity":"unknown","event":"opened","event_id":"0ea1643a-8f28-5c30-a21b-021a3740bfbf","account":"acme","tenant":"retail","search":"open","alert_id":"8005","state":"","status":"","message":""}"#);
    }

    #[test]
    fn the_level_is_that_of_the_state_in_any_case() {
        for (state, level) in [
            ("Critical", "critical"),
            ("CRITICAL", "critical"),
            ("warning", "warning"),
            ("Info", "info"),
            ("OK", "info"),
            ("Observed", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(Level::of_state(state).as_str(), level, "{state}");
        }
    }

    #[test]
    fn an_event_id_is_what_the_published_formula_gives() {
        // Computed with Python's uuid.uuid5, as the documentation shows.
        let id = event_id("acme", "client_1234", "open", "8005", EventKind::Opened, 1);
        assert_eq!(id.to_string(), "0ea1643a-8f28-5c30-a21b-021a3740bfbf");
    }

    #[test]
    fn an_event_id_tells_apart_what_would_be_the_same_text_when_joined() {
        let id = |account, tenant, ordinal| {
            event_id(account, tenant, "s", "1", EventKind::Left, ordinal)
        };
        assert_ne!(id("ab", "c", 1), id("a", "bc", 1));
        assert_ne!(id("a,", "c", 1), id("a", ",c", 1));
        assert_ne!(id("a", "c", 1), id("a", "c", 2));
    }

    #[test]
    fn a_renamed_tenant_keeps_its_event_ids() {
        let mut renamed = KEY.clone();
        renamed.tenant.name = Arc::from("wholesale");
        let renamed = Record::new(now(), &renamed, opening(), &OPTIONS);
        assert_eq!(renamed.event_id, bare().event_id);
    }

    #[test]
    fn the_raw_alert_is_left_out_unless_it_is_asked_for_and_not_too_long() {
        let has_raw = |include_raw, length: usize| {
            let text = "x".repeat(length - 2);
            let raw = RawValue::from_string(format!("\"{text}\"")).unwrap();
            let happening = Happening {
                raw: Some(&raw),
                ..opening()
            };
            let options = Options {
                include_raw,
                ..OPTIONS
            };
            let record = Record::new(now(), &KEY, happening, &options);
            record.alert.is_some()
        };
        assert!(!has_raw(false, 10));
        assert!(has_raw(true, 10));
        assert!(has_raw(true, MAX_RAW));
        assert!(!has_raw(true, MAX_RAW + 1));
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert!(Record::from_json(b"{}").is_err());
        assert!(Record::from_json(b"\xff").is_err());
        assert!(Record::from_json(&full().to_json()[..100]).is_err());
    }

    /// Text that is likely to hold characters that break lines.
    fn nasty() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            any::<char>(),
            prop::sample::select(
                "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}\u{0}\u{1b}\u{7f}\u{9b}\"\\= {}[],:"
                    .chars()
                    .collect::<Vec<_>>()
            ),
        ];
        prop::collection::vec(character, 1..20).prop_map(|all| all.into_iter().collect())
    }

    prop_compose! {
        /// A record of arbitrary text.
        pub(crate) fn any_record()(
            texts in prop::collection::vec(nasty(), 12),
            optional in prop::collection::vec(prop::option::of(nasty()), 12),
            numbers in (prop::option::of(any::<u64>()), prop::option::of(any::<u64>())),
            kind in prop::sample::select(&EventKind::ALL[..]),
            millisecond in 0..4_000_000_000_000_i64,
            created in prop::option::of(0..4_000_000_000_i64),
            id in any::<u128>(),
            raw in prop::option::of(nasty()),
        ) -> Record<'static> {
            let mut optional = optional.into_iter();
            let mut next = || optional.next().flatten().map(Cow::from);
            Record {
                timestamp: Timestamp::from_millisecond(millisecond).unwrap(),
                event: kind,
                event_id: Uuid::from_u128(id),
                account: texts[0].clone().into(),
                tenant: texts[1].clone().into(),
                search: texts[2].clone().into(),
                alert_id: texts[3].clone().into(),
                previous_state: next(),
                previous_status: next(),
                reason: next(),
                fields: AlertFields {
                    state: next(),
                    status: next(),
                    message: next(),
                    description: next(),
                    metric: next(),
                    resource_name: next(),
                    client_name: next(),
                    incident_id: next(),
                    inference_id: numbers.0,
                    repeat_count: numbers.1,
                    created_at: created.map(|second| Timestamp::from_second(second).unwrap()),
                    ..AlertFields::default()
                },
                // serde_json leaves U+2028 and the like unescaped, as the API would.
                alert: raw.map(|text| {
                    let json = serde_json::to_string_pretty(&[&text, &text]).unwrap();
                    compact_raw(&RawValue::from_string(json).unwrap())
                }),
            }
        }
    }

    /// Whether every reader sees only one line, including readers that end lines as Unicode or
    /// Python's `str.splitlines` do, and whether a terminal sees nothing but text.
    pub(crate) fn is_one_line(line: &str) -> bool {
        !line
            .chars()
            .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    }

    proptest! {
        #[test]
        fn every_record_is_one_line_and_reads_back_equal(record in any_record()) {
            let line = line(&record);
            prop_assert!(is_one_line(&line), "{line:?}");
            let back = Record::from_json(line.as_bytes()).unwrap();
            prop_assert_eq!(format!("{record:?}"), format!("{back:?}"));
            prop_assert_eq!(back.to_json(), line.as_bytes());
        }

        #[test]
        fn serde_reads_the_same_texts_from_the_line(record in any_record()) {
            let value: serde_json::Value = serde_json::from_slice(&record.to_json()).unwrap();
            prop_assert_eq!(&value["account"], &*record.account);
            prop_assert_eq!(&value["message"], record.fields.message.as_deref().unwrap_or(""));
            if let Some(raw) = &record.alert {
                let raw: serde_json::Value = serde_json::from_str(raw.get()).unwrap();
                prop_assert_eq!(&value["alert"], &raw);
            }
        }
    }
}
