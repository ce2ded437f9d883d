//! An alert's fields as a state store keeps them: a JSON array of their values. Their names would be
//! nearly half of it.

use std::io::Write as _;

use super::{AlertFields, json};

const NONE: &[u8] = b"null";

impl AlertFields<'_> {
    /// Appends the form in which they are stored: the values in the order in which the fields are
    /// declared. The description, the longest part, is left out: nobody reads it from there.
    pub fn write_stored(&self, out: &mut Vec<u8>) {
        let Self {
            state,
            status,
            message,
            description: _,
            metric,
            component,
            problem_area,
            alert_type,
            event_type,
            source,
            priority,
            resource_id,
            resource_name,
            resource_type,
            resource_ip,
            client_id,
            client_name,
            incident_id,
            inference_id,
            repeat_count,
            created_at,
            updated_at,
        } = self;
        out.push(b'[');
        for text in [
            state,
            status,
            message,
            &None,
            metric,
            component,
            problem_area,
            alert_type,
            event_type,
            source,
            priority,
            resource_id,
            resource_name,
            resource_type,
            resource_ip,
            client_id,
            client_name,
            incident_id,
        ] {
            match text {
                Some(text) => json::push_string(out, text),
                None => out.extend_from_slice(NONE),
            }
            out.push(b',');
        }
        // A vector takes whatever is written.
        for number in [inference_id, repeat_count] {
            match number {
                Some(number) => drop(write!(out, "{number}")),
                None => out.extend_from_slice(NONE),
            }
            out.push(b',');
        }
        for time in [created_at, updated_at] {
            match time {
                Some(time) => drop(write!(out, "\"{time}\"")),
                None => out.extend_from_slice(NONE),
            }
            out.push(b',');
        }
        out.pop();
        out.push(b']');
    }
}

impl AlertFields<'static> {
    /// Reads what [`AlertFields::write_stored`] wrote.
    ///
    /// # Errors
    /// Where it is nothing of that kind.
    pub fn from_stored(stored: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{bare, full};

    fn stored(fields: &AlertFields<'_>) -> String {
        let mut out = Vec::new();
        fields.write_stored(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// What this says is in people's state files: values may be added at the end, no more.
    #[test]
    fn the_stored_form_is_the_values_in_their_order() {
        insta::assert_snapshot!(stored(&full().fields), @r#"["Critical","Ticketed","CPU \"load\" = 99%\nnext line",null,"system.cpu.load","cpu0","CPU","Monitoring","ALERT","OPSRAMP","P1","r-1","web-01","Linux","10.0.0.1","client_14","Rétail","INC-7",42,3,"2026-03-01T10:00:00Z","2026-03-01T10:20:00.5Z"]"#);
        insta::assert_snapshot!(stored(&bare().fields), @"[null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null]");
    }

    #[test]
    fn what_was_stored_is_read_again_but_for_the_description() {
        for fields in [full().fields, bare().fields] {
            let again = AlertFields::from_stored(stored(&fields).as_bytes()).unwrap();
            let description = None;
            assert_eq!(
                again,
                AlertFields {
                    description,
                    ..fields
                }
            );
        }
    }

    #[test]
    fn what_is_shorter_lacks_the_values_at_its_end() {
        let fields = AlertFields::from_stored(br#"["Critical",null,"a message"]"#).unwrap();
        let some = |text: &'static str| Some(text.into());
        let (state, message) = (some("Critical"), some("a message"));
        assert_eq!(
            fields,
            AlertFields {
                state,
                message,
                ..AlertFields::default()
            }
        );
    }
}
