//! URLs: what is accepted where. Messages never show a URL that may hold a password.

use http::Uri;

use super::problem::shown_value;

/// What is wrong with a URL, as the end of a sentence about its key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum UrlError {
    #[error("must not hold a user or a password")]
    Credentials,
    #[error("must not have a query or a fragment (? or #)")]
    Query,
    #[error("must start with https:// (or http://); write \"https://{0}\"")]
    NoScheme(String),
    #[error("must start with https:// or http://")]
    OtherScheme,
    #[error("is not a URL; write one like https://host or https://host:8443/path")]
    NotUrl,
}

/// A base URL: http or https, without user, query and fragment; the trailing slash is removed.
pub(super) fn base(text: &str) -> Result<String, UrlError> {
    let text = text.trim();
    endpoint(text)?;
    Ok(text.trim_end_matches('/').to_owned())
}

/// A whole URL, without user, query and fragment.
pub(super) fn endpoint(text: &str) -> Result<(), UrlError> {
    let rest = after_scheme(text)?;
    if text.contains(['?', '#']) {
        return Err(UrlError::Query);
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    check_authority(text)
}

/// A proxy's URL, which may hold a user and a password.
pub(super) fn proxy(text: &str) -> Result<(), UrlError> {
    let rest = after_scheme(text)?;
    let scheme = text.strip_suffix(rest).unwrap_or_default();
    // A password may hold what a URL cannot, such as the placeholder of a secret.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if host.contains(['?', '#']) {
        return Err(UrlError::Query);
    }
    check_authority(&format!("{scheme}{host}"))
}

/// Whether the URL sends what is secret over a network, unencrypted.
pub(super) fn is_plain_http_to_elsewhere(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("http") && !is_loopback
}

fn after_scheme(text: &str) -> Result<&str, UrlError> {
    match text.split_once("://") {
        Some((scheme, rest)) if is_http(scheme) => Ok(rest),
        Some(_) => Err(UrlError::OtherScheme),
        None if text.contains('@') || text.contains(char::is_whitespace) => Err(UrlError::NotUrl),
        None => {
            let rest = without_misspelt_scheme(text);
            check_authority(&format!("https://{rest}"))?;
            Err(UrlError::NoScheme(shown_value(rest)))
        }
    }
}

fn is_http(scheme: &str) -> bool {
    ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str())
}

/// What follows `http:`, `https//` or the like.
fn without_misspelt_scheme(text: &str) -> &str {
    match text.split_once([':', '/']) {
        Some((scheme, rest)) if is_http(scheme) => rest.trim_start_matches([':', '/']),
        _ => text,
    }
}

fn check_authority(url: &str) -> Result<(), UrlError> {
    let uri: Uri = url.parse().map_err(|_| UrlError::NotUrl)?;
    let authority = uri.authority().ok_or(UrlError::NotUrl)?;
    let has_bad_port =
        authority.as_str().len() > authority.host().len() && authority.port_u16().is_none();
    if authority.host().is_empty() || has_bad_port {
        return Err(UrlError::NotUrl);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_loses_its_trailing_slash() {
        assert_eq!(
            base("https://acme.api.opsramp.com/").unwrap(),
            "https://acme.api.opsramp.com"
        );
        assert_eq!(base("http://[::1]:8080/x/").unwrap(), "http://[::1]:8080/x");
    }

    #[test]
    fn what_a_base_url_cannot_be() {
        for (text, error) in [
            ("https://user:hunter2@host", UrlError::Credentials),
            ("https://host/?a=b", UrlError::Query),
            ("https://host/#a", UrlError::Query),
            (
                "acme.api.opsramp.com",
                UrlError::NoScheme("acme.api.opsramp.com".to_owned()),
            ),
            // A scheme that is misspelt is none of the host.
            (
                "http//acme.api.opsramp.com",
                UrlError::NoScheme("acme.api.opsramp.com".to_owned()),
            ),
            (
                "https:/acme.api.opsramp.com",
                UrlError::NoScheme("acme.api.opsramp.com".to_owned()),
            ),
            ("https", UrlError::NoScheme("https".to_owned())),
            ("https:", UrlError::NotUrl),
            ("${OPSRAMP_URL}", UrlError::NotUrl),
            ("user:hunter2@host", UrlError::NotUrl),
            ("ftp://host", UrlError::OtherScheme),
            ("https://", UrlError::NotUrl),
            ("https://ho st", UrlError::NotUrl),
            ("https://host:99999", UrlError::NotUrl),
            ("https://host:", UrlError::NotUrl),
        ] {
            assert_eq!(base(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_proxy_may_have_a_password_and_an_endpoint_has_no_query() {
        proxy("http://proxy:3128").unwrap();
        proxy("http://user:p@ss<word>@proxy:3128/").unwrap();
        assert_eq!(proxy("http://user:pw@"), Err(UrlError::NotUrl));
        assert_eq!(proxy("socks5://proxy"), Err(UrlError::OtherScheme));
        endpoint("http://loki:3100/otlp/v1/logs").unwrap();
        let query = endpoint("http://loki:3100/otlp/v1/logs?token=hunter2");
        assert_eq!(query, Err(UrlError::Query));
    }

    #[test]
    fn plain_http_is_fine_on_loopback_only() {
        assert!(is_plain_http_to_elsewhere("http://acme.api.opsramp.com"));
        assert!(!is_plain_http_to_elsewhere("https://acme.api.opsramp.com"));
        assert!(!is_plain_http_to_elsewhere("http://127.0.0.1:1"));
        assert!(!is_plain_http_to_elsewhere("http://[::1]:1"));
        assert!(!is_plain_http_to_elsewhere("http://localhost"));
    }
}
