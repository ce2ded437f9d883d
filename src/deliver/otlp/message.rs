//! Records as OpenTelemetry's log records.
//!
//! Time and observed time are both the time when the event was journalled. This time never lies
//! far behind the receiver's clock. The time of the alert's creation may: if a late or first
//! answer brings old alerts, a receiver with an age limit would refuse them. So the creation time
//! is an attribute, `opsramp.created_at`. Besides, the journal's time stays the same whenever a
//! record is sent again, so receivers can recognise the record.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;

use crate::record::{Record, Value};

/// The request that delivers records, grouped by account and tenant.
pub(super) fn request<'a>(
    records: impl IntoIterator<Item = &'a Record<'a>>,
) -> ExportLogsServiceRequest {
    let mut groups: BTreeMap<(&str, &str), Vec<LogRecord>> = BTreeMap::new();
    for record in records {
        groups
            .entry((&record.account, &record.tenant))
            .or_default()
            .push(log_record(record));
    }
    let resource_logs = groups
        .into_iter()
        .map(|((account, tenant), log_records)| ResourceLogs {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", env!("CARGO_PKG_NAME")),
                    text("service.version", env!("CARGO_PKG_VERSION")),
                    text("opsramp.account", account),
                    text("opsramp.tenant", tenant),
                ],
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: env!("CARGO_PKG_NAME").to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                log_records,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        })
        .collect();
    ExportLogsServiceRequest { resource_logs }
}

/// The most bytes that a record adds to a request. Records that share a resource add less.
pub(super) fn size(record: &Record<'_>) -> usize {
    request([record]).encoded_len()
}

fn log_record(record: &Record<'_>) -> LogRecord {
    let state = record.fields.state.as_deref().unwrap_or_default();
    let mut attributes = Vec::new();
    record.visit(|key, value| {
        let name = match key {
            // These keys have fields of their own, in the record or in its resource.
            "timestamp" | "message" | "account" | "tenant" | "level" => return,
            "event_id" => "log.record.uid".to_owned(),
            key => format!("opsramp.{key}"),
        };
        let value = match value {
            Value::Text(text) => any_value::Value::StringValue(text.to_owned()),
            Value::Number(number) => match i64::try_from(number) {
                Ok(number) => any_value::Value::IntValue(number),
                Err(_) => any_value::Value::StringValue(number.to_string()),
            },
            Value::Json(raw) => any_value::Value::StringValue(raw.get().to_owned()),
        };
        if key == "severity" {
            // Without this attribute, Loki derives a level from the number, and calls 18 an error.
            attributes.push(attribute(key.to_owned(), value.clone()));
        }
        attributes.push(attribute(name, value));
    });
    // No alert is from before 1970.
    let time = u64::try_from(record.timestamp.as_nanosecond()).unwrap_or_default();
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: severity_number(state).into(),
        severity_text: state.to_owned(),
        body: Some(AnyValue {
            value: Some(any_value::Value::StringValue(
                record
                    .fields
                    .message
                    .as_deref()
                    .unwrap_or_default()
                    .to_owned(),
            )),
        }),
        attributes,
        event_name: format!("opsramp.alert.{}", record.event.as_str()),
        ..LogRecord::default()
    }
}

/// The numbers distinguish Critical from other errors, and Info from Ok.
fn severity_number(state: &str) -> SeverityNumber {
    let is = |word: &str| state.eq_ignore_ascii_case(word);
    if is("critical") {
        SeverityNumber::Error2
    } else if is("warning") {
        SeverityNumber::Warn
    } else if is("info") {
        SeverityNumber::Info2
    } else if is("ok") {
        SeverityNumber::Info
    } else {
        SeverityNumber::Unspecified
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(
        key.to_owned(),
        any_value::Value::StringValue(value.to_owned()),
    )
}

fn attribute(key: String, value: any_value::Value) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
