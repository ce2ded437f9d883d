//! YAML with places: a tree of nodes that remember line and column.
//!
//! Only this file knows how the YAML crate reads; [`reader`] deserializes from the tree. Neither
//! file knows the keys: the types that are deserialized say what is allowed where (see
//! [`super::file`]).

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::problem::{Place, shown_key, shown_within};

mod reader;

pub(super) use self::reader::nearest;

/// A value of the file.
#[derive(Debug)]
pub(super) struct Node {
    value: Value,
    place: Place,
}

#[derive(Debug)]
enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
struct Scalar {
    /// The text as it was written, without quotes.
    text: String,
    /// The boolean value, if the scalar is a plain `true`, `yes`, `off` …
    boolean: Option<bool>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    place: Place,
    value: Node,
}

/// The file is not YAML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

/// Maximum length, in characters, of a parser message that is shown. Such messages are the
/// parser's own sentences.
const LONGEST_MESSAGE: usize = 160;
/// Maximum nesting depth. Recursion needs a bound, and no real configuration is nested deeper.
const MAX_DEPTH: usize = 24;
/// Bounds how far nested aliases can expand.
const MAX_ALIAS_EVENTS: usize = 50_000;

/// Reads a YAML document; an empty one is null.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        // A snippet could show a secret.
        with_snippet: false,
    };
    options.alias_limits.max_total_replayed_events = MAX_ALIAS_EVENTS;
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| SyntaxError {
            place: error.location().and_then(place),
            message: syntax_message(&error),
        })?;
    node(raw, text)
}

/// Returns the parser's message without the place, which is shown elsewhere.
fn syntax_message(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    if matches!(error, serde_saphyr::Error::MultipleDocuments { .. }) {
        return "holds several YAML documents; keep one".to_owned();
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    let line = line.trim_end_matches('.');
    format!(
        "is not valid YAML: {}{}",
        shown_within(LONGEST_MESSAGE, line),
        advice(line)
    )
}

/// Returns what to look at if the parser only says what it missed.
fn advice(message: &str) -> &'static str {
    if message.contains("while parsing a block ") || message.contains("invalid indentation") {
        "; look at the indentation of this line and of the one before it (spaces only)"
    } else if message.contains("mapping values are not allowed") {
        "; look at the indentation of this line and of the one before it (spaces only), or put a value with \
         a colon into quotes"
    } else {
        ""
    }
}

fn place(location: serde_saphyr::Location) -> Option<Place> {
    (location.line() > 0).then(|| Place {
        line: location.line(),
        column: location.column(),
    })
}

// === impl Raw ===

/// A value as the YAML crate returns it, before numbers are replaced by their text in the file.
#[derive(Debug)]
enum Raw {
    Null,
    Text(String),
    Bool(bool),
    /// Any number. `node` replaces it by its text in the file, so that `0755` and `1e3` stay as
    /// they were written.
    Number(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<Self>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

fn node(raw: Spanned<Raw>, source: &str) -> Result<Node, SyntaxError> {
    let place = place(raw.referenced)
        .or_else(|| place(raw.defined))
        .unwrap_or(Place { line: 1, column: 1 });
    let written = || {
        let span = raw.defined.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        source.get(start..end).map(|text| text.trim().to_owned())
    };
    let scalar = |text, boolean| Value::Scalar(Scalar { text, boolean });
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => scalar(text, None),
        Raw::Bool(value) => scalar(written().unwrap_or_else(|| value.to_string()), Some(value)),
        Raw::Number(number) => scalar(written().unwrap_or(number), None),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|item| node(item, source))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| entry(node(key, source)?, node(value, source)?))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node { value, place })
}

fn entry(key: Node, value: Node) -> Result<Entry, SyntaxError> {
    match key.value {
        Value::Scalar(Scalar { text, .. }) => Ok(Entry {
            key: text,
            place: key.place,
            value,
        }),
        Value::Null | Value::List(_) | Value::Map(_) => Err(SyntaxError {
            place: Some(key.place),
            message: "a key must be a word".to_owned(),
        }),
    }
}

// === impl Node ===

impl Node {
    /// Returns the place of a key's value, or of the innermost part of its path that exists.
    pub(super) fn locate(&self, path: &str) -> Option<Place> {
        self.follow(path).0
    }

    /// Whether the document contains the key.
    pub(super) fn has(&self, path: &str) -> bool {
        self.follow(path).1.is_empty()
    }

    /// Follows a path as far as it exists: returns the place where it ends, unless that is here, and
    /// the rest of the path.
    fn follow<'p>(&self, path: &'p str) -> (Option<Place>, &'p str) {
        let (mut node, mut place, mut rest) = (self, None, path);
        while let Some((next, tail)) = node.step(rest) {
            (node, place, rest) = (next, Some(next.place), tail);
        }
        (place, rest)
    }

    /// Takes one step along a path: returns the child and the rest of the path.
    fn step<'n, 'p>(&'n self, path: &'p str) -> Option<(&'n Self, &'p str)> {
        match &self.value {
            Value::Null | Value::Scalar(_) => None,
            Value::List(items) => {
                let (index, tail) = path.strip_prefix('[')?.split_once(']')?;
                Some((items.get(index.parse::<usize>().ok()?)?, tail))
            }
            Value::Map(entries) => {
                let path = path.strip_prefix('.').unwrap_or(path);
                // A key may itself contain dots, so the longest key that matches is taken.
                entries
                    .iter()
                    .filter_map(|entry| {
                        let key = shown_key(&entry.key);
                        let tail = path.strip_prefix(key.as_str())?;
                        (tail.is_empty() || tail.starts_with(['.', '[']))
                            .then_some((&entry.value, tail))
                    })
                    .min_by_key(|(_, tail)| tail.len())
            }
        }
    }
}
