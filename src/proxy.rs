//! Which proxy stands before a server, by the rules of the HTTP client.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use crate::secret::Secret;

/// Who is asked without a proxy; the first one that is set counts.
pub(crate) const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The rules: one proxy for all, or what the environment says.
pub(crate) fn rules(proxy_url: Option<&Secret>) -> Matcher {
    match proxy_url {
        Some(url) => Matcher::builder().all(url.expose().to_owned()).build(),
        None if are_switched_off() => Matcher::builder().build(),
        None => Matcher::from_system(),
    }
}

/// Whether the environment has everybody asked without a proxy.
pub(crate) fn are_switched_off() -> bool {
    let mut set = EXCEPTIONS
        .iter()
        .filter_map(|name| std::env::var(name).ok());
    set.next()
        .is_some_and(|exceptions| excepts_all(&exceptions))
}

/// Whether nobody is left. For the HTTP client, `*` does not stand for addresses.
pub(crate) fn excepts_all(exceptions: &str) -> bool {
    exceptions.split(',').any(|except| except.trim() == "*")
}

/// Host and port of the proxy that stands before a server: its URL may hold a password.
pub(crate) fn before(proxy_url: Option<&Secret>, server: &str) -> Option<String> {
    let proxy = rules(proxy_url).intercept(&server.parse().ok()?)?;
    let host = proxy.uri().host()?;
    Some(match proxy.uri().port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// What proves to the proxies before these servers who asks: values of `Proxy-Authorization`.
pub(crate) fn authorizations<'a>(
    proxy_url: Option<&Secret>,
    servers: impl IntoIterator<Item = &'a str>,
) -> Vec<Secret> {
    let rules = rules(proxy_url);
    let mut values: Vec<Secret> = Vec::new();
    for server in servers {
        let proxy = server
            .parse::<Uri>()
            .ok()
            .and_then(|server| rules.intercept(&server));
        if let Some(value) = proxy.as_ref().and_then(|proxy| proxy.basic_auth())
            && let Ok(value) = value.to_str()
        {
            let value = Secret::new(value);
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_excepts_everybody_wherever_it_is_listed() {
        for exceptions in ["*", " * ", "127.0.0.1,*", "*, x"] {
            assert!(excepts_all(exceptions), "{exceptions}");
        }
        for exceptions in ["", "*.example", "a,b", ".example"] {
            assert!(!excepts_all(exceptions), "{exceptions}");
        }
    }

    #[test]
    fn a_proxy_is_named_without_its_password() {
        let before = |url: &str| before(Some(&Secret::new(url)), "http://api.example/x");
        let named = before("http://me:pass@proxy:3128/");
        assert_eq!(named.as_deref(), Some("proxy:3128"));
        let named = before("http://me:pass@[::1]");
        assert_eq!(named.as_deref(), Some("[::1]"));
    }

    #[test]
    fn what_a_proxy_is_sent_is_known() {
        let values = |url: &str| -> Vec<_> {
            let servers = ["http://a.example", "https://b.example/token"];
            let values = authorizations(Some(&Secret::new(url)), servers);
            values
                .iter()
                .map(|value| value.expose().to_owned())
                .collect()
        };
        assert_eq!(
            values("http://me:p%40ss@proxy:3128"),
            ["Basic bWU6cEBzcw=="]
        );
        assert!(values("http://proxy:3128").is_empty());
    }
}
