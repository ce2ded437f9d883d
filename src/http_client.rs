//! What the HTTP clients have in common, those of the API and of OTLP receivers above all.

use http::{HeaderMap, Uri, header::CONTENT_ENCODING};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, redirect, retry};

use crate::{names::Resolver, proxy};

/// What all clients have in common. A redirect might lead secrets anywhere.
pub(crate) fn bare() -> ClientBuilder {
    // A process has one; it does not matter who was first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .user_agent(concat!(
            env!("CARGO_PKG_NAME"),
            "/",
            env!("CARGO_PKG_VERSION")
        ))
        .redirect(redirect::Policy::none())
}

/// A client that is for these URLs, the proxy's among them where one is configured. Who repeats what
/// failed, and whether, is for its user.
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
        // A machine without CA certificates can talk plain HTTP all the same.
        builder.tls_certs_only([])
    }
}

/// Whether a body is compressed: the names of codings have no case, and the old one means the same.
pub(crate) fn is_gzip(headers: &HeaderMap) -> bool {
    let coding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    let coding = coding.unwrap_or_default().trim_ascii();
    [b"gzip".as_slice(), b"x-gzip"]
        .iter()
        .any(|name| coding.eq_ignore_ascii_case(name))
}

/// Whether TLS is spoken with the server of a URL, or with the proxy before it.
fn needs_tls(url: &str, proxies: &Matcher) -> bool {
    let is_https = |uri: &Uri| uri.scheme_str() == Some("https");
    // The client says what is wrong with one that cannot be read.
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
