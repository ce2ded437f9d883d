//! Where the server is: the URL that a secret holds, and how much of TLS it asks for.

use std::{path::PathBuf, time::Duration};

use tokio_postgres::config::{SslMode, TargetSessionAttrs};

/// What a URL without a limit of its own waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without a word the kernel asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// After so long without an answer to what was sent, a connection is dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// What the driver needs. Its `Debug` leaves the password out.
    pub(super) config: tokio_postgres::Config,
    /// Whose certificate is believed.
    pub(super) trust: Trust,
}

/// Whose certificate is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Anybody's.
    Anybody,
    /// One that leads to these roots, or to the system's, and bears the server's name.
    Verified {
        /// A file with roots in PEM form.
        roots: Option<PathBuf>,
    },
}

/// What is wrong with a URL. Nothing of it is shown: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is something else.
    #[error(
        "the URL of the database cannot be read; \
         write it as postgres://user:password@host:5432/database"
    )]
    Unreadable,
    /// It does not say where.
    #[error("the URL of the database names no host")]
    NoHost,
    /// An `sslmode` that there is not.
    #[error("the URL's sslmode must be disable, prefer, require or verify-full")]
    SslMode,
    /// Roots that nobody would look at.
    #[error("the URL has an sslrootcert, which needs sslmode=verify-full")]
    UnusedRoots,
}

// === impl Address ===

impl Address {
    /// Reads a URL. `sslmode` and `sslrootcert` are our own business, the rest is the driver's.
    pub(super) fn parse(url: &str) -> Result<Self, AddressError> {
        let scheme = ["postgres://", "postgresql://"];
        if !scheme.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(AddressError::Unreadable);
        }
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut others) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", value)) => {
                    let path = percent_encoding::percent_decode_str(value).decode_utf8();
                    let path = path.map_err(|_| AddressError::Unreadable)?;
                    roots = Some(PathBuf::from(&*path));
                }
                _ => others.push(pair),
            }
        }
        let rest = format!("{place}?{}", others.join("&"));
        let parsed = rest.trim_end_matches('?').parse();
        let mut config: tokio_postgres::Config = parsed.map_err(|_| AddressError::Unreadable)?;
        if config.get_hosts().is_empty() {
            return Err(AddressError::NoHost);
        }
        let (mode, trust) = match mode.unwrap_or("prefer") {
            "disable" => (SslMode::Disable, Trust::Anybody),
            "prefer" => (SslMode::Prefer, Trust::Anybody),
            "require" => (SslMode::Require, Trust::Anybody),
            "verify-full" => (
                SslMode::Require,
                Trust::Verified {
                    roots: roots.take(),
                },
            ),
            _ => return Err(AddressError::SslMode),
        };
        if roots.is_some() {
            return Err(AddressError::UnusedRoots);
        }
        config
            .ssl_mode(mode)
            // After a failover, a server that cannot be written to is passed over.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .keepalives_idle(KEEPALIVE)
            .tcp_user_timeout(UNACKNOWLEDGED);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        Ok(Self { config, trust })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Address {
        Address::parse(url).unwrap()
    }

    #[test]
    fn the_mode_says_how_much_of_tls_is_asked_for() {
        let modes = ["disable", "prefer", "require", "verify-full"];
        let parsed = modes.map(|mode| parse(&format!("postgres://u@h/d?sslmode={mode}")));
        let modes = parsed.each_ref().map(|it| it.config.get_ssl_mode());
        let expected = [
            SslMode::Disable,
            SslMode::Prefer,
            SslMode::Require,
            SslMode::Require,
        ];
        assert_eq!(modes, expected);
        assert_eq!(parsed[2].trust, Trust::Anybody);
        assert_eq!(parsed[3].trust, Trust::Verified { roots: None });
        let own = parse(
            "postgresql://u:p@h/d?connect_timeout=9&sslrootcert=/a%20b.pem&sslmode=verify-full",
        );
        let roots = Some("/a b.pem".into());
        assert_eq!(own.trust, Trust::Verified { roots });
        let timeout = own.config.get_connect_timeout();
        assert_eq!(timeout, Some(&Duration::from_secs(9)));
        assert_eq!(parse("postgres://h").config.get_ssl_mode(), SslMode::Prefer);
    }

    #[test]
    fn several_hosts_are_tried_for_the_one_that_can_be_written_to() {
        let several = parse("postgres://u:p@a:1,b:2/d?application_name=mine");
        assert_eq!(several.config.get_hosts().len(), 2);
        assert_eq!(several.config.get_application_name(), Some("mine"));
        let attributes = several.config.get_target_session_attrs();
        assert_eq!(attributes, TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for (url, expected) in [
            ("mysql://u:hunter2@h/d", AddressError::Unreadable),
            ("host=h password=hunter2", AddressError::Unreadable),
            ("postgres://u:hunter2@h:x/d", AddressError::Unreadable),
            (
                "postgres://u:hunter2@h/d?hunter2=1",
                AddressError::Unreadable,
            ),
            ("postgres:///d?password=hunter2", AddressError::NoHost),
            (
                "postgres://u:hunter2@h?sslmode=verify-ca",
                AddressError::SslMode,
            ),
            (
                "postgres://u:hunter2@h?sslrootcert=a",
                AddressError::UnusedRoots,
            ),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error, expected, "{url}");
            assert!(!error.to_string().contains("hunter2"));
        }
        let debug = format!("{:?}", parse("postgres://u:hunter2@h/d"));
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
