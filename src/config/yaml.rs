//! YAML with places: a tree of nodes that remember line and column, and a serde deserializer over
//! it that notes every problem and goes on, where serde alone would stop at the first.
//!
//! Only this file knows the YAML crate's way of reading. It knows nothing of the keys: what is
//! allowed where is said by the types that are deserialized (see [`super::file`]).

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess,
        VariantAccess, Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use serde_saphyr::Spanned;

use super::problem::{KeyPath, Place, Problems, first_word, shown, shown_key, shown_value};

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
    /// As it was written, without quotes.
    text: String,
    /// What it stands for, where it is a plain `true`, `yes`, `off` …
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

/// Deserializes from a node. What goes wrong inside of lists and mappings is noted, and what
/// was wrong counts as not given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    node: &'a Node,
    path: &'a KeyPath<'a>,
    problems: &'a Problems,
}

/// Why a value could not be read.
#[derive(Debug)]
pub(super) enum Failed {
    /// What is wrong and what to do, to be noted by whoever can go on.
    Because(String),
    /// It is noted already.
    Noted,
}

/// No configuration that is meant is nested deeper, and recursion needs a bound.
const MAX_DEPTH: usize = 24;
/// Bounds what aliases of aliases of aliases can grow into.
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

/// The parser's message without the place, which is shown elsewhere.
fn syntax_message(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    if matches!(error, serde_saphyr::Error::MultipleDocuments { .. }) {
        return "holds several YAML documents; keep one".to_owned();
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    format!("is not valid YAML: {}", shown(line.trim_end_matches('.')))
}

fn place(location: serde_saphyr::Location) -> Option<Place> {
    (location.line() > 0).then(|| Place {
        line: location.line(),
        column: location.column(),
    })
}

// === impl Raw ===

/// What the YAML crate hands over, before numbers are turned back into what was written.
#[derive(Debug)]
enum Raw {
    Null,
    Text(String),
    Bool(bool),
    /// Any number; its text is that of the file, so that `0755` and `1e3` stay what they are.
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

    fn visit_none<E>(self) -> Result<Raw, E> {
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

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
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
        source
            .get(Range { start, end })
            .map(|text| text.trim().to_owned())
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
    /// Reads the document as a `T`; `T::default()` where nothing can be made of it.
    pub(super) fn read<'de, T: Deserialize<'de> + Default>(&self, problems: &Problems) -> T {
        let reader = Reader {
            node: self,
            path: &KeyPath::Root,
            problems,
        };
        if matches!(self.value, Value::Null) {
            return T::default();
        }
        T::deserialize(reader).unwrap_or_else(|failed| {
            reader.note(failed);
            T::default()
        })
    }

    /// The place of a key's value, or of the innermost part of its path that exists.
    pub(super) fn locate(&self, path: &str) -> Option<Place> {
        let mut node = self;
        let mut rest = path;
        let mut place = None;
        while let Some((next, tail)) = node.step(rest) {
            place = Some(next.place);
            node = next;
            rest = tail;
        }
        place
    }

    /// One step along a path: the child, and what is left of the path.
    fn step<'n, 'p>(&'n self, path: &'p str) -> Option<(&'n Self, &'p str)> {
        match &self.value {
            Value::Null | Value::Scalar(_) => None,
            Value::List(items) => {
                let (index, tail) = path.strip_prefix('[')?.split_once(']')?;
                Some((items.get(index.parse::<usize>().ok()?)?, tail))
            }
            Value::Map(entries) => {
                let path = path.strip_prefix('.').unwrap_or(path);
                // A key may itself hold dots, so the longest that fits is meant.
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

    fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Whether messages may name the key. One without a value may itself be a value, of a key
    /// whose colon was forgotten, and so a secret.
    fn may_be_named(&self, known: &[&str]) -> bool {
        !matches!(self.value.value, Value::Null) || nearest(first_word(&self.key), known).is_some()
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn scalar(&self, expected: &str) -> Result<&'a Scalar, Failed> {
        match &self.node.value {
            Value::Scalar(scalar) => Ok(scalar),
            Value::Null | Value::List(_) | Value::Map(_) => Err(self.mismatch(expected)),
        }
    }

    fn mismatch(&self, expected: &str) -> Failed {
        Failed::Because(format!("must be {expected}, not {}", self.node.kind()))
    }

    fn number<T: std::str::FromStr>(&self) -> Result<T, Failed> {
        let text = &self.scalar("a whole number")?.text;
        text.parse().map_err(|_| {
            Failed::Because(format!(
                "must be a whole number, not \"{}\"",
                shown_value(text)
            ))
        })
    }

    fn list(&self) -> Result<&'a [Node], Failed> {
        match &self.node.value {
            Value::List(items) => Ok(items),
            Value::Scalar(scalar) => Err(Failed::Because(format!(
                "must be a list; write [{}]",
                shown_value(&scalar.text)
            ))),
            Value::Null | Value::Map(_) => Err(self.mismatch("a list")),
        }
    }

    fn entries(&self) -> Result<&'a [Entry], Failed> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null | Value::Scalar(_) | Value::List(_) => {
                Err(self.mismatch("a mapping (key: value)"))
            }
        }
    }

    /// The entries without those that are given twice or, where `known` names the keys, unknown;
    /// both are noted.
    fn checked_entries(&self, known: Option<&[&str]>) -> Result<Vec<&'a Entry>, Failed> {
        let mut seen: Vec<&'a Entry> = Vec::new();
        for entry in self.entries()? {
            let first = seen.iter().find(|other| other.key == entry.key);
            let message = if let Some(first) = first {
                format!("is given twice, first in line {}", first.place.line)
            } else if let Some(known) = known.filter(|known| !known.contains(&entry.key.as_str())) {
                unknown_key(&entry.key, known)
            } else if known.is_none() && matches!(entry.value.value, Value::Null) {
                "has no value".to_owned()
            } else {
                seen.push(entry);
                continue;
            };
            let may_be_named = entry.may_be_named(known.unwrap_or_default());
            let key = if may_be_named { &entry.key } else { "…" };
            self.problems
                .add_at(KeyPath::Key(self.path, key), entry.place, message);
        }
        Ok(seen)
    }

    fn visit_entries<'de, V: Visitor<'de>>(
        self,
        entries: Vec<&'a Entry>,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        visitor.visit_map(Entries {
            entries: entries.into_iter(),
            current: None,
            path: self.path,
            problems: self.problems,
        })
    }

    fn note(&self, failed: Failed) {
        if let Failed::Because(message) = failed {
            self.problems.add_at(self.path, self.node.place, message);
        }
    }

    /// Reads a part of this node, notes what is wrong with it, and makes do without it.
    fn read_part<'de, T: Deserialize<'de>>(self) -> Result<T, Failed> {
        T::deserialize(self).or_else(|failed| {
            self.note(failed);
            T::deserialize(Absent).map_err(|_| Failed::Noted)
        })
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    let word = first_word(key);
    match nearest(word, known) {
        Some(_) if word.len() < key.len() => {
            "needs a colon and a space before its value".to_owned()
        }
        Some(near) => format!("unknown key; did you mean \"{near}\"?"),
        None => format!("unknown key; the keys here are {}", known.join(", ")),
    }
}

fn unknown_word(word: &str, known: &[&str]) -> String {
    let known_words = known.join(", ");
    match nearest(word, known) {
        Some(near) => format!(
            "\"{}\" is not one of {known_words}; did you mean \"{near}\"?",
            shown_value(word)
        ),
        None => format!("\"{}\" is not one of {known_words}", shown_value(word)),
    }
}

/// The known word that is most likely meant, if any is near.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: Vec<char> = word.to_lowercase().replace('-', "_").chars().collect();
    let distance = |near: &str| {
        let near: Vec<char> = near.to_lowercase().chars().collect();
        let whole = strsim::generic_damerau_levenshtein(&word, &near);
        // Who writes the beginning of a long word means it, too.
        let beginning = near.get(..word.len()).filter(|_| word.len() >= 4);
        let beginning = beginning.map(|near| strsim::generic_damerau_levenshtein(&word, near) + 1);
        whole.min(beginning.unwrap_or(usize::MAX))
    };
    known
        .iter()
        .map(|near| (distance(near), *near))
        .filter(|(distance, _)| *distance <= word.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, near)| near)
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(scalar) => visitor.visit_str(&scalar.text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        let scalar = self.scalar("true or false")?;
        match scalar.boolean {
            Some(value) => visitor.visit_bool(value),
            None => Err(Failed::Because(format!(
                "must be true or false, not \"{}\"",
                shown_value(&scalar.text)
            ))),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_u32(self.number()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_u64(self.number()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_str(&self.scalar("text")?.text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_seq(Items {
            items: self.list()?.iter().enumerate(),
            path: self.path,
            problems: self.problems,
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        let entries = self.checked_entries(None)?;
        self.visit_entries(entries, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        if let Value::Scalar(scalar) = &self.node.value {
            // Some structs have a short form.
            let short: Result<_, Failed> = visitor.visit_str(&scalar.text);
            return short.map_err(|_| self.mismatch("a mapping (key: value)"));
        }
        let entries = self.checked_entries(Some(fields))?;
        self.visit_entries(entries, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        let text = &self
            .scalar(&format!("one of {}", variants.join(", ")))?
            .text;
        if !variants.contains(&text.as_str()) {
            return Err(Failed::Because(unknown_word(text, variants)));
        }
        visitor.visit_enum(Word(text))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char bytes byte_buf unit unit_struct
        tuple tuple_struct identifier ignored_any
    }
}

/// The items of a list.
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: &'a KeyPath<'a>,
    problems: &'a Problems,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failed;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failed> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let reader = Reader {
            node,
            path: &KeyPath::Index(self.path, index),
            problems: self.problems,
        };
        seed.deserialize(reader).map(Some)
    }

    fn next_element<T: Deserialize<'de>>(&mut self) -> Result<Option<T>, Failed> {
        for (index, node) in self.items.by_ref() {
            let reader = Reader {
                node,
                path: &KeyPath::Index(self.path, index),
                problems: self.problems,
            };
            // What cannot be made do without is left out of the list.
            if let Ok(value) = reader.read_part() {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// The entries of a mapping.
struct Entries<'a> {
    entries: std::vec::IntoIter<&'a Entry>,
    current: Option<&'a Entry>,
    path: &'a KeyPath<'a>,
    problems: &'a Problems,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Failed;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failed> {
        self.current = self.entries.next();
        self.current
            .map(|entry| {
                let key: StrDeserializer<'_, Failed> = entry.key.as_str().into_deserializer();
                seed.deserialize(key)
            })
            .transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failed> {
        let entry = self.current.take().ok_or_else(no_key)?;
        seed.deserialize(Reader {
            node: &entry.value,
            path: &KeyPath::Key(self.path, &entry.key),
            problems: self.problems,
        })
    }

    fn next_entry<K: Deserialize<'de>, T: Deserialize<'de>>(
        &mut self,
    ) -> Result<Option<(K, T)>, Failed> {
        while let Some(key) = self.next_key()? {
            // What cannot be made do without is left out of the mapping.
            if let Ok(value) = self.next_value() {
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }

    fn next_value<T: Deserialize<'de>>(&mut self) -> Result<T, Failed> {
        let entry = self.current.take().ok_or_else(no_key)?;
        let reader = Reader {
            node: &entry.value,
            path: &KeyPath::Key(self.path, &entry.key),
            problems: self.problems,
        };
        reader.read_part()
    }
}

fn no_key() -> Failed {
    Failed::Because("a value was asked for before its key".to_owned())
}

/// A word of an enumeration.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Failed;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Failed> {
        let word: StrDeserializer<'_, Failed> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Failed;

    fn unit_variant(self) -> Result<(), Failed> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _seed: S) -> Result<S::Value, Failed> {
        Err(Failed::Because("must be a word".to_owned()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Failed> {
        Err(Failed::Because("must be a word".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Failed> {
        Err(Failed::Because("must be a word".to_owned()))
    }
}

/// What stands for a part that could not be read: an option is `None`, a struct is empty, and
/// anything else cannot be made.
struct Absent;

impl<'de> Deserializer<'de> for Absent {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Failed> {
        Err(Failed::Because("cannot be left out".to_owned()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_none()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        visitor.visit_map(de::value::MapDeserializer::<_, Failed>::new(
            std::iter::empty::<(&str, &str)>(),
        ))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

// === impl Failed ===

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Because(message) => f.write_str(message),
            Self::Noted => f.write_str("could not be read"),
        }
    }
}

impl std::error::Error for Failed {}

impl de::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Because(message.to_string())
    }

    // serde's own text would show the value, which may be a secret.
    fn invalid_type(_unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Because(format!("must be {expected}"))
    }

    fn invalid_value(_unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Because(format!("must be {expected}"))
    }
}
