//! Where the web server listens.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::problem::shown_value;

/// An address to listen on: `:10836` (every address, IPv4 and IPv6), `127.0.0.1:10836`,
/// `[::1]:10836` or `localhost:10836`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, JsonSchema)]
#[schemars(
    inline,
    with = "String",
    description = "",
    extend(
        "pattern" = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):[0-9]{1,5}$",
        "examples" = [":10836", "127.0.0.1:10836", "[::1]:10836"],
    )
)]
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

    /// Whether binding this address makes it impossible to bind the other one. `[::]` is bound for
    /// IPv4 as well, so it covers every address. A host name may stand for an address of either
    /// family, so only `[::]` covers it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let has_port = self.port == other.port && self.port != 0;
        let Some(own) = self.ip().filter(|_| has_port) else {
            return false;
        };
        match other.ip() {
            Some(other) if own == other => true,
            Some(IpAddr::V6(other)) if own.is_ipv4() => {
                own.is_unspecified() && other.is_unspecified()
            }
            Some(_) => own.is_unspecified(),
            None => own.is_unspecified() && own.is_ipv6(),
        }
    }

    /// Whether this stands for every address of the machine.
    pub(super) fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    /// Returns the IP address, an IPv4-mapped IPv6 address as IPv4; `None` for a host name.
    fn ip(&self) -> Option<IpAddr> {
        match self.host.as_deref() {
            None => Some(Ipv6Addr::UNSPECIFIED.into()),
            Some(host) => host.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
        }
    }
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

    #[tokio::test]
    async fn an_address_covers_what_cannot_be_listened_on_beside_it() {
        let addresses = [
            "",
            "0.0.0.0",
            "[::]",
            "[0::0]",
            "127.0.0.1",
            "127.0.0.2",
            "[::1]",
            "[0:0::1]",
            "[::ffff:0.0.0.0]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:2]",
        ];
        let can_be_had = |host: &&str| crate::web::bind(&[format!("{host}:0")]).is_ok();
        // A kernel may be without IPv6.
        let addresses: Vec<&str> = addresses.into_iter().filter(can_be_had).collect();
        for &first in &addresses {
            for &second in addresses.iter().filter(|&&second| second != first) {
                let agrees = || {
                    let taken = crate::web::bind(&[format!("{first}:0")]).unwrap();
                    let port = taken[0].local_addr().unwrap().port();
                    let [one, other] = [first, second].map(|host| format!("{host}:{port}"));
                    let is_free = crate::web::bind(&[&other]).is_ok();
                    let [a, b]: [ListenAddress; 2] = [one, other].map(|text| text.parse().unwrap());
                    (a.covers(&b) || b.covers(&a)) != is_free
                };
                // Somebody else may have the port at the other address.
                assert!((0..5).any(|_| agrees()), "{first} {second}");
            }
        }
        let covers = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<ListenAddress>().unwrap());
            one.covers(&other)
        };
        assert!(covers(":1", "name:1") && !covers("0.0.0.0:1", "name:1"));
        assert!(!covers(":1", "127.0.0.1:2") && !covers(":0", "127.0.0.1:0"));
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
