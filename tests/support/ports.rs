//! Ports at which nobody listens.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// Returns an address at which nobody listens, and what keeps its port from being given to others.
/// A server that is told to listen there can do so, if it sets the same option on its socket.
pub(crate) fn keep_a_port() -> (SocketAddr, TcpSocket) {
    let kept = TcpSocket::new_v4().unwrap();
    kept.set_reuseaddr(true).unwrap();
    kept.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    (kept.local_addr().unwrap(), kept)
}
