//! Where the web server listens.

use std::{borrow::Cow, fmt, net::Ipv6Addr, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::problem::shown_value;

/// An address to listen on: `:10836` (every address, IPv4 and IPv6), `127.0.0.1:10836`,
/// `[::1]:10836` or `localhost:10836`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    /// A host name or an IP address, IPv6 without brackets; `None`: every address.
    pub host: Option<String>,
    /// The port; 0 lets the system choose.
    pub port: u16,
}

/// An address that cannot be read; the message says how to write it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836")]
pub struct ListenAddressError(String);

// === impl ListenAddress ===

impl ListenAddress {
    /// The exporter's port.
    pub const DEFAULT_PORT: u16 = 10_836;
}

impl Default for ListenAddress {
    fn default() -> Self {
        Self {
            host: None,
            port: Self::DEFAULT_PORT,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let wrong = || ListenAddressError(shown_value(text));
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(wrong)?;
            inner.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            Some(inner.to_owned())
        } else {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if !host.chars().all(is_name) {
                return Err(wrong());
            }
            (!host.is_empty()).then(|| host.to_owned())
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, ":{}", self.port),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ListenAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ListenAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):[0-9]{1,5}$",
            "examples": [":10836", "127.0.0.1:10836", "[::1]:10836"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_they_were_written() {
        for text in [
            ":10836",
            "127.0.0.1:0",
            "[::1]:10836",
            "localhost:65535",
            "my-host.example:1",
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(ListenAddress::default().to_string(), ":10836");
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for text in [
            "",
            "10836",
            ":",
            ":65536",
            ":+1",
            "::1:10836",
            "[::1:10836",
            "[host]:1",
            "a b:1",
            "http://h:1",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
