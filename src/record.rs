//! The record: one event of one alert, as it is journalled and delivered.
//!
//! Its keys and their order are a contract (README, "Log records"). The poller writes it into the
//! journal as one line of JSON, which a JSON sink hands on byte for byte; other formats read it
//! back. This module knows neither where an alert came from nor where a line goes.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::identity::EventKind;

mod escape;
mod wire;

use wire::Wire;

/// What becomes of an event before it is journalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The kinds that are logged.
    pub events: Vec<EventKind>,
    /// Whether the alert as the API gave it is added under `alert`.
    pub include_raw: bool,
    /// The longest description, in bytes; a longer one is cut at a character border and marked.
    pub max_description_length: usize,
}

/// What is known about an alert itself: the part of a record that does not depend on the event.
/// Values are as the API gave them; what it did not give is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertFields {
    /// `currentState`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `subject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `description`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `metric`, else `serviceName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// `component`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// `problemArea`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_area: Option<String>,
    /// `alertType`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert_type: Option<String>,
    /// `eventType`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// `app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// `resource.id`, else `device.id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// `resource.name`, else `device.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    /// `resource.resourceType`, else `type`, else of `device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<String>,
    /// `resource.ipAddress`, else `device.ipAddress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_ip: Option<String>,
    /// `clientUniqueId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// `tenantName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_name: Option<String>,
    /// `incidentId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident_id: Option<String>,
    /// `inferenceId`; 0 means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_id: Option<u64>,
    /// `repeatCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_count: Option<u64>,
    /// `createdDate`, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<jiff::Timestamp>,
    /// `updatedTime`, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<jiff::Timestamp>,
}

/// One event of one alert.
#[derive(Clone, Debug)]
pub struct Record {
    /// When the event was journalled.
    pub timestamp: jiff::Timestamp,
    /// What happened.
    pub event: EventKind,
    /// The same whenever and by whomever the event is delivered.
    pub event_id: Uuid,
    /// The account's name.
    pub account: String,
    /// The tenant's name.
    pub tenant: String,
    /// The search's name.
    pub search: String,
    /// `uniqueId`.
    pub alert_id: String,
    /// The state before a `changed` or `left` event.
    pub previous_state: Option<String>,
    /// The status before a `changed` or `left` event.
    pub previous_status: Option<String>,
    /// Why the alert left.
    pub reason: Option<String>,
    /// The alert.
    pub fields: AlertFields,
    /// The alert as the API gave it.
    pub alert: Option<Box<RawValue>>,
}

/// The namespace of event ids: the UUIDv5 of the DNS name `event.opsramp-exporter` in the DNS
/// namespace. It never changes.
pub const EVENT_NAMESPACE: Uuid = uuid::uuid!("56c23432-733d-5287-810b-6195cd5e97f1");

/// What is put behind a text that was cut, with the number of bytes that are missing.
const CUT: (&str, &str) = ("… [", " bytes cut]");

/// The id of an event: UUIDv5 in [`EVENT_NAMESPACE`] of
/// `account NUL tenant NUL search NUL alert_id NUL event NUL ordinal`, names as in the record and
/// the ordinal in decimal. `ordinal` counts the events of the alert's life from 1, those that are
/// not logged included; so the id is the same whoever computes it, whenever.
#[must_use]
pub fn event_id(
    account: &str,
    tenant: &str,
    search: &str,
    alert_id: &str,
    event: EventKind,
    ordinal: u32,
) -> Uuid {
    let ordinal = ordinal.to_string();
    let parts = [account, tenant, search, alert_id, event.as_str(), &ordinal];
    Uuid::new_v5(&EVENT_NAMESPACE, parts.join("\0").as_bytes())
}

/// Cuts a text to at most `max` bytes at a character border; a text that was cut ends with how
/// many bytes are missing, within `max` where that has room.
#[must_use]
pub fn truncate(mut text: String, max: usize) -> String {
    if text.len() <= max {
        return text;
    }
    let mark = |missing: usize| format!("{}{missing}{}", CUT.0, CUT.1);
    let room = mark(text.len()).len();
    let keep = (0..=max.saturating_sub(room))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    let keep = keep.unwrap_or(0);
    let mark = mark(text.len() - keep);
    text.truncate(keep);
    if mark.len() <= max {
        text.push_str(&mark);
    }
    text
}

/// Brings JSON onto one line: white space between tokens goes, and characters that some reader
/// takes for a line break or a control character are escaped. Numbers and members stay as they
/// are. `None` where it is no JSON.
#[must_use]
pub fn compact_raw(json: &str) -> Option<Box<RawValue>> {
    let mut line = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            if escape::needed(c) {
                escape::push(&mut line, c);
            } else {
                line.push(c);
            }
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if !c.is_ascii_whitespace() {
            line.push(c);
            in_string = c == '"';
        }
    }
    RawValue::from_string(line).ok()
}

// === impl Record ===

impl Record {
    /// The level that log stores look at, from the state.
    #[must_use]
    pub fn level(&self) -> &'static str {
        let state = self.fields.state.as_deref().unwrap_or_default().trim();
        let known = [
            ("critical", "critical"),
            ("warning", "warning"),
            ("info", "info"),
            ("ok", "info"),
        ];
        known
            .into_iter()
            .find(|(word, _)| state.eq_ignore_ascii_case(word))
            .map_or("unknown", |(_, level)| level)
    }

    /// The record as one line of JSON, without a line break.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(768);
        let mut serializer = serde_json::Serializer::with_formatter(&mut line, escape::OneLine);
        Wire::from(self)
            .serialize(&mut serializer)
            .expect("a record has text keys, and writing to memory does not fail");
        line
    }

    /// Reads what [`Record::to_json`] wrote.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn from_json(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice::<Wire<'_>>(line).map(Self::from)
    }
}
