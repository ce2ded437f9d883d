//! What the HTTP clients have in common, above all those of the API and of OTLP receivers.

use std::io;
#[cfg(target_os = "linux")]
use std::time::Duration;

use anyhow::Chain;
use http::{HeaderMap, Uri, header::CONTENT_ENCODING};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, redirect, retry};

use crate::{names::Resolver, proxy};

/// How long the other side may leave what was sent unacknowledged before the connection is closed.
/// A receiver that answers early and reads no more would keep the rest of the body in memory.
#[cfg(target_os = "linux")]
const UNREAD_FOR: Duration = Duration::from_secs(30);

/// Returns a builder with what all clients have in common. Redirects are not followed, because
/// they might lead secrets anywhere.
pub(crate) fn bare() -> ClientBuilder {
    // A process has one provider, and it does not matter who has installed it first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let builder = reqwest::Client::builder();
    #[cfg(target_os = "linux")]
    let builder = builder.tcp_user_timeout(UNREAD_FOR);
    builder
        .user_agent(concat!(
            env!("CARGO_PKG_NAME"),
            "/",
            env!("CARGO_PKG_VERSION")
        ))
        .redirect(redirect::Policy::none())
}

/// Returns a builder of a client for these URLs, including the URL of a configured proxy. The
/// client does not repeat failed requests: its user decides about that.
pub(crate) fn builder(urls: &[&str]) -> ClientBuilder {
    let builder = bare().retry(retry::never()).dns_resolver(Resolver);
    let builder = if proxy::are_switched_off() {
        builder.no_proxy()
    } else {
        builder
    };
    let environment = proxy::rules(None);
    if urls.iter().any(|url| needs_tls(url, &environment)) {
        builder
    } else {
        // Without roots to load, plain HTTP also works on a machine that has no CA certificates.
        builder.tls_certs_only([])
    }
}

/// Whether a body is compressed with gzip. Names of codings are case-insensitive, and the old name
/// `x-gzip` means the same.
pub(crate) fn is_gzip(headers: &HeaderMap) -> bool {
    let coding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    let coding = coding.unwrap_or_default().trim_ascii();
    [b"gzip".as_slice(), b"x-gzip"]
        .iter()
        .any(|name| coding.eq_ignore_ascii_case(name))
}

/// The errors of reading and writing among an error and its causes.
pub(crate) fn io_errors(error: &reqwest::Error) -> impl Iterator<Item = &io::Error> {
    Chain::new(error).filter_map(|error| error.downcast_ref())
}

/// Whether TLS is spoken with the server of a URL, or with the proxy before it.
fn needs_tls(url: &str, proxies: &Matcher) -> bool {
    let is_https = |uri: &Uri| uri.scheme_str() == Some("https");
    // The client itself reports a URL that cannot be parsed.
    url.parse().map_or(true, |url: Uri| {
        is_https(&url)
            || proxies
                .intercept(&url)
                .is_some_and(|proxy| is_https(proxy.uri()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encrypted_proxy_needs_certificates_also_before_a_plain_url() {
        let proxies = |http: &str| {
            let builder = Matcher::builder().http(http.to_owned());
            builder.no("127.0.0.1").build()
        };
        for (url, proxy, tls) in [
            ("http://api.example", "", false),
            ("http://api.example", "http://proxy:3128", false),
            ("http://api.example", "https://proxy:3128", true),
            ("http://127.0.0.1:4318/v1/logs", "https://proxy:3128", false),
            ("https://api.example", "http://proxy:3128", true),
            ("HTTPS://api.example", "", true),
        ] {
            assert_eq!(needs_tls(url, &proxies(proxy)), tls, "{url} {proxy}");
        }
    }
}
