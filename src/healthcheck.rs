//! The command `healthcheck`: asks the exporter that runs on this machine whether it works. A
//! container image, which has no shell and no curl, can ask with the one program that it holds.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{StatusCode, Url};

use crate::{
    cli::Healthcheck,
    config::{ListenAddress, Web, WebFile},
};

/// Who has not answered by then hangs. Shorter than what container runtimes grant.
const PATIENCE: Duration = Duration::from_secs(5);
const PATH: &str = "/-/healthy";

/// Where to ask, and whether the certificate there must be one that others vouch for.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: Url,
    verify: bool,
}

/// Asks, and returns what the exporter says of itself: a line or more.
///
/// # Errors
/// Where it does not answer, and where it says that it does not work.
pub async fn run(web: &Web, healthcheck: &Healthcheck) -> anyhow::Result<String> {
    let target = match &healthcheck.url {
        Some(url) => Target {
            url: named(url)?,
            verify: !healthcheck.insecure,
        },
        None => own(web)?,
    };
    ask(target).await
}

async fn ask(Target { url, verify }: Target) -> anyhow::Result<String> {
    // A process has one; it does not matter who was first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("opsramp-exporter/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE);
    if url.scheme() == "http" || !verify {
        // Without CA certificates, which an image may lack.
        builder = builder
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true);
    }
    let answer = builder.build()?.get(url.clone()).send().await;
    let answer = answer
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    let said = answer.text().await.unwrap_or_default();
    if status != StatusCode::OK {
        bail!("{url} answers {status}: {}", said.trim_end());
    }
    Ok(said)
}

/// An address that the user named; its path may be left out.
fn named(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let mut url = url.with_context(|| {
        format!("--url: {text:?} is not a URL; write one like http://127.0.0.1:10836")
    })?;
    if url.path() == "/" {
        url.set_path(PATH);
    }
    Ok(url)
}

/// The first address that the configuration lets the exporter listen on. Its certificate is made
/// for the name that others know it by, so on the way to ourselves it is not verified; nothing
/// secret goes there.
fn own(web: &Web) -> anyhow::Result<Target> {
    let address = web.listen_addresses.first();
    let address = address.filter(|address| !web.systemd_socket && address.port != 0);
    let address = address.context(
        "the configuration does not say which port the exporter listens on; name its address: --url",
    )?;
    let scheme = match &web.config_file {
        Some(file) => WebFile::scheme(file)?,
        None => "http",
    };
    let reachable = ListenAddress {
        host: Some(match address.host.as_deref() {
            None | Some("0.0.0.0") => "127.0.0.1".to_owned(),
            Some("::") => "::1".to_owned(),
            Some(host) => host.to_owned(),
        }),
        port: address.port,
    };
    Ok(Target {
        url: Url::parse(&format!("{scheme}://{reachable}{PATH}"))?,
        verify: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(addresses: &[&str]) -> Web {
        Web {
            listen_addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            telemetry_path: "/metrics".to_owned(),
            config_file: None,
            enable_lifecycle: false,
            systemd_socket: false,
        }
    }

    #[test]
    fn the_own_address_is_one_that_can_be_reached() {
        for (address, url) in [
            (":10836", "http://127.0.0.1:10836/-/healthy"),
            ("0.0.0.0:1", "http://127.0.0.1:1/-/healthy"),
            ("[::]:1", "http://[::1]:1/-/healthy"),
            ("192.0.2.7:1", "http://192.0.2.7:1/-/healthy"),
            ("localhost:1", "http://localhost:1/-/healthy"),
        ] {
            assert_eq!(own(&web(&[address, ":2"])).unwrap().url.as_str(), url);
        }
        let from_systemd = Web {
            systemd_socket: true,
            ..web(&[":10836"])
        };
        for unknown in [web(&[":0"]), web(&[]), from_systemd] {
            assert!(own(&unknown).unwrap_err().to_string().contains("--url"));
        }
    }

    #[test]
    fn the_web_configuration_file_decides_about_tls() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let scheme = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let web = Web {
                config_file: Some(file.path().to_owned()),
                ..web(&[":10836"])
            };
            own(&web).map(|target| target.url.scheme().to_owned())
        };
        assert_eq!(scheme("").unwrap(), "http");
        assert_eq!(scheme("basic_auth_users: {a: b}\n").unwrap(), "http");
        let tls = "tls_server_config:\n  cert_file: a.pem\n  key_file: b.pem\n";
        assert_eq!(scheme(tls).unwrap(), "https");
        assert!(scheme("[").is_err());
    }

    #[test]
    fn a_web_configuration_file_that_is_broken_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hash = "$2b$12$not.to.be.seen";
        for text in [
            format!("basic_auth_users:\n  a: \"{hash}\n"),
            format!("tls_server_config:\n  key: |\n    {hash}\n  key: |\n    {hash}\n"),
        ] {
            std::fs::write(file.path(), &text).unwrap();
            let web = Web {
                config_file: Some(file.path().to_owned()),
                ..web(&[":10836"])
            };
            let error = format!("{:#}", own(&web).unwrap_err());
            let name = file.path().display().to_string();
            assert!(error.contains(&name) && !error.contains(hash), "{error}");
        }
    }

    #[test]
    fn an_address_may_be_named_with_or_without_a_path() {
        for (text, url) in [
            ("http://127.0.0.1:1", "http://127.0.0.1:1/-/healthy"),
            ("https://a.example/", "https://a.example/-/healthy"),
            ("http://[::1]:1/-/ready", "http://[::1]:1/-/ready"),
        ] {
            assert_eq!(named(text).unwrap().as_str(), url);
        }
        for wrong in ["", "127.0.0.1:1", "localhost:1", "ftp://a", "/-/healthy"] {
            let error = named(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--url: "), "{error}");
        }
    }
}
