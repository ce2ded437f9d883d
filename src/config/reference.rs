//! Generates the tables of `docs/configuration.md` from the schema and the flags.

use std::{fmt::Write as _, path::Path};

use serde_json::{Map, Value};

use super::json_schema;
use crate::cli::Cli;

const BEGIN: &str = "<!-- begin generated -->\n";
const END: &str = "<!-- end generated -->";

/// The tables as far as they are written.
struct Reference<'a> {
    schema: &'a Value,
    text: String,
}

impl<'a> Reference<'a> {
    /// Writes one section and then those that its keys lead to. `path` is the prefix of the keys.
    fn section(&mut self, path: &str, section: &'a Value) {
        let title = path.trim_end_matches('.');
        if !title.is_empty() {
            let description = sentence(&section["description"]);
            write!(self.text, "\n### `{title}`\n\n{description}\n").unwrap();
        }
        self.text
            .push_str("\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
        let properties = section["properties"].as_object().unwrap();
        let required = section["required"].as_array();
        let is_required =
            |key: &str| required.is_some_and(|required| required.iter().any(|name| name == key));
        let (first, then): (Vec<_>, Vec<_>) =
            properties.iter().partition(|(key, _)| is_required(key));
        let mut below = Vec::new();
        for (key, property) in first.into_iter().chain(then) {
            let default = match &property["default"] {
                _ if is_required(key) => "required".to_owned(),
                Value::Null => String::new(),
                Value::String(text) => format!("`{text}`"),
                other => format!("`{}`", plain(other)),
            };
            let value = self.value(property);
            let meaning = sentence(&property["description"]);
            writeln!(
                self.text,
                "| `{path}{key}` | {value} | {default} | {meaning} |"
            )
            .unwrap();
            if let Some(section) = self.leads_to(property) {
                let list = if property.get("items").is_some() {
                    "[]"
                } else {
                    ""
                };
                below.push((format!("{path}{key}{list}."), section));
            }
        }
        for (path, section) in below {
            self.section(&path, section);
        }
    }

    /// Returns the section that a property, or an item of it, leads to.
    fn leads_to(&self, property: &'a Value) -> Option<&'a Value> {
        self.meant(property)
            .into_iter()
            .find(|value| value.get("properties").is_some())
    }

    /// Returns the alternatives that a property may be, with references followed and without null.
    fn meant(&self, property: &'a Value) -> Vec<&'a Value> {
        if let Some(name) = property["$ref"].as_str() {
            let name = name.strip_prefix("#/$defs/").unwrap();
            return self.meant(&self.schema["$defs"][name]);
        }
        if let Some(choices) = property["anyOf"].as_array() {
            return choices
                .iter()
                .filter(|choice| choice["type"] != "null")
                .flat_map(|choice| self.meant(choice))
                .collect();
        }
        match property.get("items") {
            Some(items) => self.meant(items),
            None => vec![property],
        }
    }

    /// Says in words what may be written.
    fn value(&self, property: &'a Value) -> String {
        let words: Vec<String> = self.meant(property).into_iter().map(word).collect();
        let words = words.join(" or ");
        match property.get("items") {
            Some(_) => format!("list: {words}"),
            None => words,
        }
    }
}

/// Names the kind of a value that is not a list.
fn word(value: &Value) -> String {
    let types: Vec<&str> = match &value["type"] {
        Value::String(one) => vec![one],
        many => many
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    };
    let examples = value["examples"].as_array();
    let example = examples.and_then(|examples| examples[0].as_str());
    if let Some(choices) = value["enum"].as_array() {
        let choices: Vec<_> = choices
            .iter()
            .map(|choice| format!("`{}`", plain(choice)))
            .collect();
        choices.join(", ")
    } else if value.get("properties").is_some() {
        "see below".to_owned()
    } else if types.contains(&"object") {
        "names with their values".to_owned()
    } else if let Some(example) = example {
        match example {
            "30s" => "duration".to_owned(),
            "64MiB" => "size".to_owned(),
            other => format!("such as `{other}`"),
        }
    } else if types.contains(&"integer") && !types.contains(&"string") {
        let bound = |key: &str| value[key].as_u64().map(|bound| bound.to_string());
        match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("number, at least {least}"),
            _ => "number".to_owned(),
        }
    } else if types.contains(&"boolean") {
        "`true`, `false`".to_owned()
    } else if value["format"] == "uri" {
        "URL".to_owned()
    } else {
        "text".to_owned()
    }
}

/// A value as YAML has it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(plain).collect::<Vec<_>>().join(", ")
        ),
        other => other.to_string(),
    }
}

/// A description on one line, fit for a cell of a table.
fn sentence(description: &Value) -> String {
    let text = description.as_str().unwrap();
    text.replace('\n', " ").replace('|', "\\|")
}

/// The flags of the daemon, each with the variable and the default that its help names.
fn flags() -> String {
    let definition = Cli::definition();
    let mut text = "\n## Flags and variables\n\n| flag | variable | default | meaning |\n\
                    | --- | --- | --- | --- |\n"
        .to_owned();
    for argument in definition.get_arguments() {
        let long = argument.get_long().unwrap();
        if !long.contains('.') {
            continue;
        }
        let help = argument.get_help().unwrap().to_string().replace('\n', " ");
        let tail = |what: &str| {
            let (_, rest) = help.split_once(&format!("[{what}: "))?;
            rest.split_once(']').map(|(tail, _)| tail)
        };
        let variable = tail("env").map_or_else(String::new, |name| {
            let (name, rest) = name.split_at(name.find([',', ' ']).unwrap_or(name.len()));
            format!(
                "`{name}`{}",
                rest.replace("OPSRAMP_CLIENT_SECRET", "`OPSRAMP_CLIENT_SECRET`")
            )
        });
        let default = argument.get_default_values().first();
        let default = default.map(|default| default.to_string_lossy());
        let default = default.as_deref().or_else(|| tail("default"));
        let takes_value = argument.get_action().takes_values();
        let default = default
            .filter(|_| takes_value)
            .map_or_else(String::new, |default| format!("`{default}`"));
        let meaning = help.split(" [").next().unwrap();
        writeln!(
            text,
            "| `{argument}` | {variable} | {default} | {meaning} |"
        )
        .unwrap();
    }
    text
}

fn reference() -> String {
    let schema = json_schema();
    let mut reference = Reference {
        schema: &schema,
        text: "\n## Keys\n".to_owned(),
    };
    reference.section("", &schema);
    reference.text + &flags() + "\n"
}

#[test]
fn the_reference_of_the_configuration_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (tables, after) = rest.split_once(END).unwrap();
    let current = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{current}{END}{after}")).unwrap();
    } else {
        assert!(
            tables == current,
            "docs/configuration.md is not current: UPDATE_DOCS=1 cargo test --lib reference"
        );
    }
}

#[test]
fn the_reference_has_every_key() {
    fn count(schema: &Value) -> usize {
        schema["properties"].as_object().map_or(0, Map::len)
    }
    let schema = json_schema();
    let sections = schema["$defs"].as_object().unwrap().values();
    let keys = count(&schema) + sections.map(count).sum::<usize>();
    let flags = flags();
    let rows = reference()
        .replace(&flags, "")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(rows, keys);
}

#[test]
fn the_schema_takes_what_the_program_takes() {
    let validator = jsonschema::validator_for(&json_schema()).unwrap();
    let shipped = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(path).unwrap()
    };
    for path in ["config.example.yml", "systemd/config.yml"] {
        let file: Value = serde_saphyr::from_str(&shipped(path)).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&file)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{path}: {wrong:#?}");
    }
    let unknown: Value = serde_saphyr::from_str("searchs: []").unwrap();
    assert!(!validator.is_valid(&unknown));
}
