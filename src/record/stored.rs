//! An alert's fields as a state store keeps them: a JSON array of their values. The names of the
//! fields would make up nearly half of the size, so they are left out.

use super::{AlertFields, RFC_3339, json};

impl AlertFields<'_> {
    /// Appends the stored form of the fields: their values, in the order in which the fields are
    /// declared. The description, the longest part, is left out, because nobody reads it from the
    /// store.
    pub fn write_stored(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for text in [
            &self.state,
            &self.status,
            &self.message,
            &None,
            &self.metric,
            &self.component,
            &self.problem_area,
            &self.alert_type,
            &self.event_type,
            &self.source,
            &self.priority,
            &self.resource_id,
            &self.resource_name,
            &self.resource_type,
            &self.resource_ip,
            &self.client_id,
            &self.client_name,
            &self.incident_id,
        ] {
            push(out, text.as_ref(), |out, text| json::push_string(out, text));
        }
        for number in [self.inference_id, self.repeat_count] {
            push(out, number, json::push_number);
        }
        for time in [self.created_at, self.updated_at] {
            push(out, time, |out, time| {
                out.push(b'"');
                // Writing to a vector cannot fail.
                RFC_3339.print_timestamp(&time, &mut *out).ok();
                out.push(b'"');
            });
        }
        out.pop();
        out.push(b']');
    }
}

impl AlertFields<'static> {
    /// Reads the form that [`AlertFields::write_stored`] wrote.
    ///
    /// # Errors
    /// If `stored` has another form.
    pub fn from_stored(stored: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(stored)
    }
}

/// Appends a value and a comma.
fn push<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b',');
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

    /// State files of users hold this form: values may be added at its end, and nothing else may
    /// change.
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
