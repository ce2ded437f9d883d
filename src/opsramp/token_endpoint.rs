//! The token endpoint: what it is asked, and what its answers mean.

use std::{slice, sync::Arc, time::Duration};

use reqwest::{Method, Url, header};
use serde::Deserialize;

use super::{
    Endpoint, Expiry, Observer, Options,
    allowance::Hints,
    error::Error,
    http::{Failed, Http, OnTheWire, redirect_or_excerpt},
    token::{Credentials, Grant, Issuer},
};
use crate::{
    clock,
    error_chain::chain,
    excerpt::Secrets,
    reading::{self, Reading},
    secret::{Secret, SecretSource},
};

/// The largest answer of the token endpoint, in bytes.
const MAX_TOKEN_ANSWER: u64 = 64 * 1024;
/// The life of a token whose answer does not state one.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);
/// The shortest life that is believed, so that tokens are not requested more often than this.
const MIN_LIFE: Duration = Duration::from_secs(1);
/// The longest life that is believed.
const MAX_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The token endpoint, asked over HTTP.
#[derive(Debug)]
pub(super) struct TokenEndpoint {
    http: Http,
    observer: Arc<dyn Observer>,
    reading: Reading<Result<Credentials, Error>>,
}

/// A token answer. `expires_in` is a number in the guide and a text in the OpenAPI file.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Secret,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
    #[serde(default)]
    scope: Option<serde_json::Value>,
}

/// A token, its life, and its scope if the endpoint stated it.
pub(super) type IssuedToken = (Secret, Duration, Option<String>);

// === impl TokenEndpoint ===

impl Issuer for TokenEndpoint {
    async fn credentials(&self) -> Result<Credentials, Error> {
        let options = Arc::clone(&self.http.options);
        let read = self.reading.read(move || read_credentials(&options)).await;
        read.unwrap_or_else(|| {
            Err(Error::auth(format!(
                "the files of client_id and client_secret could not be read within {} s",
                reading::LIMIT.as_secs()
            )))
        })
    }

    fn note_missing_credentials(&self, error: &Error) {
        self.observer.token_failed("credentials", error);
    }

    async fn request(&self, credentials: &Credentials) -> Result<Grant, Error> {
        self.http.reload_tls_files_if_due().await;
        self.observer.token_requested();
        let on_the_wire = OnTheWire::begin(Endpoint::Token, &*self.observer);
        let (status, asked) = self.ask(credentials).await;
        let took = on_the_wire.end(status);
        match asked {
            Ok((token, life, scope)) => {
                let expiry = Expiry::after(life, clock::now());
                self.observer.token_obtained(took, expiry);
                Ok(Grant {
                    token,
                    life,
                    scope,
                    took,
                })
            }
            Err(error) => {
                let reason = match error.reason() {
                    "auth" => "rejected",
                    "too_large" => "decode",
                    reason => reason,
                };
                self.observer.token_failed(reason, &error);
                Err(error)
            }
        }
    }
}

fn read_credentials(options: &Options) -> Result<Credentials, Error> {
    let read = |source: &SecretSource| {
        let read = source.read();
        read.map_err(|error| Error::auth(chain(&error)))
    };
    Ok(Credentials {
        id: read(&options.client_id)?,
        secret: read(&options.client_secret)?,
    })
}

impl TokenEndpoint {
    pub(super) fn new(http: Http, observer: Arc<dyn Observer>) -> Self {
        Self {
            http,
            observer,
            reading: Reading::default(),
        }
    }

    /// Returns the endpoint's name for messages. If its host is not the API's, the name includes
    /// the host, because the secret was sent there.
    fn name(&self) -> String {
        let url = Url::parse(&self.http.options.token_url).ok();
        let host = self.http.host(url.as_ref());
        if host == self.http.host(None) {
            "the token endpoint".to_owned()
        } else {
            format!("the token endpoint of {host}")
        }
    }

    async fn ask(&self, credentials: &Credentials) -> (Option<u16>, Result<IssuedToken, Error>) {
        let Credentials { id, secret } = credentials;
        let request = self
            .http
            .request(Method::POST, &self.http.options.token_url)
            .form(&[
                ("grant_type", "client_credentials"),
                ("client_id", id.expose()),
                ("client_secret", secret.expose()),
            ]);
        self.http.note_sent(id);
        self.http.note_sent(secret);
        let (status, headers, body, _room) = match self
            .http
            .exchange(Endpoint::Token, request, MAX_TOKEN_ANSWER)
            .await
        {
            Ok(answer) => answer,
            // A token request whose connection ends is not sent again, because it may have changed
            // something on the server.
            Err(Failed { status, error, .. }) => return (status, Err(error)),
        };
        Http::report_server_time(&headers, &*self.observer);
        let code = status.as_u16();
        let secrets = || Secrets::of(&self.http.sent_secrets());
        let shown = || secrets().excerpt(&body);
        let result = match code {
            200..=299 => read_token(code, &body).map(|(token, life, scope)| {
                // The scope is shown, and the server may write anything there.
                let secrets = [slice::from_ref(&token), &*self.http.sent_secrets()].concat();
                let secrets = Secrets::of(&secrets);
                let scope = scope.map(|scope| secrets.excerpt(scope.as_bytes()));
                (token, life, scope)
            }),
            400 | 401 | 403 => Err(Error::auth(format!(
                "{} rejects the credentials ({code}): {}",
                self.name(),
                shown()
            ))),
            429 => {
                let retry_after = Hints::read(code, &headers, clock::now()).retry_after;
                Err(Error::Throttled { retry_after })
            }
            _ => {
                let excerpt = redirect_or_excerpt(status, &headers, &body, &secrets());
                Err(Error::Http {
                    endpoint: Endpoint::Token.as_str(),
                    status: code,
                    excerpt,
                })
            }
        };
        (Some(code), result)
    }
}

/// Reads the body of a success with this status.
pub(super) fn read_token(status: u16, body: &[u8]) -> Result<IssuedToken, Error> {
    // No excerpt, because the body of a success holds the token in some form.
    let problem = |what: &str| Error::Decode {
        endpoint: Endpoint::Token.as_str(),
        what: format!("{status} with {what}"),
        excerpt: String::new(),
    };
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| problem("something that is no token answer"))?;
    let text = answer.access_token.expose();
    if text.is_empty() || header::HeaderValue::from_str(text).is_err() {
        return Err(problem("an access_token that no header can hold"));
    }
    let life = match answer.expires_in {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let life = life
        // A text can be `NaN`. Whether -1 means "for ever" is unknown.
        .filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
        .map_or(DEFAULT_LIFE, |seconds| {
            Duration::from_secs_f64(seconds.min(MAX_LIFE.as_secs_f64()))
        })
        .max(MIN_LIFE);
    let scope = answer
        .scope
        .and_then(|scope| scope.as_str().map(str::to_owned));
    Ok((answer.access_token, life, scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_nobody_can_read_is_as_one_that_is_not_told() {
        let life = |told: &str| {
            let answer = format!(r#"{{"access_token":"a"{told}}}"#);
            read_token(200, answer.as_bytes()).unwrap().1
        };
        for told in [
            "",
            r#","expires_in":"NaN""#,
            r#","expires_in":"inf""#,
            r#","expires_in":"soon""#,
            r#","expires_in":-1"#,
            r#","expires_in":null"#,
        ] {
            assert_eq!(life(told), DEFAULT_LIFE, "{told}");
        }
        assert_eq!(life(r#","expires_in":0"#), MIN_LIFE);
        assert_eq!(life(r#","expires_in":" 7199 ""#).as_secs(), 7199);
        assert_eq!(life(r#","expires_in":1e300"#), MAX_LIFE);
    }

    #[test]
    fn what_is_no_token_answer_is_told_with_its_status() {
        for (status, body, told) in [
            (204, "", "204 with something that is no token answer"),
            (
                200,
                r#"{"access_token":""}"#,
                "200 with an access_token that no header can hold",
            ),
            (
                200,
                r#"{"access_token":"a\nb"}"#,
                "200 with an access_token that no header can hold",
            ),
        ] {
            let error = read_token(status, body.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), format!("token answered {told}"));
        }
    }
}
