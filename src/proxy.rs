//! Which proxy stands before a server, by the rules of the HTTP client.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use crate::secret::Secret;

/// The rules: one proxy for all, or what the environment says.
pub(crate) fn rules(proxy_url: Option<&Secret>) -> Matcher {
    match proxy_url {
        Some(url) => Matcher::builder().all(url.expose().to_owned()).build(),
        None => Matcher::from_system(),
    }
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
