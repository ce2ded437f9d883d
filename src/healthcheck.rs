//! The command `healthcheck`: asks the exporter that runs on this machine whether it works. The
//! container image has no shell and no curl, so it asks with the one program that it holds.

use std::{slice, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use crate::{
    cli::Healthcheck,
    config::{ConfigError, ListenAddress, Web, WebFile},
    error_chain::tls_error,
    http_client, logging, reading,
};

/// Time limit for the whole command, files and answer together. Container runtimes grant more.
const PATIENCE: Duration = Duration::from_secs(5);
/// The part of this time that files may take. If they hang, the rest is left to ask the exporter.
const FOR_FILES: Duration = Duration::from_secs(2);
const PATH: &str = "/-/healthy";
/// The part of an answer that is read, in bytes. The exporter's own answers are a few lines.
const MAX_ANSWER: usize = 64 * 1024;

/// The deadlines of the command.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For the configuration files.
    files: Instant,
    /// For everything.
    all: Instant,
}

/// Where to ask, and whether the certificate there must be signed by an authority that is trusted.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: Url,
    verify: bool,
}

/// Printed if the exporter refuses clients without a certificate.
const ALIVE: &str =
    "it answers only clients with a certificate, so that more than that it is alive is not known\n";

/// Asks the exporter, and returns what it says of itself: a line or more. If somebody writes a
/// mistake into the configuration file, a running exporter goes on with the configuration that it
/// has. So if the file cannot be read (`load`), flags and defaults (`of_flags`) say where to ask.
///
/// # Errors
/// If the exporter does not answer, or says that it does not work.
pub async fn run(
    of_flags: Web,
    load: impl FnOnce() -> Result<Web, ConfigError> + Send + 'static,
    healthcheck: &Healthcheck,
) -> anyhow::Result<String> {
    let limits = Limits::from_now();
    if let Some(url) = healthcheck.url.clone() {
        let verify = !healthcheck.insecure;
        return check(&Target { url, verify }, limits).await;
    }
    let (web, unread) = match reading::once_until(limits.files, load).await {
        Some(Ok(web)) => (web, None),
        Some(Err(error)) => (of_flags, Some(anyhow::Error::new(error))),
        None => {
            let limit = FOR_FILES.as_secs();
            let error = anyhow!("the configuration file could not be read within {limit} s");
            (of_flags, Some(error))
        }
    };
    let address = own(&web)?;
    if let Some(error) = &unread {
        // Somebody who reads that all is well should know which exporter was asked.
        logging::print_message(&format!(
            "warning: {error:#}; what answers on {address} is asked"
        ));
    }
    let scheme = match unread {
        Some(error) if web.config_file.is_none() => Err(error),
        _ => scheme(&web, limits).await,
    };
    match scheme {
        Ok(scheme) => check(&target(&address, scheme)?, limits).await,
        // The exporter goes on with the file as it was when it could be read, so either scheme may
        // be right.
        Err(unread) => {
            let https = target(&address, "https")?;
            match ask(&https, limits).await {
                Err(error) if !error.is_timeout() => {}
                answer => return verdict(&https, answer),
            }
            check(&target(&address, "http")?, limits)
                .await
                .with_context(|| format!("{unread:#}, so that https and http were tried"))
        }
    }
}

// === impl Limits ===

impl Limits {
    fn from_now() -> Self {
        let now = Instant::now();
        Self {
            files: now + FOR_FILES,
            all: now + PATIENCE,
        }
    }
}

/// The scheme of an exporter with this configuration, `http` or `https`.
async fn scheme(web: &Web, limits: Limits) -> anyhow::Result<&'static str> {
    let Some(file) = web.config_file.clone() else {
        return Ok("http");
    };
    let unread = format!(
        "the web configuration file {}",
        reading::unread_within(FOR_FILES, slice::from_ref(&file))
    );
    let read = reading::once_until(limits.files, move || WebFile::scheme(&file)).await;
    Ok(read.context(unread)??)
}

async fn check(target: &Target, limits: Limits) -> anyhow::Result<String> {
    verdict(target, ask(target, limits).await)
}

async fn ask(
    Target { url, verify }: &Target,
    limits: Limits,
) -> reqwest::Result<(StatusCode, String)> {
    let mut builder = http_client::bare()
        .no_proxy()
        .timeout(limits.all.saturating_duration_since(Instant::now()));
    if url.scheme() == "http" || !verify {
        // This needs no CA certificates, which an image may lack.
        builder = builder
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true);
    }
    match builder.build()?.get(url.clone()).send().await {
        Err(error) if wants_certificate(&error) => Ok((StatusCode::OK, ALIVE.to_owned())),
        answer => {
            let mut answer = answer?;
            let mut said = Vec::new();
            while said.len() < MAX_ANSWER
                && let Some(chunk) = answer.chunk().await?
            {
                said.extend_from_slice(&chunk);
            }
            said.truncate(MAX_ANSWER);
            let said = String::from_utf8_lossy(&said);
            // The exporter's own answers hold no other control characters. Those of something else
            // that listens there may not steer a terminal.
            let is_plain = |c: &char| *c == '\n' || !c.is_control();
            Ok((answer.status(), said.chars().filter(is_plain).collect()))
        }
    }
}

fn verdict(
    Target { url, .. }: &Target,
    answer: reqwest::Result<(StatusCode, String)>,
) -> anyhow::Result<String> {
    // Messages must not show the password.
    let mut url = url.clone();
    url.set_username("").ok();
    url.set_password(None).ok();
    let (status, said) = answer.map_err(|error| {
        let what = match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(_)) => {
                "shows a certificate that is not trusted here (--insecure accepts any)"
            }
            _ => "does not answer",
        };
        anyhow::Error::new(error.without_url()).context(format!("{url} {what}"))
    })?;
    if status != StatusCode::OK {
        bail!("{url} answers {status}: {}", said.trim_end());
    }
    Ok(said)
}

/// Whether a TLS server has refused this client because it has no certificate. Such a server
/// works.
fn wants_certificate(error: &reqwest::Error) -> bool {
    let refusal = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
    tls_error(error) == Some(&refusal)
}

/// Parses an address that the user named; its path may be left out.
///
/// # Errors
/// If the text is no such URL.
pub fn named(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // The text is not repeated, because it may hold a password.
    let mut url = url.context("--url: is not a URL; write one like http://127.0.0.1:10836")?;
    if url.path() == "/" {
        url.set_path(PATH);
    }
    Ok(url)
}

/// The first address that the configuration lets the exporter listen on.
fn own(web: &Web) -> anyhow::Result<ListenAddress> {
    let address = web.listen_addresses.first();
    let address = address.filter(|address| !web.systemd_socket && address.port != 0);
    let address = address.context(
        "the configuration does not say which port the exporter listens on; name its address: --url",
    )?;
    Ok(ListenAddress {
        host: Some(match address.host.as_deref() {
            None | Some("0.0.0.0") => "127.0.0.1".to_owned(),
            Some("::") => "::1".to_owned(),
            Some(host) => host.to_owned(),
        }),
        port: address.port,
    })
}

/// The target at the exporter's own address. The certificate is made for the name that others know
/// the exporter by, so it is not verified here. Nothing secret is sent there.
fn target(address: &ListenAddress, scheme: &str) -> anyhow::Result<Target> {
    Ok(Target {
        url: Url::parse(&format!("{scheme}://{address}{PATH}"))?,
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
            let own = own(&web(&[address, ":2"])).unwrap();
            assert_eq!(target(&own, "http").unwrap().url.as_str(), url);
        }
        let from_systemd = Web {
            systemd_socket: true,
            ..web(&[":10836"])
        };
        for unknown in [web(&[":0"]), web(&[]), from_systemd] {
            assert!(own(&unknown).unwrap_err().to_string().contains("--url"));
        }
    }

    #[tokio::test]
    async fn files_that_hang_and_who_does_not_answer_take_no_longer_together() {
        // The server accepts connections and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = || web(&[&silent.local_addr().unwrap().to_string()]);
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("web.yml");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let with_pipe = Web {
            config_file: Some(pipe.clone()),
            ..own()
        };
        let (come, comes) = std::sync::mpsc::channel();
        let healthcheck = Healthcheck {
            url: None,
            insecure: false,
        };
        let (by_itself, later) = (with_pipe.clone(), own());
        let began = Instant::now();
        let ended = tokio::join!(
            run(own(), move || Ok(by_itself), &healthcheck),
            run(
                with_pipe,
                move || comes.recv().unwrap_or(Ok(later)),
                &healthcheck
            ),
        );
        let took = began.elapsed();
        // What hangs is released, because the test could not end otherwise.
        drop(come);
        std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        for ended in [ended.0, ended.1] {
            let told = format!("{:#}", ended.unwrap_err());
            assert!(told.contains("does not answer"), "{told}");
        }
        assert!(took < PATIENCE + Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test]
    async fn an_answer_is_shown_as_text_of_a_bounded_length_and_must_be_whole() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        async fn answered(head: &str, body: &[u8], times: usize) -> anyhow::Result<String> {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let healthcheck = Healthcheck {
                url: Some(named(&url).unwrap()),
                insecure: false,
            };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                for _ in 0..times {
                    // The client may have read enough.
                    stream.write_all(body).await.ok();
                }
            };
            let unread = || panic!("the address is named");
            tokio::join!(run(web(&[]), unread, &healthcheck), serve).0
        }

        let plain = answered("Content-Length: 12", b"a\x1b[2J\r\nb\n\xff\0c", 1);
        assert_eq!(plain.await.unwrap(), "a[2J\nb\n\u{fffd}c");
        let huge = answered("Connection: close", &[b'a'; 4096], 4096);
        assert_eq!(huge.await.unwrap().len(), MAX_ANSWER);
        let cut = answered("Content-Length: 9", b"healthy", 1)
            .await
            .unwrap_err();
        assert!(format!("{cut:#}").contains("does not answer"), "{cut:#}");
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
