//! The Alert object, read leniently and mostly without copying.
//!
//! Only `uniqueId` is needed. Every other member may be missing, null, empty, of a neighbouring
//! type, or a number that is too large. An item that is no alert at all is counted, and does not
//! spoil its page.

use std::{borrow::Cow, fmt};

use jiff::Timestamp;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::value::RawValue;

use crate::excerpt::truncate;

/// An alert as the API gives it. Texts are `None` if the API gave nothing or an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alert<'a> {
    /// `uniqueId`.
    pub id: Cow<'a, str>,
    /// `subject`.
    pub subject: Text<'a>,
    /// `description`; only the page of one alert is sure to have it.
    pub description: Text<'a>,
    /// `currentState`: Ok, Warning, Critical, Info, in any case.
    pub state: Text<'a>,
    /// `status`: New, Acknowledged, Ticketed, Suppressed, Closed, Correlated, Ignored, Purged.
    pub status: Text<'a>,
    /// `serviceName`.
    pub service_name: Text<'a>,
    /// `metric`.
    pub metric: Text<'a>,
    /// `component`.
    pub component: Text<'a>,
    /// `problemArea`.
    pub problem_area: Text<'a>,
    /// `alertType`.
    pub alert_type: Text<'a>,
    /// `eventType`.
    pub event_type: Text<'a>,
    /// `app`: where the alert came from.
    pub app: Text<'a>,
    /// `priority`.
    pub priority: Text<'a>,
    /// `createdDate`, as given; see [`parse_time`].
    pub created_date: Text<'a>,
    /// `updatedTime`, as given.
    pub updated_time: Text<'a>,
    /// `repeatCount`.
    pub repeat_count: Text<'a>,
    /// `incidentId`.
    pub incident_id: Text<'a>,
    /// `inferenceId`; 0 and false mean none.
    pub inference_id: Text<'a>,
    /// `clientUniqueId`.
    pub client_id: Text<'a>,
    /// `tenantName`.
    pub client_name: Text<'a>,
    /// `acknowledged`, for the case that `status` says nothing.
    pub acknowledged: bool,
    /// `suppressed` or `permanentlySuppressed`.
    pub suppressed: bool,
    /// `closed`.
    pub closed: bool,
    /// `ticketed`.
    pub ticketed: bool,
    /// `device`.
    pub device: Resource<'a>,
    /// `resource`.
    pub resource: Resource<'a>,
}

/// A `device` or `resource`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// `id`.
    pub id: Text<'a>,
    /// `name`.
    pub name: Text<'a>,
    /// `resourceName`.
    pub resource_name: Text<'a>,
    /// `hostName`.
    pub host_name: Text<'a>,
    /// `ipAddress`.
    pub ip_address: Text<'a>,
    /// `type`.
    pub kind: Text<'a>,
    /// `resourceType`.
    pub resource_type: Text<'a>,
}

/// A text. `None` if it is missing, null, empty or of another type. Numbers and booleans are read
/// as texts.
pub type Text<'a> = Option<Cow<'a, str>>;

/// The longest `uniqueId`, in bytes. Real ids are numbers or UUIDs.
const MAX_ID: usize = 512;
/// The longest subject, in bytes. Container runtimes split lines at 8 to 16 KiB.
const MAX_SUBJECT: usize = 4 * 1024;
/// The longest other text, in bytes. A longer text is cut and marked. The description has a limit of
/// its own, which can be configured.
const MAX_TEXT: usize = 1024;
/// The longest state, status or client's name, in bytes. These are kept in memory, and become
/// labels.
const MAX_SHORT_TEXT: usize = 256;
/// The number from which on an `f64` cannot represent all integers.
const MAX_EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
/// The number from which on a date counts milliseconds, not seconds. In seconds, this number would
/// be in the year 5138.
const MIN_MILLISECONDS: i64 = 100_000_000_000;

/// Whether a text can be an id. An id with U+0000 could not be stored in every database.
pub(super) fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && !text.contains('\0')
}

/// Reads a date of the API: `2016-02-24T01:15:00+0000` with any offset, RFC 3339, or
/// milliseconds or seconds since the epoch. The number 0 stands for no date: the API writes so in
/// `actedTs`.
#[must_use]
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse().ok()? {
            0 => None,
            number @ ..MIN_MILLISECONDS => Timestamp::from_second(number).ok(),
            number => Timestamp::from_millisecond(number).ok(),
        };
    }
    text.parse().ok()
}

// === impl Alert ===

impl Alert<'_> {
    /// Returns why an alert with this status is no longer open, as a word for the record: the
    /// status in lower case, otherwise the flag that is set. `None` if nobody has acted on the
    /// alert.
    #[must_use]
    pub fn departure_reason(&self) -> Option<String> {
        let status = self.status.as_deref().map(str::trim).unwrap_or_default();
        if !status.is_empty()
            && !["new", "open"]
                .iter()
                .any(|new| status.eq_ignore_ascii_case(new))
        {
            return Some(
                status
                    .to_lowercase()
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join("_"),
            );
        }
        let flags = [
            (self.closed, "closed"),
            (self.ticketed, "ticketed"),
            (self.suppressed, "suppressed"),
            (self.acknowledged, "acknowledged"),
        ];
        flags
            .iter()
            .find(|(set, _)| *set)
            .map(|(_, word)| (*word).to_owned())
    }
}

/// Reads an alert. `None` if the JSON is valid but is no alert.
pub(super) fn read(json: &str) -> Result<Option<Alert<'_>>, serde_json::Error> {
    let read = |by_members| {
        let mut alert = Alert::default();
        let mut deserializer = serde_json::Deserializer::from_str(json);
        if by_members {
            deserializer.deserialize_map(ByMembers(&mut alert))?;
        } else {
            Reader(&mut alert).deserialize(&mut deserializer)?;
        }
        deserializer.end()?;
        Ok(is_id(&alert.id).then_some(alert))
    };
    read(false).or_else(|error| read(true).map_err(|_| error))
}

/// An object of which some members are read.
pub(super) trait Object<'a> {
    /// Reads the value of the member `key`, of whatever type it is.
    fn read_member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;

    /// Takes in a text that comes in place of the object.
    fn read_text(&mut self, _: &str) {}
}

/// Reads any JSON into an object that is empty so far.
pub(super) struct Reader<'s, T>(pub(super) &'s mut T);

impl<'de, T: Object<'de>> DeserializeSeed<'de> for Reader<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Object<'de>> Visitor<'de> for Reader<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            self.0.read_member(&key, &mut map)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.read_text(text);
        Ok(())
    }
}

impl<'a> Object<'a> for Alert<'a> {
    fn read_member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "uniqueId" => self.id = text(map)?.unwrap_or_default(),
            "subject" => self.subject = cut_text(map, MAX_SUBJECT)?,
            "description" => self.description = uncut_text(map)?,
            "currentState" => self.state = short_text(map)?,
            "status" => self.status = short_text(map)?,
            "serviceName" => self.service_name = text(map)?,
            "metric" => self.metric = text(map)?,
            "component" => self.component = text(map)?,
            "problemArea" => self.problem_area = text(map)?,
            "alertType" => self.alert_type = text(map)?,
            "eventType" => self.event_type = text(map)?,
            "app" => self.app = text(map)?,
            "priority" => self.priority = text(map)?,
            "createdDate" => self.created_date = text(map)?,
            "updatedTime" => self.updated_time = text(map)?,
            "repeatCount" => self.repeat_count = text(map)?,
            "incidentId" => self.incident_id = text(map)?,
            "inferenceId" => self.inference_id = text(map)?,
            "clientUniqueId" => self.client_id = text(map)?,
            "tenantName" => self.client_name = text(map)?,
            "acknowledged" => self.acknowledged = flag(map)?,
            "suppressed" | "permanentlySuppressed" => self.suppressed |= flag(map)?,
            "closed" => self.closed = flag(map)?,
            "ticketed" => self.ticketed = flag(map)?,
            "device" => self.device = map.next_value::<MaybeResource<'_>>()?.0,
            "resource" => self.resource = map.next_value::<MaybeResource<'_>>()?.0,
            _ => ignore(map)?,
        }
        Ok(())
    }
}

/// Reads an alert member by member. This is slower, but a member that cannot be read, such as
/// `1e400`, counts as missing.
struct ByMembers<'s, 'a>(&'s mut Alert<'a>);

impl<'de> Visitor<'de> for ByMembers<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an alert")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Reader(self.0).visit_map(Members(map))
    }
}

struct Members<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        let member: &RawValue = self.0.next_value()?;
        // A member that can be read as a resource can be read as any other type of a member.
        let readable = serde_json::from_str::<MaybeResource<'_>>(member.get()).is_ok();
        let text = if readable { member.get() } else { "null" };
        seed.deserialize(&mut serde_json::Deserializer::from_str(text))
            .map_err(A::Error::custom)
    }
}

/// Reads the value of a member as a text.
pub(super) fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Text<'de>, A::Error> {
    cut_text(map, MAX_TEXT)
}

/// Reads the value of a member that becomes a label, as a shorter text.
pub(super) fn short_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Text<'de>, A::Error> {
    cut_text(map, MAX_SHORT_TEXT)
}

fn cut_text<'de, A: MapAccess<'de>>(map: &mut A, max: usize) -> Result<Text<'de>, A::Error> {
    Ok(uncut_text(map)?.map(|text| truncate(text, max)))
}

fn uncut_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Text<'de>, A::Error> {
    map.next_value::<Lenient<'de>>().map(|Lenient(text)| text)
}

/// Skips the value of a member.
pub(super) fn ignore<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// Reads a member that is true or false. A value that is neither counts as false.
fn flag<'de, A: MapAccess<'de>>(map: &mut A) -> Result<bool, A::Error> {
    Ok(boolean(map)? == Some(true))
}

/// Reads a member that is true or false, in whatever way it is written. `None` if it is neither.
pub(super) fn boolean<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<bool>, A::Error> {
    let is = |text: &str, words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    Ok(text(map)?.and_then(|text| match text.trim() {
        yes if is(yes, &["true", "1", "yes"]) => Some(true),
        no if is(no, &["false", "0", "no"]) => Some(false),
        _ => None,
    }))
}

/// A key, borrowed if it has no escapes.
pub(super) struct Key<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// A [`Text`] that can be read from any JSON value.
struct Lenient<'a>(Text<'a>);

impl<'de> Deserialize<'de> for Lenient<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Lenient<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Lenient((!text.is_empty()).then_some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Lenient(
                    (!text.is_empty()).then(|| Cow::Owned(text.to_owned())),
                ))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Lenient(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Lenient(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                // From `MAX_EXACT` on, several integers become the same `f64`, so two ids could
                // become the same.
                let is_exact = number.abs() < MAX_EXACT;
                Ok(Lenient(is_exact.then(|| Cow::Owned(number.to_string()))))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Lenient(Some(Cow::Borrowed(if value {
                    "true"
                } else {
                    "false"
                }))))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Lenient(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Lenient(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Lenient(None))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

struct MaybeResource<'a>(Resource<'a>);

impl<'de> Deserialize<'de> for MaybeResource<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut resource = Resource::default();
        Reader(&mut resource).deserialize(deserializer)?;
        Ok(Self(resource))
    }
}

impl<'a> Object<'a> for Resource<'a> {
    fn read_member<A: MapAccess<'a>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = text(map)?,
            "name" => self.name = text(map)?,
            "resourceName" => self.resource_name = text(map)?,
            "hostName" => self.host_name = text(map)?,
            "ipAddress" => self.ip_address = text(map)?,
            "type" => self.kind = text(map)?,
            "resourceType" => self.resource_type = text(map)?,
            _ => ignore(map)?,
        }
        Ok(())
    }

    fn read_text(&mut self, name: &str) {
        self.name = (!name.is_empty()).then(|| Cow::Owned(truncate(name, MAX_TEXT).into_owned()));
    }
}

// === impl Resource ===

impl<'a> Resource<'a> {
    /// `name`, else `resourceName`, else `hostName`.
    #[must_use]
    pub fn best_name(&self) -> Option<&Cow<'a, str>> {
        self.name
            .as_ref()
            .or(self.resource_name.as_ref())
            .or(self.host_name.as_ref())
    }

    /// `resourceType`, else `type`.
    #[must_use]
    pub fn best_type(&self) -> Option<&Cow<'a, str>> {
        self.resource_type.as_ref().or(self.kind.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(json: &str) -> Alert<'_> {
        read(json).unwrap().unwrap()
    }

    #[test]
    fn only_the_id_is_needed() {
        assert_eq!(alert(r#"{"uniqueId": "7"}"#).id, "7");
        assert_eq!(alert(r#"{"uniqueId": 7}"#).id, "7");
        for json in [
            "{}",
            "null",
            "7",
            "-7",
            "7.5",
            "true",
            "\"7\"",
            "[[1], 2]",
            r#"{"uniqueId": ""}"#,
            r#"{"uniqueId": "7\u0000"}"#,
            r#"{"uniqueId": 1e400}"#,
        ] {
            assert_eq!(read(json).unwrap(), None, "{json}");
        }
    }

    #[test]
    fn members_of_a_neighbouring_type_do_not_spoil_an_alert() {
        for value in [
            "null",
            "\"\"",
            "[1, {}]",
            "{\"a\": [1]}",
            "12",
            "-3",
            "1.5",
            "1e400",
            "[-1e400]",
            "{\"id\": 1e400, \"x\": [1e400]}",
            "true",
            "\"x\"",
        ] {
            for name in [
                "subject",
                "description",
                "currentState",
                "status",
                "repeatCount",
                "inferenceId",
                "acknowledged",
                "closed",
                "device",
                "resource",
                "createdDate",
                "statusHistory",
                "new",
            ] {
                let json = format!(r#"{{"{name}": {value}, "uniqueId": "7"}}"#);
                assert_eq!(alert(&json).id, "7", "{json}");
            }
        }
    }

    #[test]
    fn a_number_that_is_too_large_costs_no_more_than_itself() {
        let json = r#"{"status": "N\u0065w", "inferenceId": 1e400, "device": {"name": "a"},
            "resource": {"id": 1e999, "name": "b"}, "uniqueId": 7, "repeatCount": 3}"#;
        let expected =
            r#"{"status": "New", "device": {"name": "a"}, "uniqueId": "7", "repeatCount": 3}"#;
        assert_eq!(alert(json), alert(expected));
        read(r#"{"inferenceId": 1e400, "uniqueId": 7"#).unwrap_err();
    }

    #[test]
    fn no_text_is_longer_than_what_is_kept_of_it() {
        let long = |length| "é".repeat(length / 2);
        let json = |name: &str, length| {
            let text = long(length);
            format!(r#"{{"{name}": "{text}", "uniqueId": "7"}}"#)
        };
        let subject = |length| alert(&json("subject", length)).subject.unwrap().len();
        assert_eq!(subject(MAX_SUBJECT), MAX_SUBJECT);
        assert!(subject(MAX_SUBJECT + 2) <= MAX_SUBJECT);
        let metric = json("metric", 60_000);
        let escaped = metric.replacen('é', "\\n", 1);
        for json in [metric, escaped, json("device", 60_000)] {
            let alert = alert(&json);
            let text = alert.metric.or(alert.device.name).unwrap();
            assert!(
                text.len() <= MAX_TEXT && text.ends_with(" bytes]"),
                "{text}"
            );
        }
        let long_word = json("currentState", MAX_SHORT_TEXT + 2);
        assert!(alert(&long_word).state.unwrap().len() <= MAX_SHORT_TEXT);
        let description = json("description", 60_000);
        assert_eq!(alert(&description).description.unwrap().len(), 60_000);

        let id = |length| format!(r#"{{"uniqueId": "{}"}}"#, "7".repeat(length));
        assert!(read(&id(MAX_ID)).unwrap().is_some());
        assert!(read(&id(MAX_ID + 1)).unwrap().is_none());
    }

    #[test]
    fn a_member_that_comes_twice_counts_as_it_came_last() {
        let alert = alert(r#"{"uniqueId": "7", "status": "New", "status": "Closed"}"#);
        assert_eq!(alert.status.as_deref(), Some("Closed"));
    }

    #[test]
    fn a_number_that_is_not_exact_is_no_id() {
        for (number, expected) in [
            ("18446744073709551615", Some("18446744073709551615")),
            ("18446744073709551616", None),
            ("1e19", None),
            ("7.0", Some("7")),
        ] {
            let json = format!(r#"{{"uniqueId": {number}}}"#);
            let alert = read(&json).unwrap();
            assert_eq!(alert.as_ref().map(|alert| &*alert.id), expected, "{number}");
        }
    }

    #[test]
    fn dates_are_read_in_every_form_that_the_api_uses() {
        let expected: Timestamp = "2016-02-24T01:15:00Z".parse().unwrap();
        for text in [
            "2016-02-24T01:15:00+0000",
            "2016-02-24T01:15:00Z",
            "2016-02-23T20:15:00-0500",
            "2016-02-24T06:45:00+05:30",
            " 2016-02-24T01:15:00.000+0000 ",
            "1456276500000",
            "1456276500",
        ] {
            assert_eq!(parse_time(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "0000-00-00",
            "0",
            "000",
            "99999999999999999999",
            "2016-02-24",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn the_reason_of_a_departure_is_its_status_else_its_flags() {
        let reason = |json: &str| alert(json).departure_reason();
        assert_eq!(
            reason(r#"{"uniqueId":"7","status":"Acknowledged"}"#).as_deref(),
            Some("acknowledged")
        );
        assert_eq!(
            reason(r#"{"uniqueId":"7","status":"In Progress "}"#).as_deref(),
            Some("in_progress")
        );
        assert_eq!(reason(r#"{"uniqueId":"7","status":"New"}"#), None);
        assert_eq!(reason(r#"{"uniqueId":"7"}"#), None);
        let flags = r#"{"uniqueId":"7","status":"New","ticketed":true,"acknowledged":"true"}"#;
        assert_eq!(reason(flags).as_deref(), Some("ticketed"));
        let suppressed = r#"{"uniqueId":"7","permanentlySuppressed":true,"suppressed":false}"#;
        assert_eq!(reason(suppressed).as_deref(), Some("suppressed"));
    }
}
