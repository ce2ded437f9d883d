//! How alerts, pages and clients are written: the documents of the API, member for member.
//!
//! Everything is written straight into a buffer from a copy of the few bytes of an alert, so that
//! the world need not be locked meanwhile. This module decides nothing.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::alert::{Alert, AlertId, EventType, State, Status};
use super::scenery::{self, Scene};

/// What every alert of a tenant says about the tenant.
#[derive(Debug)]
pub(super) struct TenantFacts {
    pub(super) id: String,
    pub(super) name: String,
    /// `tenantId`.
    pub(super) number: u64,
}

/// An alert and what is needed to write it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) alert: Alert,
    pub(super) tenant: Arc<TenantFacts>,
    pub(super) seed: u64,
}

/// One page of a search.
#[derive(Debug)]
pub struct Page {
    pub(super) items: Vec<Item>,
    pub(super) envelope: Envelope,
    pub(super) offset_minutes: i32,
    pub(super) padding: usize,
}

/// One alert with all its members.
#[derive(Debug)]
pub struct Detail {
    pub(super) item: Item,
    pub(super) offset_minutes: i32,
}

/// The members around the results.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope {
    pub(super) total_results: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order_by: Option<&'static str>,
    pub(super) page_no: usize,
    pub(super) page_size: usize,
    pub(super) total_pages: usize,
    pub(super) next_page: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page_no: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) previous_page_no: Option<usize>,
    pub(super) descending_order: bool,
}

/// A client, as its partner sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientView {
    pub(super) id: u64,
    pub(super) unique_id: String,
    pub(super) name: String,
    pub(super) activated: bool,
    pub(super) created_time: String,
    pub(super) updated_time: String,
}

/// One page of clients.
#[derive(Debug, Serialize)]
pub struct ClientPage {
    pub(super) results: Vec<ClientView>,
    #[serde(flatten)]
    pub(super) envelope: Envelope,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AlertView<'a> {
    unique_id: &'a str,
    subject: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Cow<'a, str>>,
    current_state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_state: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'a str>,
    acknowledged: bool,
    suppressed: bool,
    permanently_suppressed: bool,
    closed: bool,
    ticketed: bool,
    client_unique_id: &'a str,
    alert_type: &'a str,
    app: &'a str,
    component: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem_area: Option<&'a str>,
    alert_time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceView<'a>>,
    resource: ResourceView<'a>,
    repeat_count: String,
    tenant_id: u64,
    status: Status,
    priority: &'a str,
    elapsed_time_string: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    healed_time_string: Option<String>,
    created_date: &'a str,
    updated_time: &'a str,
    rba: bool,
    tenant_name: &'a str,
    managed_by_ops_ramp: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    incident_id: Option<&'a str>,
    acted_ts: i64,
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<&'a str>,
    inference_id: u64,
    status_history: History<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    padding: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceView<'a> {
    id: &'a str,
    name: &'a str,
    host_name: &'a str,
    ip_address: &'a str,
    r#type: &'a str,
    alias_name: &'a str,
    resource_name: &'a str,
    resource_type: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResourceView<'a> {
    #[serde(rename_all = "camelCase")]
    Group {
        name: &'a str,
        r#type: &'a str,
        meta_data: Map<String, Value>,
    },
    #[serde(rename_all = "camelCase")]
    Machine {
        id: &'a str,
        host_name: &'a str,
        ip_address: &'a str,
        r#type: &'a str,
        alias_name: &'a str,
        name: &'a str,
        resource_name: &'a str,
        consoles: [u8; 0],
        resource_type: &'a str,
        frequency: u8,
        paused: bool,
        deleted: bool,
        #[serde(rename = "validateSSL")]
        validate_ssl: bool,
        port: u8,
        encrypted: bool,
        timeout: u8,
        days: u8,
        ts: u8,
        client_id: u8,
        location_offset: u8,
        total_locations: u8,
        receiver_host_port: u8,
    },
}

/// Who gave the alert which status, and when.
struct History<'a> {
    created: &'a str,
    alert: &'a Alert,
    offset_minutes: i32,
}

/// An alert that is to be written.
struct Written<'a> {
    item: &'a Item,
    now: Timestamp,
    offset_minutes: i32,
    detailed: bool,
    padding: &'a str,
}

/// The results of a page that are to be written.
struct WrittenPage<'a> {
    page: &'a Page,
    now: Timestamp,
}

#[derive(Serialize)]
struct Document<'a> {
    results: WrittenPage<'a>,
    #[serde(flatten)]
    envelope: &'a Envelope,
}

/// Writes a date as `2016-02-24T01:15:00+0000`.
pub(super) fn date(second: i64, offset_minutes: i32) -> String {
    let offset = Offset::from_seconds(offset_minutes * 60).unwrap_or(Offset::UTC);
    let at = Timestamp::from_second(second).unwrap_or_default();
    let at = at.to_zoned_datetime(offset.to_time_zone());
    at.strftime("%Y-%m-%dT%H:%M:%S%z").to_string()
}

/// Writes a duration as `4d 22h 21m `, with the trailing space that the documentation has.
fn elapsed(seconds: i64) -> String {
    let minutes = seconds.max(0) / 60;
    let mut text = String::new();
    let parts = [
        (minutes / 1440, 'd'),
        (minutes / 60 % 24, 'h'),
        (minutes % 60, 'm'),
    ];
    for (value, unit) in parts {
        if value > 0 || (unit == 'm' && text.is_empty()) {
            let written = write!(text, "{value}{unit} ");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
    }
    text
}

// === impl Page ===

impl Page {
    /// Returns the alerts, in order.
    pub fn ids(&self) -> Vec<AlertId> {
        self.items.iter().map(|item| item.alert.id()).collect()
    }

    /// `totalResults`.
    pub fn total_results(&self) -> usize {
        self.envelope.total_results
    }

    /// `totalPages`.
    pub fn total_pages(&self) -> usize {
        self.envelope.total_pages
    }

    /// Returns the document.
    pub fn to_json(&self, now: Timestamp) -> Vec<u8> {
        let document = Document {
            results: WrittenPage { page: self, now },
            envelope: &self.envelope,
        };
        to_bytes(&document, self.items.len() * (2048 + self.padding))
    }
}

impl Detail {
    /// Returns the document.
    pub fn to_json(&self, now: Timestamp) -> Vec<u8> {
        let written = Written {
            item: &self.item,
            now,
            offset_minutes: self.offset_minutes,
            detailed: true,
            padding: "",
        };
        to_bytes(&written, 2560)
    }
}

impl ClientPage {
    /// Returns the document.
    pub fn to_json(&self) -> Vec<u8> {
        to_bytes(self, self.results.len() * 160)
    }
}

/// Writes a document into a buffer of about the right size.
pub(super) fn to_bytes(document: &impl Serialize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 512);
    if let Err(error) = serde_json::to_writer(&mut bytes, document) {
        debug_assert!(false, "plain data can be written: {error}");
    }
    bytes
}

impl Serialize for WrittenPage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let padding = "x".repeat(self.page.padding);
        serializer.collect_seq(self.page.items.iter().map(|item| Written {
            item,
            now: self.now,
            offset_minutes: self.page.offset_minutes,
            detailed: false,
            padding: &padding,
        }))
    }
}

// === impl Written ===

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Item {
            alert,
            tenant,
            seed,
        } = self.item;
        let scene = Scene::of(*seed);
        let host = scene.host();
        let spec = alert.spec();
        let given = |text: fn(&super::alert::Spec) -> &Option<String>| {
            spec.and_then(|spec| text(spec).as_deref())
        };
        let name = given(|s| &s.resource_name).unwrap_or(&host.name);
        let kind = given(|s| &s.resource_type).unwrap_or(scene.resource_type());
        let metric = given(|s| &s.metric).unwrap_or(scene.metric());
        let group = alert.event_type == EventType::Inference;
        let date = |second| date(second, self.offset_minutes);
        let (created, updated) = (date(alert.created), date(alert.updated));
        let unique_id = alert.unique_id();
        // Both spellings are documented.
        let event_type = match alert.event_type {
            EventType::Inference if seed.is_multiple_of(2) => "INFERENCE",
            other => other.name(),
        };
        let view = AlertView {
            unique_id: &unique_id,
            subject: match given(|s| &s.subject) {
                Some(text) => text.into(),
                None if group => scene.inference_subject(),
                None => scene.subject(name).into(),
            },
            description: self.detailed.then(|| match given(|s| &s.description) {
                Some(text) => text.into(),
                None if group => scene.inference_subject(),
                None => scene.description(name).into(),
            }),
            current_state: alert.state,
            old_state: self.detailed.then_some(alert.old_state),
            service_name: (!group).then_some(metric),
            acknowledged: alert.status == Status::Acknowledged,
            suppressed: alert.status == Status::Suppressed,
            permanently_suppressed: false,
            closed: alert.status == Status::Closed,
            ticketed: alert.incident().is_some(),
            client_unique_id: &tenant.id,
            alert_type: given(|s| &s.alert_type).unwrap_or(scene.alert_type()),
            app: given(|s| &s.app).unwrap_or(scene.app()),
            component: match given(|s| &s.component) {
                Some(text) => text.into(),
                None if group => scenery::uuid(seed ^ 5).into(),
                None => scene.component().into(),
            },
            problem_area: match given(|s| &s.problem_area) {
                None => (!group).then_some(scene.problem_area()),
                given => given,
            },
            alert_time: &created,
            device: (!group).then_some(DeviceView {
                id: &host.id,
                name,
                host_name: name,
                ip_address: &host.address,
                r#type: "DEVICE",
                alias_name: "",
                resource_name: name,
                resource_type: kind,
            }),
            resource: match group {
                true => ResourceView::Group {
                    name: &tenant.name,
                    r#type: "CLIENT",
                    meta_data: Map::new(),
                },
                false => ResourceView::Machine {
                    id: &host.id,
                    host_name: name,
                    ip_address: &host.address,
                    r#type: kind,
                    alias_name: "",
                    name,
                    resource_name: name,
                    consoles: [],
                    resource_type: kind,
                    frequency: 0,
                    paused: false,
                    deleted: false,
                    validate_ssl: false,
                    port: 0,
                    encrypted: false,
                    timeout: 0,
                    days: 0,
                    ts: 0,
                    client_id: 0,
                    location_offset: 0,
                    total_locations: 0,
                    receiver_host_port: 0,
                },
            },
            repeat_count: alert.repeats.to_string(),
            tenant_id: tenant.number,
            status: alert.status,
            priority: alert.priority.name(),
            elapsed_time_string: elapsed(self.now.as_second() - alert.created),
            healed_time_string: (alert.state == State::Ok)
                .then(|| elapsed(alert.updated - alert.created)),
            created_date: &created,
            updated_time: &updated,
            rba: false,
            tenant_name: &tenant.name,
            managed_by_ops_ramp: scene.managed(),
            incident_id: alert.incident().filter(|_| self.detailed),
            acted_ts: 0,
            event_type,
            metric: (!group).then_some(metric),
            inference_id: match alert.event_type {
                EventType::Alert => 0,
                EventType::Rca | EventType::Inference => seed % 9000 + 1,
            },
            status_history: History {
                created: &created,
                alert,
                offset_minutes: self.offset_minutes,
            },
            padding: self.padding,
        };
        match spec {
            Some(spec) if !spec.members.is_empty() => {
                let mut value = serde_json::to_value(view).map_err(S::Error::custom)?;
                if let Value::Object(object) = &mut value {
                    object.extend(spec.members.clone());
                }
                value.serialize(serializer)
            }
            _ => view.serialize(serializer),
        }
    }
}

// === impl History ===

impl Serialize for History<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("createdBy", "system")?;
        map.serialize_entry("createdTime", self.created)?;
        let stations = [
            (Status::Acknowledged, "acknowledgedBy", "acknowledgedTime"),
            (Status::Suppressed, "suppressedBy", "suppressedTime"),
            (Status::Ticketed, "ticketedBy", "ticketedTime"),
            (Status::Closed, "closedBy", "closedTime"),
        ];
        for (status, by, time) in stations {
            if let Some(at) = self.alert.reached(status) {
                // The trailing space is in the documentation.
                map.serialize_entry(by, "opsramp_system_user ")?;
                map.serialize_entry(time, &date(at, self.offset_minutes))?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_an_offset_without_a_colon() {
        assert_eq!(date(1_456_305_587, 0), "2016-02-24T09:19:47+0000");
        assert_eq!(date(1_456_305_587, 330), "2016-02-24T14:49:47+0530");
        assert_eq!(date(1_456_305_587, -90), "2016-02-24T07:49:47-0130");
    }

    #[test]
    fn elapsed_time_is_written_as_documented() {
        assert_eq!(elapsed(((4 * 24 + 22) * 60 + 21) * 60), "4d 22h 21m ");
        assert_eq!(elapsed((64 * 24 * 60 + 59) * 60), "64d 59m ");
        assert_eq!(elapsed(12), "0m ");
        assert_eq!(elapsed(-12), "0m ");
    }
}
