//! The record's keys in their order.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{AlertFields, Record};
use crate::identity::EventKind;

type Text<'a> = Option<Cow<'a, str>>;

/// A record as it is written: the order of the members is the order of the keys, a contract.
#[derive(Serialize, Deserialize)]
pub(super) struct Wire<'a> {
    #[serde(serialize_with = "milliseconds")]
    timestamp: Timestamp,
    #[serde(borrow)]
    level: Cow<'a, str>,
    #[serde(borrow)]
    severity: Cow<'a, str>,
    event: EventKind,
    #[serde(serialize_with = "hyphenated", deserialize_with = "uuid")]
    event_id: Uuid,
    #[serde(borrow)]
    account: Cow<'a, str>,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(borrow)]
    search: Cow<'a, str>,
    #[serde(borrow)]
    alert_id: Cow<'a, str>,
    // These three are always there, empty where the API gave nothing.
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    previous_state: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    previous_status: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reason: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    description: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    metric: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    component: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    problem_area: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    alert_type: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    event_type: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    source: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    priority: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resource_id: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resource_name: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resource_type: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resource_ip: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    client_id: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    client_name: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    incident_id: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inference_id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repeat_count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alert: Option<Cow<'a, RawValue>>,
}

// === impl Wire ===

impl<'a> From<&'a Record> for Wire<'a> {
    fn from(record: &'a Record) -> Self {
        fn text(text: &Option<String>) -> Text<'_> {
            text.as_deref().map(Cow::Borrowed)
        }
        fn always(text: &Option<String>) -> Cow<'_, str> {
            Cow::Borrowed(text.as_deref().unwrap_or_default())
        }
        let fields = &record.fields;
        Self {
            timestamp: record.timestamp,
            level: record.level().into(),
            severity: record.level().into(),
            event: record.event,
            event_id: record.event_id,
            account: record.account.as_str().into(),
            tenant: record.tenant.as_str().into(),
            search: record.search.as_str().into(),
            alert_id: record.alert_id.as_str().into(),
            state: always(&fields.state),
            status: always(&fields.status),
            message: always(&fields.message),
            previous_state: text(&record.previous_state),
            previous_status: text(&record.previous_status),
            reason: text(&record.reason),
            description: text(&fields.description),
            metric: text(&fields.metric),
            component: text(&fields.component),
            problem_area: text(&fields.problem_area),
            alert_type: text(&fields.alert_type),
            event_type: text(&fields.event_type),
            source: text(&fields.source),
            priority: text(&fields.priority),
            resource_id: text(&fields.resource_id),
            resource_name: text(&fields.resource_name),
            resource_type: text(&fields.resource_type),
            resource_ip: text(&fields.resource_ip),
            client_id: text(&fields.client_id),
            client_name: text(&fields.client_name),
            incident_id: text(&fields.incident_id),
            inference_id: fields.inference_id,
            repeat_count: fields.repeat_count,
            created_at: fields.created_at,
            updated_at: fields.updated_at,
            alert: record.alert.as_deref().map(Cow::Borrowed),
        }
    }
}

impl From<Wire<'_>> for Record {
    fn from(wire: Wire<'_>) -> Self {
        fn text(text: Text<'_>) -> Option<String> {
            text.map(Cow::into_owned)
        }
        fn unless_empty(text: Cow<'_, str>) -> Option<String> {
            (!text.is_empty()).then(|| text.into_owned())
        }
        Self {
            timestamp: wire.timestamp,
            event: wire.event,
            event_id: wire.event_id,
            account: wire.account.into_owned(),
            tenant: wire.tenant.into_owned(),
            search: wire.search.into_owned(),
            alert_id: wire.alert_id.into_owned(),
            previous_state: text(wire.previous_state),
            previous_status: text(wire.previous_status),
            reason: text(wire.reason),
            fields: AlertFields {
                state: unless_empty(wire.state),
                status: unless_empty(wire.status),
                message: unless_empty(wire.message),
                description: text(wire.description),
                metric: text(wire.metric),
                component: text(wire.component),
                problem_area: text(wire.problem_area),
                alert_type: text(wire.alert_type),
                event_type: text(wire.event_type),
                source: text(wire.source),
                priority: text(wire.priority),
                resource_id: text(wire.resource_id),
                resource_name: text(wire.resource_name),
                resource_type: text(wire.resource_type),
                resource_ip: text(wire.resource_ip),
                client_id: text(wire.client_id),
                client_name: text(wire.client_name),
                incident_id: text(wire.incident_id),
                inference_id: wire.inference_id,
                repeat_count: wire.repeat_count,
                created_at: wire.created_at,
                updated_at: wire.updated_at,
            },
            alert: wire.alert.map(Cow::into_owned),
        }
    }
}

/// RFC 3339 in UTC with exactly three digits of the second.
fn milliseconds<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.3}"))
}

fn hyphenated<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&id.hyphenated())
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = <Cow<'de, str>>::deserialize(deserializer)?;
    Uuid::parse_str(&text).map_err(serde::de::Error::custom)
}
