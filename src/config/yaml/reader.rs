//! A serde deserializer over the tree that notes every problem and goes on, where serde alone
//! would stop at the first. A value that cannot be read counts as not given.
//!
//! This works because every key of the file is optional, and because of [`Absent`].

use std::{fmt, slice};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess,
        VariantAccess, Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::{Entry, Node, Scalar, Value};
use crate::config::problem::{KeyPath, Problems, first_word, shown_value};

/// Deserializes from a node. Problems inside lists and mappings are noted, and the values
/// concerned count as not given.
#[derive(Clone, Copy, Debug)]
struct Reader<'a> {
    node: &'a Node,
    path: &'a KeyPath<'a>,
    problems: &'a Problems,
}

/// Why a value could not be read.
#[derive(Debug)]
enum Failed {
    /// What is wrong and what to do. A caller that can go on notes it.
    Because(String),
    /// The problem is noted already.
    Noted,
}

// === impl Node ===

impl Node {
    /// Reads the document as a `T`; returns `T::default()` if nothing can be made of it.
    pub(in crate::config) fn read<'de, T: Deserialize<'de> + Default>(
        &self,
        problems: &Problems,
    ) -> T {
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
    /// Whether messages may name the key. A key without a value may itself be the value of a key
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
            Value::Null | Value::Scalar(_) | Value::Map(_) => Err(self.mismatch("a list")),
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

    /// Returns the entries, without duplicates and, if `known` names the keys, without unknown
    /// keys. Both are noted.
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

    /// Reads a part of this node. If the part is wrong, notes why and treats it as absent.
    fn read_part<'de, T: Deserialize<'de>>(self) -> Result<T, Failed> {
        T::deserialize(self).or_else(|failed| {
            self.note(failed);
            T::deserialize(Absent).map_err(|_| Failed::Noted)
        })
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    // Text that was copied from a web page or an e-mail often has no-break spaces, which look right.
    if let Some(odd) = key
        .chars()
        .next()
        .filter(|c| *c != ' ' && c.is_whitespace())
    {
        return format!(
            "begins with white space that is no indent in YAML (U+{:04X}); indent with plain spaces",
            u32::from(odd)
        );
    }
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

/// Whether a text is a boolean when it stands without quotes.
fn is_boolean_word(text: &str) -> bool {
    let words = ["true", "false", "yes", "no", "on", "off", "y", "n"];
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Returns the known word that is most likely meant, if any is similar enough.
pub(in crate::config) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: Vec<char> = word.to_lowercase().replace('-', "_").chars().collect();
    let distance = |near: &str| {
        let near: Vec<char> = near.to_lowercase().chars().collect();
        let whole = strsim::generic_damerau_levenshtein(&word, &near);
        // The beginning of a long word stands for the whole word, too.
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
            // Without quotes the text would be a boolean.
            None if is_boolean_word(&scalar.text) => Err(Failed::Because(
                "must be true or false without quotes".to_owned(),
            )),
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
        if let Value::Scalar(scalar) = &self.node.value {
            // Writing it as a list is good advice only if that list could be read.
            let problems = Problems::default();
            let read = visitor.visit_seq(Items {
                items: slice::from_ref(self.node).iter().enumerate(),
                path: self.path,
                problems: &problems,
            });
            return Err(match read {
                Ok(_) if problems.is_empty() => Failed::Because(format!(
                    "must be a list; write [{}]",
                    shown_value(&scalar.text)
                )),
                _ => self.mismatch("a list"),
            });
        }
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
    items: std::iter::Enumerate<slice::Iter<'a, Node>>,
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
            // An item that is wrong and cannot be absent is left out of the list.
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
            // A value that is wrong and cannot be absent is left out of the mapping.
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

/// Stands in for a part that could not be read: an option is `None`, a struct is empty, and any
/// other type cannot be made.
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
