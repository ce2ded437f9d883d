//! The record: one event of one alert, as it is journalled and delivered.
//!
//! Its keys and their order are a contract (README, "Log records"). The poller writes it into the
//! journal as one line of JSON, which a JSON sink hands on byte for byte; other formats read it
//! back. This module knows neither where an alert came from nor where a line goes.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::identity::EventKind;

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
