//! Prometheus' text format 0.0.4, written straight into one buffer.
//!
//! This module knows the format's grammar and nothing of what is counted. A family's `HELP` and
//! `TYPE` lines are written with its first sample, so a family without samples leaves no trace.

use std::fmt::{self, Write as _};

use prometheus::{TextEncoder, proto::MetricFamily};

use super::{
    catalog::{Family, Kind},
    cells::HistogramValue,
};

/// An exposition under construction.
#[derive(Debug)]
pub(super) struct Exposition {
    text: String,
}

/// Writes the samples of one family.
#[derive(Debug)]
pub(super) struct Samples<'a> {
    text: &'a mut String,
    family: &'a Family,
    begun: bool,
}

/// Labels as they are written between the braces, escaped once for all samples that carry them.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(String);

// === impl Exposition ===

impl Exposition {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
        }
    }

    pub(super) fn family<'a>(&'a mut self, family: &'a Family) -> Samples<'a> {
        Samples {
            text: &mut self.text,
            family,
            begun: false,
        }
    }

    /// Writes a family that a registry has gathered.
    pub(super) fn put_gathered(&mut self, family: MetricFamily) {
        TextEncoder::new()
            .encode_utf8(&[family], &mut self.text)
            .expect("a gathered family has a name and samples");
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

// === impl Samples ===

impl Samples<'_> {
    /// Writes a sample. The value must display as a finite number.
    pub(super) fn put(&mut self, labels: &Labels, value: impl fmt::Display) {
        self.sample("", labels, "", value);
    }

    /// Writes a histogram's samples.
    pub(super) fn put_histogram<const N: usize>(
        &mut self,
        labels: &Labels,
        value: &HistogramValue<N>,
    ) {
        let mut bound = String::new();
        for (upper, count) in value.buckets {
            bound.clear();
            write_infallibly(&mut bound, format_args!("le=\"{upper}\""));
            self.sample("_bucket", labels, &bound, count);
        }
        self.sample("_bucket", labels, "le=\"+Inf\"", value.count);
        self.sample("_sum", labels, "", value.sum);
        self.sample("_count", labels, "", value.count);
    }

    fn sample(&mut self, suffix: &str, labels: &Labels, more: &str, value: impl fmt::Display) {
        if !self.begun {
            self.begin();
        }
        self.text.push_str(self.family.name);
        self.text.push_str(suffix);
        let comma = if labels.0.is_empty() || more.is_empty() {
            ""
        } else {
            ","
        };
        if !labels.0.is_empty() || !more.is_empty() {
            for part in ["{", &labels.0, comma, more, "}"] {
                self.text.push_str(part);
            }
        }
        write_infallibly(self.text, format_args!(" {value}\n"));
    }

    fn begin(&mut self) {
        self.begun = true;
        let Family { name, help, .. } = self.family;
        let kind = match self.family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        write_infallibly(
            self.text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
    }
}

// === impl Labels ===

impl Labels {
    /// Returns these labels with their values, in this order.
    pub(super) fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut labels = Self::default();
        for (name, value) in pairs {
            labels.push(name, value);
        }
        labels
    }

    /// Returns the same labels and one more.
    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut labels = Self(String::with_capacity(
            self.0.len() + name.len() + value.len() + 4,
        ));
        labels.0.push_str(&self.0);
        labels.push(name, value);
        labels
    }

    fn push(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        self.0.push('"');
    }
}

fn write_infallibly(text: &mut String, what: fmt::Arguments<'_>) {
    text.write_fmt(what)
        .expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static FAMILY: Family = Family {
        name: "some_gauge",
        kind: Kind::Gauge,
        labels: &["a", "b"],
        help: "Some help.",
    };

    #[test]
    fn a_family_without_samples_leaves_no_trace() {
        let mut exposition = Exposition::with_capacity(0);
        exposition.family(&FAMILY);
        assert_eq!(exposition.into_text(), "");
    }

    #[test]
    fn labels_are_escaped_and_the_header_comes_once() {
        let mut exposition = Exposition::with_capacity(0);
        let mut samples = exposition.family(&FAMILY);
        samples.put(&Labels::new([("a", "x\"\\\n")]).with("b", "ü"), 1.5);
        samples.put(&Labels::default(), 2u64);
        assert_eq!(
            exposition.into_text(),
            "# HELP some_gauge Some help.\n# TYPE some_gauge gauge\n\
             some_gauge{a=\"x\\\"\\\\\\n\",b=\"ü\"} 1.5\nsome_gauge 2\n"
        );
    }

    proptest! {
        #[test]
        fn any_value_stays_on_its_line_and_between_its_quotes(value: String) {
            let Labels(text) = Labels::new([("a", value.as_str())]);
            let inner = text.strip_prefix("a=\"").unwrap().strip_suffix('"').unwrap();
            prop_assert!(!inner.contains('\n'));
            let mut back = String::new();
            let mut characters = inner.chars();
            while let Some(character) = characters.next() {
                prop_assert_ne!(character, '"');
                back.push(match character {
                    '\\' => match characters.next() {
                        Some('n') => '\n',
                        Some(other) => other,
                        None => panic!("ends in the middle of an escape"),
                    },
                    other => other,
                });
            }
            prop_assert_eq!(back, value);
        }
    }
}
