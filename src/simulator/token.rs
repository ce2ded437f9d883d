//! Tokens: who gets one, how long it lives, and what happens to a key whose secret was rotated.
//!
//! A token belongs to the key, not to the process that requested it. A request while the token
//! lives gets the same token, with the rest of its life.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::options::Options;
use super::refusal::Refusal;
use super::scenery;

/// The number of tokens that are remembered, so that an expired token can be distinguished from
/// one that never existed.
const REMEMBERED: usize = 10_000;

/// The keys, and their tokens.
#[derive(Default)]
pub(super) struct Issuer {
    keys: HashMap<String, Key>,
    tokens: HashMap<String, Token>,
    issued: u64,
}

struct Key {
    secret: String,
    current: Option<String>,
}

struct Token {
    key: String,
    expires: Timestamp,
    revoked: bool,
}

/// The form of a token request. Fields that were left out are `None`.
#[derive(Clone, Copy, Default)]
pub struct TokenRequest<'a> {
    /// `grant_type`.
    pub grant_type: Option<&'a str>,
    /// `client_id`.
    pub client_id: Option<&'a str>,
    /// `client_secret`.
    pub client_secret: Option<&'a str>,
}

/// A token that was handed out.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// The token.
    pub access_token: String,
    /// When it expires.
    pub expires: Timestamp,
}

// === impl Issuer ===

impl Issuer {
    /// Answers a token request.
    pub(super) fn grant(
        &mut self,
        request: TokenRequest<'_>,
        options: &Options,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        match request.grant_type {
            Some("client_credentials") => {}
            other => {
                let other = other.unwrap_or_default().to_owned();
                return Err(Refusal::UnsupportedGrantType(other));
            }
        }
        let name = request.client_id.unwrap_or_default();
        let key = self.keys.get_mut(name).ok_or(Refusal::BadCredentials)?;
        if request.client_secret != Some(key.secret.as_str()) {
            return Err(Refusal::BadCredentials);
        }
        if options.shared_tokens
            && let Some(current) = &key.current
            && let Some(token) = self.tokens.get(current)
            && token.expires > now
            && (!token.revoked || options.stale_tokens)
        {
            return Ok(Grant {
                access_token: current.clone(),
                expires: token.expires,
            });
        }
        self.issued += 1;
        let access_token = scenery::uuid(scenery::mix(options.seed) ^ self.issued);
        let lifetime = SignedDuration::try_from(options.token_lifetime).unwrap_or_default();
        let expires = now.saturating_add(lifetime).unwrap_or(now);
        key.current = Some(access_token.clone());
        self.forget_old();
        let token = Token {
            key: name.to_owned(),
            expires,
            revoked: false,
        };
        self.tokens.insert(access_token.clone(), token);
        Ok(Grant {
            access_token,
            expires,
        })
    }

    /// Checks whether a token is valid.
    pub(super) fn check(
        &self,
        token: Option<&str>,
        options: &Options,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let token = token
            .and_then(|token| self.tokens.get(token))
            .ok_or(Refusal::UnknownToken)?;
        if token.revoked || token.expires <= now {
            return Err(Refusal::DeadToken(options.expired_status));
        }
        Ok(())
    }

    /// Revokes the tokens of a key, or of all keys. Returns how many.
    pub(super) fn revoke(&mut self, key: Option<&str>) -> usize {
        let mut revoked = 0;
        for token in self.tokens.values_mut() {
            if !token.revoked && key.is_none_or(|key| key == token.key) {
                token.revoked = true;
                revoked += 1;
            }
        }
        revoked
    }

    /// Gives a key a secret. Adds the key if it does not exist. Tokens stay valid.
    pub(super) fn set_secret(&mut self, key: &str, secret: &str) {
        match self.keys.get_mut(key) {
            Some(known) => secret.clone_into(&mut known.secret),
            None => {
                let new = Key {
                    secret: secret.to_owned(),
                    current: None,
                };
                self.keys.insert(key.to_owned(), new);
            }
        }
    }

    fn forget_old(&mut self) {
        if self.tokens.len() < REMEMBERED {
            return;
        }
        let mut expiries: Vec<_> = self.tokens.values().map(|token| token.expires).collect();
        let middle = expiries.len() / 2;
        let (_, limit, _) = expiries.select_nth_unstable(middle);
        let limit = *limit;
        self.tokens.retain(|_, token| token.expires >= limit);
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("keys", &self.keys.len())
            .field("issued", &self.issued)
            .finish_non_exhaustive()
    }
}

// === impl Grant ===

impl Grant {
    /// Returns the document of the token endpoint.
    pub fn to_json(&self, options: &Options, now: Timestamp) -> Value {
        let left = self.expires.duration_since(now).as_secs().max(0);
        let expires_in = match options.expires_in_as_string {
            true => json!(left.to_string()),
            false => json!(left),
        };
        json!({
            "access_token": self.access_token,
            "token_type": "bearer",
            "expires_in": expires_in,
            "scope": "global:manage",
        })
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TokenRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRequest")
            .field("grant_type", &self.grant_type)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn issuer() -> Issuer {
        let mut issuer = Issuer::default();
        issuer.set_secret("k", "s");
        issuer
    }

    const ASK: TokenRequest<'_> = TokenRequest {
        grant_type: Some("client_credentials"),
        client_id: Some("k"),
        client_secret: Some("s"),
    };

    #[test]
    fn a_token_is_shared_with_what_is_left_of_its_life() {
        let (mut issuer, options) = (issuer(), Options::default());
        let first = issuer.grant(ASK, &options, at(0)).unwrap();
        let second = issuer.grant(ASK, &options, at(7000)).unwrap();
        assert_eq!(first, second);
        assert_eq!(second.to_json(&options, at(7000))["expires_in"], 200);
        let third = issuer.grant(ASK, &options, at(7200)).unwrap();
        assert_ne!(first, third);
    }

    #[test]
    fn an_expired_token_is_dead_and_an_invented_one_unknown() {
        let (mut issuer, options) = (issuer(), Options::default());
        let grant = issuer.grant(ASK, &options, at(0)).unwrap();
        let check = |second| issuer.check(Some(&grant.access_token), &options, at(second));
        assert_eq!(check(7199), Ok(()));
        assert_eq!(check(7200), Err(Refusal::DeadToken(407)));
        let invented = issuer.check(Some("x"), &options, at(0));
        assert_eq!(invented, Err(Refusal::UnknownToken));
        let none = issuer.check(None, &options, at(0));
        assert_eq!(none, Err(Refusal::UnknownToken));
    }

    #[test]
    fn a_revoked_token_is_replaced_unless_the_server_is_stubborn() {
        let (mut issuer, mut options) = (issuer(), Options::default());
        let first = issuer.grant(ASK, &options, at(0)).unwrap();
        assert_eq!(issuer.revoke(Some("k")), 1);
        options.stale_tokens = true;
        assert_eq!(issuer.grant(ASK, &options, at(1)).unwrap(), first);
        options.stale_tokens = false;
        assert_ne!(issuer.grant(ASK, &options, at(1)).unwrap(), first);
    }

    #[test]
    fn a_rotated_secret_shuts_out_the_old_one() {
        let (mut issuer, options) = (issuer(), Options::default());
        issuer.grant(ASK, &options, at(0)).unwrap();
        issuer.set_secret("k", "other");
        assert_eq!(
            issuer.grant(ASK, &options, at(1)),
            Err(Refusal::BadCredentials)
        );
    }

    #[test]
    fn another_grant_type_is_refused_before_the_credentials() {
        let (mut issuer, options) = (issuer(), Options::default());
        let ask = TokenRequest {
            grant_type: Some("password"),
            ..TokenRequest::default()
        };
        let refused = issuer.grant(ask, &options, at(0)).unwrap_err();
        assert_eq!(refused.status(), 400);
        assert_eq!(
            refused.body()["error_description"],
            "Unsupported grant type: password"
        );
    }

    #[test]
    fn old_tokens_are_forgotten_in_the_end() {
        let (mut issuer, mut options) = (issuer(), Options::default());
        options.shared_tokens = false;
        for second in 0..2 * REMEMBERED as i64 {
            issuer.grant(ASK, &options, at(second)).unwrap();
        }
        assert!(issuer.tokens.len() <= REMEMBERED);
    }
}
