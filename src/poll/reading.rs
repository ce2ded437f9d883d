//! What the poller makes of an alert: the fields of its record, its digest, its group.

use std::borrow::Cow;

use jiff::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    opsramp::alert::{Alert, Text, parse_time},
    record::AlertFields,
    track::{GroupLabel, Sighting},
};

/// The longest value of a label, in bytes; a longer one is cut.
const MAX_LABEL: usize = 256;

/// Returns the alerts as [`crate::track`] sees them. A digest leaves out what changes with every
/// answer.
#[must_use]
pub fn sightings<'a>(alerts: &'a [Alert<'_>]) -> Vec<Sighting<'a>> {
    let mut strung = Vec::new();
    let sighting = |alert: &'a Alert<'_>| Sighting {
        id: &alert.id,
        digest: digest(alert, &mut strung),
        state: compared(&alert.state),
        status: compared(&alert.status),
    };
    alerts.iter().map(sighting).collect()
}

/// Returns a state or a status as it is compared, whether it comes from an answer or from the
/// store.
pub(super) fn compared<'a>(text: &'a Text<'_>) -> &'a str {
    word(text).trim()
}

/// Returns a hash of the alert's texts, which are concatenated in `strung`.
fn digest(alert: &Alert<'_>, strung: &mut Vec<u8>) -> u64 {
    let resource = [&alert.resource, &alert.device];
    let texts = [
        &alert.subject,
        &alert.description,
        &alert.state,
        &alert.status,
        &alert.service_name,
        &alert.metric,
        &alert.component,
        &alert.problem_area,
        &alert.alert_type,
        &alert.event_type,
        &alert.app,
        &alert.priority,
        &alert.created_date,
        &alert.updated_time,
        &alert.repeat_count,
        &alert.incident_id,
        &alert.inference_id,
        &alert.client_id,
        &alert.client_name,
    ];
    let of_resources = resource.into_iter().flat_map(|resource| {
        [
            &resource.id,
            &resource.name,
            &resource.resource_name,
            &resource.host_name,
            &resource.ip_address,
            &resource.kind,
            &resource.resource_type,
        ]
    });
    strung.clear();
    for text in texts.into_iter().chain(of_resources) {
        let text = word(text);
        // The lengths tell apart alerts whose texts are the same when concatenated.
        strung.extend_from_slice(&(text.len() as u64).to_le_bytes());
        strung.extend_from_slice(text.as_bytes());
    }
    xxh3_64(strung)
}

/// Returns the fields of the alert's record.
pub(super) fn fields<'a>(alert: &'a Alert<'_>) -> AlertFields<'a> {
    let resource = &alert.resource;
    let device = &alert.device;
    AlertFields {
        state: text(&alert.state),
        status: text(&alert.status),
        message: text(&alert.subject),
        description: text(&alert.description),
        metric: text(&alert.metric).or_else(|| text(&alert.service_name)),
        component: text(&alert.component),
        problem_area: text(&alert.problem_area),
        alert_type: text(&alert.alert_type),
        event_type: text(&alert.event_type),
        source: text(&alert.app),
        priority: text(&alert.priority),
        resource_id: text(&resource.id).or_else(|| text(&device.id)),
        resource_name: borrowed(resource.best_name()).or_else(|| borrowed(device.best_name())),
        resource_type: borrowed(resource.best_type()).or_else(|| borrowed(device.best_type())),
        resource_ip: text(&resource.ip_address).or_else(|| text(&device.ip_address)),
        client_id: text(&alert.client_id),
        client_name: text(&alert.client_name),
        incident_id: text(&alert.incident_id),
        inference_id: number(&alert.inference_id).filter(|id| *id > 0),
        repeat_count: number(&alert.repeat_count),
        created_at: time(&alert.created_date),
        updated_at: time(&alert.updated_time),
    }
}

/// Returns the alert's value for each label; empty if the alert has none.
pub(super) fn group<'a>(fields: &AlertFields<'a>, labels: &[GroupLabel]) -> Vec<Cow<'a, str>> {
    let value = |label: &GroupLabel| {
        let text = match label {
            GroupLabel::State => &fields.state,
            GroupLabel::Status => &fields.status,
            GroupLabel::Priority => &fields.priority,
            GroupLabel::Source => &fields.source,
            GroupLabel::AlertType => &fields.alert_type,
            GroupLabel::EventType => &fields.event_type,
            GroupLabel::ResourceType => &fields.resource_type,
            GroupLabel::Client => &fields.client_id,
        };
        let text = text.as_ref().map(trim).unwrap_or_default();
        match label {
            GroupLabel::State => known_state(text),
            _ => text,
        }
    };
    labels.iter().map(value).collect()
}

/// Returns the text as the value of a label.
fn trim<'a>(text: &Cow<'a, str>) -> Cow<'a, str> {
    fn trim(text: &str) -> &str {
        let text = text.trim();
        &text[..text.floor_char_boundary(MAX_LABEL)]
    }
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(trim(text)),
        Cow::Owned(text) => Cow::Owned(trim(text).to_owned()),
    }
}

/// Parses a time as the API writes it; `None` if it cannot be read.
pub(super) fn time(text: &Text<'_>) -> Option<Timestamp> {
    text.as_deref().and_then(parse_time)
}

/// Returns a known state in one spelling for the series: the API writes states in any case.
fn known_state(state: Cow<'_, str>) -> Cow<'_, str> {
    ["Critical", "Warning", "Info", "Ok"]
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(&state))
        .map_or(state, Cow::Borrowed)
}

fn word<'a>(text: &'a Text<'_>) -> &'a str {
    text.as_deref().unwrap_or_default()
}

fn text<'a>(text: &'a Text<'_>) -> Option<Cow<'a, str>> {
    borrowed(text.as_ref())
}

fn borrowed<'a>(text: Option<&'a Cow<'_, str>>) -> Option<Cow<'a, str>> {
    text.map(|text| Cow::Borrowed(&**text))
}

fn number(text: &Text<'_>) -> Option<u64> {
    text.as_deref()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert() -> Alert<'static> {
        Alert {
            id: "7".into(),
            subject: Some("Disk full".into()),
            state: Some("CRITICAL".into()),
            service_name: Some("Disk".into()),
            repeat_count: Some("2".into()),
            inference_id: Some("0".into()),
            created_date: Some("2026-03-01T10:40:47+0100".into()),
            device: crate::opsramp::alert::Resource {
                host_name: Some("fs3".into()),
                kind: Some("DEVICE".into()),
                ip_address: Some("192.0.2.15".into()),
                ..Default::default()
            },
            ..Alert::default()
        }
    }

    #[test]
    fn what_the_resource_lacks_comes_from_the_device() {
        let alert = alert();
        let fields = fields(&alert);
        assert_eq!(fields.resource_name.as_deref(), Some("fs3"));
        assert_eq!(fields.resource_type.as_deref(), Some("DEVICE"));
        assert_eq!(fields.resource_ip.as_deref(), Some("192.0.2.15"));
        assert_eq!(fields.metric.as_deref(), Some("Disk"));
        assert_eq!((fields.repeat_count, fields.inference_id), (Some(2), None));
        assert_eq!(
            fields.created_at.unwrap().to_string(),
            "2026-03-01T09:40:47Z"
        );
    }

    #[test]
    fn a_group_has_one_value_a_label_and_one_case_a_state() {
        let alert = alert();
        let fields = fields(&alert);
        let labels = [GroupLabel::State, GroupLabel::Priority];
        assert_eq!(group(&fields, &labels), ["Critical", ""]);
        let alert = Alert {
            app: Some("é".repeat(1000).into()),
            ..alert
        };
        let values = group(&super::fields(&alert), &[GroupLabel::Source]);
        assert_eq!(values, ["é".repeat(MAX_LABEL / 2)]);
    }

    #[test]
    fn a_digest_tells_apart_what_is_strung_together() {
        let one = Alert {
            subject: Some("ab".into()),
            description: Some("c".into()),
            ..alert()
        };
        let other = Alert {
            subject: Some("a".into()),
            description: Some("bc".into()),
            ..alert()
        };
        let alerts = [one.clone(), other, one];
        let [one, other, again] = sightings(&alerts)[..] else {
            panic!("three alerts");
        };
        assert_ne!(one.digest, other.digest);
        assert_eq!(one, again);
    }
}
