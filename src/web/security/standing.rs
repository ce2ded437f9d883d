//! Connections from before a change of TLS: a handshake proved what was asked for then.
//!
//! A scraper keeps its connection for as long as it scrapes. So what it showed in the handshake is
//! looked at again once TLS is another one: who would be let in now is answered, and has to shake
//! hands anew after that; to others the connection is closed.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::Tls;

/// The other end of a connection, as it was when the connection was opened.
pub(in crate::web) struct Peer {
    tls: Option<Arc<Tls>>,
    /// What it has shown, its own first.
    certificates: Vec<CertificateDer<'static>>,
}

/// What becomes of a request on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Standing {
    /// It is answered.
    Good,
    /// It is the last one that is answered.
    Last,
    /// It is not answered: a new connection would not be, either.
    Refused,
}

// === impl Peer ===

impl Peer {
    /// A peer that does not speak TLS.
    pub(in crate::web) fn in_clear() -> Self {
        Self {
            tls: None,
            certificates: Vec::new(),
        }
    }

    /// One that has shaken hands, and shown these certificates.
    pub(in crate::web) fn over(tls: Arc<Tls>, certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let certificates = certificates.unwrap_or_default().iter();
        Self {
            tls: Some(tls),
            certificates: certificates
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
        }
    }
}

/// How a peer stands where `now` is in force.
pub(super) fn of(peer: &Peer, now: Option<&Arc<Tls>>) -> Standing {
    match (&peer.tls, now) {
        (None, None) => Standing::Good,
        // What was read again with other passwords, say, is made of the same.
        (Some(then), Some(now)) if Arc::ptr_eq(then, now) || then.options == now.options => {
            Standing::Good
        }
        (_, Some(now)) if !is_let_in(peer, now) => Standing::Refused,
        _ => Standing::Last,
    }
}

/// Whether a handshake would end well in which the peer shows the same.
fn is_let_in(peer: &Peer, tls: &Tls) -> bool {
    let Some(verifier) = &tls.verifier else {
        return true;
    };
    match peer.certificates.split_first() {
        None => !verifier.client_auth_mandatory(),
        Some((own, intermediates)) => verifier
            .verify_client_cert(own, intermediates, UnixTime::now())
            .is_ok(),
    }
}
