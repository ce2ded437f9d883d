//! What can go wrong between a client and the API, on demand.
//!
//! A rule says what goes wrong, for which requests, and how often. Some faults come from a gateway
//! and hide the API altogether. Others spoil an answer that the API gave.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options::seconds;
use super::requests::Endpoint;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fault {
    /// Another status. Unless a body is given, it is that of a gateway.
    Status {
        /// The status code.
        code: u16,
        /// The body.
        #[serde(default)]
        body: Option<String>,
        /// Headers, such as `Retry-After`.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// 200 with the login page of some portal.
    Html,
    /// 200 with this text as JSON.
    Body {
        /// The whole body.
        text: String,
    },
    /// 200 with an empty body.
    Empty,
    /// The JSON document ends in the middle, but the HTTP message is complete.
    Truncated,
    /// `results` is null.
    NullResult,
    /// `{}`.
    NoResults,
    /// The members of the envelope have other types.
    WrongTypes,
    /// The members of the results have other types, and some results are no objects.
    WrongItems,
    /// A document of about this size, sent as fast as the client reads it.
    Huge {
        /// Bytes.
        bytes: u64,
    },
    /// A small compressed document that decompresses to this size.
    GzipBomb {
        /// Bytes after decompression.
        bytes: u64,
    },
    /// Deeply nested arrays.
    Deep {
        /// How many arrays.
        depth: usize,
    },
    /// The answer takes this long to begin.
    SlowHeaders {
        /// How long.
        #[serde(with = "seconds")]
        seconds: Duration,
    },
    /// The body comes in small pieces with pauses in between.
    SlowBody {
        /// Bytes of a piece, after compression.
        bytes: usize,
        /// The pause before each piece.
        #[serde(with = "seconds")]
        seconds: Duration,
    },
    /// The body stops, and nothing more happens.
    Stall {
        /// Bytes that are sent before the stall, after compression.
        bytes: usize,
    },
    /// The connection is reset in the middle of the body.
    ResetMidBody,
    /// The connection is reset without an answer.
    Reset,
    /// A redirect.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        code: u16,
        /// The `Location` header.
        location: String,
    },
}

/// What goes wrong, for which requests, and how often. All conditions must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultRule {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// If given, only requests to this part of the API.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// If given, only requests for this tenant.
    #[serde(default)]
    pub tenant: Option<String>,
    /// If given, only requests for this page of a search.
    #[serde(default)]
    pub page: Option<usize>,
    /// Whether only searches by id are meant.
    #[serde(default)]
    pub by_id: bool,
    /// The number of first requests that meet the conditions but are spared.
    #[serde(default)]
    pub after: u32,
    /// How often the rule strikes. If none, it strikes until it is removed.
    #[serde(default)]
    pub times: Option<u32>,
}

/// The rules in force, each with its number.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<(u64, FaultRule)>,
    last: u64,
}

/// What is done to a request.
#[derive(Debug)]
pub(super) enum Effect {
    /// The API is not even asked.
    Replace(Fault),
    /// The answer is spoilt.
    Spoil(Fault),
}

// === impl Fault ===

impl Fault {
    /// Returns another status, as a gateway sends it.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::Status {
            code,
            body: None,
            headers: Vec::new(),
        }
    }
}

// === impl FaultRule ===

impl FaultRule {
    /// Returns a rule for every request, until it is removed.
    pub fn always(fault: Fault) -> Self {
        Self {
            fault,
            endpoint: None,
            tenant: None,
            page: None,
            by_id: false,
            after: 0,
            times: None,
        }
    }

    /// Returns a rule for the next `times` requests to an endpoint.
    pub fn next(times: u32, endpoint: Endpoint, fault: Fault) -> Self {
        Self {
            endpoint: Some(endpoint),
            times: Some(times),
            ..Self::always(fault)
        }
    }

    /// Limits the rule to one part of the API.
    #[must_use]
    pub fn at(self, endpoint: Endpoint) -> Self {
        Self {
            endpoint: Some(endpoint),
            ..self
        }
    }

    /// Limits the rule to one tenant.
    #[must_use]
    pub fn for_tenant(self, tenant: &str) -> Self {
        Self {
            tenant: Some(tenant.to_owned()),
            ..self
        }
    }

    fn matches(
        &self,
        endpoint: Endpoint,
        tenant: Option<&str>,
        page: Option<usize>,
        by_id: bool,
    ) -> bool {
        self.times != Some(0)
            && self.endpoint.is_none_or(|wanted| wanted == endpoint)
            && (self.tenant.is_none() || self.tenant.as_deref() == tenant)
            && (self.page.is_none() || self.page == page)
            && (!self.by_id || by_id)
    }
}

// === impl Faults ===

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) -> u64 {
        self.last += 1;
        self.rules.push((self.last, rule));
        self.last
    }

    pub(super) fn remove(&mut self, number: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|(n, _)| *n != number);
        self.rules.len() < before
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn list(&self) -> &[(u64, FaultRule)] {
        &self.rules
    }

    /// Returns what is done to a request, by the first rule that concerns it.
    pub(super) fn next_effect(
        &mut self,
        endpoint: Endpoint,
        tenant: Option<&str>,
        page: Option<usize>,
        by_id: bool,
    ) -> Option<Effect> {
        let place = self.rules.iter_mut().position(|(_, rule)| {
            let is_meant = rule.matches(endpoint, tenant, page, by_id);
            let is_spared = is_meant && rule.after > 0;
            rule.after -= u32::from(is_spared);
            is_meant && !is_spared
        })?;
        let (_, rule) = &mut self.rules[place];
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                self.rules.remove(place);
            }
        }
        Some(match fault {
            Fault::Status { .. }
            | Fault::Html
            | Fault::Body { .. }
            | Fault::Empty
            | Fault::NoResults
            | Fault::Huge { .. }
            | Fault::GzipBomb { .. }
            | Fault::Deep { .. }
            | Fault::Reset
            | Fault::Redirect { .. } => Effect::Replace(fault),
            Fault::Truncated
            | Fault::NullResult
            | Fault::WrongTypes
            | Fault::WrongItems
            | Fault::SlowHeaders { .. }
            | Fault::SlowBody { .. }
            | Fault::Stall { .. }
            | Fault::ResetMidBody => Effect::Spoil(fault),
        })
    }
}

/// Returns the page that a gateway sends with a status.
pub(super) fn gateway_page(code: u16) -> String {
    format!(
        "<html>\r\n<head><title>{code}</title></head>\r\n<body>\r\n<center><h1>{code}</h1></center>\r\n\
         <hr><center>gateway</center>\r\n</body>\r\n</html>\r\n"
    )
}

/// A page that asks for a password.
pub(super) const LOGIN_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\
    <body><form method=\"post\" action=\"/login\"><input name=\"user\"></form></body></html>\n";

/// Spoils the document itself. Faults of the transport leave it as it is.
pub(super) fn spoil(fault: &Fault, mut body: Vec<u8>) -> Vec<u8> {
    let document = |body: &[u8]| serde_json::from_slice(body).unwrap_or(Value::Null);
    match fault {
        Fault::Truncated => {
            body.truncate(body.len() * 2 / 3);
            body
        }
        Fault::NullResult => {
            let mut value = document(&body);
            if let Value::Object(object) = &mut value {
                object.insert("results".to_owned(), Value::Null);
            }
            value.to_string().into_bytes()
        }
        Fault::WrongTypes => {
            let mut value = document(&body);
            if let Value::Object(object) = &mut value {
                for (name, member) in object.iter_mut() {
                    *member = match name.as_str() {
                        "results" => json!({ "0": "none" }),
                        "totalResults" => json!("a few"),
                        "access_token" => json!(["token"]),
                        "expires_in" => json!({ "seconds": 7199 }),
                        _ => json!([member.take()]),
                    };
                }
            }
            value.to_string().into_bytes()
        }
        Fault::WrongItems => {
            let mut value = document(&body);
            if let Some(Value::Array(items)) = value.get_mut("results") {
                for (n, item) in items.iter_mut().enumerate() {
                    twist(n, item);
                }
            }
            value.to_string().into_bytes()
        }
        _ => body,
    }
}

/// Spoils an item: of five items, one becomes no object, one loses its id, and the others keep
/// their id, but their other members get other types.
fn twist(n: usize, item: &mut Value) {
    match n % 5 {
        0 => *item = [json!(null), json!("alert"), json!(17), json!([])][n / 5 % 4].clone(),
        1 => {
            if let Value::Object(object) = item {
                object.remove("uniqueId");
            }
        }
        turn => {
            if let Value::Object(object) = item {
                for (name, member) in object.iter_mut().filter(|(name, _)| *name != "uniqueId") {
                    *member = match (turn + name.len()) % 5 {
                        0 => json!(null),
                        1 => json!({ "value": member.take() }),
                        2 => json!([member.take(), 1]),
                        3 => json!(-1.5e300),
                        _ => json!(""),
                    };
                }
            }
        }
    }
}

/// Returns a document with deeply nested arrays in place of the results.
pub(super) fn deep(depth: usize) -> Vec<u8> {
    let mut body = b"{\"totalResults\":1,\"results\":".to_vec();
    body.extend(std::iter::repeat_n(b'[', depth));
    body.extend(std::iter::repeat_n(b']', depth));
    body.push(b'}');
    body
}

/// Returns a compressed document that is mostly white space.
pub(super) fn gzip_bomb(bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(b"{\"totalResults\":0,\"results\":[")?;
    let blank = vec![b' '; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(blank.len() as u64) as usize;
        encoder.write_all(&blank[..now])?;
        left -= now as u64;
    }
    encoder.write_all(b"]}")?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_was_told_to() {
        let mut faults = Faults::default();
        faults.add(FaultRule {
            after: 1,
            ..FaultRule::next(2, Endpoint::Search, Fault::Html)
        });
        let mut strike = |endpoint| {
            faults
                .next_effect(endpoint, Some("client_1"), None, false)
                .is_some()
        };
        assert!(!strike(Endpoint::Token));
        let struck: Vec<bool> = (0..5).map(|_| strike(Endpoint::Search)).collect();
        assert_eq!(struck, [false, true, true, false, false]);
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_fault_that_strikes_no_times_never_does() {
        let mut faults = Faults::default();
        faults.add(FaultRule::next(0, Endpoint::Search, Fault::Html));
        faults.add(FaultRule::next(1, Endpoint::Search, Fault::Empty));
        let mut strike = || faults.next_effect(Endpoint::Search, None, None, false);
        assert!(matches!(strike(), Some(Effect::Replace(Fault::Empty))));
        assert!(strike().is_none());
    }

    #[test]
    fn a_fault_of_one_tenant_and_page_spares_the_others() {
        let mut faults = Faults::default();
        let mut rule = FaultRule::always(Fault::Empty).for_tenant("client_2");
        rule.page = Some(3);
        let number = faults.add(rule);
        let strikes = |faults: &mut Faults, tenant, page| {
            let effect = faults.next_effect(Endpoint::Search, Some(tenant), Some(page), false);
            effect.is_some()
        };
        assert!(!strikes(&mut faults, "client_1", 3));
        assert!(!strikes(&mut faults, "client_2", 2));
        assert!(strikes(&mut faults, "client_2", 3));
        assert!(faults.remove(number));
        assert!(!strikes(&mut faults, "client_2", 3));
    }

    #[test]
    fn a_rule_is_read_from_flat_json() {
        let text = r#"{"kind":"slow-body","bytes":10,"seconds":0.5,"endpoint":"search","times":1}"#;
        let rule: FaultRule = serde_json::from_str(text).unwrap();
        let fault = Fault::SlowBody {
            bytes: 10,
            seconds: Duration::from_millis(500),
        };
        assert_eq!(rule, FaultRule::next(1, Endpoint::Search, fault));
    }

    #[test]
    fn a_bomb_is_small_until_it_goes_off() {
        let bomb = gzip_bomb(10 << 20).unwrap();
        assert!(bomb.len() < 20_000, "{} bytes", bomb.len());
    }

    #[test]
    fn a_spoilt_page_is_still_json_unless_it_is_truncated() {
        let page = br#"{"results":[{"uniqueId":"1"},{"uniqueId":"2"}],"totalResults":2}"#;
        for fault in [Fault::NullResult, Fault::WrongTypes, Fault::WrongItems] {
            let spoilt = spoil(&fault, page.to_vec());
            assert_ne!(spoilt, page);
            serde_json::from_slice::<Value>(&spoilt).unwrap();
        }
        let spoilt = spoil(&Fault::Truncated, page.to_vec());
        assert!(serde_json::from_slice::<Value>(&spoilt).is_err());
    }
}
