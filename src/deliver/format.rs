//! Formats of a line: renders the journal's records as readers of log lines expect them.
//!
//! JSON is the journal's own form and is handed on byte for byte. logfmt has the same keys in the
//! same order. A logfmt value is quoted wherever a parser might stumble, in the way of a JSON
//! string, which is how Go's logfmt and Loki parse it. Whatever the values are, a record is one
//! line.

use crate::{
    record::{Record, Value, json},
    store::Pending,
};

use super::{Format, sink::Refusal};

/// The lines of some events in one buffer, each with its line break.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where each event's line ends; an event without a line ends where the one before it does.
    ends: Vec<usize>,
    /// Events that have no line, because their body is no record.
    refused: Vec<(usize, Refusal)>,
}

// === impl Format ===

impl Format {
    /// The other format.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Json => Self::Logfmt,
            Self::Logfmt => Self::Json,
        }
    }
}

// === impl Lines ===

impl Lines {
    pub(super) fn render(format: Format, events: &[Pending]) -> Self {
        let mut lines = Self {
            bytes: Vec::with_capacity(events.iter().map(|e| e.event.body.len() + 1).sum()),
            ends: Vec::with_capacity(events.len()),
            refused: Vec::new(),
        };
        for (index, Pending { event, .. }) in events.iter().enumerate() {
            match format {
                Format::Json => {
                    lines.bytes.extend_from_slice(&event.body);
                    lines.bytes.push(b'\n');
                }
                Format::Logfmt => match Record::from_json(&event.body) {
                    Ok(record) => {
                        push_logfmt(&mut lines.bytes, &record);
                        lines.bytes.push(b'\n');
                    }
                    Err(error) => lines
                        .refused
                        .push((index, Refusal::unreadable(event.event_id, &error))),
                },
            }
            lines.ends.push(lines.bytes.len());
        }
        lines
    }

    /// All lines, one after the other.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of events, with or without a line.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The line of an event with its line break; empty if the event has no line.
    pub(super) fn line(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index]]
    }

    /// Where the line of an event begins in [`Self::bytes`].
    pub(super) fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// How many events, from the first on, have their whole line within the first `written` bytes.
    pub(super) fn whole_within(&self, written: usize) -> usize {
        self.ends.partition_point(|&end| end <= written)
    }

    /// Takes the refusals of those of the first `events` events that have no line.
    pub(super) fn refused_among(&mut self, events: usize) -> Vec<Refusal> {
        let among = self.refused.partition_point(|&(index, _)| index < events);
        self.refused
            .drain(..among)
            .map(|(_, refusal)| refusal)
            .collect()
    }
}

/// Appends a record in logfmt, without a line break.
fn push_logfmt(out: &mut Vec<u8>, record: &Record<'_>) {
    let begin = out.len();
    record.visit(|key, value| {
        if out.len() > begin {
            out.push(b' ');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        match value {
            Value::Text(text) if is_bare(text) => out.extend_from_slice(text.as_bytes()),
            Value::Text(text) => json::push_string(out, text),
            Value::Number(number) => json::push_number(out, number),
            Value::Json(raw) => json::push_string(out, raw.get()),
        }
    });
}

/// Whether every parser reads the unquoted `text` as one value.
fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'=' | b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        deliver::tests::pending,
        record::tests::{any_record, bare, full, is_one_line},
    };

    fn logfmt(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        push_logfmt(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    /// Reads a line as Go's logfmt does: a bare value ends at a space, a quoted one is JSON.
    fn parse(line: &str) -> Vec<(String, String)> {
        let mut rest = line;
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            let (key, value) = rest.split_once('=').unwrap();
            let (value, after) = if value.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(value).into_iter::<String>();
                let text = values.next().unwrap().unwrap();
                (text, &value[values.byte_offset()..])
            } else {
                let end = value.find(' ').unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            };
            pairs.push((key.to_owned(), value));
            rest = after.strip_prefix(' ').unwrap_or(after);
        }
        pairs
    }

    fn pairs(record: &Record<'_>) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        record.visit(|key, value| {
            let value = match value {
                Value::Text(text) => text.to_owned(),
                Value::Number(number) => number.to_string(),
                Value::Json(raw) => raw.get().to_owned(),
            };
            pairs.push((key.to_owned(), value));
        });
        pairs
    }

    #[test]
    fn logfmt_has_the_keys_of_the_contract_and_quotes_what_needs_it() {
        insta::assert_snapshot!(logfmt(&full()), @r##"timestamp=2026-03-01T10:20:30.123Z level=critical severity=critical event=changed event_id=3f643541-2328-5904-8305-86dd246f43ab account=acme tenant=retail search=open alert_id=8005 state=Critical status=Ticketed message="CPU \"load\" = 99%\nnext line" previous_state=Warning previous_status=New reason=acknowledged description="C:\\temp\tis full" metric=system.cpu.load component=cpu0 problem_area=CPU alert_type=Monitoring event_type=ALERT source=OPSRAMP priority=P1 resource_id=r-1 resource_name=web-01 resource_type=Linux resource_ip=10.0.0.1 client_id=client_14 client_name="Rétail" incident_id=INC-7 inference_id=42 repeat_count=3 created_at=2026-03-01T10:00:00Z updated_at=2026-03-01T10:20:00.5Z alert="{\"uniqueId\":\"8005\",\"n\":1.10}""##);
        insta::assert_snapshot!(logfmt(&bare()), @r##"timestamp=2026-03-01T10:20:30.000Z level=unknown severity=unknown event=opened event_id=0ea1643a-8f28-5c30-a21b-021a3740bfbf account=acme tenant=retail search=open alert_id=8005 state="" status="" message="""##);
    }

    #[test]
    fn json_is_the_journal_byte_for_byte() {
        let lines = Lines::render(Format::Json, &[pending(&full()), pending(&bare())]);
        let expected = [full().to_json(), bare().to_json(), Vec::new()].join(&b'\n');
        assert_eq!(lines.bytes(), expected);
        assert_eq!(lines.line(1), [&bare().to_json()[..], b"\n"].concat());
    }

    #[test]
    fn an_event_that_is_no_record_is_refused_and_its_neighbours_are_not() {
        let mut broken = pending(&full());
        broken.event.body = Bytes::from_static(b"{}");
        let mut lines = Lines::render(
            Format::Logfmt,
            &[pending(&full()), broken, pending(&bare())],
        );
        assert_eq!(lines.line(1), b"");
        assert_eq!(lines.line(2), format!("{}\n", logfmt(&bare())).as_bytes());
        assert!(lines.refused_among(1).is_empty());
        assert_eq!(lines.refused_among(3).len(), 1);
        assert!(lines.refused_among(3).is_empty());
    }

    proptest! {
        #[test]
        fn every_logfmt_line_is_one_line_and_parses_back_equal(record in any_record()) {
            let line = logfmt(&record);
            prop_assert!(is_one_line(&line), "{line:?}");
            prop_assert_eq!(parse(&line), pairs(&record));
        }
    }
}
