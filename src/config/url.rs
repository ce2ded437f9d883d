//! Checks of URLs. Messages never show a URL that may hold a password.

use http::Uri;

use super::problem::shown_value;

/// What is wrong with a URL, as the end of a sentence about its key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum UrlError {
    #[error("must not hold a user or a password")]
    Credentials,
    #[error("must not have a query or a fragment (? or #)")]
    Query,
    #[error("{0}")]
    NoScheme(String),
    #[error("must start with https:// or http://")]
    OtherScheme,
    #[error(
        "has a $ in its host or port, and variables are not expanded; write the host and the port themselves"
    )]
    Variable,
    #[error("is not a URL; write one like {}", .0.example())]
    NotUrl(Kind),
}

/// What a URL leads to. Each kind has its own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The API. Its secrets belong on https.
    Api,
    /// A proxy, which rarely speaks TLS itself.
    Proxy,
    /// An OTLP receiver, usually near and without TLS. Its URL includes a path.
    Receiver,
}

// === impl Kind ===

impl Kind {
    fn example(self) -> &'static str {
        match self {
            Self::Api => "https://host or https://host:8443/path",
            Self::Proxy => "http://proxy:3128 or http://user:password@proxy:3128",
            Self::Receiver => "http://loki:3100/otlp/v1/logs",
        }
    }

    /// Says what to write instead of a URL without a valid scheme. `misspelt` is the scheme that
    /// was evidently meant, if any; `rest` is the URL without it.
    fn advice(self, misspelt: Option<&str>, rest: &str) -> String {
        let scheme = match (self, misspelt) {
            (_, Some(scheme)) => scheme,
            (Self::Api, None) => "https",
            (Self::Proxy | Self::Receiver, None) => "http",
        };
        let shown = shown_value(rest);
        match self {
            Self::Api => {
                format!("must start with https:// (or http://); write \"{scheme}://{shown}\"")
            }
            Self::Receiver if has_no_path(rest) => format!(
                "must have its scheme and its path; write \"{scheme}://{}{LOGS_PATH}\", or {LOKI_PATH} behind the \
                 host if it is Grafana Loki",
                shown.trim_end_matches('/')
            ),
            Self::Proxy | Self::Receiver => {
                format!("must start with http:// (or https://); write \"{scheme}://{shown}\"")
            }
        }
    }
}

/// The paths at which OTLP receivers and Grafana Loki take logs.
pub(super) const LOGS_PATH: &str = "/v1/logs";
pub(super) const LOKI_PATH: &str = "/otlp/v1/logs";

/// Checks a base URL (http or https, no user, query or fragment), and returns it without its
/// trailing slash.
pub(super) fn base(text: &str) -> Result<String, UrlError> {
    let text = text.trim();
    whole(Kind::Api, text)?;
    Ok(text.trim_end_matches('/').to_owned())
}

/// Checks the whole URL of an OTLP receiver, which has no user, query or fragment.
pub(super) fn endpoint(text: &str) -> Result<(), UrlError> {
    whole(Kind::Receiver, text)
}

fn whole(kind: Kind, text: &str) -> Result<(), UrlError> {
    let rest = after_scheme(kind, text)?;
    if text.contains(['?', '#']) {
        return Err(UrlError::Query);
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    check_authority(kind, text)
}

/// Checks a proxy's URL, which may hold a user and a password.
pub(super) fn proxy(text: &str) -> Result<(), UrlError> {
    let rest = after_scheme(Kind::Proxy, text)?;
    let scheme = text.strip_suffix(rest).unwrap_or_default();
    // A password may hold characters that a URL cannot, such as the placeholder of a secret, so
    // only scheme and host are parsed.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if host.contains(['?', '#']) {
        return Err(UrlError::Query);
    }
    check_authority(Kind::Proxy, &format!("{scheme}{host}"))
}

/// Whether a URL, with or without its scheme, has no path behind its host.
pub(super) fn has_no_path(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split_once('/')
        .is_none_or(|(_, path)| path.trim_matches('/').is_empty())
}

/// Whether the URL sends secrets unencrypted over a network.
pub(crate) fn is_plain_http_to_elsewhere(url: &str) -> bool {
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

fn after_scheme(kind: Kind, text: &str) -> Result<&str, UrlError> {
    match text.split_once("://") {
        Some((scheme, rest)) if is_http(scheme) => Ok(rest),
        Some(_) => Err(UrlError::OtherScheme),
        None if text.contains('@') || text.contains(char::is_whitespace) => {
            Err(UrlError::NotUrl(kind))
        }
        // The advice would repeat the text, and a query or fragment may hold a token.
        None if text.contains(['?', '#']) => Err(UrlError::Query),
        None => {
            let (scheme, rest) = misspelt_scheme(text);
            check_authority(kind, &format!("https://{rest}"))?;
            let scheme = scheme.map(str::to_ascii_lowercase);
            Err(UrlError::NoScheme(kind.advice(scheme.as_deref(), rest)))
        }
    }
}

fn is_http(scheme: &str) -> bool {
    ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str())
}

/// Splits a misspelt scheme (`http:`, `https//` or the like) off a text, and returns both parts.
fn misspelt_scheme(text: &str) -> (Option<&str>, &str) {
    match text.split_once([':', '/']) {
        Some((scheme, rest)) if is_http(scheme) => {
            (Some(scheme), rest.trim_start_matches([':', '/']))
        }
        _ => (None, text),
    }
}

fn check_authority(kind: Kind, url: &str) -> Result<(), UrlError> {
    let not_url = UrlError::NotUrl(kind);
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    // Checked before parsing, because a text with the braces of a variable is no URL at all.
    if rest.split('/').next().is_some_and(|it| it.contains('$')) {
        return Err(UrlError::Variable);
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return Err(not_url);
    };
    let Some(authority) = uri.authority() else {
        return Err(not_url);
    };
    let has_bad_port =
        authority.as_str().len() > authority.host().len() && authority.port_u16().is_none();
    if authority.host().is_empty() || has_bad_port {
        return Err(not_url);
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
        const NOT_URL: UrlError = UrlError::NotUrl(Kind::Api);
        for (text, error) in [
            ("https://user:hunter2@host", UrlError::Credentials),
            ("https://host/?a=b", UrlError::Query),
            ("https://host/#a", UrlError::Query),
            ("https:", NOT_URL),
            ("${OPSRAMP_URL}", UrlError::Variable),
            ("user:hunter2@host", NOT_URL),
            ("ftp://host", UrlError::OtherScheme),
            ("https://", NOT_URL),
            ("https://ho st", NOT_URL),
            ("https://host:99999", NOT_URL),
            ("https://host:", NOT_URL),
            ("https://$HOST", UrlError::Variable),
            ("https://api.$DOMAIN:443/x", UrlError::Variable),
            ("$HOST:443", UrlError::Variable),
            ("https://${HOST}", UrlError::Variable),
            ("${HOST}/x", UrlError::Variable),
            ("https://acme.${DOMAIN}:443", UrlError::Variable),
            ("https://acme:$PORT", UrlError::Variable),
            ("https://acme:${PORT}/x", UrlError::Variable),
        ] {
            assert_eq!(base(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_to_write_instead_has_the_scheme_that_was_meant() {
        let told = |checked: Result<(), UrlError>| match checked {
            Err(UrlError::NoScheme(told)) => told,
            other => panic!("{other:?}"),
        };
        for (text, written) in [
            ("acme.api.opsramp.com", "https://acme.api.opsramp.com"),
            // A misspelt scheme is not taken for a part of the host.
            (
                "https:/acme.api.opsramp.com",
                "https://acme.api.opsramp.com",
            ),
            ("http//127.0.0.1:1", "http://127.0.0.1:1"),
            ("https", "https://https"),
        ] {
            let told = told(base(text).map(drop));
            assert!(told.ends_with(&format!("; write \"{written}\"")), "{told}");
        }
        for (text, written) in [
            ("proxy:3128", "http://proxy:3128"),
            ("http//proxy:3128", "http://proxy:3128"),
            ("HTTPS:proxy:3128", "https://proxy:3128"),
        ] {
            let told = told(proxy(text));
            assert!(told.ends_with(&format!("; write \"{written}\"")), "{told}");
        }
        for (text, written) in [
            ("loki:3100", "http://loki:3100/v1/logs"),
            ("loki:3100/", "http://loki:3100/v1/logs"),
            ("https:/loki", "https://loki/v1/logs"),
        ] {
            let told = told(endpoint(text));
            let advice = format!("write \"{written}\", or /otlp/v1/logs behind the host");
            assert!(told.contains(&advice), "{told}");
        }
        let told = told(endpoint("loki:3100/otlp/v1/logs"));
        let advice = "; write \"http://loki:3100/otlp/v1/logs\"";
        assert!(told.ends_with(advice), "{told}");
    }

    #[test]
    fn what_to_write_instead_shows_neither_a_query_nor_a_password() {
        for text in [
            "otlp.example.com/v1/logs?api_key=hunter2",
            "https//otlp.example.com/v1/logs?api_key=hunter2",
            "http:/otlp:4318?hunter2",
            "otlp.example.com#hunter2",
            "user:hunter2@otlp.example.com",
            "https//user:hunter2@otlp.example.com/v1/logs?x",
            "https//hunter2@otlp.example.com#x",
        ] {
            let is_query = !text.contains('@');
            for (told, kind) in [
                (base(text).map(drop), Kind::Api),
                (proxy(text), Kind::Proxy),
                (endpoint(text), Kind::Receiver),
            ] {
                let told = told.unwrap_err();
                let expected = match is_query {
                    true => UrlError::Query,
                    false => UrlError::NotUrl(kind),
                };
                assert_eq!(told, expected, "{text}");
                assert!(!told.to_string().contains("hunter"), "{told}");
            }
        }
    }

    #[test]
    fn a_url_ends_with_its_host_or_goes_on() {
        for url in ["http://loki:3100", "http://loki:3100/", "loki", "loki//"] {
            assert!(has_no_path(url), "{url}");
        }
        for url in ["http://loki:3100/v1/logs", "loki/x", "http://loki/x/"] {
            assert!(!has_no_path(url), "{url}");
        }
    }

    #[test]
    fn a_proxy_may_have_a_password_and_an_endpoint_has_no_query() {
        proxy("http://proxy:3128").unwrap();
        proxy("http://user:p@ss<word>@proxy:3128/").unwrap();
        assert_eq!(proxy("http://user:pw@"), Err(UrlError::NotUrl(Kind::Proxy)));
        assert_eq!(proxy("socks5://proxy"), Err(UrlError::OtherScheme));
        proxy("http://user:$PASSWORD@proxy:3128").unwrap();
        proxy("http://user:${PASSWORD}@proxy:3128").unwrap();
        for text in ["http://user:pw@$PROXY:3128", "http://u:p@proxy:${PORT}"] {
            assert_eq!(proxy(text), Err(UrlError::Variable), "{text}");
        }
        let variable = endpoint("http://${LOKI}:3100/otlp/v1/logs");
        assert_eq!(variable, Err(UrlError::Variable));
        endpoint("http://loki:3100/otlp/v1/logs").unwrap();
        let query = endpoint("http://loki:3100/otlp/v1/logs?token=hunter2");
        assert_eq!(query, Err(UrlError::Query));
    }

    #[test]
    fn plain_http_is_fine_on_loopback_only() {
        assert!(is_plain_http_to_elsewhere("http://acme.api.opsramp.com"));
        assert!(!is_plain_http_to_elsewhere("https://acme.api.opsramp.com"));
        assert!(!is_plain_http_to_elsewhere("http://127.8.0.1:1"));
        assert!(!is_plain_http_to_elsewhere("http://[::1]:1"));
        assert!(!is_plain_http_to_elsewhere("http://localhost"));
    }
}
