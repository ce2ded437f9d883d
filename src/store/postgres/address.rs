//! Where the server is: the URL that a secret holds, and how much of TLS it asks for.

use std::{borrow::Cow, collections::HashSet, path::PathBuf, time::Duration};

use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

use crate::secret::is_variable;

/// Time limit for a connection, if the URL has none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a word from the server after which the kernel asks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The time between further such questions, and their number.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
const KEEPALIVES: u32 = 3;
/// Time after which a connection is dead if what was sent has not been acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Parameters that the driver knows, besides those that `Address::parse` reads itself.
const KNOWN: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Parameters of libpq that the driver does not know.
const UNSUPPORTED: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslpassword",
    "sslsni",
];

/// The value of `sslrootcert` that stands for the system's roots instead of a file.
const SYSTEM: &str = "system";

/// Maximum length of a parameter's name that is shown.
const MAX_NAME: usize = 40;

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// What the driver needs for each of the hosts, of which one can be written to. Its `Debug`
    /// leaves the password out.
    pub(super) hosts: Vec<Config>,
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

/// What is wrong with a URL. Nothing of the URL is shown but a parameter's name, because it may
/// hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is no URL of a database.
    #[error(
        "the URL of the database cannot be read; \
         write it as postgres://user:password@host:5432/database"
    )]
    Unreadable,
    /// The user or the password has an `@`, so that it reaches into the host.
    #[error(
        "the URL of the database has one @ too many before the host; \
         write those of the user and the password as %40"
    )]
    AtSign,
    /// The whole URL is a variable, which nobody expands.
    #[error(
        "the URL of the database is a variable, and variables are not expanded; write the URL itself"
    )]
    Unexpanded,
    /// The host or the port has a variable.
    #[error(
        "the URL of the database has a $ in its host or port, and variables are not expanded; \
         write the host and the port themselves"
    )]
    Variable,
    /// The URL names no host.
    #[error("the URL of the database names no host")]
    NoHost,
    /// A port is no number from 1 to 65535.
    #[error("the URL's port must be a number from 1 to 65535")]
    Port,
    /// A parameter is not known. Its name is given only if it cannot be anything else.
    #[error(
        "the URL has a parameter that is not known{}",
        .0.iter().map(|name| format!(": {name}")).collect::<String>()
    )]
    Unknown(Option<String>),
    /// The value of a parameter cannot be read.
    #[error("the value of the URL's parameter {0} cannot be read")]
    Value(&'static str),
    /// A parameter is not supported: others understand it, but the driver does not.
    #[error("the URL's parameter {0} is not supported")]
    Unsupported(&'static str),
    /// There is no such `sslmode`.
    #[error("the URL's sslmode must be disable, prefer, require or verify-full")]
    SslMode,
    /// Roots are named, but would not be used.
    #[error("the URL has an sslrootcert, which needs sslmode=verify-full")]
    UnusedRoots,
}

// === impl Address ===

impl Address {
    /// Reads a URL. `sslmode` and `sslrootcert` are read here, and the driver reads the rest.
    pub(super) fn parse(url: &str) -> Result<Self, AddressError> {
        if is_variable(url) {
            return Err(AddressError::Unexpanded);
        }
        let scheme = ["postgres://", "postgresql://"];
        if !scheme.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(AddressError::Unreadable);
        }
        let (place, query) = split(url)?;
        let (mut mode, mut roots) = (None, None);
        let (mut places, mut others) = (Vec::new(), Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => mode = Some(value),
                "sslrootcert" => {
                    let path = percent_encoding::percent_decode_str(value).decode_utf8();
                    let path = path.map_err(|_| AddressError::Unreadable)?;
                    roots = Some(path);
                }
                _ => {
                    check_parameter(pair, query)?;
                    match name {
                        "host" | "hostaddr" | "port" => places.push(pair),
                        _ => others.push(pair),
                    }
                }
            }
        }
        // If the query has an `@`, the query may be part of a password, and so may what looks like
        // a port.
        if !query.contains('@') && !are_ports(place) {
            return Err(AddressError::Port);
        }
        let parse = |place: &str, pairs: &[&str]| {
            // The driver takes the first `@`, wherever it is, for the end of the password.
            let query = pairs.join("&").replace('@', "%40");
            let url = format!("{place}?{query}");
            let parsed = url.trim_end_matches('?').parse::<Config>();
            parsed.map_err(|_| AddressError::Unreadable)
        };
        let all = parse(place, &[&others[..], &places].concat())?;
        if all.get_hosts().is_empty() {
            return Err(AddressError::NoHost);
        }
        let mut config = parse(&without_hosts(place), &others)?;
        let (mode, trust) = tls(mode, roots)?;
        config
            .ssl_mode(mode)
            // After a failover, a server that cannot be written to is passed over.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE_AGAIN)
            .keepalives_retries(KEEPALIVES)
            .tcp_user_timeout(UNACKNOWLEDGED);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        Ok(Self {
            hosts: one_by_one(&config, &all),
            trust,
        })
    }

    /// Whether another URL leads to the same database: the same hosts, in whatever order, the same
    /// ports, name and options. The options say where in the database the tables are. Who logs in,
    /// and how, does not matter.
    pub(super) fn is_of_the_same_database(&self, other: &Self) -> bool {
        let places = |of: &Self| of.hosts.iter().map(place).collect::<HashSet<_>>();
        places(self) == places(other)
    }
}

/// Returns what distinguishes a database from others.
fn place(host: &Config) -> String {
    // Without a name, the database is the one that is named like the user.
    let name = host.get_dbname().or(host.get_user());
    let (hosts, addresses) = (host.get_hosts(), host.get_hostaddrs());
    let (ports, options) = (host.get_ports(), host.get_options());
    format!("{:?}", (hosts, addresses, ports, name, options))
}

/// Splits a URL into the part before its parameters, and the parameters. A password may have a
/// `?`, as other programs accept it, and a `/`, as the driver does.
fn split(url: &str) -> Result<(&str, &str), AddressError> {
    let start = url.find("://").map_or(0, |at| at + "://".len());
    let host = match url[start..].split_once('@') {
        Some((user, _)) if !is_path_with_query(user) => start + user.len() + 1,
        _ => start,
    };
    let end = url[host..].find('?').map_or(url.len(), |at| host + at);
    let hosts = url[host..end].split('/').next().unwrap_or_default();
    if hosts.contains('@') {
        return Err(AddressError::AtSign);
    }
    if hosts.contains('$') {
        return Err(AddressError::Variable);
    }
    Ok((&url[..end], url[end..].trim_start_matches('?')))
}

/// Checks whether the driver accepts a parameter, one of the `query`.
fn check_parameter(pair: &str, query: &str) -> Result<(), AddressError> {
    // The driver supports channel binding, but our TLS does not.
    if pair == "channel_binding=require" {
        return Err(AddressError::Unsupported("channel_binding=require"));
    }
    let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
    if let Some(unsupported) = UNSUPPORTED.iter().find(|it| **it == name) {
        return Err(AddressError::Unsupported(unsupported));
    }
    if let Some(known) = KNOWN.iter().find(|known| **known == name) {
        let pair = pair.replace('@', "%40");
        return match format!("postgres://?{pair}").parse::<Config>() {
            Ok(_) => Ok(()),
            Err(_) if *known == "port" => Err(AddressError::Port),
            Err(_) => Err(AddressError::Value(known)),
        };
    }
    // Otherwise the name may be part of a password with special characters.
    let is_name = pair.contains('=')
        && !query.contains('@')
        && !query.contains("password")
        && name.len() <= MAX_NAME
        && name
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || it == '_');
    Err(AddressError::Unknown(is_name.then(|| name.to_owned())))
}

/// Returns how much of TLS is asked for by an `sslmode` and an `sslrootcert`.
fn tls(mode: Option<&str>, roots: Option<Cow<'_, str>>) -> Result<(SslMode, Trust), AddressError> {
    let is_of_system = roots.as_deref() == Some(SYSTEM);
    // Asking for the system's roots asks for `verify-full` by itself.
    let usual = if is_of_system {
        "verify-full"
    } else {
        "prefer"
    };
    let mode = match mode.unwrap_or(usual) {
        "disable" => SslMode::Disable,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-full" => {
            let file = roots.filter(|_| !is_of_system);
            let roots = file.map(|path| PathBuf::from(&*path));
            return Ok((SslMode::Require, Trust::Verified { roots }));
        }
        _ => return Err(AddressError::SslMode),
    };
    match roots {
        None => Ok((mode, Trust::Anybody)),
        Some(_) => Err(AddressError::UnusedRoots),
    }
}

/// Whether all ports in the part of a URL before its parameters are valid.
fn are_ports(place: &str) -> bool {
    let (_, rest) = place.split_once("://").unwrap_or(("", place));
    let (_, rest) = rest.split_at(rest.find('@').map_or(0, |at| at + 1));
    let hosts = rest.split('/').next().unwrap_or_default();
    hosts.split(',').all(|host| {
        // The colons of an IPv6 address stand in brackets.
        let (_, behind) = host.rsplit_once(']').unwrap_or(("", host));
        let port = behind.split_once(':').map(|(_, port)| port);
        port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok_and(|port| port > 0))
    })
}

fn is_path_with_query(text: &str) -> bool {
    let path = text.split_once('/').map(|(_, path)| path);
    path.is_some_and(|path| path.contains('?'))
}

/// Returns the part of a URL before its parameters, without the hosts between the user and the
/// database.
fn without_hosts(place: &str) -> String {
    let (scheme, rest) = place.split_once("://").unwrap_or((place, ""));
    let (user, rest) = rest.split_at(rest.find('@').map_or(0, |at| at + 1));
    let (_, database) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{user}{database}")
}

/// Returns the configuration for each of the hosts by itself.
fn one_by_one(config: &Config, hosts: &Config) -> Vec<Config> {
    let ports = hosts.get_ports();
    let host = |(index, host): (usize, &Host)| {
        let mut config = config.clone();
        match host {
            Host::Tcp(name) => config.host(name),
            // There is no TLS, whatever is asked for, because nobody else can listen on such a
            // socket.
            Host::Unix(path) => config.host_path(path).ssl_mode(SslMode::Disable),
        };
        if let Some(address) = hosts.get_hostaddrs().get(index) {
            config.hostaddr(*address);
        }
        if let Some(port) = ports.get(index).or(ports.first()) {
            config.port(*port);
        }
        config
    };
    hosts.get_hosts().iter().enumerate().map(host).collect()
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
        let modes = parsed.each_ref().map(|it| it.hosts[0].get_ssl_mode());
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
        let timeout = own.hosts[0].get_connect_timeout();
        assert_eq!(timeout, Some(&Duration::from_secs(9)));
        assert_eq!(
            parse("postgres://h").hosts[0].get_ssl_mode(),
            SslMode::Prefer
        );
    }

    #[test]
    fn the_systems_roots_can_be_asked_for_by_name() {
        for url in [
            "postgres://u@h/d?sslrootcert=system",
            "postgres://u@h/d?sslmode=verify-full&sslrootcert=system",
        ] {
            assert_eq!(parse(url).trust, Trust::Verified { roots: None }, "{url}");
            assert_eq!(parse(url).hosts[0].get_ssl_mode(), SslMode::Require);
        }
    }

    #[test]
    fn every_parameter_of_the_driver_is_known() {
        for name in KNOWN {
            let value = match *name {
                "host" => "h",
                "hostaddr" => "::1",
                "channel_binding" | "load_balance_hosts" => "disable",
                "sslnegotiation" => "postgres",
                "target_session_attrs" => "any",
                _ => "7",
            };
            parse(&format!("postgres://u@h/d?{name}={value}"));
        }
    }

    #[test]
    fn several_hosts_are_tried_for_the_one_that_can_be_written_to() {
        let tcp = |name: &str| Host::Tcp(name.to_owned());
        let several = parse("postgres://u:p%40@a:1,b:2,c/d?application_name=mine");
        let hosts = several.hosts.iter();
        let places: Vec<_> = hosts.map(|it| (it.get_hosts(), it.get_ports())).collect();
        let expected = [(tcp("a"), 1), (tcp("b"), 2), (tcp("c"), 5432)];
        for ((hosts, ports), (host, port)) in places.into_iter().zip(expected) {
            assert_eq!((hosts, ports), (&[host][..], &[port][..]));
        }
        assert_eq!(several.hosts.len(), 3);
        for host in &several.hosts {
            assert_eq!(host.get_user(), Some("u"));
            assert_eq!(host.get_password(), Some(&b"p@"[..]));
            assert_eq!(host.get_dbname(), Some("d"));
            assert_eq!(host.get_application_name(), Some("mine"));
            let attributes = host.get_target_session_attrs();
            assert_eq!(attributes, TargetSessionAttrs::ReadWrite);
        }
        let by_parameters = "postgres://a,b/d?hostaddr=10.0.0.1,10.0.0.2";
        let hosts = parse(by_parameters).hosts;
        assert_eq!(hosts[1].get_hosts(), [tcp("b")]);
        let address: std::net::IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(hosts[1].get_hostaddrs(), [address]);
        let socket = &parse("postgres:///d?host=/run/pg&port=7").hosts[0];
        assert_eq!(socket.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(socket.get_ports(), [7]);
    }

    #[test]
    fn a_socket_of_this_machine_needs_no_tls_whatever_is_asked_for() {
        let both = parse("postgres://u@a,%2Frun%2Fpg/d?sslmode=verify-full");
        let modes = both.hosts.iter().map(Config::get_ssl_mode);
        assert_eq!(
            modes.collect::<Vec<_>>(),
            [SslMode::Require, SslMode::Disable]
        );
    }

    #[test]
    fn who_logs_in_and_how_makes_no_other_database() {
        let used = parse("postgres://u:p@a:1,b/d?options=-c%20search_path%3Ds");
        for (url, expected) in [
            ("postgres://v:q@b,a:1/d?options=-c%20search_path%3Ds", true),
            (
                "postgres://v:q@b:5432,a:1/d?options=-c%20search_path%3Ds&sslmode=require",
                true,
            ),
            ("postgres://u:p@a:1,c/d?options=-c%20search_path%3Ds", false),
            ("postgres://u:p@a:2,b/d?options=-c%20search_path%3Ds", false),
            ("postgres://u:p@a:1/d?options=-c%20search_path%3Ds", false),
            ("postgres://u:p@a:1,b/e?options=-c%20search_path%3Ds", false),
            ("postgres://u:p@a:1,b/d", false),
        ] {
            assert_eq!(used.is_of_the_same_database(&parse(url)), expected, "{url}");
        }
        let named = parse("postgres://u:p@a/u");
        assert!(named.is_of_the_same_database(&parse("postgres://u:q@a:5432")));
        assert!(!named.is_of_the_same_database(&parse("postgres://v@a")));
    }

    #[test]
    fn a_password_is_taken_as_it_is_written() {
        for (url, password) in [
            ("postgres://u:a?b@h:1/d?sslmode=require", "a?b"),
            ("postgres://u:a?b=c&d@h:1/d?sslmode=require", "a?b=c&d"),
            ("postgres://u:a/b#c:d e@h:1/d?sslmode=require", "a/b#c:d e"),
            ("postgres://u:%40%3F@h:1/d?sslmode=require", "@?"),
            (
                "postgres://h:1/d?user=u&password=a@b&sslmode=require",
                "a@b",
            ),
            (
                "postgres:///d?host=h&port=1&user=u&password=a@b&sslmode=require",
                "a@b",
            ),
        ] {
            let address = parse(url);
            let [host] = &address.hosts[..] else {
                panic!("{url}: {address:?}");
            };
            assert_eq!(host.get_hosts(), [Host::Tcp("h".to_owned())], "{url}");
            assert_eq!(host.get_password(), Some(password.as_bytes()), "{url}");
            let rest = (host.get_user(), host.get_dbname(), host.get_ports());
            assert_eq!(rest, (Some("u"), Some("d"), &[1][..]), "{url}");
            assert_eq!(host.get_ssl_mode(), SslMode::Require, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for (url, expected) in [
            ("mysql://u:hunter2@h/d", AddressError::Unreadable),
            ("host=h password=hunter2", AddressError::Unreadable),
            ("postgres://u:hunter2@h:x/d", AddressError::Port),
            ("postgres://u:hunter2@h:99999/d", AddressError::Port),
            ("postgres://u:hunter2@a:1,[::1]:0/d", AddressError::Port),
            ("postgres://u:hunter2@h/d?port=99999", AddressError::Port),
            (
                "postgres://u:hunter2@h/d?foo=hunter2",
                AddressError::Unknown(Some("foo".to_owned())),
            ),
            (
                "postgres://h/d?password=a&hunter2=1",
                AddressError::Unknown(None),
            ),
            ("postgres://u:a@h/d?hunter2", AddressError::Unknown(None)),
            (
                "postgres://u:a/x?hunter2=1@h/d",
                AddressError::Unknown(None),
            ),
            (
                "postgres://u:hunter2@h/d?connect_timeout=hunter2",
                AddressError::Value("connect_timeout"),
            ),
            ("postgres://u:hunter2@2@h/d", AddressError::AtSign),
            ("$DATABASE_URL", AddressError::Unexpanded),
            ("${DATABASE_URL:-hunter2}", AddressError::Unexpanded),
            ("postgres://u:hunter2@$HOST/d", AddressError::Variable),
            (
                "postgres://u:hunter2@${HOST}:5432/d",
                AddressError::Variable,
            ),
            ("postgres://u:hunter2@h:$PORT/d", AddressError::Variable),
            ("postgres://u:h/unter?2@h/d", AddressError::Unknown(None)),
            ("", AddressError::Unreadable),
            ("postgres:///d?password=hunter2", AddressError::NoHost),
            (
                "postgres://u:hunter2@h/d?sslmode=require&channel_binding=require",
                AddressError::Unsupported("channel_binding=require"),
            ),
            (
                "postgres://u:hunter2@h/d?sslmode=require&sslcert=hunter2",
                AddressError::Unsupported("sslcert"),
            ),
            (
                "postgres://u:hunter2@h?sslmode=verify-ca",
                AddressError::SslMode,
            ),
            (
                "postgres://u:hunter2@h?sslrootcert=a",
                AddressError::UnusedRoots,
            ),
            (
                "postgres://u:hunter2@h?sslrootcert=system&sslmode=require",
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
