//! Connections from before a change of TLS, or from before the end of the client's certificate:
//! the handshake only proved what was asked for, and what was valid, at that time.
//!
//! A scraper keeps its connection for as long as it scrapes. So the certificates that it showed in
//! the handshake are verified again once TLS has changed or a certificate has ended. If the client
//! would be let in now, the request is answered; after a change of TLS, the client then needs a
//! new handshake. Otherwise the connection is closed.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::Tls;
use crate::validity::not_after;

/// The other end of a connection, as it was when the connection was opened.
pub(in crate::web) struct Peer {
    tls: Option<Arc<Tls>>,
    /// The certificates that the peer has shown, its own first.
    certificates: Vec<CertificateDer<'static>>,
    /// When the first of these certificates ends.
    ends: Option<Timestamp>,
}

/// What becomes of a request on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Standing {
    /// The request is answered.
    Good,
    /// The request is answered as the last one of its connection.
    Last,
    /// The request is not answered, because a request on a new connection would not be answered
    /// either.
    Refused,
}

// === impl Peer ===

impl Peer {
    /// A peer that does not speak TLS.
    pub(in crate::web) fn in_clear() -> Self {
        Self {
            tls: None,
            certificates: Vec::new(),
            ends: None,
        }
    }

    /// A peer that has completed a handshake, and shown these certificates.
    pub(in crate::web) fn over(tls: Arc<Tls>, certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let certificates = certificates.unwrap_or_default();
        Self {
            tls: Some(tls),
            ends: certificates.iter().filter_map(|it| not_after(it)).min(),
            certificates: certificates
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
        }
    }

    /// Whether a certificate that the peer has shown has ended. This matters only if issuers are
    /// verified: otherwise the end of a certificate is not checked either.
    fn has_ended(&self, tls: &Tls, now: Timestamp) -> bool {
        tls.options.client_auth.is_verified() && self.ends.is_some_and(|end| end < now)
    }
}

/// Returns what becomes of a peer's request when `tls` is in force.
pub(super) fn of(peer: &Peer, tls: Option<&Arc<Tls>>, now: Timestamp) -> Standing {
    match (&peer.tls, tls) {
        (None, None) => Standing::Good,
        // A new connection without TLS is not answered, either.
        (None, Some(_)) => Standing::Refused,
        // After a change of the passwords, for instance, TLS is made of the same options.
        (Some(then), Some(tls)) if Arc::ptr_eq(then, tls) || then.options == tls.options => {
            // The ended certificate may not have been needed.
            if peer.has_ended(tls, now) && !is_let_in(peer, tls, now) {
                Standing::Refused
            } else {
                Standing::Good
            }
        }
        (_, Some(tls)) if !is_let_in(peer, tls, now) => Standing::Refused,
        _ => Standing::Last,
    }
}

/// Whether a new handshake would succeed in which the peer shows the same certificates.
fn is_let_in(peer: &Peer, tls: &Tls, now: Timestamp) -> bool {
    let Some(verifier) = &tls.verifier else {
        return true;
    };
    match peer.certificates.split_first() {
        None => !verifier.client_auth_mandatory(),
        Some((own, intermediates)) => {
            let seconds = u64::try_from(now.as_second()).unwrap_or_default();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let verified = verifier.verify_client_cert(own, intermediates, now);
            verified.is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };

    use super::*;
    use crate::web::{ClientAuth, security::tests::with_issuer};

    fn certificate(issuer: &Issuer<'_, KeyPair>, until: i32) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::new(["scraper.example".to_owned()]).unwrap();
        parameters.not_after = date_time_ymd(until, 1, 1);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, issuer).unwrap();
        certificate.der().clone()
    }

    #[test]
    fn a_connection_in_clear_does_not_outlive_tls_being_switched_on() {
        let now = "2025-01-01T00:00:00Z".parse().unwrap();
        let (peer, security) = (Peer::in_clear(), crate::web::security::tests::until(3000));
        assert_eq!(security.standing(&peer, now), Standing::Refused);
        let none = crate::web::Security::none();
        assert_eq!(none.standing(&peer, now), Standing::Good);
    }

    #[test]
    fn a_connection_does_not_outlive_the_certificate_that_its_client_has_shown() {
        use ClientAuth::{RequireAndVerify, RequireAny, VerifyIfGiven};

        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(parameters, key);
        let (valid, ended) = (certificate(&issuer, 2030), certificate(&issuer, 2020));
        let [before, after] = ["2019-06-01T00:00:00Z", "2021-06-01T00:00:00Z"]
            .map(|time| time.parse::<Timestamp>().unwrap());
        for (client_auth, shown, standing) in [
            (RequireAndVerify, vec![&valid], Standing::Good),
            (RequireAndVerify, vec![&ended], Standing::Refused),
            // The client need not have shown the ended certificate.
            (RequireAndVerify, vec![&valid, &ended], Standing::Good),
            (VerifyIfGiven, vec![&ended], Standing::Refused),
            (VerifyIfGiven, vec![], Standing::Good),
            // Without a check of the issuer, the end is not checked either.
            (RequireAny, vec![&ended], Standing::Good),
        ] {
            let security = with_issuer(client_auth, &pem);
            let shown: Vec<CertificateDer<'_>> = shown.into_iter().cloned().collect();
            let peer = Peer::over(Arc::clone(security.tls().unwrap()), Some(&shown));
            assert_eq!(security.standing(&peer, before), Standing::Good);
            let stands = security.standing(&peer, after);
            assert_eq!(stands, standing, "{client_auth:?}");
        }
    }
}
