//! Listening sockets: what a listen address means, and how it is bound.
//!
//! Addresses are bound before anything else is started, so that a second exporter on the same port
//! fails at once. They are served later, when there is something to show.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _},
};

use tokio::net::TcpSocket;

/// Maximum number of connections that the kernel holds ready until they are accepted.
const BACKLOG: u32 = 1024;

/// A listen address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The text is not an address.
    #[error(
        "{address:?} is not a listen address; write `:10836`, `127.0.0.1:10836` or `[::1]:10836`"
    )]
    Invalid {
        /// What was given.
        address: String,
    },
    /// The address's host name cannot be resolved.
    #[error("cannot look up the listen address {address}")]
    Resolve {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd has handed over nothing.
    #[error(
        "systemd has handed over no socket; start it by its socket unit, or leave out \
         --web.systemd-socket"
    )]
    NoSocket,
    /// A socket from systemd is not a listening TCP socket.
    #[error(
        "the socket number {number} from systemd cannot be used: it must be a listening TCP socket \
         (ListenStream= with a port, Accept=no)"
    )]
    WrongSocket {
        /// The number of the socket, from 1.
        number: usize,
        /// Why, where the system says so.
        #[source]
        source: Option<io::Error>,
    },
}

/// Takes all sockets that systemd hands over (`sd_listen_fds(3)`), and makes them non-blocking.
/// May be called only once.
///
/// # Errors
/// If there is no socket, or if one is not a listening TCP socket.
pub fn take_from_systemd() -> Result<Vec<TcpListener>, BindError> {
    let mut sockets = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..sockets.len() {
        let wrong = |source| BindError::WrongSocket {
            number: index + 1,
            source,
        };
        let listener = sockets.take_tcp_listener(index);
        let Some(listener) = listener.map_err(|error| wrong(Some(error)))? else {
            continue;
        };
        let listens = rustix::net::sockopt::socket_acceptconn(&listener);
        if !listens.map_err(|error| wrong(Some(error.into())))? {
            return Err(wrong(None));
        }
        let set = listener.set_nonblocking(true);
        set.map_err(|error| wrong(Some(error)))?;
        listeners.push(listener);
    }
    if listeners.is_empty() {
        return Err(BindError::NoSocket);
    }
    Ok(listeners)
}

/// Binds every address: `host:port`, or `:port` for all addresses of the machine, IPv4 and IPv6
/// alike. Port 0 takes a free port. Must be called inside a runtime; the sockets are non-blocking,
/// and may be served by another runtime.
///
/// # Errors
/// If an address is malformed, unknown or in use; then none is bound.
pub fn bind(addresses: &[impl fmt::Display]) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(bind_one(&address.to_string())?);
    }
    Ok(listeners)
}

fn bind_one(address: &str) -> Result<TcpListener, BindError> {
    let failed = |source| BindError::Bind {
        address: address.to_owned(),
        source,
    };
    let invalid = || BindError::Invalid {
        address: address.to_owned(),
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if host.is_empty() {
        return bind_everywhere(port).map_err(failed);
    }
    // An IPv6 address must stand in brackets: without them its last group would pass for the port.
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(invalid());
    }
    let candidates: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|source| BindError::Resolve {
            address: address.to_owned(),
            source,
        })?
        .collect();
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in candidates {
        match listen(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(failed(last_error))
}

fn bind_everywhere(port: u16) -> io::Result<TcpListener> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        // The kernel has no IPv6.
        Err(error)
            if matches!(
                rustix::io::Errno::from_io_error(&error),
                Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
            ) =>
        {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        other => other,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait until connections of the last run have left TIME_WAIT.
    socket.set_reuseaddr(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    fn message(address: &str) -> String {
        bind(&[address]).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_port_alone_means_every_address_of_both_families() {
        let listener = bind(&[":0"]).unwrap().remove(0);
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect(("::1", port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_host_name_and_several_addresses_can_be_given() {
        let listeners = bind(&["localhost:0", "127.0.0.1:0"]).unwrap();
        assert!(
            listeners
                .iter()
                .all(|one| one.local_addr().unwrap().ip().is_loopback())
        );
        assert_eq!(listeners.len(), 2);
    }

    #[tokio::test]
    async fn a_malformed_address_is_shown_with_the_right_forms() {
        for wrong in [
            "10836",
            "localhost",
            ":http",
            ":65536",
            "::1:10836",
            "",
            "host:",
        ] {
            let message = message(wrong);
            assert!(message.contains(&format!("{wrong:?}")), "{message}");
            assert!(message.contains("`:10836`"), "{message}");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_names_it() {
        let first = bind(&["127.0.0.1:0"]).unwrap().remove(0);
        let address = first.local_addr().unwrap().to_string();
        assert_eq!(message(&address), format!("cannot listen on {address}"));
    }
}
