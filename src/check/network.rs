//! The way to a server: the proxy, if one applies, the look-up of the name, the connection, the
//! tunnel.
//!
//! It takes the same way as the HTTP client: the same proxy rules, the same resolver, the same
//! time limit. It knows nothing of TLS, nor of the requests.

use std::{fmt, future::Future, net::SocketAddr, time::Duration};

use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::report::{Outcome, Passed, Trouble};
use crate::{opsramp::Options, proxy};

/// Maximum size of a proxy's answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 10;

/// Time lost to silent addresses that a client does not notice, because it tries address families
/// in turns.
const NOTICEABLE_DELAY: Duration = Duration::from_millis(300);

/// Maximum number of addresses that are shown.
const SHOWN: usize = 4;

/// A server to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Whether the server speaks TLS.
    pub(super) tls: bool,
    /// The name or address, an IPv6 address without brackets.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
}

/// A proxy that applies.
pub(super) struct Proxy {
    pub(super) endpoint: Endpoint,
    intercept: Intercept,
    /// Where the proxy is set.
    pub(super) from: &'static str,
}

/// A connection, plain or inside another one.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection.
pub(super) type Connection = Box<dyn Stream>;

// === impl Endpoint ===

impl Endpoint {
    /// Returns the server of a URL; `None` if it is not an `http` or `https` URL.
    pub(super) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl Proxy ===

impl Proxy {
    /// Returns the proxy before a server, by the rules of the HTTP client.
    pub(super) fn before(endpoint: &Endpoint, options: &Options) -> Option<Result<Self, Trouble>> {
        let from = match &options.proxy_url {
            Some(_) => "proxy_url",
            None => "the environment",
        };
        let scheme = if endpoint.tls { "https" } else { "http" };
        let target: Uri = format!("{scheme}://{endpoint}/").parse().ok()?;
        let rules = proxy::rules(options.proxy_url.as_ref().map(|url| &url.0));
        let intercept = rules.intercept(&target)?;
        // The proxy's URL may hold a password, so it is never shown whole.
        let uri = intercept.uri();
        let scheme = uri.scheme_str().unwrap_or("http");
        Some(match Endpoint::of(&uri.to_string()) {
            Some(endpoint) => Ok(Self {
                endpoint,
                intercept,
                from,
            }),
            None => Err(Trouble::new(
                format!("{from} names a proxy of the kind {scheme}, which is not supported"),
                "name one that starts with http:// or https://, or except this host in NO_PROXY",
            )),
        })
    }

    /// Asks the proxy for a tunnel to a server.
    pub(super) async fn tunnel(
        &self,
        to: &Endpoint,
        mut through: Connection,
    ) -> Outcome<Connection> {
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        if let Some(Ok(password)) = self.intercept.basic_auth().map(|value| value.to_str()) {
            request.push_str(&format!("Proxy-Authorization: {password}\r\n"));
        }
        request.push_str("\r\n");
        let broken = |error: std::io::Error| {
            Trouble::new(
                format!("the proxy breaks the connection off: {error}"),
                format!("ask the proxy's administrators whether it lets this host reach {to}"),
            )
        };
        through
            .write_all(request.as_bytes())
            .await
            .map_err(broken)?;
        let mut answer = Vec::new();
        // The answer is read byte by byte, because the bytes behind its head come from the server.
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < MAX_ANSWER {
            answer.push(through.read_u8().await.map_err(broken)?);
        }
        let head = String::from_utf8_lossy(&answer);
        let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
        let is_status = status.len() == 3 && status.bytes().all(|it| it.is_ascii_digit());
        match status {
            _ if !is_status => Err(Trouble::new(
                "the proxy answers with something that is not HTTP",
                "look whether the address is that of an HTTP proxy",
            )),
            "200" => Ok(Passed::new(through, format!("the proxy opens one to {to}"))),
            "407" => Err(Trouble::new(
                "the proxy asks for a user and a password (407)",
                "write them into proxy_url, as http://user:password@host:port",
            )),
            "403" | "405" => Err(Trouble::new(
                format!("the proxy forbids it ({status})"),
                format!("ask the proxy's administrators to let this host reach {to}"),
            )),
            _ => Err(Trouble::new(
                format!("the proxy answers {status}"),
                format!("look whether the proxy itself can reach {to}"),
            )),
        }
    }
}

/// Looks up the name of a server, which was written in `from`.
pub(super) async fn look_up(
    endpoint: &Endpoint,
    from: &str,
    limit: Duration,
) -> Outcome<Vec<SocketAddr>> {
    let Endpoint { host, port, .. } = endpoint;
    let began = Instant::now();
    let found = tokio::net::lookup_host((host.as_str(), *port));
    let next = format!(
        "look whether {host} in {from} is written right, and whether this machine's name servers \
         answer (getent hosts {host})"
    );
    let addresses: Vec<SocketAddr> = within(limit, found)
        .await
        .map_err(|why| Trouble::new(why, next.clone()))?
        .collect();
    if addresses.is_empty() {
        return Err(Trouble::new("the name has no address", next));
    }
    let mut shown: Vec<String> = addresses.iter().map(|one| one.ip().to_string()).collect();
    shown.truncate(SHOWN);
    if addresses.len() > SHOWN {
        shown.push(format!("and {} more", addresses.len() - SHOWN));
    }
    let shown = shown.join(", ");
    let found = if host.parse::<std::net::IpAddr>().is_ok() {
        "not needed, it is an address".to_owned()
    } else {
        format!("{shown} ({})", milliseconds(began.elapsed()))
    };
    Ok(Passed::new(addresses, found))
}

/// Connects to the first address that answers. `next` says what to do if none does.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    next: &str,
    limit: Duration,
) -> Outcome<Connection> {
    let mut failures = Vec::new();
    let all_began = Instant::now();
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in &addresses {
        let began = Instant::now();
        let lost = began.duration_since(all_began);
        match within(share, TcpStream::connect(address)).await {
            Ok(stream) => {
                let found = format!(
                    "connected to {address} in {}",
                    milliseconds(began.elapsed())
                );
                let passed = Passed::new(Box::new(stream) as Connection, found);
                return Ok(if lost < NOTICEABLE_DELAY {
                    passed
                } else {
                    passed.with_concern(format!(
                        "other addresses do not answer, which costs time: {}",
                        failures.join("; ")
                    ))
                });
            }
            Err(why) => failures.push(format!("{address}: {why}")),
        }
    }
    Err(Trouble::new(failures.join("; "), next))
}

/// Waits for the work, at most for `limit`. An error is returned in words.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!(
            "no answer within {}",
            humantime::format_duration(limit)
        )),
    }
}

/// Writes a time for people.
pub(super) fn milliseconds(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_url_is_found() {
        let of = |url: &str| Endpoint::of(url).map(|one| (one.tls, one.to_string()));
        assert_eq!(
            of("https://a.example"),
            Some((true, "a.example:443".into()))
        );
        assert_eq!(
            of("http://[::1]:8080/x"),
            Some((false, "[::1]:8080".into()))
        );
        assert_eq!(of("socks5://a:1"), None);
        assert_eq!(of("a.example"), None);
    }

    #[tokio::test]
    async fn a_proxy_that_wants_a_password_or_forbids_the_way_says_so() {
        let options = crate::check::tests::options("https://api.example", |options| {
            let url = crate::secret::Secret::new("http://me:pass@127.0.0.1:9");
            options.proxy_url = Some(crate::opsramp::ProxyUrl(url));
        });
        let to = Endpoint::of("https://api.example").unwrap();
        let proxy = Proxy::before(&to, &options).unwrap().ok().unwrap();
        assert_eq!(
            (proxy.endpoint.to_string().as_str(), proxy.from),
            ("127.0.0.1:9", "proxy_url")
        );
        for (answer, told) in [
            ("HTTP/1.1 200 Connection established\r\n\r\nrest", Ok(())),
            ("HTTP/1.1 407 X\r\n\r\n", Err("a user and a password (407)")),
            ("HTTP/1.1 403 X\r\n\r\n", Err("forbids it (403)")),
            ("HTTP/1.1 502 X\r\n\r\n", Err("answers 502")),
            ("HTTP/1.1", Err("breaks the connection off")),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(answer.as_bytes()).await.unwrap();
            let request = async {
                let mut request = vec![0; 200];
                let length = theirs.read(&mut request).await.unwrap();
                request.truncate(length);
                drop(theirs);
                String::from_utf8(request).unwrap()
            };
            let (outcome, request) = tokio::join!(proxy.tunnel(&to, Box::new(ours)), request);
            assert_eq!(
                request,
                "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\
                 Proxy-Authorization: Basic bWU6cGFzcw==\r\n\r\n"
            );
            match (outcome, told) {
                (Ok(_), Ok(())) => {}
                (Err(trouble), Err(told)) => assert!(trouble.cause.contains(told), "{trouble:?}"),
                (outcome, _) => panic!("{answer}: {:?}", outcome.err()),
            }
        }
    }
}
