//! The proxies that the environment names.
//!
//! The HTTP client silently ignores a value that it cannot read, and connects directly: the secret
//! then bypasses the proxy. So a variable that decides how one of the URLs is reached must be
//! valid. Variables that only concern other programs are not checked.

use std::ffi::OsString;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use super::{Config, Env, problem::Problem, url};
use crate::{deliver::Target, proxy};

/// The variables, by the scheme of the URL; the first one that is set counts.
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
/// These variables count if those of the scheme are not set.
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];

/// Returns what is wrong with the variables, each reported once.
pub(super) fn problems(config: &Config, env: Env<'_>) -> Vec<Problem> {
    let accounts = config.accounts.iter().map(|account| &account.options);
    let asked = accounts
        .filter(|options| options.proxy_url.is_none())
        .flat_map(|options| [&options.url, &options.token_url]);
    let delivered = config.sinks.iter().filter_map(|sink| match &sink.target {
        Target::Otlp(options) => Some(&options.endpoint),
        _ => None,
    });
    let mut wrong: Vec<&str> = asked
        .chain(delivered)
        .filter_map(|url| unusable(url, env))
        .collect();
    wrong.sort_unstable();
    wrong.dedup();
    let problem = |name| {
        Problem::of_input(
            name,
            "is not the URL of an HTTP proxy; write it as http://host:port, name the hosts that are \
             reached without one in NO_PROXY, or unset it",
        )
    };
    wrong.into_iter().map(problem).collect()
}

/// Returns the variable that says how to reach this URL, if its value is invalid.
fn unusable(url: &str, env: Env<'_>) -> Option<&'static str> {
    let uri: Uri = url.parse().ok()?;
    let (_, exceptions) = first(proxy::EXCEPTIONS, env).unwrap_or_default();
    let exceptions = exceptions.into_string().unwrap_or_default();
    if proxy::excepts_all(&exceptions) {
        return None;
    }
    let exceptions = Matcher::builder()
        .all("http://proxy")
        .no(exceptions)
        .build();
    exceptions.intercept(&uri)?;
    let by_scheme = match uri.scheme_str() {
        Some("https") => HTTPS,
        _ => HTTP,
    };
    // An empty variable counts as not set.
    let is_set = |(_, value): &(_, OsString)| !value.is_empty();
    let (name, value) = first(by_scheme, env)
        .filter(is_set)
        .or_else(|| first(ALL, env).filter(is_set))?;
    (!is_proxy(&value.into_string().unwrap_or_default())).then_some(name)
}

/// Returns the first of these variables that exists.
fn first(names: [&'static str; 2], env: Env<'_>) -> Option<(&'static str, OsString)> {
    let mut set = names
        .into_iter()
        .filter_map(|name| Some((name, env(name)?)));
    set.next()
}

/// Whether the HTTP client takes the value for a proxy, and can use that proxy.
fn is_proxy(value: &str) -> bool {
    let proxy = Matcher::builder().all(value.to_owned()).build();
    let any = Uri::from_static("https://host");
    proxy
        .intercept(&any)
        .is_some_and(|proxy| url::proxy(&proxy.uri().to_string()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(url: &str, variables: &[(&str, &str)]) -> Option<&'static str> {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        unusable(url, &env)
    }

    #[test]
    fn a_proxy_that_would_be_left_out_in_silence_is_told() {
        for value in [
            "'http://proxy:3128'",
            "http://proxy:3128 ",
            " http://proxy:3128",
            "http://proxy:3128\n",
            "http:/proxy:3128",
            "http//proxy:3128",
            "htpp://proxy:3128",
            "http://proxy:99999",
            "http://proxy:",
            "http://user:pa ss@proxy:3128",
            "socks5://proxy:1080",
        ] {
            let told = wrong("https://api.example", &[("HTTPS_PROXY", value)]);
            assert_eq!(told, Some("HTTPS_PROXY"), "{value:?}");
        }
        for value in [
            "",
            "proxy:3128",
            "proxy",
            "http://proxy:3128",
            "HTTP://proxy:3128/",
            "https://user:p%40ss@[::1]:3128/",
            "http://proxy_host:3128",
        ] {
            let told = wrong("https://api.example", &[("HTTPS_PROXY", value)]);
            assert_eq!(told, None, "{value:?}");
        }
    }

    #[test]
    fn of_the_variables_the_one_that_counts_for_a_url_is_looked_at() {
        let url = "https://api.example";
        let bad = "htpp://proxy";
        let good = "http://proxy";
        for (variables, told) in [
            (
                [("https_proxy", bad), ("HTTP_PROXY", good)],
                Some("https_proxy"),
            ),
            ([("HTTPS_PROXY", good), ("https_proxy", bad)], None),
            ([("HTTPS_PROXY", good), ("ALL_PROXY", bad)], None),
            ([("HTTPS_PROXY", ""), ("ALL_PROXY", bad)], Some("ALL_PROXY")),
            (
                [("HTTPS_PROXY", bad), ("ALL_PROXY", good)],
                Some("HTTPS_PROXY"),
            ),
            ([("HTTP_PROXY", bad), ("http_proxy", bad)], None),
            (
                [("HTTPS_PROXY", bad), ("NO_PROXY", "other, .example")],
                None,
            ),
            ([("HTTPS_PROXY", bad), ("no_proxy", "*")], None),
        ] {
            assert_eq!(wrong(url, &variables), told, "{variables:?}");
        }
        assert_eq!(
            wrong("http://127.0.0.1:4318/v1/logs", &[("HTTP_PROXY", bad)]),
            Some("HTTP_PROXY")
        );
        let off = [("HTTP_PROXY", bad), ("NO_PROXY", "*")];
        assert_eq!(wrong("http://127.0.0.1:4318/v1/logs", &off), None);
    }
}
